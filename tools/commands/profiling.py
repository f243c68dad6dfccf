"""microcnn profile: what each layer costs on this device."""
from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from microcnn.errors import CompileError
from microcnn.files import atomic_write

from ..loading import check_writable, input_shapes, load_model
from ..terminal import Terminal
from . import options

# The files that the command writes, by option.
FILES = {"json": "the figures as JSON", "csv": "a line for each layer as CSV",
         "trace": "a trace for Perfetto or chrome://tracing", "html": "a report to look at, one file that needs no network"}


def add_profile(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("model", metavar="MODEL", nargs="?", help="an .onnx or .mcnn file")
    parser.add_argument("--train", nargs="?", const="all", metavar="WHAT", type=options.parts,
                        help="measure training steps instead of prediction: all (where nothing follows), head, or "
                        "patterns of weight names")
    parser.add_argument("--batch", metavar="N,...", type=options.several(options.whole()), default=[1],
                        help="samples at a time; several values are measured one after the other (1)")
    parser.add_argument("--threads", metavar="N,...", type=options.several(options.whole()), default=[None],
                        help="how many threads compute (all processors)")
    parser.add_argument("--seconds", metavar="S", type=options.real(above=0), default=1.0,
                        help="how long to measure each at most; less where the figures stand before (1)")
    parser.add_argument("--repeats", metavar="N", type=options.whole(), help="how many calls to measure instead")
    parser.add_argument("--cold", action="store_true", help="empty the caches before each call")
    parser.add_argument("--sort", metavar="BY", default=None,
                        help="order of the table: time, forward, backward, update, macs, memory or name (as they run)")
    for name, text in FILES.items():
        parser.add_argument(f"--{name}", metavar="FILE", help=f"write {text}")
    parser.add_argument("--compare", nargs=2, metavar=("BEFORE", "AFTER"),
                        help="compare two files that --json wrote instead of measuring")
    options.add_loss(parser)
    options.add_bn(parser)
    options.add_shape(parser)
    options.add_dtype(parser)


def run_profile(args: argparse.Namespace, terminal: Terminal) -> int:
    """Measure each combination, print tables, write files; Ctrl-C keeps what was measured so far."""
    if args.compare:
        return _compare(args, terminal)
    if args.model is None:
        raise CompileError("profile needs MODEL, or --compare with two files that --json wrote")
    from ..profile_data import Profile
    from ..profile_table import check_sort
    from ..profiler import file_name, profile
    check_sort(args.sort)
    _check_files(args)
    options.set_threads(max((n for n in args.threads if n is not None), default=None))   # numba cannot get more later
    graph = load_model(args.model, args.shape)
    shapes = input_shapes(graph, args.shape)
    runs: list[Any] = []
    interrupted = False
    combinations = [(batch, threads) for threads in args.threads for batch in args.batch]
    for batch, threads in combinations:
        with terminal.progress(100, f"batch {batch}" + (f", {threads} threads" if threads else "")) as bar:
            def tick(share: float, bar: Any = bar) -> None:
                bar.show(round(100 * share), "measuring")

            bar.show(0, "compiling")
            try:
                measured = profile(graph, batch=batch, train=args.train, loss=args.loss, bn=args.bn, dtype=args.dtype,
                                   threads=threads, input_shapes=shapes, seconds=args.seconds, repeats=args.repeats,
                                   cold=args.cold, machine=True, name=file_name(args.model), tick=tick)
            except KeyboardInterrupt:
                interrupted = True
                break
        runs.extend(measured.runs)
        _show(measured.runs[0], len(runs) > 1, args.sort, terminal)
        if measured.conditions["interrupted"]:
            interrupted = True
            break
    if interrupted:
        terminal.warn(f"interrupted; {len(runs)} of {len(combinations)} runs were measured"
                      + (f", the last in {runs[-1].conditions['repeats']} calls" if runs and runs[-1].conditions["interrupted"]
                         else ""))
    if runs:
        _write(Profile(runs), args, terminal)
    return 130 if interrupted else 0


def _show(run: Any, further: bool, sort: str | None, terminal: Terminal) -> None:
    """The table of a run; where it is piped nothing is left out."""
    from ..profile_table import columns_and_rows, left_out
    if further:
        terminal.say()
    width = shutil.get_terminal_size().columns if terminal.out.isatty() else None
    terminal.table(*columns_and_rows(run, sort, width))
    note = left_out(run, sort, width)
    if note:
        terminal.say(note)


def _check_files(args: argparse.Namespace) -> None:
    """Raises FileError for a file that cannot be written, CompileError where two would be the same."""
    wanted: dict[Path, str] = {}
    for name in FILES:
        path = getattr(args, name)
        if path is None:
            continue
        check_writable(path)
        other = wanted.setdefault(Path(path).resolve(), name)
        if other != name:
            raise CompileError(f"--{other} and --{name} both name {path}; give each a file of its own")


def _write(profile: Any, args: argparse.Namespace, terminal: Terminal) -> None:
    """The files that were asked for."""
    from ..profile_forms import csv_text, trace_text
    from ..report import report_html
    texts: dict[str, Callable[[Any], str]] = {
        "json": lambda profile: json.dumps(profile.as_dict(), indent=1) + "\n", "csv": csv_text, "trace": trace_text,
        "html": report_html}
    for name, text in texts.items():
        path = getattr(args, name)
        if path is not None:
            atomic_write(path, [text(profile).encode()])
            terminal.say(f"saved {path}")


def _compare(args: argparse.Namespace, terminal: Terminal) -> int:
    """Two profiles beside each other."""
    from ..profile_compare import compare
    from ..profile_data import Profile
    given: Sequence[str] = [name for name in ("train", "repeats", "sort", "csv", "trace", "html") if getattr(args, name)]
    if args.model is not None or given:
        other = f"--{given[0]}" if given else args.model
        raise CompileError(f"--compare reads two files and measures nothing: it takes no {other}")
    if args.json:
        check_writable(args.json)
    found = compare(*(Profile.load(path) for path in args.compare))
    terminal.say(found.table(shutil.get_terminal_size().columns if terminal.out.isatty() else None))
    if args.json:
        atomic_write(args.json, [(json.dumps(found.as_dict(), indent=1) + "\n").encode()])
        terminal.say(f"saved {args.json}")
    return 0
