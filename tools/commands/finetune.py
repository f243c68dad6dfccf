"""microcnn finetune: adapt a model to data, in a memory that is known before the first step."""
from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from microcnn.choices import resolve_losses
from microcnn.errors import CompileError, FileError
from microcnn.heads import with_head

from ..compiling import compile_shown
from ..data_source import load_data
from ..loading import check_suffix, check_writable, input_shapes, load_model, save_model, shapes_for_data
from ..memory_table import show_memory
from ..samples import default_loss
from ..terminal import Terminal, bytes_text, clock_text
from . import options

VALIDATION = 0.2   # of the data, where no test set is given
FEW = 64           # samples on which a budget's choice is measured


def add_finetune(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    options.add_model(parser)
    options.add_data(parser, "arrays x and y, or x_train, y_train, x_test, y_test")
    parser.add_argument("--test", metavar="DATA",
                        help="what to validate on (the test part of --data; else a fifth of it, held back)")
    parser.add_argument("--out", metavar="FILE", help="the tuned model, .onnx or .mcnn (MODEL-tuned beside MODEL)")
    parser.add_argument("--overwrite", action="store_true", help="allow --out to be MODEL itself")
    group = parser.add_argument_group("training")
    group.add_argument("--train", metavar="WHAT", type=options.parts, default="all",
                       help=f"what trains, and with that how much time and memory it takes: {options.TRAIN} (all)")
    group.add_argument("--head", metavar="N", type=options.whole(),
                       help="give the model a new last layer with N classes before training")
    group.add_argument("--epochs", metavar="N", type=options.whole(), default=5, help="(5)")
    group.add_argument("--batch", metavar="N", type=options.whole(), default=32, help="(32)")
    group.add_argument("--lr", metavar="RATE", type=options.real(above=0), default=1e-3, help="learning rate (0.001)")
    options.add_optimizer(group)
    group.add_argument("--momentum", metavar="M", type=options.real(least=0), help="of sgd (0.9)")
    group.add_argument("--weight-decay", metavar="D", type=options.real(least=0),
                       help="(0; 0.01 for adamw)")
    group.add_argument("--clip-norm", metavar="NORM", type=options.real(above=0),
                       help="bring the norm of all gradients together down to this; every gradient is then kept until "
                       "the last is known (off)")
    group.add_argument("--schedule", metavar="NAME", type=options.schedule, default="cosine",
                       help="of the learning rate: constant, cosine, cosine:warmup=1,floor=0.01, step:10,gamma=0.1, "
                       "milestones:30+60, exponential:0.9, one-cycle; numbers of epochs (cosine)")
    group.add_argument("--augment", metavar="HOW", type=options.augmentation,
                       help="random changes of the training images, such as shift=2,flip,crop=0.8,brightness=0.2,noise=0.05; "
                       "the last two in the numbers that the network sees (none)")
    group.add_argument("--patience", metavar="N", type=options.whole(),
                       help="stop after N epochs without progress in validation (off)")
    group.add_argument("--min-delta", metavar="D", type=options.real(least=0), default=0.0,
                       help="how much accuracy, or loss where that is equal, must gain to be progress (0)")
    group.add_argument("--cache-features", metavar="PATH", nargs="?", const=True, default=False, type=options.feature_path,
                       help="compute what the layers before the first that trains make of each sample once, not in every "
                       "epoch, and keep it in a file that is gone afterwards, "
                       "or for later runs in PATH, a file or a folder (off)")
    group.add_argument("--seed", metavar="N", type=options.whole(0), default=0,
                       help="of the order of the samples and of dropout (0)")
    options.add_less_memory(group)
    options.add_loss(group)
    options.add_bn(group)
    options.add_normalisation(parser)
    options.add_shape(parser)
    options.add_dtype(parser)
    options.add_threads(parser)


def run_finetune(args: argparse.Namespace, terminal: Terminal) -> int:
    """Load, plan, train, save."""
    from microcnn import train
    from microcnn.features import file_bytes
    options.set_threads(args.threads)
    out = output_path(args)
    optimizer = optimizer_of(args)
    graph = load_model(args.model, args.shape)
    if args.head is not None:
        graph = with_head(graph, args.head, args.seed)
    normalization = options.normalization_of(graph, args)
    given = input_shapes(graph, args.shape)
    training, validation = datasets(args, graph, normalization, given)
    shapes = shapes_for_data(graph, given, training.sample_shape)
    if len(graph.outputs) != 1:
        raise CompileError(f"the model has {len(graph.outputs)} outputs, {', '.join(graph.outputs)}; a data file holds "
                           "targets for one; use the Python interface")
    sizes = graph.shapes(shapes)
    loss = default_loss(sizes, graph.outputs) if args.loss == "auto" else args.loss
    graph.meta.update(normalization.to_meta())
    # before anything is compiled, which may take minutes: whether the data fits
    input_name = graph.inputs[0].name
    judged = resolve_losses(graph, loss, sizes)[graph.outputs[0]][0]
    fits = (sizes[input_name], sizes[graph.outputs[0]], judged, input_name)
    training, validation = training.matched(*fits), validation.matched(*fits)
    net, _ = compile_shown(graph, terminal, batch=min(args.batch, len(training)), train=args.train, loss=loss,
                           optimizer=optimizer, bn=args.bn, dtype=args.dtype, input_shapes=shapes, seed=args.seed,
                           augment=args.augment, budget=args.budget, samples=few_samples(args, training),
                           micro_batch=args.micro_batch, recompute=args.recompute or None)

    trains = what_trains(args.train) if net.choice is None or not net.choice.measured else "what fits the budget"
    terminal.say(f"{args.model}: training {trains} on {len(training):,} samples, validating on "
                 f"{len(validation):,}")
    if net.choice is not None:
        terminal.say(str(net.choice))
    terminal.heading("Memory, known before the first step")
    show_memory(terminal, {f"{trains}, batch {net.batch}": net.memory})
    if args.cache_features:
        size = file_bytes(net.tail(), {"train": len(training), "evaluate": len(validation)})
        terminal.say(f"on the disk: {bytes_text(size)} of features of {len(training) + len(validation):,} samples")
    terminal.heading(f"{args.epochs} epochs, batch {net.batch}, {args.optimizer}, learning rate {args.lr:g}, "
                     f"{args.schedule}")
    history = fit_shown(net, training, validation, terminal, train.fit, epochs=args.epochs, schedule=args.schedule,
                        seed=args.seed, patience=args.patience, min_delta=args.min_delta, before_counts=args.head is None,
                        cache_features=args.cache_features)
    save_model(net, out)
    report(history, out, terminal, before_counts=args.head is None)
    options.note_raw(training, terminal, graph)
    options.note_lost(load_model(out), normalization, out, terminal)
    return 130 if history.interrupted else 0


def few_samples(args: argparse.Namespace, training: Any) -> Any:
    """Some of the samples, on which a budget's choice is measured; None without a budget."""
    if args.budget is None:
        return None
    x, t = next(training.batches(FEW, training.order(args.seed, 1), args.dtype))
    return x.copy(), t


def output_path(args: argparse.Namespace) -> Path:
    """Where the result goes; checked now, so that training is not in vain. Raises FileError."""
    model = Path(args.model)
    check_suffix(model)
    out = Path(args.out) if args.out else model.with_name(f"{model.stem}-tuned{model.suffix}")
    check_suffix(out)
    if out.exists() and model.exists() and out.samefile(model) and not args.overwrite:
        raise FileError(f"{out}: is the model itself; give another --out, or --overwrite")
    check_writable(out)
    return out


def optimizer_of(args: argparse.Namespace) -> Any:
    """The optimizer that the options describe. Raises CompileError."""
    import microcnn as mc
    if args.optimizer == "sgd":
        return mc.SGD(lr=args.lr, momentum=0.9 if args.momentum is None else args.momentum,
                      weight_decay=args.weight_decay or 0.0, clip_norm=args.clip_norm)
    if args.momentum is not None:
        raise CompileError(f"--momentum belongs to sgd, not to {args.optimizer}; leave it out, or use --optimizer sgd")
    kind = mc.AdamW if args.optimizer == "adamw" else mc.Adam
    decay = {} if args.weight_decay is None else {"weight_decay": args.weight_decay}
    return kind(lr=args.lr, clip_norm=args.clip_norm, **decay)


def datasets(args: argparse.Namespace, graph: Any, normalization: Any, shapes: Any) -> tuple[Any, Any]:
    """What to train and what to validate on; class names go into the graph's meta. Raises FileError, DataError."""
    from microcnn.errors import DataError
    source = load_data(args.data, graph, normalization, shapes=shapes)
    if source.labels:
        graph.meta["labels"] = source.labels
    parts = source.parts
    if parts.train is None:
        raise DataError(f"{args.data} holds a test set only; expected x and y, or x_train and y_train")
    if args.test:
        return parts.train, load_data(args.test, graph, normalization, shapes=shapes).parts.to_evaluate
    if parts.test is not None:
        return parts.train, parts.test
    return parts.train.split(VALIDATION, seed=args.seed)


def what_trains(train: Any) -> str:
    """--train in words."""
    return {"all": "all weights", "head": "the head"}[train] if isinstance(train, str) else ", ".join(train)


def fit_shown(net: Any, training: Any, validation: Any, terminal: Terminal, fit: Any, epochs: int, **how: Any) -> Any:
    """Train with a bar that moves and a line for each epoch; returns the history."""
    steps = epochs * -(-len(training) // net.batch)
    with terminal.progress(steps, "training") as bar:
        speed = [0.0]

        def on_features(now: Any) -> None:
            bar.total = now.samples
            bar.show(now.done, f"{now.done:,} of {now.samples:,} samples  {now.samples_per_second:,.0f} samples/s  "
                     f"{clock_text(now.seconds_left)} left", "features")

        def on_progress(now: Any) -> None:
            bar.total = steps
            speed[0] = now.samples_per_second
            accuracy = "" if now.accuracy is None else f"accuracy {now.accuracy:.1%}  "
            bar.show(now.step, f"loss {now.loss:.4f}  {accuracy}{now.samples_per_second:,.0f} samples/s  "
                     f"{clock_text(now.seconds_left)} left", f"epoch {now.epoch}/{now.epochs}")

        def on_epoch(record: Any) -> None:
            line = "before      " if record.epoch == 0 else f"epoch {record.epoch:>2}/{epochs:<3}"
            line += f"  loss {record.loss:.4f}" if record.loss is not None else " " * 13
            if record.validation_loss is not None:
                line += f"  validation: loss {record.validation_loss:.4f}"
            if record.accuracy is not None:
                line += f"  accuracy {record.accuracy:.1%}"
            if record.epoch:
                line += f"  {speed[0]:,.0f} samples/s  {record.seconds:.1f} s"
            bar.say(line)

        return fit(net, training, validation, epochs=epochs, on_progress=on_progress, on_epoch=on_epoch,
                   on_features=on_features, **how)


def report(history: Any, out: Path, terminal: Terminal, before_counts: bool = True) -> None:
    """What was reached, and where it is. before_counts: as in fit."""
    kept = history.features
    if kept is not None:
        terminal.say(f"features: {'read from' if kept.reused else 'kept in'} {kept.path} ({bytes_text(kept.bytes)})"
                     if kept.path else f"features: {bytes_text(kept.bytes)} in a file that is gone now")
        if kept.note:
            terminal.warn(kept.note)
    if history.interrupted:
        terminal.say("interrupted: what was reached is kept")
    if history.stopped:
        terminal.say(f"stopped after epoch {history.epochs[-1].epoch}: no more progress in validation")
    before, reached = history.before, history.reached
    if history.best == 0:
        terminal.say("no epoch was better than the model before training, whose weights are kept" if before_counts else
                     "no epoch was validated; the last weights are kept")
    elif before is not None and reached is not None:
        name, values = ("accuracy", [f"{r.accuracy:.1%}" for r in (before, reached)]) if reached.accuracy is not None \
            else ("loss", [f"{r.validation_loss:.4f}" for r in (before, reached)])
        terminal.say(f"kept epoch {history.best}, the best in validation: {name} {values[0]} -> {values[1]}")
    terminal.say(f"saved {out} ({bytes_text(out.stat().st_size)}), {history.seconds:.1f} s")
