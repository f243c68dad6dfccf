"""The geometry of windows that slide over an image: output sizes, padding, and the phases of a stride."""
from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import ModelError
from .base import Layer, Shape, expect_image, expect_inputs

if TYPE_CHECKING:
    from ..graph import Node

Pair = tuple[int, int]
Pads = tuple[int, int, int, int]


def resolve_pads(pads: str | Pads, size: Pair, kernel: Pair, stride: Pair, dilation: Pair) -> Pads:
    """(top, left, bottom, right); "same_upper" and "same_lower" as ONNX's auto_pad defines them."""
    if not isinstance(pads, str):
        top, left, bottom, right = pads
        return top, left, bottom, right
    needed = []
    for length, taps, step, spread in zip(size, kernel, stride, dilation, strict=True):
        outputs = -(-length // step)
        needed.append(max(0, (outputs - 1) * step + (taps - 1) * spread + 1 - length))
    small = [total // 2 for total in needed]
    large = [total - part for total, part in zip(needed, small, strict=True)]
    first, last = (small, large) if pads == "same_upper" else (large, small)
    return first[0], first[1], last[0], last[1]


def output_size(length: int, kernel: int, stride: int, before: int, after: int, dilation: int, ceil_mode: bool = False) -> int:
    """How many positions a window takes along one axis, 0 where it does not fit.

    before, after: the padding. With ceil_mode a last position may hang over, but must begin inside (as in PyTorch).
    """
    room = length + before + after - (kernel - 1) * dilation - 1
    if room < 0 and not (ceil_mode and room > -stride):
        return 0
    count = (-(-room // stride) if ceil_mode else room // stride) + 1
    if ceil_mode and (count - 1) * stride >= length + before:
        count -= 1
    return count


# No device holds more numbers of a sample.
LARGEST = 2**31 - 1


def output_hw(name: str, size: Pair, kernel: Pair, stride: Pair, pads: Pads, dilation: Pair, ceil_mode: bool = False) -> Pair:
    """(OH, OW). Raises ModelError where the window does not fit into the padded image."""
    H, W = size
    OH = output_size(H, kernel[0], stride[0], pads[0], pads[2], dilation[0], ceil_mode)
    OW = output_size(W, kernel[1], stride[1], pads[1], pads[3], dilation[1], ceil_mode)
    if OH < 1 or OW < 1:
        spread = ((kernel[0] - 1) * dilation[0] + 1, (kernel[1] - 1) * dilation[1] + 1)
        raise ModelError(f'"{name}": a window of {spread[0]}x{spread[1]} does not fit into an image of {H}x{W} with padding '
                         f"{tuple(pads)}; use a larger input or more padding")
    if OH * OW > LARGEST:
        raise ModelError(f'"{name}": padding {tuple(pads)} makes {OH}x{OW} positions of an image of {H}x{W}, which no device '
                         "can hold; use less")
    return OH, OW


@dataclass(frozen=True)
class Phase:
    """Which taps reach every step-th input position, along one axis, and from where in dY.

    Input positions first, first + stride, ... (count of them) see taps tap, tap + step, ... (taps of them), as a convolution
    of stride 1 over dY with the taps in reverse order, dilation apart, the first at dY position origin.
    """

    first: int
    count: int
    taps: int
    tap: int
    step: int
    dilation: int
    origin: int


def used_phases(length: int, kernel: int, stride: int, before: int, dilation: int) -> list[Phase]:
    """The phases of a stride along one axis of the input that taps reach, for the gradient of a convolution to its input.

    length: of the input; before: the padding before it.
    """
    common = math.gcd(dilation, stride)
    step, spread = stride // common, dilation // common
    found = []
    for tap in range(min(step, kernel)):
        remainder = tap * dilation % stride
        first = (remainder - before) % stride
        if first < length:
            taps = -(-(kernel - tap) // step)
            begin = (tap * dilation - remainder) // stride
            found.append(Phase(first, -(-(length - first) // stride), taps, tap, step, spread,
                               (first + before) // stride - begin - (taps - 1) * spread))
    return sorted(found, key=lambda phase: phase.first)


def phases(length: int, kernel: int, stride: int, before: int, dilation: int) -> list[Phase]:
    """As used_phases, and those that no tap reaches, with no taps."""
    used = {phase.first: phase for phase in used_phases(length, kernel, stride, before, dilation)}
    return [used.get(first) or Phase(first, -(-(length - first) // stride), 0, 0, 1, 1, 0)
            for first in range(min(stride, length))]


def pool_window(node: Node, shape: Shape) -> tuple[dict[str, int], Pads]:
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
    out = output_hw(node.name, (H, W), kernel, stride, pads, dilation, bool(attrs.get("ceil_mode")))
    return window_fields((C, H, W), out, kernel, stride, pads, dilation), pads


def window_fields(shape: Shape, out: Pair, kernel: Pair, stride: Pair, pads: Pads = (0, 0, 0, 0),
                  dilation: Pair = (1, 1)) -> dict[str, int]:
    """The fields that pooling rows share; out: (OH, OW)."""
    C, H, W = shape
    return {"H": H, "W": W, "C": C, "OH": out[0], "OW": out[1], "kernel_h": kernel[0], "kernel_w": kernel[1],
            "stride_h": stride[0], "stride_w": stride[1], "pad_top": pads[0], "pad_left": pads[1], "dilation_h": dilation[0],
            "dilation_w": dilation[1]}


class Pool2d(Layer):
    """What poolings share: (C, H, W) -> (C, OH, OW). Attributes kernel, stride, pads, dilation (1 where absent), ceil_mode.

    Raises   ModelError: a window larger than the padded image, padding as large as the window
    """

    channels_last = True

    @staticmethod
    def infer(node: Node, shapes: list[Shape], weights: dict[str, Shape]) -> list[Shape]:
        expect_inputs(node, shapes, 1)
        fields, _ = pool_window(node, shapes[0])
        return [(fields["C"], fields["OH"], fields["OW"])]


class GlobalPool2d(Layer):
    """What poolings over the whole image share: (C, H, W) -> (C, 1, 1)."""

    channels_last = True

    @staticmethod
    def infer(node: Node, shapes: list[Shape], weights: dict[str, Shape]) -> list[Shape]:
        expect_inputs(node, shapes, 1)
        return [(expect_image(node, shapes[0])[0], 1, 1)]
