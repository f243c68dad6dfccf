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
