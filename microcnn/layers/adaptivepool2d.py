"""AdaptiveAvgPool2d and AdaptiveMaxPool2d: pooling to a given size, with windows that need not be equally large."""
from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..errors import ModelError
from .base import Layer, Shape, expect_image, expect_inputs
from .maxpool2d import max_rows
from .movement import gather_along
from .resampling import Table
from .resize import separate, table_rows
from .windows import window_fields

if TYPE_CHECKING:
    from ..fusion import Step
    from ..graph import Node
    from ..plan import Schedule


def ranges(length: int, size: int) -> list[range]:
    """What each of `size` positions looks at along an axis of that length, as PyTorch has it."""
    return [range(i * length // size, -(-(i + 1) * length // size)) for i in range(size)]


def averages(length: int, size: int) -> Table:
    """Each position as the mean of what it looks at."""
    found = ranges(length, size)
    counts = np.array([len(one) for one in found])
    return Table(np.concatenate([[0], np.cumsum(counts)]).astype(np.int32), np.concatenate(found).astype(np.int32),
                 np.repeat(1 / counts, counts))


def spread_out(length: int, size: int) -> np.ndarray:
    """Places (size, widest): what each position looks at, its last place repeated up to the widest."""
    found = ranges(length, size)
    widest = max(len(one) for one in found)
    return np.array([[one[min(i, len(one) - 1)] for i in range(widest)] for one in found])


class Adaptive(Layer):
    """What both have: attribute size (OH, OW). The i-th window along H ranges from floor(i H / OH) to ceil((i + 1) H / OH).

    Raises   ModelError: a size below 1
    """

    channels_last = True

    @staticmethod
    def infer(node: Node, shapes: list[Shape], weights: dict[str, Shape]) -> list[Shape]:
        expect_inputs(node, shapes, 1)
        C, _, _ = expect_image(node, shapes[0])
        size = tuple(node.attrs["size"])
        if len(size) != 2 or min(size) < 1:
            raise ModelError(f'{node.op} "{node.name}": size is {size}; expected (height, width), each at least 1')
        return [(C, *size)]


class AdaptiveAvgPool2d(Adaptive):
    """The mean of each window, along one axis after the other.

    Memory   a table of each axis, and the tensor after the first
    """

    op = "AdaptiveAvgPool2d"

    @staticmethod
    def macs(node: Node, shapes: list[Shape], outputs: list[Shape], weights: dict[str, Shape]) -> int:
        (C, H, W), (OH, OW) = shapes[0], node.attrs["size"]
        return int(C * (W * averages(H, OH).index.size + OH * averages(W, OW).index.size))

    @staticmethod
    def forward(s: Schedule, step: Step) -> None:
        x = separate(s, s.channels_last(s.value(step.node.inputs[0])))
        lengths = x.layout.shape[1:]
        table_rows(s, step, x, [(axis, length, averages(length, size)) for axis, (length, size) in
                                enumerate(zip(lengths, step.node.attrs["size"], strict=True), 1)])


class AdaptiveMaxPool2d(Adaptive):
    """The maximum of each window: the image with every window as large as the largest, then plain max pooling.

    Memory   that image, where the windows are not equally large already; one index per output, where a gradient passes
    """

    op = "AdaptiveMaxPool2d"

    @staticmethod
    def forward(s: Schedule, step: Step) -> None:
        x = s.channels_last(s.value(step.source))
        kernel = []
        for axis, size in enumerate(step.node.attrs["size"], 1):
            places = spread_out(x.layout.shape[axis], size)
            kernel.append(places.shape[1])
            if places.size != x.layout.shape[axis]:
                x = s.channels_last(gather_along(s, x, axis, places.reshape(-1), f"{step.output}@{axis}"))
        both = kernel[0], kernel[1]
        max_rows(s, step, x, window_fields(x.layout.shape, step.node.attrs["size"], both, both))
