"""Softmax and its logarithm over one axis, or over all axes from one on (ONNX before opset 13)."""
from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

from ..errors import ModelError
from .base import Layer, Shape, expect_inputs

if TYPE_CHECKING:
    from ..fusion import Step
    from ..graph import Node
    from ..layout import Layout
    from ..plan import Schedule

# As kernels/softmax.py numbers them.
SOFTMAX, LOG_SOFTMAX = range(2)


def axes_of(node: Node, shape: Shape) -> list[int]:
    """The axes, without the batch, that are normalised together. Raises ModelError for the batch axis."""
    rank = len(shape) + 1
    axis = node.attrs["axis"]
    if not -rank <= axis < rank or axis % rank == 0:
        raise ModelError(f'{node.op} "{node.name}": axis (={axis}) must be an axis of the sample, 1 to {rank - 1} or '
                         f"{-rank + 1} to -1")
    axis %= rank
    return list(range(axis - 1, rank - 1)) if node.attrs["flatten"] else [axis - 1]


def groups(layout: Layout, axes: list[int]) -> tuple[int, int] | None:
    """(numbers in a group, distance of its neighbours), None where a group is not evenly spaced in memory."""
    chosen = {i for axis in axes for i in layout.axes[axis] if layout.dims[i] != 1}
    present = [i for i in range(len(layout.dims)) if layout.dims[i] != 1]
    places = [present.index(i) for i in sorted(chosen)]
    if places and places != list(range(places[0], places[0] + len(places))):
        return None
    after = math.prod(layout.dims[i] for i in present[places[-1] + 1:]) if places else 1
    return math.prod(layout.dims[i] for i in chosen), after


class Softmax(Layer):
    """ONNX Softmax. Attributes axis (the batch is 0), flatten (all axes from axis on).

    Raises   ModelError: an axis that is the batch, or none
    Memory   nothing: the derivative needs only the output
    """

    op = "Softmax"
    kind: ClassVar[int] = SOFTMAX
    onnx = {"Softmax": {}}

    @staticmethod
    def infer(node: Node, shapes: list[Shape], weights: dict[str, Shape]) -> list[Shape]:
        expect_inputs(node, shapes, 1)
        axes_of(node, shapes[0])
        return [shapes[0]]

    @classmethod
    def forward(cls, s: Schedule, step: Step) -> None:
        x = s.value(step.node.inputs[0])
        axes = axes_of(step.node, x.layout.shape)
        found = groups(x.layout, axes)
        if found is None:
            x = s.plain(x)
            found = groups(x.layout, axes)
            assert found is not None
        C, inner = found
        rows = x.numbers // C
        y = s.make(step.output, x.layout, x.buffer if s.free_to_overwrite(x) else None)
        s.row("softmax.forward", x=x.buffer, y=y.buffer, rows=rows, C=C, inner=inner, kind=cls.kind)
        if not s.needs_gradient(x.name):
            return
        s.keep(y)

        def backward() -> None:
            dy = s.gradient(step.output)
            if dy is not None:
                target, accumulate = s.dx_over(x.name, dy)
                s.row("softmax.backward", y=y.buffer, dy=dy.buffer, dx=target, rows=rows, C=C, inner=inner, kind=cls.kind,
                      accumulate=accumulate)
                s.release(dy)
        s.backward(backward)


class LogSoftmax(Softmax):
    """ONNX LogSoftmax: the logarithm of Softmax, with the same attributes."""

    op = "LogSoftmax"
    kind = LOG_SOFTMAX
    onnx = {"LogSoftmax": {}}
