"""Quantized models: QuantizeLinear and DequantizeLinear against ONNX Runtime and onnx's evaluator, and the corpus."""
from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import microcnn as mc
from microcnn.tools.onnx_export import export_onnx
from tests.onnx_models import node, numbers, onnxruntime_outputs, recorded

TYPES = {"int8": TensorProto.INT8, "uint8": TensorProto.UINT8, "int16": TensorProto.INT16, "uint16": TensorProto.UINT16,
         "int32": TensorProto.INT32, "float32": TensorProto.FLOAT}


def model(nodes, x, y, weights, opset=21):
    """A model of one input and one output; x and y: (type, shape)."""
    def info(name, kind, shape):
        return helper.make_tensor_value_info(name, TYPES[kind], shape)
    graph = helper.make_graph(nodes, "tiny", [info("x", *x)], [info("y", *y)],
                              [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def halves(*shape):
    """Numbers that fall between two steps of a quarter, on steps, and far outside."""
    rng = np.random.default_rng(5)
    return rng.permutation(np.arange(np.prod(shape)) * 0.125 - np.prod(shape) / 16).astype(np.float32).reshape(shape)


def parameters(dtype, count=None):
    """A scale of a quarter (or several of that order) and a zero point in the middle of the upper half."""
    middle = int(np.iinfo(dtype).max) // 4 * 3
    if count is None:
        return {"scale": np.float32(0.25), "zero": np.asarray(middle, dtype)}
    return {"scale": (0.25 * 2.0 ** (np.arange(count) % 3)).astype(np.float32),
            "zero": (middle - np.arange(count)).astype(dtype)}


@pytest.mark.parametrize("opset", [10, 13, 19, 21, 23])
@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16"])
def test_one_scale_for_all(dtype, opset):
    if opset < 21 and "16" in dtype:
        pytest.skip("younger types")
    tiny = model([node("QuantizeLinear", ["x", "scale", "zero"])], ("float32", ["N", 3, 40]), (dtype, ["N", 3, 40]),
                 parameters(dtype), opset)
    x = halves(20, 3, 40)
    y = mc.load_onnx(tiny).compile(batch=8).predict(x)
    assert y.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(y, onnxruntime_outputs(tiny, {"x": x})["y"])
    np.testing.assert_array_equal(y, ReferenceEvaluator(tiny).run(None, {"x": x})[0])
    assert dtype not in ("int8", "uint8") or {y.min(), y.max()} == {np.iinfo(dtype).min, np.iinfo(dtype).max}


@pytest.mark.parametrize("axis, shape", [(1, (3, 5, 7)), (-1, (3, 5, 7)), (2, (17, 3, 1)), (1, (33,)), (3, (2, 1, 40))])
def test_a_scale_for_each_place_of_an_axis(axis, shape):
    count = shape[axis - 1] if axis > 0 else shape[axis]
    nodes = [node("QuantizeLinear", ["x", "scale", "zero"], ["q"], axis=axis),
             node("DequantizeLinear", ["q", "scale", "zero"], axis=axis, name="back")]
    tiny = model(nodes, ("float32", ["N", *shape]), ("float32", ["N", *shape]), parameters("uint8", count), 13)
    x = halves(2, *shape)
    for batch in 1, 2:
        y = mc.load_onnx(tiny).compile(batch=batch).predict(x)
        np.testing.assert_array_equal(y, onnxruntime_outputs(tiny, {"x": x})["y"])


def quantized_convolution(dtype="int8", channels_last=False):
    """uint8 images in, a quantized convolution by channels, max pooling of integers, integers out."""
    weights = {"w": np.random.default_rng(1).integers(-100, 100, (4, 3, 3, 3)).astype(np.int8),
               "w.scale": np.float32([0.01, 0.02, 0.03, 0.04]), "w.zero": np.zeros(4, np.int8),
               "b": np.int32([100, -200, 300, 0]), "b.scale": np.float32(0.001), "s": np.float32(0.02),
               "z": np.asarray(7, dtype), "in.scale": np.float32(1 / 64), "in.zero": np.uint8(128),
               "axes": np.int64([-1])}
    nodes = [node("DequantizeLinear", ["x", "in.scale", "in.zero"], ["real"], name="images"),
             node("DequantizeLinear", ["w", "w.scale", "w.zero"], ["weight"], axis=0, name="weights"),
             node("DequantizeLinear", ["b", "b.scale"], ["bias"], name="biases"),
             node("Conv", ["real", "weight", "bias"], ["c"]), node("Relu", ["c"], ["r"]),
             node("QuantizeLinear", ["r", "s", "z"], ["q"], name="quantize"),
             node("MaxPool", ["q"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
             node("DequantizeLinear", ["p", "s", "z"], ["d"], name="back"),
             node("QuantizeLinear", ["d", "s", "z"], name="last")]
    shape = ["N", 3, 8, 10]
    if channels_last:
        nodes.insert(0, node("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2]))
        nodes[1].input[0] = "t"
        shape = ["N", 8, 10, 3]
    return model(nodes, ("uint8", shape), (dtype, ["N", 4, 3, 4]), weights, 13)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_a_quantized_convolution(dtype, channels_last, tmp_path):
    tiny = quantized_convolution(dtype, channels_last)
    graph = mc.load_onnx(tiny)
    assert graph.inputs[0].dtype == "uint8" and graph.types()["y"] == dtype
    x = np.random.default_rng(0).integers(0, 256, (5, *graph.inputs[0].shape), np.uint8)
    net = graph.compile(batch=2)
    y = net.predict(x)
    assert y.dtype == np.dtype(dtype) and y.shape == (5, 4, 3, 4)
    expected = onnxruntime_outputs(tiny, {"x": x})["y"]
    assert np.abs(y.astype(int) - expected).max() <= 1 and (y == expected).mean() > 0.98
    out = np.empty_like(y)
    assert net.predict(x.astype(np.float32), out=out) is out
    np.testing.assert_array_equal(out, y)
    np.testing.assert_array_equal(onnxruntime_outputs(export_onnx(net), {"x": x})["y"], expected)
    assert export_onnx(net) == tiny
    net.save(tmp_path / "q.mcnn")
    np.testing.assert_array_equal(mc.load(tmp_path / "q.mcnn").compile(batch=5).predict(x), y)
    assert [info.layer for info in net.rows("predict")].count("quantize") == 1


def test_there_and_back_is_one_step():
    steps = {"s": np.float32(0.25), "z": np.uint8(9), "t": np.float32(0.5)}
    nodes = [node("QuantizeLinear", ["x", "s", "z"], ["q"], name="quantize"),
             *(node("DequantizeLinear", ["q", "s", "z"], [one], name=one) for one in "abc"), node("Add", ["a", "b"], ["d"]),
             node("Mul", ["c", "d"], ["e"]), node("QuantizeLinear", ["e", "t", "z"], ["r"], name="again"),
             node("DequantizeLinear", ["r", "s", "z"], name="otherwise")]
    tiny = model(nodes, ("float32", ["N", 3, 40]), ("float32", ["N", 3, 40]), steps)
    net = mc.load_onnx(tiny).compile(batch=2)
    assert [one.op for one in net.graph.nodes].count("DequantizeLinear") == 2
    x = halves(2, 3, 40)
    kinds = [info.layer for info in net.rows("predict") if info.kernel == "quantize.linear"]
    assert kinds == ["quantize", "again", "otherwise"]
    np.testing.assert_array_equal(net.predict(x), onnxruntime_outputs(tiny, {"x": x})["y"])


def test_integers_in_are_checked():
    net = mc.load_onnx(quantized_convolution()).compile()
    x = np.zeros((1, 3, 8, 10))
    for wrong, text in ((x + 256, "from 256 to 256; the model declares uint8: 0 to 255"), (x - 1, "from -1 to -1"),
                        (x + 0.5, "no integers; the model declares uint8"), (x + np.nan, "no integers")):
        with pytest.raises(mc.DataError, match=f'input "x" holds numbers.*{text}'):
            net.predict(wrong)
    with pytest.raises(mc.DataError, match="contiguous int8 array"):
        net.predict(x, out=np.zeros((1, 4, 3, 4), np.float32))


def test_training_is_refused_by_name():
    graph = mc.load_onnx(quantized_convolution())
    with pytest.raises(mc.CompileError, match='no gradient passes QuantizeLinear "quantize".*what trains needs one there'):
        graph.compile(train="all", loss="mse", optimizer=mc.SGD(lr=0.1))
    with pytest.raises(mc.CompileError, match='"images", whose numbers are integers, and forward and backward need'):
        graph.compile().forward(np.zeros((1, 3, 8, 10), np.uint8))


@pytest.mark.parametrize("kind, attributes, weights, text", [
    ("QuantizeLinear", {"output_dtype": TensorProto.INT4}, {"s": np.float32(1)}, "it makes int4 numbers; only int8, uint8"),
    ("QuantizeLinear", {"output_dtype": TensorProto.FLOAT8E4M3FN}, {"s": np.float32(1)}, "it makes float8_e4m3fn numbers"),
    ("QuantizeLinear", {"block_size": 2, "axis": 1}, {"s": np.ones((2, 2), np.float32)}, "block_size is 2; only one scale"),
    ("QuantizeLinear", {"axis": 1}, {"s": np.ones(3, np.float32)}, "3 numbers; axis 1 has 4 places"),
    ("QuantizeLinear", {"axis": 0}, {"s": np.ones(2, np.float32)}, "axis 0 is the batch"),
    ("DequantizeLinear", {}, {"s": np.float32(1)}, "it reads float32 numbers; only int8, uint8")])
def test_refusals(kind, attributes, weights, text):
    tiny = model([node(kind, ["x", "s"], **attributes)], ("float32", ["N", 4]), ("float32", ["N", 4]), weights)
    with pytest.raises(mc.UnsupportedError, match=f'{kind} "the_{kind}".*{text}'):
        mc.load_onnx(tiny)


def test_a_quantized_layer_built_in_python():
    from microcnn.graph import Graph, Input, Node
    quantize = {"axis": 1, "scale": (0.5, 0.25), "zero_point": (3, 4), "dtype": "int8"}
    nodes = [Node("QuantizeLinear", "q", ("x",), ("i",), quantize),
             Node("DequantizeLinear", "d", ("i",), ("y",), {"axis": 0, "scale": (0.5,), "zero_point": (1,),
                                                            "dtype": "float32"})]
    graph = Graph([Input("x", (2, 3))], ["y"], nodes, {})
    x = numbers(4, 2, 3) * 10
    expected = onnxruntime_outputs(export_onnx(graph), {"x": x})["y"]
    np.testing.assert_array_equal(graph.compile(batch=4).predict(x), expected)
    quantize["zero_point"] = (3,)
    with pytest.raises(mc.ModelError, match='"q": 2 scales and 1 zero points for 2 places of axis 1'):
        graph.compile()
    quantize["dtype"] = "int32"
    with pytest.raises(mc.ModelError, match="dtype is 'int32'; expected one of int8, uint8, int16, uint16"):
        graph.compile()


@pytest.mark.parametrize("name", ["mlperf_ic_resnet8_int8", "mlperf_kws_dscnn_int8"])
def test_quantized_models_of_the_corpus(corpus, name):
    path = corpus / "models" / name / "model.onnx"
    net = mc.load_onnx(path).compile(batch=4)
    for x, expected in recorded(path.parent):
        y = net.predict(x)
        assert y.dtype == expected.dtype == np.int8
        np.testing.assert_array_equal(y.argmax(1), expected.argmax(1))
        assert np.abs(y.astype(int) - expected).mean() < 0.5
        theirs = onnxruntime_outputs(export_onnx(net), {net.graph.inputs[0].name: x})[net.graph.outputs[0]]
        assert np.abs(y.astype(int) - theirs).max() <= 2
    assert export_onnx(net) == onnx.load(path)
