"""microcnn demo: the main job in small, on what comes with the package.

A model that reads 8x8 digits meets another sensor, is fine-tuned on what that sensor sees, is exported, read again and
profiled. Three disjoint sets of digits take part: those that the model was trained on, those for fine-tuning, and those
that accuracy is measured on, which neither saw.
"""
from __future__ import annotations

import argparse
import contextlib
import importlib.resources
import io
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from microcnn.errors import FileError

from .compiling import compile_shown
from .memory_table import show_memory
from .terminal import Terminal, bytes_text

CLASSES = 10
WHITE = 16            # the largest value in the original images
SENSOR_WHITE = 255    # and in those of the other sensor
VALIDATION = 97       # of the digits for fine-tuning, to choose the best epoch by
BATCH, EPOCHS, RATE = 32, 10, 4e-3
SHADES = " .:-=+*#%@"


def add_demo(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--keep", metavar="DIR", help="write the tuned model and the profile there, and keep them")
    parser.add_argument("--threads", metavar="N", type=int, help="how many threads compute (all processors)")


def load_digits() -> dict[str, np.ndarray]:
    """The digits of the package: x (N, 8, 8) uint8 from 0 to 16, y (N,), and the rows `train`, `tune` and `test`."""
    content = (importlib.resources.files("microcnn.models") / "digits.npz").read_bytes()
    with np.load(io.BytesIO(content), allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def load_digits_model() -> bytes:
    """The ONNX model of the package that reads them."""
    return (importlib.resources.files("microcnn.models") / "digits_cnn.onnx").read_bytes()


def other_sensor(images: np.ndarray, seed: int) -> np.ndarray:
    """Images (N, 8, 8) from 0 to 16 as another sensor sees them: uint8 from 0 to 255.

    One pixel further right; blurred (0.7 of each pixel and 0.3 of the mean of its four neighbours); 0.6 of the contrast
    on a background of 0.3; Gaussian noise of 0.03 of the range, drawn with this seed.
    """
    x = np.pad(images.astype(np.float64) / WHITE, ((0, 0), (0, 0), (1, 0)))[:, :, :-1]
    framed = np.pad(x, ((0, 0), (1, 1), (1, 1)))
    neighbours = framed[:, :-2, 1:-1] + framed[:, 2:, 1:-1] + framed[:, 1:-1, :-2] + framed[:, 1:-1, 2:]
    x = 0.7 * x + 0.3 * neighbours / 4
    x = 0.3 + 0.6 * x + 0.03 * np.random.default_rng(seed).standard_normal(x.shape)
    return np.clip(np.rint(SENSOR_WHITE * x), 0, SENSOR_WHITE).astype(np.uint8)


def picture(images: list[np.ndarray]) -> str:
    """Images from 0 to 1 beside each other, in characters."""
    lines = ["    ".join("".join(2 * SHADES[min(int(value * len(SHADES)), len(SHADES) - 1)] for value in row)
                         for row in rows) for rows in zip(*images, strict=True)]
    return "\n".join("    " + line for line in lines)


def run_demo(args: argparse.Namespace, terminal: Terminal) -> int:
    """Tell the whole story; 1 where it does not end well."""
    import microcnn as mc
    from microcnn.data import Dataset
    from microcnn.normalize import Normalization
    from microcnn.train import evaluate, fit

    from .commands.finetune import fit_shown
    from .machine import code_target, cpu_name
    from .profiler import profile
    began = time.perf_counter()
    if args.threads is not None:
        mc.set_num_threads(args.threads)
    with _folder(args.keep) as folder:
        terminal.say(f"microcnn {mc.__version__} on {cpu_name()}, {code_target()['instruction_set']}, "
                     f"{mc.get_num_threads()} thread(s); the first run on a machine compiles the kernels, for minutes")
        digits = load_digits()
        x, y = digits["x"], digits["y"]
        tune, test = digits["tune"], digits["test"]

        terminal.heading("1. A trained model")
        graph = mc.load_onnx(load_digits_model())
        net, _ = compile_shown(graph, terminal, batch=BATCH, train="all", loss="cross_entropy",
                               optimizer=mc.Adam(lr=RATE))
        shape = graph.shapes()[graph.inputs[0].name]

        def data(images: np.ndarray, rows: np.ndarray, white: int, name: str) -> Any:
            found = Dataset(images, y[rows], Normalization(scale=1 / white), name)
            return found.matched(shape, (CLASSES,), net.loss)

        clean = evaluate(net, data(x[test], test, WHITE, "digits"))["accuracy"]
        terminal.say(f"digits_cnn.onnx reads handwritten digits of 8 x 8 pixels with {graph.parameter_count():,} "
                     f"parameters:\n{clean:.1%} of {len(test)} digits that it has never seen are right.")

        terminal.heading("2. Another sensor")
        seen_tune, seen_test = other_sensor(x[tune], seed=1), other_sensor(x[test], seed=2)
        unseen = data(seen_test, test, SENSOR_WHITE, "shifted digits")
        before = evaluate(net, unseen)["accuracy"]
        terminal.say("It sees the same digits one pixel further right, blurred, with less contrast, brighter, noisy:")
        terminal.say(picture([x[test[0]] / WHITE, seen_test[0] / SENSOR_WHITE]))
        terminal.say(f"now {before:.1%} are right.")

        terminal.heading("3. Fine-tuning, on this device")
        tuning = data(seen_tune, tune, SENSOR_WHITE, "shifted digits")
        rows = np.arange(len(tuning))
        training, validation = tuning.subset(rows[VALIDATION:]), tuning.subset(rows[:VALIDATION])
        terminal.say(f"{len(training)} other digits from that sensor to learn from, {len(validation)} to choose the "
                     "best epoch by.\nThe memory is known before the first step, and kept to the byte:\n")
        show_memory(terminal, {f"all weights, batch {BATCH}": net.memory})
        terminal.say()
        fit_shown(net, training, validation, terminal, fit, epochs=EPOCHS, schedule="cosine")
        after = evaluate(net, unseen)["accuracy"]
        terminal.say(f"\non the {len(test)} digits that neither training saw: {before:.1%} -> {after:.1%}")

        terminal.heading("4. Back to ONNX")
        path = folder / "digits_tuned.onnx"
        mc.save_onnx(net, path)
        samples = next(unseen.batches(len(unseen)))[0]
        expected = net.predict(samples)
        again = mc.load_onnx(path).compile(batch=BATCH).predict(samples)
        apart = float(np.abs(again - expected).max())
        terminal.say(f"saved {path.name} ({bytes_text(path.stat().st_size)}): the same graph and names, new weights"
                     + ("." if args.keep else " (and removed at the end; --keep DIR keeps it)."))
        terminal.say(f"read again, the outputs differ by at most {apart:.1e}.")
        native = _onnxruntime(path, samples)
        if native is None:
            terminal.say("(onnxruntime is not installed; where it is, its outputs are compared too)")
        else:
            apart = max(apart, float(np.abs(native - expected).max()))
            terminal.say(f"onnxruntime's outputs for it differ by at most {np.abs(native - expected).max():.1e}.")

        terminal.heading("5. What each layer costs")
        measured = profile(net, seconds=0.5)
        terminal.say(measured.table())
        if args.keep:
            measured.save(folder / "profile.json")
            terminal.say(f"\nkept in {folder}: {path.name}, profile.json")
    good = after >= 0.93 and after - before >= 0.10 and apart < 1e-3
    terminal.say(f"\n{'done' if good else 'this did NOT go as it should'}, in {time.perf_counter() - began:.1f} s")
    return 0 if good else 1


@contextlib.contextmanager
def _folder(keep: str | None) -> Iterator[Path]:
    """The folder to write to: the one that is kept, or a temporary one."""
    if keep is None:
        with tempfile.TemporaryDirectory(prefix="microcnn-demo-") as temporary:
            yield Path(temporary)
        return
    folder = Path(keep)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"{folder}: cannot be made ({error.strerror or error})") from error
    yield folder


def _onnxruntime(path: Path, samples: np.ndarray) -> np.ndarray | None:
    """What onnxruntime makes of the samples; None where it is not installed."""
    try:
        import onnxruntime
    except ImportError:
        return None
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    result: np.ndarray = session.run(None, {session.get_inputs()[0].name: samples})[0]
    return result
