"""Networks whose first layers are frozen, and data for them: for the tests of features."""
from __future__ import annotations

from typing import Any

import numpy as np

import microcnn as mc

from .tiny import compiled


def branching() -> mc.Graph:
    """Two frozen convolutions, of which the later part reads both: "one" and "two" before "three" and "head"."""
    b = mc.GraphBuilder()
    x = b.input("input", (2, 6, 6))
    one = b(mc.ReLU(), b(mc.Conv2d(4, 3, padding=1, name="one"), x))
    two = b(mc.ReLU(), b(mc.BatchNorm2d(name="norm"), b(mc.Conv2d(4, 3, padding=1, name="two"), one)))
    three = b(mc.ReLU(), b(mc.Add(), b(mc.Conv2d(4, 3, padding=1, name="three"), two), one))
    return b.graph(b(mc.Linear(3, name="head"), b(mc.Flatten(), three)))


def branched(**arguments: Any) -> mc.Net:
    """It, ready to train what comes after the two at batch 4."""
    return compiled(branching(), **{"train": ["three.*", "head.*"], **arguments})


def pictures(samples: int, seed: int = 0) -> mc.Dataset:
    """uint8 images for it with a normalisation for each channel, in which the classes can be told apart."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, samples)
    x = rng.integers(0, 120, (samples, 2, 6, 6)) + 60 * (np.arange(6) // 2 == y[:, None])[:, None, None, :]
    return mc.Dataset(x.astype(np.uint8), y, mc.Normalization(1 / 255, (0.3, 0.4), (0.2, 0.3)))
