"""Two profiles beside each other: two devices, two numbers of threads, or before and after a change."""
from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from microcnn.errors import DataError

from .profile_data import KINDS, PARTS, LayerCost, MemoryPlan, Profile, Run, Spread
from .profile_table import (
    LONGEST_NAME,
    PLAIN_GAP,
    Column,
    Fitted,
    fit,
    labels,
    left_out_text,
    run_heading,
    shortened,
    signed_time,
    wrapped,
)
from .terminal import bytes_text, table_text

SCHEMA = "microcnn.comparison/1"
# A difference is never called one that is a smaller share of the time before.
LEAST_SHARE = 0.05
# What differs from one measurement to the next without telling of the network or of the machine.
PASSING = ("time", "repeats", "load_average", "compile_seconds", "clock_ns", "confidence", "interrupted", "process_bytes",
           "frequency_mhz", "temperature_c")
# Lines that every network has, by their op or name.
COMMON = ("layout", "loss", "update", "python")
PLURALS = {"activation": "activations", "gradient": "gradients", "parameter": "parameters"}


@dataclass
class Change:
    """A layer, or the whole call, before and after: microseconds (None: it did not run), and bytes by kind.

    noise_us    up to which difference of the times nothing is to be said; see noise_us
    parts       microseconds before and after, by part
    bytes       before and after, by kind
    """

    name: str
    op: str
    before_us: float | None
    after_us: float | None
    noise_us: float = 0.0
    parts: dict[str, tuple[float, float]] = field(default_factory=dict)
    bytes: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def difference_us(self) -> float | None:
        """How much longer it takes after; None where it ran in one of them only."""
        return None if self.before_us is None or self.after_us is None else self.after_us - self.before_us

    @property
    def ratio(self) -> float | None:
        """The time after beside that before; None where there is none before."""
        return self.after_us / self.before_us if self.before_us and self.after_us is not None else None

    @property
    def beyond_noise(self) -> bool:
        """Whether the times differ by more than the noise."""
        return self.difference_us is not None and abs(self.difference_us) > self.noise_us

    @property
    def verdict(self) -> str:
        """"faster", "slower", "only before", "only after"; "" where the difference is within the noise."""
        if self.difference_us is None:
            return "only before" if self.after_us is None else "only after"
        return "" if not self.beyond_noise else "slower" if self.difference_us > 0 else "faster"

    @property
    def bytes_difference(self) -> int:
        """How many bytes more it holds after, of all kinds together."""
        return sum(after - before for before, after in self.bytes.values())

    def as_dict(self) -> dict[str, Any]:
        """The change in JSON's types: times in microseconds, sizes in bytes, pairs are before and after."""
        return {"name": self.name, "op": self.op, "before_us": _rounded(self.before_us), "after_us": _rounded(self.after_us),
                "difference_us": _rounded(self.difference_us), "ratio": _rounded(self.ratio, 4),
                "noise_us": _rounded(self.noise_us), "beyond_noise": self.beyond_noise,
                "parts": {part: [_rounded(value) for value in pair] for part, pair in self.parts.items()},
                "bytes": {kind: list(pair) for kind, pair in self.bytes.items()}}


@dataclass
class RunComparison:
    """Two runs. layers: those in both; only_before and only_after: the others; all in the order in which they ran.

    memory     bytes before and after. Where both runs have a plan: arena, lower_bound, parameters, state, and of the kinds
               that share memory over time the most that is live at once. Else the sums over the layers by kind
    differs    conditions that both know and that are not the same, before and after
    notes      what has to be borne in mind
    """

    before: Run
    after: Run
    layers: list[Change]
    only_before: list[Change]
    only_after: list[Change]
    whole: Change
    memory: dict[str, tuple[int, int]]
    differs: dict[str, tuple[Any, Any]]
    notes: list[str] = field(default_factory=list)

    @property
    def unaccounted(self) -> Change:
        """What the layers leave of the whole call."""
        return Change("not accounted for", "", self.before.unaccounted_us, self.after.unaccounted_us, math.inf)

    def table(self, width: int | None = None) -> str:
        """The two runs as plain text."""
        fitted = self._fitted(width, PLAIN_GAP)
        return f"{table_text(fitted.columns, fitted.rows, wrapped(self._title(), width))}\n{self._below(fitted, width)}"

    def as_dict(self) -> dict[str, Any]:
        """The comparison of the two runs in JSON's types."""
        return {"before": self.before.conditions, "after": self.after.conditions,
                "differs": {key: list(pair) for key, pair in self.differs.items()},
                "whole_call": self.whole.as_dict(), "layers": [change.as_dict() for change in self.layers],
                "only_before": [change.as_dict() for change in self.only_before],
                "only_after": [change.as_dict() for change in self.only_after],
                "unaccounted_us": [_rounded(self.before.unaccounted_us), _rounded(self.after.unaccounted_us)],
                "memory": {kind: {"before": before, "after": after, "difference": after - before}
                           for kind, (before, after) in self.memory.items()},
                "notes": self.notes}

    def _title(self) -> str:
        whole = self.whole
        ratio = f"{whole.ratio:.3f} of the time before" if whole.ratio is not None else "no time before"
        told = whole.verdict or f"within the noise of {signed_time(whole.noise_us)}"
        lines = [f"before: {run_heading(self.before)}", f"after: {run_heading(self.after)}", f"whole call: {ratio}, {told}"]
        if self.differs:
            lines.append("differs: " + "; ".join(f"{key} {_value(before)} -> {_value(after)}"
                                                 for key, (before, after) in self.differs.items()))
        return "\n".join(lines)

    def _below(self, fitted: Fitted, width: int | None) -> str:
        changed = [f"{kind.replace('_', ' ')} {bytes_text(before)} -> {bytes_text(after)} ({_signed_bytes(after - before)})"
                   for kind, (before, after) in self.memory.items() if before != after]
        lines = [f"memory: {', '.join(changed) or 'the same'}"] if self.memory else []
        if any(column.lstrip(">") == "verdict" for column in fitted.columns):
            lines.append("verdict: blank where the difference is within the noise")
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(filter(None, (left_out_text(fitted, width), wrapped("\n".join(lines), width))))

    def _fitted(self, width: int | None, gap: int) -> Fitted:
        changes = [*self.layers, *self.only_before, *self.only_after, self.unaccounted, self.whole]

        def column(name: str, text: Callable[[Change], str], rank: int | None, flush: bool = True) -> Column:
            return Column(name, [text(change) for change in changes], rank, flush)

        columns = [column("op", lambda change: change.op, 2, flush=False),
                   column("before", lambda change: _time(change.before_us), None),
                   column("after", lambda change: _time(change.after_us), None),
                   column("difference", lambda change: _time(change.difference_us, "+"), 3),
                   column("ratio", lambda change: "-" if change.ratio is None or change.name == self.unaccounted.name
                          else f"{change.ratio:.3f}", 4),
                   column("noise", lambda change: "" if math.isinf(change.noise_us) or change.difference_us is None
                          else signed_time(change.noise_us), 1),
                   column("verdict", lambda change: change.verdict, 5, flush=False)]
        if any(change.bytes_difference for change in changes):
            columns.insert(6, column("bytes", lambda change: _signed_bytes(change.bytes_difference)
                                     if change.bytes_difference else "", 0))
        names, fused = [change.name for change in changes], [()] * len(changes)
        return fit("layer", lambda most: labels(names, fused, most or LONGEST_NAME), columns, width, gap)


@dataclass
class Comparison:
    """Pairs of runs of two profiles, and what has to be borne in mind about all of them."""

    runs: list[RunComparison]
    notes: list[str] = field(default_factory=list)

    def table(self, width: int | None = None) -> str:
        """All pairs as plain text in lines of so many characters; None leaves nothing out."""
        texts = [pair.table(width) for pair in self.runs]
        if self.notes:
            texts.append(wrapped("\n".join(f"note: {note}" for note in self.notes), width))
        return "\n\n".join(texts)

    def __str__(self) -> str:
        return self.table()

    def as_dict(self) -> dict[str, Any]:
        """The comparison in JSON's types."""
        return {"schema": SCHEMA, "notes": self.notes, "runs": [pair.as_dict() for pair in self.runs]}


def compare(before: Profile, after: Profile) -> Comparison:
    """Two profiles beside each other.

    Runs with the same batch, threads and train are paired where one of the profiles has several and any agree, else they
    are paired in order; a note tells of runs that are left. Layers are matched by name. What counts as a difference is
    said at noise_us.

    Raises DataError where the profiles have nothing in common: training in one and prediction in the other, or no layer of
    the one in the other.
    """
    if not before.runs or not after.runs:
        raise DataError("a profile without a run cannot be compared")
    notes: list[str] = []
    pairs = _pairs(before.runs, after.runs, notes)
    alike = [(one, other) for one, other in pairs if _trains(one) == _trains(other)]
    if not alike:
        kinds = [" and ".join(sorted({"training" if _trains(run) else "prediction" for run in profile.runs}))
                 for profile in (before, after)]
        raise DataError(f"the profiles cannot be compared: the first one measured {kinds[0]}, the second one {kinds[1]}; "
                        "measure the same of both, with or without train")
    if len(alike) < len(pairs):
        notes.append(f"{len(pairs) - len(alike)} of {len(pairs)} pairs are left out: training in one, prediction in the other")
    found = [_compare_runs(one, other) for one, other in alike]
    if not any(_own_layers(one) & _own_layers(other) for one, other in alike):
        names = [profile.conditions.get("model") for profile in (before, after)]
        raise DataError(f"the profiles cannot be compared: no layer of the first one (model {names[0]!r}) is in the second one "
                        f"(model {names[1]!r}); layers are matched by name")
    return Comparison(found, notes)


def noise_us(before_us: float, before: Spread, after: Spread, clock_us: float = 0.0) -> float:
    """Up to which difference, in microseconds, two times are taken for the same: the largest of

    - 5% of the time before,
    - what both measurements vary, sqrt(h1**2 + h2**2), where h is what lies between a spread's min and its p50: above that it
      is the machine's other work that varies, which the times leave out,
    - one reading of the clock, where that is given.

    A spread that is missing (p50 is 0, as in old files, or where nothing took any time) is taken to be as wide as the other
    one; where both are, the rest decides. What Python does around the program has no spread of its own: it is taken to vary
    as the whole call does.
    """
    widths = [_below_median(spread) for spread in (before, after)]
    known = [width for width in widths if width is not None]
    first, second = (width if width is not None else known[0] if known else 0.0 for width in widths)
    return max(LEAST_SHARE * abs(before_us), math.hypot(first, second), clock_us)


def _below_median(spread: Spread) -> float | None:
    """How far the shortest time lies below the median, where that is known."""
    if spread.p50 <= 0:
        return None
    return max(spread.p50 - spread.min, 0.0)


def _trains(run: Run) -> bool:
    return bool(run.conditions.get("train"))


def _key(run: Run) -> tuple[Any, ...]:
    return run.batch, run.conditions.get("threads"), _trains(run)


def _pairs(before: Sequence[Run], after: Sequence[Run], notes: list[str]) -> list[tuple[Run, Run]]:
    """Which runs are compared. Of several with the same conditions the first is paired with the first, and so on."""
    if len(before) > 1 or len(after) > 1:
        left = list(after)
        pairs: list[tuple[Run, Run]] = []
        for run in before:
            other = next((one for one in left if _key(one) == _key(run)), None)
            if other is not None:
                left = [one for one in left if one is not other]
                pairs.append((run, other))
        if pairs:
            alone = len(before) - len(pairs), len(left)
            for count, whole, when in zip(alone, (len(before), len(after)), ("before", "after"), strict=True):
                if count:
                    notes.append(f"without a counterpart of the same batch and threads: {count} of {whole} runs {when}")
            return pairs
        notes.append("no runs have the same batch and threads: they are compared in order")
        if len(before) != len(after):
            notes.append(f"{len(before)} runs before, {len(after)} after: the last ones are left out")
    return list(zip(before, after, strict=False))


def _own_layers(run: Run) -> set[str]:
    """Names of the network's layers that ran."""
    names = {layer.name for layer in run.layers if layer.op not in COMMON and layer.name not in COMMON}
    return names & {node.name for node in run.graph} if run.graph else names


def _compare_runs(before: Run, after: Run) -> RunComparison:
    clock = max(float(run.conditions.get("clock_ns") or 0) for run in (before, after)) / 1e3
    firsts, seconds = ({layer.name: layer for layer in run.layers} for run in (before, after))
    layers = [_change(before, layer, after, seconds[name], clock) for name, layer in firsts.items() if name in seconds]
    only_before = [_change(before, layer, after, None, clock) for name, layer in firsts.items() if name not in seconds]
    only_after = [_change(before, None, after, layer, clock) for name, layer in seconds.items() if name not in firsts]
    whole = Change("whole call", "", before.total_us, after.total_us,
                   noise_us(before.total_us, before.spread, after.spread, clock))
    differs = {key: (value, after.conditions[key]) for key, value in before.conditions.items()
               if key not in PASSING and key in after.conditions and after.conditions[key] != value}
    notes = []
    if before.batch != after.batch:
        notes.append(f"batches of {before.batch} and {after.batch}: times are those of whole calls")
    unknown = sum(max(layer.spread.p50, seconds[name].spread.p50) <= 0 < layer.total_us
                  for name, layer in firsts.items() if name in seconds and layer.op != "python")
    if unknown:
        notes.append(f"how the times of {unknown} {'layer' if unknown == 1 else 'layers'} varied is not known: what is beyond "
                     f"{100 * LEAST_SHARE:.0f}% counts as a difference")
    clocks = [float(run.conditions.get("frequency_mhz") or 0) for run in (before, after)]
    if min(clocks) > 0 and abs(clocks[1] - clocks[0]) > LEAST_SHARE * clocks[0]:
        notes.append(f"the processors ran at {clocks[0]:,.0f} MHz before and {clocks[1]:,.0f} MHz after")
    for run, alone, when in ((before, only_after, "before"), (after, only_before, "after")):
        homes = {name: layer.name for layer in run.layers for name in layer.fused}
        inside = [f"{change.name} in {homes[change.name]}" for change in alone if change.name in homes]
        if inside:
            notes.append(f"{when} these run in another layer's kernel: {', '.join(inside)}")
    if any(run.conditions.get("interrupted") for run in (before, after)):
        notes.append("a measurement was interrupted")
    return RunComparison(before, after, layers, only_before, only_after, whole, _memory(before, after), differs, notes)


def _change(run: Run, before: LayerCost | None, other: Run, after: LayerCost | None, clock_us: float) -> Change:
    first, second = before or LayerCost("", ""), after or LayerCost("", "")
    op = f"{first.op} -> {second.op}" if first.op and second.op and first.op != second.op else first.op or second.op
    parts = {name: (float(getattr(first, f"{name}_us")), float(getattr(second, f"{name}_us")))
             for name in ("forward", "backward", *PARTS[1:])}
    kinds = dict.fromkeys((*first.bytes, *second.bytes))
    spreads = [whole.spread if layer.op == "python" else layer.spread for whole, layer in ((run, first), (other, second))]
    return Change(first.name or second.name, op, before.total_us if before else None, after.total_us if after else None,
                  noise_us(first.total_us, spreads[0], spreads[1], clock_us),
                  {name: pair for name, pair in parts.items() if any(pair)},
                  {kind: (first.bytes.get(kind, 0), second.bytes.get(kind, 0)) for kind in kinds})


def _memory(before: Run, after: Run) -> dict[str, tuple[int, int]]:
    if before.memory is not None and after.memory is not None:
        first, second = before.memory, after.memory
        found = {name: (int(getattr(first, name)), int(getattr(second, name)))
                 for name in ("arena", "lower_bound", "parameters", "state")}
        kinds = dict.fromkeys(block.kind for plan in (first, second) for block in plan.blocks)
        return {**found, **{PLURALS.get(kind, kind): (_most_live(first, kind), _most_live(second, kind)) for kind in kinds
                            if kind not in found}}
    return {kind: (_held(before, kind), _held(after, kind)) for kind in ("parameters", *KINDS)}


def _held(run: Run, kind: str) -> int:
    return sum(layer.bytes.get(kind, 0) for layer in run.layers)


def _most_live(plan: MemoryPlan, kind: str) -> int:
    blocks = [block for block in plan.blocks if block.kind == kind]
    rows = max((block.last for block in blocks), default=-1) + 1
    return max(MemoryPlan(plan.arena, plan.lower_bound, plan.parameters, plan.state, plan.begin, blocks).live(rows), default=0)


def _rounded(value: float | None, digits: int = 3) -> float | None:
    return None if value is None else round(float(value), digits)


def _time(microseconds: float | None, sign: str = "") -> str:
    if microseconds is None:
        return "-"
    return (sign if microseconds >= 0.05 else "") + signed_time(microseconds)


def _signed_bytes(size: int) -> str:
    return ("+" if size > 0 else "-" if size < 0 else "") + bytes_text(abs(size))


def _value(value: Any) -> str:
    return shortened(str(value), 40)
