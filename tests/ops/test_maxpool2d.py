"""MaxPool2d, with the activation before it."""
import math

import numpy as np
import pytest

import microcnn as mc
from tests import graph_oracle, oracles
from tests.ops.pooling import case_of, cases
from tests.ops.table import Case, built, close, graph_of, only, repeated, runtime, single_precision, table

OP = "MaxPool2d"
DILATION = {"dilation": (1, 1)}
CASES = [
    *cases(OP, **DILATION),
    # the reference pads the maximum as for same_upper
    case_of(OP, "same-lower", (3, 5, 6), (2, 4), (1, 3), "same_lower", skip=("reference",), **DILATION),
    case_of(OP, "dilated", (3, 8, 9), (3, 2), (1, 2), (1, 1, 2, 0), dilation=(2, 3)),
    case_of(OP, "dilated-strided", (5, 9, 8), (2, 3), (3, 2), (1, 1, 0, 1), dilation=(3, 2), batch=3),
    case_of(OP, "dilated-ceil", (3, 9, 8), (2, 2), (2, 3), (0, 1, 1, 0), dilation=(3, 2), ceil_mode=True),
    case_of(OP, "index-of-two-bytes", (2, 18, 17), (17, 16), (1, 1), **DILATION),
]


@table(CASES)
def test_maxpool2d(case, check):
    check(case)


# Gradients that come together: two pools on one tensor, a pool behind a residual.

def branches():
    b = mc.GraphBuilder(seed=2)
    x = b(mc.Conv2d(5, 3, padding=1), b.input("x", (2, 6, 6)))
    big = b(mc.MaxPool2d(3, stride=1, padding=1), x)
    mean = b(mc.AvgPool2d(3, stride=1, padding=1), x)
    y = b(mc.ReLU(), b(mc.Add(), b(mc.Add(), big, mean), x))
    return b.graph(b(mc.GlobalAvgPool2d(), y), b(mc.MaxPool2d(2), y), b(mc.AvgPool2d(2), y))


@table([Case("branches", branches),
        Case("conv-pool-conv-pool-fc", lambda: built(
            (2, 9, 8), mc.Conv2d(5, 3), mc.ReLU(), mc.MaxPool2d(2), mc.Conv2d(4, 2), mc.AvgPool2d(2, stride=1),
            mc.Flatten(), mc.Linear(3)), 3)])
def test_between_other_layers(case, check):
    check(case)


# The activation before a pool runs on the pool's results.

def clipped_and_pooled():
    b = mc.GraphBuilder(seed=3)
    x = b(mc.Conv2d(5, 3, padding=1), b.input("x", (2, 6, 8)))
    return b.graph(b(mc.MaxPool2d(2), b(mc.ReLU6(), x)), b(mc.MaxPool2d(3, stride=2, padding=1), b(mc.ReLU(), x)))


def read_twice():
    b = mc.GraphBuilder(seed=4)
    y = b(mc.ReLU(), b(mc.BatchNorm2d(), b(mc.Conv2d(3, 3), b.input("x", (2, 7, 7)))))
    return b.graph(b(mc.MaxPool2d(2), y), b(mc.GlobalAvgPool2d(), y))


@table([Case("two-pools-of-one-tensor", clipped_and_pooled), Case("activation-read-twice", read_twice),
        Case("activation-first", lambda: built((3, 6, 6), mc.ReLU(), mc.MaxPool2d(2)), 3),
        Case("batch-norm", lambda: built((3, 6, 6), mc.Conv2d(4, 3), mc.BatchNorm2d(), mc.ReLU(), mc.MaxPool2d(2)), 3)])
def test_with_the_activation_before_it(case, check):
    check(case)


def test_the_activation_costs_no_row_of_its_own():
    graph = built((2, 8, 8), mc.Conv2d(64, 3, dilation=(1, 2)), mc.ReLU(), mc.MaxPool2d(2), mc.Flatten(), mc.Linear(2))
    net = graph.compile(train="all", loss="mse", optimizer=mc.SGD())
    schedule = net.schedule("train")
    schedule.run_forward()
    schedule.run_losses(True)
    schedule.run_backward()
    kernels = [row.kernel for row in schedule.rows]
    assert "maxpool2d.backward" in kernels and not any(kernel.startswith("activation.") for kernel in kernels)


# Ties and NaN.

def maxpool(shape, kernel, stride, pads=(0, 0, 0, 0), dilation=(1, 1), batch=1, dtype="float64"):
    graph = graph_of("MaxPool2d", shape, kernel=kernel, stride=stride, pads=pads, dilation=dilation, ceil_mode=False)
    return graph.compile(batch=batch, dtype=dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("C", [1, 5, 17, 33])
def test_the_first_of_equal_numbers_gets_the_gradient(rng, C, dtype):
    net = maxpool((C, 6, 7), (3, 2), (1, 2), (1, 0, 1, 1), batch=2, dtype=dtype)
    x = rng.integers(0, 3, (2, C, 6, 7)).astype(dtype)
    dy = rng.integers(-8, 8, (2, C, 6, 4)).astype(dtype)
    y, winners = oracles.max_pool2d(x, (3, 2), (1, 2), (1, 0, 1, 1))
    np.testing.assert_array_equal(net.forward(x), y)
    np.testing.assert_array_equal(net.backward(dy), oracles.max_pool2d_backward(x, winners, dy))


def test_nan_wins_and_gets_the_gradient(rng):
    # inputs are finite; inf, -inf and NaN come from sums that overflow
    b = mc.GraphBuilder()
    inputs = [b.input(name, (5, 6, 7)) for name in "abcd"]
    total = b(mc.Add(), b(mc.Add(), *inputs[:2]), b(mc.Add(), *inputs[2:]))
    net = b.graph(b(mc.MaxPool2d(3, stride=(2, 1), padding=1), total)).compile(batch=2, dtype="float64")
    terms = np.zeros((4, 2, 5, 6, 7))
    terms[0] = rng.normal(size=(2, 5, 6, 7))
    huge = rng.random(size=(2, 5, 6, 7)) < 0.1
    huge[0, 1] = True
    terms[:2, huge] = 1.7e308
    terms[2:, huge & (rng.random(huge.shape) < 0.7)] = -1.7e308
    with np.errstate(over="ignore", invalid="ignore"):
        x = terms[0] + terms[1] + (terms[2] + terms[3])
    assert np.isnan(x).any() and np.isinf(x).any()
    dy = rng.integers(-8, 8, (2, 5, 3, 7)).astype(np.float64)
    y, winners = oracles.max_pool2d(x, (3, 3), (2, 1), (1, 1, 1, 1))
    given = dict(zip("abcd", terms, strict=True))
    np.testing.assert_array_equal(net.forward(given), y)
    for dx in net.backward(dy).values():
        np.testing.assert_array_equal(dx, oracles.max_pool2d_backward(x, winners, dy))
    np.testing.assert_array_equal(net.predict(given), y)


def test_a_dilated_window_that_sees_no_pixel_is_minus_infinity_and_passes_no_gradient(rng):
    net = maxpool((3, 1, 4), (2, 2), (1, 1), (1, 0, 1, 0), (2, 1))
    x, dy = rng.normal(size=(1, 3, 1, 4)), rng.normal(size=(1, 3, 1, 3))
    np.testing.assert_array_equal(net.forward(x), np.full((1, 3, 1, 3), -math.inf))
    np.testing.assert_array_equal(net.backward(dy), np.zeros((1, 3, 1, 4)))


def test_windows_wholly_in_padding_are_refused():
    with pytest.raises(mc.MicroCNNError, match=r'"node": padding \(2, 0, 0, 0\) must be at least 0 and less than the'):
        graph_of(OP, (1, 4, 4), kernel=(2, 2), stride=(1, 1), pads=(2, 0, 0, 0), dilation=(1, 1), ceil_mode=False,
                 count_include_pad=False).shapes()


def test_prediction_keeps_no_indices(rng):
    graph = built((3, 8, 8), mc.MaxPool2d(2))
    fields = [row.fields["indices"] for mode in ("predict", "manual")
              for row in scheduled(graph.compile(), mode).rows if row.kernel == "maxpool2d.forward"]
    assert fields[0] is None and fields[1].bytes == 3 * 4 * 4


def scheduled(net, mode):
    schedule = net.schedule(mode)
    schedule.run_forward()
    return schedule


LARGE = [
    ("max", (24, 50, 51), {"kernel": (3, 3), "stride": (2, 2), "pads": (1, 1, 1, 1), "dilation": (1, 1)}),
    ("max-overlapping", (17, 40, 41), {"kernel": (2, 3), "stride": (1, 1), "pads": (1, 1, 0, 1),
                                                    "dilation": (1, 1)}),
    ("max-dilated", (33, 31, 40), {"kernel": (2, 3), "stride": (1, 2), "pads": (1, 1, 0, 1),
                                                "dilation": (2, 2)}),
]


@pytest.mark.parametrize("name, shape, attrs", LARGE, ids=[one[0] for one in LARGE])
def test_large(name, shape, attrs):
    case = Case(name, lambda: graph_of(OP, shape, ceil_mode=False, **attrs), 3)
    for check in (single_precision, repeated, runtime):
        check(case)
    x = case.inputs()
    close(case.compile().predict(only(x)), graph_oracle.evaluate(case.graph(), x)["y"], 1e-12, "predict")
