"""Register tiles against numpy, on this CPU's instruction set; test_simd.py runs them for narrower ones too."""
import numpy as np
import pytest

from microcnn.kernels import simd
from tests.kernels.jitted import compiled, tile_functions

DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64])


@DTYPES
@pytest.mark.parametrize("mr, nv", [(1, 1), (4, 1), (3, 2), (2, 4)])
def test_tiles(mr, nv, dtype):
    product, fused, stepped = compiled((mr, nv), lambda: tile_functions(mr, nv))
    width, depth = nv * simd.lanes_of(np.dtype(dtype)), 7
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(mr, depth)).astype(dtype), rng.normal(size=(depth, width)).astype(dtype)
    bias = rng.normal(size=width).astype(dtype)
    order = rng.permutation(mr)
    a_rows = np.append(-10**9, order * depth)
    tolerance = 1e-5 if dtype == np.float32 else 1e-13
    for row_count in range(1, mr + 1):
        for count in {1, width // 2 + 1, width - 1, width} - {0}:
            c = np.full((mr + 1, width + 3), 77, dtype)
            inside = np.zeros(c.shape, bool)
            inside[:row_count, :count] = True
            product(a.reshape(-1), depth, b.reshape(-1), width, depth, c.reshape(-1), width + 3, row_count, count)
            np.testing.assert_allclose(c[:row_count, :count], (a @ b)[:row_count, :count], rtol=tolerance,
                                       atol=tolerance)
            assert (c[~inside] == 77).all()
            if count <= width - width // nv:        # the last vector would be empty
                continue
            c[inside] = 0.5
            fused(a.reshape(-1), a_rows, b.reshape(-1), width, depth, bias, dtype(-1), dtype(1), c.reshape(-1),
                  width + 3, row_count, count)
            expected = np.clip(bias + a[order] @ b + 0.5, -1, 1)[:row_count, :count]
            np.testing.assert_allclose(c[:row_count, :count], expected, rtol=tolerance, atol=tolerance)
            assert (c[~inside] == 77).all()


@DTYPES
@pytest.mark.parametrize("mr, nv", [(4, 1), (3, 2)])
def test_steps_of_a_tile(mr, nv, dtype):
    """No step, fewer than a register has lanes, several registers full and some more."""
    *_, stepped = compiled((mr, nv), lambda: tile_functions(mr, nv))
    width = nv * simd.lanes_of(np.dtype(dtype))
    rng = np.random.default_rng(1)
    tolerance = 1e-5 if dtype == np.float32 else 1e-13
    for depth in (0, 1, 3, 4, 5, 11):
        for count in (width - 1, width):
            a, b = rng.normal(size=(mr, depth)).astype(dtype), rng.normal(size=(depth, count)).astype(dtype)
            for row_count in (1, mr):
                c = np.full((mr, width), 77, dtype)
                stepped(a.reshape(-1), depth, b.reshape(-1), count, depth, c.reshape(-1), width, row_count, count,
                        count == width)
                np.testing.assert_allclose(c[:row_count, :count], (a @ b)[:row_count], rtol=tolerance, atol=tolerance)
                assert (c[row_count:] == 77).all() and (c[:, count:] == 77).all()


@DTYPES
def test_tile_clamp_keeps_nan(dtype):
    _, fused, _ = compiled((1, 1), lambda: tile_functions(1, 1))
    width = simd.lanes_of(np.dtype(dtype))
    c = np.full(width, np.nan, dtype)
    fused(np.ones(1, dtype), np.zeros(2, np.int64), np.ones(width, dtype), width, 1, np.ones(width, dtype), dtype(0),
          dtype(6), c, width, 1, width)
    assert np.isnan(c).all()
