"""Shrink: what lies near 0 becomes 0, the rest moves towards it."""
from __future__ import annotations

from typing import TYPE_CHECKING

from .activation import Activation

if TYPE_CHECKING:
    from ..fusion import Step
    from ..plan import Schedule


class Shrink(Activation):
    """ONNX Shrink: x + bias below -lambd, x - bias above lambd, 0 between. PyTorch's Softshrink has bias lambd, Hardshrink 0.

    Memory   nothing beside the input, which backward reads
    """

    op = "Shrink"
    onnx = {"Shrink": {"versions": (9,), "attributes": {"lambd": ("lambd", 0.5), "bias": ("bias", 0.0)}}}

    @staticmethod
    def forward(s: Schedule, step: Step) -> None:
        attrs = step.node.attrs
        x = s.value(step.node.inputs[0])
        if s.needs_gradient(x.name):
            s.keep(x)
        y = s.make(step.output, x.layout, x.buffer if s.free_to_overwrite(x) else None)
        s.row("shrink.forward", x=x.buffer, y=y.buffer, size=x.numbers, lambd=float(attrs["lambd"]), bias=float(attrs["bias"]))

        def backward() -> None:
            dy = s.gradient(step.output)
            if dy is not None:
                target, accumulate = s.dx_over(x.name, dy)
                s.row("shrink.backward", x=x.buffer, dy=dy.buffer, dx=target, size=x.numbers, lambd=float(attrs["lambd"]),
                      accumulate=accumulate)
                s.release(dy)
        if s.needs_gradient(x.name):
            s.backward(backward)
