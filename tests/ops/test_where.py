"""Where: selection by a mask that never changes."""
import numpy as np
import pytest

import microcnn as mc
from microcnn.graph import Graph, Input, Node, WeightRef
from tests.ops.table import LARGE_CHECKS, Case, graph_of, table


def mask(*shape):
    return np.asarray(np.random.default_rng(sum(shape)).random(shape) > 0.4)


def where(condition, *sizes, other=None, **attrs):
    """A selection between tensors of these shapes, or between one and a constant of the shape `other`."""
    def build():
        weights = {"condition": mask(*condition)} if other is None else {"condition": mask(*condition), "other": other}
        return graph_of("Where", *sizes, weights=weights, **attrs)
    return Case(f"{condition}-{sizes}-{other}{attrs}".replace(" ", ""), build)


def inside():
    """Between two convolutions, whose results it may overwrite, with a mask of the shape of an image."""
    b = mc.GraphBuilder(seed=2)
    x = b(mc.Conv2d(4, 3, padding=1), b.input("x", (3, 4, 5)))
    graph = b.graph(b(mc.Conv2d(4, 1), b(mc.Add(), b(mc.Conv2d(4, 1), x), b(mc.Conv2d(4, 3, padding=1), x))))
    place = next(i for i, node in enumerate(graph.nodes) if node.op == "Add")
    add = graph.nodes[place]
    graph.nodes[place] = Node("Where", "where", add.inputs, add.outputs, {}, {"condition": WeightRef("condition")})
    return Graph(graph.inputs, graph.outputs, graph.nodes, {**graph.weights, "condition": mask(4, 5)})


SHAPES = [((17,), (17,), (17,)), ((), (3, 4, 5), (3, 4, 5)), ((4, 1), (3, 4, 5), (3, 4, 5)), ((3, 4, 5), (3, 1, 5), (1, 4, 1)),
          ((1, 3, 1, 1), (3, 4, 5), (1, 4, 5)), ((33,), (1, 2, 33), (3, 2, 1))]
CASES = [where(*shapes) for shapes in SHAPES] + [Case("inside", inside)]
CASES += [where(condition, (3, 4, 5), other=other, **attrs) for condition, other in (((5,), ()), ((3, 4, 5), (4, 1)),
                                                                                   ((3, 1, 1), (1, 3, 4, 5)))
          for attrs in ({}, {"first": True})]
CASES += [where((4, 3, 5), (1, 3, 1), other=(4, 1, 5))]


@table(CASES)
def test_where(case, check):
    check(case)


@table([where((40, 1, 50), (40, 30, 50), (40, 30, 1))], LARGE_CHECKS)
def test_large(case, check):
    check(case)


def test_what_is_not_selected_takes_no_part():
    weights = {"condition": np.array([True, False, True]), "other": np.float32([np.inf, 2, np.nan])}
    graph = graph_of("Where", (3,), weights=weights)
    x = np.float32([[1, np.nan, 3]])
    np.testing.assert_array_equal(graph.compile().predict(x), [[1, 2, 3]])


def test_shapes_that_do_not_fit():
    node = Node("Where", "pick", ("a", "b"), ("y",), {}, {"condition": WeightRef("m")})
    for shape, text in (((3,), "do not broadcast"), ((1, 2), "different numbers of axes")):
        graph = Graph([Input("a", (2,)), Input("b", shape)], ["y"], [node], {"m": mask(2)})
        with pytest.raises(mc.ModelError, match=f'Where "pick": shapes .*{text}'):
            graph.compile()
