"""Add with broadcasting, and Dropout."""
from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ..errors import ModelError
from ..layout import Layout, merge_loops, pad5
from .base import Layer, Shape, expect_inputs

if TYPE_CHECKING:
    from ..fusion import Step
    from ..graph import Node
    from ..memory import Buffer
    from ..plan import Schedule, Value


def against_batch(node: Node, weight: Shape, rank: int) -> Shape:
    """A weight's shape as one sample sees it. Raises ModelError where it has an axis of its own for the batch."""
    if len(weight) > rank + 1 or (len(weight) == rank + 1 and weight[0] != 1):
        raise ModelError(f'{node.op} "{node.name}": the constant has shape {weight}, which does not broadcast against a batch '
                         f"of tensors with {rank} axes")
    return weight[1:] if len(weight) == rank + 1 else weight


def broadcast(node: Node, a: Shape, b: Shape) -> Shape:
    """The common shape of two samples, aligned at the last axis. Raises ModelError where they do not fit."""
    rank = max(len(a), len(b))
    result = []
    for m, n in zip((1,) * (rank - len(a)) + a, (1,) * (rank - len(b)) + b, strict=True):
        if m != n and 1 not in (m, n):
            raise ModelError(f'{node.op} "{node.name}": shapes {a} and {b} of one sample do not broadcast')
        result.append(max(m, n) if 0 not in (m, n) else 0)
    return tuple(result)


def expanded_strides(layout: Layout, target: Layout) -> tuple[Shape, Shape] | None:
    """Sizes and strides to read a tensor in target's order, stride 0 along the axes that broadcast."""
    shape = target.shape
    stored = ((),) * (len(shape) - len(layout.axes)) + layout.axes
    still = [axis for axis, size in enumerate(shape) if math.prod(layout.dims[i] for i in stored[axis]) != size]
    # the axes that stand still, put in front: their strides are multiples of the whole tensor's size
    axes = tuple((still.index(axis),) if axis in still else tuple(len(still) + i for i in own)
                 for axis, own in enumerate(stored))
    whole = Layout((*(shape[axis] for axis in still), *layout.dims), axes)
    found = whole.strides_for(target)
    if found is None:
        return None
    return found[0], tuple(0 if stride >= max(1, layout.size) else stride for stride in found[1])


class Add(Layer):
    """ONNX Add of two tensors, or of one and a constant "other", with broadcasting in ONNX's order of axes.

    Raises   ModelError: shapes that do not broadcast
    Memory   nothing beside the output, which takes an operand's place where that is free
    """

    op = "Add"
    trainable = ("other",)
    onnx = {"Add": {"since": 7}}

    @staticmethod
    def infer(node: Node, shapes: list[Shape], weights: dict[str, Shape]) -> list[Shape]:
        if "other" in weights:
            expect_inputs(node, shapes, 1)
            return [broadcast(node, shapes[0], against_batch(node, weights["other"], len(shapes[0])))]
        expect_inputs(node, shapes, 2)
        if len(shapes[0]) != len(shapes[1]):
            raise ModelError(f'Add "{node.name}": shapes {shapes[0]} and {shapes[1]} of one sample have different numbers of '
                             "axes, so the batch of one would meet another axis")
        return [broadcast(node, shapes[0], shapes[1])]

    @staticmethod
    def forward(s: Schedule, step: Step) -> None:
        node = step.node
        shape = s.shapes[node.outputs[0]]
        a = s.value(node.inputs[0])
        if "other" not in node.weights and s.shapes[node.inputs[1]] == s.shapes[node.inputs[0]]:
            add_same(s, step, a, s.value(node.inputs[1]))
        else:
            add_broadcast(s, step, a, shape)


def add_same(s: Schedule, step: Step, a: Value, b: Value) -> None:
    """Two tensors of one shape; b is moved where it lies otherwise."""
    if not a.layout.same_order(b.layout):
        b = s.moved(b, a.layout)
    place = a.buffer if s.free_to_overwrite(a) else b.buffer if s.free_to_overwrite(b) else None
    y = s.make(step.output, a.layout, place)
    s.row("elementwise.add", a=a.buffer, b=b.buffer, y=y.buffer, size=y.numbers, low=step.low, high=step.high)
    if not s.node_live(step):
        return
    if step.clamps:
        s.keep(y)

    def backward() -> None:
        dy = s.through_clamp(step, y)
        if dy is not None:
            s.give(a.name, dy)
            s.give(b.name, dy)
            s.release(dy)
    s.backward(backward)


def add_broadcast(s: Schedule, step: Step, a: Value, shape: Shape) -> None:
    """Operands of different shapes, each read with strides of its own."""
    node = step.node
    constant = "other" in node.weights
    operands: list[tuple[str, Layout, Buffer | None, bool]] = []
    if constant:
        ref = node.weights["other"]
        stored = against_batch(node, ref.apply(s.graph.weights[ref.name]).shape, len(s.shapes[node.inputs[0]]))
        operands = [(a.name, a.layout, a.buffer, True), ("", Layout.plain(stored), s.weight(node, "other"), False)]
    else:
        b = s.value(node.inputs[1])
        operands = [(a.name, a.layout, a.buffer, True), (b.name, b.layout, b.buffer, True)]
    layout = next((lay for _, lay, _, _ in operands if lay.shape == shape), Layout.plain(shape))
    strides = [expanded_strides(lay, layout) for _, lay, _, _ in operands]
    if None in strides or strides[0][0] != strides[1][0]:  # type: ignore[index]
        layout = Layout.plain(shape)
        moved = [s.plain(s.value(name)) if name else None for name, _, _, _ in operands]
        # as Layout.plain, for one that lies plainly may still be cut into other dimensions
        operands = [(m.name, Layout.plain(m.layout.shape), m.buffer, True) if m else old
                    for m, old in zip(moved, operands, strict=True)]
        strides = [expanded_strides(lay, layout) for _, lay, _, _ in operands]
    (all_sizes, a_strides), (_, b_strides) = strides    # type: ignore[misc]
    sizes, *loops = merge_loops(all_sizes, a_strides, b_strides)
    if len(sizes) > 5:
        raise ModelError(f'Add "{node.name}": this broadcast takes {len(sizes)} loops; 5 are supported')
    batches = [lay.size if tensor else 0 for _, lay, _, tensor in operands]
    y = s.make(step.output, layout)
    fields = pad5(sizes, loops[0], "a") | pad5(sizes, loops[1], "b")
    s.row("elementwise.add_broadcast", a=operands[0][2], b=operands[1][2], y=y.buffer, a_batch=batches[0],
          b_batch=batches[1], low=step.low, high=step.high, **fields)
    if not s.node_live(step):
        return
    if step.clamps:
        s.keep(y)

    def reduced(dy: Buffer, target: Buffer, which: int, accumulate: int) -> None:
        s.row("elementwise.reduce_broadcast", dy=dy, dx=target, batch_stride=batches[which],
              size=operands[which][1].size, accumulate=accumulate, **pad5(sizes, loops[which]))

    def backward() -> None:
        dy = s.through_clamp(step, y)
        if dy is None:
            return
        for which, (name, operand, _, tensor) in enumerate(operands):
            if tensor and s.needs_gradient(name):
                if operand.same_order(layout) and operand.shape == shape:
                    s.give(name, dy)
                else:
                    target, accumulate = s.dx(name)
                    reduced(dy.buffer, target, which, accumulate)
            elif not tensor and s.trains(node, "other"):
                target, accumulate = s.dweight(node, "other")
                reduced(dy.buffer, target, which, accumulate)
                s.weight_done(node, "other")
        s.release(dy)
    s.backward(backward)


class Dropout(Layer):
    """Inverted dropout in training, nothing otherwise. Attribute p. Seeded: the same seed and step give the same mask.

    Raises   ModelError: p outside 0..1
    Memory   nothing: the mask is made again in backward
    """

    op = "Dropout"
    onnx = {"Dropout": {"since": 1}}

    @staticmethod
    def infer(node: Node, shapes: list[Shape], weights: dict[str, Shape]) -> list[Shape]:
        expect_inputs(node, shapes, 1)
        if not 0 <= node.attrs["p"] <= 1:
            raise ModelError(f'Dropout "{node.name}": p (={node.attrs["p"]}) must lie between 0 and 1')
        return [shapes[0]]

    @staticmethod
    def forward(s: Schedule, step: Step) -> None:
        node = step.node
        x = s.value(node.inputs[0])
        if not s.live or node.attrs["p"] == 0:
            s.alias(step.output, x, x.layout)
            if s.needs_gradient(x.name):
                s.backward(lambda: s.pass_on(step.output, x.name))
            return
        fields = {"size": x.numbers, "p": float(node.attrs["p"]), "layer": s.graph.nodes.index(node)}
        y = s.make(step.output, x.layout, x.buffer if s.free_to_overwrite(x) else None)
        s.row("elementwise.dropout_forward", x=x.buffer, y=y.buffer, **fields)

        def backward() -> None:
            dy = s.gradient(step.output)
            if dy is not None:
                target, accumulate = s.dx_over(x.name, dy)
                s.row("elementwise.dropout_backward", dy=dy.buffer, dx=target, accumulate=accumulate, **fields)
                s.release(dy)
        if s.needs_gradient(x.name):
            s.backward(backward)
