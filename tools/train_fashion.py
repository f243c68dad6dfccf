"""Trains a network from scratch on 28x28 images: python -m microcnn.tools.train_fashion --data fashion_mnist.npz

The data file holds x_train, y_train, x_test, y_test, as Fashion-MNIST does.
"""
from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import microcnn as mc
from microcnn.data import load_npz
from microcnn.errors import DataError
from microcnn.normalize import Normalization
from microcnn.train import fit

from .commands.finetune import fit_shown
from .commands.options import real, whole
from .compiling import compile_shown
from .loading import check_suffix, check_writable, save_model
from .terminal import Terminal

# The mean and the standard deviation of Fashion-MNIST's training pixels, after division by 255.
MEAN, STD = 0.2860, 0.3530


def lenet5(seed: int) -> mc.Graph:
    """LeNet-5 for 28x28 images of one channel and ten classes, with ReLU and max pooling."""
    return mc.Sequential([
        mc.Conv2d(6, 5, padding=2), mc.ReLU(), mc.MaxPool2d(2), mc.Conv2d(16, 5), mc.ReLU(), mc.MaxPool2d(2), mc.Flatten(),
        mc.Linear(120), mc.ReLU(), mc.Linear(84), mc.ReLU(), mc.Linear(10)], input_shape=(1, 28, 28), seed=seed).graph()


def residual(seed: int) -> mc.Graph:
    """A residual network of 73,690 weights: 16 channels, then two blocks of 32 and 64, each at half the size."""
    b = mc.GraphBuilder("residual", seed)

    def unit(x: str, channels: int, size: int, stride: int = 1, padding: int = 0) -> str:
        return b(mc.BatchNorm2d(), b(mc.Conv2d(channels, size, stride=stride, padding=padding, bias=False), x))

    x = b(mc.ReLU(), unit(b.input("input", (1, 28, 28)), 16, 3, padding=1))
    for channels in (32, 64):
        y = b(mc.ReLU(), unit(x, channels, 3, stride=2, padding=1))
        x = b(mc.ReLU(), b(mc.Add(), unit(y, channels, 3, padding=1), unit(x, channels, 1, stride=2)))
    return b.graph(b(mc.Linear(10), b(mc.Flatten(), b(mc.GlobalAvgPool2d(), x))))


@dataclass(frozen=True)
class Recipe:
    """How a network is trained. options: what compile takes beside optimizer, batch and seed."""

    network: Callable[[int], mc.Graph]
    epochs: int
    lr: float
    optimizer: Callable[..., Any]
    schedule: str
    options: dict[str, Any]


RECIPES = {
    "lenet5": Recipe(lenet5, 10, 2e-3, mc.Adam, "cosine", {"loss": "cross_entropy"}),
    "residual": Recipe(residual, 15, 4e-3, mc.AdamW, "one-cycle", {
        "loss": "cross_entropy", "bn": "batch", "augment": mc.Augment(shift=1, flip=True)}),
}


def main(arguments: list[str] | None = None) -> int:
    """Train, print the accuracy on the test images and the time of an epoch, save where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, metavar="FILE", help="an .npz file with x_train, y_train, x_test, y_test")
    parser.add_argument("--network", choices=RECIPES, default="lenet5", help="(lenet5)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where to save the network, .onnx or .mcnn")
    parser.add_argument("--epochs", type=whole(), help="(what the network's recipe says, as for --lr)")
    parser.add_argument("--batch", type=whole(), default=64, help="(64)")
    parser.add_argument("--lr", type=real(above=0), help="learning rate")
    parser.add_argument("--threads", type=whole(), default=1, help="(1)")
    parser.add_argument("--seed", type=whole(0), default=0, help="(0)")
    args = parser.parse_args(arguments)
    terminal, recipe = Terminal(), RECIPES[args.network]
    try:
        mc.set_num_threads(args.threads)
        if args.out:
            check_suffix(args.out)
            check_writable(args.out)
        parts = load_npz(args.data, Normalization(scale=1 / 255, mean=MEAN, std=STD))
        if parts.train is None or parts.test is None:
            raise DataError(f"{args.data} must hold x_train, y_train, x_test and y_test")
        graph = recipe.network(args.seed)
        graph.meta.update(parts.train.normalization.to_meta())
        net, _ = compile_shown(graph, terminal, batch=args.batch, train="all", seed=args.seed,
                               optimizer=recipe.optimizer(lr=args.lr or recipe.lr), **recipe.options)
        training, test = (part.matched((1, 28, 28), (10,), net.loss) for part in (parts.train, parts.test))
        terminal.say(f"{args.network}: {graph.parameter_count():,} weights, {len(training):,} images")
        history = fit_shown(net, training, test, terminal, fit, epochs=args.epochs or recipe.epochs,
                            schedule=recipe.schedule, seed=args.seed)
        seconds = [epoch.seconds for epoch in history.epochs if epoch.epoch > 0]
        last = history.epochs[-1]
        if seconds and last.accuracy is not None:
            terminal.say(f"last epoch: test accuracy {last.accuracy:.2%}; an epoch takes {statistics.median(seconds):.2f} s "
                         f"(median), {len(training) / statistics.median(seconds):,.0f} samples/s, {args.threads} thread(s)")
        if args.out:
            save_model(net, args.out)
            terminal.say(f"saved {args.out}")
    except mc.MicroCNNError as error:
        print(f"train_fashion: error: {error}", file=sys.stderr)
        return 2
    return 130 if history.interrupted else 0


if __name__ == "__main__":
    sys.exit(main())
