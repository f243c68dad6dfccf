"""The norm of gradients and its factor as compiled, against exact sums."""
import math

import numpy as np
import pytest

from microcnn import arena
from microcnn.kernels.clip import BAD_GRADIENT
from tests.rows import run

DTYPES = pytest.mark.parametrize("dtype", ["float32", "float64"])


def squares(gradient, threads=1, index=1):
    sums = np.full(3, -1.0)
    run("clip.squares", 5, threads=threads, dtype=gradient.dtype.name, gradient=gradient, sums=sums,
        scratch=np.full(64, np.nan), size=gradient.size, index=index)
    assert (np.delete(sums, index) == -1).all()
    return sums[index]


def factor(sums, limit, dtype="float32"):
    out = np.full(1, np.nan)
    slots = run("clip.factor", 5, dtype=dtype, sums=sums, factor=out, count=sums.size, limit=float(limit))
    return out[0], slots[arena.FLAGS]


@DTYPES
@pytest.mark.parametrize("size", [1, 3, 17, 100, 8193, 70_000])
def test_squares(size, dtype):
    gradient = np.random.default_rng(size).normal(size=size).astype(dtype)
    exact = math.fsum(value * value for value in gradient.astype(np.float64).tolist())
    assert squares(gradient) == pytest.approx(exact, rel=1e-13)


def test_squares_that_float32_cannot_hold():
    assert squares(np.full(4, 1e30, np.float32)) == pytest.approx(4e60, rel=1e-6)


@DTYPES
def test_threads_do_not_change_a_bit(dtype):
    gradient = np.random.default_rng(0).normal(size=600_000).astype(dtype)
    assert squares(gradient, 1) == squares(gradient, 2)


def test_factor():
    sums = np.array([9.0, 16.0])
    assert factor(sums, 1.0) == (pytest.approx(1 / (5 + 1e-6), rel=1e-15), 0)
    assert factor(sums, 5.1) == (1.0, 0) and factor(np.zeros(2), 0.5) == (1.0, 0)
    for bad in (math.nan, math.inf):
        assert factor(np.array([1.0, bad]), 1.0)[1] == BAD_GRADIENT
