"""The pooling kernels against plain loops in float64."""
import numpy as np
import pytest

from ..rows import run

TOLERANCE = {"float32": 1e-5, "float64": 1e-12}
INDEX = {1: np.uint8, 2: np.uint16, 4: np.int32}

# H W kernel stride pads (top left bottom right) dilation; OH and OW follow, rounding up where ceil is set
GEOMETRIES = [
    dict(H=8, W=6, kernel=(2, 2), stride=(2, 2)),
    dict(H=7, W=9, kernel=(2, 2), stride=(2, 2)),
    dict(H=7, W=8, kernel=(2, 2), stride=(2, 2), ceil=True),
    dict(H=9, W=10, kernel=(3, 3), stride=(2, 2), pads=(1, 1, 1, 1)),
    dict(H=9, W=10, kernel=(3, 3), stride=(2, 2), pads=(0, 1, 1, 0), ceil=True),
    dict(H=6, W=7, kernel=(3, 2), stride=(1, 1), pads=(1, 0, 0, 1)),
    dict(H=9, W=5, kernel=(1, 4), stride=(3, 2), pads=(0, 2, 0, 1)),
    dict(H=9, W=8, kernel=(2, 2), stride=(3, 4)),
    dict(H=1, W=1, kernel=(3, 3), stride=(3, 3), pads=(1, 1, 1, 1)),
    dict(H=6, W=5, kernel=(6, 5), stride=(1, 1)),
]
DILATED = [
    dict(H=9, W=10, kernel=(3, 3), stride=(1, 2), pads=(2, 1, 2, 1), dilation=(2, 2)),
    dict(H=11, W=9, kernel=(2, 3), stride=(2, 1), pads=(1, 2, 0, 1), dilation=(3, 1)),
]


def _extent(size, kernel, stride, before, after, dilation, ceil):
    room = size + before + after - dilation * (kernel - 1) - 1
    count = (room + (stride - 1 if ceil else 0)) // stride + 1
    return count - 1 if ceil and (count - 1) * stride >= size + before else count


def _fields(H, W, kernel, stride, pads=(0, 0, 0, 0), dilation=(1, 1), ceil=False):
    return dict(H=H, W=W, OH=_extent(H, kernel[0], stride[0], pads[0], pads[2], dilation[0], ceil),
                OW=_extent(W, kernel[1], stride[1], pads[1], pads[3], dilation[1], ceil),
                kernel_h=kernel[0], kernel_w=kernel[1], stride_h=stride[0], stride_w=stride[1],
                pad_top=pads[0], pad_left=pads[1], pad_bottom=pads[2], pad_right=pads[3],
                dilation_h=dilation[0], dilation_w=dilation[1])


def _max_fields(geometry, C, **more):
    fields = _fields(**geometry)
    return {name: fields[name] for name in fields if name not in ("pad_bottom", "pad_right")} | {"C": C} | more


def _average_fields(geometry, C, **more):
    fields = _fields(**geometry)
    return {name: fields[name] for name in fields if name not in ("dilation_h", "dilation_w")} | {"C": C} | more


def _inside(f, oh, ow):
    """(index, ih, iw) of every position of a window that lies inside the image."""
    for r in range(f["kernel_h"]):
        for s in range(f["kernel_w"]):
            ih = oh * f["stride_h"] - f["pad_top"] + r * f.get("dilation_h", 1)
            iw = ow * f["stride_w"] - f["pad_left"] + s * f.get("dilation_w", 1)
            if 0 <= ih < f["H"] and 0 <= iw < f["W"]:
                yield r * f["kernel_w"] + s, ih, iw


def _max_loops(x, f):
    N, _, _, C = x.shape
    y = np.full((N, f["OH"], f["OW"], C), -np.inf)
    indices = np.zeros(y.shape, int)
    for n, oh, ow, c in np.ndindex(y.shape):
        for k, (index, ih, iw) in enumerate(_inside(f, oh, ow)):
            value, best = x[n, ih, iw, c], y[n, oh, ow, c]
            if k == 0 or value > best or (np.isnan(value) and not np.isnan(best)):
                y[n, oh, ow, c], indices[n, oh, ow, c] = value, index
    return y, indices


def _unpool_loops(indices, dy, f):
    N, _, _, C = dy.shape
    dx = np.zeros((N, f["H"], f["W"], C))
    for n, oh, ow, c in np.ndindex(dy.shape):
        for index, ih, iw in _inside(f, oh, ow):
            if index == indices[n, oh, ow, c]:
                dx[n, ih, iw, c] += dy[n, oh, ow, c]
    return dx


def _divisor(f, oh, ow, count_include_pad):
    if not count_include_pad:
        return max(1, sum(1 for _ in _inside(f, oh, ow)))
    top, left = oh * f["stride_h"] - f["pad_top"], ow * f["stride_w"] - f["pad_left"]
    return ((min(top + f["kernel_h"], f["H"] + f["pad_bottom"]) - top)
            * (min(left + f["kernel_w"], f["W"] + f["pad_right"]) - left))


def _average_loops(x, f, count_include_pad):
    N, _, _, C = x.shape
    y = np.zeros((N, f["OH"], f["OW"], C))
    for n, oh, ow in np.ndindex(y.shape[:3]):
        for _, ih, iw in _inside(f, oh, ow):
            y[n, oh, ow] += x[n, ih, iw] / _divisor(f, oh, ow, count_include_pad)
    return y


def _spread_loops(dy, f, count_include_pad):
    N, _, _, C = dy.shape
    dx = np.zeros((N, f["H"], f["W"], C))
    for n, oh, ow in np.ndindex(dy.shape[:3]):
        for _, ih, iw in _inside(f, oh, ow):
            dx[n, ih, iw] += dy[n, oh, ow] / _divisor(f, oh, ow, count_include_pad)
    return dx


def _close(actual, expected, dtype):
    np.testing.assert_allclose(actual, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def _random(shape, dtype, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def _max_pool(x, f, index_bytes=1, threads=1):
    y = np.full((len(x), f["OH"], f["OW"], f["C"]), np.nan, x.dtype)
    indices = np.full(y.shape, 99, INDEX[index_bytes]) if index_bytes else None
    run("pool2d.maxpool_forward", len(x), threads, str(x.dtype), x=x, y=y, indices=indices, index_bytes=index_bytes,
        **f)
    return y, indices


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("C", [1, 3, 5, 17, 33])
@pytest.mark.parametrize("geometry", GEOMETRIES + DILATED)
def test_max_pooling_and_its_gradient(geometry, C, dtype):
    f = _max_fields(geometry, C)
    for batch, index_bytes in (1, 1), (2, 2), (3, 4):
        # few different values, so that there are ties
        x = np.round(_random((batch, f["H"], f["W"], C), dtype, batch) * 2)
        y, indices = _max_pool(x, f, index_bytes)
        expected, winners = _max_loops(x, f)
        np.testing.assert_array_equal(y, expected)
        np.testing.assert_array_equal(indices, winners)
        np.testing.assert_array_equal(_max_pool(x, f, 0)[0], y)
        dy = _random(y.shape, dtype, 7)
        dx = np.full(x.shape, np.nan, dtype)
        run("pool2d.maxpool_backward", batch, 1, dtype, indices=indices, dy=dy, dx=dx, index_bytes=index_bytes,
            accumulate=0, **f)
        _close(dx, _unpool_loops(indices, dy.astype(float), f), dtype)
        start = _random(x.shape, dtype, 8)
        total = start.copy()
        run("pool2d.maxpool_backward", batch, 1, dtype, indices=indices, dy=dy, dx=total, index_bytes=index_bytes,
            accumulate=1, **f)
        _close(total, start + dx.astype(float), dtype)


@pytest.mark.parametrize("C", [1, 17])
def test_nan_wins_and_minus_infinity_has_a_place(C):
    f = _max_fields(GEOMETRIES[3], C)
    x = _random((2, f["H"], f["W"], C), "float32")
    x[:, ::3, ::2] = np.nan
    x[:, 5:] = -np.inf
    y, indices = _max_pool(x, f)
    expected, winners = _max_loops(x, f)
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(indices, winners)


def test_a_window_outside_the_image_gives_minus_infinity_and_passes_nothing_back():
    f = _max_fields(dict(H=2, W=3, kernel=(2, 2), stride=(2, 2), pads=(2, 2, 0, 0)), 5)
    x = _random((1, 2, 3, 5), "float32")
    y, indices = _max_pool(x, f)
    np.testing.assert_array_equal(y, _max_loops(x, f)[0])
    assert np.isneginf(y[0, 0]).all() and (indices[0, 0] == 0).all()
    dx = np.full(x.shape, np.nan, "float32")
    run("pool2d.maxpool_backward", 1, indices=indices, dy=np.ones_like(y), dx=dx, index_bytes=1, accumulate=0, **f)
    np.testing.assert_array_equal(dx, _unpool_loops(indices, np.ones(y.shape), f))


@pytest.mark.parametrize("index_bytes, kernel", [(1, 16), (2, 40), (4, 257)])
def test_indices_up_to_the_largest_of_their_type(index_bytes, kernel):
    f = _max_fields(dict(H=kernel, W=kernel, kernel=(kernel, kernel), stride=(1, 1)), 2)
    x = np.zeros((1, kernel, kernel, 2), "float32")
    x[0, -1, -1] = 1
    _, indices = _max_pool(x, f, index_bytes)
    assert (indices == kernel * kernel - 1).all()
    dx = np.full(x.shape, np.nan, "float32")
    run("pool2d.maxpool_backward", 1, indices=indices, dy=np.full((1, 1, 1, 2), 3, "float32"), dx=dx,
        index_bytes=index_bytes, accumulate=0, **f)
    np.testing.assert_array_equal(dx, 3 * x)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("C", [1, 3, 5, 17, 33])
@pytest.mark.parametrize("count_include_pad", [0, 1])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_average_pooling_and_its_gradient(geometry, count_include_pad, C, dtype):
    f = _average_fields(geometry, C, count_include_pad=count_include_pad)
    for batch in 1, 3:
        x = _random((batch, f["H"], f["W"], C), dtype, batch)
        y = np.full((batch, f["OH"], f["OW"], C), np.nan, dtype)
        run("pool2d.avgpool_forward", batch, 1, dtype, x=x, y=y, **f)
        _close(y, _average_loops(x.astype(float), f, count_include_pad), dtype)
        dy = _random(y.shape, dtype, 7)
        dx = np.full(x.shape, np.nan, dtype)
        run("pool2d.avgpool_backward", batch, 1, dtype, dy=dy, dx=dx, accumulate=0, **f)
        _close(dx, _spread_loops(dy.astype(float), f, count_include_pad), dtype)
        start = _random(x.shape, dtype, 8)
        total = start.copy()
        run("pool2d.avgpool_backward", batch, 1, dtype, dy=dy, dx=total, accumulate=1, **f)
        _close(total, start + dx.astype(float), dtype)


def test_a_window_that_counts_nothing_averages_to_zero():
    f = _average_fields(dict(H=2, W=3, kernel=(2, 2), stride=(2, 2), pads=(2, 2, 0, 0)), 5, count_include_pad=0)
    x = _random((1, 2, 3, 5), "float32")
    y = np.full((1, f["OH"], f["OW"], 5), np.nan, "float32")
    run("pool2d.avgpool_forward", 1, x=x, y=y, **f)
    assert (y[0, 0] == 0).all()
    _close(y, _average_loops(x.astype(float), f, 0), "float32")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("C", [1, 3, 5, 17, 33])
@pytest.mark.parametrize("pixels", [1, 6, 64, 131])
def test_global_average_pooling_and_its_gradient(pixels, C, dtype):
    for batch in 1, 3:
        x = _random((batch, pixels, C), dtype, batch)
        y = np.full((batch, C), np.nan, dtype)
        run("pool2d.globalavgpool_forward", batch, 1, dtype, x=x, y=y, pixels=pixels, C=C)
        _close(y, x.astype(float).mean(1), dtype)
        dy = _random(y.shape, dtype, 7)
        expected = np.repeat(dy.astype(float)[:, None] / pixels, pixels, 1)
        dx = np.full(x.shape, np.nan, dtype)
        run("pool2d.globalavgpool_backward", batch, 1, dtype, dy=dy, dx=dx, pixels=pixels, C=C, accumulate=0)
        _close(dx, expected, dtype)
        total = x.copy()
        run("pool2d.globalavgpool_backward", batch, 1, dtype, dy=dy, dx=total, pixels=pixels, C=C, accumulate=1)
        _close(total, x + expected, dtype)


def test_a_large_image_averages_without_losing_digits():
    x = (1001.3 + _random((1, 40_000, 3), "float32")).astype("float32")
    exact = x.astype(float).mean(1)
    one_chain = np.cumsum(x, 1, dtype="float32")[:, -1] / np.float32(40_000)
    assert (abs(one_chain / exact - 1) > 1e-5).all(), "the image is no test: one chain of additions is good enough"
    y = np.full((1, 3), np.nan, "float32")
    run("pool2d.globalavgpool_forward", 1, x=x, y=y, pixels=40_000, C=3)
    # 625 blocks added one after the other, each rounding by at most 6e-8 of the sum: about sqrt(625) * 3e-8
    np.testing.assert_allclose(y, exact, rtol=1e-6)


def test_two_threads_give_the_same_bits():
    N, C = 3, 33
    for geometry in dict(H=40, W=40, kernel=(3, 3), stride=(2, 2), pads=(1, 1, 1, 1)), dict(
            H=41, W=40, kernel=(2, 2), stride=(2, 2)):
        f = _max_fields(geometry, C)
        g = _average_fields(geometry, C, count_include_pad=1)
        x = _random((N, f["H"], f["W"], C), "float32")
        results = []
        for threads in 1, 2:
            y, indices = _max_pool(x, f, 1, threads)
            outputs = [np.full(x.shape, np.nan, "float32") for _ in range(3)]
            average, small = np.full(y.shape, np.nan, "float32"), np.full((N, C), np.nan, "float32")
            run("pool2d.maxpool_backward", N, threads, indices=indices, dy=y, dx=outputs[0], index_bytes=1,
                accumulate=0, **f)
            run("pool2d.avgpool_forward", N, threads, x=x, y=average, **g)
            run("pool2d.avgpool_backward", N, threads, dy=y, dx=outputs[1], accumulate=0, **g)
            pixels = f["H"] * f["W"] * 2
            wide = np.concatenate([x, x + 1], 1)
            run("pool2d.globalavgpool_forward", N, threads, x=wide, y=small, pixels=pixels, C=C)
            spread = np.full(wide.shape, np.nan, "float32")
            run("pool2d.globalavgpool_backward", N, threads, dy=small, dx=spread, pixels=pixels, C=C, accumulate=0)
            results.append([y, indices, average, small, spread, *outputs[:2]])
        for one, two in zip(*results, strict=True):
            assert one.tobytes() == two.tobytes()
