"""Optimizers through training steps: weights after each step against PyTorch's formulas as plain loops."""
import numpy as np
import pytest

import microcnn as mc
from tests import oracles
from tests.ops import walk
from tests.ops.table import built, close, same_bits, spread, threads

OPTIMIZERS = {
    "sgd": (mc.SGD, oracles.sgd, {}),
    "sgd-decay": (mc.SGD, oracles.sgd, {"weight_decay": 0.1}),
    "momentum": (mc.SGD, oracles.sgd, {"momentum": 0.9}),
    "momentum-dampening-decay": (mc.SGD, oracles.sgd, {"momentum": 0.8, "dampening": 0.3, "weight_decay": 0.05}),
    "nesterov": (mc.SGD, oracles.sgd, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    "adam": (mc.Adam, oracles.adam, {}),
    "adam-decay": (mc.Adam, oracles.adam, {"betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.1}),
    "adamw": (mc.AdamW, oracles.adam, {"weight_decay": 0.2}),
}
LR, STEPS = 0.05, 4


def network():
    return built((2, 5, 4), mc.Conv2d(3, 3), mc.Tanh(), mc.Flatten(), mc.Linear(3))


def data(graph):
    rng = np.random.default_rng(1)
    return spread(rng, (3, *graph.inputs[0].shape)), rng.normal(size=(3, *graph.shapes()["output"])).astype(np.float32)


def expected_weights(graph, x, t, oracle, options, factors=None, rates=(LR,) * STEPS):
    """Every weight after each step, the gradient made anew from the weights before it."""
    factors = dict.fromkeys(graph.weights, 1.0) if factors is None else factors
    seen = {name: [] for name in graph.weights}
    now = graph.copy()
    now.weights = {name: array.astype(np.float64) for name, array in graph.weights.items()}
    after = []
    for step in range(len(rates)):
        values = walk.forward(now, {"input": x})
        gradients = walk.backward(now, values, {"output": oracles.mean_squared_error(values["output"], t)[1]})[1]
        for name in factors:
            seen[name].append(gradients[name])
            now.weights[name] = oracle(graph.weights[name], seen[name], rates[step] * factors[name], **options)
        after.append(dict(now.weights))
    return after


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-5), ("float64", 1e-11)])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_steps(name, dtype, tolerance):
    kind, oracle, options = OPTIMIZERS[name]
    graph = network()
    x, t = data(graph)
    net = graph.compile(batch=3, train="all", loss="mse", optimizer=kind(lr=LR, **options), dtype=dtype)
    given = {**options, "decoupled": True} if kind is mc.AdamW else options
    for expected in expected_weights(graph, x, t.astype(np.float64), oracle, given):
        net.train_step(x.astype(dtype), t)
        for weight, array in net.parameters().items():
            close(array, expected[weight], tolerance, weight)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_by_hand_and_at_once_share_their_state(name):
    kind, _, options = OPTIMIZERS[name]
    graph = network()
    x, t = data(graph)
    nets = [graph.compile(batch=3, train="all", loss="mse", optimizer=kind(lr=LR, **options), dtype="float64")
            for _ in range(2)]
    for step in range(4):
        nets[0].train_step(x, t)
        if step % 2:
            nets[1].train_step(x, t)
        else:
            y = nets[1].forward(x)
            nets[1].backward(2 * (y - t) / y.size)
            nets[1].update()
        for weight, array in nets[0].parameters().items():
            close(nets[1].parameters()[weight], array, 1e-12, weight)


def test_factors_and_frozen_weights():
    graph = network()
    x, t = data(graph)
    factors = {"conv1.weight": 0.25, "linear1.weight": 2.0, "linear1.bias": 2.0}
    net = graph.compile(batch=3, train={"conv1.weight": 0.25, "linear1.*": 2.0}, loss="mse",
                        optimizer=mc.SGD(lr=LR, momentum=0.5), dtype="float64")
    for expected in expected_weights(graph, x, t.astype(np.float64), oracles.sgd, {"momentum": 0.5}, factors):
        net.train_step(x, t)
        for name, array in net.parameters().items():
            close(array, expected[name], 1e-11, name)
    np.testing.assert_array_equal(net.parameters()["conv1.bias"], graph.weights["conv1.bias"])


def test_the_rate_may_change_between_steps():
    graph = network()
    x, t = data(graph)
    net = graph.compile(batch=3, train="all", loss="mse", optimizer=mc.SGD(lr=0.1), dtype="float64")
    before = net.parameters()
    for rate in (0.1, 0.03, 0.0):
        net.lr = rate
        assert net.lr == rate
        net.forward(x)
        y = net.predict(x)
        net.backward(2 * (y - t) / y.size)
        gradients = net.gradients()
        net.train_step(x, t)
        for name, array in net.parameters().items():
            close(array, before[name] - rate * gradients[name], 1e-12, name)
        before = net.parameters()


@pytest.mark.parametrize("optimizer", [mc.SGD(lr=0.01, momentum=0.9, weight_decay=0.01), mc.Adam(lr=0.01)],
                         ids=["sgd", "adam"])
def test_a_large_weight_is_the_same_for_any_number_of_threads(optimizer, rng):
    graph = built((700,), mc.Linear(450))
    x, t = rng.normal(size=(2, 700)).astype(np.float32), rng.normal(size=(2, 450)).astype(np.float32)
    results = []
    for count in (1, 2):
        with threads(count):
            net = graph.compile(batch=2, train="all", loss="mse", optimizer=optimizer)
            for _ in range(3):
                net.train_step(x, t)
            results.append(net.parameters())
    same_bits(*results)
