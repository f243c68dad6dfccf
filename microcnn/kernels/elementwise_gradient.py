"""Gradients of functions of two tensors: number by number, and summed over the axes along which an operand repeats."""
import numba
import numpy as np

from .compiler import helper, kernel
from .elementwise import (
    ADD,
    CUBE,
    DIV,
    FLOOR_MOD,
    INVERSE_ROOT,
    MAX,
    MIN,
    MOD,
    MUL,
    POW,
    ROOT,
    SQUARE,
    SUB,
    extent,
    fetch,
    jobs_of,
    next_place,
    part_of,
    place_of,
    put,
    row_at,
    row_width,
    rows_of,
    work_of,
)
from .entry import entry, fields_of, threads_for, view
from .powers import vector_ln, vector_pow, vector_trunc
from .special import vector_floor
from .vector import (
    vector_add,
    vector_div,
    vector_mul,
    vector_of,
    vector_sqrt,
    vector_sub,
    vector_sum,
    vector_where_equal,
    vector_where_first,
    vector_where_greater,
)

# A selection by a mask that stands in a's place: y = b where a is not 0.
WHERE, WHERE_NOT = 13, 14
# Sums are made of parts this many additions long: one chain over an image would lose a digit.
PART = 256


@helper
def _of_power(dy, a, kind, like):
    """One vector: the gradient of a power with a constant exponent."""
    real = like.dtype.type
    if kind == SQUARE:
        return vector_mul(dy, vector_add(a, a))
    if kind == CUBE:
        return vector_mul(dy, vector_mul(vector_of(like, real(3)), vector_mul(a, a)))
    half = vector_mul(dy, vector_of(like, real(0.5)))
    if kind == ROOT:
        return vector_div(half, vector_sqrt(a))
    zero = vector_of(like, real(0))
    if kind == INVERSE_ROOT:
        return vector_sub(zero, vector_div(half, vector_mul(a, vector_sqrt(a))))
    return vector_sub(zero, vector_div(dy, vector_mul(a, a)))


@helper
def _share(dy, mine, other, like):
    """One vector: dy where mine is the larger, half of it where both are equal."""
    shared = vector_where_equal(mine, other, vector_mul(dy, vector_of(like, like.dtype.type(0.5))), dy)
    return vector_where_greater(other, mine, vector_of(like, like.dtype.type(0)), shared)


@helper
def _of_a(dy, a, b, kind, like):
    """One vector: dy times the derivative by a. Equal numbers share the gradient of their maximum or minimum."""
    real = like.dtype.type
    zero = vector_of(like, real(0))
    if kind == ADD or kind == SUB or kind == MOD or kind == FLOOR_MOD:
        return dy
    if kind == MUL:
        return vector_mul(dy, b)
    if kind == DIV:
        return vector_div(dy, b)
    if kind == MAX:
        return _share(dy, a, b, like)
    if kind == MIN:
        return _share(dy, vector_sub(zero, a), vector_sub(zero, b), like)
    if kind == POW:
        slope = vector_mul(b, vector_pow(a, vector_sub(b, vector_of(like, real(1)))))
        return vector_where_equal(b, zero, zero, vector_mul(dy, slope))
    if kind == WHERE:
        return vector_where_equal(a, zero, zero, dy)
    if kind == WHERE_NOT:
        return vector_where_equal(a, zero, dy, zero)
    return _of_power(dy, a, kind, like)


@helper
def _of_b(dy, a, b, kind, like):
    """One vector: dy times the derivative by b."""
    real = like.dtype.type
    zero = vector_of(like, real(0))
    if kind == ADD:
        return dy
    if kind == SUB:
        return vector_sub(zero, dy)
    if kind == MUL:
        return vector_mul(dy, a)
    if kind == DIV:
        return vector_sub(zero, vector_mul(dy, vector_div(vector_div(a, b), b)))
    if kind == MAX:
        return _share(dy, b, a, like)
    if kind == MIN:
        return _share(dy, vector_sub(zero, b), vector_sub(zero, a), like)
    if kind == MOD:
        return vector_sub(zero, vector_mul(dy, vector_trunc(vector_div(a, b))))
    if kind == FLOOR_MOD:
        return vector_sub(zero, vector_mul(dy, vector_floor(vector_div(a, b))))
    slope = vector_mul(dy, vector_mul(vector_pow(a, b), vector_ln(a)))
    return vector_where_equal(a, zero, vector_where_greater(zero, b, slope, zero), slope)


@helper
def _local(dy, a, b, kind, second, like):
    """One vector: the gradient of an operand before it is summed."""
    if second:
        return _of_b(dy, a, b, kind, like)
    return _of_a(dy, a, b, kind, like)


@helper
def _fetch_if(given, a, at, stride, count, like):
    """An operand's numbers, zeros where the gradient does not need it."""
    if given:
        return fetch(a, at, stride, count)
    return vector_of(like, like.dtype.type(0))


@helper
def _gradient_job(dy, a, b, dx, job, dims, a_strides, b_strides, given, kind, second, accumulate):
    """One segment of some neighbouring rows."""
    first, last, begin, end = part_of(job, dims)
    step = row_width(dx, a_strides[5], b_strides[5])
    place = place_of(first, dims)
    for row in range(first, last):
        a_at, b_at, at = row_at(place, a_strides), row_at(place, b_strides), row * dims[5]
        for i in range(begin, end, step):
            count = min(step, end - i)
            value = _local(fetch(dy, at + i, 1, count),
                           _fetch_if(given & 1, a, a_at + i * a_strides[5], a_strides[5], count, dx),
                           _fetch_if(given & 2, b, b_at + i * b_strides[5], b_strides[5], count, dx), kind, second, dx)
            if accumulate:
                value = vector_add(value, fetch(dx, at + i, 1, count))
            put(value, dx, at + i, count)
        place = next_place(place, dims)


@kernel
@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def gradient_strided(dy, a, b, dims, a_strides, b_strides, given, kind, second, accumulate, threads, dx):
    """The gradient of an operand that does not repeat and lies as the result does.

    Shapes   dy, dx (N, d0, d1, d2, d3, d4) contiguous; a, b by strides in numbers; given: bit 0 and 1 say which are there
    Writes   dx (overwritten, or added to with accumulate); it may be dy
    Threads  one iteration per group of rows (or segment of a long row), each owns its part of dx
    Source   the derivative by the first operand, or by the second; ties and powers of 0 as PyTorch
    """
    jobs = jobs_of(dims)
    if threads > 1:
        for index in numba.prange(jobs):
            job = np.int64(index)
            _gradient_job(dy, a, b, dx, job, dims, a_strides, b_strides, given, kind, second, accumulate)
    else:
        for job in range(jobs):
            _gradient_job(dy, a, b, dx, job, dims, a_strides, b_strides, given, kind, second, accumulate)


@helper
def _span(offset, dims, strides):
    """How many numbers an operand spans; one where it is not there."""
    return extent(dims, strides) if offset >= 0 else 1


@helper
def _given(a, b):
    """Bit 0 and 1: which operands are there."""
    return (1 if a >= 0 else 0) + (2 if b >= 0 else 0)


@entry("dy< a< b< dx= d0 d1 d2 d3 d4 a_batch a0 a1 a2 a3 a4 b_batch b0 b1 b2 b3 b4 kind second accumulate")
def gradient(arena, row, batch):
    row = fields_of(row)
    dims = (batch, row.d0, row.d1, row.d2, row.d3, row.d4)
    a_strides = (row.a_batch, row.a0, row.a1, row.a2, row.a3, row.a4)
    b_strides = (row.b_batch, row.b0, row.b1, row.b2, row.b3, row.b4)
    size = rows_of(dims) * dims[5]
    gradient_strided(view(arena, row.dy, size), view(arena, row.a, _span(row.a, dims, a_strides)),
                     view(arena, row.b, _span(row.b, dims, b_strides)), dims, a_strides, b_strides, _given(row.a, row.b),
                     row.kind, row.second, row.accumulate, threads_for(arena, work_of(row.kind, size)),
                     view(arena, row.dx, size))


@helper
def kept_axes(dims, strides):
    """The sizes of the axes that an operand has; 1 for those that repeat it."""
    return (dims[0] if strides[0] else 1, dims[1] if strides[1] else 1, dims[2] if strides[2] else 1,
            dims[3] if strides[3] else 1, dims[4] if strides[4] else 1)


@helper
def repeated_axes(dims, strides):
    """The sizes of the axes that repeat an operand; 1 for those it has."""
    return (1 if strides[0] else dims[0], 1 if strides[1] else dims[1], 1 if strides[2] else dims[2],
            1 if strides[3] else dims[3], 1 if strides[4] else dims[4])


@helper
def _reduce_job(dy, a, b, dx, job, blocks, width, dims, strides, a_strides, b_strides, given, kind, second, accumulate):
    """One vector of dx (one number where the innermost axis repeats), summed over everything that repeats it."""
    dy_strides = (dims[1] * dims[2] * dims[3] * dims[4] * dims[5], dims[2] * dims[3] * dims[4] * dims[5],
                  dims[3] * dims[4] * dims[5], dims[4] * dims[5], dims[5])
    repeated = repeated_axes(dims, strides)
    owner = place_of(job // blocks, kept_axes(dims, strides))
    begin = job % blocks * width
    end = min(dims[5], begin + width)
    step = min(width, row_width(dy, a_strides[5], b_strides[5]))
    start, a_start, b_start = row_at(owner, dy_strides), row_at(owner, a_strides), row_at(owner, b_strides)
    zero = vector_of(dy, dy.dtype.type(0))
    total, part, additions = zero, zero, 0
    place = (0, 0, 0, 0, 0)
    for _ in range(rows_of(repeated)):
        at = start + row_at(place, dy_strides)
        a_at, b_at = a_start + row_at(place, a_strides), b_start + row_at(place, b_strides)
        for i in range(begin, end, step):
            count = min(step, end - i)
            value = fetch(dy, at + i, 1, count)
            if given:
                value = _local(value, _fetch_if(given & 1, a, a_at + i * a_strides[5], a_strides[5], count, dy),
                               _fetch_if(given & 2, b, b_at + i * b_strides[5], b_strides[5], count, dy), kind, second, dy)
                value = vector_where_first(count, value, zero)
            part = vector_add(part, value)
            additions += 1
            if additions == PART:
                total, part, additions = vector_add(total, part), zero, 0
        place = next_place(place, repeated)
    total = vector_add(total, part)
    if given == 0 and kind == SUB and second:
        total = vector_sub(zero, total)
    at = row_at(owner, strides) + begin * strides[5]
    if strides[5] == 0:
        dx[at] = vector_sum(total) + (dx[at] if accumulate else dy.dtype.type(0))
    else:
        count = end - begin
        if accumulate:
            total = vector_add(total, fetch(dx, at, 1, count))
        put(total, dx, at, count)


@kernel
@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def sum_strided(dy, a, b, dims, strides, a_strides, b_strides, given, kind, second, accumulate, threads, dx):
    """The gradient of an operand that repeats, or lies otherwise than the result: summed over the axes that repeat it.

    Shapes   dy (N, d0, d1, d2, d3, d4) contiguous; dx by strides in numbers, 0 along the axes that are summed; a, b by
             strides too; given: bit 0 and 1 say which are there
    Writes   dx (overwritten, or added to with accumulate)
    Threads  one iteration per vector of dx, each sums all that belongs to it; no scratch
    Source   the transpose of broadcasting, after gradient_strided's derivative; sums in parts of 256 additions
    """
    if strides[5] == 0:
        width = dims[5]
    else:
        width = row_width(dy, max(a_strides[5], b_strides[5]), strides[5])
    blocks = (dims[5] + width - 1) // width
    jobs = rows_of(kept_axes(dims, strides)) * blocks
    if threads > 1:
        for index in numba.prange(jobs):
            job = np.int64(index)
            _reduce_job(dy, a, b, dx, job, blocks, width, dims, strides, a_strides, b_strides, given, kind, second,
                        accumulate)
    else:
        for job in range(jobs):
            _reduce_job(dy, a, b, dx, job, blocks, width, dims, strides, a_strides, b_strides, given, kind, second,
                        accumulate)


@entry("dy< a< b< dx= d0 d1 d2 d3 d4 a_batch a0 a1 a2 a3 a4 b_batch b0 b1 b2 b3 b4 batch_stride s0 s1 s2 s3 s4 size kind "
       "second accumulate")
def reduce_broadcast(arena, row, batch):
    row = fields_of(row)
    dims = (batch, row.d0, row.d1, row.d2, row.d3, row.d4)
    strides = (row.batch_stride, row.s0, row.s1, row.s2, row.s3, row.s4)
    a_strides = (row.a_batch, row.a0, row.a1, row.a2, row.a3, row.a4)
    b_strides = (row.b_batch, row.b0, row.b1, row.b2, row.b3, row.b4)
    dy_size = rows_of(dims) * dims[5]
    size = row.size * (batch if row.batch_stride else 1)
    sum_strided(view(arena, row.dy, dy_size), view(arena, row.a, _span(row.a, dims, a_strides)),
                view(arena, row.b, _span(row.b, dims, b_strides)), dims, strides, a_strides, b_strides,
                _given(row.a, row.b), row.kind, row.second, row.accumulate, threads_for(arena, work_of(row.kind, dy_size)),
                view(arena, row.dx, size))
