"""ReduceSum and its like, ArgMax and ArgMin: over any axes, alone and among images that lie channels last."""
import numpy as np
import pytest

import microcnn as mc
from microcnn.graph import Graph, Node
from tests.ops.table import CHECKS, LARGE_CHECKS, Case, graph_of, table
from tests.ops.walk_reduction import FORWARD

# A logarithm of a sum needs positive sums: those cases square their numbers first.
ALONE = [op for op in FORWARD if op != "ReduceLogSum"]


def alone(op, size, axes, keepdims=True, batch=2):
    name = f"{op[6:].lower()}-{'x'.join(map(str, size))}-{'-'.join(map(str, axes))}{'' if keepdims else '-gone'}"
    return Case(name, lambda: graph_of(op, size, axes=axes, keepdims=keepdims), batch)


def placed(op, size, axis, keepdims=True, last=False, batch=2):
    return Case(f"{op.lower()}-{'x'.join(map(str, size))}-{axis}{'' if keepdims else '-gone'}{'-last' if last else ''}",
                lambda: graph_of(op, size, axis=axis, keepdims=keepdims, last=last), batch)


def chain(*nodes, size, convolution=True):
    """Nodes (op, attrs) one after the other, behind a convolution, whose result lies channels last."""
    def build():
        b = mc.GraphBuilder(seed=3)
        x = b.input("x", size)
        graph = b.graph(b(mc.Conv2d(8, 3, padding=1) if convolution else mc.Flatten(), x))
        made = [Node(op, f"node{i}", (f"t{i}" if i else "output",), (f"t{i + 1}" if i + 1 < len(nodes) else "y",), attrs)
                for i, (op, attrs) in enumerate(nodes)]
        return Graph(graph.inputs, ["y"], [*graph.nodes, *made], graph.weights)
    return build


def over(*axes, keepdims=True):
    return {"axes": axes, "keepdims": keepdims}


@table([alone(op, *how) for op in ALONE for how in (((5, 4, 7), (2,)), ((17, 3), (-1,), False), ((3, 2, 5), (1, 3), False, 3))])
def test_every_kind(case, check):
    check(case)


@table([alone("ReduceSum", (33,), (1,), False, 3), alone("ReduceMax", (1, 1), (1, 2)),
        alone("ReduceMean", (2, 3, 2, 5), (1, 3)), alone("ReduceMean", (2, 3, 2, 5), (1, 2, 3, 4), False),
        alone("ReduceMin", (5, 1, 3), (2,), False),
        alone("ReduceSum", (5, 3), ()), alone("ReduceL2", (5, 3), ()), alone("ReduceMax", (7, 2), ()),
        alone("ReduceProd", (40,), (1,)), alone("ReduceMean", (600, 2), (1,), False, 1),
        alone("ReduceSum", (5000,), (1,), False)])
def test_any_axes(case, check):
    check(case)


SQUARED = ("Pow", {"scalar": 2.0})


@table([Case(f"{op[6:].lower()}-{'-'.join(map(str, axes))}-{keepdims}",
             chain(SQUARED, (op, over(*axes, keepdims=keepdims)), size=(3, 4, 6)))
        for op in ("ReduceMean", "ReduceMax", "ReduceLogSum")
        for axes, keepdims in (((1,), True), ((1,), False), ((2,), False), ((1, 3), True), ((1, 2), False), ((2, 3), False),
                               ((1, 2, 3), True))])
def test_behind_a_convolution(case, check):
    check(case)


def gate():
    """What squeeze-and-excitation and spatial attention do: a mean and a maximum that scale what they were made of."""
    b = mc.GraphBuilder(seed=3)
    first = b.graph(b(mc.Conv2d(6, 3, padding=1), b.input("x", (3, 4, 5))))
    nodes = [Node("ReduceMean", "mean", ("output",), ("m",), over(2, 3)),
             Node("ReduceMax", "max", ("output",), ("n",), over(1)),
             Node("Sigmoid", "gate", ("m",), ("g",)), Node("Mul", "scaled", ("output", "g"), ("s",)),
             Node("Mul", "again", ("s", "n"), ("y",))]
    return Graph(first.inputs, ["y"], [*first.nodes, *nodes], first.weights)


@table([Case("gate", gate)])
def test_gates(case, check):
    check(case)


@table([alone("ReduceMean", (33, 50, 51), (2, 3), False), alone("ReduceMax", (33, 50, 51), (1,)),
        alone("ReduceL2", (33, 50, 51), (3,)), Case("channels", chain(("ReduceSum", over(1)), size=(3, 60, 61)))], LARGE_CHECKS)
def test_large(case, check):
    check(case)


# A place does not move with a small step, nor with the dtype.
PLACE_CHECKS = [check for check in CHECKS if check.__name__ not in ("single_precision", "training")]


@table([placed("ArgMax", (5,), 1, False, batch=3), placed("ArgMax", (17, 3, 4), 1), placed("ArgMin", (3, 33), 2, False),
        placed("ArgMin", (5, 2, 3), -2, last=True), placed("ArgMax", (1,), 1),
        Case("argmax-classes", chain(("ArgMax", {"axis": 1, "keepdims": False, "last": False}), size=(3, 4, 6))),
        Case("argmax-rows", chain(("ArgMax", {"axis": 2, "keepdims": True, "last": True}), size=(3, 4, 6)))], PLACE_CHECKS)
def test_places(case, check):
    check(case)


@pytest.mark.parametrize("op", ["ArgMax", "ArgMin"])
@pytest.mark.parametrize("size, axis", [((19,), 1), ((19, 3), 1)])
def test_equal_numbers_and_nan(op, size, axis):
    x = np.random.default_rng(0).integers(0, 3, (4, *size)).astype(np.float32)
    x[1].reshape(-1)[7] = np.nan
    for last in (False, True):
        y = graph_of(op, size, axis=axis, keepdims=True, last=last).compile(batch=4).predict(x)
        assert y.dtype == np.int64
        signed = x if op == "ArgMax" else -x
        best = np.flip(signed, axis).argmax(axis, keepdims=True) if last else signed.argmax(axis, keepdims=True)
        np.testing.assert_array_equal(y, size[0] - 1 - best if last else best)


@pytest.mark.parametrize("size, axis", [((19,), 1), ((19, 3), 1)])
def test_extremes_of_nan_and_infinities(size, axis):
    x = np.random.default_rng(0).normal(size=(3, *size)).astype(np.float32)
    x[0].reshape(-1)[7] = np.nan
    x[1] = -np.inf
    for op, function in (("ReduceMax", np.max), ("ReduceMin", np.min), ("ReduceLogSumExp", np.logaddexp.reduce)):
        net = graph_of(op, size, axes=(axis,), keepdims=True).compile(batch=3)
        with np.errstate(invalid="ignore"):
            expected = function(x, axis=axis, keepdims=True)
        np.testing.assert_allclose(net.predict(x), expected, rtol=1e-5)


def test_equal_maxima_share_the_gradient_and_zeros_stop_a_product():
    x = np.array([[2, 1, 2, 2, -1], [3, 0, 2, 1, 1], [0, 0, 2, 1, 1]], np.float32)
    for op, expected in (("ReduceMax", [[1, 0, 1, 1, 0], [3, 0, 0, 0, 0], [0, 0, 3, 0, 0]]),
                         ("ReduceProd", [[-12, -24, -12, -12, 24], [0, 18, 0, 0, 0], [0, 0, 0, 0, 0]])):
        net = graph_of(op, (5,), axes=(1,), keepdims=True).compile(batch=3)
        net.forward(x)
        np.testing.assert_allclose(net.backward(np.full((3, 1), 3, np.float32)), expected, err_msg=op)


@pytest.mark.parametrize("op, attrs, text", [
    ("ReduceSum", over(0), r"axis \(=0\) must be an axis of \(3, 4\) beside the batch"),
    ("ReduceMax", over(1, -2), "names an axis twice"),
    ("ArgMax", {"axis": 3, "keepdims": True, "last": False}, r"axis \(=3\) must be an axis of \(3, 4\)"),
])
def test_what_does_not_fit_is_refused(op, attrs, text):
    with pytest.raises(mc.ModelError, match=text):
        graph_of(op, (3, 4), **attrs).shapes()
