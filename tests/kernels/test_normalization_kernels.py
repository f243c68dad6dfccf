"""Group norm and layer norm on channels that lie last, and local response normalisation."""
import numpy as np
import pytest

from tests.rows import run

EPS = 1e-3


def close(found, expected, tolerance, what):
    scale = max(1.0, np.abs(expected).max())
    assert np.abs(found - expected).max() <= tolerance * scale, what


def gradients(x, dy, axes, scale):
    """(normalised, dx) of numbers normalised over the axes of x."""
    mean, inverse = x.mean(axes, keepdims=True), 1 / np.sqrt(x.var(axes, keepdims=True) + EPS)
    h, g = (x - mean) * inverse, dy * scale
    return h, inverse * (g - g.mean(axes, keepdims=True) - h * (g * h).mean(axes, keepdims=True))


@pytest.mark.parametrize("dtype, tolerance", [("float64", 1e-12), ("float32", 2e-5)])
@pytest.mark.parametrize("P, C, G, chunks", [
    (1, 3, 1, 1), (7, 5, 5, 2), (12, 33, 3, 5), (700, 17, 1, 3), (600, 4, 2, 1), (9, 34, 34, 9)])
def test_group_norm(P, C, G, chunks, dtype, tolerance):
    batch, rng = 3, np.random.default_rng(0)
    x, dy = rng.normal(2, 1, (batch, P, C)).astype(dtype), rng.normal(size=(batch, P, C)).astype(dtype)
    scale, bias = rng.normal(size=C).astype(dtype), rng.normal(size=C).astype(dtype)
    cut = (batch, P, G, C // G)
    h, dx = gradients(*(a.astype(np.float64).reshape(cut) for a in (x, dy)), (1, 3), scale.astype(np.float64).reshape(G, -1))
    h, dx = h.reshape(x.shape), dx.reshape(x.shape)
    fields = {"P": P, "C": C, "G": G, "chunks": chunks}
    found = []
    for threads in (1, 2):
        y, saved, scratch = (np.full(n, np.nan, dtype) for n in (x.shape, (batch, 2, C), (batch, chunks, 2, C)))
        run("normalization.group_forward", batch, threads, dtype, x=x.copy(), scale=scale.copy(), bias=bias.copy(), y=y,
            saved=saved, scratch=scratch, eps=EPS, **fields)
        plain = np.full(x.shape, np.nan, dtype)
        run("normalization.group_forward", batch, threads, dtype, x=x.copy(), scale=None, bias=None, y=plain,
            saved=saved, scratch=scratch, eps=EPS, **fields)
        got, dscale, dbias = np.full(x.shape, 1, dtype), np.full(C, np.nan, dtype), np.full(C, 2, dtype)
        run("normalization.group_backward", batch, threads, dtype, x=x.copy(), dy=dy.copy(), scale=scale.copy(), saved=saved,
            dx=got, dscale=dscale, dbias=dbias, scratch=scratch, accumulate=1, accumulate_scale=0, accumulate_bias=1, **fields)
        alone = np.full(C, np.nan, dtype)
        run("normalization.group_backward", batch, threads, dtype, x=x.copy(), dy=dy.copy(), scale=None, saved=saved, dx=None,
            dscale=None, dbias=alone, scratch=scratch, accumulate=0, accumulate_scale=0, accumulate_bias=0, **fields)
        found.append((y, plain, got, dscale, dbias, alone))
    expected = (h * scale + bias, h, dx + 1, (dy * h).sum((0, 1)), dy.sum((0, 1)) + 2, dy.sum((0, 1)))
    for name, one, want in zip(("y", "plain", "dx", "dscale", "dbias", "alone"), found[0], expected, strict=True):
        close(one, want, tolerance, name)
    assert all(a.tobytes() == b.tobytes() for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("dtype, tolerance", [("float64", 1e-12), ("float32", 2e-5)])
@pytest.mark.parametrize("rows, M, chunks", [(1, 1, 1), (3, 5, 2), (4, 17, 12), (2, 33, 1), (1, 5000, 3)])
def test_layer_norm(rows, M, chunks, dtype, tolerance):
    batch, rng = 3, np.random.default_rng(0)
    x, dy = rng.normal(2, 1, (batch * rows, M)).astype(dtype), rng.normal(size=(batch * rows, M)).astype(dtype)
    scale, bias = rng.normal(size=M).astype(dtype), rng.normal(size=M).astype(dtype)
    h, dx = gradients(x.astype(np.float64), dy.astype(np.float64), (1,), scale.astype(np.float64))
    fields = {"rows": rows, "M": M, "chunks": chunks}
    found = []
    for threads in (1, 2):
        y, saved, scratch = (np.full(n, np.nan, dtype) for n in (x.shape, (batch * rows, 2), (chunks, 2, M)))
        run("normalization.rows_forward", batch, threads, dtype, x=x.copy(), scale=scale.copy(), bias=bias.copy(), y=y,
            saved=saved, eps=EPS, **fields)
        got, dscale, dbias = np.full(x.shape, 1, dtype), np.full(M, 2, dtype), np.full(M, np.nan, dtype)
        run("normalization.rows_backward", batch, threads, dtype, x=x.copy(), dy=dy.copy(), scale=scale.copy(), saved=saved,
            dx=got, dscale=dscale, dbias=dbias, scratch=scratch, accumulate=1, accumulate_scale=1, accumulate_bias=0, **fields)
        over = dy.copy()
        run("normalization.rows_backward", batch, threads, dtype, x=x.copy(), dy="dx", scale=scale.copy(), saved=saved, dx=over,
            dscale=None, dbias=None, scratch=None, accumulate=0, accumulate_scale=0, accumulate_bias=0, **fields)
        found.append((y, got, dscale, dbias, over))
    expected = (h * scale + bias, dx + 1, (dy * h).sum(0) + 2, dy.sum(0), dx)
    for name, one, want in zip(("y", "dx", "dscale", "dbias", "in place"), found[0], expected, strict=True):
        close(one, want, tolerance, name)
    assert all(a.tobytes() == b.tobytes() for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("dtype, tolerance", [("float64", 1e-12), ("float32", 2e-5)])
@pytest.mark.parametrize("C, size, beta", [(1, 1, 0.75), (5, 3, 0.75), (17, 4, 0.5), (33, 7, 1.5), (3, 9, 0.75)])
def test_local_response(C, size, beta, dtype, tolerance):
    batch, pixels, alpha, bias = 2, 400, 0.7, 1.3
    rng = np.random.default_rng(0)
    x, dy = rng.normal(size=(batch * pixels, C)).astype(dtype), rng.normal(size=(batch * pixels, C)).astype(dtype)
    window = np.array([[-((size - 1) // 2) <= other - c <= size // 2 for other in range(C)] for c in range(C)], np.float64)
    sums = bias + alpha / size * (x.astype(np.float64) ** 2) @ window.T
    dx = dy * sums**-beta - 2 * alpha * beta / size * x * ((dy * x * sums ** (-beta - 1)) @ window)
    fields = {"pixels": pixels, "C": C, "size": size, "alpha": alpha, "beta": beta, "bias": bias}
    found = []
    for threads in (1, 2):
        y, scratch = np.full(x.shape, np.nan, dtype), np.full(16 * 3 * (C + size - 1), np.nan, dtype)
        got = np.full(x.shape, 1, dtype)
        run("lrn.forward", batch, threads, dtype, x=x.copy(), y=y, scratch=scratch, **fields)
        run("lrn.backward", batch, threads, dtype, x=x.copy(), dy=dy.copy(), dx=got, scratch=scratch, accumulate=1, **fields)
        over = dy.copy()
        run("lrn.backward", batch, threads, dtype, x=x.copy(), dy="dx", dx=over, scratch=scratch, accumulate=0, **fields)
        found.append((y, got, over))
    for name, one, want in zip(("y", "dx", "in place"), found[0], (x * sums**-beta, dx + 1, dx), strict=True):
        close(one, want, tolerance, name)
    assert all(a.tobytes() == b.tobytes() for a, b in zip(*found, strict=True))
