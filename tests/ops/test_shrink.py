"""Shrink."""
import numpy as np

import microcnn as mc
from microcnn.specs_activation import PlainSpec
from tests import graph_oracle
from tests.ops import walk
from tests.ops.table import LARGE_CHECKS, Case, graph_of, table


def shrink(node, inputs, weights, *_):
    """Number by number."""
    lambd, bias = node.attrs["lambd"], node.attrs["bias"]
    return np.vectorize(lambda x: x + bias if x < -lambd else x - bias if x > lambd else 0.0, otypes=[float])(inputs[0])


def shrink_backward(node, inputs, weights, dy, *_):
    return [np.where(np.abs(inputs[0]) > node.attrs["lambd"], dy, 0.0)], {}


walk.OPS["Shrink"] = shrink, shrink_backward
graph_oracle.OPERATIONS["Shrink"] = shrink


class Softshrink(PlainSpec):
    """torch.nn.Softshrink(0.3137)."""

    short, op = "shrink", "Shrink"

    def node(self, shape, rng):
        return "Shrink", {"lambd": 0.3137, "bias": 0.3137}, {}


def between():
    """In place, and on a tensor that two layers read."""
    b = mc.GraphBuilder(seed=2)
    x = b(mc.Conv2d(5, 2), b.input("x", (3, 4, 5)))
    return b.graph(b(mc.Flatten(), b(mc.Add(), b(Softshrink(), x), b(Softshrink(), b(mc.Conv2d(5, 1), x)))))


CASES = [Case(name, lambda shape=shape, attrs=attrs: graph_of("Shrink", shape, **attrs), batch)
         for name, shape, batch, attrs in (
             ("one", (1,), 1, {"lambd": 0.1, "bias": 0.0}), ("soft", (17, 1, 1), 2, {"lambd": 0.5137, "bias": 0.5137}),
             ("any", (3, 4, 5), 3, {"lambd": 0.3137, "bias": -0.25}))]


@table([*CASES, Case("between", between, 2)])
def test_shrink(case, check):
    check(case)


@table([Case("large", lambda: graph_of("Shrink", (17, 60, 61), lambd=0.5137, bias=0.25), 2)], LARGE_CHECKS)
def test_large(case, check):
    check(case)
