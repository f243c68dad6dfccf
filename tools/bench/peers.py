"""This library and whatever else is installed, on the same networks with the same weights.

Every peer runs in a process of its own, takes NumPy arrays and gives NumPy arrays or floats. What they compute is compared
first. Then they are timed in turns, and a peer's figure is the lowest of its rounds' medians. One thread is pinned to a core.
A training step is forward, cross-entropy, backward and SGD with momentum, batch norm on the batch's statistics; the last-layer
step trains the last layer alone; for that and for inference batch norm is folded into the convolutions for everybody.
"""
from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from microcnn.errors import MicroCNNError

from ..commands import options
from ..loading import check_writable
from ..machine import conditions_of_machine
from ..terminal import Terminal
from .catalog import JOBS, PEERS, Peer, chosen, interpreters
from .models import MODELS, graph_of
from .process import Workers
from .recipe import Recipe
from .table import Report, parts_of, write_readme
from .timing import Cell, Turns, default_batches, measure

ALT = "Speed of microcnn and its peers for each network, beside the fastest peer"
EPILOG = """examples:
  python -m microcnn.tools.bench peers --models digits-cnn --jobs infer
  python -m microcnn.tools.bench peers --python tf=/path/to/venv/bin/python --python litert=/path/to/other/bin/python
  python -m microcnn.tools.bench peers --json bench.json --chart bench.svg --readme README.md
  python -m microcnn.tools.bench peers --from bench.json --chart bench.svg"""


def build_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(prog="python -m microcnn.tools.bench peers", description=__doc__, epilog=EPILOG,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", metavar="A,B", type=options.several(str), default=list(MODELS),
                        help=f"names or .onnx files (all: {', '.join(MODELS)})")
    parser.add_argument("--peers", metavar="A,B", type=options.several(str), default=list(PEERS),
                        help=f"which ones, microcnn included (all that are installed of: {', '.join(PEERS)})")
    parser.add_argument("--jobs", metavar="A,B", type=options.several(str), default=list(JOBS),
                        help="infer, train (a whole step) and last (a step of the last layer) (all)")
    parser.add_argument("--batches", metavar="N,...", type=options.several(options.whole()),
                        help="samples at a time (1,32 for inference and 1,8,32 for training; large models 1 and 4)")
    parser.add_argument("--threads", metavar="N,...", type=options.several(options.whole()), default=None,
                        help="how many threads compute (1 and all processors)")
    parser.add_argument("--python", metavar="PEER=PATH", action="append", default=[],
                        help="the interpreter of the environment in which a peer is installed (may be repeated)")
    parser.add_argument("--rounds", metavar="N", type=options.whole(), default=3, help="turns of each peer (3)")
    parser.add_argument("--seconds", metavar="S", type=options.real(above=0), default=0.2, help="how long a turn takes (0.2)")
    parser.add_argument("--timeout", metavar="S", type=options.real(above=0), default=1800.0,
                        help="how long a peer may take to answer, compiling included, before it is ended (1800)")
    parser.add_argument("--core", metavar="N", type=options.whole(0), help="the processor for one thread (the last one)")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the figures as JSON")
    parser.add_argument("--from", dest="source", metavar="FILE", type=Path,
                        help="measure nothing, take the figures of this JSON file")
    parser.add_argument("--chart", metavar="FILE", type=Path, help="draw them into an .svg or .png file (needs matplotlib)")
    parser.add_argument("--readme", metavar="FILE", type=Path, help="write the table between the markers of this file")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and report. Returns 1 where outputs disagree or nothing was measured, 130 after Ctrl-C, which keeps the rest."""
    args, terminal = build_parser().parse_args(arguments), Terminal()
    for path in filter(None, (args.json, args.chart)):
        check_writable(path)
    if args.chart:
        from .chart import check_chart
        check_chart(args.chart)
    if args.readme:
        check_writable(args.readme)
        parts_of(args.readme)
    interrupted = False
    if args.source:
        report = Report.load(args.source)
    else:
        report, interrupted = run(args, terminal)
    if not report.jobs():
        terminal.say("nothing was measured")
        return 130 if interrupted else 1
    report.show(terminal)
    if args.json:
        report.save(args.json)
        terminal.say(f"saved {args.json}")
    if args.chart:
        from .chart import draw
        draw(report, args.chart)
        terminal.say(f"drew {args.chart}")
    if args.readme and not interrupted:
        picture = f"![{ALT}]({os.path.relpath(args.chart, args.readme.parent)})\n\n" if args.chart else ""
        write_readme(args.readme, picture + report.markdown())
        terminal.say(f"wrote the table into {args.readme}")
    if interrupted:
        return 130
    return 1 if any(not result.agrees for cell in report.measured for result in cell.results.values()) else 0


def run(args: argparse.Namespace, terminal: Terminal) -> tuple[Report, bool]:
    """All cells, and whether Ctrl-C came before the end. Raises MicroCNNError for bad arguments."""
    for job in args.jobs:
        if job not in JOBS:
            raise MicroCNNError(f"there is no job {job!r}; expected one of {', '.join(JOBS)}")
    peers, given = chosen(args.peers), interpreters(args.python)
    core = core_for_one(args.core)
    with tempfile.TemporaryDirectory(prefix="microcnn-bench-", ignore_cleanup_errors=True) as folder:
        recipes = [Recipe(graph_of(name), Path(folder, str(number))) for number, name in enumerate(args.models)]
        report = Report(conditions_of_machine())
        processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        threads = list(dict.fromkeys(args.threads or [1, processors]))
        report.conditions.update(threads=threads, rounds=args.rounds, seconds=args.seconds, core=core)
        try:
            for count in threads:
                with Workers(given, count, core, Path(folder)) as workers:
                    _check(peers, workers, report, terminal)
                    _cells(args, recipes, peers, workers, report, terminal)
                    peers = [peer for peer in peers if peer.name not in report.absent]
        except KeyboardInterrupt:
            terminal.warn(f"interrupted; {len(report.measured)} cells were measured")
            return report, True
        return report, False


def core_for_one(wanted: int | None) -> int | None:
    """The processor to which one thread is pinned, None where the system has no such thing. Raises MicroCNNError."""
    if not hasattr(os, "sched_getaffinity"):
        return None
    usable = sorted(os.sched_getaffinity(0))
    if wanted is not None and wanted not in usable:
        raise MicroCNNError(f"--core {wanted}: this process may run on {', '.join(map(str, usable))}; give one of these")
    return usable[-1] if wanted is None else wanted


def _check(peers: Sequence[Peer], workers: Workers, report: Report, terminal: Terminal) -> None:
    """Start every peer, and say which ones are there."""
    for peer in peers:
        worker = workers.get(peer)
        if worker.version is not None:
            report.versions[peer.name] = worker.version
            continue
        why = worker.problem if worker.absent else f"does not start: {worker.problem}"
        report.absent[peer.name] = why
        terminal.say(f"{peer.name} is left out: {why}")


def _cells(args: argparse.Namespace, recipes: Sequence[Recipe], peers: Sequence[Peer], workers: Workers, report: Report,
           terminal: Terminal) -> None:
    """Measure every cell for this number of threads."""
    there = [peer for peer in peers if peer.name not in report.absent]
    cells = [(Cell(job, recipe.name, batch, workers.threads), recipe) for job in args.jobs for recipe in recipes
             if job == "infer" or recipe.trains for batch in args.batches or default_batches(job, recipe.macs)]
    for recipe in recipes:
        if not recipe.trains and set(args.jobs) - {"infer"}:
            terminal.say(f"{recipe.name} does not train here: its output {recipe.output_shape} is no scores of classes")
    with terminal.progress(len(cells), "measuring") as bar:
        for number, (cell, recipe) in enumerate(cells):
            found = measure(cell, recipe, there, workers, Turns(args.rounds, args.seconds, args.timeout),
                            lambda text, number=number: bar.show(number, text))     # type: ignore[misc]
            report.measured.append(found)
            for name, why in found.failed.items():
                bar.say(f"{cell}: {name} failed: {why}")
