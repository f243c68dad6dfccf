"""Random graphs: whatever is fused, shared, done in place or in another order, the numbers are the plain loops'."""
import numpy as np
import pytest

import microcnn as mc
from tests.ops.table import Case, gradient, lively, oracle, repeated, runtime, training

SEEDS = 60


def random_graph(seed):
    """A dozen random layers; each reads one of the last few tensors, sums read two."""
    rng = np.random.default_rng(seed)
    b = mc.GraphBuilder(seed=seed)
    tensors = [b.input(name, (int(rng.integers(1, 5)), int(rng.integers(2, 5)), int(rng.integers(2, 5))))
               for name in ("x", "z")[:1 + (rng.random() < 0.2)]]
    for _ in range(12):
        x = tensors[-1 - min(int(rng.exponential(1.0)), len(tensors) - 1)]
        layer, *others = random_layer(rng, b, x, tensors)
        tensors.append(b(layer, x, *others))
    others = rng.choice(tensors[2:-1], size=int(rng.integers(0, 3)), replace=False)
    return lively(b.graph(tensors[-1], *map(str, others)), seed)


def random_layer(rng, b, x, tensors):
    """A layer that fits x, and the other tensors that it reads."""
    shape = b.shape(x)
    same = [name for name in tensors if b.shape(name) == shape]
    wide = [name for name in tensors if len(b.shape(name)) == len(shape) and b.shape(name) != shape and all(
        1 in (m, n) or m == n for m, n in zip(b.shape(name), shape, strict=True))]
    choices = ["relu", "clip", "smooth", "add", "add", "reshape", "flatten", "linear"]
    if wide:
        choices += ["broadcast"]
    if len(shape) == 3:
        choices += ["conv", "conv", "conv", "norm", "norm", "max", "mean", "global", "depthwise"]
    kind = choices[rng.integers(len(choices))]
    size = int(np.prod(shape))
    if kind in ("add", "broadcast"):
        return mc.Add(), str(rng.choice(same if kind == "add" else wide))
    if kind == "conv":
        k = int(rng.integers(1, min(3, *shape[1:]) + 1)) if min(shape[1:]) > 1 else 1
        same_size = rng.random() < 0.6
        return mc.Conv2d(shape[0] if same_size else int(rng.integers(1, 6)), k, padding="same" if same_size else 0,
                         stride=1 if same_size else int(rng.integers(1, 3)), bias=bool(rng.random() < 0.5)),
    if kind == "depthwise":
        return mc.Conv2d(shape[0], min(2, *shape[1:]), padding="same", groups=shape[0]),
    if kind in ("max", "mean"):
        pool = mc.MaxPool2d if kind == "max" else mc.AvgPool2d
        return pool(min(2, *shape[1:]), stride=int(rng.integers(1, 3)), padding=0 if rng.random() < 0.7 else "same"),
    if kind in ("flatten", "linear"):
        if kind == "linear" and (len(shape) < 3 or shape[1:] == (1, 1)):
            return mc.Linear(int(rng.choice([size, 5]))) if len(shape) < 3 else mc.GlobalAvgPool2d(),
        return mc.Flatten(),
    if kind == "reshape":
        factors = [n for n in range(1, size + 1) if size % n == 0]
        first = int(rng.choice(factors))
        second = int(rng.choice([n for n in factors if size // first % n == 0]))
        return mc.Reshape((first, second, size // first // second)),
    if kind == "smooth":
        return [mc.Tanh(), mc.Sigmoid()][rng.integers(2)],
    return {"relu": mc.ReLU(), "clip": mc.Clip(-0.317, 0.429), "norm": mc.BatchNorm2d(),
            "global": mc.GlobalAvgPool2d()}[kind],


@pytest.mark.parametrize("seed", range(SEEDS))
def test_random_graph(seed):
    """Without what takes differences away (batch statistics, softmax): no relative error can judge a gradient of 0."""
    case = Case(f"seed {seed}", lambda: random_graph(seed), 2 + seed % 2, ("frozen", "frozen", "fold")[seed % 3])
    for check in (oracle, gradient, training, runtime, repeated):
        check(case)
