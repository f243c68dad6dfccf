"""PReLU, whose slope for negative numbers is a weight: one for all, one per channel, or one per number."""
import numba
import numpy as np

from .axis import beside, run_at
from .compiler import helper, kernel
from .entry import entry, fields_of, threads_for, view
from .simd import lanes
from .vector import (
    vector_add,
    vector_mul,
    vector_of,
    vector_sum,
    vector_take,
    vector_where_first,
    vector_where_greater,
    vector_write,
)

CHUNK = 8192
# Sums are made of parts this many additions long: one chain over an image would lose a digit.
PART = 256


@helper
def _chunk(x, value, slope, result, chunk, C, inner, accumulate):
    """One chunk, run by run of the slopes."""
    i, end = chunk * CHUNK, min(x.size, (chunk + 1) * CHUNK)
    zero = vector_of(x, x.dtype.type(0))
    while i < end:
        run_end, first = run_at(i, end, C, inner)
        for j in range(i, run_end, lanes(x)):
            count = run_end - j
            found = vector_take(value, j, count)
            scaled = vector_mul(found, beside(slope, first, j - i, count, inner, x))
            found = vector_where_greater(vector_take(x, j, count), zero, found, scaled)
            if accumulate:
                found = vector_add(found, vector_take(result, j, count))
            vector_write(found, result, j, count)
        i = run_end


@kernel
@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def times_slope(x, value, slope, C, inner, accumulate, threads, result):
    """value where x is positive, else value times the slope: PReLU with value = x, its gradient with value = dy.

    Shapes   x, value, result (outer, C, inner), flat; slope (C,); result may be value, or x
    Writes   result (overwritten, or added to with accumulate)
    Threads  one iteration per chunk of 8,192 numbers, each owns its part of result
    Source   ONNX PRelu-16; at 0 the derivative is the slope, as in PyTorch
    """
    chunks = (x.size + CHUNK - 1) // CHUNK
    if threads > 1:
        for index in numba.prange(chunks):
            chunk = np.int64(index)
            _chunk(x, value, slope, result, chunk, C, inner, accumulate)
    else:
        for chunk in range(chunks):
            _chunk(x, value, slope, result, chunk, C, inner, accumulate)


@entry("x< slope< y> outer C inner")
def forward(arena, row, batch):
    row = fields_of(row)
    size = row.outer * row.C * row.inner * batch
    x = view(arena, row.x, size)
    times_slope(x, x, view(arena, row.slope, row.C), row.C, row.inner, 0, threads_for(arena, size * 4),
                view(arena, row.y, size))


@entry("x< dy< slope< dx= outer C inner accumulate")
def backward(arena, row, batch):
    row = fields_of(row)
    size = row.outer * row.C * row.inner * batch
    times_slope(view(arena, row.x, size), view(arena, row.dy, size), view(arena, row.slope, row.C), row.C, row.inner,
                row.accumulate, threads_for(arena, size * 4), view(arena, row.dx, size))


@helper
def _slope_job(x, dy, dslope, job, C, inner, accumulate):
    """One slope, or with inner = 1 a vector of neighbouring slopes."""
    real = x.dtype.type
    zero = vector_of(x, real(0))
    at = job if inner > 1 else job * lanes(x)
    length = inner if inner > 1 else C - at
    total, part, additions = zero, zero, 0
    for row in range(x.size // (C * inner)):
        start = (row * C + at) * inner
        for i in range(0, length if inner > 1 else 1, lanes(x)):
            count = length - i
            seen = vector_take(x, start + i, count)
            product = vector_mul(seen, vector_take(dy, start + i, count))
            part = vector_add(part, vector_where_first(count, vector_where_greater(seen, zero, zero, product), zero))
            additions += 1
            if additions == PART:
                total, part, additions = vector_add(total, part), zero, 0
    total = vector_add(total, part)
    if inner > 1:
        dslope[at] = vector_sum(total) + (dslope[at] if accumulate else real(0))
    else:
        if accumulate:
            total = vector_add(total, vector_take(dslope, at, length))
        vector_write(total, dslope, at, length)


@kernel
@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def prelu_slope_gradient(x, dy, C, inner, accumulate, threads, dslope):
    """The gradient of PReLU's slope: the sum of x dy where x is not positive.

    Shapes   x, dy (outer, C, inner), flat; dslope (C,)
    Writes   dslope (overwritten, or added to with accumulate)
    Threads  one iteration per slope (with inner = 1 per vector of slopes), each sums all that belongs to it
    Source   the derivative of ONNX PRelu-16 by its slope; sums in parts of 256 additions
    """
    jobs = C if inner > 1 else (C + lanes(x) - 1) // lanes(x)
    if threads > 1:
        for index in numba.prange(jobs):
            job = np.int64(index)
            _slope_job(x, dy, dslope, job, C, inner, accumulate)
    else:
        for job in range(jobs):
            _slope_job(x, dy, dslope, job, C, inner, accumulate)


@entry("x< dy< dslope= outer C inner accumulate")
def slope_gradient(arena, row, batch):
    row = fields_of(row)
    size = row.outer * row.C * row.inner * batch
    prelu_slope_gradient(view(arena, row.x, size), view(arena, row.dy, size), row.C, row.inner, row.accumulate,
                         threads_for(arena, size * 4), view(arena, row.dslope, row.C))
