"""What is measured, how peers are held against each other first, and how their turns are taken."""
from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .catalog import PEERS, Peer
from .models import LARGE_MACS
from .process import Worker, Workers
from .recipe import Recipe

OURS = "microcnn"
# How far outputs may lie apart, of the largest output; losses, of the loss; what two steps changed the loss by, of that change.
OUTPUTS, FIRST_LOSS, CHANGE = 1e-3, 1e-3, 0.1
SPREADS = 3
WARM_SECONDS = 0.1
LEAST_CALLS = 4


@dataclass(frozen=True)
class Turns:
    """How peers are timed: so many rounds of so many seconds; and how many seconds a peer may take to answer."""

    rounds: int = 3
    seconds: float = 0.2
    patience: float = 1800.0


@dataclass(frozen=True)
class Cell:
    """One thing to measure in every peer."""

    job: str
    model: str
    batch: int
    threads: int

    def __str__(self) -> str:
        return f"{self.job} {self.model}, batch {self.batch}, {self.threads} thread{'s' if self.threads > 1 else ''}"


@dataclass
class Result:
    """What a peer took.

    us, rounds   microseconds a call: the lowest of the rounds' medians, and these
    agrees       whether it computes what the reference does; difference: how far it is from that, as `disagreement` has it
    differs      what its training step leaves out, as its runner says
    """

    us: float
    rounds: list[float]
    p90: float
    calls: int
    agrees: bool
    difference: float
    differs: str = ""


@dataclass
class Measured:
    """A cell's results by peer, why others have none, and whose outputs the rest was held against.

    spread: how far rounding alone moves each of the reference's three losses. A network that normalises over the few numbers
    of one sample can amplify it a thousand times.
    """

    cell: Cell
    macs: int
    spread: list[float] = field(default_factory=list)
    results: dict[str, Result] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    reference: str = ""

    def fastest(self) -> str | None:
        """The quickest peer beside this library, of those that agree."""
        others = {name: result.us for name, result in self.results.items() if name != OURS and result.agrees}
        return min(others, key=lambda name: others[name]) if others else None

    def lead(self) -> float | None:
        """How many times as fast as the quickest peer this library is."""
        best, ours = self.fastest(), self.results.get(OURS)
        return self.results[best].us / ours.us if best and ours and ours.agrees else None

    def as_dict(self) -> dict[str, Any]:
        """The cell as the JSON file has it."""
        return {**asdict(self.cell), "macs": self.macs, "spread": self.spread, "reference": self.reference,
                "results": {name: asdict(result) for name, result in self.results.items()}, "failed": self.failed}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Measured:
        """What as_dict made; KeyError or TypeError where something is missing."""
        cell = Cell(*(data[name] for name in ("job", "model", "batch", "threads")))
        results = {name: Result(**result) for name, result in data["results"].items()}
        return cls(cell, data["macs"], data["spread"], results, dict(data["failed"]), data["reference"])


def default_batches(job: str, macs: int) -> list[int]:
    """What a device meets, and what training is done with; a large network at one size."""
    if macs >= LARGE_MACS:
        return {"infer": [1], "train": [4], "last": [4]}[job]
    return [1, 32] if job == "infer" else [1, 8, 32]


def measure(cell: Cell, recipe: Recipe, peers: Sequence[Peer], workers: Workers, turns: Turns,
            tell: Callable[[str], None]) -> Measured:
    """Prepare a cell in every peer, compare what they compute, and time them in turns."""
    found = Measured(cell, recipe.macs)
    recipe.prepare(cell.batch)
    ready: dict[str, Worker] = {}
    computed: dict[str, Any] = {}
    differs: dict[str, str] = {}
    for peer in peers:
        if cell.job not in peer.jobs:
            continue
        worker = workers.get(peer)
        tell(f"{cell}: {peer.name} prepares")
        outputs = recipe.folder / f"outputs-{peer.name}.npy"
        trouble = _convert(peer, cell, recipe, workers, turns.patience) if peer.converter else ""
        answer: dict[str, Any] = {"error": trouble} if trouble else worker.ask(
            turns.patience, do="prepare", folder=str(recipe.folder), job=cell.job, batch=cell.batch, outputs=str(outputs))
        if "error" in answer:
            found.failed[peer.name] = answer["error"]
            continue
        ready[peer.name] = worker
        computed[peer.name] = np.load(outputs) if cell.job == "infer" else answer["losses"]
        differs[peer.name] = answer.get("differs", "")
    if not computed:
        return found
    found.reference = OURS if OURS in computed else next(iter(computed))
    if cell.job != "infer" and len(computed) > 1:
        tell(f"{cell}: {found.reference} finds what rounding does")
        answer = ready[found.reference].ask(turns.patience, do="spread", folder=str(recipe.folder), job=cell.job,
                                            batch=cell.batch)
        found.spread = answer.get("spread", [])
    times: dict[str, list[dict[str, Any]]] = {name: [] for name in computed}
    for turn in range(turns.rounds):
        # back and forth, so that no peer always follows the same one
        for name in list(times)[::-1 if turn % 2 else 1]:
            tell(f"{cell}: {name}, round {turn + 1} of {turns.rounds}")
            answer = ready[name].ask(turns.patience, do="time", seconds=turns.seconds, least=LEAST_CALLS,
                                     warm=min(turns.seconds, WARM_SECONDS if turn == 0 else WARM_SECONDS / 3))
            if "error" in answer:
                found.failed[name] = answer["error"]
                del times[name]
            else:
                times[name].append(answer)
    for name, taken in times.items():
        apart = disagreement(computed[name], computed[found.reference], bool(differs[name]), found.spread)
        medians = [round(answer["median"], 3) for answer in taken]
        found.results[name] = Result(min(medians), medians, round(statistics.median(answer["p90"] for answer in taken), 3),
                                     sum(answer["calls"] for answer in taken), apart <= 1, apart, differs[name])
    return found


def disagreement(found: Any, wanted: Any, first_step_only: bool = False, spread: Sequence[float] = ()) -> float:
    """How far outputs (arrays) or losses (lists of three) lie apart, in units of what is allowed: above 1 they disagree.

    first_step_only: only the first step of training can be the same. A loss that does not move disagrees with one that does.
    spread: how far rounding alone moves each loss; a few times that is allowed as well.
    """
    if isinstance(wanted, np.ndarray):
        if found.shape != wanted.shape or not np.isfinite(found).all():
            return float("inf")
        return float(np.abs(found - wanted).max() / max(np.abs(wanted).max(), 1e-12) / OUTPUTS)
    if not np.isfinite(found).all():
        return float("inf")
    scale, room = max(1.0, abs(wanted[0])), [SPREADS * moved for moved in spread] or [0.0] * len(wanted)
    apart = abs(found[0] - wanted[0]) / (FIRST_LOSS * scale + room[0])
    for step in (1, 2)[:1 if first_step_only else 2]:
        moved, expected = found[step] - found[0], wanted[step] - wanted[0]
        apart = max(apart, abs(moved - expected) / (CHANGE * abs(expected) + 1e-6 * scale + room[step] + room[0]))
    return float(apart)


def _convert(peer: Peer, cell: Cell, recipe: Recipe, workers: Workers, patience: float) -> str:
    """Have the peer's converter write the .tflite file, where it is not there yet; why it could not, else ""."""
    if Path(recipe.folder, f"folded-{cell.batch}.tflite").exists():
        return ""
    converter = PEERS[peer.converter or ""]
    answer = workers.get(converter).ask(patience, do="convert", folder=str(recipe.folder), batch=cell.batch)
    return f"{converter.title}, which converts models for it, did not: {answer['error']}" if "error" in answer else ""
