"""Where a program can be cut: rows whose results for a sample are the same in every epoch, and those that training changes.

Both parts are rows of the one program at the places that its plan gave them, so that together they compute what it computes,
bit for bit. What the second part reads of the first one is the border: a tensor that lies on it is copied out of the arena
where the first part has made it, and back in where the second part needs it.
"""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from . import layers
from .errors import CompileError
from .memory import Buffer
from .parts import Row

if TYPE_CHECKING:
    from .graph import Node
    from .plan import Schedule


@dataclass
class Part:
    """Rows of one part; prepared: those that run once after the weights have changed."""

    rows: list[Row] = field(default_factory=list)
    prepared: list[Row] = field(default_factory=list)


@dataclass
class Cut:
    """A program in two parts.

    frozen   what is the same in every epoch; border: where it copies the tensors that `live` reads, and `live` finds them
    layers   how many of the graph's steps are frozen
    """

    frozen: Part = field(default_factory=Part)
    live: Part = field(default_factory=Part)
    border: list[Buffer] = field(default_factory=list)
    layers: int = 0


def cut(schedule: Schedule, changing: Iterable[Buffer]) -> Cut:
    """Cut a finished schedule. changing: the weights that training changes.

    A step is live where it reads something that changes, be it through other steps, or where training makes something else
    of a sample each time it comes (Layer.varies). Raises CompileError where frozen weights are behind such a layer: what
    they make is not the same in every epoch.
    """
    result = Cut()
    changed = set(changing)
    for row in schedule.prepared:
        if changed & _read(row):
            changed |= _written(row)
    varied: dict[Buffer, Node] = {}      # what depends on a layer that varies, and on which
    made: set[Buffer] = set()            # by the frozen part, where the live part does not hold it yet

    def live(rows: list[Row]) -> None:
        """Rows of the live part; what they touch of what the frozen one has made is on the border."""
        for buffer in dict.fromkeys(buffer for row in rows for buffer in _held(row).values()):
            if buffer not in made:
                continue
            if not buffer.per_sample:
                raise AssertionError(f"{buffer.name}: made by what is frozen, read by what trains, and not so much a sample")
            made.discard(buffer)
            outside = Buffer(buffer.name, buffer.bytes, buffer.kind, buffer.layer, per_sample=True, checked=True)
            result.border.append(outside)
            size = buffer.bytes // (schedule.batch * schedule.itemsize)
            for part, x, y in ((result.frozen, buffer, outside), (result.live, outside, buffer)):
                part.rows.append(Row("layout.copy", {"x": x, "y": y, "size": size, "per_sample": 1}, buffer.layer, "layout",
                                     "layout"))
        result.live.rows += rows

    begin = 0
    for step, end in schedule.steps:
        rows, node = schedule.rows[begin:end], step.node if step else None
        begin = end
        reads = set().union(*map(_read, rows))
        source = next((varied[buffer] for row in rows for buffer in _held(row).values() if buffer in varied), None)
        if source is None and node is not None and schedule.live and layers.LAYERS[node.op].varies(node, schedule.bn):
            source = node
        if changed & reads:
            live(rows)
            changed.update(*map(_written, rows))
        elif source is not None:
            if node is not None and node.weights and node is not source:
                raise CompileError(_refusal(source, node, schedule.bn))
            live(rows)
            for buffer in set().union(*map(_written, rows)):
                varied[buffer] = source
        else:
            result.frozen.rows += rows
            result.layers += step is not None and bool(rows)
            made.update(*map(_written, rows))
    for row in schedule.rows[begin:]:    # losses, backward, updates
        live([row])
    for part in (result.frozen, result.live):
        part.prepared = _needed(schedule.prepared, part.rows)
    return result


def _needed(prepared: list[Row], rows: list[Row]) -> list[Row]:
    """Those of the prepared rows that make something for these rows."""
    needed = {buffer for row in rows for buffer in _held(row).values()}
    found = []
    for row in reversed(prepared):
        if needed & _written(row):
            needed |= _read(row)
            found.append(row)
    return found[::-1]


def _held(row: Row) -> dict[str, Buffer]:
    """A row's buffers by field."""
    from .entries import ENTRIES
    return {name: row.fields[name] for name in ENTRIES[row.kernel].modes if row.fields[name] is not None}


def _read(row: Row) -> set[Buffer]:
    from .entries import ENTRIES
    modes = ENTRIES[row.kernel].modes
    return {buffer for name, buffer in _held(row).items() if modes[name] in "<=?"}


def _written(row: Row) -> set[Buffer]:
    from .entries import ENTRIES
    modes = ENTRIES[row.kernel].modes
    return {buffer for name, buffer in _held(row).items() if modes[name] in ">="}


def _refusal(source: Node, behind: Node, bn: str) -> str:
    why, remedy = layers.LAYERS[source.op].varies(source, bn) or ("", "")
    return (f'the features before what trains are not the same in every epoch: {source.op} "{source.name}" {why}, and the '
            f'frozen layer "{behind.name}" comes behind it. {remedy}, or leave out cache_features')
