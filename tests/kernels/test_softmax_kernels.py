"""Softmax and log-softmax as compiled, against plain loops in float64."""
import math

import numpy as np
import pytest

from tests.rows import run

TOLERANCE = {"float32": 2e-6, "float64": 1e-14}
DTYPES = pytest.mark.parametrize("dtype", ["float32", "float64"])
KINDS = pytest.mark.parametrize("kind", [0, 1])
# batch, outer per sample, C, inner
SHAPES = pytest.mark.parametrize("batch, outer, C, inner", [
    (1, 1, 1, 1), (2, 1, 3, 1), (3, 2, 5, 1), (1, 4, 17, 1), (2, 1, 33, 1), (1, 1, 1000, 1),
    (1, 1, 3, 2), (2, 2, 5, 17), (1, 3, 4, 33), (3, 1, 1, 5)])


def groups(x, outer, C, inner):
    """Every group's indices into the flat array."""
    for o in range(outer):
        for i in range(inner):
            yield [(o * C + c) * inner + i for c in range(C)]


def plain_forward(x, outer, C, inner, kind):
    y = np.empty(x.size)
    for group in groups(x, outer, C, inner):
        values = [float(x[i]) for i in group]
        top = max(values)
        total = math.fsum(math.exp(value - top) for value in values)
        for i, value in zip(group, values, strict=True):
            y[i] = value - top - math.log(total) if kind else math.exp(value - top) / total
    return y


def plain_backward(y, dy, outer, C, inner, kind):
    dx = np.empty(y.size)
    for group in groups(y, outer, C, inner):
        for i in group:
            # the whole Jacobian's row
            dx[i] = math.fsum(float(dy[j]) * ((i == j) - math.exp(y[i]) if kind else
                                              float(y[j]) * ((i == j) - float(y[i]))) for j in group)
    return dx


def forward(x, y, batch, outer, C, inner, kind, dtype, threads=1):
    run("softmax.forward", batch, threads=threads, dtype=dtype, x=x, y=y, rows=outer * inner, C=C, inner=inner,
        kind=kind)


def backward(y, dy, dx, batch, outer, C, inner, kind, accumulate, dtype, threads=1):
    run("softmax.backward", batch, threads=threads, dtype=dtype, y=y, dy=dy, dx=dx, rows=outer * inner, C=C,
        inner=inner, kind=kind, accumulate=accumulate)


@DTYPES
@KINDS
@SHAPES
def test_forward(batch, outer, C, inner, kind, dtype):
    x = (np.random.default_rng(C).normal(size=batch * outer * C * inner) * 5 - 20).astype(dtype)
    expected = plain_forward(x, batch * outer, C, inner, kind)
    y = np.full_like(x, np.nan)
    forward(x, y, batch, outer, C, inner, kind, dtype)
    np.testing.assert_allclose(y, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    in_place = x.copy()
    forward(in_place, "x", batch, outer, C, inner, kind, dtype)
    np.testing.assert_array_equal(in_place, y)


@DTYPES
@KINDS
@SHAPES
def test_backward(batch, outer, C, inner, kind, dtype):
    rng = np.random.default_rng(C)
    y = plain_forward(rng.normal(size=batch * outer * C * inner), batch * outer, C, inner, kind).astype(dtype)
    dy, before = rng.normal(size=(2, y.size)).astype(dtype)
    # in logarithms, rounding the sum of a thousand dy costs more digits
    tolerance = TOLERANCE[dtype] * 5
    expected = plain_backward(y, dy, batch * outer, C, inner, kind) if C < 100 else (
        dy - np.exp(y.astype(np.float64)) * dy.astype(np.float64).sum() if kind else
        y * (dy - (y.astype(np.float64) * dy).sum()))
    dx = np.full_like(y, np.nan)
    backward(y, dy, dx, batch, outer, C, inner, kind, 0, dtype)
    np.testing.assert_allclose(dx, expected, rtol=tolerance, atol=tolerance)
    for alias in ("y", "dy"):
        left, right = y.copy(), dy.copy()
        backward(left, right, alias, batch, outer, C, inner, kind, 0, dtype)
        np.testing.assert_array_equal(left if alias == "y" else right, dx)
    added = before.copy()
    backward(y, dy, added, batch, outer, C, inner, kind, 1, dtype)
    np.testing.assert_allclose(added, before + expected, rtol=tolerance, atol=tolerance)


@KINDS
@pytest.mark.parametrize("outer, C, inner", [(2, 5, 1), (2, 5, 3)])
def test_backward_is_the_slope_of_forward(outer, C, inner, kind):
    rng = np.random.default_rng(0)
    x, dy = rng.normal(size=(2, outer * C * inner))

    def loss(values):
        y = np.full_like(values, np.nan)
        forward(values, y, 1, outer, C, inner, kind, "float64")
        return y, (y * dy).sum()
    y, _ = loss(x)
    dx = np.full_like(x, np.nan)
    backward(y, dy, dx, 1, outer, C, inner, kind, 0, "float64")
    slope = [(loss(x + step)[1] - loss(x - step)[1]) / 2e-5 for step in np.eye(x.size) * 1e-5]
    np.testing.assert_allclose(dx, slope, rtol=1e-5, atol=1e-7)


@DTYPES
@KINDS
@pytest.mark.parametrize("inner", [1, 3])
def test_special_values(inner, kind, dtype):
    """Large logits do not overflow, -inf is a probability of 0, a NaN spoils its own group only."""
    C = 20
    x = np.zeros((3, C, inner), dtype)
    x[0, :, 0] = 1e4
    x[0, 4, 0] = -np.inf
    x[1, 18, 0] = np.nan
    x[2, :, 0] = -1e4
    y = np.empty_like(x)
    forward(x, y, 3, 1, C, inner, kind, dtype)
    probabilities = np.exp(y.astype(np.float64)) if kind else y
    np.testing.assert_allclose(probabilities[0, :, 0], np.where(np.arange(C) == 4, 0, 1 / 19), rtol=1e-6)
    assert np.isnan(y[1, :, 0]).all()
    np.testing.assert_allclose(probabilities[2], 1 / C, rtol=1e-6)
    assert not np.isnan(y[1, :, 1:]).any()


@KINDS
@pytest.mark.parametrize("C, inner", [(10, 1), (300, 1), (10, 40)])
def test_threads_do_not_change_a_bit(C, inner, kind):
    rng = np.random.default_rng(1)
    x, dy = rng.normal(size=(2, 30_000)).astype(np.float32)
    outer = x.size // (2 * C * inner)
    results = []
    used = 2 * outer * C * inner
    for threads in (1, 2):
        y, dx = np.full((2, used), np.nan, np.float32)
        forward(x[:used], y, 2, outer, C, inner, kind, "float32", threads)
        backward(y, dy[:used], dx, 2, outer, C, inner, kind, 0, "float32", threads)
        results.append((y, dx))
    assert np.isfinite(results[0]).all()
    np.testing.assert_array_equal(results[0], results[1])
