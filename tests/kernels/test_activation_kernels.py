"""Relu, Clip, Sigmoid and Tanh as compiled, against plain loops in float64."""
import math

import numpy as np
import pytest

from tests.rows import run

CLAMP, SIGMOID, TANH = range(3)
KINDS = [(CLAMP, 0.0, math.inf), (CLAMP, -math.inf, 1.0), (CLAMP, 0.0, 6.0), (SIGMOID, 0.0, 0.0), (TANH, 0.0, 0.0)]
TOLERANCE = {"float32": 1e-6, "float64": 1e-14}


def plain_forward(x, kind, low, high):
    y = np.empty(x.shape)
    for i, value in enumerate(x.astype(np.float64)):
        if kind == CLAMP:
            y[i] = low if value < low else high if value > high else value
        elif kind == SIGMOID:
            y[i] = 1 / (1 + math.exp(-value)) if value > -700 else 0.0
        else:
            y[i] = math.tanh(value)
    return y


def plain_backward(y, dy, kind, low, high):
    dx = np.empty(y.shape)
    for i, (value, slope) in enumerate(zip(y.astype(np.float64), dy.astype(np.float64), strict=True)):
        if kind == CLAMP:
            dx[i] = slope if low < value < high else 0.0
        elif kind == SIGMOID:
            dx[i] = slope * value * (1 - value)
        else:
            dx[i] = slope * (1 - value * value)
    return dx


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind, low, high", KINDS)
@pytest.mark.parametrize("size, batch", [(1, 1), (3, 2), (5, 3), (17, 1), (33, 2), (100, 3)])
def test_forward(size, batch, kind, low, high, dtype):
    x = (np.random.default_rng(size).normal(size=size * batch) * 4).astype(dtype)
    y = np.full_like(x, np.nan)
    run("activation.forward", batch, dtype=dtype, x=x, y=y, size=size, kind=kind, low=low, high=high)
    np.testing.assert_allclose(y, plain_forward(x, kind, low, high), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    in_place = x.copy()
    run("activation.forward", batch, dtype=dtype, x=in_place, y="x", size=size, kind=kind, low=low, high=high)
    np.testing.assert_array_equal(in_place, y)


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-6), ("float64", 2e-15)])
def test_tanh_of_small_numbers(dtype, tolerance):
    x = (10.0 ** np.linspace(-30, 1, 200) * np.tile([1, -1], 100)).astype(dtype)
    y = np.zeros_like(x)
    run("activation.forward", 1, dtype=dtype, x=x, y=y, size=x.size, kind=TANH, low=0.0, high=0.0)
    np.testing.assert_allclose(y, np.tanh(x.astype(np.float64)), rtol=tolerance)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind, low, high", KINDS)
def test_special_values(kind, low, high, dtype):
    x = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 100.0, -100.0], dtype)
    y = np.zeros_like(x)
    run("activation.forward", 1, dtype=dtype, x=x, y=y, size=x.size, kind=kind, low=low, high=high)
    assert np.isnan(y[0])
    np.testing.assert_allclose(y[1:], plain_forward(x[1:], kind, low, high), rtol=TOLERANCE[dtype],
                               atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind, low, high", KINDS)
@pytest.mark.parametrize("size, batch", [(1, 1), (3, 2), (17, 1), (33, 3)])
def test_backward(size, batch, kind, low, high, dtype):
    rng = np.random.default_rng(size)
    y = plain_forward(rng.normal(size=size * batch) * 4, kind, low, high).astype(dtype)
    dy, before = rng.normal(size=(2, size * batch)).astype(dtype)
    expected = plain_backward(y, dy, kind, low, high)
    fields = {"size": size, "kind": kind, "low": low, "high": high}
    for accumulate, start in [(0, np.full_like(y, np.nan)), (1, before)]:
        dx = start.copy()
        run("activation.backward", batch, dtype=dtype, y=y, dy=dy, dx=dx, accumulate=accumulate, **fields)
        np.testing.assert_allclose(dx, expected + (before if accumulate else 0), rtol=TOLERANCE[dtype],
                                   atol=TOLERANCE[dtype])
    in_place = dy.copy()
    run("activation.backward", batch, dtype=dtype, y=y, dy=in_place, dx="dy", accumulate=0, **fields)
    np.testing.assert_allclose(in_place, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("kind, low, high", [(SIGMOID, 0.0, 0.0), (TANH, 0.0, 0.0)])
def test_backward_is_the_slope_of_forward(kind, low, high):
    x = np.random.default_rng(0).normal(size=33)
    sides = []
    for shifted in (x, x + 1e-6, x - 1e-6):
        y = np.full_like(x, np.nan)
        run("activation.forward", 1, dtype="float64", x=shifted, y=y, size=33, kind=kind, low=low, high=high)
        sides.append(y)
    dx = np.full_like(x, np.nan)
    run("activation.backward", 1, dtype="float64", y=sides[0], dy=np.ones(33), dx=dx, size=33, kind=kind, low=low,
        high=high, accumulate=0)
    np.testing.assert_allclose(dx, (sides[1] - sides[2]) / 2e-6, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind, low, high", KINDS)
def test_threads_do_not_change_a_bit(kind, low, high):
    rng = np.random.default_rng(1)
    x, dy = rng.normal(size=(2, 2 * 30011)).astype(np.float32)
    results = []
    for threads in (1, 2):
        y, dx = np.full_like(x, np.nan), np.full_like(x, np.nan)
        fields = {"size": 30011, "kind": kind, "low": low, "high": high}
        run("activation.forward", 2, threads=threads, x=x, y=y, **fields)
        run("activation.backward", 2, threads=threads, y=y, dy=dy, dx=dx, accumulate=0, **fields)
        results.append((y, dx))
    np.testing.assert_array_equal(results[0], results[1])
    assert np.isfinite(results[0]).all()
