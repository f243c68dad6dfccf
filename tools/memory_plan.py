"""A memory plan over time: when it is fullest, who holds how much then, and what runs when."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from microcnn.memory import ALIGNMENT, Memory

from .profile_data import MemoryPlan
from .report_text import size_of

# Kinds as the plan or older files name them, the class of their colour, what they are called.
KINDS = (("activation", "k-activation", "activations"), ("gradient", "k-gradient", "gradients"),
         ("scratch", "k-scratch", "scratch"), ("state", "k-state", "optimizer state"),
         ("parameter", "k-parameter", "parameters"))
OTHER = ("", "k-other", "other")
PHASES = {"forward": "forward", "loss": "loss", "backward_input": "backward", "backward_weight": "backward",
          "backward": "backward", "update": "update"}
BOTH = "backward and update"


class PlannedRow(Protocol):
    """What a row of the program is, as the plan or a profile has it."""

    @property
    def layer(self) -> str: ...

    @property
    def part(self) -> str: ...


def plan_of(net: Any, program: str) -> MemoryPlan:
    """The plan of "predict", "evaluate" or "train" of a network that is planned."""
    begin, blocks = net.blocks(program)
    memory = net.memory
    return MemoryPlan(memory.arena, memory.lower_bound, memory.parameters, memory.state, begin, blocks)


def kind_of(kind: str) -> tuple[str, str, str]:
    """The entry of KINDS for a block's kind."""
    return next((entry for entry in KINDS if str(kind).rstrip("s") == entry[0]), OTHER)


def phase_of(part: str) -> str:
    """"forward", "loss", "backward" or "update", for a row's part."""
    return PHASES.get(part, "forward")


def extent_of(plan: MemoryPlan) -> int:
    """Bytes from where the shared part begins to where its highest buffer ends."""
    return max(block.offset + block.bytes for block in plan.blocks) - plan.begin


def elsewhere(plan: MemoryPlan) -> str:
    """What of the arena only other programs use, in a sentence; "" for nothing."""
    others = plan.arena - plan.begin - extent_of(plan)      # less than ALIGNMENT is what the last buffer is rounded up by
    return f"{size_of(others)} of the arena only other programs of this network use." if others >= ALIGNMENT else ""


def phases(rows: Sequence[PlannedRow]) -> list[tuple[str, int, int]]:
    """Forward, loss, backward and update: the first row and the row after the last, without overlap."""
    parts = [phase_of(row.part) for row in rows]
    behind = len(parts)
    begin = next((number for number, part in enumerate(parts) if part in ("backward", "update")), behind)
    loss = next((number for number, part in enumerate(parts[:begin]) if part == "loss"), begin)
    end = max((number + 1 for number, part in enumerate(parts) if part == "backward"), default=begin)
    found = [("forward", 0, loss), ("loss", loss, begin)]
    if "update" in parts[begin:end]:        # each weight may be updated as soon as its gradient is there
        found.append((BOTH, begin, behind))
    else:
        found += [("backward", begin, max(begin, end)), ("update", max(begin, end), behind)]
    return [phase for phase in found if phase[2] > phase[1]]


def updates_between(rows: Sequence[PlannedRow]) -> list[tuple[int, int]]:
    """The updates that run between rows of backward: of each lot the first row and the row after the last."""
    begin = next((first for name, first, _ in phases(rows) if name == BOTH), len(rows))
    found: list[tuple[int, int]] = []
    for number in range(begin, len(rows)):
        if phase_of(rows[number].part) == "update":
            if found and found[-1][1] == number:
                found[-1] = found[-1][0], number + 1
            else:
                found.append((number, number + 1))
    return found


@dataclass
class SharedPeak:
    """When the shared part of the arena is fullest: the row, the bytes that are live, who runs, and who holds how many."""

    NOTABLE = 0.005

    row: int
    rows: int
    bytes: int
    layer: str = ""
    part: str = ""
    holders: list[tuple[str, int]] = field(default_factory=list)

    def makers(self, most: int) -> list[tuple[str, int]]:
        """The largest of the holders, so many at most: those that hold a notable share."""
        return [entry for entry in self.holders[:most] if entry[1] >= self.NOTABLE * self.bytes] or self.holders[:1]


def shared_peak(plan: MemoryPlan | None, rows: Sequence[PlannedRow]) -> SharedPeak | None:
    """The peak of a plan; None without one. Without rows, what is read after the last one lives on behind it."""
    if plan is None or not plan.blocks:
        return None
    count = len(rows) or max((block.last + 1 for block in plan.blocks), default=0)
    live = plan.live(count)
    if not live or not max(live):
        return None
    row = live.index(max(live))
    held: dict[str, int] = {}
    for block in plan.blocks:
        if block.first <= row <= block.last and block.bytes:
            held[block.layer] = held.get(block.layer, 0) + block.bytes
    running = rows[row] if row < len(rows) else None
    return SharedPeak(row, count, live[row], running.layer if running else "", running.part if running else "",
                      sorted(held.items(), key=lambda entry: -entry[1]))


@dataclass(frozen=True)
class Picture:
    """What is drawn of a network's memory. title: the model; told: what runs and how; plan, rows: of the program it runs."""

    title: str
    told: str
    memory: Memory
    plan: MemoryPlan
    rows: Sequence[PlannedRow]

    @property
    def peak(self) -> SharedPeak:
        """When the shared part is fullest."""
        found = shared_peak(self.plan, self.rows)
        assert found is not None        # every program has at least the buffers of its inputs
        return found

    @property
    def summary(self) -> str:
        """The arena in a sentence, without a full stop."""
        memory = self.memory
        return (f"The arena takes {size_of(memory.arena)}: {size_of(memory.parameters)} of parameters and "
                f"{size_of(memory.beside_parameters)} beside them, which is what a budget counts")
