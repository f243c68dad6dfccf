"""The elementwise functions of layers/unary.py."""
import math
from dataclasses import dataclass

import numpy as np
import pytest

import microcnn as mc
from microcnn.graph import Node
from microcnn.tools.onnx_registry import Draft
from microcnn.tools.onnx_simplify import simplify
from tests.ops.table import LARGE_CHECKS, Case, graph_of, table
from tests.ops.walk_unary import FUNCTIONS

KINDS = {
    "leaky": ("LeakyRelu", {"alpha": 0.1}), "leaky-0": ("LeakyRelu", {"alpha": 0.0}),
    "leaky-negative": ("LeakyRelu", {"alpha": -0.3}),
    "thresholded": ("ThresholdedRelu", {"alpha": 0.7131}), "thresholded-negative": ("ThresholdedRelu", {"alpha": -0.4137}),
    "elu": ("Elu", {"alpha": 1.0}), "elu-2": ("Elu", {"alpha": 2.0}), "elu-negative": ("Elu", {"alpha": -0.5}),
    "selu": ("Selu", {"alpha": 1.6732632423543772, "gamma": 1.0507009873554805}), "celu": ("Celu", {"alpha": 0.75}),
    "hard-sigmoid": ("HardSigmoid", {"alpha": 0.5, "beta": 0.5713}), "hard-swish": ("HardSwish", {}),
    "swish": ("Swish", {"alpha": 1.0}), "swish-2": ("Swish", {"alpha": 1.702}),
    "gelu": ("Gelu", {"approximate": "none"}), "gelu-tanh": ("Gelu", {"approximate": "tanh"}),
    **{op.lower(): (op, {}) for op in ("Softplus", "Softsign", "Mish", "Neg", "Abs", "Exp", "Erf", "Sin", "Cos", "Sqrt", "Log",
                                       "Reciprocal", "Sign", "Ceil", "Floor", "Round")}}
POSITIVE, STEPS = ("Sqrt", "Log", "Reciprocal"), ("Sign", "Ceil", "Floor", "Round")
# onnxruntime and onnx's evaluator compute alpha < 0 otherwise, or not at all
SKIP = {"elu-negative": ("runtime", "reference")}
SHAPES = [((1,), 1), ((17, 1, 1), 2), ((3, 4, 5), 3)]


@dataclass
class Away(Case):
    """Inputs above 0.25 where the function needs that, else two and a half times as wide."""

    positive: bool = False

    def inputs(self, samples=None, dtype="float64"):
        found = super().inputs(samples)
        return {name: (np.abs(x) + 0.25 if self.positive else 2.53 * x).astype(np.float32).astype(dtype)
                for name, x in found.items()}


def case(name, shape, batch):
    op, attrs = KINDS[name]
    skip = SKIP.get(name, ()) + (("gradient",) if op in STEPS else ())
    return Away(f"{name}-{'x'.join(map(str, shape))}", lambda: graph_of(op, shape, **attrs), batch, skip=skip,
                positive=op in POSITIVE)


@table([case(name, *shape) for name in KINDS for shape in SHAPES[-1:]])
def test_every_function(case, check):
    check(case)


@table([case(name, *shape) for name in ("leaky", "gelu", "neg", "softplus") for shape in SHAPES[:-1]])
def test_sizes(case, check):
    check(case)


@table([case(name, (17, 60, 61), 2) for name in ("leaky", "elu", "gelu", "swish", "abs")], LARGE_CHECKS)
def test_large(case, check):
    check(case)


def chain(*layers):
    """In place where nothing else reads the input, and on a tensor that two layers read."""
    def build():
        b = mc.GraphBuilder(seed=2)
        x = b(mc.Conv2d(5, 2), b.input("x", (3, 4, 5)))
        y = b(layers[0], x)
        for layer in layers[1:]:
            y = b(layer, y)
        return b.graph(b(mc.Conv2d(2, 1), y), b(layers[-1], x))
    return build


@table([Case("leaky-gelu-elu", chain(mc.LeakyReLU(0.2), mc.GELU(), mc.ELU())),
        Case("silu-hardswish-mish", chain(mc.SiLU(), mc.Hardswish(), mc.Mish())),
        Case("softplus-softsign-selu", chain(mc.Softplus(), mc.Softsign(), mc.SELU())),
        Case("celu-hardsigmoid-gelu", chain(mc.CELU(0.5), mc.Hardsigmoid(), mc.GELU("tanh")))])
def test_between_other_layers(case, check):
    check(case)


FAR = {"LeakyRelu": (-0.1, 0.1), "Elu": (-1, 0), "Selu": (-1.7580993, 0), "Celu": (-0.75, 0), "HardSigmoid": (0, 0),
       "HardSwish": (0, 0), "Swish": (0, 0), "Gelu": (0, 0), "Softplus": (0, 0), "Softsign": (-1, 0), "Mish": (0, 0),
       "Erf": (-1, 0)}
ONE_ABOVE = {"HardSigmoid": 0, "Softsign": 0, "Erf": 0, "Selu": 1.0507009873554805}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", [name for name, (op, _) in KINDS.items() if op in FAR and "-negative" not in name
                                  and name not in ("leaky-0", "elu-2")])
def test_far_from_zero(name, dtype):
    op, attrs = KINDS[name]
    x = np.array([[-1e30, -800, -90, 90, 800, 1e30]], dtype)
    net = graph_of(op, (6,), **attrs).compile(dtype=dtype)
    y, dx = net.forward(x), net.backward(np.ones_like(x))
    bottom, slope = FAR[op]
    above = ONE_ABOVE.get(op, 1)
    assert np.isfinite(y).all() and np.isfinite(dx).all()
    expected = np.full(3, bottom) if op != "LeakyRelu" else 0.1 * x[0, :3]
    np.testing.assert_allclose(y[0, :3], expected, rtol=1e-6, atol=0.02 if op == "Softsign" else 1e-30)
    top = x[0, 3:] * above if above else np.ones(3)
    np.testing.assert_allclose(y[0, 3:], top, rtol=0.02 if op == "Softsign" else 1e-6)
    near = 2e-4 if op == "Softsign" else 1e-6
    np.testing.assert_allclose(dx[0], [slope] * 3 + [above] * 3, atol=near)


@pytest.mark.parametrize("name", [name for name in KINDS if name not in ("neg",)])
def test_nan_stays_nan(name):
    op, attrs = KINDS[name]
    y = graph_of(op, (3,), **attrs).compile().predict(np.array([[0.5, np.nan, 2]], np.float32))
    assert np.isnan(y).tolist() == [[False, True, False]]


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-6), ("float64", 1e-14)])
@pytest.mark.parametrize("op, attrs, low, high", [
    ("Erf", {}, -7, 7), ("Gelu", {"approximate": "none"}, -9, 9), ("Elu", {"alpha": 1.0}, -1e-3, 1e-3),
    ("Softplus", {}, -30, 30), ("Mish", {}, -30, 30), ("Swish", {"alpha": 1.0}, -30, 30)])
def test_each_number_to_its_own_accuracy(op, attrs, low, high, dtype, tolerance):
    x = np.linspace(low, high, 4001, dtype=dtype)
    y = graph_of(op, (x.size,), **attrs).compile(dtype=dtype).predict(x[None])[0]
    function = FUNCTIONS[op](attrs)[0]
    expected = np.array([function(float(value)) for value in x])
    slack = 40 if op == "Gelu" and dtype == "float64" else 8       # the tail is exp(-x^2 / 2)
    np.testing.assert_allclose(y, expected, rtol=slack * tolerance, atol=1e-30)
    np.testing.assert_allclose(y, expected, atol=tolerance * max(1, high), rtol=0)


def test_the_gradients_at_the_kinks_are_those_of_pytorch():
    for op, attrs, expected in (("LeakyRelu", {"alpha": 0.1}, 0.1), ("Abs", {}, 0), ("Elu", {"alpha": 2.0}, 2),
                                ("HardSwish", {}, 0.5)):
        net = graph_of(op, (1,), **attrs).compile(dtype="float64")
        net.forward(np.zeros((1, 1)))
        np.testing.assert_allclose(net.backward(np.ones((1, 1))), [[expected]], atol=1e-15)


def test_infinities():
    for op, expected in (("Erf", [-1, 1]), ("Softsign", [-1, 1]), ("Softplus", [0, math.inf]), ("Exp", [0, math.inf])):
        y = graph_of(op, (2,)).compile().predict(np.array([[-math.inf, math.inf]], np.float32))
        np.testing.assert_array_equal(y, [expected])


def test_bad_attributes_are_refused():
    with pytest.raises(mc.MicroCNNError, match='Celu "node": alpha is 0; it divides by alpha'):
        graph_of("Celu", (3,), alpha=0.0).shapes()
    with pytest.raises(mc.MicroCNNError, match='Gelu "node": approximate is \'erf\'; expected "none" or "tanh"'):
        graph_of("Gelu", (3,), approximate="erf").shapes()
    with pytest.raises(mc.MicroCNNError, match="GELU: approximate is 'erf'"):
        mc.Sequential([mc.GELU("erf")], input_shape=(3,)).graph()


@pytest.mark.parametrize("inputs, outputs, expected", [
    (("x", "s"), ["y"], [("Swish", ("x",))]), (("s", "x"), ["y"], [("Swish", ("x",))]),
    (("s", "s"), ["y"], [("Sigmoid", ("x",)), ("Mul", ("s", "s"))]),
    (("s", "z"), ["y"], [("Sigmoid", ("x",)), ("Mul", ("s", "z"))]),
    (("x", "s"), ["y", "s"], [("Sigmoid", ("x",)), ("Mul", ("x", "s"))])])
def test_a_tensor_times_its_sigmoid_becomes_one_node(inputs, outputs, expected):
    draft = Draft(17, nodes=[Node("Sigmoid", "gate", ("x",), ("s",)), Node("Mul", "product", inputs, ("y",))])
    simplify(draft, outputs)
    assert [(node.op, node.inputs) for node in draft.nodes] == expected
    assert draft.nodes[-1].outputs == ("y",) and draft.nodes[-1].name == "product"
