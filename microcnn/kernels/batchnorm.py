"""Batch normalisation with frozen or batch statistics, with a clamp (ReLU) fused behind it; back in batchnorm_backward.py.

Tensors are `rows` x C, cut into chunks of rows, as in batchnorm_statistics.py.
"""
import numba
import numpy as np

from .batchnorm_statistics import FACTOR, SCRATCH, block_rows, statistics
from .cache import helper, kernel
from .entry import entry, fields_of, number, threads_for, view
from .simd import lanes
from .vector import (
    vector_add,
    vector_div,
    vector_fma,
    vector_max,
    vector_min,
    vector_mul,
    vector_of,
    vector_sqrt,
    vector_sub,
    vector_take,
    vector_write,
)


@helper
def _clamp(value, low, high, like):
    real = like.dtype.type
    return vector_min(vector_max(value, vector_of(like, real(low))), vector_of(like, real(high)))


@helper
def deviation(variance, c, C, eps):
    """sqrt(variance + eps) for one vector of channels."""
    return vector_sqrt(vector_add(vector_take(variance, c, C - c),
                                  vector_of(variance, variance.dtype.type(eps))))


@helper
def factors(scale, variance, C, eps, factor, at):
    """factor[at : at + C] = scale / sqrt(variance + eps)"""
    for c in range(0, C, lanes(scale)):
        value = vector_div(vector_take(scale, c, C - c), deviation(variance, c, C, eps))
        vector_write(value, factor, at + c, C - c)


@helper
def _normalise_part(part, parts, x, mean, bias, factor, factor_at, rows, C, low, high, y):
    """y = clamp((x - mean) * factor + bias) for one of the parts, from its last block of rows to its first.

    The pass before this one went the other way: what it read last is still in the cache.
    """
    step, block = lanes(x), block_rows(C)
    begin, end = part * rows // parts, (part + 1) * rows // parts
    for left in range((end - begin + block - 1) // block, 0, -1):
        first = begin + (left - 1) * block
        for at in range(first * C, min(first + block, end) * C, C):
            for c in range(0, C, step):
                count = C - c
                centred = vector_sub(vector_take(x, at + c, count), vector_take(mean, c, count))
                value = vector_fma(centred, vector_take(factor, factor_at + c, count), vector_take(bias, c, count))
                vector_write(_clamp(value, low, high, x), y, at + c, count)


@kernel
@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def normalise(x, mean, bias, factor, factor_at, rows, C, low, high, threads, y):
    """y = clamp((x - mean) * factor + bias, low, high)

    Shapes   x, y (rows, C); mean, bias (C,), flat; factor (C,) from factor_at on; y may be x
    Writes   y (overwritten)
    Threads  one iteration per thread, each owns its rows of y
    Source   ONNX BatchNormalization-15
    """
    if threads > 1:
        for index in numba.prange(threads):
            part = np.int64(index)
            _normalise_part(part, threads, x, mean, bias, factor, factor_at, rows, C, low, high, y)
    else:
        _normalise_part(0, 1, x, mean, bias, factor, factor_at, rows, C, low, high, y)


@entry("x< scale< bias< mean< var< y> scratch> pixels C eps low high")
def forward_frozen(arena, row, batch):
    """scratch: 2 * C reals. y may be x."""
    row = fields_of(row)
    rows, C = batch * row.pixels, row.C
    factor = view(arena, row.scratch, C)
    factors(view(arena, row.scale, C), view(arena, row.var, C), C, number(row.eps), factor, 0)
    normalise(view(arena, row.x, rows * C), view(arena, row.mean, C), view(arena, row.bias, C), factor, 0, rows, C,
              number(row.low), number(row.high), threads_for(arena, rows * C), view(arena, row.y, rows * C))


@entry("x< scale< bias< saved> y> scratch> pixels C eps low high")
def forward_batch(arena, row, batch):
    """scratch: SCRATCH * C reals. saved: the mean, 1 / sqrt(variance + eps), the variance. y must not be x."""
    row = fields_of(row)
    rows, C = batch * row.pixels, row.C
    threads = threads_for(arena, rows * C)
    x, scratch = view(arena, row.x, rows * C), view(arena, row.scratch, SCRATCH * C)
    saved = view(arena, row.saved, 3 * C)
    statistics(x, view(arena, row.scale, C), rows, C, number(row.eps), threads, saved, scratch)
    normalise(x, saved, view(arena, row.bias, C), scratch, FACTOR * C, rows, C, number(row.low), number(row.high),
              threads, view(arena, row.y, rows * C))


@entry("saved< running_mean= running_var= C momentum")
def update_running(arena, row, batch):
    """running = running * momentum + saved * (1 - momentum); saved: from forward_batch. Source: ONNX BatchNormalization-15"""
    row = fields_of(row)
    C = row.C
    saved, mean, variance = view(arena, row.saved, 3 * C), view(arena, row.running_mean, C), view(arena, row.running_var, C)
    real = saved.dtype.type
    old, new = vector_of(saved, real(number(row.momentum))), vector_of(saved, real(1 - number(row.momentum)))
    for c in range(0, C, lanes(saved)):
        count = C - c
        value = vector_mul(vector_take(saved, c, count), new)
        vector_write(vector_fma(vector_take(mean, c, count), old, value), mean, c, count)
        value = vector_mul(vector_take(saved, 2 * C + c, count), new)
        vector_write(vector_fma(vector_take(variance, c, count), old, value), variance, c, count)
