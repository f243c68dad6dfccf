"""microcnn profile: what each layer costs on this device."""
from __future__ import annotations

import argparse
from typing import Any

from ..loading import check_writable, input_shapes, load_model
from ..terminal import Terminal
from . import options


def add_profile(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    options.add_model(parser)
    parser.add_argument("--train", nargs="?", const="all", metavar="WHAT", type=options.parts,
                        help="measure training steps instead of prediction: all (where nothing follows), head, or "
                        "patterns of weight names")
    parser.add_argument("--batch", metavar="N,...", type=options.several(options.whole()), default=[1],
                        help="samples at a time; several values are measured one after the other (1)")
    parser.add_argument("--threads", metavar="N,...", type=options.several(options.whole()), default=[None],
                        help="how many threads compute (all processors)")
    parser.add_argument("--seconds", metavar="S", type=options.real(above=0), default=1.0,
                        help="how long to measure each (1)")
    parser.add_argument("--repeats", metavar="N", type=options.whole(), help="how many calls to measure instead")
    parser.add_argument("--json", metavar="FILE", help="write the figures as JSON")
    options.add_loss(parser)
    options.add_bn(parser)
    options.add_shape(parser)
    options.add_dtype(parser)


def run_profile(args: argparse.Namespace, terminal: Terminal) -> int:
    """Measure each combination, print tables, write JSON; Ctrl-C keeps what was measured so far."""
    from ..profiler import Profile, profile
    if args.json:
        check_writable(args.json)
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
                                   tick=tick)
            except KeyboardInterrupt:
                interrupted = True
        if interrupted:
            break
        runs.extend(measured.runs)
        terminal.say(("\n" if len(runs) > 1 else "") + measured.table())
    if interrupted:
        terminal.warn(f"interrupted; {len(runs)} of {len(combinations)} runs were measured")
    if args.json and runs:
        Profile(runs).save(args.json)
        terminal.say(f"saved {args.json}")
    return 130 if interrupted else 0
