"""MatMul of two tensors, or of a tensor and constant matrices, with broadcasting; what attention is made of."""
import numpy as np
import pytest

import microcnn as mc
from microcnn.graph import Graph, Input, Node, WeightRef
from tests.ops.table import LARGE_CHECKS, Case, drawn, graph_of, table


def of_two(a, b, batch=2, skip=()):
    return Case(f"{'x'.join(map(str, a))}-{'x'.join(map(str, b))}", lambda: graph_of("MatMul", a, b), batch, skip=skip)


def with_constant(x, other, first=False, batch=2):
    attrs = {"first": True} if first else {}
    return Case(f"{'x'.join(map(str, x))}-{'first' if first else 'second'}-{'x'.join(map(str, other))}",
                lambda: graph_of("MatMul", x, weights={"other": other}, **attrs), batch)


@table([of_two((4, 5), (5, 3)), of_two((1, 17), (17, 33), 3), of_two((9, 1), (1, 17)), of_two((3, 5), (5, 1), 1),
        of_two((2, 4, 5), (2, 5, 3)), of_two((3, 4, 5), (1, 5, 7)), of_two((1, 4, 5), (3, 5, 7)),
        of_two((2, 1, 3, 4), (1, 3, 4, 5)), of_two((2, 3, 3, 4), (2, 1, 4, 5)), of_two((2, 600), (600, 3), skip=("gradient",)),
        of_two((40, 3), (3, 4), 1)])
def test_two_tensors(case, check):
    check(case)


@table([with_constant((5, 3), (4, 5), True), with_constant((5, 3), (1, 4, 5), True, 3),
        with_constant((2, 5, 3), (2, 4, 5), True), with_constant((2, 4, 5), (2, 5, 17)),
        with_constant((2, 4, 5), (5, 3)), with_constant((1, 4, 5), (3, 5, 2)),
        with_constant((2, 5, 3), (4, 5), True), with_constant((2, 2, 4, 5), (2, 1, 5, 3), batch=1),
        with_constant((3, 33), (40, 3), True)])
def test_one_constant(case, check):
    check(case)


def self_product():
    """A tensor times itself: its gradient comes from both sides."""
    node = Node("MatMul", "node", ("x", "x"), ("y",), {})
    return Graph([Input("x", (2, 4, 4))], ["y"], [node], {})


def attention():
    """Self-attention over the pixels of an image, with three heads' worth of channels for one head each."""
    b = mc.GraphBuilder(seed=3)
    x = b(mc.Conv2d(12, 3, padding=1), b.input("x", (3, 3, 4)))
    first = b.graph(x)
    def heads(name, begin):
        cut = {"axes": (1,), "starts": (begin,), "ends": (begin + 4,), "steps": (1,)}
        return [Node("Slice", name, ("output",), (f"{name}0",), cut),
                Node("Reshape", f"{name}_heads", (f"{name}0",), (f"{name}1",), {"shape": (2, 2, 12)}),
                Node("Transpose", f"{name}_tokens", (f"{name}1",), (name,), {"perm": (0, 1, 3, 2)})]
    nodes = [*heads("q", 0), *heads("k", 4), *heads("v", 8),
             Node("Transpose", "turn", ("k",), ("kt",), {"perm": (0, 1, 3, 2)}),
             Node("MatMul", "scores", ("q", "kt"), ("s",), {}),
             Node("Mul", "scaled", ("s",), ("t",), {"scalar": 0.5 ** 0.5}),
             Node("Softmax", "weights", ("t",), ("w",), {"axis": -1, "flatten": False}),
             Node("MatMul", "mixed", ("w", "v"), ("m",), {}), Node("Transpose", "back", ("m",), ("b",), {"perm": (0, 2, 1, 3)}),
             Node("Reshape", "joined", ("b",), ("j",), {"shape": (12, 4)}),
             Node("MatMul", "out", ("j",), ("y",), {}, {"other": WeightRef("project")})]
    project = drawn(np.random.default_rng(0), "other", (4, 5))
    return Graph(first.inputs, ["y"], [*first.nodes, *nodes], {**first.weights, "project": project})


@table([Case("self-product", self_product), Case("attention", attention)])
def test_within_networks(case, check):
    check(case)


@table([Case("two", lambda: graph_of("MatMul", (3, 65, 70), (3, 70, 66)), 3), Case("first", lambda: graph_of(
    "MatMul", (300, 33), weights={"other": (100, 300)}, first=True), 3)], LARGE_CHECKS)
def test_large(case, check):
    check(case)


@pytest.mark.parametrize("sizes, weights, text", [
    (((4, 5), (4, 3)), {}, r"\(4, 5\) times \(4, 3\), of one sample, is no product of matrices"),
    (((5,), (5,)), {}, "is no product of matrices"),
    (((4, 5), (2, 5, 3)), {}, "have different numbers of axes"),
    (((2, 4, 5), (3, 5, 3)), {}, "do not broadcast"),
    (((4, 5),), {"other": (2, 5, 3)}, "does not broadcast against a batch"),
])
def test_what_does_not_fit_is_refused(sizes, weights, text):
    with pytest.raises(mc.ModelError, match=text):
        graph_of("MatMul", *sizes, weights=weights).shapes()
