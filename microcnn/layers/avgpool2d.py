"""AvgPool2d and GlobalAvgPool2d."""
from __future__ import annotations

from typing import TYPE_CHECKING

from ..layout import Layout
from .windows import GlobalPool2d, Pool2d, pool_window

if TYPE_CHECKING:
    from ..fusion import Step
    from ..parts import Value
    from ..plan import Schedule


class AvgPool2d(Pool2d):
    """ONNX AveragePool. Attributes kernel, stride, pads, dilation (1 where absent), ceil_mode, count_include_pad.

    Raises   ModelError: a window larger than the padded image, padding as large as the window
    Memory   nothing beside the output
    """

    op = "AvgPool2d"
    onnx = {"AveragePool": {}}

    @staticmethod
    def forward(s: Schedule, step: Step) -> None:
        x = s.channels_last(s.value(step.node.inputs[0]))
        fields, pads = pool_window(step.node, x.layout.shape)
        fields.update(pad_bottom=pads[2], pad_right=pads[3],
                      count_include_pad=int(bool(step.node.attrs.get("count_include_pad"))))
        y = s.make(step.output, Layout.channels_last((fields["C"], fields["OH"], fields["OW"])))
        s.row("avgpool2d.forward", x=x.buffer, y=y.buffer, **fields)
        _backward(s, step, x, "avgpool2d.backward", fields)


class GlobalAvgPool2d(GlobalPool2d):
    """ONNX GlobalAveragePool: (C, H, W) -> (C, 1, 1).

    Memory   nothing beside the output
    """

    op = "GlobalAvgPool2d"
    onnx = {"GlobalAveragePool": {}}

    @staticmethod
    def forward(s: Schedule, step: Step) -> None:
        x = s.channels_last(s.value(step.node.inputs[0]))
        C, H, W = x.layout.shape
        fields = {"pixels": H * W, "C": C}
        y = s.make(step.output, Layout.channels_last((C, 1, 1)))
        s.row("avgpool2d.forward_global", x=x.buffer, y=y.buffer, **fields)
        _backward(s, step, x, "avgpool2d.backward_global", fields)


def _backward(s: Schedule, step: Step, x: Value, entry: str, fields: dict[str, int]) -> None:
    """The row that takes the output's gradient back to x, where that is wanted."""
    def backward() -> None:
        dy = s.gradient(step.output)
        if dy is not None:
            target, accumulate = s.dx(x.name)
            s.row(entry, dy=dy.buffer, dx=target, accumulate=accumulate, **fields)
            s.release(dy)
    if s.needs_gradient(x.name):
        s.backward(backward)
