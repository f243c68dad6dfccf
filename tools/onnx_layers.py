"""Converters of the operators that compute: normalisation, activations, matrix products.

Those that a layer's own data describes in full (activations) are registered from that data.
"""
from __future__ import annotations

from typing import Any

from microcnn.graph import WeightRef
from microcnn.layers import LAYERS

from .onnx_elementwise import combine
from .onnx_registry import Op, converter
from .onnx_values import Constant, Dim, Tensor, product


def _plain(layer: str, attributes: dict[str, tuple[str, Any]]) -> Any:
    """The converter of an operator that a layer's own data describes."""
    def convert(op: Op) -> None:
        attrs = {name: op.attribute(written, default) for written, (name, default) in attributes.items()}
        op.emit(layer, op.tensor(), op.dims(), attrs)
    return convert


for _layer in LAYERS.values():
    for _operator, _data in _layer.onnx.items():
        if "versions" in _data:
            converter(_operator, *_data["versions"])(_plain(_layer.op, _data.get("attributes", {})))


@converter("ReduceMean", 1, 11, 13, 18)
def reduce_mean(op: Op) -> None:
    """A mean over the two spatial axes: global average pooling."""
    x, dims = op.tensor(0, rank=4), op.dims()
    axes = op.integers(1, "axes") if len(op.inputs) > 1 else op.attribute("axes")
    axes = tuple(sorted(axis % 4 for axis in axes)) if axes else ()
    if axes not in ((2, 3), (1, 2)):
        op.refuse(f"it reduces the axes {axes or 'all'}; only the spatial ones, (2, 3) or (1, 2), are supported")
    keep, output = bool(op.attribute("keepdims", 1)), op.outputs[0]
    if axes == (1, 2):
        x = op.emit("Transpose", x, (dims[0], dims[3], dims[1], dims[2]), {"perm": (0, 3, 1, 2)},
                    output=f"{output}/channels_first", suffix="channels_first")
    channels = dims[1] if axes == (2, 3) else dims[3]
    if axes == (2, 3) and keep:
        op.emit("GlobalAvgPool2d", x, (dims[0], channels, 1, 1))
        return
    pooled = op.emit("GlobalAvgPool2d", x, (dims[0], channels, 1, 1), output=f"{output}/pooled")
    if keep:
        op.emit("Transpose", pooled, (dims[0], 1, 1, channels), {"perm": (0, 2, 3, 1)}, suffix="channels_last")
    else:
        op.emit("Flatten", pooled, (dims[0], channels), {"axis": 1}, suffix="flatten")


@converter("BatchNormalization", 7, 9, 14, 15)
def batch_norm(op: Op) -> None:
    if op.attribute("training_mode", 0):
        op.refuse("training_mode is 1; export the model in inference mode")
    x, dims = op.tensor(), op.dims()
    if op.draft.whole or len(dims) < 2:
        op.refuse(f'"{op.inputs[0]}" has {len(dims) - op.draft.whole} axes; expected a batch, channels and any others')
    op.allow("spatial", 1)
    op.single_output()
    channels = dims[1] if isinstance(dims[1], int) else None
    weights: dict[str, Constant | None] = {
        role: op.required(index, role, (channels,)) for index, role in enumerate(("scale", "bias", "mean", "var"), 1)}
    op.emit("BatchNorm2d", x, dims, {"eps": float(op.attribute("epsilon", 1e-5)),
                                     "momentum": float(op.attribute("momentum", 0.9))}, weights)


@converter("Clip", 6, 11, 12, 13)
def clip(op: Op) -> None:
    x = op.tensor()
    low = op.scalar(1, "min", op.attribute("min", float("-inf")))
    high = op.scalar(2, "max", op.attribute("max", float("inf")))
    op.emit("Clip", x, op.dims(), {"low": float(low), "high": float(high)})


@converter("Softmax", 1, 11, 13)
@converter("LogSoftmax", 1, 11, 13)
def softmax(op: Op) -> None:
    x, dims = op.tensor(), op.dims()
    old = op.opset < 13
    axis = op.axis(op.attribute("axis", 1 if old else -1))
    op.emit(op.type, x, dims, {"axis": axis, "flatten": old and axis != len(dims) - 1})


@converter("Gemm", 7, 9, 11, 13)
def gemm(op: Op) -> None:
    x, dims = op.tensor(0, rank=2), op.dims()
    for name in ("alpha", "beta"):
        op.allow(name, 1.0)
    op.allow("transA", 0)
    weight = op.required(1, "matrix", (None, None))
    transposed = bool(op.attribute("transB", 0))
    count, width = weight.shape if transposed else weight.shape[::-1]
    _same_width(op, dims[-1], width)
    bias = op.value(2)
    vector = _as_vector(bias, count) if isinstance(bias, Constant) and op.weight(2, "bias") else None
    weights: dict[str, Constant | None] = {"weight": weight, "bias": vector}
    if bias is None or vector is not None:
        op.emit("Linear", x, (dims[0], count), {"transposed": transposed}, weights)
        return
    linear = op.emit("Linear", x, (dims[0], count), {"transposed": transposed}, weights,
                     output=f"{op.outputs[0]}/product")
    combine(op, "Add", linear, op.required(2, "constant operand") if isinstance(bias, Constant) else op.tensor(2), suffix="add")


@converter("MatMul", 1, 9, 13)
def matmul(op: Op) -> None:
    if isinstance(op.value(0), Constant) or isinstance(op.value(1), Tensor):
        if isinstance(op.value(0), Tensor):
            op.tensor(0), op.tensor(1)
        op.refuse("only a tensor times a constant matrix is supported")
    x, dims = op.tensor(0), op.dims()
    weight = op.required(1, "matrix")
    if len(weight.shape) < 2 or any(n != 1 for n in weight.shape[:-2]) or len(dims) < max(2, len(weight.shape)):
        op.refuse(f'its matrix "{op.inputs[1]}" has the shape {weight.shape}; only (C, K) is supported')
    width, count = weight.shape[-2:]
    if len(weight.shape) > 2:
        weight = viewed(weight, "reshape", (width, count))
    _same_width(op, dims[-1], width)
    op.emit("Linear", x, (*dims[:-1], count), {"transposed": False}, {"weight": weight})


def _same_width(op: Op, found: Dim, width: int) -> None:
    """Refuse a product whose input does not have as many numbers as the matrix has rows."""
    if isinstance(found, int) and found != width:
        op.refuse(f"its input has {found} numbers along the last axis; the matrix expects {width}")


def viewed(found: Constant, step: str, argument: tuple[int, ...]) -> Constant:
    """A constant through one more view."""
    probes = tuple(array.reshape(argument) if step == "reshape" else array.transpose(argument)
                   for array in found.probes)
    return Constant(probes, WeightRef(found.ref.name, (*found.ref.view, (step, tuple(argument)))))


def _as_vector(found: Constant, count: int) -> Constant | None:
    """A constant of shape (K,), (1, K), ... as a vector, None if it is something else."""
    if not found.shape or found.shape[-1] != count or any(n != 1 for n in found.shape[:-1]):
        return None
    return found if len(found.shape) == 1 else viewed(found, "reshape", (count,))


def per_sample(dims: tuple[Dim, ...]) -> Dim:
    """How many numbers one sample holds."""
    return product(dims[1:])
