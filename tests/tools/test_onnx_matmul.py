"""Gemm and MatMul with everything that ONNX says of them."""
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import microcnn as mc
from microcnn.tools import onnx_backend
from tests.onnx_models import model_of, node, numbers
from tests.tools.test_onnx_import import held_against_onnxruntime


def whole(one, arrays, constants=()):
    """(found, expected) of a model of one node without a batch; the named inputs are initializers."""
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, array.shape) for name, array in arrays.items()
             if name not in constants]
    tensors = [onnx.numpy_helper.from_array(arrays[name], name) for name in constants]
    graph = helper.make_graph([one], "one", infos, [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    given = {name: array for name, array in arrays.items() if name not in constants}
    return onnx_backend.prepare(model).run(given)[0], onnx.reference.ReferenceEvaluator(model).run(None, given)[0]


@pytest.mark.parametrize("c", [None, (), (1,), (4,), (1, 4), (3, 1), (3, 4)])
@pytest.mark.parametrize("attributes, constants", [
    ({}, ()), ({"alpha": 0.5, "beta": 2.0}, ("b",)), ({"transA": 1, "transB": 1, "alpha": 2.0}, ()),
    ({"transA": 1, "beta": 0.25}, ("b", "c")), ({"transA": 1, "transB": 1, "beta": 0.0}, ("a",)),
    ({"transB": 1, "alpha": 0.5, "beta": 0.5}, ("b", "c"))])
def test_gemm(c, attributes, constants):
    arrays = {"a": numbers(5, 3) if attributes.get("transA") else numbers(3, 5),
              "b": numbers(4, 5) if attributes.get("transB") else numbers(5, 4)}
    if c is not None:
        arrays["c"] = numbers(*c)
    found, expected = whole(node("Gemm", list(arrays), **attributes), arrays, [name for name in constants if name in arrays])
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("constants", [(), ("a",), ("b",)])
@pytest.mark.parametrize("a, b", [
    ((3, 5), (5, 4)), ((5,), (5,)), ((5,), (5, 4)), ((3, 5), (5,)), ((2, 3, 5), (5, 4)), ((3, 5), (2, 5, 4)),
    ((2, 1, 3, 5), (3, 5, 4)), ((2, 3, 5), (2, 2, 5, 4)), ((5,), (2, 3, 5, 4)), ((2, 2, 3, 5), (5,)), ((3, 5), (1, 5, 4)),
    ((2, 1, 2, 3, 5), (1, 3, 1, 5, 4))])
def test_matmul(a, b, constants):
    arrays = {"a": numbers(*a), "b": numbers(*b, seed=1)}
    found, expected = whole(node("MatMul", ["a", "b"]), arrays, constants)
    assert found.shape == np.shape(expected)
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("nodes, shape, weights, ops", [
    ([node("MatMul", ["c", "x"])], ("N", 5, 4), {"c": numbers(3, 5)}, ["MatMul"]),
    ([node("MatMul", ["x", "c"])], ("N", 2, 3, 5), {"c": numbers(2, 5, 4)}, ["MatMul"]),
    ([node("MatMul", ["x", "c"])], ("N", 3, 5), {"c": numbers(5)}, ["Linear", "Reshape"]),
    ([node("MatMul", ["c", "x"])], ("N", 5, 3), {"c": numbers(5)}, ["MatMul", "Reshape"]),
    ([node("Gemm", ["x", "b", "c"], alpha=0.5, beta=2.0)], ("N", 5), {"b": numbers(5, 4), "c": numbers(4)},
     ["Linear", "Mul", "Add", "Mul"]),
    ([node("Gemm", ["x", "b", "c"], alpha=3.0, beta=3.0)], ("N", 5), {"b": numbers(5, 4), "c": numbers(1, 4)},
     ["Linear", "Mul"]),
    ([node("Transpose", ["x"], ["t"], perm=[0, 2, 1]), node("MatMul", ["x", "t"])], ("N", 3, 5), {}, ["Transpose", "MatMul"]),
])
def test_with_a_batch(nodes, shape, weights, ops):
    graph = held_against_onnxruntime(model_of(nodes, shape, weights), (2, *shape[1:]))
    assert [one.op for one in graph.nodes] == ops
    assert set(graph.weights) == set(weights)


@pytest.mark.parametrize("one, shape, weights, text", [
    (node("Gemm", ["x", "b"], transA=1), ("N", 5), {"b": numbers(5, 4)}, "transA is 1; the product would run along the batch"),
    (node("MatMul", ["x", "x"]), ("N", 5), {}, "the batch is an axis of its matrices"),
    (node("MatMul", ["c", "x"]), ("N", 5), {"c": numbers(3, 2)}, "the batch is an axis of its matrices"),
    (node("MatMul", ["c", "x"]), ("N", 5, 4), {"c": numbers(2, 3, 5)}, "runs along the batch"),
    (node("MatMul", ["x", "c"]), ("N", 3, 5), {"c": numbers(4, 4)}, "has 5 numbers along the last axis; the matrix expects 4"),
    (node("MatMul", ["x", "x"]), ("N", 2, 3, 5), {}, "has 5 numbers along the last axis; the matrix expects 3"),
])
def test_refusals(one, shape, weights, text):
    with pytest.raises(mc.UnsupportedError, match=text):
        mc.load_onnx(model_of([one], shape, weights))
