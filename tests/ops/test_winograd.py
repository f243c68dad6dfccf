"""Winograd's form of 3 x 3 convolutions: the same numbers as the sum gives, but for rounding."""
from __future__ import annotations

import numpy as np
import pytest

import microcnn as mc
from microcnn.kernels.simd import lanes_of
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
    (16, 7, 9, 40, (1, 1, 1, 1), 3),                # weights that stay in registers, on some processors
    (16, 8, 8, 100, (1, 1, 1, 1), 2),
    (80, 2, 2, 36, (1, 1, 1, 1), 9)])
def test_it_gives_what_the_sum_gives(C, H, W, K, pads, batch, dtype, rng):
    check_predict(graph_with(C, H, W, K, pads), batch, dtype, rng)


@pytest.mark.parametrize("what", [
    {"bias": False}, {"residual": True}, {"activation": mc.ReLU()}, {"residual": True, "activation": mc.Clip(-0.3, 0.4)}],
    ids=["no-bias", "residual", "relu", "residual-clip"])
def test_what_is_fused_into_its_store(what, rng):
    check_predict(graph_with(32, 5, 7, 48, **what), 3, "float32", rng)


@pytest.mark.skipif(lanes_of("float32") != 16, reason="registers of 16 numbers hold the weights of 16 channels")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("H, W, K, batch", [(8, 8, 16, 2), (9, 7, 17, 3), (6, 10, 24, 5)])
def test_few_channels(H, W, K, batch, dtype, rng):
    check_predict(graph_with(16, H, W, K), batch, dtype, rng)


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
    (mc.Conv2d(32, 3, stride=2), (32, 9, 9)), (mc.Conv2d(32, 3, dilation=2), (32, 9, 9)), (mc.Conv2d(15, 3), (16, 9, 9)),
    (mc.Conv2d(64, 3), (15, 9, 9)),
    (mc.Conv2d(64, 3, groups=2), (64, 9, 9)), (mc.Conv2d(32, (3, 1)), (32, 9, 9)), (mc.Conv2d(32, 3), (32, 3, 3))],
    ids=["stride", "dilation", "few-channels", "few-inputs", "groups", "window", "one-pixel"])
def test_where_it_does_not_pay(layer, shape):
    b = mc.GraphBuilder(seed=4)
    assert "winograd.forward" not in kernels_of(b.graph(b(layer, b.input("x", shape))).compile(batch=1))


def trained(graph, batch, **how):
    """Compiled to train with and without Winograd's algorithm, in float64."""
    how = {"batch": batch, "dtype": "float64", "loss": "mse", "optimizer": mc.SGD(lr=0.01, momentum=0.9), "train": "all", **how}
    return graph.compile(**how), graph.compile(**how, winograd=False)


@pytest.mark.parametrize("C, H, W, K, pads, batch", [
    (32, 8, 8, 32, (1, 1, 1, 1), 48),
    (16, 9, 7, 33, (1, 1, 1, 1), 40),               # channels past a register, in both directions
    (47, 9, 8, 17, (0, 1, 0, 1), 64),               # the rows of the gradient are padded by 2
    (24, 7, 12, 40, (2, 0, 1, 3), 40),
    (32, 4, 5, 32, (2, 2, 2, 2), 96)])
def test_a_training_step_gives_what_the_sums_give(C, H, W, K, pads, batch, rng):
    b = mc.GraphBuilder(seed=4)
    x = b.input("x", (C, H, W))
    # the first convolution's gradient to its input is wanted by the one before it
    y = b(mc.Conv2d(K, 3, padding=pads), b(mc.ReLU(), b(mc.Conv2d(C, 1), x)))
    net, other = trained(b.graph(y), batch)
    assert kernels_of(net, "train").count("winograd.forward") == 2 and "winograd.forward" not in kernels_of(other, "train")
    x, t = rng.normal(size=(batch, C, H, W)), rng.normal(size=(batch, *net.shapes[net.graph.outputs[0]]))
    for samples in (batch, batch - 3, batch):
        expected = other.train_step(x[:samples], t[:samples])
        assert net.train_step(x[:samples], t[:samples]) == pytest.approx(expected, rel=1e-12)
    for name, weights in other.parameters().items():
        np.testing.assert_allclose(net.parameters()[name], weights, rtol=1e-11, atol=1e-13)


def test_gradients_that_add_up(rng):
    # two convolutions and an addition read x: what they give to its gradient is added, in whatever order
    b = mc.GraphBuilder(seed=4)
    x = b(mc.ReLU(), b(mc.Conv2d(32, 1), b.input("x", (16, 6, 6))))
    y = b(mc.Add(), b(mc.Add(), b(mc.Conv2d(32, 3, padding=1), x), b(mc.Conv2d(32, 3, padding=1), x)), x)
    net, other = trained(b.graph(y), 24, optimizer=None, loss=None)
    x, dy = rng.normal(size=(24, 16, 6, 6)), rng.normal(size=(24, 32, 6, 6))
    np.testing.assert_allclose(net.forward(x), other.forward(x), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(net.backward(dy), other.backward(dy), rtol=1e-11, atol=1e-12)
    for name, gradient in other.gradients().items():
        np.testing.assert_allclose(net.gradients()[name], gradient, rtol=1e-11, atol=1e-11)


def test_frozen_weights_are_transformed_once(rng):
    b = mc.GraphBuilder(seed=4)
    y = b(mc.Conv2d(32, 3, padding=1), b(mc.ReLU(), b(mc.Conv2d(32, 3, padding=1), b.input("x", (32, 8, 8)))))
    graph = b.graph(b(mc.Linear(3), b(mc.Flatten(), y)))
    net, other = trained(graph, 64, train="head", loss="cross_entropy")
    rows = kernels_of(net, "train")
    assert rows.count("winograd.forward") == 2 and "winograd.weight" not in rows
    assert [info.kernel for info in net._programs["train"][1].infos].count("winograd.weight") == 2
    x, t = rng.normal(size=(64, 32, 8, 8)), np.arange(64) % 3
    for _ in range(3):
        assert net.train_step(x, t) == pytest.approx(other.train_step(x, t), rel=1e-12)
        np.testing.assert_allclose(net.predict(x), other.predict(x), rtol=1e-11, atol=1e-12)


def test_a_step_with_few_images_has_no_room_for_it():
    graph = graph_with(64, 8, 8, 64)
    how = {"train": "all", "loss": "mse", "optimizer": mc.SGD(lr=0.1)}
    few, many = graph.compile(batch=1, winograd=True, **how), graph.compile(batch=64, **how)
    assert "winograd.forward" not in kernels_of(few, "train") and "winograd.forward" in kernels_of(few)
    assert "winograd.forward" in kernels_of(many, "train")
    # and what it takes is less than the images
    assert many.memory.arena <= 2.5 * graph.compile(batch=64, **how, winograd=False).memory.arena


def test_prediction_beside_training_takes_no_more_memory_for_it():
    """A few small images, whose training step is smaller than the transformed weights."""
    graph = graph_with(64, 8, 8, 64)
    how = {"train": "all", "loss": "mse", "optimizer": mc.SGD(lr=0.1)}
    few, alone = graph.compile(batch=1, **how), graph.compile(batch=1)
    assert "winograd.forward" not in kernels_of(few) and "winograd.forward" not in kernels_of(few, "evaluate")
    assert "winograd.forward" in kernels_of(alone)
    assert few.memory.arena < graph.compile(batch=1, winograd=True, **how).memory.arena


def test_training_gives_the_same_bits_with_any_number_of_threads(rng):
    graph = graph_with(32, 8, 8, 48, activation=mc.ReLU())
    x, t = rng.normal(size=(40, 32, 8, 8)).astype(np.float32), rng.normal(size=(40, 48, 8, 8)).astype(np.float32)
    before, found = mc.get_num_threads(), []
    try:
        for threads in (1, 2):
            mc.set_num_threads(threads)
            net = graph.compile(batch=40, train="all", loss="mse", optimizer=mc.Adam(lr=1e-3))
            assert "winograd.forward" in kernels_of(net, "train")
            found.append([net.train_step(x, t) for _ in range(3)] + [a.tobytes() for a in net.parameters().values()])
    finally:
        mc.set_num_threads(before)
    assert found[0] == found[1]


def test_trained_weights_are_transformed_anew(rng):
    b = mc.GraphBuilder(seed=4)
    y = b(mc.ReLU(), b(mc.Conv2d(32, 3, padding=1), b.input("x", (32, 6, 6))))
    graph = b.graph(b(mc.Linear(3), b(mc.Flatten(), y)))
    x, t = rng.normal(size=(4, 32, 6, 6)), np.array([0, 2, 1, 1])
    how = {"batch": 4, "dtype": "float64", "train": "all", "loss": "cross_entropy", "optimizer": mc.SGD(lr=0.1)}
    net, other = (graph.compile(**how, winograd=choice) for choice in (True, False))
    assert "winograd.forward" in kernels_of(net, "evaluate") and "winograd.forward" not in kernels_of(net, "train")
    before = net.predict(x)
    for _ in range(2):
        assert net.train_step(x, t) == other.train_step(x, t)
        np.testing.assert_allclose(net.predict(x), other.predict(x), rtol=1e-12, atol=1e-13)
        assert net.evaluate(x, t)["loss"] == pytest.approx(other.evaluate(x, t)["loss"], rel=1e-12)
    assert np.abs(net.predict(x) - before).max() > 1e-3
