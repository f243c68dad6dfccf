"""Elementwise functions whose attributes do not map one to one: PRelu, Gelu, Swish, Mish; import, and the way back.

Gelu, Swish and Mish are younger than the opset that is written: they become the operators they are made of.
"""
from __future__ import annotations

import math

import numpy as np

from microcnn.graph import Node
from microcnn.layers.prelu import runs_along

from .onnx_build import Build, builder
from .onnx_registry import Op, converter
from .onnx_values import Dim, show


@converter("PRelu", 7, 9, 16)
def prelu(op: Op) -> None:
    x, dims = op.tensor(), op.dims()
    slope = op.required(1, "slope")
    shape, rank = slope.shape, len(dims)
    if len(shape) > rank or (len(shape) == rank and shape[0] != 1):
        op.refuse(f'its slope "{op.inputs[1]}" of shape {shape} runs along the batch')
    sample: tuple[Dim, ...] = dims[1:]
    seen = shape[1:] if len(shape) == rank else shape
    wide = (*(1,) * (rank - 1 - len(seen)), *seen)
    if any(have != 1 and isinstance(want, int) and have != want for have, want in zip(wide, sample, strict=True)):
        op.refuse(f'its slope "{op.inputs[1]}" of shape {shape} does not broadcast to {show(dims)}')
    axes = runs_along(seen, wide)
    if axes and any(axis not in axes and sample[axis] != 1 for axis in range(axes[0], axes[-1])):
        op.refuse(f'its slope "{op.inputs[1]}" of shape {shape} runs along axes with another between them')
    op.emit("PRelu", x, dims, weights={"slope": slope})


@converter("Gelu", 20)
def gelu(op: Op) -> None:
    approximate = op.attribute("approximate", "none")
    if approximate not in ("none", "tanh"):
        op.refuse(f'approximate is {approximate}; expected "none" or "tanh"')
    op.emit("Gelu", op.tensor(), op.dims(), {"approximate": approximate})


@converter("Swish", 24)
def swish(op: Op) -> None:
    op.emit("Swish", op.tensor(), op.dims(), {"alpha": float(op.attribute("alpha", 1.0))})


@converter("Mish", 18, 22)
def mish(op: Op) -> None:
    op.emit("Mish", op.tensor(), op.dims())


@builder("PRelu")
def build_prelu(build: Build, node: Node) -> None:
    build.add("PRelu", node, [node.inputs[0], build.weight(node, "slope")])


def _part(build: Build, node: Node, operator: str, inputs: list[str], suffix: str) -> str:
    """One of several ONNX nodes that make a layer."""
    return build.add(operator, node, inputs, build.free(f"{node.name}/{suffix}"), f"/{suffix}")


def _number(build: Build, node: Node, value: float, suffix: str) -> str:
    """A constant number."""
    return build.constant(f"{node.name}.{suffix}", np.asarray(value, build.dtype))


@builder("Swish")
def build_swish(build: Build, node: Node) -> None:
    x = angle = node.inputs[0]
    if node.attrs["alpha"] != 1:
        angle = _part(build, node, "Mul", [x, _number(build, node, node.attrs["alpha"], "alpha")], "angle")
    build.add("Mul", node, [x, _part(build, node, "Sigmoid", [angle], "sigmoid")])


@builder("Mish")
def build_mish(build: Build, node: Node) -> None:
    soft = _part(build, node, "Softplus", [node.inputs[0]], "softplus")
    build.add("Mul", node, [node.inputs[0], _part(build, node, "Tanh", [soft], "tanh")])


@builder("Gelu")
def build_gelu(build: Build, node: Node) -> None:
    x, one, half = node.inputs[0], _number(build, node, 1.0, "one"), _number(build, node, 0.5, "half")
    if node.attrs["approximate"] == "none":
        angle = _part(build, node, "Mul", [x, _number(build, node, math.sqrt(0.5), "scale")], "angle")
        curve = _part(build, node, "Erf", [angle], "erf")
    else:
        square = _part(build, node, "Mul", [x, x], "square")
        bent = _part(build, node, "Mul", [square, _number(build, node, 0.044715, "cube")], "bent")
        inner = _part(build, node, "Add", [bent, one], "inner")
        scaled = _part(build, node, "Mul", [x, _number(build, node, math.sqrt(2 / math.pi), "scale")], "scaled")
        curve = _part(build, node, "Tanh", [_part(build, node, "Mul", [scaled, inner], "angle")], "tanh")
    share = _part(build, node, "Mul", [_part(build, node, "Add", [curve, one], "above"), half], "share")
    build.add("Mul", node, [x, share])
