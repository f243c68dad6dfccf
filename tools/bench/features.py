"""What cached features save: python -m microcnn.tools.bench features.

The last layer of each model is trained twice, every epoch through the whole network and from features that are computed once,
in turns; what counts is the shortest time of each, from the call of fit to its return, with a validation after every epoch. The
weights and the history have to be the same, bit for bit. digits-cnn reads the digits that come along; other models get noise.
"""
from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

import microcnn as mc
from microcnn.data import load_npz
from microcnn.errors import DataError, MicroCNNError, ModelError
from microcnn.files import atomic_write

from ..commands.options import whole
from ..loading import check_writable
from ..machine import conditions_of_machine
from ..samples import example
from ..terminal import Terminal, bytes_text, time_text
from .models import graph_of

DIGITS = "digits-cnn"
VALIDATION = 0.2


def data_for(graph: Any, samples: int) -> tuple[mc.Dataset, mc.Dataset]:
    """Samples to train on, and a fifth of as many to validate on. Raises ModelError where the model takes no such data."""
    if len(graph.inputs) != 1 or len(graph.outputs) != 1 or len(graph.shapes()[graph.outputs[0]]) != 1:
        raise ModelError(f"{graph.name} has no single input, or its output is no list of class scores; give a classifier")
    if graph.name == DIGITS:
        data = load_npz(files("microcnn.models") / "digits.npz", mc.Normalization(1 / 16)).train
        assert data is not None
    else:
        data = mc.Dataset(*example(graph, samples, "cross_entropy"))
    return data.split(VALIDATION)


def fitted(graph: Any, data: tuple[mc.Dataset, mc.Dataset], epochs: int, batch: int, cache: bool | str
           ) -> tuple[mc.Net, Any]:
    """A network whose last layer has been trained, and the history."""
    net = graph.compile(batch=batch, train="head", loss="cross_entropy", optimizer=mc.SGD(lr=1e-3, momentum=0.9))
    return net, mc.fit(net, *data, epochs=epochs, cache_features=cache)


def facts(history: Any) -> list[tuple[Any, ...]]:
    """Of each epoch all but how long it took."""
    return [(one.epoch, one.loss, one.validation_loss, one.accuracy) for one in history.epochs]


def measure(model: str, epochs: int, batch: int, samples: int, rounds: int, where: bool | str) -> dict[str, Any]:
    """The figures of one model. Raises MicroCNNError where the two do not end alike."""
    graph = graph_of(model)
    data = data_for(graph, samples)
    for cache in (False, where):
        fitted(graph, data, 1, batch, cache)         # compiles, or loads, all code
    plains, others = [], []
    for _ in range(rounds):
        net, plain = fitted(graph, data, epochs, batch, False)
        other, cached = fitted(graph, data, epochs, batch, where)
        plains.append(plain.seconds)
        others.append((cached.seconds, cached.features.seconds))
        trained = other.parameters()
        if facts(plain) != facts(cached) or any(not np.array_equal(array, trained[name])
                                                for name, array in net.parameters().items()):
            raise MicroCNNError(f"{model}: from features training does not end where it ends without; that is a mistake in "
                                "microcnn: report it")
    without, (seconds, making) = min(plains), min(others)
    return {"model": graph.name, "samples": [len(part) for part in data], "epochs": epochs, "batch": batch,
            "plain_us": 1e6 * without, "cached_us": 1e6 * seconds, "features_us": 1e6 * making,
            "file_bytes": cached.features.bytes, "ratio": without / seconds}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code. Raises MicroCNNError."""
    parser = argparse.ArgumentParser(prog="python -m microcnn.tools.bench features", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=[DIGITS, "resnet8"], metavar="MODEL",
                        help=f"names of the benchmark's networks, .onnx or .mcnn files ({DIGITS} resnet8)")
    parser.add_argument("--epochs", type=whole(), default=10, metavar="N", help="(10)")
    parser.add_argument("--batch", type=whole(), default=32, metavar="N", help="(32)")
    parser.add_argument("--samples", type=whole(10), default=1000, metavar="N", help="of noise, for validation included (1000)")
    parser.add_argument("--rounds", type=whole(), default=2, metavar="N", help="of which the best counts (2)")
    parser.add_argument("--threads", type=whole(), default=1, metavar="N", help="(1)")
    parser.add_argument("--folder", metavar="DIR", help="where the file of features goes (a temporary one)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures as JSON")
    args = parser.parse_args(arguments)
    if args.json:
        check_writable(args.json)
    if args.folder and not Path(args.folder).is_dir():
        raise DataError(f'--folder is "{args.folder}", which is no directory; make it first')
    mc.set_num_threads(args.threads)
    terminal = Terminal()
    results = []
    with terminal.progress(len(args.models), "measuring") as bar:
        for number, model in enumerate(args.models):
            bar.show(number, model)
            results.append(measure(model, args.epochs, args.batch, args.samples, args.rounds, args.folder or True))
    rows = [(one["model"], " + ".join(map(str, one["samples"])), time_text(one["plain_us"]), time_text(one["cached_us"]),
             time_text(one["features_us"]), bytes_text(one["file_bytes"]), f"{one['ratio']:.1f}") for one in results]
    terminal.table(("model", ">samples", ">without", ">with features", ">making them", ">file", ">times as fast"), rows,
                   f"{args.epochs} epoch{'s' * (args.epochs > 1)} of the last layer, batch {args.batch}, "
                   f"{args.threads} thread{'s' * (args.threads > 1)}")
    if args.json:
        written = {"schema": "microcnn.features/1", "conditions": conditions_of_machine(), "threads": args.threads,
                   "models": results}
        atomic_write(args.json, [(json.dumps(written, indent=1) + "\n").encode()])
        terminal.say(f"saved {args.json}")
    return 0
