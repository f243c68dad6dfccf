"""Normalisation by each sample's own statistics: LayerNorm over its last axes, GroupNorm and InstanceNorm over its channels."""
from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..errors import ModelError
from ..layout import Layout
from .base import Layer, Shape, expect_inputs
from .linear import bias_gradient

if TYPE_CHECKING:
    from ..fusion import Step
    from ..graph import Node
    from ..memory import Buffer
    from ..parts import Value
    from ..plan import Schedule

# Sums over pixels or rows are cut into at most so many chunks, each of at least so many numbers.
CHUNKS, CHUNK = 16, 4096


def chunks_of(rows: int, numbers: int) -> int:
    """Into how many chunks so many rows, of so many numbers together, are cut."""
    return max(1, min(CHUNKS, rows, numbers // CHUNK))


def check_weights(node: Node, weights: dict[str, Shape], expected: Shape) -> None:
    """Raises ModelError for a scale or bias of another shape."""
    for role in ("scale", "bias"):
        if weights.get(role, expected) != expected:
            raise ModelError(f'{node.op} "{node.name}": {role} has shape {weights[role]}; expected {expected}')


def normalise(s: Schedule, step: Step, x: Value, layout: Layout, kernel: str, statistics: int, width: int,
              fields: dict[str, Any], forward_scratch: int, backward_scratch: Callable[[bool], int]) -> None:
    """The rows of a normalisation whose kernels are `kernel`_forward and `kernel`_backward.

    statistics: numbers that forward leaves for backward, for the batch; width: of scale and bias; the scratch of each
    direction in numbers, that of backward knowing whether scale or bias trains.
    """
    node = step.node
    trained = [role for role in ("scale", "bias") if s.trains(node, role)]
    live = s.node_live(step)
    of_x = "scale" in trained or s.needs_gradient(x.name)      # dbias is a sum of dY alone
    if live and of_x:
        s.keep(x)
    y = s.make(step.output, layout, x.buffer if s.free_to_overwrite(x) else None)
    saved = s.saved(f"{step.output}.statistics", statistics * s.itemsize)
    scale = s.weight(node, "scale")
    scratch = {"scratch": s.scratch(forward_scratch * s.itemsize)} if forward_scratch else {}
    s.row(f"normalization.{kernel}_forward", x=x.buffer, scale=scale, bias=s.weight(node, "bias"), y=y.buffer, saved=saved,
          eps=float(node.attrs["eps"]), **scratch, **fields)
    if not live:
        return

    def backward() -> None:
        dy = s.gradient(step.output)
        if dy is None:
            return
        if not of_x:
            bias_gradient(s, node, x.numbers // width, width, dy)
            s.release(dy)
            return
        target, accumulate = s.dx_over(x.name, dy) if s.needs_gradient(x.name) else (None, 0)
        places: dict[str, Buffer | int | None] = {"dscale": None, "dbias": None, "accumulate_scale": 0, "accumulate_bias": 0}
        for role in trained:
            places[f"d{role}"], places[f"accumulate_{role}"] = s.dweight(node, role)
        room = backward_scratch(bool(trained))
        s.row(f"normalization.{kernel}_backward", x=x.buffer, dy=dy.buffer, scale=scale, saved=saved, dx=target,
              accumulate=accumulate, scratch=s.scratch(room * s.itemsize) if room else None, **places, **fields)
        for role in trained:
            s.weight_done(node, role)
        s.release(dy)
    s.backward(backward)


class LayerNorm(Layer):
    """ONNX LayerNormalization over all axes from `axis` (the batch being 0) on. Attributes axis, eps; weights scale and bias.

    Either weight may be left out; each has the shape of the axes that are normalised.

    Raises   ModelError: an axis that is the batch or not there, weights of another shape
    Memory   two numbers for each row; backward: partial sums of the weights' gradients
    """

    op = "LayerNorm"
    trainable = ("scale", "bias")
    onnx = {"LayerNormalization": {}}

    @staticmethod
    def infer(node: Node, shapes: list[Shape], weights: dict[str, Shape]) -> list[Shape]:
        expect_inputs(node, shapes, 1)
        rank, axis = len(shapes[0]) + 1, node.attrs["axis"]
        if not -rank <= axis < rank or axis % rank == 0:
            raise ModelError(f'{node.op} "{node.name}": axis (={axis}) must be an axis of {shapes[0]} beside the batch: 1 to '
                             f"{rank - 1}")
        check_weights(node, weights, shapes[0][axis % rank - 1:])
        return [shapes[0]]

    @classmethod
    def output_axis(cls, node: Node, role: str) -> int | None:
        return -1

    @staticmethod
    def forward(s: Schedule, step: Step) -> None:
        x = s.plain(s.value(step.node.inputs[0]))
        shape = x.layout.shape
        begin = step.node.attrs["axis"] % (len(shape) + 1) - 1
        rows, M = math.prod(shape[:begin]), math.prod(shape[begin:])
        chunks = chunks_of(rows * s.batch, rows * s.batch * M)
        normalise(s, step, x, Layout.plain(shape), "rows", 2 * rows * s.batch, M, {"rows": rows, "M": M, "chunks": chunks}, 0,
                  lambda trained: 2 * chunks * M if trained else 0)


class GroupNorm(Layer):
    """ONNX GroupNormalization, of opset 21 on. Attributes groups, eps; weights scale and bias (C,), which may be left out.

    Raises   ModelError: groups that do not divide the channels, weights of another shape
    Memory   two numbers for each channel of each sample; partial sums
    """

    op = "GroupNorm"
    trainable = ("scale", "bias")
    channels_last = True
    onnx = {"GroupNormalization": {}}

    @staticmethod
    def groups(node: Node, C: int) -> int:
        return node.attrs["groups"]

    @classmethod
    def infer(cls, node: Node, shapes: list[Shape], weights: dict[str, Shape]) -> list[Shape]:
        expect_inputs(node, shapes, 1)
        if not shapes[0]:
            raise ModelError(f'{node.op} "{node.name}" reads "{node.inputs[0]}", one number a sample; expected (channels, ...)')
        C = shapes[0][0]
        G = cls.groups(node, C)
        if G < 1 or C % G:
            raise ModelError(f'{node.op} "{node.name}": groups (={G}) must divide the {C} channels')
        check_weights(node, weights, (C,))
        return [shapes[0]]

    @classmethod
    def output_axis(cls, node: Node, role: str) -> int | None:
        return 0

    @classmethod
    def forward(cls, s: Schedule, step: Step) -> None:
        x = s.value(step.node.inputs[0])
        shape = x.layout.shape
        x = s.channels_last(x) if len(shape) > 1 else s.plain(x)
        C = shape[0]
        P = x.numbers // C
        chunks = chunks_of(P, P * C)
        layout = Layout.channels_last(shape) if len(shape) > 1 else Layout.plain(shape)
        room = 2 * s.batch * chunks * C
        normalise(s, step, x, layout, "group", 2 * s.batch * C, C, {"P": P, "C": C, "G": cls.groups(step.node, C),
                                                                    "chunks": chunks}, room, lambda trained: room)


class InstanceNorm(GroupNorm):
    """ONNX InstanceNormalization: each channel of each sample is a group. Attribute eps; weights as GroupNorm."""

    op = "InstanceNorm"
    onnx = {"InstanceNormalization": {}}

    @staticmethod
    def groups(node: Node, C: int) -> int:
        return C
