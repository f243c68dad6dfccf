"""MaxPool2d and GlobalMaxPool2d, with the activation that stands before them."""
from __future__ import annotations

from typing import TYPE_CHECKING

from ..layout import Layout
from .windows import GlobalPool2d, Pool2d, pool_window, window_fields

if TYPE_CHECKING:
    from ..fusion import Step
    from ..parts import Value
    from ..plan import Schedule


class MaxPool2d(Pool2d):
    """ONNX MaxPool. Attributes kernel, stride, pads, dilation, ceil_mode. The first maximum wins ties, NaN wins.

    Raises   ModelError: a window larger than the padded image, padding as large as the window
    Memory   one index per output, in the smallest type that fits, where a gradient passes
    """

    op = "MaxPool2d"
    onnx = {"MaxPool": {}}

    @staticmethod
    def forward(s: Schedule, step: Step) -> None:
        x = s.channels_last(s.value(step.source))
        fields, _ = pool_window(step.node, x.layout.shape)
        max_rows(s, step, x, fields)


class GlobalMaxPool2d(GlobalPool2d):
    """ONNX GlobalMaxPool: (C, H, W) -> (C, 1, 1). The first maximum wins ties, NaN wins.

    Memory   one index per output, in the smallest type that fits, where a gradient passes
    """

    op = "GlobalMaxPool2d"
    onnx = {"GlobalMaxPool": {}}

    @staticmethod
    def forward(s: Schedule, step: Step) -> None:
        x = s.channels_last(s.value(step.source))
        C, H, W = x.layout.shape
        max_rows(s, step, x, window_fields((C, H, W), (1, 1), (H, W), (H, W)))


def max_rows(s: Schedule, step: Step, x: Value, fields: dict[str, int]) -> None:
    """The rows of max pooling over the windows that the fields describe, and of the clamp before it."""
    y = s.make(step.output, Layout.channels_last((fields["C"], fields["OH"], fields["OW"])))
    positions = fields["kernel_h"] * fields["kernel_w"]
    fields["index_bytes"] = 1 if positions <= 1 << 8 else 2 if positions <= 1 << 16 else 4
    bounds = {"low": step.low, "high": step.high}
    passes = s.needs_gradient(x.name)
    indices = s.saved(f"{step.output}.indices", s.batch * y.numbers * fields["index_bytes"]) if passes else None
    make = s.unmade.pop(x.name, None)
    if make is None:
        s.row("maxpool2d.forward", x=x.buffer, y=y.buffer, indices=indices, **fields, **bounds)
    else:
        make(y, indices, fields, bounds)
    if not passes:
        return
    if step.clamps:
        s.keep(y)

    clamped = y.buffer if step.clamps else None

    def backward() -> None:
        dy = s.gradient(step.output)
        if dy is None:
            return

        def spread() -> None:
            before, s.node = s.node, step.node
            target, accumulate = s.dx(x.name)
            s.row("maxpool2d.backward", indices=indices, y=clamped, dy=dy.buffer, dx=target, accumulate=accumulate, **fields,
                  **bounds)
            s.release(dy)
            s.node = before
        # what made x, and nothing else, comes next: it may do without the zeros between the winners
        if x.shared:
            spread()
        else:
            s.pooled(x.name, dy=dy, indices=indices, clamped=clamped, fields=fields, low=step.low, high=step.high,
                     spread=spread)
    s.backward(backward)
