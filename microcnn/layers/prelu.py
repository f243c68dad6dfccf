"""PReLU: a leaky ReLU whose slope is trained."""
from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import ModelError
from .base import Layer, Shape, expect_inputs
from .elementwise import against_batch

if TYPE_CHECKING:
    from ..fusion import Step
    from ..graph import Node
    from ..layout import Layout
    from ..plan import Schedule


def runs_along(slope: Shape, shape: Shape) -> list[int]:
    """The axes of a sample along which a slope has numbers of its own."""
    first = len(shape) - len(slope)
    return [axis for axis in range(max(first, 0), len(shape)) if slope[axis - first] != 1]


def rows_of(layout: Layout, axes: list[int]) -> tuple[int, int] | None:
    """(number of slopes, numbers between two of them), None where they do not lie one after the other as in the weight."""
    present = [i for i, size in enumerate(layout.dims) if size != 1]
    places = [present.index(i) for axis in axes for i in layout.axes[axis] if layout.dims[i] != 1]
    if not places:
        return 1, layout.size
    if places != list(range(places[0], places[0] + len(places))):
        return None
    C = inner = 1
    for place, i in enumerate(present):
        if place in places:
            C *= layout.dims[i]
        elif place > places[-1]:
            inner *= layout.dims[i]
    return C, inner


class PRelu(Layer):
    """ONNX PRelu: x where it is positive, else x times the slope, a weight that broadcasts against x.

    Raises   ModelError: a slope that does not broadcast, or that runs along axes with another between them
    Memory   nothing: backward reads the input
    """

    op = "PRelu"
    trainable = ("slope",)
    onnx = {"PRelu": {}}

    @staticmethod
    def infer(node: Node, shapes: list[Shape], weights: dict[str, Shape]) -> list[Shape]:
        expect_inputs(node, shapes, 1)
        shape = shapes[0]
        slope = against_batch(node, weights["slope"], len(shape))
        axes = runs_along(slope, shape)
        if any(slope[axis - len(shape) + len(slope)] != shape[axis] for axis in axes):
            raise ModelError(f'PRelu "{node.name}": the slope has shape {weights["slope"]}, which does not broadcast to '
                             f"{shape} of one sample")
        if axes and any(shape[axis] != 1 and axis not in axes for axis in range(axes[0], axes[-1])):
            raise ModelError(f'PRelu "{node.name}": the slope has shape {weights["slope"]}; expected its axes larger than one '
                             "to be neighbours, so repeat it along those between them")
        return [shape]

    @staticmethod
    def forward(s: Schedule, step: Step) -> None:
        node = step.node
        x = s.value(node.inputs[0])
        ref = node.weights["slope"]
        stored = against_batch(node, ref.apply(s.graph.weights[ref.name]).shape, len(x.layout.shape))
        axes = runs_along(stored, x.layout.shape)
        found = rows_of(x.layout, axes)
        if found is None:
            x = s.plain(x)
            found = rows_of(x.layout, axes)
            assert found is not None
        C, inner = found
        sizes = {"outer": x.numbers // (C * inner), "C": C, "inner": inner}
        slope = s.weight(node, "slope")
        live = s.node_live(step)
        if live:
            s.keep(x)
        y = s.make(step.output, x.layout, x.buffer if s.free_to_overwrite(x) else None)
        s.row("prelu.forward", x=x.buffer, slope=slope, y=y.buffer, **sizes)
        if not live:
            return

        def backward() -> None:
            dy = s.gradient(step.output)
            if dy is None:
                return
            trains = s.trains(node, "slope")
            if trains:
                target, accumulate = s.dweight(node, "slope")
                s.row("prelu.slope_gradient", x=x.buffer, dy=dy.buffer, dslope=target, **sizes, accumulate=accumulate)
            if s.needs_gradient(x.name):
                target, accumulate = s.dx_over(x.name, dy)
                s.row("prelu.backward", x=x.buffer, dy=dy.buffer, slope=slope, dx=target, **sizes, accumulate=accumulate)
            if trains:
                s.weight_done(node, "slope")    # which may update it: only now that dx is made of it
            s.release(dy)
        s.backward(backward)
