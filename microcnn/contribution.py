"""How much it would help to train a weight: how far its gradients agree over a few samples."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .choices import fold_batchnorm
from .graph import Graph
from .integers import INTEGERS
from .losses import BCEWithLogitsLoss, CrossEntropyLoss
from .net import Net
from .optim import SGD
from .partial import resolve_train

# Samples that are looked at.
SAMPLES = 64


def contributions(graph: Graph, how: dict[str, Any], samples: Any = None,
                  progress: Callable[[int, int, str], None] | None = None) -> tuple[dict[str, np.ndarray], str]:
    """({weight: what each index of its axis 0 contributes}, what was measured on).

    A weight is an array of numbers. With g the gradient of one number by one sample, it contributes mean(g)^2 / mean(g^2):
    1 where all samples pull it the same way, 1 / samples where they pull at random, 0 where they do not pull. That is twice
    what the loss loses by a step of natural gradient, whose curvature is the diagonal of the Fisher information; a gradient's
    size alone tells of the size of what it is multiplied with, and this does not change with it: not with the scale of the
    inputs, of the weights or of the loss.

    how       Planned's arguments; what they train is measured, each weight as a whole
    samples   (x, t), as train_step takes them, of which the first 64 are looked at; None: noise, with targets at random
    Memory    for the moment a network of one sample, and 16 bytes for each number that trains
    Source    gradient signal-to-noise ratio, Liu et al. 2020, "Understanding why neural networks generalize well through
              GSNR of parameters", as signal / (signal + noise); natural gradient, Amari 1998
    """
    kept = ("loss", "dtype", "input_shapes", "seed")
    factors, _ = resolve_train(fold_batchnorm(graph) if how.get("bn") == "fold" else graph, how["train"])
    net = Net(graph, batch=2, micro_batch=1, train=list(factors), optimizer=SGD(lr=0.0), winograd=False, progress=progress,
              bn="frozen" if how.get("bn") == "batch" else how.get("bn", "frozen"), augment=None,
              **{name: how[name] for name in kept if name in how})
    x, t, count, measured = _taken(net, samples)
    total = {name: np.zeros(net.graph.weights[name].shape) for name in factors}
    squares = {name: np.zeros_like(array) for name, array in total.items()}
    for i in range(count):
        one = [{name: array[i:i + 1] for name, array in each.items()} for each in (x, t)]
        for name, gradient in net.loss_gradients(*one).items():
            total[name] += gradient
            squares[name] += np.square(gradient, dtype=np.float64)
    return {name: _agreement(array, squares[name], count) for name, array in total.items()}, measured


def _agreement(total: np.ndarray, squares: np.ndarray, count: int) -> np.ndarray:
    """Of sums of gradients and of their squares over `count` samples: what each index of axis 0 contributes."""
    each = np.divide(total * total, count * squares, out=np.zeros_like(total), where=squares > 0)
    return each.reshape(*total.shape[:1] or (1,), -1).sum(1)


def _taken(net: Net, samples: Any) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], int, str]:
    """Inputs and targets by name, how many samples, and what to call them."""
    if samples is not None:
        x, t = (each if isinstance(each, dict) else None for each in samples)
        x = x or {net.graph.inputs[0].name: np.asarray(samples[0])}
        t = t or {next(iter(net._losses)): np.asarray(samples[1])}
        count = min(SAMPLES, len(next(iter(x.values()))))
        return x, t, count, f"{count} samples"
    rng = np.random.default_rng(0)
    x = {entry.name: rng.integers(0, 128, (SAMPLES, *net.shapes[entry.name])) if net.types[entry.name] in INTEGERS else
         rng.standard_normal((SAMPLES, *net.shapes[entry.name])).astype(net.dtype) for entry in net.graph.inputs}
    t = {}
    for output, (loss, tensor) in net._losses.items():
        shape = net.shapes[tensor]
        if isinstance(loss, CrossEntropyLoss):
            t[output] = rng.integers(0, shape[0], (SAMPLES, *shape[1:]))
        elif isinstance(loss, BCEWithLogitsLoss):
            t[output] = rng.integers(0, 2, (SAMPLES, *shape)).astype(net.dtype)
        else:
            t[output] = rng.standard_normal((SAMPLES, *shape)).astype(net.dtype)
    return x, t, SAMPLES, "noise (give samples=(x, t) for your own)"
