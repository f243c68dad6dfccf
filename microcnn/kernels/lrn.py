"""Local response normalisation: each number over a power of the squares around it, along the channels.

Channels lie last. A chunk of rows has three lines of scratch: numbers with a margin of zeros before and behind them, which
the sums of windows run over, and the power of each channel's sum.
"""
import numba
import numpy as np

from .batchnorm_statistics import chunk_count
from .compiler import helper, kernel
from .entry import entry, fields_of, number, threads_for, view
from .powers import vector_pow
from .simd import lanes
from .vector import (
    vector_add,
    vector_div,
    vector_fma,
    vector_mul,
    vector_of,
    vector_sqrt,
    vector_sub,
    vector_take,
    vector_write,
)


@helper
def _power(sums, beta, like):
    """sums ** -beta; the usual 0.75 is made of roots."""
    real = like.dtype.type
    if beta == 0.75:
        root = vector_sqrt(vector_div(vector_of(like, real(1)), sums))
        return vector_mul(root, vector_sqrt(root))
    return vector_pow(sums, vector_of(like, real(-beta)))


@helper
def _window(line, at, size, count):
    """One vector of sums of `size` neighbours each, the first from `at` on."""
    total = vector_take(line, at, count)
    for k in range(1, size):
        total = vector_add(total, vector_take(line, at + k, count))
    return total


@helper
def _clear(line, begin, end):
    zero = vector_of(line, line.dtype.type(0))
    for i in range(begin, end, lanes(line)):
        vector_write(zero, line, i, end - i)


@helper
def _squares(x, at, C, margin, line, to):
    for c in range(0, C, lanes(x)):
        value = vector_take(x, at + c, C - c)
        vector_write(vector_mul(value, value), line, to + margin + c, C - c)


@helper
def _forward_job(x, begin, end, C, size, alpha, beta, bias, line, to, y):
    real = x.dtype.type
    before = (size - 1) // 2
    share, offset = vector_of(x, real(alpha / size)), vector_of(x, real(bias))
    _clear(line, to, to + C + size - 1)
    for at in range(begin * C, end * C, C):
        _squares(x, at, C, before, line, to)
        for c in range(0, C, lanes(x)):
            sums = vector_fma(_window(line, to + c, size, C - c), share, offset)
            vector_write(vector_mul(vector_take(x, at + c, C - c), _power(sums, beta, x)), y, at + c, C - c)


@kernel
@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def local_response(x, rows, C, size, alpha, beta, bias, threads, scratch, y):
    """y = x / (bias + alpha / size * the sum of squares of the `size` channels around it) ** beta

    Shapes   x, y (rows, C); scratch (chunks, 3, C + size - 1)
    Writes   y (overwritten; it may be x), scratch
    Threads  one iteration per chunk of rows, each owns its rows and its scratch
    Source   ONNX LRN-13
    """
    chunks = chunk_count(rows, C)
    line = 3 * (C + size - 1)
    if threads > 1 and chunks > 1:
        for index in numba.prange(chunks):
            chunk = np.int64(index)
            _forward_job(x, chunk * rows // chunks, (chunk + 1) * rows // chunks, C, size, alpha, beta, bias, scratch,
                         chunk * line, y)
    else:
        _forward_job(x, 0, rows, C, size, alpha, beta, bias, scratch, 0, y)


@entry("x< y> scratch> pixels C size alpha beta bias")
def forward(arena, row, batch):
    row = fields_of(row)
    C, rows = row.C, batch * row.pixels
    room = chunk_count(rows, C) * 3 * (C + row.size - 1)
    local_response(view(arena, row.x, rows * C), rows, C, row.size, number(row.alpha), number(row.beta), number(row.bias),
                   threads_for(arena, rows * C * (10 + row.size)), view(arena, row.scratch, room), view(arena, row.y, rows * C))


@helper
def _backward_job(x, dy, begin, end, C, size, alpha, beta, bias, accumulate, line, to, dx):
    real = x.dtype.type
    before, width = (size - 1) // 2, C + size - 1
    share, offset = vector_of(x, real(alpha / size)), vector_of(x, real(bias))
    slope = vector_of(x, real(2.0 * alpha * beta / size))
    _clear(line, to, to + 2 * width)
    second, powers = to + width, to + 2 * width
    for at in range(begin * C, end * C, C):
        _squares(x, at, C, before, line, to)
        for c in range(0, C, lanes(x)):
            count = C - c
            sums = vector_fma(_window(line, to + c, size, count), share, offset)
            power = _power(sums, beta, x)
            vector_write(power, line, powers + c, count)
            product = vector_mul(vector_mul(vector_take(dy, at + c, count), vector_take(x, at + c, count)), power)
            # a channel is in the windows of those from `size - 1 - before` before it on
            vector_write(vector_div(product, sums), line, second + size - 1 - before + c, count)
        for c in range(0, C, lanes(x)):
            count = C - c
            through = vector_mul(vector_mul(slope, vector_take(x, at + c, count)), _window(line, second + c, size, count))
            value = vector_sub(vector_mul(vector_take(dy, at + c, count), vector_take(line, powers + c, count)), through)
            if accumulate:
                value = vector_add(value, vector_take(dx, at + c, count))
            vector_write(value, dx, at + c, count)


@kernel
@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def local_response_backward(x, dy, rows, C, size, alpha, beta, bias, accumulate, threads, scratch, dx):
    """The gradient of local_response.

    Shapes   as there; dx may be dy
    Writes   dx (overwritten, or added to with accumulate), scratch
    Threads  as there
    Source   with s the sums that are raised to -beta: dx = dy s^-beta - 2 alpha beta / size x sum(dy x s^(-beta - 1)), over
             the channels whose windows hold this one
    """
    chunks = chunk_count(rows, C)
    line = 3 * (C + size - 1)
    if threads > 1 and chunks > 1:
        for index in numba.prange(chunks):
            chunk = np.int64(index)
            _backward_job(x, dy, chunk * rows // chunks, (chunk + 1) * rows // chunks, C, size, alpha, beta, bias, accumulate,
                          scratch, chunk * line, dx)
    else:
        _backward_job(x, dy, 0, rows, C, size, alpha, beta, bias, accumulate, scratch, 0, dx)


@entry("x< dy< dx= scratch> pixels C size alpha beta bias accumulate")
def backward(arena, row, batch):
    row = fields_of(row)
    C, rows = row.C, batch * row.pixels
    room = chunk_count(rows, C) * 3 * (C + row.size - 1)
    local_response_backward(view(arena, row.x, rows * C), view(arena, row.dy, rows * C), rows, C, row.size, number(row.alpha),
                            number(row.beta), number(row.bias), row.accumulate,
                            threads_for(arena, rows * C * (20 + 2 * row.size)), view(arena, row.scratch, room),
                            view(arena, row.dx, rows * C))
