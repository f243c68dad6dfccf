"""The rows of a 3 x 3 convolution by Winograd's algorithm, where they are quicker than the sum."""
from __future__ import annotations

import math
from typing import TYPE_CHECKING

from .bands import CHUNKS

if TYPE_CHECKING:
    from ..memory import Buffer
    from ..plan import Schedule
    from .convolution import Geometry

# As in the kernel: the matrices of a tile's points, and numbers between two of them.
POINTS, GAP = 16, 16
# With fewer channels the transforms cost what the multiplications save; more weights than this fit no cache.
LEAST_CHANNELS, MOST_WEIGHTS = 32, 256 * 256
# With fewer tiles the products have too few rows.
LEAST_TILES = 8
# Bytes of transformed input and products that a chunk should hold, and the fewest and most tiles: more of them where the
# weights leave the second-level cache, for each block of tiles reads them once.
BLOCK_BYTES, LEAST_BLOCK, MOST_BLOCK = 192 * 1024, 24, 64
LARGE_WEIGHTS, LARGE_BLOCK = 512 * 1024, 96


def winograd_pays(s: Schedule, g: Geometry) -> bool:
    """Whether a convolution with weights that stay is quicker by tiles of 2 x 2 pixels."""
    if not s.winograd or g.G != 1 or (g.R, g.S, g.stride, g.dilation) != (3, 3, (1, 1), (1, 1)):
        return False
    tiles = math.ceil(g.OH / 2) * math.ceil(g.OW / 2)
    return (min(g.C, g.K) >= LEAST_CHANNELS and g.C * g.K <= MOST_WEIGHTS and s.batch * tiles >= LEAST_TILES
            and 4 * tiles <= 1.4 * g.OH * g.OW)


def winograd_rows(s: Schedule, g: Geometry, weight: Buffer | None, bias: Buffer | None, residual: Buffer | None, x: Buffer,
                  y: Buffer, low: float, high: float) -> None:
    """y = clamp(x * weight + bias + residual); the weights are transformed once, before the first run."""
    packed = s.held("winograd", POINTS * g.C * math.ceil(g.K / s.lanes) * s.lanes * s.itemsize)
    s.prepare("winograd.weight", weight=weight, packed=packed, C=g.C, K=g.K)
    tiles = s.batch * math.ceil(g.OH / 2) * math.ceil(g.OW / 2)
    large = POINTS * g.C * g.K * s.itemsize > LARGE_WEIGHTS
    fits = BLOCK_BYTES // (POINTS * (g.C + g.K) * s.itemsize)
    block = LARGE_BLOCK if large else min(MOST_BLOCK, max(LEAST_BLOCK, fits))
    # an even number of blocks, for two threads or four
    block = math.ceil(tiles / max(1, 2 * round(tiles / block / 2)))
    chunks = min(CHUNKS, math.ceil(tiles / block))
    scratch = s.scratch(chunks * POINTS * (block * (g.C + g.K) + 2 * GAP) * s.itemsize, "tiles")
    s.row("winograd.forward", x=x, weight=packed, bias=bias, residual=residual, y=y, scratch=scratch, H=g.H, W=g.W, C=g.C,
          K=g.K, OH=g.OH, OW=g.OW, pad_top=g.pads[0], pad_left=g.pads[1], block=block, chunks=chunks, low=low, high=high)
