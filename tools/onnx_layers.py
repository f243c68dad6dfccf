"""Converters of the operators that compute: normalisation, activations, dropout.

Those that a layer's own data describes in full (activations) are registered from that data.
"""
from __future__ import annotations

from typing import Any

from microcnn.graph import WeightRef
from microcnn.layers import LAYERS

from .onnx_registry import Op, converter
from .onnx_values import Constant, Dim, product


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
    # where the bounds are the wrong way round, the upper one is what counts
    op.emit("Clip", x, op.dims(), {"low": min(float(low), float(high)), "high": float(high)})


@converter("Softmax", 1, 11, 13)
@converter("LogSoftmax", 1, 11, 13)
def softmax(op: Op) -> None:
    x, dims = op.tensor(), op.dims()
    old = op.opset < 13
    axis = op.axis(op.attribute("axis", 1 if old else -1))
    op.emit(op.type, x, dims, {"axis": axis, "flatten": old and axis != len(dims) - 1})


def viewed(found: Constant, step: str, argument: tuple[int, ...]) -> Constant:
    """A constant through one more view."""
    probes = tuple(array.reshape(argument) if step == "reshape" else array.transpose(argument)
                   for array in found.probes)
    return Constant(probes, WeightRef(found.ref.name, (*found.ref.view, (step, tuple(argument)))))


def per_sample(dims: tuple[Dim, ...]) -> Dim:
    """How many numbers one sample holds."""
    return product(dims[1:])
