"""A convolution with few channels and the max pooling that alone reads it, as one row of the program."""
from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from .bands import BAND_BYTES, CHUNKS
from .windows import pool_window

if TYPE_CHECKING:
    from ..fusion import Step
    from ..graph import Node
    from ..memory import Buffer
    from ..parts import Value
    from ..plan import Schedule
    from .convolution import Geometry

# Bringing the channels of a pixel apart takes longer than it saves where there are more of them.
MOST_CHANNELS = 4
# Measured, in cycles: a multiply-add in a tile of channels, in a tile of pixels; pooling a register of channels by itself;
# and the windows of a register of pixels, their maximum, its index, and their way to where the channels lie last.
IN_TILE, ALONG_PIXELS, POOL, TURN = 0.6, 0.5, 30.0, 60.0


def pooled_serves(step: Step, g: Geometry) -> dict[str, int] | None:
    """The fields of the pooling behind a convolution where the kernel is made for the two."""
    if step.pool is None or step.clamps or step.residual or g.matrix or g.G != 1 or g.C > MOST_CHANNELS \
            or g.stride != (1, 1) or g.dilation[1] != 1:
        return None
    pool, pads = pool_window(step.pool, (g.K, g.OH, g.OW))
    sides = tuple(pool[name] for name in ("kernel_h", "kernel_w", "stride_h", "stride_w", "dilation_h", "dilation_w"))
    tiled = sides == (2, 2, 2, 2, 1, 1) and pads[:2] == (0, 0) and 2 * pool["OH"] <= g.OH and 2 * pool["OW"] <= g.OW
    return pool if tiled else None


def pooled_pays(s: Schedule, g: Geometry, pool: dict[str, int]) -> bool:
    """Whether one kernel takes fewer cycles than the two, for one row of windows."""
    wide = g.together(g.pixels_together(s.lanes))
    apart = (2 * wide.OW * math.ceil(wide.K / s.lanes) * wide.R * wide.S * wide.C * IN_TILE
             + pool["OW"] * math.ceil(g.K / s.lanes) * POOL)
    return math.ceil(pool["OW"] / s.lanes) * g.K * (4 * g.R * g.S * g.C * ALONG_PIXELS + TURN) < apart


def pooled_row(s: Schedule, node: Node, g: Geometry, weight: Buffer | None, bias: Buffer | None, x: Value, y: Value,
               indices: Buffer | None, pool: dict[str, int], bounds: dict[str, Any]) -> None:
    """The row that makes the pooled image of a convolution, and the indices of the winners where they are wanted."""
    PH, PW = pool["OH"], pool["OW"]
    columns = 2 * math.ceil(PW / s.lanes) * s.lanes + g.S - 1
    more = (g.R - 1) * g.dilation[0]
    band = max(1, min(PH, (BAND_BYTES // (columns * g.C * s.itemsize) - more) // 2))
    if s.batch * math.ceil(PH / band) < CHUNKS:
        band = min(band, math.ceil(PH / math.ceil(CHUNKS / s.batch)))
    band = math.ceil(PH / math.ceil(PH / band))
    chunks = min(s.held_chunks, s.batch * math.ceil(PH / band))
    padded = chunks * g.C * (2 * band + more) * columns
    before, s.node = s.node, node               # most of the work is the convolution's
    s.row("conv2d_pooled.forward", x=x.buffer, weight=weight, bias=bias, y=y.buffer, indices=indices,
          padded=s.scratch(padded * s.itemsize, "padded"), H=g.H, W=g.W, C=g.C, K=g.K, R=g.R, S=g.S, dilation_h=g.dilation[0],
          pad_top=g.pads[0], pad_left=g.pads[1], PH=PH, PW=PW, band=band, columns=columns, padded_size=padded, chunks=chunks,
          **bounds)
    s.node = before
    if before is not None:
        s.fused[before.name] = node.name
