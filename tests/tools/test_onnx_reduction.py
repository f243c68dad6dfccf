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


def test_what_computes_with_places_is_refused():
    nodes = [node("ArgMax", ["x"], ["i"], axis=1), node("Cast", ["i"], to=TensorProto.FLOAT)]
    with pytest.raises(mc.UnsupportedError, match='it computes with the int64 tensor "i"'):
        mc.load_onnx(model_of(nodes, X, opset=13))
