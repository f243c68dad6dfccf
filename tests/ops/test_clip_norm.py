"""Clipping by the norm of all gradients: weights after each step against PyTorch's formulas, and what it costs."""
import numpy as np
import pytest

import microcnn as mc
from microcnn.errors import CompileError, TrainingError
from tests import oracles
from tests.ops import walk
from tests.ops.table import built, close, same_bits, threads
from tests.ops.test_update import LR, OPTIMIZERS, data, network

STEPS = 4


def clipped(gradients, limit):
    """As torch.nn.utils.clip_grad_norm_."""
    norm = np.sqrt(sum((gradient**2).sum() for gradient in gradients.values()))
    return {name: gradient * min(1.0, limit / (norm + 1e-6)) for name, gradient in gradients.items()}


def expected_weights(graph, x, t, oracle, options, limit):
    now = graph.copy()
    now.weights = {name: array.astype(np.float64) for name, array in graph.weights.items()}
    seen = {name: [] for name in graph.weights}
    for _ in range(STEPS):
        values = walk.forward(now, {"input": x})
        found = walk.backward(now, values, {"output": oracles.mean_squared_error(values["output"], t)[1]})[1]
        for name, gradient in clipped(found, limit).items():
            seen[name].append(gradient)
            now.weights[name] = oracle(graph.weights[name], seen[name], LR, **options)
        yield dict(now.weights)


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-5), ("float64", 1e-11)])
@pytest.mark.parametrize("limit", [0.05, 0.6])
@pytest.mark.parametrize("name", ["sgd", "momentum-dampening-decay", "nesterov", "adamw"])
def test_training_steps(name, limit, dtype, tolerance):
    kind, oracle, options = OPTIMIZERS[name]
    graph = network()
    x, t = data(graph)
    net = graph.compile(batch=3, train="all", loss="mse", optimizer=kind(lr=LR, clip_norm=limit, **options), dtype=dtype)
    given = {**options, "decoupled": True} if kind is mc.AdamW else options
    for expected in expected_weights(graph, x, t.astype(np.float64), oracle, given, limit):
        net.train_step(x.astype(dtype), t)
        for weight, array in net.parameters().items():
            close(array, expected[weight], tolerance, weight)


def test_a_limit_that_is_never_reached_changes_nothing():
    graph = network()
    x, t = data(graph)
    nets = [graph.compile(batch=3, train="all", loss="mse", optimizer=mc.Adam(lr=LR, clip_norm=limit))
            for limit in (None, 1e9)]
    for net in nets:
        for _ in range(3):
            net.train_step(x, t)
    same_bits(*(net.parameters() for net in nets))


def test_steps_by_hand_are_clipped_too():
    graph = network()
    x, t = data(graph)
    nets = [graph.compile(batch=3, train="all", loss="mse", optimizer=mc.SGD(lr=LR, momentum=0.9, clip_norm=0.05))
            for _ in range(2)]
    for _ in range(2):
        nets[0].train_step(x, t)
        y = nets[1].forward(x)
        nets[1].backward(2 * (y - t) / y.size)
        nets[1].update()
    for weight, array in nets[0].parameters().items():
        close(nets[1].parameters()[weight], array, 1e-6, weight)


def test_every_gradient_is_kept_and_the_plan_says_so():
    graph = built((400,), *(mc.Linear(400) for _ in range(4)))
    plans = [graph.compile(train="all", loss="mse", optimizer=mc.SGD(clip_norm=limit)).memory for limit in (None, 1.0)]
    one = 400 * 400 * 4
    assert plans[0].gradients < 2 * one and plans[1].gradients >= 4 * one


def test_threads_do_not_change_a_bit(rng):
    graph = built((700,), mc.Linear(450))
    x, t = rng.normal(size=(2, 700)).astype(np.float32), rng.normal(size=(2, 450)).astype(np.float32)
    results = []
    for count in (1, 2):
        with threads(count):
            net = graph.compile(batch=2, train="all", loss="mse", optimizer=mc.SGD(lr=0.1, clip_norm=0.01))
            for _ in range(3):
                net.train_step(x, t)
            results.append(net.parameters())
    same_bits(*results)


def test_a_gradient_that_is_infinite_changes_no_weight():
    graph = built((2,), mc.Linear(2, bias=False), mc.Linear(2, bias=False))
    first, second = graph.weights
    graph.weights[first] = np.full((2, 2), 1e-25, np.float32)
    graph.weights[second] = np.full((2, 2), 1e15, np.float32)
    x, t = np.full((1, 2), 1e25, np.float32), np.zeros((1, 2), np.float32)
    net = graph.compile(train="all", loss="mse", optimizer=mc.SGD(lr=0.1, clip_norm=1.0))
    before = net.parameters()
    with pytest.raises(TrainingError, match="a gradient holds NaN or infinite numbers at step 1; no weight was changed"):
        net.train_step(x, t)
    same_bits(before, net.parameters())


@pytest.mark.parametrize("given", [0, -1.0, float("nan"), float("inf"), "1", True])
def test_limits_that_make_no_sense(given):
    with pytest.raises(CompileError, match="SGD: clip_norm is .*; expected a finite number above 0, such as 1.0, or None"):
        mc.SGD(clip_norm=given)


@pytest.mark.torch
@pytest.mark.parametrize("name", ["momentum-dampening-decay", "nesterov", "adam-decay", "adamw"])
def test_clipped_steps_are_pytorchs(name, rng):
    torch = pytest.importorskip("torch")
    kind, _, options = OPTIMIZERS[name]
    graph = built((6,), mc.Linear(5, name="0"), mc.Linear(3, name="1"))
    theirs = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Linear(5, 3)).double()
    theirs.load_state_dict({key: torch.tensor(array, dtype=torch.float64) for key, array in graph.weights.items()})
    stepper = getattr(torch.optim, kind.__name__)(theirs.parameters(), lr=LR, **options)
    net = graph.compile(batch=4, train="all", loss="mse", optimizer=kind(lr=LR, clip_norm=0.1, **options), dtype="float64")
    for _ in range(5):
        x, t = rng.normal(size=(4, 6)), rng.normal(size=(4, 3))
        net.train_step(x, t)
        stepper.zero_grad()
        torch.nn.functional.mse_loss(theirs(torch.tensor(x)), torch.tensor(t)).backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.1)
        stepper.step()
    for key, value in theirs.state_dict().items():
        close(net.parameters()[key], value.numpy(), 1e-10, key)
