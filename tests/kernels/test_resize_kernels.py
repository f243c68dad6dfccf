"""Weighted sums along an axis as compiled, against plain loops in float64."""
import numpy as np
import pytest

from tests.rows import run

TOLERANCE = {"float32": 4e-6, "float64": 1e-14}
DTYPES = pytest.mark.parametrize("dtype", ["float32", "float64"])
# batch, outer per sample, length, positions, inner: some larger than a block, whose last one is not whole
SHAPES = pytest.mark.parametrize("batch, outer, length, positions, inner", [
    (1, 1, 1, 1, 1), (2, 3, 5, 7, 1), (3, 2, 6, 4, 3), (1, 4, 3, 9, 17), (2, 1, 4, 5, 33), (1, 2, 3, 2, 4096),
    (2, 1, 2, 3, 9001), (1, 700, 4, 8, 1)])


def random_table(length, positions, dtype):
    """Taps in any order, some twice; the first position has none, if there are others."""
    rng = np.random.default_rng([length, positions])
    counts = rng.integers(1, 5, positions)
    counts[0] = positions == 1
    begin = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    return begin, rng.integers(0, length, begin[-1]).astype(np.int32), rng.normal(size=begin[-1]).astype(dtype)


def plain(x, begin, index, weight, fill):
    """x (rows, length, inner)"""
    y = np.full((x.shape[0], begin.size - 1, x.shape[2]), fill)
    for position in range(begin.size - 1):
        if begin[position] < begin[position + 1]:
            y[:, position] = sum(float(weight[t]) * x[:, index[t]] for t in range(begin[position], begin[position + 1]))
    return y


@DTYPES
@SHAPES
@pytest.mark.parametrize("accumulate", [None, 0, 1])
def test_blend(batch, outer, length, positions, inner, accumulate, dtype):
    """accumulate None: forward; else backward."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(batch * outer, length, inner)).astype(dtype)
    before = rng.normal(size=(batch * outer, positions, inner)).astype(dtype)
    begin, index, weight = random_table(length, positions, dtype)
    common = {"begin": begin, "index": index, "weight": weight, "outer": outer, "length": length, "positions": positions,
              "inner": inner, "taps": index.size}
    expected = plain(x.astype(np.float64), begin, index, weight, -3.0 if accumulate is None else 0.0)
    found = []
    for threads in (1, 2):
        if accumulate is None:
            y = np.full_like(before, np.nan)
            run("resize.forward", batch, threads, dtype, x=x, y=y, fill=-3.0, **common)
        else:
            y = before.copy() if accumulate else np.full_like(before, np.nan)
            run("resize.backward", batch, threads, dtype, dy=x, dx=y, accumulate=accumulate, **common)
        found.append(y)
    assert found[0].tobytes() == found[1].tobytes()
    expected = expected + before if accumulate else expected
    assert np.abs(found[0] - expected).max() <= TOLERANCE[dtype] * max(1.0, np.abs(expected).max())
