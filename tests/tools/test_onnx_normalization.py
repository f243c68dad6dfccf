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


def groups(scale, behind=True, constants=True):
    """The nodes that PyTorch writes for GroupNorm, up to the channels' own scale and bias."""
    values = {"one": np.float32(scale), "zero": np.zeros(2, np.float32)}
    nodes = [node("Constant", [], [name], value=onnx.numpy_helper.from_array(value), name=name)
             for name, value in values.items() if constants]
    nodes += [node("Reshape", ["x", "s"], ["g"])] if behind else [node("Relu", ["x"], ["g"])]
    nodes += [node("InstanceNormalization", ["g", "one", "zero"], ["n"]), node("Reshape", ["n", "back"], ["r"], name="back"),
              node("Mul", ["r", "w"], ["m"]), node("Add", ["m", "b"])]
    weights = {"s": np.array([0, 2, -1]), "back": np.array([-1, 6, 3, 5]), "w": numbers(6, 1, 1), "b": numbers(6, 1, 1)}
    if not behind:
        weights["back"] = np.array([0, 2, 3, 5])
        weights.update(w=numbers(2, 1, 1), b=numbers(2, 1, 1))
    return model_of(nodes, ("N", 6 if behind else 2, 3, 5), {**weights, **({} if constants else values)})


@pytest.mark.parametrize("arguments, channels, weights", [
    (([1, 1],), 6, {"w", "b"}), (([1, 2],), 6, {"one", "zero", "w", "b"}),
    (([1, 1], False), 2, {"one", "zero", "w", "b"}), (([1, 1], True, False), 6, {"one", "zero", "w", "b"}),
])
def test_ones_and_zeros_that_stand_for_no_scale_and_bias(arguments, channels, weights):
    """As in PyTorch, what trains of a GroupNorm is its scale and bias; anything else in that place is a weight."""
    graph = held_against_onnxruntime(groups(*arguments), (2, channels, 3, 5))
    net = graph.compile(batch=2, train="all", loss="mse", optimizer=mc.SGD(lr=0.1))
    assert set(graph.weights) == weights == set(net.parameters())


@pytest.mark.parametrize("axes, more", [
    ([1], [node("Div", ["d", "r"])]), ([-1], [node("Div", ["r", "d"])]),
    ([-1], [node("Div", ["d", "r"], ["n"]), node("Add", ["n", "v"], name="bias")]),
])
def test_what_is_no_layer_norm_stays(axes, more):
    graph = held_against_onnxruntime(model_of(parts(axes) + more, ("N", 6, 7), opset=13), (2, 6, 7))
    assert "LayerNorm" not in [one.op for one in graph.nodes]
