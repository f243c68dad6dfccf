"""Other forms of a profile: CSV, a pandas.DataFrame, and a trace that Perfetto and chrome://tracing show."""
from __future__ import annotations

import csv
import importlib
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from microcnn.errors import CompileError

from .profile_data import LayerCost, MemoryPlan, Profile, RowCost, Run, multiplies
from .profile_table import shape_text

COLUMNS = (
    "kind", "run", "model", "train", "batch", "threads", "dtype", "layer", "op", "fused", "output_shape", "forward_us",
    "backward_us", "backward_input_us", "backward_weight_us", "update_us", "total_us", "share_percent", "min_us", "p50_us",
    "p90_us", "p99_us", "macs_per_sample", "parameters", "gflop_per_s", "gbyte_per_s", "flop_per_byte", "bound_by",
    "roof_percent", "moved_bytes", "parameters_bytes", "activations_bytes", "gradients_bytes", "state_bytes", "scratch_bytes",
    "peak_bytes")
# Nanoseconds between a slice of the trace and those beside and inside it: viewers that cut times off to nanoseconds
# would else see slices that overlap.
GAP = 2
PHASES = {"backward_input": "backward", "backward_weight": "backward"}


def records(profile: Profile) -> list[dict[str, Any]]:
    """The lines of the CSV file as dictionaries with the keys COLUMNS: those of every layer of every run in order, then the
    run's "not_accounted_for" and "whole_call". `run` counts from 0. None stands where there is nothing to say.
    """
    return [line for number, run in enumerate(profile.runs) for line in _records(number, run)]


def csv_text(profile: Profile) -> str:
    """The profile as CSV with a header (RFC 4180: lines end with CR LF; write it to a file opened with newline="").

    A line each for the layers of each run (kind "layer"), for what is not accounted for and for the whole call, with
    COLUMNS as they are called; units stand in the names. Where there is nothing to say the field is empty.
    """
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, lineterminator="\r\n")
    writer.writeheader()
    for line in records(profile):
        writer.writerow({name: str(value).lower() if isinstance(value, bool) else value for name, value in line.items()})
    return out.getvalue()


def frame(profile: Profile) -> Any:
    """The layers of all runs as a pandas.DataFrame: a line each, columns as in the CSV file without `kind`.

    Raises CompileError where pandas is not installed.
    """
    try:
        pandas = importlib.import_module("pandas")
    except ImportError as error:
        raise CompileError("a profile's frame needs the package pandas, which is not installed; install it: "
                           "python -m pip install pandas") from error
    names = list(COLUMNS[1:])
    return pandas.DataFrame([{name: line[name] for name in names} for line in records(profile) if line["kind"] == "layer"],
                            columns=names)


def _records(number: int, run: Run) -> Iterator[dict[str, Any]]:
    known = run.conditions
    common = {**dict.fromkeys(COLUMNS), "run": number, "train": bool(known.get("train")), "batch": run.batch,
              **{key: known.get(key) for key in ("model", "threads", "dtype")}}

    def share(microseconds: float) -> float | None:
        return round(100 * microseconds / run.total_us, 3) if run.total_us else None

    def spread(of: Run | LayerCost) -> dict[str, float | None]:
        return {f"{key}_us": round(getattr(of.spread, key), 3) if of.spread.p50 > 0 else None
                for key in ("min", "p50", "p90", "p99")}

    def some(value: float) -> float | None:
        return round(value, 3) if value else None

    for layer in run.layers:
        times = {f"{key}_us": round(getattr(layer, f"{key}_us"), 3)
                 for key in ("forward", "backward", "backward_input", "backward_weight", "update", "total")}
        kinds = {f"{kind}_bytes": layer.bytes.get(kind, 0)
                 for kind in ("parameters", "activations", "gradients", "state", "scratch")}
        yield {**common, **times, **kinds, **spread(layer), "kind": "layer", "layer": layer.name, "op": layer.op,
               "fused": " + ".join(layer.fused), "output_shape": shape_text(layer.shape),
               "share_percent": share(layer.total_us), "macs_per_sample": layer.macs, "parameters": layer.parameters,
               "gflop_per_s": some(layer.gflops(run.batch)), "gbyte_per_s": round(layer.gbs, 3),
               "flop_per_byte": some(layer.intensity(run.batch)), "bound_by": run.bound_by(layer),
               "roof_percent": round(100 * run.of_roof(layer), 1) if run.bound_by(layer) else None,
               "moved_bytes": layer.bytes_moved, "peak_bytes": layer.peak_bytes}
    yield {**common, "kind": "not_accounted_for", "total_us": round(run.unaccounted_us, 3),
           "share_percent": share(run.unaccounted_us)}
    yield {**common, **spread(run), "kind": "whole_call", "total_us": round(run.total_us, 3),
           "share_percent": share(run.total_us)}


@dataclass
class Slice:
    """A slice of the trace and those inside it. nanoseconds: how long it is at least."""

    name: str
    category: str
    nanoseconds: int = 0
    arguments: dict[str, Any] = field(default_factory=dict)
    inside: list[Slice] = field(default_factory=list)
    row: int | None = None

    def length(self) -> int:
        """Nanoseconds, with room for what is inside."""
        needed = sum(one.length() for one in self.inside) + GAP * (len(self.inside) + 1) if self.inside else 0
        return max(self.nanoseconds, needed)


def trace_text(profile: Profile) -> str:
    """The trace as JSON."""
    return json.dumps(trace_dict(profile), indent=None, separators=(",", ":")) + "\n"


def trace_dict(profile: Profile) -> dict[str, Any]:
    """The profile in the Chrome Trace Event Format, which Perfetto and chrome://tracing show. Times are in microseconds.

    Each run is a process with one whole call, inside it what Python does around the program ("call"), the phases forward,
    loss, backward and update in the order in which they come, inside those the layers by name, and inside those the rows,
    called after their kernels. A row is as long as it typically takes; everything else has two nanoseconds around what is
    inside it, and arguments with the figures as they were measured. What the rows leave of the whole call comes last.
    Where a run has no rows, its layers stand one after the other, those of backward in reverse order. Where it has both
    rows and a plan of its memory, a counter tells how many bytes of each kind are live in the part of the arena that is
    shared over time.
    """
    events: list[dict[str, Any]] = []
    for number, run in enumerate(profile.runs, 1):
        events += _metadata(number, run)
        starts: dict[int, tuple[int, int]] = {}
        _place(_whole_call(run), 0, number, events, starts)
        if run.memory is not None and starts:
            events += _counters(number, run.memory, starts)
    events.sort(key=lambda event: (event["ph"] != "M", event["ts"], -event.get("dur", 0)))
    return {"traceEvents": events, "displayTimeUnit": "ns"}


def _metadata(number: int, run: Run) -> list[dict[str, Any]]:
    known = run.conditions
    threads = known.get("threads")
    facts = [known.get("model"), "train_step" if known.get("train") else "predict", f"batch {run.batch}",
             None if threads is None else f"{threads} thread{'s' if threads != 1 else ''}", known.get("cpu")]
    about = {"process_name": {"name": ", ".join(str(fact) for fact in facts if fact)},
             "process_sort_index": {"sort_index": number}, "thread_name": {"name": "program"}}
    return [{"ph": "M", "name": name, "pid": number, "tid": number, "ts": 0, "args": values} for name, values in about.items()]


def _whole_call(run: Run) -> Slice:
    """The tree of a run's slices."""
    known = run.conditions
    told: tuple[str, ...] = ("model", "batch", "threads", "dtype", "instruction_set", "cpu")
    facts = {key: known[key] for key in told if key in known}
    whole = Slice("train_step" if known.get("train") else "predict", "call", _nanoseconds(run.total_us),
                  {"us": round(run.total_us, 3), **facts})
    outside = [layer for layer in run.layers if layer.op == "python"]
    whole.inside = [Slice(layer.name, "python", _nanoseconds(layer.total_us), {"us": round(layer.total_us, 3)})
                    for layer in outside if layer.total_us > 0]
    whole.inside += _of_rows(run) if run.rows else _of_layers(run)
    rest = whole.nanoseconds - sum(one.length() for one in whole.inside) - GAP * (len(whole.inside) + 2)
    if rest > GAP and whole.inside:
        whole.inside.append(Slice("not accounted for", "call", rest, {"us": round(run.unaccounted_us, 3)}))
    return whole


def _of_rows(run: Run) -> list[Slice]:
    """Phases, layers and rows, as the rows follow each other."""
    layers = {layer.name: layer for layer in run.layers}
    multiply = Counter((row.layer, row.part) for row in run.rows if multiplies(row.kernel, row.part))
    phases = []
    for phase, in_phase in groupby(enumerate(run.rows), key=_phase):
        inside = []
        for name, numbered in groupby(in_phase, key=lambda pair: pair[1].layer):
            rows = list(numbered)
            layer = layers.get(name)
            leaves = [Slice(row.kernel or row.part, row.part, _nanoseconds(row.us),
                            {"kernel": row.kernel, **_figures([row], layer, run.batch, multiply),
                             "reads": row.reads, "writes": row.writes}, row=number) for number, row in rows]
            only = [row for _, row in rows]
            kernels = ", ".join(dict.fromkeys(row.kernel for row in only))
            about: dict[str, Any] = {"op": layer.op if layer else only[0].op, "kernel": kernels}
            if layer is not None and layer.fused:
                about["fused"] = " + ".join(layer.fused)
            inside.append(Slice(name, "layer", 0, {**about, **_figures(only, layer, run.batch, multiply)}, leaves))
        phases.append(Slice(phase, "phase", 0, _sum(inside), inside))
    return phases


def _phase(numbered: tuple[int, RowCost]) -> str:
    return PHASES.get(numbered[1].part, numbered[1].part)


def _figures(rows: Sequence[RowCost], layer: LayerCost | None, batch: int,
             multiply: Counter[tuple[str, str]]) -> dict[str, Any]:
    """What rows of a layer took and did. Multiply-adds of a part are told only where all the rows that share them are there."""
    took, moved = sum(row.us for row in rows), sum(row.reads + row.writes for row in rows)
    figures: dict[str, Any] = {"us": round(took, 3), "bytes": moved}
    here = Counter((row.layer, row.part) for row in rows if multiplies(row.kernel, row.part))
    macs = sum(here[key] == multiply[key] for key in here) * (layer.macs if layer else 0) * batch
    if macs:
        figures["macs"] = macs
    if took > 0:
        figures |= {"GFLOP/s": round(2 * macs / took / 1e3, 3)} if macs else {}
        figures["GB/s"] = round(moved / took / 1e3, 3)
    return figures


def _of_layers(run: Run) -> list[Slice]:
    """Phases and layers of a run without rows."""
    layers = [layer for layer in run.layers if layer.op != "python"]
    losses = [layer for layer in layers if layer.name == "loss"]
    others = [layer for layer in layers if layer.name != "loss"]

    def slices(of: Iterable[LayerCost], key: str) -> list[Slice]:
        return [_layer_slice(run, layer, key) for layer in of if getattr(layer, f"{key}_us") > 0]

    phases = (("forward", slices(others, "forward")), ("loss", slices(losses, "forward")),
              ("backward", slices(reversed(layers), "backward")), ("update", slices(layers, "update")))
    return [Slice(name, "phase", 0, _sum(inside), inside) for name, inside in phases if inside]


def _layer_slice(run: Run, layer: LayerCost, key: str) -> Slice:
    parts = ("backward_input", "backward_weight") if key == "backward" else (key,)
    ran = [part for part in parts if layer.part_us(part) > 0]
    took = float(getattr(layer, f"{key}_us"))
    moved = sum(layer.moved.get(part, 0) for part in ran)
    macs = layer.macs * run.batch * sum(part in layer.multiplying for part in ran)
    arguments: dict[str, Any] = {"op": layer.op, "us": round(took, 3)}
    if moved:
        arguments |= {"bytes": moved, "GB/s": round(moved / took / 1e3, 3)}
    if macs:
        arguments |= {"macs": macs, "GFLOP/s": round(2 * macs / took / 1e3, 3)}
    inside = [Slice(part, part, _nanoseconds(layer.part_us(part)), {"us": round(layer.part_us(part), 3)})
              for part in ran] if key == "backward" else []
    return Slice(layer.name, "layer", _nanoseconds(took), arguments, inside)


def _sum(inside: Sequence[Slice]) -> dict[str, Any]:
    return {"us": round(sum(one.arguments["us"] for one in inside), 3)}


def _nanoseconds(microseconds: float) -> int:
    return max(round(1e3 * microseconds), 0)


def _place(one: Slice, begin: int, process: int, events: list[dict[str, Any]], starts: dict[int, tuple[int, int]]) -> None:
    """Append a slice's event and those of all inside it; note in `starts` from when to when each row runs."""
    length = one.length()
    events.append({"ph": "X", "name": one.name, "cat": one.category, "pid": process, "tid": process, "ts": begin / 1e3,
                   "dur": length / 1e3, "args": one.arguments})
    if one.row is not None:
        starts[one.row] = begin, begin + length
    begin += GAP
    for inner in one.inside:
        _place(inner, begin, process, events, starts)
        begin += inner.length() + GAP


def _counters(process: int, memory: MemoryPlan, starts: dict[int, tuple[int, int]]) -> list[dict[str, Any]]:
    """How many bytes are live, by kind, whenever that changes."""
    count = len(starts)
    changes: list[Counter[str]] = [Counter() for _ in range(count + 1)]
    for block in memory.blocks:
        first, end = max(block.first, 0), min(block.last + 1, count)
        if first < end:
            changes[first][block.kind] += block.bytes
            changes[end][block.kind] -= block.bytes
    live = dict.fromkeys(sorted({block.kind for block in memory.blocks}), 0)
    events = []
    for row in range(count + 1):
        for kind, change in changes[row].items():
            live[kind] += change
        if row == count:        # what lives for ever in this program is not live after it
            live = dict.fromkeys(live, 0)
        if live and (row in (0, count) or any(changes[row].values())):
            moment = starts[row][0] if row < count else starts[count - 1][1]
            events.append({"ph": "C", "name": "live bytes", "pid": process, "tid": process, "ts": moment / 1e3,
                           "args": dict(live)})
    return events
