"""The bits of a clamp and the gradient that they let pass, against numpy."""
import numpy as np
import pytest

from tests.rows import run

DTYPES = pytest.mark.parametrize("dtype", ["float32", "float64"])
BOUNDS = pytest.mark.parametrize("low, high", [(0.0, np.inf), (0.0, 0.7), (-0.3, 0.9)])
SIZES = pytest.mark.parametrize("size", [1, 15, 16, 17, 48, 8192, 8200, 70_001])


def clamped(size, low, high, dtype):
    rng = np.random.default_rng(size)
    y = np.clip(rng.standard_normal(size), low, high).astype(dtype)     # many numbers are just at the bounds
    y[rng.integers(0, size, 1 + size // 20)] = np.nan
    return y, (y > np.dtype(dtype).type(low)) & (y < np.dtype(dtype).type(high))


def packed(y, low, high, threads=1):
    mask = np.full(-(-y.size // 16), 0xFFFF, np.uint16)
    run("masks.pack", 1, threads, y.dtype.name, y=y, mask=mask, size=y.size, low=float(low), high=float(high))
    return mask


@DTYPES
@BOUNDS
@SIZES
def test_pack(size, low, high, dtype):
    y, inside = clamped(size, low, high, dtype)
    expected = np.zeros(-(-size // 16) * 16, bool)
    expected[:size] = inside
    for threads in (1, 2):
        mask = packed(y, low, high, threads)
        np.testing.assert_array_equal(np.unpackbits(mask.view(np.uint8), bitorder="little"), expected)


@DTYPES
@pytest.mark.parametrize("accumulate", [0, 1])
@SIZES
def test_backward(size, accumulate, dtype):
    y, inside = clamped(size, 0.0, np.inf, dtype)
    rng = np.random.default_rng(1)
    dy, before = (rng.standard_normal(size).astype(dtype) for _ in range(2))
    mask = packed(y, 0.0, np.inf)
    expected = np.where(inside, dy, 0).astype(dtype)
    for threads in (1, 2):
        dx = before.copy()
        run("masks.backward", 1, threads, dtype, mask=mask, dy=dy, dx=dx, size=size, accumulate=accumulate)
        np.testing.assert_array_equal(dx, before + expected if accumulate else expected)
    own = dy.copy()
    run("masks.backward", 1, 1, dtype, mask=mask, dy="dx", dx=own, size=size, accumulate=0)
    np.testing.assert_array_equal(own, expected)


def test_samples_follow_each_other():
    """17 numbers of a sample take no whole number of words: the next one's bits come at once."""
    y = np.random.default_rng(0).standard_normal(3 * 17).astype(np.float32)
    mask = np.zeros(4, np.uint16)
    run("masks.pack", 3, y=y, mask=mask, size=17, low=0.0, high=np.inf)
    np.testing.assert_array_equal(np.unpackbits(mask.view(np.uint8), bitorder="little")[:51], y > 0)
