"""microcnn profile: what each layer costs on this device."""
from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Callable, Sequence
from typing import Any

from microcnn.errors import CompileError, FileError
from microcnn.files import atomic_write

from ..loading import check_writable, file_name, input_shapes, load_model
from ..samples import default_loss
from ..terminal import Terminal
from . import options

# The files that the command writes, by option.
FILES = {"json": "the figures as JSON", "csv": "a line for each layer as CSV",
         "trace": "a trace for Perfetto or chrome://tracing", "html": "a report to look at, one file that needs no network"}

# Options that only measuring takes, and what they are where they are not given.
MEASURING: dict[str, Any] = {"train": None, "batch": None, "threads": [None], "seconds": 1.0, "repeats": None, "cold": False,
                             "sort": None, "csv": None, "trace": None, "html": None, "loss": "auto", "bn": "frozen",
                             "shape": [], "dtype": "float32", "what_if": False, "measure": []}
# Options that the table of --what-if has no use for, and the share of a time beyond which it says that it was guessed.
WITHOUT_WHAT_IF = ("train", "repeats", "cold", "sort", "csv", "trace", "html")
GUESSED = 0.05


def add_profile(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("model", metavar="MODEL", nargs="?", help="an .onnx or .mcnn file")
    parser.add_argument("--train", nargs="?", const="all", metavar="WHAT", type=options.parts,
                        help="measure training steps instead of prediction, WHAT (all where nothing follows) being "
                        f"{options.TRAIN}")
    parser.add_argument("--batch", metavar="N,...", type=options.several(options.whole()), default=None,
                        help="samples at a time; several values are measured one after the other (1)")
    parser.add_argument("--threads", metavar="N,...", type=options.several(options.whole()), default=[None],
                        help="how many threads compute (all processors)")
    parser.add_argument("--seconds", metavar="S", type=options.real(above=0), default=1.0,
                        help="how long to measure each at most; less where the figures stand before (1)")
    parser.add_argument("--repeats", metavar="N", type=options.whole(), help="how many calls to measure instead")
    parser.add_argument("--cold", action="store_true", help="empty the caches before each call")
    parser.add_argument("--sort", metavar="BY", default=None,
                        help="order of the table (as they run): time, forward, backward, update, macs, memory, name")
    for name, text in FILES.items():
        parser.add_argument(f"--{name}", metavar="FILE", help=f"write {text}")
    parser.add_argument("--what-if", action="store_true",
                        help="what training would take in memory and time if only the head, biases, the last layers or "
                        "everything trained, at batch 1, 8 and 32, or those that --batch names; with --json as a file")
    parser.add_argument("--measure", metavar="WHAT:BATCH,...", type=options.several(options.cut_and_batch), default=[],
                        help="with --what-if: lines whose steps are to be measured, too: head:8,last:2:32")
    parser.add_argument("--compare", nargs=2, metavar=("BEFORE", "AFTER"),
                        help="compare two files that --json wrote instead of measuring; only --json goes with it")
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
    if args.what_if:
        return _what_if(args, terminal)
    if args.measure:
        raise CompileError("--measure names lines of --what-if; give --what-if too, or leave it out")
    from ..profile_data import Profile
    from ..profile_table import check_sort
    from ..profiler import profile
    check_sort(args.sort)
    _check_files(args, [args.model])
    options.set_threads(max((n for n in args.threads if n is not None), default=None))   # numba cannot get more later
    graph = load_model(args.model, args.shape)
    shapes = input_shapes(graph, args.shape)
    runs: list[Any] = []
    interrupted = False
    combinations = [(batch, threads) for threads in args.threads for batch in args.batch or [1]]
    for batch, threads in combinations:
        label = f"batch {batch}" + (f", {threads} thread{'s' if threads > 1 else ''}" if threads else "")
        with terminal.progress(100, label) as bar:
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


def _check_files(args: argparse.Namespace, read: Sequence[str]) -> None:
    """Raises FileError for a file that cannot be written, CompileError where two would be the same, or one is one of `read`."""
    taken = {os.path.realpath(path): "what is read" for path in read}
    for name in FILES:
        path = getattr(args, name)
        if path is None:
            continue
        check_writable(path)
        other = taken.setdefault(os.path.realpath(path), f"--{name}")
        if other != f"--{name}":
            raise CompileError(f"{other} and --{name} are both {path}; give --{name} a file of its own")


def _write(profile: Any, args: argparse.Namespace, terminal: Terminal) -> None:
    """The files that were asked for. Raises FileError for the first that could not be written, after the others were."""
    from ..profile_forms import csv_text, trace_text
    from ..report import report_html
    texts: dict[str, Callable[[Any], str]] = {
        "json": lambda profile: json.dumps(profile.as_dict(), indent=1) + "\n", "csv": csv_text, "trace": trace_text,
        "html": report_html}
    failed: FileError | None = None
    for name, text in texts.items():
        path = getattr(args, name)
        if path is None:
            continue
        try:
            atomic_write(path, [text(profile).encode()])
        except FileError as error:
            failed = failed or error
        else:
            terminal.say(f"saved {path}")
    if failed is not None:
        raise failed


def _what_if(args: argparse.Namespace, terminal: Terminal) -> int:
    """The table of what training less would cost."""
    from ..what_if import as_dict, table, what_if
    without = [name for name in WITHOUT_WHAT_IF if getattr(args, name) != MEASURING[name]]
    if without or len(args.threads) > 1:
        raise CompileError(f"--what-if makes a table of its own: it takes no --{without[0]}" if without else
                           "--what-if takes one number of --threads")
    _check_files(args, [args.model])
    options.set_threads(args.threads[0])
    graph = load_model(args.model, args.shape)
    shapes, batches = input_shapes(graph, args.shape), args.batch or (1, 8, 32)
    with terminal.progress(1000, "measuring") as bar:
        lines = what_if(graph, batches, args.measure, loss=args.loss, bn=args.bn, dtype=args.dtype,
                        input_shapes=shapes, seconds=args.seconds,
                        tick=lambda share, label: bar.show(round(1000 * share), label))
    loss = default_loss(graph.shapes(shapes), graph.outputs) if args.loss == "auto" else args.loss
    terminal.say(f"{file_name(args.model)}, {loss}, {args.dtype}, bn {args.bn}, SGD with momentum (Adam's state is "
                 "twice as large)")
    terminal.table(*table(lines))
    for line in lines:
        if line.refused:
            terminal.say(f"note: {line.train}, batch {line.batch}: {options.as_options(line.refused)}")
    if any(line.guessed > GUESSED for line in lines):
        terminal.say("note: of some lines' times more than a twentieth is of kernels that ran in no measurement: "
                     + ", ".join(f"{line.train} batch {line.batch}" for line in lines if line.guessed > GUESSED))
    if args.json:
        atomic_write(args.json, [(json.dumps(as_dict(lines), indent=1) + "\n").encode()])
        terminal.say(f"saved {args.json}")
    return 0


def _compare(args: argparse.Namespace, terminal: Terminal) -> int:
    """Two profiles beside each other."""
    from ..profile_compare import compare
    from ..profile_data import Profile
    given = [name for name, usual in MEASURING.items() if getattr(args, name) != usual]
    if args.model is not None or given:
        other = f"--{given[0].replace('_', '-')}" if given else args.model
        raise CompileError(f"--compare reads two files and measures nothing: it takes no {other}")
    _check_files(args, args.compare)
    found = compare(*(Profile.load(path) for path in args.compare))
    terminal.say(found.table(shutil.get_terminal_size().columns if terminal.out.isatty() else None))
    if args.json:
        atomic_write(args.json, [(json.dumps(found.as_dict(), indent=1) + "\n").encode()])
        terminal.say(f"saved {args.json}")
    return 0
