"""Local response normalisation along the channels."""
from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import ModelError
from ..layout import Layout
from .base import Layer, Shape, expect_inputs

if TYPE_CHECKING:
    from ..fusion import Step
    from ..graph import Node
    from ..plan import Schedule

# As many chunks of rows as the kernels make at most; each has three lines of scratch.
CHUNKS = 16


class LRN(Layer):
    """ONNX LRN: x / (bias + alpha / size * the sum of squares of the `size` channels around it) ** beta.

    Raises   ModelError: a size below 1, an input without channels
    Memory   three lines of C + size - 1 numbers for each chunk of rows
    """

    op = "LRN"
    channels_last = True
    onnx = {"LRN": {}}

    @staticmethod
    def infer(node: Node, shapes: list[Shape], weights: dict[str, Shape]) -> list[Shape]:
        expect_inputs(node, shapes, 1)
        if not shapes[0] or node.attrs["size"] < 1:
            raise ModelError(f'LRN "{node.name}" reads "{node.inputs[0]}" of shape {shapes[0]} for one sample, with size '
                             f'{node.attrs["size"]}; expected (channels, ...) and a size of at least 1')
        return [shapes[0]]

    @staticmethod
    def forward(s: Schedule, step: Step) -> None:
        attrs = step.node.attrs
        x = s.value(step.node.inputs[0])
        shape = x.layout.shape
        x = s.channels_last(x) if len(shape) > 1 else s.plain(x)
        C, live = shape[0], s.needs_gradient(x.name)
        fields = {"pixels": x.numbers // C, "C": C, "size": attrs["size"],
                  **{name: float(attrs[name]) for name in ("alpha", "beta", "bias")}}
        room = CHUNKS * 3 * (C + attrs["size"] - 1) * s.itemsize
        if live:
            s.keep(x)
        layout = Layout.channels_last(shape) if len(shape) > 1 else Layout.plain(shape)
        y = s.make(step.output, layout, x.buffer if s.free_to_overwrite(x) else None)
        s.row("lrn.forward", x=x.buffer, y=y.buffer, scratch=s.scratch(room), **fields)
        if not live:
            return

        def backward() -> None:
            dy = s.gradient(step.output)
            if dy is not None:
                target, accumulate = s.dx_over(x.name, dy)
                s.row("lrn.backward", x=x.buffer, dy=dy.buffer, dx=target, scratch=s.scratch(room), accumulate=accumulate,
                      **fields)
                s.release(dy)
        s.backward(backward)
