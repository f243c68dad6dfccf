"""Depthwise 3 x 3 convolutions that run with the pointwise one behind them as one row: the same bits as apart."""
import numpy as np
import pytest

import microcnn as mc
from microcnn import plan
from microcnn.kernels.simd import lanes_of
from microcnn.pairs import Paired
from tests.ops.table import Case, built, chain, poison, table

ROW = "separable.forward"


def pair(C, K, stride=1, first=(), second=(), **options):
    return mc.Conv2d(C, 3, groups=C, padding=1, stride=stride, **options), *first, mc.Conv2d(K, 1), *second


CASES = [Case(name, build, batch) for name, build, batch in (
    ("plain", chain((5, 8, 9), *pair(5, 7)), 3),
    ("clamped", chain((17, 9, 8), *pair(17, 33, first=(mc.ReLU6(),), second=(mc.ReLU(),))), 2),
    ("stride-2", chain((16, 13, 12), *pair(16, 70, stride=2, bias=False, first=(mc.ReLU(),))), 3),
    ("three-vectors", chain((3, 20, 7), *pair(3, 48)), 1),
    ("dilated", chain((4, 9, 16), mc.Conv2d(4, 3, groups=4, dilation=(2, 1)), mc.Conv2d(5, 1)), 2),
    ("batch-norm-folded", chain((8, 12, 12), *pair(8, 20, bias=False, first=(mc.BatchNorm2d(), mc.ReLU()),
                                                   second=(mc.BatchNorm2d(), mc.ReLU()))), 2),
    ("in-a-row", chain((6, 10, 10), *pair(6, 12), *pair(12, 24, stride=2, first=(mc.ReLU(),)), *pair(24, 18)), 5))]


@table(CASES)
def test_separable(case, check):
    check(case)


def kernels(net, program="predict"):
    return [info.kernel for info in net.rows(program)]


def apart(monkeypatch):
    monkeypatch.setattr(plan, "pair_rows", lambda rows, *sizes: Paired(rows))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_same_bits_as_apart(case, dtype, monkeypatch):
    graph = case.graph()
    together = graph.compile(batch=4, dtype=dtype)
    apart(monkeypatch)
    one_by_one = graph.compile(batch=4, dtype=dtype)
    assert ROW in kernels(together) and ROW not in kernels(one_by_one)
    poison(together)
    x = np.random.default_rng(0).standard_normal((7, *graph.inputs[0].shape)).astype(dtype)
    assert together.predict(x).tobytes() == one_by_one.predict(x).tobytes()


def test_a_residual_is_added(monkeypatch):
    """Also where the block's input is what is added, whose memory the sum would take were the two apart."""
    def graph(wide):
        b = mc.GraphBuilder(seed=3)
        x = b(mc.Conv2d(16, 1), b.input("x", (3, 12, 12)))
        y = b(mc.Conv2d(wide, 1), x) if wide > 16 else x
        y = b(mc.Conv2d(16, 1), b(mc.ReLU6(), b(mc.Conv2d(wide, 3, padding=1, groups=wide), y)))
        return b.graph(b(mc.ReLU(), b(mc.Add(), x, y)))
    x = np.random.default_rng(0).standard_normal((3, 3, 12, 12)).astype("float32")
    found = {wide: graph(wide).compile(batch=3) for wide in (16, 32)}
    apart(monkeypatch)
    for wide, net in found.items():
        assert net.predict(x).tobytes() == graph(wide).compile(batch=3).predict(x).tobytes()
    assert ROW in kernels(found[32])


def test_a_frozen_part_runs_in_pairs_and_one_that_trains_does_not():
    graph = built((4, 12, 12), *pair(4, 8), mc.ReLU(), mc.Flatten(), mc.Linear(3))
    how = dict(batch=2, loss="cross_entropy", optimizer=mc.SGD(lr=0.1))
    assert ROW in kernels(graph.compile(train="head", **how), "train")
    assert ROW not in kernels(graph.compile(train="all", **how), "train")


def test_other_readers_get_what_is_between():
    b = mc.GraphBuilder(seed=3)
    y = b(mc.Conv2d(4, 3, padding=1, groups=4), b.input("x", (4, 12, 12)))
    net = b.graph(b(mc.Conv2d(5, 1), y), y).compile(batch=2)
    assert ROW not in kernels(net)


@pytest.mark.parametrize("layers", [
    (mc.Conv2d(4, 3, padding=1, groups=4), mc.Sigmoid(), mc.Conv2d(5, 1)),
    (mc.Conv2d(4, 3, padding=1, groups=4, stride=(1, 2)), mc.Conv2d(5, 1)),
    (mc.Conv2d(4, 3, padding=1, groups=4), mc.Conv2d(5, 1, stride=2)),
    (mc.Conv2d(4, 5, padding=2, groups=4), mc.Conv2d(5, 1)),
    (mc.Conv2d(4, 3, padding=1, groups=2), mc.Conv2d(5, 1))])
def test_what_stays_apart(layers):
    assert ROW not in kernels(built((4, 16, 16), *layers).compile(batch=2))


def test_a_small_image_of_one_band_stays_apart():
    """Threads share its channels, which a pair does not."""
    graph = built((4, 6, 6), *pair(4, 5))
    assert ROW not in kernels(graph.compile(batch=1)) and ROW in kernels(graph.compile(batch=2))


@pytest.mark.skipif(lanes_of("float32") != 16, reason="the widths are those of registers of 16 numbers")
def test_a_sum_of_chains_stays_apart():
    graph = built((64, 12, 12), *pair(64, 16))
    assert ROW not in kernels(graph.compile(batch=2))
