"""Convolutions with few channels that run with the max pooling behind them as one row."""
import numpy as np
import pytest

import microcnn as mc
from microcnn.kernels.simd import lanes_of
from microcnn.layers import conv2d
from tests.ops.table import Case, built, chain, table

ROW = "conv2d_pooled.forward"


def choose(monkeypatch, one):
    """Let all that the kernel is made for run so, or nothing, whatever it costs."""
    monkeypatch.setattr(conv2d, "pooled_pays", lambda s, g, pool: one)


CASES = [Case(name, build, batch) for name, build, batch in (
    ("3x3", chain((1, 8, 8), mc.Conv2d(4, 3, padding=1), mc.ReLU(), mc.MaxPool2d(2)), 2),
    ("5x5-no-bias", chain((1, 12, 10), mc.Conv2d(6, 5, bias=False), mc.ReLU6(), mc.MaxPool2d(2)), 3),
    ("three-colours", chain((3, 8, 7), mc.Conv2d(5, 3, padding=1), mc.MaxPool2d(2)), 2),
    ("2x3-dilated", chain((2, 7, 8), mc.Conv2d(7, (2, 3), dilation=(3, 1), padding=(2, 0)), mc.MaxPool2d(2)), 2),
    ("wide", chain((1, 6, 72), mc.Conv2d(3, 3), mc.ReLU(), mc.MaxPool2d(2)), 1),
    ("left-over", chain((2, 9, 9), mc.Conv2d(2, 3), mc.ReLU(), mc.MaxPool2d(2)), 2),
    ("batch-norm-folded", chain((1, 8, 8), mc.Conv2d(4, 3, bias=False), mc.BatchNorm2d(), mc.ReLU(), mc.MaxPool2d(2)), 2),
    ("behind-a-layer", chain((2, 8, 8), mc.BatchNorm2d(), mc.Conv2d(3, 3), mc.ReLU(), mc.MaxPool2d(2), mc.Flatten(),
                             mc.Linear(3)), 9))]


@table(CASES)
def test_pooled(case, check, monkeypatch):
    choose(monkeypatch, True)
    check(case)


def kernels(graph, program="train", **options):
    net = graph.compile(batch=4, train="all", loss="mse", optimizer=mc.SGD(lr=0.1), **options)
    return [info.kernel for info in net._programs[program][0].infos]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_one_row_instead_of_two(case, monkeypatch):
    for one in (True, False):
        choose(monkeypatch, one)
        folded = "batch-norm" not in case.name       # while batch norm trains it stands between the two
        found = kernels(case.graph())
        assert (ROW in found) == (one and folded)
        assert ("maxpool2d.forward" in found) != (one and folded)
        assert (ROW in kernels(case.graph(), "predict")) == one


@pytest.mark.parametrize("conv, pool", [
    (mc.Conv2d(4, 3, groups=2), mc.MaxPool2d(2)), (mc.Conv2d(4, 3, dilation=(1, 2)), mc.MaxPool2d(2)),
    (mc.Conv2d(4, 3, stride=2), mc.MaxPool2d(2)), (mc.Conv2d(4, 3), mc.MaxPool2d(3)),
    (mc.Conv2d(4, 3), mc.MaxPool2d(2, padding=1)), (mc.Conv2d(4, 3), mc.MaxPool2d(2, stride=1)),
    (mc.Conv2d(4, 2), mc.MaxPool2d(2, ceil_mode=True)), (mc.Conv2d(4, 1), mc.MaxPool2d(2))])
def test_what_the_kernel_is_not_made_for(conv, pool, monkeypatch):
    choose(monkeypatch, True)
    assert ROW not in kernels(built((2, 14, 14), conv, mc.ReLU(), pool, mc.Flatten(), mc.Linear(2)))


def test_other_readers_get_the_convolution_itself(monkeypatch):
    choose(monkeypatch, True)
    b = mc.GraphBuilder(seed=3)
    y = b(mc.Conv2d(3, 3), b.input("x", (1, 8, 8)))
    graph = b.graph(b(mc.Add(), b(mc.GlobalAvgPool2d(), y), b(mc.GlobalAvgPool2d(), b(mc.MaxPool2d(2), y))))
    assert ROW not in kernels(graph)
    b = mc.GraphBuilder(seed=3)
    y = b(mc.Conv2d(3, 3), b.input("x", (1, 8, 8)))
    both = b.graph(b(mc.MaxPool2d(2), y), y)
    net = both.compile(batch=2)
    assert ROW not in [info.kernel for info in net._programs["predict"][0].infos]


@pytest.mark.skipif(lanes_of("float32") != 16, reason="what pays is said for registers of 16 numbers")
def test_the_choice_follows_the_cost():
    """Few output channels of a wide image: together. As many as a register holds: apart."""
    few = built((1, 28, 28), mc.Conv2d(6, 5, padding=2), mc.ReLU(), mc.MaxPool2d(2), mc.Flatten(), mc.Linear(3))
    many = built((3, 28, 28), mc.Conv2d(32, 3, padding=1), mc.ReLU(), mc.MaxPool2d(2), mc.Flatten(), mc.Linear(3))
    assert ROW in kernels(few)
    assert ROW not in kernels(many)


def test_the_same_training_either_way(monkeypatch):
    graph = built((1, 12, 12), mc.Conv2d(6, 3, padding=1), mc.ReLU(), mc.MaxPool2d(2), mc.Flatten(), mc.Linear(2))
    rng = np.random.default_rng(4)
    x, t = np.round(rng.random((4, 1, 12, 12)) * 3), rng.random((4, 2))
    results = []
    for one in (True, False):
        choose(monkeypatch, one)
        net = graph.compile(batch=4, train="all", loss="mse", optimizer=mc.SGD(lr=0.1), dtype="float64")
        losses = [net.train_step(x, t) for _ in range(5)]
        results.append((losses, net.memory.activations, net.parameters()))
    (one, small, first), (two, large, second) = results
    np.testing.assert_allclose(one, two, rtol=1e-12)
    assert small < large
    for name in first:
        np.testing.assert_allclose(first[name], second[name], rtol=1e-10, atol=1e-13)
