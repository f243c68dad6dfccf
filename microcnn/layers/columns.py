"""The first columns of rows, for weights of which only the first output channels train."""
from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..draft import Draft
    from ..memory import Buffer


def columns_row(s: Draft, x: Buffer, y: Buffer, rows: int, columns: int, x_row: int, y_row: int, per_sample: int = 0,
                accumulate: int = 0) -> None:
    """The row that copies, or adds, the first columns of rows (of each sample, if so) that lie x_row and y_row apart."""
    s.row("movement.columns", x=x, y=y, rows=rows, per_sample=per_sample, columns=columns, x_row=x_row, y_row=y_row,
          accumulate=accumulate)


def first_channels(s: Draft, x: Buffer, pixels: int, C: int, count: int) -> Buffer:
    """The first channels of an image of so many pixels (a sample), close together in scratch; x itself where they are all."""
    if count == C:
        return x
    taken = s.scratch(s.batch * pixels * count * s.itemsize, "channels")
    columns_row(s, x, taken, pixels, count, C, count, per_sample=1)
    return taken
