"""The figures as text, as JSON, and as the table of README."""
from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from microcnn.errors import DataError, FileError
from microcnn.files import atomic_write

from ..terminal import Terminal, time_text
from .catalog import JOBS, PEERS
from .timing import OURS, Measured

SCHEMA = "microcnn.bench/1"
# Losses that rounding moves by more than this say less about whether peers agree.
ROUNDING = 1e-3
MARKERS = "<!-- bench -->", "<!-- end of bench -->"


class Report:
    """Everything that one run measured.

    conditions  of the machine and the run
    versions    of the peers that ran; absent: why others did not
    """

    def __init__(self, conditions: dict[str, Any], measured: Sequence[Measured] = (), versions: dict[str, str] | None = None,
                 absent: dict[str, str] | None = None):
        self.conditions, self.measured = conditions, list(measured)
        self.versions, self.absent = dict(versions or {}), dict(absent or {})

    def save(self, path: Path) -> None:
        """Write the figures as JSON, atomically. Raises FileError."""
        data = {"schema": SCHEMA, "conditions": self.conditions, "versions": self.versions, "absent": self.absent,
                "cells": [cell.as_dict() for cell in self.measured]}
        atomic_write(path, [(json.dumps(data, indent=1) + "\n").encode()])

    @classmethod
    def load(cls, path: Path) -> Report:
        """Read what save wrote. Raises FileError."""
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            if data["schema"] != SCHEMA:
                raise FileError(f"{path}: its schema is {data['schema']!r}; expected {SCHEMA!r}")
            cells = [Measured.from_dict(cell) for cell in data["cells"]]
            return cls(data["conditions"], cells, data["versions"], data["absent"])
        except OSError as error:
            raise FileError(f"{path}: cannot be read ({error.strerror or error})") from error
        except (ValueError, KeyError, TypeError) as error:
            raise FileError(f"{path}: no figures of this benchmark: {type(error).__name__}: {error}") from error

    def peers(self, job: str | None = None) -> list[str]:
        """The peers that have a figure, this library first."""
        found = {name for cell in self.measured if job in (None, cell.cell.job) for name in cell.results}
        return [name for name in PEERS if name in found]

    def of(self, job: str) -> list[Measured]:
        """The cells of a job that have a figure."""
        return [cell for cell in self.measured if cell.cell.job == job and cell.results]

    def jobs(self) -> list[str]:
        """The jobs that have figures."""
        return [job for job in JOBS if self.of(job)]

    def summary(self, job: str) -> str:
        """How this library stands in a job, over all its cells."""
        leads = [lead for cell in self.of(job) if (lead := cell.lead()) is not None]
        if not leads:
            return ""
        mean = math.exp(sum(map(math.log, leads)) / len(leads))
        return (f"microcnn is {mean:.2f} times as fast as the fastest peer (geometric mean of {len(leads)}, "
                f"lowest {min(leads):.2f})")

    def remarks(self) -> list[str]:
        """What a reader of the figures has to know: what a peer leaves out, what rounding does, and whose outputs disagree."""
        left_out = {name: result.differs for cell in self.measured for name, result in cell.results.items() if result.differs}
        lines = [f"* {PEERS[name].title}: {text}" for name, text in left_out.items()]
        for cell in self.measured:
            if any(moved > ROUNDING for moved in cell.spread):
                lines.append(f"~ {cell.cell}: rounding alone moves its losses by up to {max(cell.spread):.2g}; they were "
                             "compared no closer than that")
            for name, result in cell.results.items():
                if not result.agrees:
                    lines.append(f"! {cell.cell}: {name} does not compute what {cell.reference} does: they are "
                                 f"{result.difference:.1f} times as far apart as is allowed; its time does not count")
        return lines

    def show(self, terminal: Terminal) -> None:
        """Print tables, one for each job."""
        for job in self.jobs():
            names = self.peers(job)
            rows = []
            for cell in self.of(job):
                lead, best = cell.lead(), cell.fastest()
                rows.append([cell.cell.model, cell.cell.batch, cell.cell.threads,
                             *(_time(cell, name) for name in names), best or "-", f"{lead:.2f}" if lead is not None else "-"])
            terminal.table(["model", ">batch", ">threads", *(f">{name}" for name in names), "fastest peer", ">lead"], rows,
                           f"{JOBS[job]}, a call; lead: the fastest peer's time over microcnn's")
            if line := self.summary(job):
                terminal.say(line)
            terminal.say()
        for line in self.remarks():
            terminal.say(line)

    def markdown(self) -> str:
        """The table of README: for each cell this library's time, and that of the fastest peer."""
        facts = self.conditions
        versions = ", ".join(f"{PEERS[name].title} {version}" for name, version in self.versions.items())
        lines = [f"{facts.get('cpu')}, {facts.get('instruction_set')}, {str(facts.get('system')).partition('-')[0]}, "
                 f"load {facts.get('load_average')}; Python {facts.get('python')}, numba {facts.get('numba')}. "
                 f"Measured in turns: {versions}."]
        for job in self.jobs():
            lines += ["", f"**{JOBS[job][0].upper()}{JOBS[job][1:]}.** {self.summary(job)}", "",
                      "| model | batch | threads | microcnn | fastest peer | its time | times as fast |", "|-|-|-|-|-|-|-|"]
            for cell in self.of(job):
                best, lead = cell.fastest(), cell.lead()
                lines.append(f"| {cell.cell.model} | {cell.cell.batch} | {cell.cell.threads} | {_time(cell, OURS)} | "
                             f"{PEERS[best].title if best else '-'} | {_time(cell, best)} | "
                             f"{f'{lead:.2f}' if lead is not None else '-'} |")
        if remarks := self.remarks():
            lines += ["", *(f"- {line[2:]}" for line in remarks)]
        return "\n".join(lines)


def _time(cell: Measured, name: str | None) -> str:
    """A peer's time for people: ! where it does not agree, * where it leaves something out."""
    result = cell.results.get(name or "")
    if result is None:
        return "-"
    return time_text(result.us) + ("!" if not result.agrees else "*" if result.differs else "")


def parts_of(path: Path) -> tuple[str, str]:
    """A README before and behind the place of the table. Raises FileError, and DataError where the markers are missing."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise FileError(f"{path}: cannot be read ({error.strerror or error})") from error
    before, first, rest = text.partition(MARKERS[0])
    _, second, behind = rest.partition(MARKERS[1])
    if not first or not second:
        raise DataError(f"{path} has no place for the table; expected the lines {MARKERS[0]} and {MARKERS[1]}")
    return before + first, second + behind


def write_readme(path: Path, text: str) -> None:
    """Put text between the markers of a README. Raises as parts_of."""
    before, behind = parts_of(path)
    atomic_write(path, [f"{before}\n{text}\n{behind}".encode()])
