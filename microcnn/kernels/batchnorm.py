"""Batch normalisation with frozen or batch statistics, with a clamp (ReLU) fused behind it; back in batchnorm_backward.py.

Tensors are `rows` x width, cut into chunks of rows, as in batchnorm_statistics.py, which says what lies where in scratch.
"""
import numba
import numpy as np

from .batchnorm_statistics import BIAS, FACTOR, FIRST, MEAN, block_rows, repeat, repeat_statistics, scratch_size, statistics
from .compiler import helper, kernel
from .entry import entry, fields_of, number, threads_for, view
from .fetch import ask
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
def frozen_constants(mean, scale, variance, C, width, eps, scratch):
    """Mean and factor, scale / sqrt(variance + eps), for each number of a row, in their places in scratch."""
    for c in range(0, C, lanes(scale)):
        value = vector_div(vector_take(scale, c, C - c), deviation(variance, c, C, eps))
        vector_write(value, scratch, FACTOR * width + c, C - c)
    repeat(scratch, FACTOR * width, C, scratch, FACTOR, width)
    repeat(mean, 0, C, scratch, MEAN, width)


@helper
def normalise_rows(x, begin, end, constants, width, low, high, asked, y, to):
    """y[to ...] = rows begin to end of x, normalised and clamped. asked: how far ahead x is asked for; 0: not at all."""
    step = lanes(x)
    for row in range(begin, end):
        for c in range(0, width, step):
            count, at = width - c, row * width + c
            if asked > 0:
                ask(x, at + asked)
            centred = vector_sub(vector_take(x, at, count), vector_take(constants, MEAN * width + c, count))
            value = vector_fma(centred, vector_take(constants, FACTOR * width + c, count),
                               vector_take(constants, BIAS * width + c, count))
            vector_write(_clamp(value, low, high, x), y, to + (row - begin) * width + c, count)


@helper
def _normalise_part(part, parts, x, constants, rows, width, low, high, y):
    """y = clamp((x - mean) * factor + bias) for one of the parts, from its last block of rows to its first.

    The pass before this one went the other way: what it read last is still in the cache.
    """
    block = block_rows(width)
    begin, end = part * rows // parts, (part + 1) * rows // parts
    for left in range((end - begin + block - 1) // block, 0, -1):
        first = begin + (left - 1) * block
        normalise_rows(x, first, min(first + block, end), constants, width, low, high, 0, y, first * width)


@kernel
@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def normalise(x, constants, rows, width, low, high, threads, y):
    """y = clamp((x - mean) * factor + bias, low, high)

    Shapes   x, y (rows, width); constants: mean, bias, factor, each (width,), in their places in scratch; y may be x
    Writes   y (overwritten)
    Threads  one iteration per thread, each owns its rows of y
    Source   ONNX BatchNormalization-15
    """
    if threads > 1:
        for index in numba.prange(threads):
            part = np.int64(index)
            _normalise_part(part, threads, x, constants, rows, width, low, high, y)
    else:
        _normalise_part(0, 1, x, constants, rows, width, low, high, y)


@entry("x< scale< bias< mean< var< y> scratch> pixels C together eps low high")
def forward_frozen(arena, row, batch):
    """pixels must be a multiple of together. scratch: 3 * C * together reals. y may be x."""
    row = fields_of(row)
    C, width = row.C, row.C * row.together
    size = batch * row.pixels * C
    scratch = view(arena, row.scratch, FIRST * width)
    frozen_constants(view(arena, row.mean, C), view(arena, row.scale, C), view(arena, row.var, C), C, width, number(row.eps),
                     scratch)
    repeat(view(arena, row.bias, C), 0, C, scratch, BIAS, width)
    normalise(view(arena, row.x, size), scratch, size // width, width, number(row.low), number(row.high),
              threads_for(arena, size), view(arena, row.y, size))


@entry("x< scale< bias< saved> y> scratch> pixels C together eps low high")
def forward_batch(arena, row, batch):
    """pixels must be a multiple of together. scratch: scratch_size. saved: the mean, 1 / sqrt(variance + eps), the variance.
    y must not be x."""
    row = fields_of(row)
    C, width = row.C, row.C * row.together
    size = batch * row.pixels * C
    rows, threads = size // width, threads_for(arena, size)
    x, scratch = view(arena, row.x, size), view(arena, row.scratch, scratch_size(rows, width))
    statistics(x, view(arena, row.scale, C), rows, C, row.together, number(row.eps), threads, view(arena, row.saved, 3 * C),
               scratch)
    repeat(view(arena, row.bias, C), 0, C, scratch, BIAS, width)
    normalise(x, scratch, rows, width, number(row.low), number(row.high), threads, view(arena, row.y, size))


@entry("x< scale< saved> scratch> pixels C together eps")
def statistics_batch(arena, row, batch):
    """What forward_batch saves, without the normalised numbers. scratch: scratch_size."""
    row = fields_of(row)
    C, width = row.C, row.C * row.together
    size = batch * row.pixels * C
    rows = size // width
    statistics(view(arena, row.x, size), view(arena, row.scale, C), rows, C, row.together, number(row.eps),
               threads_for(arena, size), view(arena, row.saved, 3 * C), view(arena, row.scratch, scratch_size(rows, width)))


@helper
def saved_constants(scale, bias, saved, C, width, scratch):
    """Mean, factor and bias for each number of a row, in their places in scratch, as forward_batch had them."""
    repeat_statistics(scale, saved, C, width, scratch)
    repeat(bias, 0, C, scratch, BIAS, width)


@entry("x< scale< bias< saved< y> scratch> pixels C together low high")
def forward_saved(arena, row, batch):
    """forward_batch once more, from what it saved: the same bits. scratch: 3 * C * together reals. y may be x."""
    row = fields_of(row)
    C, width = row.C, row.C * row.together
    size = batch * row.pixels * C
    scratch = view(arena, row.scratch, FIRST * width)
    saved_constants(view(arena, row.scale, C), view(arena, row.bias, C), view(arena, row.saved, 2 * C), C, width, scratch)
    normalise(view(arena, row.x, size), scratch, size // width, width, number(row.low), number(row.high),
              threads_for(arena, size), view(arena, row.y, size))


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
