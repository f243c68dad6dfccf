"""Quantizing as compiled, against numpy in float64."""
import numpy as np
import pytest

from tests.rows import run

DTYPES = pytest.mark.parametrize("dtype", ["float32", "float64"])


@DTYPES
@pytest.mark.parametrize("outer, C, inner, batch", [
    (1, 1, 1, 1), (5, 1, 1, 3), (1, 1, 33, 2), (4, 3, 1, 2), (2, 17, 1, 1), (2, 5, 7, 3), (1, 33, 1, 3), (3, 1, 9001, 2),
    (300, 40, 1, 2)])
def test_quantize_and_back(outer, C, inner, batch, dtype):
    rng = np.random.default_rng(outer * C)
    x = (rng.integers(-2000, 2000, (batch * outer, C, inner)) * 0.125).astype(dtype)     # halves of steps, and beyond
    scale, zero = (2.0 ** rng.integers(-3, 2, C)).astype(dtype), rng.integers(-9, 9, C).astype(dtype)
    per_row = scale[:, None], zero[:, None]
    fields = {"scale": scale, "zero": zero, "outer": outer, "C": C, "inner": inner}
    expected = np.clip(np.rint(x / per_row[0]) + per_row[1], -128, 127)
    found = []
    for threads in 1, 2:
        y = np.full_like(x, np.nan)
        run("quantize.linear", batch, threads, dtype, x=x.copy(), y=y, kind=0, low=-128.0, high=127.0, **fields)
        found.append(y)
        np.testing.assert_array_equal(y, expected)
    assert found[0].tobytes() == found[1].tobytes()
    back, both = expected.copy(), x.copy()
    run("quantize.linear", batch, 1, dtype, x=back, y="x", kind=1, low=0.0, high=0.0, **fields)
    np.testing.assert_array_equal(back, (expected - per_row[1]) * per_row[0])
    run("quantize.linear", batch, 1, dtype, x=both, y="x", kind=2, low=-128.0, high=127.0, **fields)
    np.testing.assert_array_equal(both, back)


@DTYPES
def test_casts_wrap_around_and_what_is_not_exact_is_nan(dtype):
    most = 2.0**24 if dtype == "float32" else 2.0**53
    rows = [("int8", [0, 127, 128, -128, -129, 300, -300, 2.9, -2.9, 1000, np.nan, np.inf, -np.inf, most, -most, most * 2]),
            ("uint8", [0, 255, 256, -1, -256, 300, 1e6]), ("uint16", [-1, 65536, 131071]), ("int16", [32768, -32769]),
            ("int32", [2.0**23, -2.0**23, most, most * 2]), ("uint64", [5, -1, most]), ("int64", [5, -1, -most, most * 4])]
    for kind, numbers in rows:
        x = np.array(numbers * 3, dtype)
        limits = np.iinfo(kind)
        count = limits.max - limits.min + 1
        expected = []
        for value in x.tolist():
            exact = np.isfinite(value) and abs(value) <= most
            whole = (int(value) - limits.min) % count + limits.min if exact else None
            expected.append(float(whole) if exact and abs(whole) <= most else np.nan)
        y = np.zeros_like(x)
        run("unary.forward", 1, dtype=dtype, x=x, y=y, size=x.size, kind=25, a=float(limits.min), b=float(count), c=most)
        np.testing.assert_array_equal(y, np.array(expected, dtype), kind)
