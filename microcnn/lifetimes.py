"""Between which rows each buffer lives."""
from __future__ import annotations

from collections.abc import Iterable, Sequence

from .memory import Buffer
from .parts import Row


def held(row: Row) -> list[tuple[str, Buffer, str]]:
    """(field, buffer, mode) of every buffer that a row touches; mode: "<" read, if only at need, ">" written, "=" both."""
    from .entries import ENTRIES
    return [(name, row.fields[name], mode.replace("?", "<")) for name, mode in ENTRIES[row.kernel].modes.items()
            if row.fields[name] is not None]


def touches(rows: Sequence[Row]) -> tuple[dict[int, list[int]], dict[int, list[int]]]:
    """({id of a buffer: the numbers of the rows that touch it}, the same of those that write it), in order."""
    uses: dict[int, list[int]] = {}
    writers: dict[int, list[int]] = {}
    for number, row in enumerate(rows):
        for _, buffer, mode in held(row):
            uses.setdefault(id(buffer), []).append(number)
            if mode in ">=":
                writers.setdefault(id(buffer), []).append(number)
    return uses, writers


def forward_ends(rows: Sequence[Row]) -> int:
    """The number of the row with which forward and the losses are over; of a program without losses, behind the last one."""
    return next((number for number, row in enumerate(rows) if row.kernel == "loss.check_finite"), len(rows))


def set_lifetimes(rows: Sequence[Row], prepared: Sequence[Row], buffers: Iterable[Buffer]) -> list[Buffer]:
    """Set first and last of these buffers from the rows that touch them; returns those that any does.

    What is prepared once, and what is held, lives from the first row to behind the last.
    """
    found = {id(buffer): buffer for buffer in buffers}
    for buffer in found.values():
        buffer.first = buffer.last = None
    for number, row in enumerate(rows):
        for _, buffer, _ in held(row):
            buffer.touch(number)
    for buffer in [buffer for row in prepared for _, buffer, _ in held(row)] + [one for one in found.values() if one.held]:
        buffer.touch(0)
        buffer.touch(len(rows))
    return [buffer for buffer in found.values() if buffer.first is not None]
