"""Makes models/digits_cnn.onnx and models/digits.npz: python -m microcnn.tools.make_digits

Needs scikit-learn for the digits, and onnx. The same seed and machine give the same files.
"""
from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path
from typing import Any

import numpy as np

import microcnn as mc
from microcnn.data import Dataset
from microcnn.errors import DataError
from microcnn.files import atomic_write
from microcnn.normalize import Normalization
from microcnn.train import evaluate, fit

from .commands.finetune import fit_shown
from .terminal import Terminal, bytes_text

PARTS = {"train": 800, "tune": 597, "test": 400}   # in all 1797
WHITE = 16

README = """# Models that come with microcnn

Made with this library; installed as the data package `microcnn.models`.

| file | what | size |
|-|-|-|
| `digits_cnn.onnx` | reads handwritten digits of 8x8 pixels; {parameters:,} parameters | {model_size} |
| `digits.npz` | the digits, in three disjoint sets | {data_size} |

## digits_cnn.onnx

- Layers: convolution 3x3 (16), ReLU, convolution 3x3 (32), ReLU, max pooling 2x2, linear (10). Input: x / 16.
- Made by: `{command}`, with microcnn {version}: {epochs} epochs of
  Adam (learning rate {rate:g}, cosine, batch {batch}, seed {seed}) on the digits `train` and on nothing else.
- Accuracy: {accuracy:.2%} of the {test} digits `test`; {train_accuracy:.2%} of the {train} that it was trained on.
- Licence: MIT, as the library.
- Run it on all digits, those that it was trained on included:
  `microcnn evaluate models/digits_cnn.onnx --data models/digits.npz --scale 1/16`

## digits.npz

- Arrays: `x` (1797, 8, 8) uint8 from 0 to 16, `y` (1797,) uint8, and the row numbers of the sets: `train` ({train}),
  `tune` ({tune}) and `test` ({test}).
- Origin: Optical Recognition of Handwritten Digits, E. Alpaydin and C. Kaynak, 1998, UCI Machine Learning Repository,
  https://doi.org/10.24432/C50P49: the 1,797 images of its test part, as scikit-learn ships them
  (`sklearn.datasets.load_digits`).
- Licence: Creative Commons Attribution 4.0 International (CC BY 4.0), https://creativecommons.org/licenses/by/4.0/
- Changes: stored as uint8, and split at random (seed {seed}) into the three sets; no image occurs twice.
"""


def split(x: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Row numbers of the three sets. Raises DataError where the same image is in two of them."""
    order = np.random.default_rng(seed).permutation(len(x))
    bounds = np.cumsum([0, *PARTS.values()])
    if bounds[-1] != len(x):
        raise DataError(f"the digits have {len(x)} images; expected {bounds[-1]}")
    rows = {name: np.sort(order[begin:end]).astype(np.uint16)
            for name, begin, end in zip(PARTS, bounds[:-1], bounds[1:], strict=True)}
    images = {name: {x[row].tobytes() for row in part} for name, part in rows.items()}
    if len(set().union(*images.values())) != sum(map(len, images.values())):
        raise DataError("the same image is in two of the three sets; drop one of the two")
    return rows


def build(seed: int) -> Any:
    """The graph with seeded weights."""
    return mc.Sequential([
        mc.Conv2d(16, 3, padding=1), mc.ReLU(), mc.Conv2d(32, 3, padding=1), mc.ReLU(), mc.MaxPool2d(2), mc.Flatten(),
        mc.Linear(10)], input_shape=(1, 8, 8), seed=seed).graph()


def main(arguments: list[str] | None = None) -> int:
    """Train, measure, write the three files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent.parent / "models")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)

    from sklearn.datasets import load_digits
    found = load_digits()
    x, y = found.images.astype(np.uint8), found.target.astype(np.uint8)
    rows = split(x, args.seed)
    graph = build(args.seed)
    net = graph.compile(batch=args.batch, train="all", loss="cross_entropy", optimizer=mc.Adam(lr=args.lr))
    sets = {name: Dataset(x[part], y[part], Normalization(scale=1 / WHITE), name).matched((1, 8, 8), (10,), net.loss)
            for name, part in rows.items()}
    fit_shown(net, sets["train"], None, Terminal(), fit, epochs=args.epochs, schedule="cosine", seed=args.seed)
    accuracies = {name: evaluate(net, part)["accuracy"] for name, part in sets.items()}

    buffer = io.BytesIO()
    np.savez_compressed(buffer, x=x, y=y, **rows)   # type: ignore[arg-type]
    atomic_write(args.out / "digits.npz", [buffer.getbuffer()])
    mc.save_onnx(net, args.out / "digits_cnn.onnx")
    command = " ".join(["python -m microcnn.tools.make_digits", *(sys.argv[1:] if arguments is None else arguments)])
    text = README.format(
        parameters=graph.parameter_count(), command=command, version=mc.__version__, epochs=args.epochs, rate=args.lr,
        batch=args.batch, seed=args.seed, accuracy=accuracies["test"], train_accuracy=accuracies["train"], **PARTS,
        model_size=bytes_text((args.out / "digits_cnn.onnx").stat().st_size),
        data_size=bytes_text((args.out / "digits.npz").stat().st_size))
    atomic_write(args.out / "README.md", [text.encode()])
    print(", ".join(f"{name} {value:.2%}" for name, value in accuracies.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
