"""microcnn warmup: compile all kernels that a model needs, so that its first use need not wait."""
from __future__ import annotations

import argparse
import time
from typing import Any

from microcnn.errors import CompileError
from microcnn.threads import usable_cpus

from ..compiling import compile_shown
from ..loading import input_shapes, load_model
from ..samples import default_loss, example
from ..terminal import Terminal
from . import options

# Batches that networks are trained with, of which the larger ones have kernels of their own.
TRAINING_BATCHES = (8, 32)


def add_warmup(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    options.add_model(parser)
    parser.add_argument("--train", nargs="?", const="all", metavar="WHAT", type=options.parts,
                        help=f"for training too, WHAT (all where nothing follows) being {options.TRAIN}")
    parser.add_argument("--batch", metavar="N", type=options.whole(),
                        help="(1; training has other kernels for larger tensors: with --train also those of 8 and 32)")
    options.add_optimizer(parser)
    options.add_loss(parser)
    options.add_bn(parser)
    options.add_shape(parser)
    options.add_dtype(parser)
    options.add_threads(parser)
    parser.add_argument("--processes", type=options.whole(), metavar="N",
                        help="how many processes compile, each takes about 200 MB (2 where there are as many processors)")


def run_warmup(args: argparse.Namespace, terminal: Terminal) -> int:
    """Compile with a bar, then run once; 1 where what was compiled cannot be kept."""
    import microcnn as mc
    from microcnn import entries, store
    options.set_threads(args.threads)
    graph = load_model(args.model, args.shape)
    shapes = input_shapes(graph, args.shape)
    loss: Any = None
    if args.train is not None:
        loss = default_loss(graph.shapes(shapes), graph.outputs) if args.loss == "auto" else args.loss
    elif args.loss != "auto":
        raise CompileError("--loss belongs to training; give --train too, or leave it out")
    optimizer = {"sgd": mc.SGD, "adam": mc.Adam, "adamw": mc.AdamW}[args.optimizer](lr=1e-3)
    began = time.perf_counter()
    batches = TRAINING_BATCHES if args.train is not None and args.batch is None else ()
    net, count = compile_shown(graph, terminal, args.processes or min(2, usable_cpus()), batches=batches, batch=args.batch or 1,
                               train=args.train, loss=loss, bn=args.bn, dtype=args.dtype,
                               optimizer=optimizer if args.train else None, input_shapes=shapes)
    x, t = example(net.graph, 1, net.loss, args.dtype, {i.name: net.shapes[i.name] for i in net.graph.inputs})
    net.predict(x)
    if args.train is not None:
        net.train_step(x, t)
        net.evaluate(x, t)
    if entries.compiled_here() and store.lost():        # compile_shown has said so
        return 1
    terminal.say(f"{count} kernels are ready, after {time.perf_counter() - began:.1f} s, in {store.folder()}")
    return 0
