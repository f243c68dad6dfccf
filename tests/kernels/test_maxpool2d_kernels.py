"""The max pooling kernels against plain loops in float64."""
import numpy as np
import pytest

from ..rows import run
from .pooling import DILATED, GEOMETRIES, close, fields, inside, random

OPEN = {"low": -np.inf, "high": np.inf}
INDEX = {1: np.uint8, 2: np.uint16, 4: np.int32}


def max_fields(geometry, C, **more):
    found = fields(**geometry)
    return {name: found[name] for name in found if name not in ("pad_bottom", "pad_right")} | {"C": C} | more


def max_loops(x, f):
    N, _, _, C = x.shape
    y = np.full((N, f["OH"], f["OW"], C), -np.inf)
    indices = np.zeros(y.shape, int)
    for n, oh, ow, c in np.ndindex(y.shape):
        for k, (index, ih, iw) in enumerate(inside(f, oh, ow)):
            value, best = x[n, ih, iw, c], y[n, oh, ow, c]
            if k == 0 or value > best or (np.isnan(value) and not np.isnan(best)):
                y[n, oh, ow, c], indices[n, oh, ow, c] = value, index
    return y, indices


def unpool_loops(indices, dy, f):
    N, _, _, C = dy.shape
    dx = np.zeros((N, f["H"], f["W"], C))
    for n, oh, ow, c in np.ndindex(dy.shape):
        for index, ih, iw in inside(f, oh, ow):
            if index == indices[n, oh, ow, c]:
                dx[n, ih, iw, c] += dy[n, oh, ow, c]
    return dx


def max_pool(x, f, index_bytes=1, threads=1, low=-np.inf, high=np.inf):
    y = np.full((len(x), f["OH"], f["OW"], f["C"]), np.nan, x.dtype)
    indices = np.full(y.shape, 99, INDEX[index_bytes]) if index_bytes else None
    run("maxpool2d.forward", len(x), threads, str(x.dtype), x=x, y=y, indices=indices, index_bytes=index_bytes, low=low,
        high=high, **f)
    return y, indices


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("C", [1, 3, 5, 17, 33])
@pytest.mark.parametrize("geometry", GEOMETRIES + DILATED)
def test_max_pooling_and_its_gradient(geometry, C, dtype):
    f = max_fields(geometry, C)
    for batch, index_bytes in (1, 1), (2, 2), (3, 4):
        # few different values, so that there are ties
        x = np.round(random((batch, f["H"], f["W"], C), dtype, batch) * 2)
        y, indices = max_pool(x, f, index_bytes)
        expected, winners = max_loops(x, f)
        np.testing.assert_array_equal(y, expected)
        np.testing.assert_array_equal(indices, winners)
        np.testing.assert_array_equal(max_pool(x, f, 0)[0], y)
        dy = random(y.shape, dtype, 7)
        dx = np.full(x.shape, np.nan, dtype)
        run("maxpool2d.backward", batch, 1, dtype, indices=indices, y=None, dy=dy, dx=dx, index_bytes=index_bytes,
            accumulate=0, **OPEN, **f)
        close(dx, unpool_loops(indices, dy.astype(float), f), dtype)
        start = random(x.shape, dtype, 8)
        total = start.copy()
        run("maxpool2d.backward", batch, 1, dtype, indices=indices, y=None, dy=dy, dx=total, index_bytes=index_bytes,
            accumulate=1, **OPEN, **f)
        close(total, start + dx.astype(float), dtype)


@pytest.mark.parametrize("C", [1, 17])
def test_nan_wins_and_minus_infinity_has_a_place(C):
    f = max_fields(GEOMETRIES[3], C)
    x = random((2, f["H"], f["W"], C), "float32")
    x[:, ::3, ::2] = np.nan
    x[:, 5:] = -np.inf
    y, indices = max_pool(x, f)
    expected, winners = max_loops(x, f)
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(indices, winners)


def test_a_window_outside_the_image_gives_minus_infinity_and_passes_nothing_back():
    f = max_fields(dict(H=2, W=3, kernel=(2, 2), stride=(2, 2), pads=(2, 2, 0, 0)), 5)
    x = random((1, 2, 3, 5), "float32")
    y, indices = max_pool(x, f)
    np.testing.assert_array_equal(y, max_loops(x, f)[0])
    assert np.isneginf(y[0, 0]).all() and (indices[0, 0] == 0).all()
    dx = np.full(x.shape, np.nan, "float32")
    run("maxpool2d.backward", 1, indices=indices, y=None, dy=np.ones_like(y), dx=dx, index_bytes=1, accumulate=0, **OPEN,
        **f)
    np.testing.assert_array_equal(dx, unpool_loops(indices, np.ones(y.shape), f))


@pytest.mark.parametrize("index_bytes, kernel", [(1, 16), (2, 40), (4, 257)])
def test_indices_up_to_the_largest_of_their_type(index_bytes, kernel):
    f = max_fields(dict(H=kernel, W=kernel, kernel=(kernel, kernel), stride=(1, 1)), 2)
    x = np.zeros((1, kernel, kernel, 2), "float32")
    x[0, -1, -1] = 1
    _, indices = max_pool(x, f, index_bytes)
    assert (indices == kernel * kernel - 1).all()
    dx = np.full(x.shape, np.nan, "float32")
    run("maxpool2d.backward", 1, indices=indices, y=None, dy=np.full((1, 1, 1, 2), 3, "float32"), dx=dx,
        index_bytes=index_bytes, accumulate=0, **OPEN, **f)
    np.testing.assert_array_equal(dx, 3 * x)


@pytest.mark.parametrize("C", [3, 17])
@pytest.mark.parametrize("low, high", [(0.0, np.inf), (-0.5, 1.0)])
@pytest.mark.parametrize("geometry", GEOMETRIES[:4] + DILATED[:1])
def test_a_clamp_before_pooling_runs_on_its_results(geometry, low, high, C):
    f = max_fields(geometry, C)
    # steps of a half: ties, and numbers on the bounds
    x = np.round(random((2, f["H"], f["W"], C), "float32") * 4) / 2
    y, indices = max_pool(x, f, low=low, high=high)
    expected, winners = max_loops(np.clip(x, low, high), f)
    np.testing.assert_array_equal(y, expected)
    dy = random(y.shape, "float32", 7)
    dx = np.full(x.shape, np.nan, "float32")
    run("maxpool2d.backward", 2, indices=indices, y=y, dy=dy, dx=dx, index_bytes=1, low=low, high=high, accumulate=0, **f)
    passed = np.where((x > low) & (x < high), unpool_loops(winners, dy.astype(float), f), 0)
    assert 0 < np.count_nonzero(passed) < np.count_nonzero(unpool_loops(winners, dy.astype(float), f))
    close(dx, passed, "float32")


@pytest.mark.parametrize("geometry", [dict(H=40, W=40, kernel=(3, 3), stride=(2, 2), pads=(1, 1, 1, 1)),
                                      dict(H=41, W=40, kernel=(2, 2), stride=(2, 2))])
def test_two_threads_give_the_same_bits(geometry):
    f = max_fields(geometry, 33)
    x = random((3, f["H"], f["W"], 33), "float32")
    results = []
    for threads in 1, 2:
        y, indices = max_pool(x, f, 1, threads)
        dx = np.full(x.shape, np.nan, "float32")
        run("maxpool2d.backward", 3, threads, indices=indices, y=None, dy=y, dx=dx, index_bytes=1, **OPEN, accumulate=0, **f)
        results.append([y.tobytes(), indices.tobytes(), dx.tobytes()])
    assert results[0] == results[1]
