"""Numbers of a formula, which are no weights, and weights that depend on the shape of an input."""
import numpy as np
import pytest
from onnx import TensorProto, numpy_helper

import microcnn as mc
from microcnn.partial import trainable_weights
from microcnn.tools.onnx_export import export_onnx
from tests.onnx_models import model_of, node, numbers
from tests.tools.test_onnx_import import held_against_onnxruntime


def literal(name, value):
    return node("Constant", [], [name], value=numpy_helper.from_array(np.asarray(value, np.float32)), name=name)


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div"])
@pytest.mark.parametrize("first", [False, True])
def test_a_number_without_axes_in_a_constant_node_is_no_weight(op, first):
    nodes = [literal("c", 1.5), node(op, ["c", "x"] if first else ["x", "c"])]
    graph = held_against_onnxruntime(model_of(nodes, ("N", 3)), (2, 3))
    assert not graph.weights and graph.nodes[0].attrs["scalar"] == 1.5


def test_one_with_axes_or_among_the_initializers_is_a_weight():
    for nodes, weights in (([literal("c", [1.5]), node("Mul", ["x", "c"])], {}),
                           ([node("Mul", ["x", "c"])], {"c": np.asarray(1.5, np.float32)})):
        graph = held_against_onnxruntime(model_of(nodes, ("N", 3), weights), (2, 3))
        assert trainable_weights(graph) == ["c"]


def scale_of_shape(weights):
    """x times its size to the power of -0.5, as attention scales its scores; then a product that trains."""
    nodes = [node("Shape", ["x"], ["s"]), node("Gather", ["s", "two"], ["d"]), node("Cast", ["d"], ["f"], to=TensorProto.FLOAT),
             literal("h", -0.5), node("Pow", ["f", "h"], ["k"]), node("Mul", ["x", "k"], ["m"]), node("MatMul", ["m", "w"])]
    return model_of(nodes, ("N", 2, 4), {"two": np.asarray(2), **weights})


def test_a_number_of_shape_arithmetic_is_no_weight_and_stays_in_the_export():
    graph = held_against_onnxruntime(scale_of_shape({"w": numbers(4, 3)}), (2, 2, 4))
    assert trainable_weights(graph) == ["w"] and graph.nodes[0].attrs["scalar"] == 0.5
    net = graph.compile(batch=2, train="all", loss="mse", optimizer=mc.SGD(lr=0.1))
    x = numbers(2, 2, 4, seed=5)
    net.train_step(x, np.zeros((2, 2, 3), np.float32))
    again = held_against_onnxruntime(export_onnx(net), (2, 2, 4))
    np.testing.assert_array_equal(again.weights["w"], net.parameters()["w"])


def test_a_weight_made_with_the_shape_of_an_input_is_exported():
    nodes = [node("Shape", ["x"], ["s"]), node("Slice", ["s", "one", "far"], ["t"]), node("Expand", ["p", "t"], ["e"]),
             node("Add", ["x", "e"])]
    weights = {"one": np.array([1]), "far": np.array([9]), "p": numbers(2, 1)}
    graph = held_against_onnxruntime(model_of(nodes, ("N", 2, 4), weights), (3, 2, 4))
    assert export_onnx(graph).graph.node == model_of(nodes, ("N", 2, 4), weights).graph.node
    net = graph.compile(batch=3, train="all", loss="mse", optimizer=mc.SGD(lr=0.1))
    net.train_step(numbers(3, 2, 4), np.zeros((3, 2, 4), np.float32))
    again = held_against_onnxruntime(export_onnx(net), (3, 2, 4))
    np.testing.assert_array_equal(again.weights["e"], net.parameters()["e"])
