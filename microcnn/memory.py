"""Where every buffer lies: offsets from lifetimes, the lower bound, and the report that users see."""
from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

ALIGNMENT = 64

# What a buffer is for: each is one line of the report.
KINDS = ("parameter", "gradient", "state", "activation", "scratch")


@dataclass(eq=False)
class Buffer:
    """A range of the arena. first and last are the rows between which it lives; None: it lives for ever."""

    name: str
    bytes: int
    kind: str
    layer: str
    first: int | None = None
    last: int | None = None
    offset: int = -1
    # held: always live in its program (packed weights that are prepared once)
    held: bool = False
    # kept: some later row of backward needs what it holds, so it may not be overwritten in place
    kept: bool = False
    # per_sample: its bytes are so many a sample. checked: it holds numbers of the network's dtype that must be finite
    per_sample: bool = False
    checked: bool = False

    @property
    def size(self) -> int:
        """Bytes, rounded up to the alignment."""
        return -(-self.bytes // ALIGNMENT) * ALIGNMENT

    def fill(self, arena: np.ndarray, array: np.ndarray) -> None:
        """Write an array of as many bytes into the arena."""
        arena[self.offset:self.offset + self.bytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)

    def touch(self, row: int) -> None:
        """Extend the lifetime to a row."""
        self.first = row if self.first is None else min(self.first, row)
        self.last = row if self.last is None else max(self.last, row)


@dataclass(frozen=True, slots=True)
class Block:
    """A buffer as the plan has placed it: for pictures of the plan. first and last: the rows between which it lives."""

    layer: str
    name: str
    kind: str
    bytes: int
    offset: int
    first: int
    last: int


def blocks_of(buffers: Iterable[Buffer]) -> list[Block]:
    """Placed buffers as blocks."""
    return [Block(b.layer, b.name, b.kind, b.bytes, b.offset, _first(b), _last(b)) for b in buffers]


def place(buffers: list[Buffer], begin: int) -> int:
    """Give each buffer an offset from `begin` on, so that no two that live at the same time overlap; returns the end.

    Largest first, each at the lowest place where it fits; of a few such orders the one with the smallest end is kept.
    """
    orders = [
        sorted(buffers, key=lambda b: (-b.size, b.first)),
        sorted(buffers, key=lambda b: (-(_last(b) - _first(b) + 1) * b.size, b.first)),
        sorted(buffers, key=lambda b: (-(_last(b) - _first(b) + 1), -b.size)),
    ]
    bound = lower_bound(buffers)
    best: tuple[int, list[int]] | None = None
    for order in orders:
        end = _place_in_order(order, begin)
        if best is None or end < best[0]:
            best = end, [b.offset for b in buffers]
        if end - begin <= bound:
            break
    if best is None:
        return begin
    for buffer, offset in zip(buffers, best[1], strict=True):
        buffer.offset = offset
    return best[0]


def _first(buffer: Buffer) -> int:
    return buffer.first if buffer.first is not None else 0


def _last(buffer: Buffer) -> int:
    return buffer.last if buffer.last is not None else 0


def _place_in_order(order: list[Buffer], begin: int) -> int:
    placed: list[Buffer] = []
    end = begin
    for buffer in order:
        first, last, size = _first(buffer), _last(buffer), buffer.size
        at = begin
        for other in placed:         # sorted by offset
            if _first(other) <= last and first <= _last(other):
                if at + size <= other.offset:
                    break
                at = max(at, other.offset + other.size)
        buffer.offset = at
        end = max(end, at + size)
        low, high = 0, len(placed)
        while low < high:
            middle = (low + high) // 2
            if placed[middle].offset < at:
                low = middle + 1
            else:
                high = middle
        placed.insert(low, buffer)
    return end


def lower_bound(buffers: Iterable[Buffer]) -> int:
    """The largest sum of the sizes of buffers that live at the same time."""
    return most_alive(buffers)[0]


def most_alive(buffers: Iterable[Buffer]) -> tuple[int, int]:
    """(the largest sum of the sizes of buffers that live at the same time, the first row at which they do)."""
    return most_live((buffer.size, _first(buffer), _last(buffer)) for buffer in buffers)


def most_live(lives: Iterable[tuple[int, int, int]]) -> tuple[int, int]:
    """The most bytes that live at one time, and the first row at which they do, of (bytes, first row, last row)."""
    changes: dict[int, int] = {}
    for size, first, last in lives:
        changes[first] = changes.get(first, 0) + size
        changes[last + 1] = changes.get(last + 1, 0) - size
    live = most = at = 0
    for row in sorted(changes):
        live += changes[row]
        if live > most:
            most, at = live, row
    return most, at


@dataclass(slots=True)
class LayerMemory:
    """One layer's bytes by kind. Activations and scratch of different layers share memory: they do not add up."""

    name: str
    op: str
    parameters: int = 0
    gradients: int = 0
    state: int = 0
    activations: int = 0
    scratch: int = 0


def doing(phase: str, layer: str) -> str:
    """What a row does, in words: "backward of conv1", or "loss"."""
    return phase if phase == layer else f"{phase} of {layer}"


@dataclass(frozen=True)
class Peak:
    """When the most bytes are live, and what lives then.

    bytes         what lives at that time, without what buffers are rounded up by
    program       whose row it is: "train", "evaluate" or "predict", whichever needs most
    row, rows     the first row of the program with so many, counted from 0; how many rows the program has
    layer, phase  what that row does: "forward", "loss", "backward" or "update" of which layer
    shared        the buffers of the program that live then; they share memory with others over time
    lasting       those that live for ever: control block, parameters, optimizer state, constants
    """

    bytes: int
    program: str
    row: int
    rows: int
    layer: str
    phase: str
    shared: Sequence[Block] = field(repr=False)
    lasting: Sequence[Buffer] = field(repr=False)

    @property
    def runs(self) -> str:
        """What runs then, in words."""
        return doing(self.phase, self.layer)

    def blocks(self) -> list[Block]:
        """All that lives at the peak, the largest first. What lives for ever has all rows and one more."""
        lasting = [Block(b.layer, b.name, b.kind, b.bytes, b.offset, 0, self.rows) for b in self.lasting]
        return sorted([*lasting, *self.shared], key=lambda block: (-block.bytes, block.offset))


# How many of the buffers that live at the peak are printed, and how many letters of a name.
SHOWN = 5
NAME_MOST = 36


def short(name: str, most: int = NAME_MOST) -> str:
    """A name for a table: the middle left out where it is longer than that, as converters' names are."""
    if len(name) <= most:
        return name
    kept = most - 3
    return name[:kept // 3] + "..." + name[len(name) - (kept - kept // 3):]


@dataclass
class Memory:
    """The plan of a network's memory, in bytes.

    parameters    the graph's weights, trained or not, running statistics and constants included
    state         the optimizer's (momentum, moments)
    gradients, activations, scratch
                  the most that buffers of that kind hold at one time; they share memory over time
    arena         all that is allocated: parameters, state and control block, and what the largest program needs
    lower_bound   the largest sum of live buffers, parameters and state included
    peak          the same sum without what buffers are rounded up by, and peak_layer, peak_phase ("forward", "loss",
                  "backward" or "update") what runs then; fullest tells the rest of it (Peak)
    at_peak       the buffers that live then (Block), the largest first; their bytes add up to peak
    layers        LayerMemory, one per layer
    manual        the arena of forward, backward and update, 0 until they are planned
    """

    parameters: int
    gradients: int
    state: int
    activations: int
    scratch: int
    arena: int
    lower_bound: int
    fullest: Peak
    layers: list[LayerMemory] = field(default_factory=list)
    manual: int = 0

    @property
    def ratio(self) -> float:
        """The arena over the lower bound: 1 is perfect."""
        return self.arena / max(1, self.lower_bound)

    @property
    def beside_parameters(self) -> int:
        """The arena without the parameters: what a budget counts."""
        return self.arena - self.parameters

    @property
    def peak(self) -> int:
        """The most bytes that live at one time, parameters and all that lives for ever included."""
        return self.fullest.bytes

    @property
    def peak_layer(self) -> str:
        """The layer that runs at the peak."""
        return self.fullest.layer

    @property
    def peak_phase(self) -> str:
        """What runs of it: "forward", "loss", "backward" or "update"."""
        return self.fullest.phase

    @property
    def at_peak(self) -> list[Block]:
        """The buffers that live at the peak, the largest first."""
        return self.fullest.blocks()

    def __str__(self) -> str:
        lines = [f"{'memory':14s} {'bytes':>14s} {'KB':>12s}"]
        for name in ("parameters", "gradients", "state", "activations", "scratch", "arena", "lower_bound", "peak",
                     "manual"):
            value = getattr(self, name)
            lines.append(f"{name.replace('_', ' '):14s} {value:14,d} {value / 1024:12,.1f}")
        lines.append(f"{'arena / bound':14s} {self.ratio:14.3f}")
        peak, held = self.fullest, self.at_peak
        runs = doing(peak.phase, short(peak.layer))
        lines += ["", f"peak: {runs}, row {peak.row + 1} of {peak.rows} of {peak.program}; the largest "
                      f"of {len(held)} buffers that live then:"]
        lines += [f"{block.bytes:29,d} {block.kind:10s} {short(block.layer)}: {short(block.name)}" for block in held[:SHOWN]]
        width = max([5, *(len(short(layer.name)) for layer in self.layers)])
        lines.append("")
        lines.append(f"{'layer':{width}s} {'op':16s} {'parameters':>12s} {'gradients':>12s} {'state':>12s} "
                     f"{'activations':>12s} {'scratch':>12s}")
        for layer in self.layers:
            lines.append(f"{short(layer.name):{width}s} {layer.op:16s} {layer.parameters:12,d} {layer.gradients:12,d} "
                         f"{layer.state:12,d} {layer.activations:12,d} {layer.scratch:12,d}")
        return "\n".join(lines)
