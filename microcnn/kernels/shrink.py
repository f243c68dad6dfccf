"""Shrink, forward and backward: what lies near 0 becomes 0, the rest moves towards it."""
import numba
import numpy as np

from .compiler import helper, kernel
from .entry import entry, fields_of, number, threads_for, view
from .simd import lanes
from .vector import vector_add, vector_of, vector_sub, vector_take, vector_where_greater, vector_write

CHUNK = 8192


@helper
def _chunk(x, chunk, lambd, bias, y):
    """y = x + bias below -lambd, x - bias above lambd, else 0."""
    real = x.dtype.type
    least, most, moved, zero = (vector_of(x, real(-lambd)), vector_of(x, real(lambd)), vector_of(x, real(bias)),
                                vector_of(x, real(0)))
    end = min(x.size, (chunk + 1) * CHUNK)
    for i in range(chunk * CHUNK, end, lanes(x)):
        value = vector_take(x, i, end - i)
        above = vector_where_greater(value, most, vector_sub(value, moved), zero)
        vector_write(vector_where_greater(least, value, vector_add(value, moved), above), y, i, end - i)


@kernel
@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def shrink_forward(x, lambd, bias, threads, y):
    """Numbers of at most lambd in magnitude become 0, the others come closer to 0 by bias.

    Shapes   x, y (any), flat; they may be the same buffer
    Writes   y (overwritten)
    Threads  one iteration per chunk of 8,192 numbers, each owns its part of y
    Source   ONNX Shrink-9
    """
    chunks = (x.size + CHUNK - 1) // CHUNK
    if threads > 1:
        for index in numba.prange(chunks):
            _chunk(x, np.int64(index), lambd, bias, y)
    else:
        for chunk in range(chunks):
            _chunk(x, chunk, lambd, bias, y)


@entry("x< y> size lambd bias")
def forward(arena, row, batch):
    row = fields_of(row)
    size = row.size * batch
    shrink_forward(view(arena, row.x, size), number(row.lambd), number(row.bias), threads_for(arena, size * 4),
                   view(arena, row.y, size))


@helper
def _gradient_chunk(x, dy, chunk, lambd, accumulate, dx):
    """dx = dy where x is further from 0 than lambd."""
    real = x.dtype.type
    least, most, zero = vector_of(x, real(-lambd)), vector_of(x, real(lambd)), vector_of(x, real(0))
    end = min(x.size, (chunk + 1) * CHUNK)
    for i in range(chunk * CHUNK, end, lanes(x)):
        value, gradient = vector_take(x, i, end - i), vector_take(dy, i, end - i)
        passed = vector_where_greater(least, value, gradient, vector_where_greater(value, most, gradient, zero))
        if accumulate:
            passed = vector_add(passed, vector_take(dx, i, end - i))
        vector_write(passed, dx, i, end - i)


@kernel
@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def shrink_backward(x, dy, lambd, accumulate, threads, dx):
    """The gradient of Shrink.

    Shapes   x, dy, dx (any), flat; dx may be dy
    Writes   dx (overwritten, or added to with accumulate)
    Threads  one iteration per chunk of 8,192 numbers, each owns its part of dx
    Source   the derivative of ONNX Shrink-9, 1 beyond lambd and 0 within
    """
    chunks = (x.size + CHUNK - 1) // CHUNK
    if threads > 1:
        for index in numba.prange(chunks):
            _gradient_chunk(x, dy, np.int64(index), lambd, accumulate, dx)
    else:
        for chunk in range(chunks):
            _gradient_chunk(x, dy, chunk, lambd, accumulate, dx)


@entry("x< dy< dx= size lambd accumulate")
def backward(arena, row, batch):
    row = fields_of(row)
    size = row.size * batch
    shrink_backward(view(arena, row.x, size), view(arena, row.dy, size), number(row.lambd), row.accumulate,
                    threads_for(arena, size * 4), view(arena, row.dx, size))
