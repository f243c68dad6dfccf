"""Every float network made by others: twenty steps of training, and its gradients against central differences."""
from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import microcnn as mc

MODELS = ["cifar_resnet20", "mlperf_ic_resnet8", "mlperf_kws_dscnn", "mnist8_cntk", "ultraface_slim_320_simplified",
          "yunet_n_320_320"]
SAMPLES, STEPS = 4, 20
RATES = [10.0 ** -power for power in range(2, 8)]
# Moved so far, relative to max(1, |w|); the closest counts.
DELTAS = (1e-6, 1e-7, 1e-8)
CHECKED = 50


@pytest.fixture(scope="module", params=MODELS)
def model(request, corpus) -> tuple[mc.Graph, np.ndarray]:
    """One of the models, and recorded inputs."""
    folder = corpus / "models" / request.param
    graph = mc.load_onnx(folder / "model.onnx")
    with np.load(folder / "io.npz") as file:
        recorded = [file[key] for key in sorted(file) if key.startswith("in")]
    return graph, np.concatenate(recorded)[:SAMPLES]


def trainable(graph: mc.Graph, samples: int, dtype: str) -> tuple[mc.Net, Any]:
    """The network with a loss that makes sense, and seeded targets: classes for an output (N, classes), else numbers."""
    shapes = graph.shapes()
    rng = np.random.default_rng(5)
    if len(graph.outputs) == 1 and len(shapes[graph.outputs[0]]) == 1:
        loss: Any = "cross_entropy"
        targets: Any = rng.integers(0, shapes[graph.outputs[0]][0], samples)
    else:
        loss = {name: "mse" for name in graph.outputs}
        targets = {name: rng.standard_normal((samples, *shapes[name])) for name in graph.outputs}
    net = graph.compile(batch=samples, train="all", loss=loss, optimizer=mc.SGD(lr=RATES[0]), dtype=dtype)
    if isinstance(targets, dict):
        targets = {name: array.astype(dtype) for name, array in targets.items()}
    return net, targets


def test_twenty_steps(model):
    graph, x = model
    net, targets = trainable(graph, len(x), "float32")
    start = net.parameters()
    tried = {}
    for rate in RATES:
        net.set_parameters(start)
        net.lr = rate
        try:
            losses = [net.train_step(x, targets) for _ in range(STEPS)]
        except mc.TrainingError as error:
            tried[rate] = str(error)
            continue
        tried[rate] = f"{losses[0]} -> {losses[-1]}"
        if math.isfinite(losses[-1]) and losses[-1] < losses[0]:
            return
    raise AssertionError(tried)


def test_gradients(model):
    """Of the loss that is trained, by 50 weights drawn from all of them."""
    graph, x = model
    net, targets = trainable(graph, len(x), "float64")
    x = x.astype(np.float64)
    start = net.parameters()
    net.lr = 1.0
    net.train_step(x, targets)      # without momentum: the gradient is how far the weights went
    gradients = {name: start[name] - array for name, array in net.parameters().items()}
    names = sorted(net.trained)
    sizes = np.cumsum([gradients[name].size for name in names])
    rng = np.random.default_rng(9)
    wrong = []
    for place in rng.choice(sizes[-1], CHECKED, replace=False):
        number = int(np.searchsorted(sizes, place, side="right"))
        name, at = names[number], int(place - (sizes[number - 1] if number else 0))
        gradient = gradients[name].reshape(-1)[at]
        slopes = []
        for delta in DELTAS:
            step = delta * max(1.0, abs(start[name].reshape(-1)[at]))
            around = []
            for sign in (1, -1):
                moved = start[name].copy()
                moved.reshape(-1)[at] += sign * step
                net.set_parameters({**start, name: moved})
                around.append(net.evaluate(x, targets)["loss"])
            slopes.append((around[0] - around[1]) / (2 * step))
        error = min(abs(slope - gradient) for slope in slopes)
        if error > 1e-5 * abs(gradient) + 1e-5 * np.abs(gradients[name]).max() + 1e-9:
            wrong.append((name, at, gradient, slopes))
    assert len(wrong) <= 1, wrong     # one of them may sit at a kink
