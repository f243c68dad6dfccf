"""Reductions along the middle axis of (outer, C, inner), and the places of extremes."""
import numpy as np
import pytest

from tests.rows import run

SUM, MAX, MIN, PRODUCT, MAGNITUDES, SQUARES, LENGTH, LOG_SUM, LOG_SUM_EXP = range(9)
REDUCED = {SUM: lambda x: 0.5 * x.sum(1), MAX: lambda x: x.max(1), MIN: lambda x: x.min(1), PRODUCT: lambda x: x.prod(1),
           MAGNITUDES: lambda x: np.abs(x).sum(1), SQUARES: lambda x: (x * x).sum(1), LENGTH: lambda x: np.sqrt((x * x).sum(1)),
           LOG_SUM: lambda x: np.log(x.sum(1)), LOG_SUM_EXP: lambda x: np.log(np.exp(x).sum(1))}
READS_X = (MAX, MIN, PRODUCT, MAGNITUDES, SQUARES, LENGTH, LOG_SUM_EXP)
READS_Y = (MAX, MIN, LENGTH, LOG_SUM, LOG_SUM_EXP)
SHAPES = [(1, 1, 1), (2, 3, 1), (3, 17, 1), (1, 33, 1), (2, 3, 5), (1, 5, 17), (2, 2, 33), (3, 300, 3), (2, 700, 1)]


def slope(x, kind):
    """The derivative of each group's result by each of its numbers."""
    y = REDUCED[kind](x)[:, None]
    with np.errstate(divide="ignore"):
        return {SUM: lambda: 0.5 + 0 * x, MAX: lambda: (x == y) * 1.0, MIN: lambda: (x == y) * 1.0, PRODUCT: lambda: y / x,
                MAGNITUDES: lambda: np.sign(x), SQUARES: lambda: 2 * x, LENGTH: lambda: x / y,
                LOG_SUM: lambda: 1 / x.sum(1, keepdims=True) + 0 * x, LOG_SUM_EXP: lambda: np.exp(x - y)}[kind]()


@pytest.mark.parametrize("dtype, tolerance", [("float64", 1e-12), ("float32", 1e-5)])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_kind_both_ways(shape, dtype, tolerance):
    outer, C, inner = shape
    rng = np.random.default_rng(3)
    for kind in REDUCED:
        batch = 1 + kind % 3
        # products of many numbers stay near 1, sums above 0
        x = rng.uniform(0.9, 1.1, (batch * outer, C, inner)).astype(dtype)
        if kind not in (PRODUCT, LOG_SUM):
            x *= rng.choice([-1, 1], x.shape)
        wide, dy = x.astype(np.float64), rng.normal(size=(batch * outer, inner)).astype(dtype)
        fields = {"outer": outer, "C": C, "inner": inner, "kind": kind, "scale": 0.5}
        found = []
        for threads in (1, 2):
            y, dx, more = (np.full(n, np.nan, dtype) for n in (dy.shape, x.shape, x.shape))
            run("reduction.forward", batch, threads, dtype, x=x.copy(), y=y, **fields)
            given = {"x": x.copy() if kind in READS_X else None, "y": y.copy() if kind in READS_Y else None, "dy": dy.copy()}
            run("reduction.backward", batch, threads, dtype, dx=dx, accumulate=0, **given, **fields)
            more[...] = 3
            run("reduction.backward", batch, threads, dtype, dx=more, accumulate=1, **given, **fields)
            found.append((y, dx, more))
        expected = slope(wide, kind) * dy[:, None]
        np.testing.assert_allclose(found[0][0], REDUCED[kind](wide), rtol=tolerance, atol=tolerance * C, err_msg=str(kind))
        np.testing.assert_allclose(found[0][1], expected, rtol=50 * tolerance, atol=tolerance * 10, err_msg=str(kind))
        np.testing.assert_allclose(found[0][2], expected + 3, rtol=50 * tolerance, atol=tolerance * 10, err_msg=str(kind))
        assert all(a.tobytes() == b.tobytes() for a, b in zip(*found, strict=True)), kind


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", SHAPES)
def test_places(shape, dtype):
    outer, C, inner = shape
    x = np.random.default_rng(3).integers(-3, 3, (2 * outer, C, inner)).astype(dtype)
    for sign in (1, -1):
        for last in (0, 1):
            y = np.full((2 * outer, inner), np.nan, dtype)
            run("places.forward", 2, 2, dtype, x=x.copy(), y=y, outer=outer, C=C, inner=inner, sign=sign, last=last)
            signed = sign * x
            expected = C - 1 - signed[:, ::-1].argmax(1) if last else signed.argmax(1)
            np.testing.assert_array_equal(y, expected)


def test_long_sums_keep_their_digits():
    x = np.full((1, 2**20, 1), 0.1, np.float32)
    y = np.full((1, 1), np.nan, np.float32)
    run("reduction.forward", 1, x=x, y=y, outer=1, C=2**20, inner=1, kind=SUM, scale=1.0)
    np.testing.assert_allclose(y, 2**20 * np.float64(np.float32(0.1)), rtol=5e-6)
    for inner in (3, 17):
        x = np.full((1, 2**16, inner), 0.1, np.float32)
        y = np.full((1, inner), np.nan, np.float32)
        run("reduction.forward", 1, x=x, y=y, outer=1, C=2**16, inner=inner, kind=SUM, scale=1.0)
        np.testing.assert_allclose(y, 2**16 * np.float64(np.float32(0.1)), rtol=5e-6)
