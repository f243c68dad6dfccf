"""MaxPool2d, AvgPool2d and GlobalAvgPool2d."""
from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import ModelError
from ..layout import Layout
from .base import Layer, Shape, expect_image, expect_inputs
from .windows import Pads, output_hw, resolve_pads

if TYPE_CHECKING:
    from ..fusion import Step
    from ..graph import Node
    from ..plan import Schedule

Fields = dict[str, int]


def window(node: Node, shape: Shape) -> tuple[Fields, Pads]:
    """The fields that pooling rows share, and the padding. Raises ModelError where the window does not fit."""
    C, H, W = expect_image(node, shape)
    attrs = node.attrs
    kernel, stride = tuple(attrs["kernel"]), tuple(attrs["stride"])
    dilation = tuple(attrs.get("dilation", (1, 1)))
    if min(stride) < 1 or min(kernel) < 1 or min(dilation) < 1:
        raise ModelError(f'{node.op} "{node.name}": kernel {kernel}, stride {stride} and dilation {dilation} must be at '
                         "least 1")
    pads = resolve_pads(attrs["pads"], (H, W), kernel, stride, dilation)
    spread = [(taps - 1) * step + 1 for taps, step in zip(kernel, dilation, strict=True)]
    if pads[0] >= spread[0] or pads[1] >= spread[1] or pads[2] >= spread[0] or pads[3] >= spread[1] or min(pads) < 0:
        raise ModelError(f'{node.op} "{node.name}": padding {pads} must be at least 0 and less than the window {tuple(spread)}')
    OH, OW = output_hw(node.name, (H, W), kernel, stride, pads, dilation, bool(attrs.get("ceil_mode")))
    return {"H": H, "W": W, "C": C, "OH": OH, "OW": OW, "kernel_h": kernel[0], "kernel_w": kernel[1], "stride_h": stride[0],
            "stride_w": stride[1], "pad_top": pads[0], "pad_left": pads[1], "dilation_h": dilation[0],
            "dilation_w": dilation[1]}, pads


def pooled_shape(node: Node, shapes: list[Shape]) -> list[Shape]:
    expect_inputs(node, shapes, 1)
    fields, _ = window(node, shapes[0])
    return [(fields["C"], fields["OH"], fields["OW"])]


class MaxPool2d(Layer):
    """ONNX MaxPool. Attributes kernel, stride, pads, dilation, ceil_mode. The first maximum wins ties, NaN wins.

    Raises   ModelError: a window larger than the padded image, padding as large as the window
    Memory   one index per output, in the smallest type that fits, where a gradient passes
    """

    op = "MaxPool2d"
    channels_last = True
    onnx = {"MaxPool": {"since": 1}}

    @staticmethod
    def infer(node: Node, shapes: list[Shape], weights: dict[str, Shape]) -> list[Shape]:
        return pooled_shape(node, shapes)

    @staticmethod
    def forward(s: Schedule, step: Step) -> None:
        x = s.channels_last(s.value(step.node.inputs[0]))
        fields, _ = window(step.node, x.layout.shape)
        y = s.make(step.output, Layout.channels_last((fields["C"], fields["OH"], fields["OW"])))
        positions = fields["kernel_h"] * fields["kernel_w"]
        fields["index_bytes"] = 1 if positions <= 1 << 8 else 2 if positions <= 1 << 16 else 4
        passes = s.needs_gradient(x.name)
        indices = s.saved(f"{step.output}.indices", s.batch * y.numbers * fields["index_bytes"]) if passes else None
        s.row("pool2d.maxpool_forward", x=x.buffer, y=y.buffer, indices=indices, **fields)

        def backward() -> None:
            dy = s.gradient(step.output)
            if dy is not None:
                target, accumulate = s.dx(x.name)
                s.row("pool2d.maxpool_backward", indices=indices, dy=dy.buffer, dx=target, accumulate=accumulate, **fields)
                s.release(dy)
        if passes:
            s.backward(backward)


class AvgPool2d(Layer):
    """ONNX AveragePool. Attributes kernel, stride, pads, ceil_mode, count_include_pad.

    Raises   ModelError: a window larger than the padded image, padding as large as the window
    Memory   nothing beside the output
    """

    op = "AvgPool2d"
    channels_last = True
    onnx = {"AveragePool": {"since": 1}}

    @staticmethod
    def infer(node: Node, shapes: list[Shape], weights: dict[str, Shape]) -> list[Shape]:
        return pooled_shape(node, shapes)

    @staticmethod
    def forward(s: Schedule, step: Step) -> None:
        x = s.channels_last(s.value(step.node.inputs[0]))
        fields, pads = window(step.node, x.layout.shape)
        for name in ("dilation_h", "dilation_w"):
            del fields[name]
        fields.update(pad_bottom=pads[2], pad_right=pads[3],
                      count_include_pad=int(bool(step.node.attrs.get("count_include_pad"))))
        y = s.make(step.output, Layout.channels_last((fields["C"], fields["OH"], fields["OW"])))
        s.row("pool2d.avgpool_forward", x=x.buffer, y=y.buffer, **fields)

        def backward() -> None:
            dy = s.gradient(step.output)
            if dy is not None:
                target, accumulate = s.dx(x.name)
                s.row("pool2d.avgpool_backward", dy=dy.buffer, dx=target, accumulate=accumulate, **fields)
                s.release(dy)
        if s.needs_gradient(x.name):
            s.backward(backward)


class GlobalAvgPool2d(Layer):
    """ONNX GlobalAveragePool: (C, H, W) -> (C, 1, 1).

    Memory   nothing beside the output
    """

    op = "GlobalAvgPool2d"
    channels_last = True
    onnx = {"GlobalAveragePool": {"since": 1}}

    @staticmethod
    def infer(node: Node, shapes: list[Shape], weights: dict[str, Shape]) -> list[Shape]:
        expect_inputs(node, shapes, 1)
        return [(expect_image(node, shapes[0])[0], 1, 1)]

    @staticmethod
    def forward(s: Schedule, step: Step) -> None:
        x = s.channels_last(s.value(step.node.inputs[0]))
        C, H, W = x.layout.shape
        y = s.make(step.output, Layout.channels_last((C, 1, 1)))
        s.row("pool2d.globalavgpool_forward", x=x.buffer, y=y.buffer, pixels=H * W, C=C)

        def backward() -> None:
            dy = s.gradient(step.output)
            if dy is not None:
                target, accumulate = s.dx(x.name)
                s.row("pool2d.globalavgpool_backward", dy=dy.buffer, dx=target, pixels=H * W, C=C, accumulate=accumulate)
                s.release(dy)
        if s.needs_gradient(x.name):
            s.backward(backward)
