"""A network's memory plan as tables and as JSON: the sums, what lives at the peak, every layer's bytes."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from microcnn.memory import Block, Peak, doing, short

from .memory_plan import PlannedRow, phase_of
from .terminal import Terminal, bytes_text

if TYPE_CHECKING:
    from microcnn.memory import Memory
    from microcnn.planned import Planned

LINES = (("parameters", "parameters"), ("gradients", "gradients"), ("state", "optimizer state"),
         ("activations", "activations"), ("scratch", "scratch"), ("arena", "arena: all that is allocated"),
         ("lower_bound", "what no plan can be below"))
MORE = (("beside_parameters", "arena without parameters: what a budget counts"), ("peak", "live at the peak"))
PROGRAMS = {"train": "a training step", "predict": "prediction", "evaluate": "evaluation"}
NOTABLE = 0.005     # share of the peak from which on a buffer has a line of its own
NAME_MOST = 30      # letters of names, several of which stand in a line
ALL = "all"


def memory_dict(memory: Memory) -> dict[str, int]:
    """The plan's sums in bytes, for JSON."""
    return {name: int(getattr(memory, name)) for name, _ in LINES}


def plan_dict(planned: Planned) -> dict[str, Any]:
    """The whole plan for JSON; the keys are described in README, "Memory"."""
    memory, peak = planned.memory, planned.memory.fullest
    rows = planned.rows(peak.program)
    return {
        **memory_dict(memory), **{name: int(getattr(memory, name)) for name, _ in MORE}, "ratio": round(memory.ratio, 6),
        "batch": int(planned.batch), "bn": planned.bn, "dtype": planned.dtype.name,
        "peak_at": {"program": peak.program, "row": peak.row, "rows": peak.rows, "layer": peak.layer, "phase": peak.phase},
        "at_peak": [_block_dict(block, peak, rows) for block in memory.at_peak],
        "layers": [asdict(layer) for layer in memory.layers]}


def _block_dict(block: Block, peak: Peak, rows: Sequence[PlannedRow]) -> dict[str, Any]:
    """A buffer; from and to are null where it lives for ever or as long as its program."""
    lasts = _lasts(block, peak)
    ends = [None if lasts else {"layer": rows[row].layer, "phase": phase_of(rows[row].part)}
            for row in (block.first, block.last)]
    return {"layer": block.layer, "name": block.name, "kind": block.kind, "bytes": block.bytes, "offset": block.offset,
            "first": None if lasts else block.first, "last": None if lasts else block.last, "from": ends[0], "to": ends[1]}


def _lasts(block: Block, peak: Peak) -> bool:
    """Whether it lives before the first row and after the last."""
    return block.last >= peak.rows


def show_memory(terminal: Terminal, plans: dict[str, Memory], whole: bool = False) -> None:
    """Plans beside each other, by title. Kinds share memory over time, so that they do not add up to the arena."""
    rows = [[text, *(part for memory in plans.values() for part in _figures(getattr(memory, name)))]
            for name, text in (LINES + MORE if whole else LINES)]
    if whole:
        rows.append(["arena / what no plan can be below",
                     *(part for memory in plans.values() for part in (f"{memory.ratio:.3f}", ""))])
    terminal.table(["memory", *(part for title in plans for part in (">" + title, ">"))], rows)


def show_peak(terminal: Terminal, planned: Planned) -> None:
    """When memory is fullest, and the buffers that live then, the largest first."""
    memory, peak = planned.memory, planned.memory.fullest
    rows = planned.rows(peak.program)
    terminal.say(f"{peak.bytes:,} bytes ({bytes_text(peak.bytes)}) live at the peak, in row {peak.row + 1} of {peak.rows} of "
                 f"{PROGRAMS[peak.program]}: {peak.runs}")
    held = memory.at_peak
    shown = [block for block in held if block.bytes >= NOTABLE * peak.bytes]
    lines = [[short(block.layer, NAME_MOST), short(block.name, NAME_MOST), block.kind, *_figures(block.bytes),
              f"{block.bytes / peak.bytes:.1%}", *_life(block, peak, rows)] for block in shown]
    rest = held[len(shown):]
    if rest:
        size = sum(block.bytes for block in rest)
        lines.append([f"{len(rest):,} smaller ones", "", "", *_figures(size), f"{size / peak.bytes:.1%}", "", ""])
    terminal.table(["layer", "buffer", "kind", ">bytes", ">", ">share", ">rows", "last needed by"], lines)


def _life(block: Block, peak: Peak, rows: Sequence[PlannedRow]) -> tuple[str, str]:
    """The rows between which a buffer lives, and what the last of them does."""
    if _lasts(block, peak):
        return ALL, ""
    last = rows[block.last]
    return f"{block.first + 1}-{block.last + 1}", doing(phase_of(last.part), short(last.layer, NAME_MOST))


def show_layers(terminal: Terminal, memory: Memory) -> None:
    """Every layer's bytes by kind."""
    names = ("parameters", "gradients", "state", "activations", "scratch")
    terminal.table(["layer", "op", *(f">{name}" for name in names)],
                   [[short(layer.name), layer.op, *(f"{getattr(layer, name):,}" if getattr(layer, name) else "-"
                                                    for name in names)] for layer in memory.layers])


def _figures(size: int) -> tuple[str, str]:
    return f"{size:,}", bytes_text(size)
