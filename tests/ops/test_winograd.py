"""Winograd's form of 3 x 3 convolutions, in prediction: the same numbers as the sum gives, but for rounding."""
from __future__ import annotations

import numpy as np
import pytest

import microcnn as mc
from tests import graph_oracle

TOLERANCE = {"float32": 1e-5, "float64": 1e-13}


def graph_with(C, H, W, K, pads=(1, 1, 1, 1), bias=True, residual=False, activation=None):
    b = mc.GraphBuilder(seed=4)
    x = b.input("x", (C, H, W))
    y = b(mc.Conv2d(K, 3, padding=pads, bias=bias), x)
    if residual:
        y = b(mc.Add(), y, b(mc.Conv2d(K, 1), x))
    if activation:
        y = b(activation, y)
    return b.graph(y)


def kernels_of(net, program="predict"):
    return [info.kernel for info in net._programs[program][0].infos]


def check_predict(graph, batch, dtype, rng):
    """Against the oracle, with fewer samples than planned, and bit by bit with any number of threads."""
    net = graph.compile(batch=batch, dtype=dtype)
    assert kernels_of(net).count("winograd.forward") == 1
    x = rng.normal(size=(batch, *graph.inputs[0].shape)).astype(dtype)
    expected = graph_oracle.evaluate(graph, {"x": x.astype(np.float64)})[graph.outputs[0]]
    y = net.predict(x)
    np.testing.assert_allclose(y, expected, rtol=0, atol=TOLERANCE[dtype] * np.abs(expected).max())
    np.testing.assert_array_equal(net.predict(x[:1]), y[:1])
    before = mc.get_num_threads()
    try:
        for threads in (1, 2):
            mc.set_num_threads(threads)
            np.testing.assert_array_equal(net.predict(x), y)
    finally:
        mc.set_num_threads(before)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("C, H, W, K, pads, batch", [
    (32, 8, 8, 32, (1, 1, 1, 1), 2),
    (33, 7, 9, 47, (1, 1, 1, 1), 3),                # half tiles at the right and below, channels past a register
    (64, 6, 6, 100, (0, 0, 0, 0), 2),
    (40, 4, 11, 130, (2, 0, 1, 3), 1),              # windows that lie in the padding for the most part
    (32, 9, 40, 33, (1, 1, 1, 1), 5),               # several blocks of tiles, which end within a row
    (80, 2, 2, 36, (1, 1, 1, 1), 9)])
def test_it_gives_what_the_sum_gives(C, H, W, K, pads, batch, dtype, rng):
    check_predict(graph_with(C, H, W, K, pads), batch, dtype, rng)


@pytest.mark.parametrize("what", [
    {"bias": False}, {"residual": True}, {"activation": mc.ReLU()}, {"residual": True, "activation": mc.Clip(-0.3, 0.4)}],
    ids=["no-bias", "residual", "relu", "residual-clip"])
def test_what_is_fused_into_its_store(what, rng):
    check_predict(graph_with(32, 5, 7, 48, **what), 3, "float32", rng)


def test_it_can_be_turned_off(rng):
    graph = graph_with(32, 8, 8, 32)
    net, other = graph.compile(batch=2), graph.compile(batch=2, winograd=False)
    assert kernels_of(other).count("conv2d.forward") == 1 and "winograd.forward" not in kernels_of(other)
    assert other.memory.arena < net.memory.arena
    assert "winograd.forward" not in kernels_of(graph.compile(batch=2, budget=other.memory.arena))
    assert "winograd.forward" in kernels_of(graph.compile(batch=2, budget="8MB", winograd=True))
    with pytest.raises(mc.CompileError, match="winograd is 'auto'; expected True, False or None"):
        graph.compile(winograd="auto")


@pytest.mark.parametrize("layer, shape", [
    (mc.Conv2d(32, 3, stride=2), (32, 9, 9)), (mc.Conv2d(32, 3, dilation=2), (32, 9, 9)), (mc.Conv2d(16, 3), (32, 9, 9)),
    (mc.Conv2d(64, 3, groups=2), (64, 9, 9)), (mc.Conv2d(32, (3, 1)), (32, 9, 9)), (mc.Conv2d(32, 3), (32, 3, 3))],
    ids=["stride", "dilation", "few-channels", "groups", "window", "one-pixel"])
def test_where_it_does_not_pay(layer, shape):
    b = mc.GraphBuilder(seed=4)
    assert "winograd.forward" not in kernels_of(b.graph(b(layer, b.input("x", shape))).compile(batch=1))


def test_trained_weights_are_transformed_anew(rng):
    b = mc.GraphBuilder(seed=4)
    y = b(mc.ReLU(), b(mc.Conv2d(32, 3, padding=1), b.input("x", (32, 6, 6))))
    graph = b.graph(b(mc.Linear(3), b(mc.Flatten(), y)))
    x, t = rng.normal(size=(4, 32, 6, 6)), np.array([0, 2, 1, 1])
    how = {"batch": 4, "dtype": "float64", "train": "all", "loss": "cross_entropy", "optimizer": mc.SGD(lr=0.1)}
    net, other = graph.compile(**how), graph.compile(**how, winograd=False)
    assert "winograd.forward" in kernels_of(net, "evaluate") and "winograd.forward" not in kernels_of(net, "train")
    before = net.predict(x)
    for _ in range(2):
        assert net.train_step(x, t) == other.train_step(x, t)
        np.testing.assert_allclose(net.predict(x), other.predict(x), rtol=1e-12, atol=1e-13)
        assert net.evaluate(x, t)["loss"] == pytest.approx(other.evaluate(x, t)["loss"], rel=1e-12)
    assert np.abs(net.predict(x) - before).max() > 1e-3
