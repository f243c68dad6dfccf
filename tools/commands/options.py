"""Options that several subcommands share, and how their values are read."""
from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable
from typing import Any


def whole(least: int = 1) -> Callable[[str], int]:
    """A whole number of at least `least`."""
    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
        if value < least:
            raise argparse.ArgumentTypeError(f"{value} is too small; expected at least {least}")
        return value
    return read


def real(least: float = -math.inf, above: float = -math.inf) -> Callable[[str], float]:
    """A finite number of at least `least` and above `above`."""
    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
        if not math.isfinite(value):
            raise argparse.ArgumentTypeError(f"{text!r} is not finite")
        if value < least or value <= above:
            bound = f"at least {least:g}" if value < least else f"more than {above:g}"
            raise argparse.ArgumentTypeError(f"{text} is too small; expected {bound}")
        return value
    return read


def numbers(text: str) -> Any:
    """0.5, 1/255, or one number per channel with commas between them."""
    from microcnn.errors import DataError
    from microcnn.normalize import parse_numbers
    try:
        return parse_numbers(text)
    except DataError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def several(one: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    """Values with commas between them."""
    def read(text: str) -> list[Any]:
        return [one(part.strip()) for part in text.split(",")]
    return read


def shape(text: str) -> tuple[str | None, tuple[int, ...]]:
    """NAME=3,32,32, or 3,32,32 for a model with one input."""
    name, equals, sizes = text.rpartition("=")
    try:
        values = tuple(int(part) for part in sizes.split(","))
    except ValueError:
        values = ()
    if not values or min(values) < 1 or (equals and not name):
        raise argparse.ArgumentTypeError(f"{text!r} is not a shape; expected NAME=3,32,32 (one sample, without "
                                         "the batch)")
    return name or None, values


def parts(text: str) -> Any:
    """What trains: "all", "head", or other words and patterns of weight names, separated by commas."""
    if text in ("all", "head"):
        return text
    if text.endswith((".onnx", ".mcnn")):
        raise argparse.ArgumentTypeError(f"{text} looks like the model, not like what trains; put MODEL first, or write "
                                         f"--train all {text}")
    patterns = [part.strip() for part in text.split(",") if part.strip()]
    if not patterns:
        raise argparse.ArgumentTypeError("expected all, head, biases, last:3 or patterns of weight names, such as "
                                         "fc.*,layer4.*")
    return patterns


def parts_or_none(text: str) -> Any:
    """As `parts`, or "none": None."""
    return None if text == "none" else parts(text)


def parts_text(train: Any) -> str:
    """What `parts` has read, as it was given."""
    return train if isinstance(train, str) else ",".join(train or ())


def feature_path(text: str) -> str:
    """Where features are kept; not the model, which an option without a value takes if it stands behind it."""
    if text.endswith((".onnx", ".mcnn")):
        raise argparse.ArgumentTypeError(f"{text} looks like the model, not like a file of features; put MODEL first")
    return text


def schedule(text: str) -> str:
    """A schedule of the learning rate that microcnn.schedule knows, as it was given."""
    from microcnn.errors import CompileError
    from microcnn.schedule import resolve_schedule
    try:
        resolve_schedule(text)
    except CompileError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def augmentation(text: str) -> Any:
    """Random changes of the training images, as microcnn.augment reads them."""
    from microcnn.augment import parse_augment
    from microcnn.errors import CompileError
    try:
        return parse_augment(text)
    except CompileError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


# What may follow --train, for the help of the commands that have it.
TRAIN = ("all, head, biases, last:3 (the last three layers) or patterns of weight names, with commas between them: "
         "fc.*,layer4.*; at the end of a pattern [:8] or [:25%%] trains the first output channels alone: conv3.weight[:8]")


def cut_and_batch(text: str) -> tuple[str, int]:
    """What trains and at which batch: "head:8", "last:2:32"."""
    train, colon, batch = text.rpartition(":")
    if not colon or not train or not batch.isdecimal() or not int(batch):
        raise argparse.ArgumentTypeError(f"{text} is no line of the table; expected what trains and a batch, such as head:8")
    return train, int(batch)


def add_model(parser: argparse.ArgumentParser) -> None:
    """Declare MODEL."""
    parser.add_argument("model", metavar="MODEL", help="an .onnx or .mcnn file")


def add_shape(parser: argparse.ArgumentParser) -> None:
    """Declare --shape, a list of (name or None, sizes)."""
    parser.add_argument("--shape", metavar="NAME=3,32,32", action="append", type=shape, default=[],
                        help="the sizes of one sample of an input, where the model leaves them open (may be repeated)")


def add_threads(parser: argparse.ArgumentParser) -> None:
    """Declare --threads, None where it is not given."""
    parser.add_argument("--threads", metavar="N", type=whole(), help="how many threads compute (all processors)")


def add_dtype(parser: argparse.ArgumentParser) -> None:
    """Declare --dtype."""
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32",
                        help="what the network computes in (float32)")


def add_bn(parser: argparse._ActionsContainer) -> None:
    """Declare --bn."""
    parser.add_argument("--bn", choices=("frozen", "batch", "fold"), default="frozen",
                        help="batch normalisation: running statistics kept, batch statistics, or folded into the "
                        "convolution (frozen)")


def add_optimizer(parser: argparse._ActionsContainer) -> None:
    """Declare --optimizer."""
    parser.add_argument("--optimizer", choices=("sgd", "adam", "adamw"), default="adam", help="(adam)")


def add_less_memory(parser: argparse._ActionsContainer) -> None:
    """Declare what makes training take less memory."""
    parser.add_argument("--budget", metavar="SIZE",
                        help="what training may take beside the parameters: 256KB, 8MB; where not everything fits, backward "
                        "makes tensors again, batches go in parts, and at last only what contributes most trains (off)")
    parser.add_argument("--micro-batch", metavar="N", type=whole(),
                        help="so many samples of a batch at a time; their gradients add up (all)")
    parser.add_argument("--recompute", action="store_true",
                        help="less memory for a little more time: backward makes again what one pass over memory makes")


def add_loss(parser: argparse._ActionsContainer) -> None:
    """Declare --loss; "auto" where it is not given."""
    parser.add_argument("--loss", metavar="NAME", default="auto",
                        help="cross_entropy, mse, ... (cross_entropy for one output of class scores, else mse)")


def add_normalisation(parser: argparse.ArgumentParser, more: str = "") -> None:
    """Declare --scale, --mean and --std. more: what else their help says."""
    group = parser.add_argument_group("normalisation of x", "(x * SCALE - MEAN) / STD, each one number or one per "
                                      f"channel; where not given, what the model file has stored{more}")
    group.add_argument("--scale", metavar="S", type=numbers, help="such as 1/255")
    group.add_argument("--mean", metavar="A,B,C", type=numbers, help="such as 0.485,0.456,0.406")
    group.add_argument("--std", metavar="A,B,C", type=numbers)


def add_data(parser: argparse.ArgumentParser, text: str) -> None:
    """Declare --data; text: what an .npz file must hold."""
    parser.add_argument("--data", metavar="DATA", required=True,
                        help=f"an .npz file ({text}), a folder of IDX files as MNIST has them, or of class folders of images")


def add_json(parser: argparse.ArgumentParser) -> None:
    """Declare --json, a switch."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def as_options(message: str) -> str:
    """A message of the Python interface about open sizes in the words of the command, whose option is --shape."""
    message = re.sub(r'input_shapes=\{"([^"]*)": \(([\d, ]+)\)\}',
                     lambda found: f"--shape {found[1]}={found[2].replace(' ', '').rstrip(',')}", message)
    message = re.sub(r'input_shapes\["([^"]*)"\] is \(([\d, ]+)\)',
                     lambda found: f"--shape {found[1]}={found[2].replace(' ', '').rstrip(',')} does not fit", message)
    return message.replace("give input_shapes to load_onnx", "give --shape NAME=3,32,32").replace("input_shapes names",
                                                                                                 "--shape names")


def set_threads(number: int | None) -> None:
    """Apply --threads; before numba is loaded where possible."""
    if number is not None:
        import microcnn as mc
        mc.set_num_threads(number)


def note_raw(data: Any, terminal: Any, graph: Any) -> None:
    """Say so where numbers as a camera stores them go into a network as they are: mostly a forgotten --scale."""
    from microcnn.integers import INTEGERS
    if data.x.dtype.kind in "iu" and not data.normalization.to_meta() and graph.inputs[0].dtype not in INTEGERS:
        terminal.warn(f"the samples are {data.x.dtype} and neither the options nor the model say how to normalise them; if the "
                      "model was trained on other numbers, give --scale, --mean and --std")


def note_lost(written: Any, normalization: Any, out: Any, terminal: Any) -> None:
    """Say so where a written model does not hold the normalisation."""
    if normalization_of(written, None) != normalization:
        terminal.warn(f"{out} does not hold this normalisation, because its metadata stays as it was; give the same "
                      "--scale, --mean and --std when it runs, or write a .mcnn file")


def normalization_of(graph: Any, args: argparse.Namespace | None) -> Any:
    """What the model has stored, with what the options (where there are any) say in its place."""
    from microcnn.normalize import Normalization
    stored = {name: graph.meta.get(name) for name in ("scale", "mean", "std")}
    stored.update({name: getattr(args, name) for name in stored if getattr(args, name, None) is not None})
    return Normalization(**stored)
