"""The rows of a 3 x 3 convolution by Winograd's algorithm, where they are quicker than the sum."""
from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from .bands import CHUNKS

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..memory import Buffer
    from ..plan import Schedule
    from .convolution import Geometry

# As in the kernel: the matrices of a tile's points, and numbers between two of them.
POINTS, GAP = 16, 16
# With fewer channels on a side, or on both together, the transforms cost what the multiplications save; more weights than
# this fit no cache.
LEAST_CHANNELS, LEAST_TOGETHER, MOST_WEIGHTS = 16, 48, 256 * 256
# Registers of so many bytes hold the weights of few channels (kernels/winograd.py): 16 on both sides are enough.
HOLDING_BYTES, LEAST_HELD = 64, 32
# With fewer tiles the products have too few rows.
LEAST_TILES = 8
# Bytes of transformed input and products that a chunk should hold, and the fewest and most tiles: more of them where the
# weights leave the second-level cache, for each block of tiles reads them once.
BLOCK_BYTES, LEAST_BLOCK, MOST_BLOCK = 192 * 1024, 24, 64
LARGE_WEIGHTS, LARGE_BLOCK = 512 * 1024, 96
# In a training step, where memory is short: how many chunks, and what weights and chunks may take, in sizes of the images, or
# in bytes where images are small.
LIVE_CHUNKS, LIVE_ROOM, LIVE_BYTES = 4, 1.25, 384 * 1024


@dataclass(frozen=True)
class Blocks:
    """How the tiles of a batch are cut: tiles in a block, chunks that blocks are dealt to, bytes of scratch of all chunks."""

    block: int
    chunks: int
    scratch: int

    @staticmethod
    def of(s: Schedule, g: Geometry) -> Blocks:
        """In a training step with as little scratch as is sensible, elsewhere with as much as the cache holds."""
        tiles = s.batch * math.ceil(g.OH / 2) * math.ceil(g.OW / 2)
        chunks = LIVE_CHUNKS if s.live else CHUNKS
        tile_bytes, gaps = POINTS * (g.C + g.K) * s.itemsize, 2 * POINTS * GAP * s.itemsize
        if POINTS * g.C * g.K * s.itemsize > LARGE_WEIGHTS:
            block = LARGE_BLOCK
        else:
            fits = min(BLOCK_BYTES, live_room(s, g) // chunks - gaps if s.live else BLOCK_BYTES) // tile_bytes
            block = min(MOST_BLOCK, max(LEAST_BLOCK, fits))
        # an even number of blocks, for two threads or four
        pairs = math.ceil(tiles / block / 2) if s.live else round(tiles / block / 2)
        blocks = max(2 if tiles >= 2 * LEAST_TILES else 1, 2 * pairs)
        block = math.ceil(tiles / blocks)
        chunks = min(chunks, math.ceil(tiles / block))
        return Blocks(block, chunks, chunks * (block * tile_bytes + gaps))


def live_room(s: Schedule, g: Geometry) -> int:
    """Bytes of scratch that a training step can spare."""
    images = s.batch * (g.H * g.W * g.C + g.OH * g.OW * g.K) * s.itemsize
    return max(int(LIVE_ROOM * images), LIVE_BYTES) - packed_numbers(s, g) * s.itemsize


def winograd_pays(s: Schedule, g: Geometry) -> bool:
    """Whether a convolution is quicker by tiles of 2 x 2 pixels; in training, where scratch is little, or not much more than
    images."""
    if not s.winograd or g.G != 1 or (g.R, g.S, g.stride, g.dilation) != (3, 3, (1, 1), (1, 1)):
        return False
    together = LEAST_HELD if s.lanes * s.itemsize == HOLDING_BYTES else LEAST_TOGETHER
    if min(g.C, g.K) < LEAST_CHANNELS or g.C + g.K < together or g.C * g.K > MOST_WEIGHTS:
        return False
    tiles = math.ceil(g.OH / 2) * math.ceil(g.OW / 2)
    if s.batch * tiles < LEAST_TILES or 4 * tiles > 1.4 * g.OH * g.OW:
        return False
    return not s.live or Blocks.of(s, g).scratch <= live_room(s, g)


def packed_numbers(s: Schedule, g: Geometry) -> int:
    """Numbers that the transformed weights take."""
    return POINTS * g.C * math.ceil(g.K / s.lanes) * s.lanes


def backward_geometry(g: Geometry) -> Geometry:
    """The convolution of dY with the flipped, transposed weights that makes the gradient of g to its input."""
    top, left, bottom, right = g.pads
    return replace(g, C=g.K, H=g.OH, W=g.OW, K=g.C, CG=g.K, OH=g.H, OW=g.W,
                   pads=(g.R - 1 - top, g.S - 1 - left, g.R - 1 - bottom, g.S - 1 - right))


def winograd_rows(s: Schedule, g: Geometry, weight: Buffer | None, w_row: int, bias: Buffer | None, residual: Buffer | None,
                  x: Buffer, y: Buffer, low: float, high: float, packed: Buffer, add: Callable[..., None]) -> None:
    """y = clamp(x * weight + bias + residual).

    w_row: numbers from one row of the weight to the next; packed: room for packed_numbers; add: what adds the row that fills it
    """
    add("winograd.weight", weight=weight, packed=packed, C=g.C, K=g.K, w_row=w_row)
    cut = Blocks.of(s, g)
    s.row("winograd.forward", x=x, weight=packed, bias=bias, residual=residual, y=y, scratch=s.scratch(cut.scratch, "tiles"),
          H=g.H, W=g.W, C=g.C, K=g.K, OH=g.OH, OW=g.OW, pad_top=g.pads[0], pad_left=g.pads[1], block=cut.block,
          chunks=cut.chunks, low=low, high=high)
