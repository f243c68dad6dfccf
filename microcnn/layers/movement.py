"""Concat, Slice, Pad, Gather: parts of tensors put elsewhere."""
from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from ..errors import ModelError
from ..layout import Layout
from .base import Layer, Shape, expect_inputs
from .boxes import Box, copy, fill_around, part, region, resized, stored, strides_of, whole

if TYPE_CHECKING:
    from ..fusion import Step
    from ..graph import Node
    from ..memory import Buffer
    from ..parts import Value
    from ..plan import Schedule


def own_axis(node: Node, axis: int, shape: Shape) -> int:
    """The axis of one sample that a node's attribute names, counting the batch. Raises ModelError for the batch itself."""
    rank = len(shape) + 1
    if not -rank <= axis < rank or axis % rank == 0:
        raise ModelError(f'{node.op} "{node.name}": axis (={axis}) must be an axis of {shape} beside the batch: 1 to '
                         f"{rank - 1}")
    return axis % rank - 1


def unchanged(s: Schedule, step: Step) -> None:
    """The output is the input."""
    x = s.value(step.node.inputs[0])
    s.alias(step.output, x, x.layout)
    if s.needs_gradient(x.name):
        s.backward(lambda: s.pass_on(step.output, x.name))


class Concat(Layer):
    """ONNX Concat of any number of tensors. Attribute axis, which may not be the batch.

    Raises   ModelError: sizes that differ along another axis
    Memory   nothing beside the output
    """

    op = "Concat"
    onnx = {"Concat": {}}

    @staticmethod
    def infer(node: Node, shapes: list[Shape], weights: dict[str, Shape]) -> list[Shape]:
        if not shapes:
            raise ModelError(f'Concat "{node.name}" has no inputs; give it at least one')
        axis = own_axis(node, node.attrs["axis"], shapes[0])
        if any(len(shape) != len(shapes[0]) or _but(shape, axis) != _but(shapes[0], axis) for shape in shapes):
            raise ModelError(f'Concat "{node.name}": the shapes {", ".join(map(str, shapes))} of one sample must be equal but '
                             f"for axis {axis + 1} (the batch being axis 0)")
        return [(*shapes[0][:axis], sum(shape[axis] for shape in shapes), *shapes[0][axis + 1:])]

    @staticmethod
    def forward(s: Schedule, step: Step) -> None:
        node, shape = step.node, s.shapes[step.node.outputs[0]]
        axis = own_axis(node, node.attrs["axis"], shape)
        inputs = [s.value(name) for name in node.inputs]
        if len(inputs) == 1:
            unchanged(s, step)
            return
        last = len(shape) > 1 and any(x.layout.is_channels_last() and not x.layout.is_plain() for x in inputs)
        layout = Layout.channels_last(shape) if last else Layout.plain(shape)
        y = s.make(step.output, layout)
        moves: list[tuple[str, Buffer, Box, Box]] = []
        at = 0
        for x in inputs:
            sizes = x.layout.shape
            begins = tuple(at if i == axis else 0 for i in range(len(shape)))
            section = resized(layout, sizes)
            found = region(x.layout, section, layout)
            if found is None:
                x = s.moved(x, section)
                found = section.dims, strides_of(section), strides_of(layout)
            box = Box(found[0], found[2], part(layout, begins, sizes).begin, layout.size)
            moves.append((x.name, x.buffer, Box(found[0], found[1], 0, x.numbers), box))
            at += sizes[axis]
        for _, buffer, source, target in moves:
            copy(s, node, buffer, source, y.buffer, target)

        def backward() -> None:
            dy = s.gradient(step.output)
            if dy is None:
                return
            for name, _, source, target in moves:
                if s.needs_gradient(name):
                    dx, accumulate = s.dx(name)
                    copy(s, node, dy.buffer, target, dx, source, accumulate)
            s.release(dy)
        if s.node_live(step):
            s.backward(backward)


def _but(shape: Shape, axis: int) -> Shape:
    return (*shape[:axis], *shape[axis + 1:])


def take_part(s: Schedule, step: Step, begins: Shape, sizes: Shape, steps: Shape) -> None:
    """The step's output: the part of its input that begins there, of these sizes, with these steps; all by axis."""
    node = step.node
    x, layout = stored(s, s.value(node.inputs[0]))
    target = resized(layout, sizes)
    y = s.make(step.output, target)
    source = part(layout, begins, sizes, steps)
    copy(s, node, x.buffer, source, y.buffer, whole(target))

    def backward() -> None:
        dy = s.gradient(step.output)
        if dy is None:
            return
        dx, accumulate = s.dx(x.name)
        if not accumulate and set(steps) == {1}:
            fill_around(s, node, dx, layout, begins, sizes, 0.0)
        elif not accumulate:
            s.row("layout.zero", y=dx, size=layout.size, per_sample=1)
        copy(s, node, dy.buffer, whole(target), dx, source, accumulate)
        s.release(dy)
    if s.needs_gradient(x.name):
        s.backward(backward)


class Slice(Layer):
    """ONNX Slice. Attributes axes (the batch being 0), starts, ends, steps: one number for each of those axes.

    Raises   ModelError: an empty result, a step of 0, an axis twice
    Memory   nothing beside the output
    """

    op = "Slice"
    onnx = {"Slice": {}, "Split": {}}

    @staticmethod
    def ranges(node: Node, shape: Shape) -> list[range]:
        """Which places are taken along each axis of a sample."""
        attrs, found = node.attrs, [range(n) for n in shape]
        axes = [own_axis(node, axis, shape) for axis in attrs["axes"]]
        if len(set(axes)) != len(axes) or not len(axes) == len(attrs["starts"]) == len(attrs["ends"]) == len(attrs["steps"]):
            raise ModelError(f'Slice "{node.name}": starts {attrs["starts"]}, ends {attrs["ends"]} and steps {attrs["steps"]} '
                             f'must be one number for each of the different axes {attrs["axes"]}')
        for axis, start, end, step in zip(axes, attrs["starts"], attrs["ends"], attrs["steps"], strict=True):
            if step == 0:
                raise ModelError(f'Slice "{node.name}": a step is 0; expected one that goes forwards or backwards')
            size = shape[axis]
            low, high = (0, size) if step > 0 else (-1, size - 1)
            start, end = (min(max(n + size if n < 0 else n, low), high) for n in (start, end))
            found[axis] = range(start, end, step)
        return found

    @staticmethod
    def infer(node: Node, shapes: list[Shape], weights: dict[str, Shape]) -> list[Shape]:
        expect_inputs(node, shapes, 1)
        result = tuple(len(taken) for taken in Slice.ranges(node, shapes[0]))
        if 0 in result:
            raise ModelError(f'Slice "{node.name}": starts {node.attrs["starts"]} and ends {node.attrs["ends"]} leave nothing '
                             f"of {shapes[0]}; expected at least one number of each axis")
        return [result]

    @staticmethod
    def forward(s: Schedule, step: Step) -> None:
        shape = s.shapes[step.node.inputs[0]]
        taken = Slice.ranges(step.node, shape)
        if taken == [range(n) for n in shape]:
            unchanged(s, step)
            return
        take_part(s, step, tuple(one.start for one in taken), tuple(len(one) for one in taken),
                  tuple(one.step if len(one) > 1 else 1 for one in taken))


class Pad(Layer):
    """ONNX Pad. Attributes pads (those before each axis of a sample, then those after), mode, value (of mode "constant").

    mode is "constant", "reflect" (without the edge), "edge" or "wrap". Negative pads crop, before the others are put on.
    Raises   ModelError: pads that crop an axis away, another mode
    Memory   for modes but constant, one more tensor for each axis beyond the first
    """

    op = "Pad"
    onnx = {"Pad": {}}

    @staticmethod
    def pairs(node: Node, shape: Shape) -> list[tuple[int, int]]:
        """(before, after) for each axis of a sample."""
        pads, rank = node.attrs["pads"], len(shape)
        if len(pads) != 2 * rank or node.attrs["mode"] not in ("constant", "reflect", "edge", "wrap"):
            raise ModelError(f'Pad "{node.name}": pads {tuple(pads)} and mode {node.attrs["mode"]!r} must be {2 * rank} '
                             f'numbers for a sample of shape {shape}, and "constant", "reflect", "edge" or "wrap"')
        return list(zip(pads[:rank], pads[rank:], strict=True))

    @staticmethod
    def infer(node: Node, shapes: list[Shape], weights: dict[str, Shape]) -> list[Shape]:
        expect_inputs(node, shapes, 1)
        pairs = Pad.pairs(node, shapes[0])
        kept = [n + min(before, 0) + min(after, 0) for n, (before, after) in zip(shapes[0], pairs, strict=True)]
        if min(kept, default=1) < 1:
            raise ModelError(f'Pad "{node.name}": pads {tuple(node.attrs["pads"])} crop away all of an axis of {shapes[0]}')
        return [tuple(n + before + after for n, (before, after) in zip(shapes[0], pairs, strict=True))]

    @staticmethod
    def forward(s: Schedule, step: Step) -> None:
        node, shape = step.node, s.shapes[step.node.inputs[0]]
        pairs = Pad.pairs(node, shape)
        if not any(map(any, pairs)):
            unchanged(s, step)
        elif max(map(max, pairs)) <= 0:
            take_part(s, step, tuple(-before for before, _ in pairs), s.shapes[node.outputs[0]], (1,) * len(shape))
        elif node.attrs["mode"] == "constant":
            pad_constant(s, step, pairs)
        else:
            tables = [(axis, mirrored(node.attrs["mode"], shape[axis], *pair)) for axis, pair in enumerate(pairs)
                      if any(pair)]
            gather(s, step, tables)


def pad_constant(s: Schedule, step: Step, pairs: list[tuple[int, int]]) -> None:
    """The input, cropped where pads are negative, within a frame of one number."""
    node = step.node
    x, layout = stored(s, s.value(node.inputs[0]))
    shape = layout.shape
    y_layout = resized(layout, s.shapes[node.outputs[0]])
    begins = tuple(max(0, -before) for before, _ in pairs)
    places = tuple(max(0, before) for before, _ in pairs)
    sizes = tuple(n + min(before, 0) + min(after, 0) for n, (before, after) in zip(shape, pairs, strict=True))
    y = s.make(step.output, y_layout)
    source, target = part(layout, begins, sizes), part(y_layout, places, sizes)
    fill_around(s, node, y.buffer, y_layout, places, sizes, node.attrs["value"])
    copy(s, node, x.buffer, source, y.buffer, target)

    def backward() -> None:
        dy = s.gradient(step.output)
        if dy is None:
            return
        dx, accumulate = s.dx(x.name)
        if not accumulate:
            fill_around(s, node, dx, layout, begins, sizes, 0.0)
        copy(s, node, dy.buffer, target, dx, source, accumulate)
        s.release(dy)
    if s.needs_gradient(x.name):
        s.backward(backward)


def mirrored(mode: str, size: int, before: int, after: int) -> np.ndarray:
    """From where along an axis each number of the padded axis comes."""
    first, size = max(0, -before), size + min(before, 0) + min(after, 0)
    places = np.arange(-max(0, before), size + max(0, after))
    if mode == "edge":
        return first + places.clip(0, size - 1)
    if mode == "wrap":
        return first + places % size
    turn = max(1, 2 * (size - 1))
    return first + (size - 1 - np.abs(places % turn - (size - 1)) if size > 1 else 0 * places)


class Gather(Layer):
    """ONNX Gather with constant indices. Attributes axis (not the batch), indices (flat, from the end where negative).

    Raises   ModelError: indices that are not there
    Memory   two tables, of the indices and of where each number of the input went
    """

    op = "Gather"
    onnx = {"Gather": {}}

    @staticmethod
    def infer(node: Node, shapes: list[Shape], weights: dict[str, Shape]) -> list[Shape]:
        expect_inputs(node, shapes, 1)
        axis = own_axis(node, node.attrs["axis"], shapes[0])
        size, indices = shapes[0][axis], node.attrs["indices"]
        wrong = [index for index in indices if not -size <= index < size]
        if wrong or not indices:
            raise ModelError(f'Gather "{node.name}": index {wrong[0] if wrong else None} is none of axis {axis + 1}, which has '
                             f"{size}")
        return [(*shapes[0][:axis], len(indices), *shapes[0][axis + 1:])]

    @staticmethod
    def forward(s: Schedule, step: Step) -> None:
        node, shape = step.node, s.shapes[step.node.inputs[0]]
        axis = own_axis(node, node.attrs["axis"], shape)
        gather(s, step, [(axis, np.asarray(node.attrs["indices"], np.int64) % shape[axis])])


def gather(s: Schedule, step: Step, tables: list[tuple[int, np.ndarray]]) -> None:
    """The step's output: its input gathered along some axes of a sample, one after the other."""
    x = s.value(step.node.inputs[0])
    for number, (axis, table) in enumerate(tables, 1):
        name = step.output if number == len(tables) else f"{step.output}@{number}"
        x = gather_along(s, x, axis, table, name)


def gather_along(s: Schedule, x: Value, axis: int, table: np.ndarray, name: str) -> Value:
    """A new tensor of that name: x, along one axis of a sample the numbers at the table's places."""
    x, layout = stored(s, x)
    (dim,) = layout.axes[axis]
    size, count = layout.dims[dim], len(table)
    outer, inner = math.prod(layout.dims[:dim]), math.prod(layout.dims[dim + 1:])
    shape = tuple(count if i == axis else n for i, n in enumerate(layout.shape))
    y = s.make(name, resized(layout, shape))
    if x.name in s.needs:
        s.needs.add(name)
    order = s.store.constant(f"{name}.places", table.astype(np.int64))
    starts = s.store.constant(f"{name}.starts", np.arange(count + 1, dtype=np.int64))
    s.row("movement.gather", x=x.buffer, order=order, starts=starts, y=y.buffer, outer=outer, size=size, count=count,
          inner=inner, entries=count, accumulate=0)

    def backward() -> None:
        dy = s.gradient(name)
        if dy is None:
            return
        users = s.store.constant(f"{name}.users", np.argsort(table, kind="stable").astype(np.int64))
        user_starts = s.store.constant(f"{name}.user_starts", np.concatenate(
            [[0], np.cumsum(np.bincount(table, minlength=size))]).astype(np.int64))
        dx, accumulate = s.dx(x.name)
        s.row("movement.gather", x=dy.buffer, order=users, starts=user_starts, y=dx, outer=outer, size=count, count=size,
              inner=inner, entries=count, accumulate=accumulate)
        s.release(dy)
    if s.needs_gradient(x.name):
        s.backward(backward)
    return y
