"""Nodes whose inputs are known at import, computed by onnx's own reference evaluator, one node at a time.

Only operators that are plain functions of their inputs, and only results of a size that the file itself justifies: a
file of a few bytes cannot make the importer fill the memory or run for long.
"""
from __future__ import annotations

import math
import warnings

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper
from onnx.reference import ReferenceEvaluator

from .onnx_tensor import to_array

# Results hold at most this many numbers, or as many as all of the file's own tensors together.
SMALL = 2**22

ELEMENTWISE = frozenset({
    "Abs", "Add", "And", "BitShift", "Cast", "CastLike", "Ceil", "Clip", "Cos", "Div", "Equal", "Erf", "Exp", "Floor",
    "Greater", "GreaterOrEqual", "Identity", "IsInf", "IsNaN", "Less", "LessOrEqual", "Log", "Max", "Mean", "Min",
    "Mod", "Mul", "Neg", "Not", "Or", "Pow", "Reciprocal", "Relu", "Round", "Sigmoid", "Sign", "Sin", "Sqrt", "Sub",
    "Sum", "Tanh", "Where", "Xor", "DequantizeLinear", "QuantizeLinear"})
SHAPING = frozenset({
    "Concat", "Flatten", "Gather", "GatherElements", "NonZero", "Reshape", "Shape", "Size", "Slice", "Split", "Squeeze",
    "Transpose", "Unsqueeze", "ArgMax", "ArgMin", "CumSum", "ReduceL1", "ReduceL2", "ReduceMax",
    "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare", "ScatterElements", "ScatterND"})
GROWING = frozenset({"ConstantOfShape", "Expand", "MatMul", "Gemm", "Pad", "Range", "Tile"})
# Operators that the evaluator has only from this opset on; their older forms mean the same.
EVALUATED_FROM = {"DequantizeLinear": 19}
FOLDABLE = ELEMENTWISE | SHAPING | GROWING


class FoldError(Exception):
    """A node that cannot be computed at import; the text says why."""


def fold(node: NodeProto, opset: int, inputs: list[np.ndarray | None], limit: int) -> list[np.ndarray]:
    """The results of a node from its inputs (None for those left out). limit: numbers that a result may hold.

    Raises FoldError.
    """
    if node.op_type not in FOLDABLE:
        raise FoldError("all its inputs are constants, and this operator is not one that import computes")
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            size = result_size(node, inputs)
            if size > max(limit, SMALL):
                raise FoldError(f"its inputs are constants, and its result would hold {size} numbers")
            feeds = {name: array for name, array in zip(node.input, inputs, strict=True) if array is not None}
            evaluator = ReferenceEvaluator(_alone(node, opset, feeds))
            results = [np.asarray(result) for result in evaluator.run(None, feeds)]
    except FoldError:
        raise
    except Exception as error:                     # whatever the evaluator meets in a file that is not valid
        raise FoldError(f"its constant inputs do not fit: {str(error).splitlines()[0] if str(error) else error!r}"
                        ) from error
    if any(result.dtype.kind in "OUS" for result in results):
        raise FoldError("its result is text")
    return results


def _alone(node: NodeProto, opset: int, feeds: dict[str, np.ndarray]) -> ModelProto:
    """A model of this node only: the evaluator heeds the opset of models, not of single nodes."""
    inputs = [helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
              for name, array in feeds.items()]
    outputs = [ValueInfoProto(name=name) for name in node.output if name]
    return helper.make_model(helper.make_graph([node], "one", inputs, outputs),
                             opset_imports=[helper.make_opsetid("", max(opset, EVALUATED_FROM.get(node.op_type, 1)))])


def result_size(node: NodeProto, inputs: list[np.ndarray | None]) -> int:
    """An upper bound for the numbers in a node's largest result, before anything is computed."""
    given = [array for array in inputs if array is not None]
    kind = node.op_type
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute
                  if attribute.type != attribute.TENSOR}
    if kind == "ConstantOfShape":
        return math.prod(max(int(n), 0) for n in given[0].reshape(-1))
    if kind == "Expand":
        return math.prod(np.broadcast_shapes(given[0].shape, tuple(int(n) for n in given[1].reshape(-1))))
    if kind == "Tile":
        return given[0].size * math.prod(max(int(n), 0) for n in given[1].reshape(-1))
    if kind == "Range":
        start, end, step = (float(array.reshape(-1)[0]) for array in given)
        return max(0, math.ceil((end - start) / step))
    if kind == "Pad":
        pads = [int(n) for n in (given[1].reshape(-1) if len(given) > 1 else attributes.get("pads", ()))]
        return math.prod(n + sum(max(pad, 0) for pad in pads) for n in given[0].shape)
    if kind in ("MatMul", "Gemm"):
        return math.prod(array.size // max(min(array.shape[-2:], default=1), 1) for array in given[:2])
    if kind == "Gather":
        return given[1].size * (given[0].size // max(given[0].shape[attributes.get("axis", 0)], 1))
    if kind == "GatherElements":
        return given[1].size
    if kind == "Concat":
        return sum(array.size for array in given)
    if kind == "NonZero":
        return given[0].size * max(given[0].ndim, 1)
    if kind in ELEMENTWISE and kind not in ("DequantizeLinear", "QuantizeLinear"):
        return math.prod(np.broadcast_shapes(*(array.shape for array in given)))
    return max((array.size for array in given), default=1)


def constant_value(node: NodeProto) -> tuple[np.ndarray, str]:
    """The value of a Constant node and the attribute that holds it. Raises FoldError for text and sparse tensors."""
    for attribute in node.attribute:
        if attribute.name == "value" and attribute.type == attribute.TENSOR \
                and attribute.t.data_type != TensorProto.STRING:
            return to_array(attribute.t), "value"
        if attribute.name in ("value_float", "value_floats"):
            value = helper.get_attribute_value(attribute)
            return np.asarray(value, np.float32), attribute.name
        if attribute.name in ("value_int", "value_ints"):
            return np.asarray(helper.get_attribute_value(attribute), np.int64), attribute.name
    raise FoldError("it holds text or a sparse tensor")
