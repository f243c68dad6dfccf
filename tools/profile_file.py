"""A profile's JSON file read back, everything in it checked: it may come from another device, or from an editor."""
from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

from microcnn.errors import FileError
from microcnn.memory import Block

from .profile_data import (
    MULTIPLIES,
    SCHEMA,
    GraphNode,
    LayerCost,
    Machine,
    MemoryPlan,
    RowCost,
    Run,
    Spread,
)

# What the first version of the schema had already.
NEEDED = ("name", "op", "forward_us", "backward_us", "update_us", "macs", "parameters", "bytes")
# Conditions that are numbers where they are known.
NUMBERS = ("batch", "threads", "repeats", "clock_ns", "confidence", "compile_seconds", "frequency_mhz", "max_frequency_mhz",
           "temperature_c", "load_average", "process_bytes")
# Larger numbers are no times, bytes or counts.
MOST = 1e18
# The rows that a plan may have whose program's rows are not in the file.
MOST_ROWS = 100_000


def read_runs(path: Any) -> list[Run]:
    """The runs in a file that Profile.save wrote. Raises FileError."""
    try:
        if Path(path).exists() and not Path(path).is_file():
            raise FileError(f"{path}: is not a regular file; expected a profile that --json wrote")
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise FileError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (ValueError, RecursionError) as error:
        raise FileError(f"{path}: not a profile: no valid JSON ({error})") from error
    schema = data.get("schema") if isinstance(data, dict) else None
    if schema != SCHEMA:
        raise FileError(f"{path}: not a profile that this version reads: its schema is {schema!r}, expected {SCHEMA!r}")
    try:
        runs = [_run(run) for run in data.get("runs", [data])]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FileError(f"{path}: a profile with something missing or wrong: {error}") from error
    if not runs:
        raise FileError(f"{path}: a profile without a run")
    return runs


def _run(data: dict[str, Any]) -> Run:
    """A run; KeyError, TypeError or ValueError where something is missing or wrong."""
    conditions: dict[str, Any] = {_text("a condition", key): _text(key, value) if isinstance(value, str) else value
                                  for key, value in data["conditions"].items()}
    for name in NUMBERS:
        if conditions.get(name) is not None:
            _number(name, conditions[name], name in ("batch", "threads", "repeats"))
    if conditions.get("batch", 1) is None or conditions.get("batch", 1) < 1:
        raise ValueError(f"batch is {conditions['batch']}; expected 1 or more")
    layers = [_made(LayerCost, entry, NEEDED, spread=_spread(entry)) for entry in data["layers"]]
    for layer in layers:
        if layer.passes is not None and not set(layer.passes) <= set(MULTIPLIES):
            raise ValueError(f"passes is {list(layer.passes)!r}; expected some of {', '.join(MULTIPLIES)}")
    rows = [_made(RowCost, entry, ("layer", "part", "us"), spread=_spread(entry)) for entry in data.get("rows", ())]
    memory, machine = data.get("memory"), data.get("machine")
    plan = None
    if memory is not None:
        plan = _made(MemoryPlan, memory, ("arena", "begin"), blocks=[_made(Block, block) for block in memory["blocks"]])
        for block in plan.blocks:
            if not block.first <= block.last <= (len(rows) or MOST_ROWS):       # what is never given back: one row more
                raise ValueError(f"block {block.name!r} lives from row {block.first} to {block.last} of {len(rows)}")
    roofs = None if machine is None else _made(Machine, machine, ("peak_gflops", "bandwidth_gbs"))
    if roofs is not None and not (roofs.peak_gflops > 0 and roofs.bandwidth_gbs > 0):
        raise ValueError("the machine's roofs are 0")
    return Run(conditions, _number("total_us", data["total_us"]), layers, _spread(data), rows, plan,
               [_made(GraphNode, node) for node in data.get("graph", ())], roofs)


def _spread(entry: dict[str, Any]) -> Spread:
    return _made(Spread, entry["spread"]) if "spread" in entry else Spread()


def _made(kind: Any, entry: dict[str, Any], needed: Iterable[str] = (), **changed: Any) -> Any:
    """An object of that dataclass from what it knows of an entry: later versions may have added more."""
    for name in needed:
        entry[name]
    given = {f.name: _value(f.name, str(f.type), entry[f.name]) for f in fields(kind)
             if f.name in entry and f.name not in changed}
    return kind(**given, **changed)


def _value(name: str, kind: str, value: Any) -> Any:
    """A field's value as its type says."""
    if value is None and kind.endswith("| None"):
        return None
    kind = kind.removesuffix(" | None")
    if kind in ("int", "float"):
        return _number(name, value, kind == "int")
    if kind == "str":
        return _text(name, value)
    if kind == "dict[str, int]":
        return {_text(name, key): _number(name, one, True) for key, one in value.items()}
    if isinstance(value, str) or not kind.startswith("tuple["):
        raise TypeError(f"{name} is {value!r}")
    return tuple(_text(name, one) if kind == "tuple[str, ...]" else _number(name, one, True) for one in value)


def _number(name: str, value: Any, whole: bool = False) -> Any:
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
        raise TypeError(f"{name} is {value!r}, no {'whole ' if whole else ''}number")
    if not 0 <= value <= MOST or not math.isfinite(value):
        raise ValueError(f"{name} is {value!r:.40}; expected a number from 0 to {MOST:g}")
    return value


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name} is {value!r}, no text")
    value.encode()
    return "".join(one if one.isprintable() else "?" for one in value)       # it may go to a terminal
