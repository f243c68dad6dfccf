"""Training curves against PyTorch's, step by step: the same weights, the same samples, the same formulas."""
from __future__ import annotations

import numpy as np
import pytest

import microcnn as mc

pytestmark = pytest.mark.torch
STEPS, BATCH = 20, 8


def graph() -> mc.Graph:
    """Convolution, a residual block, a depthwise convolution with a stride, batch norm after each, a head."""
    b = mc.GraphBuilder(seed=3)

    def block(name, x, channels, size, relu=True, **options):
        x = b(mc.Conv2d(channels, size, bias=False, name=f"{name}.conv", **options), x)
        x = b(mc.BatchNorm2d(name=f"{name}.bn"), x)
        return b(mc.ReLU(), x) if relu else x
    stem = block("stem", b.input("input", (3, 12, 12)), 8, 3, padding=1)
    inner = block("two", block("one", stem, 8, 3, padding=1), 8, 3, relu=False, padding=1)
    x = b(mc.ReLU(), b(mc.Add(), stem, inner))
    x = block("deep", x, 8, 3, padding=1, stride=2, groups=8)
    x = block("point", x, 12, 1)
    x = b(mc.Flatten(), b(mc.GlobalAvgPool2d(), x))
    return b.graph(b(mc.Linear(5, name="head"), x))


def module(torch, weights, training_statistics):
    """The same network in PyTorch, in float64, with the same weights."""
    nn = torch.nn

    class Block(nn.Module):
        def __init__(self, before, after, size, **options):
            super().__init__()
            self.conv = nn.Conv2d(before, after, size, bias=False, **options)
            self.bn = nn.BatchNorm2d(after)

        def forward(self, x):
            return self.bn(self.conv(x))

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = Block(3, 8, 3, padding=1)
            self.one, self.two = Block(8, 8, 3, padding=1), Block(8, 8, 3, padding=1)
            self.deep, self.point = Block(8, 8, 3, padding=1, stride=2, groups=8), Block(8, 12, 1)
            self.head = nn.Linear(12, 5)

        def forward(self, x):
            stem = self.stem(x).relu()
            x = (stem + self.two(self.one(stem).relu())).relu()
            return self.head(self.point(self.deep(x).relu()).relu().mean((2, 3)))
    network = Network().double().train(training_statistics)
    state = {name: torch.from_numpy(array.astype(np.float64)) for name, array in weights.items()}
    found = network.load_state_dict(state, strict=False)
    assert not found.unexpected_keys and all("num_batches" in name for name in found.missing_keys), found
    return network


def samples(step):
    rng = np.random.default_rng(step)
    return rng.standard_normal((BATCH, 3, 12, 12)).astype(np.float32), rng.integers(0, 5, BATCH)


OPTIMIZERS = {
    "sgd": (mc.SGD(lr=0.05), "SGD", dict(lr=0.05)),
    "momentum": (mc.SGD(lr=0.05, momentum=0.9, weight_decay=1e-3), "SGD", dict(lr=0.05, momentum=0.9, weight_decay=1e-3)),
    "nesterov": (mc.SGD(lr=0.02, momentum=0.9, nesterov=True), "SGD", dict(lr=0.02, momentum=0.9, nesterov=True)),
    "adam": (mc.Adam(lr=2e-3), "Adam", dict(lr=2e-3)),
    "adam with decay": (mc.Adam(lr=2e-3, weight_decay=1e-2), "Adam", dict(lr=2e-3, weight_decay=1e-2)),
    "adamw": (mc.AdamW(lr=2e-3), "AdamW", dict(lr=2e-3)),
}


@pytest.mark.parametrize("name, bn, dtype, rtol", [
    *((name, bn, "float32", 1e-4) for name in OPTIMIZERS for bn in ("batch", "frozen")),
    *((name, "batch", "float64", 1e-9) for name in ("momentum", "nesterov")), ("adam", "frozen", "float64", 1e-9)])
def test_twenty_steps(name, bn, dtype, rtol):
    torch = pytest.importorskip("torch")
    optimizer, kind, options = OPTIMIZERS[name]
    start = graph()
    rng = np.random.default_rng(7)
    for weight in start.weights:        # statistics that do something
        if "running" in weight:
            start.weights[weight] = (start.weights[weight] + rng.uniform(0, 0.5, start.weights[weight].shape)).astype("f4")
    net = start.compile(batch=BATCH, train="all", loss="cross_entropy", optimizer=optimizer, bn=bn, dtype=dtype)
    theirs = module(torch, start.weights, bn == "batch")
    stepper = getattr(torch.optim, kind)(theirs.parameters(), **options)
    ours, expected = [], []
    for step in range(STEPS):
        x, t = samples(step)
        ours.append(net.train_step(x, t))
        stepper.zero_grad()
        loss = torch.nn.functional.cross_entropy(theirs(torch.from_numpy(x.astype(np.float64))), torch.from_numpy(t))
        loss.backward()
        stepper.step()
        expected.append(loss.item())
    np.testing.assert_allclose(ours, expected, rtol=rtol)
    moved = net.parameters()
    for weight, value in theirs.named_parameters():
        value = value.detach().numpy()
        scale = np.abs(value).max()
        np.testing.assert_allclose(moved[weight], value, rtol=rtol, atol=rtol * scale, err_msg=weight)
    if bn == "batch":
        # ONNX takes the population's variance, PyTorch the sample's: the means are the same
        for weight, value in theirs.named_buffers():
            if "running_mean" in weight:
                np.testing.assert_allclose(moved[weight], value.numpy(), rtol=rtol, atol=rtol, err_msg=weight)
