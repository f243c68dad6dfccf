"""microcnn evaluate and microcnn predict: a model on data."""
from __future__ import annotations

import argparse
import io
from pathlib import Path
from typing import Any

import numpy as np

from microcnn.errors import CompileError, FileError

from ..compiling import compile_shown
from ..data_source import Source, load_data
from ..loading import check_writable, input_shapes, load_model, shapes_for_data
from ..samples import default_loss
from ..terminal import Terminal, bytes_text
from . import options

SHOWN = 10   # predictions in the table
MATRIX = 20   # classes up to which the whole confusion matrix is shown


def add_evaluate(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    _add_common(parser, "arrays x and y, or x_test and y_test")
    options.add_loss(parser)
    parser.add_argument("--top-k", metavar="K", type=options.whole(),
                        help="also how often the right class is among the K largest outputs")
    parser.add_argument("--confusion", action="store_true",
                        help=f"also which class was taken for which: a table, of more than {MATRIX} classes the most frequent "
                        "mistakes")


def add_predict(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    _add_common(parser, "array x, or x_test")
    parser.add_argument("--out", metavar="y.npz",
                        help="write all outputs: array y, or one array per output; where known also files, the image of each "
                        "sample, and classes, the names of y's columns")
    parser.add_argument("--rows", metavar="N", type=options.whole(0), default=SHOWN,
                        help=f"how many predictions to show ({SHOWN})")


def _add_common(parser: argparse.ArgumentParser, data: str) -> None:
    options.add_model(parser)
    options.add_data(parser, data)
    parser.add_argument("--batch", metavar="N", type=options.whole(), default=32, help="(32)")
    options.add_normalisation(parser)
    options.add_shape(parser)
    options.add_dtype(parser)
    options.add_threads(parser)


def _prepared(args: argparse.Namespace, terminal: Terminal, loss: Any, targets: bool) -> tuple[Any, Any, Source]:
    """The compiled network, the data in its shapes, and where that came from."""
    options.set_threads(args.threads)
    graph = load_model(args.model, args.shape)
    given = input_shapes(graph, args.shape)
    source = load_data(args.data, graph, options.normalization_of(graph, args), targets, given)
    data = source.parts.to_evaluate
    shapes = shapes_for_data(graph, given, data.sample_shape)
    sizes = graph.shapes(shapes)
    if loss is not None and len(graph.outputs) != 1:
        raise CompileError(f"the model has {len(graph.outputs)} outputs, {', '.join(graph.outputs)}; a data file holds "
                           "targets for one; use the Python interface")
    if loss == "auto":
        loss = default_loss(sizes, graph.outputs)
    net, _ = compile_shown(graph, terminal, batch=min(args.batch, len(data)), loss=loss, dtype=args.dtype,
                           input_shapes=shapes)
    name = graph.inputs[0].name
    if loss is None:
        return net, data.matched(sizes[name], input_name=name), source
    return net, data.matched(sizes[name], sizes[graph.outputs[0]], net.loss, name), source


def run_evaluate(args: argparse.Namespace, terminal: Terminal) -> int:
    """Print loss and accuracy, and the metrics that were asked for."""
    from microcnn import train
    net, data, _ = _prepared(args, terminal, args.loss, targets=True)
    result = train.evaluate(net, data, top_k=args.top_k, confusion=args.confusion)
    terminal.say(f"{len(data):,} samples: loss {result['loss']:.4f}"
                 + (f", accuracy {result['accuracy']:.2%}" if result.get("accuracy") is not None else "")
                 + (f", top {args.top_k} {result[f'top_{args.top_k}']:.2%}" if args.top_k else ""))
    if args.confusion:
        show_confusion(result["confusion"], net.graph.meta.get("labels"), terminal)
    options.note_raw(data, terminal, net.graph)
    return 0


def show_confusion(matrix: np.ndarray, labels: Any, terminal: Terminal) -> None:
    """How often each class (row) was taken for each (column), and the share of each class that was found.

    Of more than 20 classes: the most frequent mistakes.
    """
    classes = len(matrix)
    totals = matrix.sum(1)

    def label(number: int) -> str:
        return str(labels[number]) if labels and number < len(labels) else str(number)

    if classes <= MATRIX:
        rows = [[label(i), *(f"{count:,}" if count else "." for count in matrix[i]),
                 f"{matrix[i, i] / totals[i]:.1%}" if totals[i] else "-"] for i in range(classes)]
        terminal.table(["true", *(f">{label(i)}" for i in range(classes)), ">found"], rows,
                       title="How often each class (row) was taken for which (column)")
        return
    wrong = matrix - np.diag(np.diag(matrix))
    most = np.argsort(-wrong.reshape(-1), kind="stable")[:MATRIX]
    pairs = [divmod(int(place), classes) for place in most if wrong.reshape(-1)[place]]
    if not pairs:
        terminal.say("no mistakes")
        return
    terminal.table(["true", "taken for", ">times", ">of the class"],
                   [[label(i), label(j), f"{matrix[i, j]:,}", f"{matrix[i, j] / totals[i]:.1%}"] for i, j in pairs],
                   title="The most frequent mistakes")


def run_predict(args: argparse.Namespace, terminal: Terminal) -> int:
    """Run the model; show the best class of the first samples, write all outputs."""
    from microcnn import train
    if args.out:
        if Path(args.out).suffix.lower() != ".npz":
            raise FileError(f"{args.out}: expected a file that ends in .npz")
        check_writable(args.out)
    net, data, source = _prepared(args, terminal, None, targets=False)
    names = net.graph.outputs
    made: dict[str, list[Any]] = {name: [] for name in names}
    for y in train.predict(net, data):
        for name, part in (y.items() if isinstance(y, dict) else [(names[0], y)]):
            made[name].append(part)
    outputs = {name: np.concatenate(parts) for name, parts in made.items()}
    labels: list[str] = []
    for name, y in outputs.items():
        if y.ndim == 2 and y.shape[1] > 1 and len(outputs) == 1:
            labels = _class_names(net.graph.meta.get("labels"), source.labels, y.shape[1])
            _show_classes(y, data.targets, labels, source, args.rows, terminal)
        else:
            terminal.say(f"{name}: {len(y):,} x {' x '.join(map(str, y.shape[1:])) or 1}, from {y.min():.4g} to "
                         f"{y.max():.4g}, mean {y.mean():.4g}")
    if args.out:
        _write(args.out, outputs, source.files_to_evaluate, labels)
        terminal.say(f"saved {args.out} ({bytes_text(Path(args.out).stat().st_size)})")
    return 0


def _class_names(stored: Any, found: list[str], count: int) -> list[str]:
    """The classes' names: those that the model holds, else those of the data where there are as many; empty without."""
    if isinstance(stored, list) and len(stored) == count:
        return [str(name) for name in stored]
    return found if len(found) == count else []


def _show_classes(y: np.ndarray, targets: np.ndarray | None, labels: list[str], source: Source, rows: int,
                  terminal: Terminal) -> None:
    """The best class of each of the first samples, and how often each class is the best."""
    best, files = y.argmax(1), source.files_to_evaluate

    def label(number: int, names: list[str] = labels) -> str:
        return names[number] if number < len(names) else str(number)

    known = targets is not None and targets.dtype.kind in "iu" and targets.shape == best.shape
    if rows:
        terminal.table(["file" if files else ">sample", "class", ">score", *(["label"] if known else [])],
                       [[files[i] if files else i, label(int(best[i])), f"{y[i, best[i]]:.4g}",
                         *([label(int(targets[i]), source.labels or labels)] if known else [])]   # type: ignore[index]
                        for i in range(min(rows, len(y)))])
        if len(y) > rows:
            terminal.say(f"... and {len(y) - rows:,} more")
    counts = np.bincount(best, minlength=y.shape[1])
    most = counts.argsort()[::-1][:SHOWN]
    found = ", ".join(f"{label(int(c))}: {counts[c]:,}" for c in most if counts[c])
    terminal.say(f"{len(y):,} samples; classes: {found}")


def _write(path: str, outputs: dict[str, np.ndarray], files: list[str], classes: list[str]) -> None:
    """All outputs in one .npz file, and the names of the samples' files and of the classes, atomically."""
    from microcnn.files import atomic_write
    buffer = io.BytesIO()
    arrays = {"y": next(iter(outputs.values()))} if len(outputs) == 1 else dict(outputs)
    for name, texts in (("files", files), ("classes", classes)):
        if texts and name not in arrays:
            arrays[name] = np.array(texts)
    np.savez(buffer, **arrays)   # type: ignore[arg-type]
    atomic_write(path, [buffer.getbuffer()])
