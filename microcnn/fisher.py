"""How much of a task is in each weight: the Fisher information of a few samples, the squares of their loss's gradients."""
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


def fisher_information(graph: Graph, how: dict[str, Any], samples: Any = None,
                       progress: Callable[[int, int, str], None] | None = None) -> tuple[dict[str, np.ndarray], str]:
    """({weight: the sum of the squares of its gradients over the samples, for each index of axis 0}, what was measured on).

    how       Planned's arguments; what they train is measured, each weight as a whole
    samples   (x, t), as train_step takes them, of which the first 64 are looked at; None: noise, with targets at random
    Source    E[(dL / dw)^2] over samples, each one's gradient by itself; TinyTrain (Kwon et al. 2024) chooses layers by it

    A network of one sample is compiled for it, which is gone afterwards.
    """
    kept = ("loss", "dtype", "input_shapes", "seed")
    factors, _ = resolve_train(fold_batchnorm(graph) if how.get("bn") == "fold" else graph, how["train"])
    net = Net(graph, batch=2, micro_batch=1, train=list(factors), optimizer=SGD(lr=0.0), winograd=False, progress=progress,
              bn="frozen" if how.get("bn") == "batch" else how.get("bn", "frozen"), augment=None,
              **{name: how[name] for name in kept if name in how})
    x, t, count, measured = _taken(net, samples)
    total = {name: np.zeros(net.graph.weights[name].shape[:1] or (1,)) for name in factors}
    for i in range(count):
        one = [{name: array[i:i + 1] for name, array in each.items()} for each in (x, t)]
        for name, gradient in net.loss_gradients(*one).items():
            square = np.square(gradient, dtype=np.float64)
            total[name] += square.reshape(len(total[name]), -1).sum(1)
    return total, measured


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
