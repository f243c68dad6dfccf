"""How an image is cut into bands of rows, which threads take in chunks and a first-level cache holds."""
from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..plan import Schedule

# A band of padded input that one chunk of the work holds: about half of a small first-level cache.
BAND_BYTES = 24 * 1024
# Bands shorter than this many pixels waste tiles.
BAND_PIXELS = 48
# Iterations of a parallel loop that there should at least be, and are at most where each has its own scratch.
CHUNKS, LEAN_CHUNKS = 8, 2


def band_plan(s: Schedule, H: int, W: int, C: int, R: int, S: int, sides: dict[str, int], OH: int, OW: int,
              room: int = BAND_BYTES, across: int = 1) -> tuple[int, int, int]:
    """Output rows in a band, how many bands there are, and the numbers that a padded one holds (0: no padding).

    room: bytes that a band should fit into; across: into how many parts the channels can be split for threads.
    """
    height = (OH - 1) * sides["stride_h"] + (max(R, 1) - 1) * sides["dilation_h"] + 1
    width = (OW - 1) * sides["stride_w"] + (max(S, 1) - 1) * sides["dilation_w"] + 1
    top, left = sides["origin_h"], sides["origin_w"]
    inside = top >= 0 and left >= 0 and top + height <= H and left + width <= W
    least = min(OH, math.ceil(BAND_PIXELS / OW))
    rows = room // (width * C * s.itemsize) - (max(R, 1) - 1) * sides["dilation_h"] - 1
    band = min(OH, max(least, rows // sides["stride_h"] + 1 if rows >= 0 else 1))
    wanted = math.ceil(CHUNKS / across)
    if s.batch * math.ceil(OH / band) < wanted:
        band = max(least, min(band, math.ceil(OH / math.ceil(wanted / s.batch))))
    bands = math.ceil(OH / band)
    if s.batch * bands < CHUNKS and s.batch % 2 and bands % 2 and bands > 1:
        bands -= 1                  # as many for each of two threads
    band = math.ceil(OH / bands)
    jobs = s.batch * math.ceil(OH / band)
    if inside or R == 0 or S == 0:
        return band, jobs, 0
    return band, jobs, ((band - 1) * sides["stride_h"] + (R - 1) * sides["dilation_h"] + 1) * width * C


def chunk_count(jobs: int, most: int) -> int:
    """The chunks that threads take one by one."""
    return min(jobs, most)
