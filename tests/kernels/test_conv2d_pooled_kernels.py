"""The kernel that convolves and pools at once, against plain loops on whole numbers, where nothing is rounded."""
import numpy as np
import pytest

from ..oracles import conv2d, max_pool2d
from ..rows import run


def case(C=1, K=6, H=9, W=12, R=3, S=3, pads=(1, 1), dilation=1, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.integers(-2, 3, (3, C, H, W)).astype(float)
    weight = rng.integers(-2, 3, (K, C, R, S)).astype(float)
    return x, weight, rng.integers(-2, 3, K).astype(float), pads, dilation


def expected(x, weight, bias, pads, dilation):
    y = conv2d(x, weight, bias, pads=(*pads, *pads), dilation=(dilation, 1))
    best, winners = max_pool2d(y, (2, 2), (2, 2))
    index = np.zeros(best.shape, int)
    for (n, k, ph, pw), (h, w) in winners.items():
        index[n, k, ph, pw] = 2 * (h - 2 * ph) + w - 2 * pw
    return best.transpose(0, 2, 3, 1), index.transpose(0, 2, 3, 1)


def pooled(x, weight, bias, pads, dilation, dtype="float32", threads=1, low=-np.inf, high=np.inf, wanted=True, band=2):
    N, C, H, W = x.shape
    K, _, R, S = weight.shape
    PH, PW = (H + 2 * pads[0] - (R - 1) * dilation) // 2, (W + 2 * pads[1] - S + 1) // 2
    lanes = 16
    columns = 2 * -(-PW // lanes) * lanes + S - 1
    chunks = 4
    size = chunks * C * (2 * band + (R - 1) * dilation) * columns
    y = np.full((N, PH, PW, K), np.nan, dtype)
    indices = np.full(y.shape, 99, np.uint8) if wanted else None
    run("conv2d_pooled.forward", N, threads, dtype, x=np.ascontiguousarray(x.transpose(0, 2, 3, 1)).astype(dtype),
        weight=np.ascontiguousarray(weight.transpose(2, 3, 1, 0)).astype(dtype),
        bias=None if bias is None else bias.astype(dtype), y=y, indices=indices, padded=np.full(size, np.nan, dtype), H=H, W=W,
        C=C, K=K, R=R, S=S, dilation_h=dilation, pad_top=pads[0], pad_left=pads[1], PH=PH, PW=PW, band=band, columns=columns,
        padded_size=size, chunks=chunks, low=float(low), high=float(high))
    return y, indices


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("options", [
    {}, {"K": 1}, {"K": 4}, {"K": 5}, {"K": 8}, {"K": 13}, {"C": 3}, {"C": 2, "K": 7, "R": 5, "S": 2},
    {"H": 2, "W": 3, "R": 1, "S": 1}, {"W": 75, "S": 5, "pads": (0, 2)}, {"H": 12, "dilation": 2},
    {"pads": (2, 3), "R": 5, "S": 7}, {"pads": (0, 0), "H": 8, "W": 7}])
def test_pooled_convolution(options, dtype):
    x, weight, bias, pads, dilation = case(**options)
    best, index = expected(x, weight, bias, pads, dilation)
    for threads, band in (1, 2), (2, 1), (2, 3):
        y, indices = pooled(x, weight, bias, pads, dilation, dtype, threads, band=band)
        np.testing.assert_array_equal(y, best)
        np.testing.assert_array_equal(indices, index)
    np.testing.assert_array_equal(pooled(x, weight, bias, pads, dilation, dtype, low=-1, high=2, wanted=False)[0],
                                  best.clip(-1, 2))
    np.testing.assert_array_equal(pooled(x, weight, None, pads, dilation, dtype)[0],
                                  expected(x, weight, None, pads, dilation)[0])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_nan_wins_and_infinity_counts(dtype):
    x, weight, bias, pads, dilation = case(K=7, H=10, W=40)
    weight[:] = 0
    weight[:, :, 1, 1] = 1          # a copy of the image, so that every place of a window comes up
    x[0, 0, ::3, ::5] = np.nan
    x[1, 0, :, ::3] = -np.inf
    x[2, 0, 4:8, 2:11] = np.inf
    weight, pads = weight[:, :, 1:2, 1:2], (0, 0)
    best, index = expected(x, weight, bias, pads, dilation)
    y, indices = pooled(x, weight, bias, pads, dilation, dtype)
    np.testing.assert_array_equal(y, best)
    np.testing.assert_array_equal(indices, index)
    assert np.isnan(best).any() and np.isinf(best).any() and set(np.unique(index)) == {0, 1, 2, 3}
