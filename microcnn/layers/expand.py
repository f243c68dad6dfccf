"""Tile and Expand: tensors repeated."""
from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import ModelError
from ..layout import Layout, merge_loops, pad5
from .base import Layer, Shape, expect_inputs
from .boxes import check_loops, resized, stored, strides_of
from .elementwise import ADD, broadcast, expanded_strides
from .movement import unchanged

if TYPE_CHECKING:
    from ..fusion import Step
    from ..graph import Node
    from ..parts import Value
    from ..plan import Schedule


def repeat(s: Schedule, step: Step, x: Value, layout: Layout, loops: tuple[Shape, ...]) -> None:
    """The step's output, of that layout, from loops over it with strides for x, 0 where x is repeated."""
    node = step.node
    sizes, strides, targets = merge_loops(*loops, strides_of(Layout.plain(loops[0])))
    check_loops(node, sizes)
    y = s.make(step.output, layout)
    s.row("movement.copy", x=x.buffer, y=y.buffer, x_at=0, y_at=0, x_batch=x.numbers, y_batch=layout.size, accumulate=0,
          **(pad5(sizes, strides) | pad5(sizes, targets, "t")))

    def backward() -> None:
        dy = s.gradient(step.output)
        if dy is None:
            return
        dx, accumulate = s.dx(x.name)
        none = {f"{operand}{axis}": 0 for operand in "ab" for axis in ("_batch", *range(5))}      # a sum reads dY alone
        s.row("elementwise_gradient.reduce_broadcast", dy=dy.buffer, a=None, b=None, dx=dx, batch_stride=x.numbers,
              size=x.numbers, kind=ADD, second=0, accumulate=accumulate, **none, **pad5(sizes, strides))
        s.release(dy)
    if s.needs_gradient(x.name):
        s.backward(backward)


class Tile(Layer):
    """ONNX Tile. Attribute repeats: how often, for each axis of a sample.

    Raises   ModelError: repeats below 1, or along more axes than five loops can walk
    Memory   nothing beside the output
    """

    op = "Tile"
    onnx = {"Tile": {}}

    @staticmethod
    def infer(node: Node, shapes: list[Shape], weights: dict[str, Shape]) -> list[Shape]:
        expect_inputs(node, shapes, 1)
        repeats = node.attrs["repeats"]
        if len(repeats) != len(shapes[0]) or min(repeats, default=1) < 1:
            raise ModelError(f'Tile "{node.name}": repeats {tuple(repeats)} must be {len(shapes[0])} numbers of at least 1 for '
                             f"a sample of shape {shapes[0]}")
        return [tuple(n * times for n, times in zip(shapes[0], repeats, strict=True))]

    @staticmethod
    def forward(s: Schedule, step: Step) -> None:
        repeats = tuple(step.node.attrs["repeats"])
        if set(repeats) <= {1}:
            unchanged(s, step)
            return
        x, layout = stored(s, s.value(step.node.inputs[0]))
        sizes: list[int] = []
        strides: list[int] = []
        ordered = [repeats[layout.axes.index((i,))] for i in range(len(repeats))]
        for n, times, stride in zip(layout.dims, ordered, strides_of(layout), strict=True):
            sizes += [times, n]
            strides += [0, stride]
        repeat(s, step, x, resized(layout, s.shapes[step.node.outputs[0]]), (tuple(sizes), tuple(strides)))


class Expand(Layer):
    """ONNX Expand. Attribute shape, of one sample, against which the input is broadcast: sizes of 1 leave an axis as it is.

    Raises   ModelError: shapes that do not broadcast
    Memory   nothing beside the output
    """

    op = "Expand"
    onnx = {"Expand": {}}

    @staticmethod
    def infer(node: Node, shapes: list[Shape], weights: dict[str, Shape]) -> list[Shape]:
        expect_inputs(node, shapes, 1)
        if len(node.attrs["shape"]) != len(shapes[0]):
            raise ModelError(f'Expand "{node.name}": shape {tuple(node.attrs["shape"])} must have as many axes as a sample of '
                             f"shape {shapes[0]}")
        return [broadcast(node, shapes[0], tuple(node.attrs["shape"]))]

    @staticmethod
    def forward(s: Schedule, step: Step) -> None:
        shape = s.shapes[step.node.outputs[0]]
        if shape == s.shapes[step.node.inputs[0]]:
            unchanged(s, step)
            return
        x, layout = stored(s, s.value(step.node.inputs[0]))
        target = resized(layout, shape)
        loops = expanded_strides(layout, target)
        assert loops is not None
        repeat(s, step, x, target, loops)
