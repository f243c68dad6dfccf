"""Differences, products, quotients, powers, the larger and the smaller of two, with and without broadcasting."""
import math

import numpy as np
import pytest

import microcnn as mc
from microcnn.graph import Graph, Input, Node, WeightRef
from tests import graph_oracle
from tests.ops.table import Case, close, graph_of, only, repeated, runtime, single_precision, spread, table

# Functions whose second operand must not come near 0, or whose base must be positive.
POSITIVE = ("Div", "Pow")


def positive(rng, shape):
    """Different numbers from 0.5 to 2.5."""
    return np.asarray(1.5 + spread(rng, shape) / 4, np.float32)


def function(op, *sizes, other=None, **attrs):
    """A function of tensors of these shapes, or of one and a constant of the shape `other`."""
    def build():
        weights = {} if other is None else {"other": positive(np.random.default_rng(3), other)}
        graph = graph_of(op, *sizes, weights=weights, **attrs)
        if op not in POSITIVE:
            return graph
        # x -> x * x + 0.5: every operand positive
        names = {entry.name: f"{entry.name}.positive" for entry in graph.inputs}
        before = []
        for name, made in names.items():
            before += [Node("Pow", f"{name}.square", (name,), (f"{name}.squared",), {"scalar": 2.0}),
                       Node("Clip", f"{name}.clip", (f"{name}.squared",), (made,), {"low": 0.1, "high": 3.5})]
        node = graph.nodes[0]
        node.inputs = tuple(names[name] for name in node.inputs)
        return Graph(graph.inputs, graph.outputs, [*before, node], graph.weights)
    shown = "".join(f",{key}={value}" for key, value in attrs.items())
    name = f"{op}-{'x'.join(map(str, sizes))}{'' if other is None else f'-constant{other}'}{shown}".replace(" ", "")
    # the remainder jumps where a multiple of b is an a
    return Case(name, build, skip=("gradient",) if op == "Mod" and other is None else ())


SHAPES = [((17,), (17,)), ((3, 4, 5), (3, 1, 1)), ((3, 1, 5), (3, 4, 1)), ((1, 4, 1), (3, 4, 5)), ((33, 2, 3), (33, 1, 1))]
CONSTANTS = [((3, 4, 5), (3, 1, 1)), ((3, 4, 5), (5,)), ((3, 4, 5), ()), ((17,), (1, 17)), ((3, 4, 3), (1, 3, 4, 3)),
             ((1, 4, 5), (3, 1, 1))]
CASES = [function(op, a, b) for op in ("Sub", "Mul", "Div", "Max", "Min") for a, b in SHAPES]
CASES += [function("Pow", a, b) for a, b in SHAPES[:3]] + [function("Mod", (5, 3), (1, 3))]
CASES += [function("Mod", (5, 3), (1, 3), floor=True), function("Mod", (3, 4, 5), other=(5,), floor=True)]
CASES += [function(op, shape, other=other) for op in ("Sub", "Mul", "Div") for shape, other in CONSTANTS]
CASES += [function(op, shape, other=other, first=True) for op in ("Sub", "Div", "Pow") for shape, other in CONSTANTS[:3]]
CASES += [function(op, (3, 4, 5), other=other) for op in ("Pow", "Max", "Min", "Mod") for other in ((3, 1, 1), (5,))]
CASES += [function("Pow", (3, 4, 5), scalar=float(exponent)) for exponent in (2, 3, 0.5, -0.5, -1, 1, 2.7, -2)]
CASES += [function(op, (3, 4, 5), scalar=1.5, first=True) for op in ("Sub", "Div", "Pow")]
CASES += [function("Mul", (3, 4, 5), scalar=1.5), function("Div", (17,), scalar=3.0)]


@table(CASES)
def test_function(case, check):
    check(case)


def squared_difference():
    """The operands are each other's: (x - y) * (x - y), x * x, in place where that is free."""
    b = mc.GraphBuilder(seed=2)
    x = b(mc.Conv2d(4, 1), b.input("x", (3, 3, 4)))
    y = b(mc.Conv2d(4, 3, padding=1), x)
    difference = b(mc.Sub(), x, y)
    square = b(mc.Mul(), difference, difference)
    return b.graph(b(mc.ReLU(), b(mc.Sub(), square, b(mc.Mul(), x, x))))


def gated():
    """Squeeze and excitation: every channel times a number made of all of them."""
    b = mc.GraphBuilder(seed=2)
    x = b(mc.Conv2d(6, 3, padding=1), b.input("x", (3, 4, 5)))
    gate = b(mc.Sigmoid(), b(mc.Conv2d(6, 1), b(mc.GlobalAvgPool2d(), x)))
    return b.graph(b(mc.Conv2d(2, 2), b(mc.Clip(-0.4, 0.6), b(mc.Mul(), x, gate))))


def normalised():
    """x divided by the root of the mean of its squares, one minus that."""
    b = mc.GraphBuilder(seed=2)
    x = b(mc.Conv2d(5, 3), b.input("x", (3, 5, 4)))
    mean = b(mc.Maximum(1e-3), b(mc.GlobalAvgPool2d(), b(mc.Pow(2), x)))
    return b.graph(b(mc.Sub(1, first=True), b(mc.Div(), x, b(mc.Pow(0.5), mean))))


def two_orders():
    """One operand lies channels last, the other in the model's order."""
    b = mc.GraphBuilder(seed=2)
    x = b.input("x", (6, 4, 5))
    turned = b(mc.Reshape((6, 4, 5)), b(mc.Linear(120), b(mc.Flatten(), x)))
    y = b(mc.Conv2d(6, 3, padding=1), x)
    return b.graph(b(mc.Mul(), turned, y), b(mc.Minimum(), b(mc.Sub(), y, turned), y))


CHAINS = [Case("squared-difference", squared_difference), Case("gated", gated, 3), Case("normalised", normalised),
          Case("two-orders", two_orders)]


@table(CHAINS)
def test_chains(case, check):
    check(case)


LARGE = [function("Mul", (33, 40, 41), (33, 40, 41)), function("Mul", (24, 40, 41), (24, 1, 1)),
         function("Sub", (33, 40, 41), other=(33, 1, 1)), function("Div", (1, 40, 41), (24, 40, 41))]


@pytest.mark.parametrize("case", LARGE, ids=lambda case: case.name)
def test_large(case):
    for check in (single_precision, repeated, runtime):
        check(case)
    inputs = case.inputs()
    close(case.compile().predict(only(inputs)), graph_oracle.evaluate(case.graph(), inputs)["y"], 1e-15, "predict")


SPECIAL = [math.nan, math.inf, -math.inf, 0.0, -0.0, 1.0, -1.0, 2.5, -2.0, 3.0]


@pytest.mark.parametrize("op", ["Sub", "Mul", "Div", "Pow", "Max", "Min", "Mod"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_special_numbers(op, dtype):
    a, b = (np.array(x).reshape(1, -1) for x in zip(*((x, y) for x in SPECIAL for y in SPECIAL), strict=True))
    net = graph_of(op, a.shape[1:], b.shape[1:]).compile(dtype=dtype)
    with np.errstate(all="ignore"):
        expected = graph_oracle.evaluate(net.graph, {"a": a, "b": b})["y"].astype(dtype)
    np.testing.assert_allclose(net.predict({"a": a.astype(dtype), "b": b.astype(dtype)}), expected, rtol=1e-6)


def gradients_at(op, a, b):
    """The gradients of both operands for dy of ones."""
    net = graph_of(op, (len(a),), (len(a),)).compile(dtype="float64")
    net.forward({"a": np.array([a]), "b": np.array([b])})
    dx = net.backward(np.ones((1, len(a))))
    return dx["a"][0], dx["b"][0]


def test_equal_numbers_share_the_gradient():
    for op in ("Max", "Min"):
        for gradient in gradients_at(op, [1.0, -2.0], [1.0, -2.0]):
            np.testing.assert_array_equal(gradient, [0.5, 0.5])


def test_gradients_of_powers_of_and_to_zero():
    base, exponent = gradients_at("Pow", [0.0, 0.0, 0.0, -2.0, 3.0], [0.0, 1.0, 2.0, 2.0, 0.0])
    np.testing.assert_array_equal(base, [0.0, 1.0, 0.0, -4.0, 0.0])
    np.testing.assert_allclose(exponent, [0.0, 0.0, 0.0, math.nan, math.log(3.0)])


def test_what_does_not_fit_is_refused():
    with pytest.raises(mc.MicroCNNError, match=r'Mul "node": shapes \(3, 4\) and \(3, 5\) of one sample do not'):
        graph_of("Mul", (3, 4), (3, 5)).shapes()
    with pytest.raises(mc.MicroCNNError, match="different numbers of axes, so the batch of one would meet another"):
        graph_of("Div", (3, 4), (4,)).shapes()
    with pytest.raises(mc.MicroCNNError, match=r"the constant has shape \(2, 4\), which does not broadcast against"):
        graph_of("Sub", (4,), weights={"other": (2, 4)}).shapes()
    with pytest.raises(mc.MicroCNNError, match="Mul: value is '2'; expected a number, or None for two tensors"):
        b = mc.GraphBuilder()
        b(mc.Mul("2"), b.input("x", (3,)))


def test_bounds_and_scalars_do_not_train():
    nodes = [Node("Max", "max", ("x",), ("m",), {}, {"other": WeightRef("bound")}),
             Node("Mul", "mul", ("m",), ("p",), {}, {"other": WeightRef("gain")}),
             Node("Pow", "pow", ("p",), ("y",), {"scalar": 2.0})]
    weights = {"bound": np.zeros(3, np.float32), "gain": np.ones(3, np.float32)}
    net = Graph([Input("x", (3,))], ["y"], nodes, weights).compile(train="all")
    net.forward(np.ones((1, 3), np.float32))
    net.backward(np.ones((1, 3), np.float32))
    assert list(net.gradients()) == ["gain"]
