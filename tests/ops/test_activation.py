"""Relu, Clip, Sigmoid, Tanh."""
import math

import numpy as np
import pytest

import microcnn as mc
from tests.ops.table import LARGE_CHECKS, Case, graph_of, table

CLIPS = {"clip": (-0.4931, 0.8117), "relu6": (0.0, 6.0), "low": (-0.3107, math.inf), "high": (-math.inf, 0.4219),
         "one-value": (0.3, 0.3)}
KINDS = {"Relu": ("Relu", {}), "Sigmoid": ("Sigmoid", {}), "Tanh": ("Tanh", {}),
         **{name: ("Clip", {"low": low, "high": high}) for name, (low, high) in CLIPS.items()}}
SHAPES = [((1,), 1), ((5,), 3), ((17, 1, 1), 2), ((33, 2, 3), 2), ((3, 4, 5), 3)]


@table([Case(f"{name}-{'x'.join(map(str, shape))}",
             lambda op=op, shape=shape, attrs=attrs: graph_of(op, shape, **attrs), batch)
        for name, (op, attrs) in KINDS.items() for shape, batch in SHAPES])
def test_activation(case, check):
    check(case)


def several(first, second, third):
    """In place where nothing else reads the input, and on a tensor that two layers read."""
    def build():
        b = mc.GraphBuilder(seed=2)
        x = b(mc.Conv2d(5, 2), b.input("x", (3, 4, 5)))
        y = b(mc.MaxPool2d(2, stride=1), b(second, b(first, x)))
        return b.graph(b(mc.Conv2d(2, 1), b(third, y)), b(first, x))
    return build


@table([Case("relu-tanh-clip", several(mc.ReLU(), mc.Tanh(), mc.Clip(-0.2, 0.4))),
        Case("sigmoid-relu-tanh", several(mc.Sigmoid(), mc.ReLU(), mc.Tanh()), 3),
        Case("clip-clip-sigmoid", several(mc.Clip(-0.4, 0.5), mc.Clip(-0.3, 0.9), mc.Sigmoid()))])
def test_between_other_layers(case, check):
    check(case)


@table([Case(name, lambda op=KINDS[name][0], attrs=KINDS[name][1]: graph_of(op, (17, 60, 61), **attrs), 3)
        for name in ("Relu", "Sigmoid", "Tanh", "clip")], LARGE_CHECKS)
def test_large(case, check):
    check(case)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_far_from_zero(dtype):
    x = np.array([[-1e30, -800, -90, 90, 800, 1e30]], dtype)
    for op, expected in (("Sigmoid", [0, 0, 0, 1, 1, 1]), ("Tanh", [-1, -1, -1, 1, 1, 1])):
        net = graph_of(op, (6,)).compile(dtype=dtype)
        np.testing.assert_allclose(net.forward(x), [expected], atol=1e-30)
        np.testing.assert_allclose(net.backward(np.ones_like(x)), np.zeros((1, 6)), atol=1e-30)


def test_at_the_kink_the_gradient_is_zero():
    net = graph_of("Relu", (3,)).compile(dtype="float64")
    net.forward(np.array([[-1.0, 0.0, 2.0]]))
    np.testing.assert_array_equal(net.backward(np.ones((1, 3))), [[0, 0, 1]])


@pytest.mark.parametrize("op", ["Relu", "Sigmoid", "Tanh"])
def test_nan_stays_nan(op):
    net = graph_of(op, (3,)).compile()
    y = net.predict(np.array([[-1, np.nan, 2]], np.float32))
    assert np.isnan(y).tolist() == [[False, True, False]]


def test_bounds_the_wrong_way_round_are_refused():
    with pytest.raises(mc.MicroCNNError, match=r'Clip "node": low \(=1.0\) must not be above high \(=0.0\)'):
        graph_of("Clip", (3,), low=1.0, high=0.0).shapes()
