"""Normalisations: further results, models without a batch, and what is refused."""
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import microcnn as mc
from microcnn.tools import onnx_backend
from tests.onnx_models import model_of, node, numbers
from tests.tools.test_onnx_import import held_against_onnxruntime


@pytest.mark.parametrize("axis", [1, 2, -1])
def test_mean_and_inverse_deviation_are_results_too(axis):
    shape = (6, 9, 7)[axis % 4 - 1:]
    one = node("LayerNormalization", ["x", "s"], ["y", "m", "d"], axis=axis)
    model = model_of([one], ("N", 6, 9, 7), {"s": numbers(*shape)})
    for name in ("m", "d"):
        model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    graph = held_against_onnxruntime(model, (2, 6, 9, 7))
    assert graph.outputs == ["y", "m", "d"]
    found = graph.compile(batch=2).predict(numbers(2, 6, 9, 7, seed=5))
    expected = onnx.reference.ReferenceEvaluator(model).run(None, {"x": numbers(2, 6, 9, 7, seed=5)})
    for name, array in zip(graph.outputs, expected, strict=True):
        np.testing.assert_allclose(found[name], array, rtol=1e-4, atol=1e-5)


def test_results_that_nobody_reads_cost_nothing():
    model = model_of([node("LayerNormalization", ["x", "s"], ["y", "m", "d"])], ("N", 6, 7), {"s": numbers(7)})
    assert [one.op for one in mc.load_onnx(model).nodes] == ["LayerNorm"]


def test_without_a_batch(rng):
    x, scale = rng.standard_normal((3, 4)).astype(np.float32), np.ones((3, 4), np.float32)
    layer = helper.make_node("LayerNormalization", ["x", "s"], ["y"], axis=0)
    y, = onnx_backend.run_node(layer, [x, scale])
    np.testing.assert_allclose(y, (x - x.mean()) / x.std(), atol=1e-3)


@pytest.mark.parametrize("one, shape, weights, text", [
    (node("LayerNormalization", ["x", "s"], axis=0), ("N", 4), {"s": numbers(4)}, "axis 0 is the batch"),
    (node("LayerNormalization", ["x", "s"], stash_type=10), ("N", 4), {"s": numbers(4)}, "stash_type is 10"),
    (node("LayerNormalization", ["x", "s"]), ("N", 4), {"s": numbers(3)}, "do not fit each other"),
    (node("MeanVarianceNormalization", ["x"]), ("N", 2, 3, 4), {}, "axis 0 is the batch"),
    (node("InstanceNormalization", ["x", "s", "s"]), ("N", 4), {"s": numbers(4)}, "at least 3 are supported"),
    (node("InstanceNormalization", ["x", "s", "s"]), ("N", 4, 3), {"s": numbers(3)}, r"has the shape \(3,\); expected \(4\)"),
])
def test_refusals(one, shape, weights, text):
    with pytest.raises(mc.UnsupportedError, match=text):
        mc.load_onnx(model_of([one], shape, weights))


def parts(axes, eps=1e-5, first="x", opset=13):
    """The nodes that PyTorch writes for a layer norm before opset 17."""
    literals = [node("Constant", [], [name], value=onnx.numpy_helper.from_array(np.asarray(value, np.float32)), name=name)
                for name, value in (("two", 2.0), ("eps", eps))]
    return [*literals, node("ReduceMean", [first], ["mean"], axes=axes, name="mean"), node("Sub", [first, "mean"], ["d"]),
            node("Pow", ["d", "two"], ["p"]), node("ReduceMean", ["p"], ["v"], axes=axes, name="variance"),
            node("Add", ["v", "eps"], ["e"], name="shifted"), node("Sqrt", ["e"], ["r"])]


@pytest.mark.parametrize("more, weights, ops", [
    ([node("Div", ["d", "r"])], {}, ["LayerNorm"]),
    ([node("Div", ["d", "r"], ["n"]), node("Mul", ["n", "s"])], {"s": numbers(7)}, ["LayerNorm"]),
    ([node("Div", ["d", "r"], ["n"]), node("Mul", ["n", "s"], ["m"]), node("Add", ["m", "b"], name="bias")],
     {"s": numbers(7), "b": numbers(7, seed=1)}, ["LayerNorm"]),
    ([node("Div", ["d", "r"], ["n"]), node("Add", ["n", "b"], name="bias")], {"b": numbers(7)}, ["LayerNorm"]),
    ([node("Div", ["d", "r"], ["n"]), node("Mul", ["n", "s"])], {"s": numbers(6, 1)}, ["LayerNorm", "Mul"]),
    ([node("Div", ["d", "r"], ["n"]), node("Mul", ["n", "n"])], {}, ["LayerNorm", "Mul"]),
])
def test_the_parts_of_a_layer_norm_become_one(more, weights, ops):
    graph = held_against_onnxruntime(model_of(parts([-1]) + more, ("N", 6, 7), weights, 13), (2, 6, 7))
    assert [one.op for one in graph.nodes] == ops and graph.nodes[0].attrs["axis"] == 2
    assert set(graph.nodes[0].weights) == ({"scale"} if "s" in weights else set()) | ({"bias"} if "b" in weights else set()) \
        or ops[1:] == ["Mul"]


@pytest.mark.parametrize("axes, more", [
    ([1], [node("Div", ["d", "r"])]), ([-1], [node("Div", ["r", "d"])]),
    ([-1], [node("Div", ["d", "r"], ["n"]), node("Add", ["n", "v"], name="bias")]),
])
def test_what_is_no_layer_norm_stays(axes, more):
    graph = held_against_onnxruntime(model_of(parts(axes) + more, ("N", 6, 7), opset=13), (2, 6, 7))
    assert "LayerNorm" not in [one.op for one in graph.nodes]
