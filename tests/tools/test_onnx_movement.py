"""Importing operators that put parts of tensors elsewhere, against ONNX Runtime; and padding merged into windows."""
import math

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import microcnn as mc
from microcnn import load_onnx
from tests.onnx_models import model_of, node, numbers, onnxruntime_outputs

X = ("N", 3, 4, 6)


def integers(*values):
    return np.array(values, np.int64)


def same(model, shape, samples=2):
    """The graph, after comparing what it gives with what ONNX Runtime gives."""
    graph = load_onnx(model)
    x = numbers(samples, *shape)
    found = graph.compile(batch=samples).predict(x)
    found = found if isinstance(found, dict) else {graph.outputs[0]: found}
    for name, expected in onnxruntime_outputs(model, {"x": x}).items():
        assert found[name].shape == expected.shape
        # to ONNX Runtime the maximum of nothing but -inf is the lowest number
        lowest = np.finfo(np.float32).min
        np.testing.assert_allclose(np.maximum(found[name], lowest), np.maximum(expected, lowest), rtol=1e-5, atol=1e-6)
    return graph


def moved(graph):
    return [one.op for one in graph.nodes]


@pytest.mark.parametrize("opset, nodes, weights, ops", [
    (9, [node("Slice", ["x"], axes=[2, 3], starts=[1, -5], ends=[2**31, -1])], {}, ["Slice"]),
    (9, [node("Slice", ["x"], starts=[0, 1], ends=[2**31 - 1, 3])], {}, ["Slice"]),
    (10, [node("Slice", ["x", "s", "e", "a", "t"])], {"s": integers(-1, 5), "e": integers(-2**62, 0), "a": integers(1, -1),
                                                     "t": integers(-1, -2)}, ["Slice"]),
    (13, [node("Slice", ["x", "s", "e", "a"])], {"s": integers(1), "e": integers(2), "a": integers(2)}, ["Slice"]),
    (9, [node("Pad", ["x"], pads=[0, 0, 1, 2, 0, 1, 0, 1], value=1.5)], {}, ["Pad"]),
    (13, [node("Pad", ["x", "p"], mode="edge")], {"p": integers(0, 0, 1, 2, 0, 1, 0, 1)}, ["Pad"]),
    (17, [node("Pad", ["x", "p", "v"])], {"p": integers(0, 1, -1, 0, 0, 0, 2, -2), "v": np.float32([-2])}, ["Pad"]),
    (18, [node("Pad", ["x", "p", "", "a"], mode="reflect")], {"p": integers(1, 2, 3, 0), "a": integers(3, -2)}, ["Pad"]),
    (13, [node("Tile", ["x", "r"])], {"r": integers(1, 2, 3, 2)}, ["Tile"] * 3),
    (13, [node("Tile", ["x", "r"])], {"r": integers(1, 1, 2, 2)}, ["Tile"]),
    (13, [node("Gather", ["x", "i"], axis=1)], {"i": np.array(1)}, ["Slice", "Reshape"]),
    (13, [node("Gather", ["x", "i"], axis=-1)], {"i": integers(5, 3, 1)}, ["Slice"]),
    (13, [node("Gather", ["x", "i"], axis=-1)], {"i": integers(-3, -2, -1)}, ["Slice"]),
    (13, [node("Gather", ["x", "i"], axis=2)], {"i": integers(2, 1, 0)}, ["Slice"]),
    (13, [node("Gather", ["x", "i"], axis=2)], {"i": np.array([[0, 3], [3, -1]])}, ["Gather", "Reshape"]),
    (13, [node("Gather", ["x", "i"], axis=2)], {"i": integers(-1, 0)}, ["Gather"]),
    (13, [node("Slice", ["x", "s", "e", "a"], ["h"]), node("Expand", ["h", "n"])],
     {"s": integers(0), "e": integers(1), "a": integers(2), "n": integers(5, 1)}, ["Slice", "Expand"]),
    (13, [node("DepthToSpace", ["x"], ["d"], blocksize=1), node("SpaceToDepth", ["d"], blocksize=2)], {},
     ["DepthToSpace", "SpaceToDepth"]),
    (13, [node("Cast", ["x"], ["d"], to=TensorProto.DOUBLE, name="up"),
          node("Cast", ["d"], ["f"], to=TensorProto.FLOAT, name="down"),
          node("Relu", ["f"])], {}, ["Relu"]),
    (13, [node("Relu", ["x"], ["r"]), node("Concat", ["x", "r", "x"], axis=-3)], {}, ["Relu", "Concat"]),
    (13, [node("Shape", ["x"], ["n"]), node("Expand", ["x", "n"])], {}, ["Expand"]),
])
def test_forms(opset, nodes, weights, ops):
    assert moved(same(model_of(nodes, X, weights, opset), X[1:])) == ops


@pytest.mark.parametrize("opset, attributes, sizes, parts", [
    (11, {"axis": 3}, None, 3), (11, {"axis": -1, "split": [1, 3, 2]}, None, 3), (13, {"axis": 2}, (1, 4), 2),
    (17, {"axis": 1}, None, 3), (18, {"axis": 3, "num_outputs": 2}, None, 2), (18, {"axis": 2, "num_outputs": 3}, None, 3)])
def test_split(opset, attributes, sizes, parts):
    names = [f"y{i}" for i in range(parts)]
    shape = ("N", 3, 5, 6)
    made = node("Split", ["x", "s"] if sizes else ["x"], names, **attributes)
    graph = helper.make_graph([made], "split", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
                              [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names],
                              [numpy_helper.from_array(integers(*sizes), "s")] if sizes else [])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    assert moved(same(onnx.shape_inference.infer_shapes(model), shape[1:])) == ["Slice"] * parts


def window(operator, **attributes):
    inputs = ["p", "w"] if operator == "Conv" else ["p"]
    return node(operator, inputs, **attributes)


FRAME = [0, 0, 1, 0, 0, 0, 1, 2]


@pytest.mark.parametrize("made, value, merged", [
    (window("Conv"), 0.0, (1, 0, 1, 2)), (window("Conv", pads=[0, 1, 1, 0]), 0.0, (1, 1, 2, 2)), (window("Conv"), 0.5, None),
    (window("Conv", auto_pad="SAME_UPPER"), 0.0, (2, 1, 2, 3)),
    (window("MaxPool", kernel_shape=[3, 3]), -math.inf, (1, 0, 1, 2)), (window("MaxPool", kernel_shape=[3, 3]), 0.0, None),
    (window("MaxPool", kernel_shape=[2, 2]), -math.inf, None),
    (window("MaxPool", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1), -math.inf, None),
    (window("AveragePool", kernel_shape=[3, 3]), 0.0, (1, 0, 1, 2)),
    (window("AveragePool", kernel_shape=[4, 4], pads=[1, 1, 1, 1], count_include_pad=1), 0.0, (2, 1, 2, 3)),
    (window("AveragePool", kernel_shape=[3, 3], pads=[1, 1, 1, 1]), 0.0, None),
])
def test_padding_before_a_window(made, value, merged):
    nodes = [node("Pad", ["x", "pads", "value"], ["p"]), made]
    weights = {"pads": integers(*FRAME), "value": np.float32(value), "w": numbers(2, 3, 3, 3)}
    if made.op_type != "Conv":
        del weights["w"]
    graph = same(model_of(nodes, X, weights, 13), X[1:])
    assert (moved(graph)[0] == "Pad") == (merged is None)
    assert merged is None or graph.nodes[0].attrs["pads"] == merged


def test_padding_that_others_read_stays():
    nodes = [node("Pad", ["x", "pads"], ["p"]), node("MaxPool", ["p"], ["m"], kernel_shape=[1, 1]),
             node("Conv", ["p", "w"], ["c"]), node("Add", ["m", "c"])]
    model = model_of(nodes, X, {"pads": integers(*FRAME), "w": numbers(3, 3, 1, 1)}, 13)
    assert moved(same(model, X[1:]))[0] == "Pad"


@pytest.mark.parametrize("made, weights, text", [
    (node("Slice", ["x", "s", "e", "a"]), {"s": integers(1), "e": integers(2), "a": integers(0)}, "axis 0 is the batch"),
    (node("Slice", ["x", "s", "e", "a"]), {"s": integers(2), "e": integers(2), "a": integers(1)}, r"\(N, 0, 4, 6\) is empty"),
    (node("Slice", ["x", "s", "e", "a", "t"]), {"s": integers(0), "e": integers(2), "a": integers(1), "t": integers(0)},
     "a step is 0"),
    (node("Slice", ["x", "s", "e", "a"]), {"s": integers(0, 1), "e": integers(2, 3), "a": integers(1, -3)}, "name one twice"),
    (node("Concat", ["x", "x"], axis=0), {}, "axis 0 is the batch"),
    (node("Concat", ["x", "c"], axis=1), {"c": numbers(1, 3, 4, 6)}, "is a constant; expected a tensor"),
    (node("Pad", ["x", "p"]), {"p": integers(1, 0, 0, 0, 0, 0, 0, 0)}, "add to the batch"),
    (node("Pad", ["x", "p"]), {"p": integers(0, 0, -4, 0, 0, 0, 0, 0)}, "crop away all of an axis"),
    (node("Tile", ["x", "r"]), {"r": integers(2, 1, 1, 1)}, "repeat the batch"),
    (node("Expand", ["x", "r"]), {"r": integers(2, 1, 1, 1, 1)}, "has more axes"),
    (node("Gather", ["x", "i"], axis=1), {"i": integers(0, 3)}, "leave the 3 numbers of axis 1"),
    (node("Cast", ["x"], to=TensorProto.BOOL), {}, "into bool; only float16"),
    (node("SpaceToDepth", ["x"], blocksize=3), {}, "blocksize 3 and mode 'DCR' do not fit"),
])
def test_what_is_refused(made, weights, text):
    model = model_of([], X, weights, 13)
    model.graph.node.append(made)
    with pytest.raises(mc.MicroCNNError, match=text):
        load_onnx(model)


def test_sizes_that_are_open_until_compile():
    nodes = [node("Slice", ["x", "s", "e", "a", "t"], ["h"]), node("Concat", ["h", "h"], ["c"], axis=3),
             node("Pad", ["c", "p"], mode="reflect")]
    weights = {"s": integers(-1), "e": integers(-2**62), "a": integers(3), "t": integers(-2),
               "p": integers(0, 0, 1, 1, 0, 0, 1, 1)}
    graph = load_onnx(model_of(nodes, ("N", 3, "H", "W"), weights, 13))
    x = numbers(2, 3, 4, 7)
    y = graph.compile(batch=2, input_shapes={"x": (3, 4, 7)}).predict(x)
    half = x[..., ::-2]
    np.testing.assert_array_equal(y, np.pad(np.concatenate([half, half], 3), ((0, 0), (0, 0), (1, 1), (1, 1)), "reflect"))
