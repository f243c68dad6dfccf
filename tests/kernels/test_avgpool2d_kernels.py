"""The average pooling kernels against plain loops in float64."""
import numpy as np
import pytest

from ..rows import run
from .pooling import DILATED, GEOMETRIES, close, fields, inside, random


def average_fields(geometry, C, **more):
    return fields(**geometry) | {"C": C} | more


def divisor(f, oh, ow, count_include_pad):
    if not count_include_pad:
        return max(1, sum(1 for _ in inside(f, oh, ow)))
    top, left = oh * f["stride_h"] - f["pad_top"], ow * f["stride_w"] - f["pad_left"]
    return (sum(top + r * f["dilation_h"] < f["H"] + f["pad_bottom"] for r in range(f["kernel_h"]))
            * sum(left + s * f["dilation_w"] < f["W"] + f["pad_right"] for s in range(f["kernel_w"])))


def average_loops(x, f, count_include_pad):
    N, _, _, C = x.shape
    y = np.zeros((N, f["OH"], f["OW"], C))
    for n, oh, ow in np.ndindex(y.shape[:3]):
        for _, ih, iw in inside(f, oh, ow):
            y[n, oh, ow] += x[n, ih, iw] / divisor(f, oh, ow, count_include_pad)
    return y


def spread_loops(dy, f, count_include_pad):
    N, _, _, C = dy.shape
    dx = np.zeros((N, f["H"], f["W"], C))
    for n, oh, ow in np.ndindex(dy.shape[:3]):
        for _, ih, iw in inside(f, oh, ow):
            dx[n, ih, iw] += dy[n, oh, ow] / divisor(f, oh, ow, count_include_pad)
    return dx


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("C", [1, 3, 5, 17, 33])
@pytest.mark.parametrize("count_include_pad", [0, 1])
@pytest.mark.parametrize("geometry", [*GEOMETRIES, *DILATED])
def test_average_pooling_and_its_gradient(geometry, count_include_pad, C, dtype):
    f = average_fields(geometry, C, count_include_pad=count_include_pad)
    for batch in 1, 3:
        x = random((batch, f["H"], f["W"], C), dtype, batch)
        y = np.full((batch, f["OH"], f["OW"], C), np.nan, dtype)
        run("avgpool2d.forward", batch, 1, dtype, x=x, y=y, **f)
        close(y, average_loops(x.astype(float), f, count_include_pad), dtype)
        dy = random(y.shape, dtype, 7)
        dx = np.full(x.shape, np.nan, dtype)
        run("avgpool2d.backward", batch, 1, dtype, dy=dy, dx=dx, accumulate=0, **f)
        close(dx, spread_loops(dy.astype(float), f, count_include_pad), dtype)
        start = random(x.shape, dtype, 8)
        total = start.copy()
        run("avgpool2d.backward", batch, 1, dtype, dy=dy, dx=total, accumulate=1, **f)
        close(total, start + dx.astype(float), dtype)


def test_a_window_that_counts_nothing_averages_to_zero():
    f = average_fields(dict(H=2, W=3, kernel=(2, 2), stride=(2, 2), pads=(2, 2, 0, 0)), 5, count_include_pad=0)
    x = random((1, 2, 3, 5), "float32")
    y = np.full((1, f["OH"], f["OW"], 5), np.nan, "float32")
    run("avgpool2d.forward", 1, x=x, y=y, **f)
    assert (y[0, 0] == 0).all()
    close(y, average_loops(x.astype(float), f, 0), "float32")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("C", [1, 3, 5, 17, 33])
@pytest.mark.parametrize("pixels", [1, 6, 64, 131])
def test_global_average_pooling_and_its_gradient(pixels, C, dtype):
    for batch in 1, 3:
        x = random((batch, pixels, C), dtype, batch)
        y = np.full((batch, C), np.nan, dtype)
        run("avgpool2d.forward_global", batch, 1, dtype, x=x, y=y, pixels=pixels, C=C)
        close(y, x.astype(float).mean(1), dtype)
        dy = random(y.shape, dtype, 7)
        expected = np.repeat(dy.astype(float)[:, None] / pixels, pixels, 1)
        dx = np.full(x.shape, np.nan, dtype)
        run("avgpool2d.backward_global", batch, 1, dtype, dy=dy, dx=dx, pixels=pixels, C=C, accumulate=0)
        close(dx, expected, dtype)
        total = x.copy()
        run("avgpool2d.backward_global", batch, 1, dtype, dy=dy, dx=total, pixels=pixels, C=C, accumulate=1)
        close(total, x + expected, dtype)


def test_a_large_image_averages_without_losing_digits():
    x = (1001.3 + random((1, 40_000, 3), "float32")).astype("float32")
    exact = x.astype(float).mean(1)
    one_chain = np.cumsum(x, 1, dtype="float32")[:, -1] / np.float32(40_000)
    assert (abs(one_chain / exact - 1) > 1e-5).all(), "the image is no test: one chain of additions is good enough"
    y = np.full((1, 3), np.nan, "float32")
    run("avgpool2d.forward_global", 1, x=x, y=y, pixels=40_000, C=3)
    # 625 blocks added one after the other, each rounding by at most 6e-8 of the sum: about sqrt(625) * 3e-8
    np.testing.assert_allclose(y, exact, rtol=1e-6)


def test_two_threads_give_the_same_bits():
    N, C = 3, 33
    for geometry in dict(H=40, W=40, kernel=(3, 3), stride=(2, 2), pads=(1, 1, 1, 1)), dict(
            H=41, W=40, kernel=(2, 2), stride=(2, 2)):
        f = average_fields(geometry, C, count_include_pad=1)
        x = random((N, f["H"], f["W"], C), "float32")
        wide = np.concatenate([x, x + 1], 1)
        pixels = wide.shape[1] * wide.shape[2]
        results = []
        for threads in 1, 2:
            y, small = np.full((N, f["OH"], f["OW"], C), np.nan, "float32"), np.full((N, C), np.nan, "float32")
            dx, spread = np.full(x.shape, np.nan, "float32"), np.full(wide.shape, np.nan, "float32")
            run("avgpool2d.forward", N, threads, x=x, y=y, **f)
            run("avgpool2d.backward", N, threads, dy=y, dx=dx, accumulate=0, **f)
            run("avgpool2d.forward_global", N, threads, x=wide, y=small, pixels=pixels, C=C)
            run("avgpool2d.backward_global", N, threads, dy=small, dx=spread, pixels=pixels, C=C, accumulate=0)
            results.append([array.tobytes() for array in (y, small, dx, spread)])
        assert results[0] == results[1]
