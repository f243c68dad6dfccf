"""Import: every operator and opset against ONNX Runtime through a plain oracle, and the corpus."""
from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from microcnn.errors import CompileError
from microcnn.graph import Graph
from microcnn.layers import LAYERS
from microcnn.tools import onnx_registry
from microcnn.tools.onnx_build import BUILDERS
from microcnn.tools.onnx_import import load_onnx
from tests.graph_oracle import evaluate
from tests.onnx_models import model_of, node, numbers, onnxruntime_outputs, recorded, relative
from tests.tools import onnx_normalization_models, onnx_reduction_models, onnx_unary_models

X = ("N", 3, 9, 7)
W = {"w": numbers(4, 3, 3, 3), "b": numbers(4)}
BN = {"scale": numbers(3), "bias": numbers(3), "mean": numbers(3), "var": np.abs(numbers(3)) + 0.5}

# One node, its input's shape, its weights, the opsets to try, and the layers that it becomes.
ONE_NODE: dict[str, tuple[Any, tuple[Any, ...], dict[str, np.ndarray], tuple[int, ...], list[str]]] = {
    "conv": (node("Conv", ["x", "w", "b"]), X, W, (7, 11, 22, 24), ["Conv2d"]),
    "conv_no_bias": (node("Conv", ["x", "w"], strides=[2, 1], pads=[0, 1, 2, 3], dilations=[1, 2]), X, W, (7, 11),
                     ["Conv2d"]),
    "conv_empty_bias": (node("Conv", ["x", "w", ""]), X, W, (11,), ["Conv2d"]),
    "conv_groups": (node("Conv", ["x", "w"], group=3), X, {"w": numbers(6, 1, 2, 3)}, (11,), ["Conv2d"]),
    "conv_same_upper": (node("Conv", ["x", "w"], auto_pad="SAME_UPPER", strides=[2, 3]), X, {"w": numbers(4, 3, 4, 3)},
                        (11,), ["Conv2d"]),
    "conv_same_lower": (node("Conv", ["x", "w"], auto_pad="SAME_LOWER", strides=[2, 2]), X, {"w": numbers(4, 3, 4, 2)},
                        (11,), ["Conv2d"]),
    "conv_same_open": (node("Conv", ["x", "w"], auto_pad="SAME_UPPER", strides=[2, 3]), ("N", 3, "H", "W"),
                       {"w": numbers(4, 3, 4, 3)}, (11,), ["Conv2d"]),
    "conv_valid": (node("Conv", ["x", "w"], auto_pad="VALID", kernel_shape=[3, 3]), X, W, (11,), ["Conv2d"]),
    "conv_transpose": (node("ConvTranspose", ["x", "w", "b"], strides=[2, 3], pads=[1, 0, 0, 2]), ("N", 3, "H", "W"),
                       {"w": numbers(3, 4, 4, 3), "b": numbers(4)}, (7, 11, 22), ["ConvTranspose2d"]),
    "max_pool": (node("MaxPool", ["x"], kernel_shape=[3, 2], strides=[2, 2], pads=[1, 0, 1, 1]), X, {},
                 (7, 8, 10, 11, 12, 22), ["MaxPool2d"]),
    "max_pool_ceil": (node("MaxPool", ["x"], kernel_shape=[3, 2], strides=[2, 3], ceil_mode=1, dilations=[1, 2]), X, {},
                      (10, 12, 22), ["MaxPool2d"]),
    "max_pool_same": (node("MaxPool", ["x"], kernel_shape=[2, 2], strides=[2, 2], auto_pad="SAME_LOWER"), X, {},
                      (8, 12), ["MaxPool2d"]),
    "average_pool": (node("AveragePool", ["x"], kernel_shape=[2, 3], strides=[1, 2], pads=[1, 1, 0, 1]), X, {},
                     (7, 10, 11, 19, 22), ["AvgPool2d"]),
    "average_pool_counting": (node("AveragePool", ["x"], kernel_shape=[2, 3], pads=[1, 1, 0, 1], count_include_pad=1),
                              X, {}, (7, 11, 22), ["AvgPool2d"]),
    "average_pool_ceil": (node("AveragePool", ["x"], kernel_shape=[2, 3], strides=[2, 2], ceil_mode=1), X, {}, (10, 19),
                          ["AvgPool2d"]),
    "average_pool_same": (node("AveragePool", ["x"], kernel_shape=[2, 4], strides=[2, 2], auto_pad="SAME_UPPER"), X, {},
                          (11,), ["AvgPool2d"]),
    "global_average_pool": (node("GlobalAveragePool", ["x"]), X, {}, (7, 22), ["GlobalAvgPool2d"]),
    "global_max_pool": (node("GlobalMaxPool", ["x"]), ("N", 3, "H", "W"), {}, (7, 22), ["GlobalMaxPool2d"]),
    "reduce_mean": (node("ReduceMean", ["x"], axes=[2, 3]), X, {}, (7, 11, 13), ["GlobalAvgPool2d"]),
    "reduce_mean_flat": (node("ReduceMean", ["x"], axes=[-1, 2], keepdims=0), X, {}, (11,),
                         ["GlobalAvgPool2d", "Flatten"]),
    "reduce_mean_input": (node("ReduceMean", ["x", "axes"], keepdims=0), X, {"axes": np.array([3, 2])}, (18,),
                          ["GlobalAvgPool2d", "Flatten"]),
    "reduce_mean_channels_last": (node("ReduceMean", ["x"], axes=[1, 2]), X, {}, (13,),
                                  ["Transpose", "GlobalAvgPool2d", "Transpose"]),
    "reduce_mean_channels_last_flat": (node("ReduceMean", ["x"], axes=[1, 2], keepdims=0), X, {}, (13,),
                                       ["Transpose", "GlobalAvgPool2d", "Flatten"]),
    "batch_norm": (node("BatchNormalization", ["x", *BN], epsilon=0.01), X, BN, (7, 9, 14, 15), ["BatchNorm2d"]),
    "batch_norm_flat": (node("BatchNormalization", ["x", *BN]), ("N", 3), BN, (9, 15), ["BatchNorm2d"]),
    "relu": (node("Relu", ["x"]), X, {}, (7, 13, 14), ["Relu"]),
    "sigmoid": (node("Sigmoid", ["x"]), X, {}, (7, 13), ["Sigmoid"]),
    "tanh": (node("Tanh", ["x"]), X, {}, (7, 13), ["Tanh"]),
    "clip_attributes": (node("Clip", ["x"], min=-0.5, max=0.75), X, {}, (7, 10), ["Clip"]),
    "clip_one_attribute": (node("Clip", ["x"], max=0.75), X, {}, (10,), ["Clip"]),
    "clip_inputs": (node("Clip", ["x", "low", "high"]), X,
                    {"low": np.float32(0).reshape(()), "high": np.float32(6).reshape(())}, (11, 12, 13), ["Clip"]),
    "clip_crossed": (node("Clip", ["x", "low", "high"]), X,
                     {"low": np.float32(0.5).reshape(()), "high": np.float32(-0.25).reshape(())}, (13,), ["Clip"]),
    "clip_high": (node("Clip", ["x", "", "high"]), X, {"high": np.float32(0.3).reshape(())}, (13,), ["Clip"]),
    "softmax_default": (node("Softmax", ["x"]), X, {}, (7, 11, 12, 13, 17), ["Softmax"]),
    "softmax_axis": (node("Softmax", ["x"], axis=2), X, {}, (11, 13), ["Softmax"]),
    "softmax_last": (node("Softmax", ["x"], axis=-1), X, {}, (11, 13), ["Softmax"]),
    "gemm": (node("Gemm", ["x", "m", "c"]), ("N", 5), {"m": numbers(5, 4), "c": numbers(4)}, (7, 9, 11, 13),
             ["Linear"]),
    "gemm_transposed": (node("Gemm", ["x", "m", "c"], transB=1), ("N", 5), {"m": numbers(4, 5), "c": numbers(1, 4)},
                        (9, 13), ["Linear"]),
    "gemm_no_bias": (node("Gemm", ["x", "m"], transB=1), ("N", 5), {"m": numbers(4, 5)}, (11, 13), ["Linear"]),
    "gemm_scalar_bias": (node("Gemm", ["x", "m", "c"]), ("N", 5), {"m": numbers(5, 4), "c": numbers(1)}, (13,),
                         ["Linear", "Add"]),
    "matmul": (node("MatMul", ["x", "m"]), ("N", 5), {"m": numbers(5, 4)}, (7, 9, 13), ["Linear"]),
    "matmul_deep": (node("MatMul", ["x", "m"]), ("N", 2, 3, 5), {"m": numbers(5, 4)}, (13,), ["Linear"]),
    "matmul_leading_ones": (node("MatMul", ["x", "m"]), ("N", 3, 5), {"m": numbers(1, 5, 4)}, (13,), ["Linear"]),
    "add_itself": (node("Add", ["x", "x"]), X, {}, (7, 13, 14), ["Add"]),
    "subtract_itself": (node("Sub", ["x", "x"]), X, {}, (7, 13, 14), ["Sub"]),
    "subtract_from_constant": (node("Sub", ["c", "x"]), X, {"c": numbers(7)}, (7, 14), ["Sub"]),
    "multiply": (node("Mul", ["x", "c"]), X, {"c": numbers(3, 1, 1)}, (7, 13, 14), ["Mul"]),
    "divide": (node("Div", ["x", "c"]), X, {"c": numbers(7)}, (7, 13, 14), ["Div"]),
    "square": (node("Pow", ["x", "c"]), X, {"c": np.float32(2).reshape(())}, (7, 12, 13, 15), ["Pow"]),
    "square_by_integer": (node("Pow", ["x", "c"]), X, {"c": np.array([2], np.int64)}, (12, 13, 15), ["Pow"]),
    "power_of_constant": (node("Pow", ["c", "x"]), X, {"c": np.float32(2).reshape(())}, (7, 15), ["Pow"]),
    "maximum": (node("Max", ["x", "c", "x"]), X, {"c": numbers(7)}, (8, 12, 13), ["Max", "Max"]),
    "minimum": (node("Min", ["x", "c"]), X, {"c": numbers(3, 1, 1)}, (8, 12, 13), ["Min"]),
    "maximum_of_number": (node("Max", ["c", "x"]), X, {"c": np.float32(0.1).reshape(())}, (8, 13), ["Clip"]),
    "maximum_of_one": (node("Max", ["x"]), X, {}, (6, 13), ["Identity"]),
    "minimum_of_one": (node("Min", ["x"]), X, {}, (6,), ["Identity"]),
    "sum": (node("Sum", ["x", "x", "c"]), X, {"c": numbers(7)}, (8, 13), ["Add", "Add"]),
    "sum_of_equals": (node("Sum", ["x", "x"]), X, {}, (6, 8), ["Add"]),
    "mean": (node("Mean", ["x", "c", "x"]), X, {"c": numbers(7)}, (8, 13), ["Add", "Add", "Div"]),
    "mean_of_equals": (node("Mean", ["x", "x"]), X, {}, (6,), ["Add", "Div"]),
    "where": (node("Where", ["m", "x", "x"]), X, {"m": numbers(3, 1, 1) > 0}, (9, 16), ["Where"]),
    "where_constant": (node("Where", ["m", "c", "x"]), X, {"m": numbers(9, 7) > 0, "c": numbers(7)}, (16,), ["Where"]),
    "where_constant_last": (node("Where", ["m", "x", "c"]), X, {"m": numbers(1, 3, 9, 1) > 0, "c": np.float32(-9).reshape(())},
                            (16,), ["Where"]),
    "remainder": (node("Mod", ["x", "c"], fmod=1), X, {"c": numbers(7)}, (10, 13), ["Mod"]),
    "add_constant": (node("Add", ["x", "c"]), X, {"c": numbers(7)}, (7, 14), ["Add"]),
    "add_constant_left": (node("Add", ["c", "x"]), X, {"c": numbers(1, 3, 1, 1)}, (14,), ["Add"]),
    "add_constant_grows": (node("Add", ["x", "c"]), ("N", 3, 1, 7), {"c": numbers(9, 1)}, (14,), ["Add"]),
    "flatten": (node("Flatten", ["x"]), X, {}, (7, 9, 11, 13, 21, 23, 24), ["Flatten"]),
    "flatten_negative": (node("Flatten", ["x"], axis=-3), X, {}, (11,), ["Flatten"]),
    "reshape_keep": (node("Reshape", ["x", "s"]), X, {"s": np.array([0, -1])}, (7, 13, 14, 19, 24), ["Reshape"]),
    "reshape_batch_open": (node("Reshape", ["x", "s"]), X, {"s": np.array([-1, 9, 21])}, (13,), ["Reshape"]),
    "reshape_zeros": (node("Reshape", ["x", "s"]), X, {"s": np.array([0, 0, -1])}, (13,), ["Reshape"]),
    "squeeze": (node("Squeeze", ["x"], axes=[2, -1]), ("N", 3, 1, 1), {}, (7, 11), ["Reshape"]),
    "squeeze_input": (node("Squeeze", ["x", "axes"]), ("N", 3, 1, 1), {"axes": np.array([2, 3])}, (13, 21),
                      ["Reshape"]),
    "unsqueeze": (node("Unsqueeze", ["x"], axes=[1, -1]), ("N", 3), {}, (7, 11), ["Reshape"]),
    "unsqueeze_input": (node("Unsqueeze", ["x", "axes"]), ("N", 3), {"axes": np.array([2])}, (13, 24), ["Reshape"]),
    "transpose": (node("Transpose", ["x"], perm=[0, 2, 3, 1]), X, {}, (7, 13, 21, 24), ["Transpose"]),
    "resize_scales": (node("Resize", ["x", "roi", "scales"], mode="linear"), X,
                      {"roi": np.zeros(0, np.float32), "scales": np.array([1, 1, 2, 0.5], np.float32)}, (11, 13, 18, 19),
                      ["Resize"]),
    "resize_sizes": (node("Resize", ["x", "", "", "sizes"], axes=[-1, 2], mode="cubic"), X,
                     {"sizes": np.array([14, 18])}, (18, 19, 22), ["Resize"]),
    "resize_two_inputs": (node("Resize", ["x", "scales"]), X, {"scales": np.array([1, 1, 2, 0.5], np.float32)}, (10,),
                          ["Resize"]),
    "upsample_attribute": (node("Upsample", ["x"], scales=[1.0, 1.0, 2.0, 3.0]), X, {}, (7, 8), ["Resize"]),
    "upsample_input": (node("Upsample", ["x", "scales"], mode="linear"), X,
                       {"scales": np.array([1, 1, 2, 4], np.float32)}, (9,), ["Resize"]),
    **onnx_unary_models.MODELS,
    **onnx_reduction_models.MODELS,
    **onnx_normalization_models.MODELS,
}
CASES = [(name, opset) for name, case in ONE_NODE.items() for opset in case[3]]


def held_against_onnxruntime(model: onnx.ModelProto, shape: tuple[int, ...], graph: Graph | None = None) -> Graph:
    """Import, and compare the oracle's result on the graph with ONNX Runtime's on the model."""
    graph = load_onnx(model) if graph is None else graph
    x = numbers(*shape, seed=5)
    expected = onnxruntime_outputs(model, {"x": x})
    for name, found in evaluate(graph, {"x": x}).items():
        assert found.shape == expected[name].shape
        np.testing.assert_allclose(found, expected[name], rtol=2e-5, atol=2e-6)
    return graph


@pytest.mark.parametrize(("name", "opset"), CASES)
def test_one_node(name, opset):
    made, shape, weights, _, layers = ONE_NODE[name]
    model = model_of([made], shape, weights, opset)
    sizes = tuple({"N": 2, "H": 9, "W": 7}.get(n, n) for n in shape)
    graph = held_against_onnxruntime(model, sizes)
    assert [one.op for one in graph.nodes] == layers
    assert graph.outputs == ["y"] and graph.nodes[-1].outputs == ("y",)
    assert graph.inputs[0].shape == tuple(n if isinstance(n, int) else None for n in shape[1:])
    used = {ref.name for one in graph.nodes for ref in one.weights.values()}
    assert set(graph.weights) == used <= set(weights)


def test_every_registered_version_is_tried():
    tried = {(made.op_type, onnx.defs.get_schema(made.op_type, opset, "").since_version)
             for made, _, _, opsets, _ in ONE_NODE.values() for opset in opsets}
    elsewhere = {"Identity", "Dropout", "Cast", "CastLike", "Concat", "DepthToSpace", "Expand", "Gather", "Pad", "Slice",
                 "SpaceToDepth", "Split", "Tile", "QuantizeLinear", "DequantizeLinear"}
    newer = {(op, since) for op, since in onnx_registry.CONVERTERS if since > 24}
    unchanged = {(op, since) for op, since in onnx_registry.CONVERTERS if since in (1, 9, 12, 13, 21, 23, 24)}
    missing = {key for key in onnx_registry.CONVERTERS if key not in tried and key[0] not in elsewhere}
    assert missing <= newer | unchanged


def test_a_converter_cannot_be_registered_twice():
    with pytest.raises(ValueError, match="Conv-11 already has a converter"):
        onnx_registry.converter("Conv", 11)(lambda op: None)


@pytest.mark.parametrize("opset", [7, 10, 12, 13, 22, 24])
def test_identity_and_dropout_go_and_the_output_keeps_its_name(opset):
    nodes = [node("Relu", ["x"], ["a"]), node("Identity", ["a"], ["b"]), node("Dropout", ["b"], ["c"]),
             node("Identity", ["c"], ["y"], name="last")]
    graph = held_against_onnxruntime(model_of(nodes, X, opset=opset), (2, 3, 9, 7))
    assert [(one.op, one.outputs) for one in graph.nodes] == [("Relu", ("y",))]


def test_pads_of_zero_go():
    nodes = [node("Pad", ["x"], ["a"], pads=[0] * 8), node("Relu", ["a"])]
    graph = held_against_onnxruntime(model_of(nodes, X, opset=9), (2, 3, 9, 7))
    assert [(one.op, one.inputs) for one in graph.nodes] == [("Relu", ("x",))]


def test_every_operator_of_a_layer_is_known():
    """What a layer file says of ONNX can be imported, and every layer can be exported."""
    named = {operator for layer in LAYERS.values() for operator in layer.onnx}
    assert named <= set(onnx_registry.operators())
    assert {op for op, layer in LAYERS.items() if layer.onnx} <= set(BUILDERS)


def test_an_output_that_is_an_input_or_another_output():
    model = model_of([node("Relu", ["x"], ["y"]), node("Identity", ["y"], ["z"], name="again"),
                      node("Identity", ["x"], ["same"], name="pass")], X)
    for name in ("z", "same"):
        model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    graph = held_against_onnxruntime(model, (2, 3, 9, 7))
    assert graph.outputs == ["y", "z", "same"]
    assert [one.op for one in graph.nodes] == ["Relu", "Identity", "Identity"]


def test_initializers_repeated_as_inputs():
    graph = held_against_onnxruntime(model_of([ONE_NODE["conv"][0]], X, W, 8, ir_version=3), (2, 3, 9, 7))
    assert [entry.name for entry in graph.inputs] == ["x"]
    assert graph.source.replaced == {"w": ("initializer", "raw_data"), "b": ("initializer", "raw_data")}


def test_weights_in_constant_nodes():
    nodes = [node("Constant", [], ["w"], value=numpy_helper.from_array(W["w"])),
             node("Constant", [], ["b"], value_floats=W["b"].tolist(), name="bias"), node("Conv", ["x", "w", "b"])]
    graph = held_against_onnxruntime(model_of(nodes, X, opset=13), (2, 3, 9, 7))
    assert graph.source.replaced == {"w": ("constant", "w", "raw_data"), "b": ("constant", "b", "value_floats")}
    np.testing.assert_array_equal(graph.weights["w"], W["w"])


def test_weights_through_views():
    nodes = [node("Transpose", ["w"], ["t"], perm=[1, 0]), node("Reshape", ["t", "s"], ["r"]),
             node("Identity", ["r"], ["i"]), node("MatMul", ["x", "i"])]
    graph = held_against_onnxruntime(model_of(nodes, ("N", 6), {"w": numbers(4, 6), "s": np.array([6, 4])}), (2, 6))
    ref = graph.nodes[0].weights["weight"]
    assert (ref.name, ref.view) == ("w", (("transpose", (1, 0)), ("reshape", (6, 4))))
    assert set(graph.weights) == {"w"} and graph.weights["w"].shape == (4, 6)


def test_weights_that_are_computed_are_folded():
    nodes = [node("Mul", ["w", "k"], ["scaled"]), node("Conv", ["x", "scaled", "b"])]
    graph = held_against_onnxruntime(model_of(nodes, X, {**W, "k": np.float32(2).reshape(())}), (2, 3, 9, 7))
    assert graph.source.replaced["scaled"] == ("folded", "scaled")
    np.testing.assert_array_equal(graph.weights["scaled"], W["w"] * 2)


@pytest.mark.parametrize("per_channel", [False, True])
def test_dequantized_weights_are_folded(per_channel):
    scale = np.abs(numbers(4)) if per_channel else np.float32(0.02).reshape(())
    weights = {"q": np.random.default_rng(0).integers(-127, 127, (4, 3, 3, 3)).astype(np.int8), "scale": scale}
    attributes = {"axis": 0} if per_channel else {}
    nodes = [node("DequantizeLinear", ["q", "scale"], ["w"], **attributes), node("Conv", ["x", "w"])]
    graph = held_against_onnxruntime(model_of(nodes, X, weights, 13), (2, 3, 9, 7))
    assert graph.source.replaced == {"w": ("dequantize", "w")} and graph.weights["w"].dtype == np.float32


@pytest.mark.parametrize("shape", [(4,), (1, 4)])
def test_matmul_and_add_become_linear(shape):
    nodes = [node("MatMul", ["x", "m"], ["p"], name="product"), node("Add", ["c", "p"], name="sum")]
    graph = held_against_onnxruntime(model_of(nodes, ("N", 5), {"m": numbers(5, 4), "c": numbers(*shape)}), (2, 5))
    assert [(one.op, one.name, one.outputs) for one in graph.nodes] == [("Linear", "product", ("y",))]
    assert graph.weights["c"].shape == shape


@pytest.mark.parametrize("shape", [(4, 1, 1), (1, 4, 1, 1)])
def test_conv_and_add_become_one(shape):
    nodes = [node("Conv", ["x", "w"], ["p"], name="product"), node("Add", ["p", "c"], name="sum")]
    graph = held_against_onnxruntime(model_of(nodes, X, {"w": W["w"], "c": numbers(*shape)}), (2, 3, 9, 7))
    assert [(one.op, one.name, one.outputs) for one in graph.nodes] == [("Conv2d", "product", ("y",))]


@pytest.mark.parametrize("shape", [(5,), (1, 1, 5), (7, 1), (4, 7, 5)])
def test_an_add_that_is_no_bias_stays(shape):
    nodes = [node("Conv", ["x", "w"], ["p"]), node("Add", ["p", "c"])]
    graph = held_against_onnxruntime(model_of(nodes, X, {"w": W["w"], "c": numbers(*shape)}), (2, 3, 9, 7))
    assert [one.op for one in graph.nodes] == ["Conv2d", "Add"]


def test_a_product_that_is_read_twice_keeps_its_own_result():
    nodes = [node("MatMul", ["x", "m"], ["p"]), node("Add", ["p", "c"], ["q"]), node("Add", ["q", "p"], name="last")]
    graph = held_against_onnxruntime(model_of(nodes, ("N", 5), {"m": numbers(5, 4), "c": numbers(4)}), (2, 5))
    assert [one.op for one in graph.nodes] == ["Linear", "Add", "Add"]


FLATTENING = [
    node("Shape", ["x"], ["s"]), node("Gather", ["s", "zero"], ["n"], axis=0),
    node("Unsqueeze", ["n"], ["u"], axes=[0]),
    node("Concat", ["u", "rest"], ["target"], axis=0), node("Reshape", ["x", "target"])]


@pytest.mark.parametrize("shape", [X, (1, 3, 9, 7), ("N", 3, "H", "W")])
def test_shape_arithmetic_with_the_batch(shape):
    weights = {"zero": np.array(0), "rest": np.array([-1])}
    graph = load_onnx(model_of(FLATTENING, shape, weights, 11))
    assert [one.op for one in graph.nodes] == ["Reshape"] and not graph.weights
    assert graph.nodes[0].attrs["shape"] == ((189,) if "H" not in shape else (-1,))


def test_shape_arithmetic_over_all_sizes():
    """N, C * H, W from Shape, Slice, Mul, Cast and Concat."""
    nodes = [node("Shape", ["x"], ["s"]), node("Cast", ["s"], ["f"], to=TensorProto.FLOAT, name="cast"),
             node("Cast", ["f"], ["i"], to=TensorProto.INT64, name="back"), node("Slice", ["i", "zero", "one"], ["n"]),
             node("Slice", ["i", "one", "two"], ["c"], name="c"), node("Slice", ["i", "two", "three"], ["h"], name="h"),
             node("Slice", ["i", "three", "four"], ["w"], name="w"), node("Mul", ["c", "h"], ["ch"]),
             node("Concat", ["n", "ch", "w"], ["t"], axis=0), node("Reshape", ["x", "t"])]
    weights = {name: np.array([n]) for n, name in enumerate(("zero", "one", "two", "three", "four"))}
    graph = held_against_onnxruntime(model_of(nodes, X, weights), (2, 3, 9, 7))
    assert graph.nodes[0].attrs["shape"] == (27, 7)
    opened = load_onnx(model_of(nodes, ("N", 3, "H", 7), weights))
    assert opened.nodes[0].attrs["shape"] == (-1, 7)
    assert evaluate(opened, {"x": numbers(2, 3, 9, 7)})["y"].shape == (2, 27, 7)


def test_a_fixed_batch_is_free_inside():
    nodes = [node("Conv", ["x", "w"], ["p"]), node("Reshape", ["p", "s"])]
    graph = load_onnx(model_of(nodes, (1, 3, 9, 7), {"w": W["w"], "s": np.array([1, 140])}))
    assert graph.nodes[-1].attrs["shape"] == (140,)
    assert evaluate(graph, {"x": numbers(3, 3, 9, 7)})["y"].shape == (3, 140)
    eight = load_onnx(model_of(nodes, (8, 3, 9, 7), {"w": W["w"], "s": np.array([8, -1])}))
    assert eight.nodes[-1].attrs["shape"] == (140,)


def test_open_sizes_are_copied_or_given():
    nodes = [node("Reshape", ["x", "s"], ["r"]), node("Relu", ["r"])]
    graph = load_onnx(model_of(nodes, ("N", 4, "H", "W"), {"s": np.array([0, 2, 2, -1])}))
    assert graph.nodes[0].attrs["shape"] == (2, 2, -1)
    kept = load_onnx(model_of(nodes, ("N", 4, "H", "W"), {"s": np.array([0, 4, 0, -1])}))
    assert kept.nodes[0].attrs["shape"] == (4, 0, -1)
    given = load_onnx(model_of(nodes, ("N", 4, "H", "W"), {"s": np.array([0, 4, 0, -1])}), {"x": (4, 5, 6)})
    assert given.nodes[0].attrs["shape"] == (4, 5, 6) and given.inputs[0].shape == (4, 5, 6)
    with pytest.raises(CompileError, match=r'input_shapes\["x"\] is \(4, 5\); the model says \(4, None, None\)'):
        load_onnx(model_of(nodes, ("N", 4, "H", "W"), {"s": np.array([0, 4, 0, -1])}), {"x": (4, 5)})


def test_names_are_made_where_the_model_has_none_or_repeats_them():
    nodes = [helper.make_node("Relu", ["x"], ["a"]), helper.make_node("Tanh", ["a"], ["b"], name="same"),
             helper.make_node("Relu", ["b"], ["y"], name="same")]
    assert [one.name for one in load_onnx(model_of(nodes, X)).nodes] == ["a", "same", "same_2"]


def test_nodes_out_of_order_and_dead_ones():
    nodes = [node("Tanh", ["a"], ["y"]), node("Relu", ["x"], ["a"]), node("Resize", ["x"], ["unused"])]
    graph = load_onnx(model_of(nodes, X))
    assert [one.op for one in graph.nodes] == ["Relu", "Tanh"]


def test_the_last_of_several_opset_entries_counts():
    model = model_of([node("Softmax", ["x"])], ("N", 2, 3), opset=11)
    model.opset_import.append(helper.make_opsetid("", 13))
    graph = held_against_onnxruntime(model, (2, 2, 3))
    assert graph.nodes[0].attrs == {"axis": 2, "flatten": False}


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_the_dtype_of_weights_is_kept(dtype):
    model = model_of([node("Conv", ["x", "w"])], X, {"w": W["w"].astype(dtype)},
                     dtype=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))
    graph = load_onnx(model)
    assert graph.weights["w"].dtype == dtype and graph.inputs[0].dtype == np.dtype(dtype).name


def test_models_of_the_corpus(corpus):
    for name in ("mlperf_ic_resnet8", "mlperf_kws_dscnn", "mnist8_cntk"):
        folder = corpus / "models" / name
        graph = load_onnx(folder / "model.onnx")
        for x, expected in recorded(folder):
            found = evaluate(graph, {graph.inputs[0].name: x})[graph.outputs[0]]
            assert relative(found, expected) < 1e-4, name
