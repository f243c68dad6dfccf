"""Which tensors a kernel reads in order before it goes through them in its own order (kernels/fetch.py)."""
from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..plan import Schedule

# Memory has to deliver tensors of so many bytes, or of so many where the row before has just read or written them.
FAR_BYTES, NEAR_BYTES = 2**19, 2**22


def fetches(s: Schedule, pixels: int, C: int, least: int) -> int:
    """Whether to read a tensor of so many pixels a sample in order first, if it takes as many bytes.

    Kernels go from pixel to pixel, channels outside; where these are few that is as good as in order.
    """
    return int(C > 2 * s.lanes and s.batch * pixels * C * s.itemsize >= least)


def far_output(s: Schedule) -> int:
    """The bytes from which a row's output is far: in backward it lies where another gradient has just been."""
    return FAR_BYTES if s.phase == "forward" else NEAR_BYTES
