"""Boxes: parts of stored tensors that a kernel walks with strides, and the rows that copy or fill them."""
from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import ModelError
from ..layout import Layout, merge_loops, pad5

if TYPE_CHECKING:
    from ..graph import Node
    from ..memory import Buffer
    from ..parts import Value
    from ..plan import Schedule

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Box:
    """A part of each sample: sizes and strides in numbers, slowest axis first, where it begins, and the sample's size."""

    sizes: Shape
    strides: Shape
    begin: int
    sample: int


def stored(s: Schedule, x: Value) -> tuple[Value, Layout]:
    """A tensor, moved if need be, and its layout with exactly one stored dimension for each of the model's axes."""
    shape = x.layout.shape
    if len(shape) > 1 and x.layout.is_channels_last():
        return x, Layout.channels_last(shape)
    if x.layout.is_plain():
        return x, Layout.plain(shape)
    if all(len(axis) == 1 for axis in x.layout.axes):
        return x, x.layout
    if len(shape) == 3:
        return s.channels_last(x), Layout.channels_last(shape)
    return s.plain(x), Layout.plain(shape)


def by_dimension(layout: Layout, by_axis: Shape) -> Shape:
    """What is given for each of the model's axes, for each stored dimension."""
    return tuple(by_axis[layout.axes.index((i,))] for i in range(len(layout.dims)))


def resized(layout: Layout, shape: Shape) -> Layout:
    """The same order of axes with other sizes."""
    return Layout(by_dimension(layout, shape), layout.axes)


def strides_of(layout: Layout) -> Shape:
    return tuple(math.prod(layout.dims[i + 1:]) for i in range(len(layout.dims)))


def part(layout: Layout, begins: Shape, sizes: Shape, steps: Shape | None = None) -> Box:
    """The part that begins there and has these sizes, all by axis, with steps between its numbers."""
    strides = strides_of(layout)
    begin = sum(b * stride for b, stride in zip(by_dimension(layout, begins), strides, strict=True))
    if steps is not None:
        strides = tuple(step * stride for step, stride in zip(by_dimension(layout, steps), strides, strict=True))
    return Box(by_dimension(layout, sizes), strides, begin, layout.size)


def whole(layout: Layout) -> Box:
    """All of a tensor."""
    return Box(layout.dims, strides_of(layout), 0, layout.size)


def copy(s: Schedule, node: Node, x: Buffer, source: Box, y: Buffer, target: Box, accumulate: int = 0) -> None:
    """Copy one box into another of the same sizes, or add it there. Raises ModelError where that takes too many loops."""
    # the target's fastest axis innermost
    order = sorted(range(len(target.sizes)), key=lambda i: -abs(target.strides[i]))
    loops = merge_loops(tuple(target.sizes[i] for i in order), tuple(source.strides[i] for i in order),
                        tuple(target.strides[i] for i in order))
    check_loops(node, loops[0])
    sizes, strides, to_strides = loops
    s.row("movement.copy", x=x, y=y, x_at=source.begin, y_at=target.begin, x_batch=source.sample, y_batch=target.sample,
          accumulate=accumulate, **(pad5(sizes, strides) | pad5(sizes, to_strides, "t")))


def check_loops(node: Node, sizes: Shape) -> None:
    """Raises ModelError where a kernel would need more than its five loops."""
    if len(sizes) > 5:
        raise ModelError(f'{node.op} "{node.name}": it takes {len(sizes)} loops; 5 are supported; split it into several')


def fill_around(s: Schedule, node: Node, y: Buffer, layout: Layout, begins: Shape, sizes: Shape,
                value: float) -> None:
    """A number everywhere but in the part that begins there and has these sizes, both by axis."""
    inner_begins, inner_sizes = by_dimension(layout, begins), by_dimension(layout, sizes)
    lows, counts = [0] * len(layout.dims), list(layout.dims)
    strides = strides_of(layout)
    for i, dim in enumerate(layout.dims):
        end = inner_begins[i] + inner_sizes[i]
        for low, count in ((0, inner_begins[i]), (end, dim - end)):
            if count:
                box = [*counts[:i], count, *counts[i + 1:]]
                at = sum(n * stride for n, stride in zip([*lows[:i], low, *lows[i + 1:]], strides, strict=True))
                merged, steps = merge_loops(tuple(box), strides)
                if steps[-1:] != (1,):
                    merged, steps = (*merged, 1), (*steps, 1)
                check_loops(node, merged)
                s.row("movement.fill", y=y, y_at=at, y_batch=layout.size, value=float(value), **pad5(merged, steps, "t"))
        lows[i], counts[i] = inner_begins[i], inner_sizes[i]


def region(source: Layout, section: Layout, layout: Layout) -> tuple[Shape, Shape, Shape] | None:
    """How a tensor is copied into a section of a larger one: sizes, strides in the source, strides in the larger one.

    section: the order of the larger tensor's layout with the source's sizes. None where the source must be moved first.
    """
    found = source.strides_for(section)
    if found is None:
        return None
    sizes, strides = found
    # a dimension of the larger tensor that the source has in several pieces is walked in as many loops
    pieces, targets = list(sizes), []
    for dim, stride in reversed(list(zip(section.dims, strides_of(layout), strict=True))):
        covered = pieces[-1]
        targets.append(stride)
        pieces.pop()
        while covered < dim:
            targets.append(stride * covered)
            covered *= pieces.pop()
    return sizes, strides, tuple(reversed(targets))
