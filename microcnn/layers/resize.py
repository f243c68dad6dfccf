"""Resize and Upsample: one axis after the other, each by a table of what its positions are made of."""
from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ModelError
from ..layout import Layout
from .base import Layer, Shape, expect_inputs
from .resampling import COORDINATES, CROP, DEFAULTS, MODES, NEAREST_MODES, POLICIES, Axis, Table, axes_of, table_of

if TYPE_CHECKING:
    from ..fusion import Step
    from ..graph import Node
    from ..parts import Value
    from ..plan import Schedule

# No device holds more; tables and buffers are sized by what a file says.
LARGEST = 2**31 - 1


def plan(node: Node, shape: Shape) -> tuple[dict[str, Any], dict[int, Axis]]:
    """All attributes, and for each axis of the sample (without the batch) how it is resized. Raises ModelError."""
    attrs = {**DEFAULTS, **node.attrs}
    shown = f'{node.op} "{node.name}"'
    axes = tuple(attrs["axes"])
    if not all(1 <= axis <= len(shape) for axis in axes) or len(set(axes)) != len(axes):
        raise ModelError(f"{shown}: axes (={axes}) must be different axes of the sample, 1 to {len(shape)}")
    for name, known in (("mode", MODES), ("nearest_mode", NEAREST_MODES), ("coordinate_transformation_mode", COORDINATES),
                        ("keep_aspect_ratio_policy", POLICIES)):
        if attrs[name] not in known:
            raise ModelError(f"{shown}: {name} is {attrs[name]!r}; expected one of {', '.join(known)}")
    if (attrs["scales"] is None) == (attrs["sizes"] is None):
        raise ModelError(f"{shown} has {'neither' if attrs['sizes'] is None else 'both'} scales and sizes; give one of them")
    numbers = attrs["scales"] if attrs["sizes"] is None else attrs["sizes"]
    if len(numbers) != len(axes) or not all(0 < n < math.inf for n in numbers):
        raise ModelError(f"{shown}: {'scales' if attrs['sizes'] is None else 'sizes'} (={tuple(numbers)}) must be "
                         f"{len(axes)} positive numbers, one for each of the axes {axes}")
    if attrs["roi"] is not None and (len(attrs["roi"]) != 2 * len(axes) or not all(map(math.isfinite, attrs["roi"]))):
        raise ModelError(f"{shown}: roi (={tuple(attrs['roi'])}) must be {2 * len(axes)} finite numbers, the starts and then "
                         f"the ends of the axes {axes}")
    if attrs["coordinate_transformation_mode"] == CROP and attrs["roi"] is None:
        raise ModelError(f"{shown}: {CROP} needs a roi; give the starts and ends of the axes {axes}")
    found = dict(zip([axis - 1 for axis in axes], axes_of(attrs, [shape[axis - 1] for axis in axes]), strict=True))
    result = [found[i].size if i in found else n for i, n in enumerate(shape)]
    if not 0 < math.prod(result) <= LARGEST:
        raise ModelError(f"{shown}: {shape} would become {tuple(result)}; use scales or sizes that give every axis at least "
                         f"one position and a sample at most {LARGEST} numbers")
    return attrs, found


def separate(s: Schedule, x: Value) -> Value:
    """The tensor with each of its axes as one stored dimension, moved only if it lies otherwise."""
    axes = x.layout.axes
    if sorted(i for axis in axes for i in axis) == list(range(len(axes))) and all(len(axis) == 1 for axis in axes):
        return x
    shape = x.layout.shape
    wanted = Layout.channels_last(shape) if len(shape) == 3 else Layout.plain(shape)
    if x.layout.same_order(wanted):
        return s.alias(f"{x.name}@separate", x, wanted)
    return s.moved(x, wanted)


class Resize(Layer):
    """ONNX Resize along any axes but the batch.

    Attributes by ONNX's names: axes (the batch is 0), and one number for each in either scales or sizes; roi (starts, then
    ends); mode, nearest_mode, coordinate_transformation_mode, cubic_coeff_a, exclude_outside, extrapolation_value,
    keep_aspect_ratio_policy, antialias, each with ONNX's default.

    Raises   ModelError: attributes that do not fit each other or the input
    Memory   a table of each axis, and the tensor after each axis but the last; nothing is kept for backward
    """

    op = "Resize"
    channels_last = True
    onnx = {"Resize": {}, "Upsample": {}}

    @staticmethod
    def infer(node: Node, shapes: list[Shape], weights: dict[str, Shape]) -> list[Shape]:
        expect_inputs(node, shapes, 1)
        _, axes = plan(node, shapes[0])
        return [tuple(axes[i].size if i in axes else n for i, n in enumerate(shapes[0]))]

    @staticmethod
    def macs(node: Node, shapes: list[Shape], outputs: list[Shape], weights: dict[str, Shape]) -> int:
        attrs, axes = plan(node, shapes[0])
        if attrs["mode"] == "nearest":
            return 0
        numbers = list(shapes[0])
        total = 0
        for i, axis in ordered(axes):
            numbers[i] = axis.size
            total += math.prod(numbers) // axis.size * table_of(attrs, axis).index.size
        return total

    @staticmethod
    def forward(s: Schedule, step: Step) -> None:
        x = s.value(step.node.inputs[0])
        attrs, axes = plan(step.node, x.layout.shape)
        tables = {i: table_of(attrs, axis) for i, axis in axes.items()}
        axes_left = [(i, axis) for i, axis in ordered(axes) if not tables[i].is_identity(axis.length)]
        if not axes_left:
            s.alias(step.output, x, x.layout)
            if s.needs_gradient(x.name):
                s.backward(lambda: s.pass_on(step.output, x.name))
            return
        x = before = separate(s, x)
        passes = []
        for i, axis in axes_left:
            name = f"{step.node.name}.axis{i}"
            place = before.layout.axes[i][0]
            dims = list(before.layout.dims)
            dims[place] = axis.size
            after = s.make(step.output if i == axes_left[-1][0] else f"{step.output}@{name}",
                           Layout(tuple(dims), before.layout.axes))
            shared = {"outer": math.prod(dims[:place]), "inner": math.prod(dims[place + 1:])}
            s.row("resize.forward", x=before.buffer, y=after.buffer, length=axis.length, positions=axis.size,
                  fill=float(attrs["extrapolation_value"]), **shared, **stored(s, name, tables[i]))
            passes.append((before, axis, name, tables[i], shared))
            before = after

        def backward() -> None:
            dy = s.gradient(step.output)
            if dy is None:
                return
            for source, axis, name, table, shared in reversed(passes):
                if source is x:
                    target, accumulate = s.dx(x.name)
                else:
                    inner = s.new_gradient(source.name)
                    target, accumulate = inner.buffer, 0
                s.row("resize.backward", dy=dy.buffer, dx=target, length=axis.size, positions=axis.length,
                      accumulate=accumulate, **shared, **stored(s, f"{name}.back", table.transposed(axis.length)))
                s.release(dy)
                if source is not x:
                    dy = inner
        if s.needs_gradient(x.name):
            s.backward(backward)


def ordered(axes: dict[int, Axis]) -> list[tuple[int, Axis]]:
    """Axes in the order in which they are resized: first what shrinks most, so that the rest has less to do."""
    return sorted(axes.items(), key=lambda item: item[1].size / item[1].length)


def stored(s: Schedule, name: str, table: Table) -> dict[str, Any]:
    """A table's fields of a row, its arrays as constants of the network."""
    weight = table.weight.astype(np.float32 if s.itemsize == 4 else np.float64)
    return {"begin": s.store.constant(f"{name}.begin", table.begin), "index": s.store.constant(f"{name}.index", table.index),
            "weight": s.store.constant(f"{name}.weight", weight), "taps": table.index.size}
