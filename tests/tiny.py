"""Small networks for the tests of the ground: one of few kernels, so that little has to be compiled, and one of many."""
from __future__ import annotations

from typing import Any

import numpy as np

import microcnn as mc


def images(samples: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(N, 2, 6, 6) and classes of 3."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((samples, 2, 6, 6)).astype(np.float32), rng.integers(0, 3, samples)


def convolutional(seed: int = 0) -> mc.Graph:
    """Convolution, batch norm, pooling, a head: weights conv1.*, bn1.*, linear1.*"""
    return mc.Sequential([mc.Conv2d(4, 3, padding=1), mc.BatchNorm2d(), mc.ReLU(), mc.MaxPool2d(2), mc.Flatten(),
                          mc.Linear(3)], input_shape=(2, 6, 6), seed=seed).graph()


def varied() -> mc.Graph:
    """Every kind of convolution, as each takes another kernel for dW, and of norm."""
    graph = mc.Sequential([
        mc.Conv2d(20, 3, padding=1, bias=False, name="first"), mc.BatchNorm2d(name="bn1"), mc.ReLU(),
        mc.Conv2d(20, 3, padding=1, groups=20, name="depthwise"), mc.BatchNorm2d(name="bn2"), mc.ReLU(),
        mc.Conv2d(18, 1, name="pointwise"), mc.ReLU(),
        mc.Conv2d(24, 3, stride=2, groups=6, name="grouped"), mc.ReLU(),
        mc.Conv2d(17, (2, 1), padding=(1, 0), name="dense"), mc.GroupNorm(1, name="group"), mc.ReLU(),
        mc.Conv2d(5, 2, dilation=1, name="few"), mc.Flatten(), mc.Linear(19, name="wide"), mc.LayerNorm(19, name="layer"),
        mc.Linear(6, name="head")], input_shape=(3, 7, 6), seed=2).graph()
    rng = np.random.default_rng(5)
    for name, array in graph.weights.items():        # no bias of 0, no batch norm that does nothing
        if array.ndim == 1:
            graph.weights[name] = rng.uniform(0.5, 1.5, array.shape).astype(np.float32)
    return graph


def compiled(graph: mc.Graph | None = None, **arguments: Any) -> mc.Net:
    """The network, ready to train at batch 4; arguments of compile win."""
    chosen: dict[str, Any] = {"batch": 4, "train": "all", "loss": "cross_entropy",
                              "optimizer": mc.SGD(lr=0.1, momentum=0.9)}
    return (convolutional() if graph is None else graph).compile(**{**chosen, **arguments})


def same(before: dict[str, np.ndarray], after: dict[str, np.ndarray]) -> bool:
    """Whether two sets of arrays are equal to the bit."""
    return before.keys() == after.keys() and all(before[name].tobytes() == after[name].tobytes() for name in before)


def losses(net: mc.Net, steps: int = 5) -> list[float]:
    """The losses of some steps, each on other samples."""
    return [net.train_step(*images(net.batch, 1 + step)) for step in range(steps)]


def train_alike(*nets: mc.Net) -> None:
    """Nets that must train alike, bit for bit."""
    results = [losses(net) for net in nets]
    assert all(result == results[0] for result in results), results
    assert all(same(nets[0].parameters(), net.parameters()) for net in nets)
