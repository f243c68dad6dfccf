"""Reductions and places: what import makes of them, and what it refuses."""
import numpy as np
import onnx
import pytest
from onnx import TensorProto

import microcnn as mc
from tests.onnx_models import model_of, node
from tests.tools.test_onnx_import import held_against_onnxruntime

X = ("N", 3, 5, 4)


@pytest.mark.parametrize("axes, keepdims, ops", [
    ([2, 3], 1, ["GlobalAvgPool2d"]), ([3, 2], 0, ["GlobalAvgPool2d", "Flatten"]),
    ([1, 2], 1, ["Transpose", "GlobalAvgPool2d", "Transpose"]), ([1], 1, ["ReduceMean"]), ([1, 3], 0, ["ReduceMean"]),
])
def test_a_mean_over_the_image_is_a_pooling(axes, keepdims, ops):
    mean = node("ReduceMean", ["x"], axes=axes, keepdims=keepdims)
    graph = held_against_onnxruntime(model_of([mean], X, opset=13), (2, 3, 5, 4))
    assert [one.op for one in graph.nodes] == ops


def test_no_axes_leave_the_tensor_as_it_is():
    graph = held_against_onnxruntime(model_of([node("ReduceSum", ["x"], noop_with_empty_axes=1)], X, opset=13), (2, 3, 5, 4))
    assert graph.nodes[0].attrs["axes"] == ()


@pytest.mark.parametrize("attributes", [{"axis": 1}, {"axis": -1, "keepdims": 0}, {"axis": 2, "select_last_index": 1}])
def test_places_as_outputs(attributes, tmp_path):
    model = model_of([node("ArgMax", ["x"], **attributes)], X, opset=13)
    graph = mc.load_onnx(model)
    x = np.random.default_rng(0).integers(0, 3, (2, 3, 5, 4)).astype(np.float32)
    y = graph.compile(batch=2).predict(x)
    expected, = onnx.reference.ReferenceEvaluator(model).run(None, {"x": x})
    assert y.dtype == np.int64
    np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("one, text", [
    (node("ReduceMax", ["x"]), "it reduces all axes, the batch among them"),
    (node("ReduceMax", ["x"], axes=[0]), "axis 0 is the batch"),
    (node("ReduceMax", ["x"], axes=[4]), "axis 4 is none of a tensor with 4 axes"),
    (node("ReduceMax", ["x"], axes=[1, -3]), "names an axis twice"),
    (node("ArgMax", ["x"]), "axis 0 is the batch"),
])
def test_refusals(one, text):
    with pytest.raises(mc.UnsupportedError, match=text):
        mc.load_onnx(model_of([one], X, opset=13))


@pytest.mark.parametrize("nodes, ops", [
    ([node("ArgMax", ["x"], ["i"], axis=1), node("Squeeze", ["i", "one"])], ["ArgMax", "Reshape"]),
    ([node("ArgMax", ["x"], ["i"], axis=1), node("Transpose", ["i"], ["t"], perm=[0, 2, 3, 1]), node("Identity", ["t"])],
     ["ArgMax", "Transpose"]),
    ([node("ArgMin", ["x"], ["i"], axis=1), node("Cast", ["i"], ["c"], to=TensorProto.INT32), node("Flatten", ["c"])],
     ["ArgMin", "Cast", "Flatten"]),
])
def test_places_are_carried_on(nodes, ops):
    model = model_of(nodes, X, {"one": np.array([1])}, opset=13)
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.INT32 if ops[0] == "ArgMin" else TensorProto.INT64
    graph = mc.load_onnx(model)
    assert [one.op for one in graph.nodes] == ops
    x = np.random.default_rng(0).normal(size=(2, 3, 5, 4)).astype(np.float32)
    expected, = onnx.reference.ReferenceEvaluator(model).run(None, {"x": x})
    y = graph.compile(batch=2).predict(x)
    assert y.dtype == (np.int32 if "Cast" in ops else np.int64)
    np.testing.assert_array_equal(y, expected)


def test_classes_beside_their_scores(tmp_path):
    """A network with scores and classes as outputs trains on the scores, and keeps both through its own file."""
    nodes = [node("MatMul", ["x", "w"], ["s"]), node("Softmax", ["s"], ["y"]), node("ArgMax", ["y"], ["i"], axis=1, keepdims=0)]
    weights = {"w": np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)}
    model = model_of(nodes[:2], ("N", 5), weights)
    model.graph.node.append(nodes[2])
    model.graph.output.append(onnx.helper.make_tensor_value_info("i", TensorProto.INT64, ["N"]))
    net = mc.load_onnx(model).compile(batch=4, train="all", loss={"y": "cross_entropy"}, optimizer=mc.SGD(lr=0.1))
    x = np.random.default_rng(1).normal(size=(7, 5)).astype(np.float32)
    first = net.train_step(x[:4], {"y": np.array([0, 1, 2, 0])})
    assert net.train_step(x[:4], {"y": np.array([0, 1, 2, 0])}) < first
    net.save(tmp_path / "n.mcnn")
    again = mc.load(tmp_path / "n.mcnn").compile(batch=3)
    for one in (net.predict(x), again.predict(x), net.forward(x[:4])):
        assert one["i"].dtype == np.int64 and one["y"].dtype == np.float32
        np.testing.assert_array_equal(one["i"], one["y"].argmax(1))


def test_places_become_numbers():
    nodes = [node("ArgMax", ["x"], ["i"], axis=1), node("Cast", ["i"], to=TensorProto.FLOAT)]
    model = model_of(nodes, X, opset=13)
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT
    x = np.random.default_rng(0).normal(size=(2, 3, 5, 4)).astype(np.float32)
    y = mc.load_onnx(model).compile(batch=2).predict(x)
    assert y.dtype == np.float32
    np.testing.assert_array_equal(y, x.argmax(1)[:, None])


def test_places_that_should_become_truths_are_refused():
    nodes = [node("ArgMax", ["x"], ["i"], axis=1), node("Cast", ["i"], to=TensorProto.BOOL)]
    with pytest.raises(mc.UnsupportedError, match="it turns int64 numbers into bool; only float16"):
        mc.load_onnx(model_of(nodes, X, opset=13))
