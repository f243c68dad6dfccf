"""MaxPool2d, AvgPool2d, GlobalAvgPool2d."""
import math

import numpy as np
import pytest

import microcnn as mc
from tests import graph_oracle, oracles
from tests.ops.table import Case, built, close, graph_of, only, repeated, runtime, single_precision, table

CASES = []


def pool(op, name, shape, kernel, stride, pads=(0, 0, 0, 0), batch=2, skip=(), **attrs):
    attrs = {"ceil_mode": False, **attrs}
    attrs.setdefault(*(("dilation", (1, 1)) if op == "MaxPool2d" else ("count_include_pad", False)))
    tag = "-counting" * attrs.get("count_include_pad", False)
    CASES.append(Case(f"{op[:3].lower()}-{name}{tag}", lambda: graph_of(
        op, shape, kernel=kernel, stride=stride, pads=pads, **attrs), batch, skip=skip))


def both(name, *arguments, **keywords):
    """Max and average pooling with and without counting the padding."""
    pool("MaxPool2d", name, *arguments, **keywords)
    for counting in (False, True):
        pool("AvgPool2d", name, *arguments, count_include_pad=counting, **keywords)


both("tiles", (3, 6, 8), (2, 2), (2, 2))
both("left-over", (5, 7, 9), (2, 3), (2, 3), batch=3)
both("overlapping", (17, 6, 7), (3, 3), (1, 2))
both("overlapping-padded", (3, 7, 5), (3, 3), (2, 2), (1, 1, 1, 1))
both("one-corner-padded", (33, 4, 5), (3, 2), (2, 1), (2, 0, 0, 1), batch=1)
both("uneven", (1, 6, 5), (4, 2), (1, 3), (0, 1, 3, 0))
both("gaps", (5, 8, 9), (2, 1), (3, 4))
both("gaps-padded", (3, 7, 8), (2, 2), (3, 5), (1, 1, 0, 1))
both("whole-image", (17, 3, 4), (3, 4), (1, 1))
both("one-pixel", (5, 1, 1), (1, 1), (1, 1), batch=3)
both("one-pixel-padded", (3, 1, 1), (3, 3), (2, 2), (1, 1, 1, 1))
both("wide-window", (3, 4, 20), (2, 17), (1, 2), (1, 8, 0, 9))
both("ceil", (3, 6, 8), (3, 3), (2, 2), ceil_mode=True)
both("ceil-padded", (5, 6, 7), (3, 2), (2, 3), (1, 1, 1, 0), ceil_mode=True)
both("ceil-that-changes-nothing", (3, 5, 7), (3, 3), (2, 2), ceil_mode=True)
# the last window would begin in the padding: PyTorch and onnxruntime leave it out
both("ceil-behind-the-image", (2, 4, 4), (2, 2), (3, 3), (1, 1, 1, 1), ceil_mode=True)
both("same-upper", (3, 5, 6), (3, 2), (2, 1), "same_upper")
both("same-upper-gaps", (3, 5, 6), (1, 2), (2, 3), "same_upper")
# the reference pads the maximum as for same_upper
pool("MaxPool2d", "same-lower", (3, 5, 6), (2, 4), (1, 3), "same_lower", skip=("reference",))
pool("AvgPool2d", "same-lower", (3, 5, 6), (2, 4), (1, 3), "same_lower")
pool("AvgPool2d", "same-lower", (3, 5, 6), (2, 4), (1, 3), "same_lower", count_include_pad=True)
pool("MaxPool2d", "dilated", (3, 8, 9), (3, 2), (1, 2), (1, 1, 2, 0), dilation=(2, 3))
pool("MaxPool2d", "dilated-strided", (5, 9, 8), (2, 3), (3, 2), (1, 1, 0, 1), dilation=(3, 2), batch=3)
pool("MaxPool2d", "dilated-ceil", (3, 9, 8), (2, 2), (2, 3), (0, 1, 1, 0), dilation=(3, 2), ceil_mode=True)
pool("MaxPool2d", "index-of-two-bytes", (2, 18, 17), (17, 16), (1, 1))
for shape, batch in (((3, 4, 5), 2), ((17, 1, 1), 1), ((33, 9, 8), 3), ((1, 3, 1), 2)):
    CASES.append(Case(f"gap-{'x'.join(map(str, shape))}", lambda shape=shape: graph_of("GlobalAvgPool2d", shape),
                      batch))


@table(CASES)
def test_pool2d(case, check):
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


@pytest.mark.parametrize("op", ["MaxPool2d", "AvgPool2d"])
def test_windows_wholly_in_padding_are_refused(op):
    with pytest.raises(mc.MicroCNNError, match=r'"node": padding \(2, 0, 0, 0\) must be at least 0 and less than the'):
        graph_of(op, (1, 4, 4), kernel=(2, 2), stride=(1, 1), pads=(2, 0, 0, 0), dilation=(1, 1), ceil_mode=False,
                 count_include_pad=False).shapes()


def test_prediction_keeps_no_indices(rng):
    graph = built((3, 8, 8), mc.MaxPool2d(2))
    fields = [row.fields["indices"] for mode in ("predict", "manual")
              for row in scheduled(graph.compile(), mode).rows if row.kernel == "pool2d.maxpool_forward"]
    assert fields[0] is None and fields[1].bytes == 3 * 4 * 4


def scheduled(net, mode):
    schedule = net.schedule(mode)
    schedule.run_forward()
    return schedule


LARGE = [
    ("max", "MaxPool2d", (24, 50, 51), {"kernel": (3, 3), "stride": (2, 2), "pads": (1, 1, 1, 1), "dilation": (1, 1)}),
    ("max-overlapping", "MaxPool2d", (17, 40, 41), {"kernel": (2, 3), "stride": (1, 1), "pads": (1, 1, 0, 1),
                                                    "dilation": (1, 1)}),
    ("max-dilated", "MaxPool2d", (33, 31, 40), {"kernel": (2, 3), "stride": (1, 2), "pads": (1, 1, 0, 1),
                                                "dilation": (2, 2)}),
    ("average", "AvgPool2d", (24, 50, 51), {"kernel": (3, 3), "stride": (2, 2), "pads": (1, 1, 1, 1),
                                            "count_include_pad": False}),
    ("average-counting", "AvgPool2d", (17, 40, 41), {"kernel": (2, 3), "stride": (1, 1), "pads": (1, 1, 0, 1),
                                                     "count_include_pad": True}),
]


@pytest.mark.parametrize("name, op, shape, attrs", LARGE, ids=[one[0] for one in LARGE])
def test_large(name, op, shape, attrs):
    case = Case(name, lambda: graph_of(op, shape, ceil_mode=False, **attrs), 3)
    for check in (single_precision, repeated, runtime):
        check(case)
    x = case.inputs()
    close(case.compile().predict(only(x)), graph_oracle.evaluate(case.graph(), x)["y"], 1e-12, "predict")


def test_large_global_average():
    case = Case("global", lambda: graph_of("GlobalAvgPool2d", (33, 80, 81)), 3)
    for check in (single_precision, repeated, runtime):
        check(case)
    x = case.inputs()
    close(case.compile().predict(x["x"]), x["x"].mean((2, 3), keepdims=True), 1e-12, "predict")
