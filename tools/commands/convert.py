"""microcnn convert: from .onnx to .mcnn and back."""
from __future__ import annotations

import argparse
from pathlib import Path

from microcnn.errors import FileError

from ..loading import check_suffix, check_writable, load_model, save_model
from ..terminal import Terminal, bytes_text
from . import options


def add_convert(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    options.add_model(parser)
    parser.add_argument("out", metavar="OUT", help="the file to write: .mcnn or .onnx")
    options.add_normalisation(parser, "; stored in OUT, so that it need not be given again")


def run_convert(args: argparse.Namespace, terminal: Terminal) -> int:
    """Read one format, write the other."""
    source, out = Path(args.model), Path(args.out)
    check_suffix(out)
    if out.exists() and source.exists() and out.samefile(source):
        raise FileError(f"{out}: is the model itself; give another name for the result")
    graph = load_model(source)
    normalization = options.normalization_of(graph, args)
    shape = graph.inputs[0].shape
    if shape and None not in (shape[0], shape[-1]):
        normalization.factors(shape)
    graph.meta.update(normalization.to_meta())
    check_writable(out)
    save_model(graph, out)
    terminal.say(f"{source} ({bytes_text(source.stat().st_size)}) -> {out} ({bytes_text(out.stat().st_size)})")
    written = load_model(out)
    options.note_lost(written, normalization, out, terminal)
    if lost := sorted(set(graph.meta) - set(written.meta) - {"scale", "mean", "std"}):
        terminal.warn(f"{out} does not hold {', '.join(lost)}, because its metadata stays as it was")
    return 0
