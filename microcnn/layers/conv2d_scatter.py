"""dX of a convolution with few input channels: every output pixel adds its window."""
from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..memory import Buffer
    from ..parts import Gradient
    from ..plan import Schedule
    from .conv2d import Geometry

CHUNKS = 8


def scatter_pays(s: Schedule, g: Geometry) -> bool:
    """Whether few channels would leave so many lanes of the forward kernel empty that adding windows up is cheaper."""
    if g.G != 1 or g.dilation[1] != 1 or g.OH * g.OW > 4096:
        return False
    gathered = g.H * g.W * g.R * g.S * math.ceil(g.C / s.lanes) / (g.stride[0] * g.stride[1])
    scattered = g.OH * g.OW * g.R * math.ceil(g.S * g.C / s.lanes)
    return scattered * 1.5 < gathered


def turned(s: Schedule, g: Geometry, weight: Buffer | None) -> tuple[Buffer, int]:
    """The weights as windows, (R, K, S * C) with rows of whole registers, and the length of a row."""
    w_row = math.ceil(g.S * g.C / s.lanes) * s.lanes
    packed = s.scratch(g.R * g.K * w_row * s.itemsize, "packed")
    s.row("conv2d_scatter.turn", weight=weight, packed=packed, R=g.R, SC=g.S * g.C, K=g.K, w_row=w_row)
    return packed, w_row


def covered_size(g: Geometry) -> tuple[int, int]:
    """Rows and columns of an image that holds all windows, and all of the input."""
    return (max((g.OH - 1) * g.stride[0] + (g.R - 1) * g.dilation[0] + 1, g.pads[0] + g.H),
            max((g.OW - 1) * g.stride[1] + g.S, g.pads[1] + g.W))


def scatter_rows(s: Schedule, g: Geometry, weight: Buffer | None, dy: Gradient, target: Buffer, accumulate: int) -> None:
    """dX as the sum of windows: the weights turned once, then every output pixel adds its window."""
    packed, w_row = turned(s, g, weight)
    rows, columns = covered_size(g)
    chunks = min(s.batch, CHUNKS)
    s.row("conv2d_scatter.backward_input", dy=dy.buffer, packed=packed, dx=target,
          tables=s.scratch(16 * g.OH * g.OW, "tables"), sums=s.scratch(chunks * rows * columns * g.C * s.itemsize, "sums"),
          H=g.H, W=g.W, C=g.C, OH=g.OH, OW=g.OW, K=g.K, R=g.R, S=g.S, w_row=w_row, stride_h=g.stride[0],
          stride_w=g.stride[1], dilation_h=g.dilation[0], pad_top=g.pads[0], pad_left=g.pads[1], rows=rows, columns=columns,
          chunks=chunks, accumulate=accumulate)
