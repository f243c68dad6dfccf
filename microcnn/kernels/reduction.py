"""One number for each group of numbers, as axis.py has them: sums, means, norms, products, extremes; forward and backward."""
import numba
import numpy as np
from numba.extending import intrinsic

from .axis import job_count, job_shape, unit_at
from .compiler import helper, kernel
from .entry import entry, fields_of, number, threads_for, view
from .powers import vector_ln
from .simd import lanes
from .vector import (
    VectorType,
    across,
    vector_add,
    vector_any_nan,
    vector_div,
    vector_exp,
    vector_highest,
    vector_max,
    vector_mul,
    vector_of,
    vector_sqrt,
    vector_sub,
    vector_sum,
    vector_take,
    vector_where_beats,
    vector_where_equal,
    vector_where_first,
    vector_where_greater,
    vector_write,
)

SUM, MAX, MIN, PRODUCT, MAGNITUDES, SQUARES, LENGTH, LOG_SUM, LOG_SUM_EXP = range(9)
# Sums are made of parts this many additions long: one chain over an image would lose a digit.
PART = 256


@intrinsic
def vector_product(typing_context, a):
    """The product of the lanes, halves multiplied pairwise in a fixed order."""
    if not isinstance(a, VectorType):
        return None
    return a.dtype(a), across(a, lambda builder, x, y: builder.fmul(x, y))


@helper
def _neutral(kind, like):
    """What leaves a total as it is."""
    real = like.dtype.type
    if kind == MAX or kind == MIN:
        return vector_of(like, real(-np.inf))
    return vector_of(like, real(1 if kind == PRODUCT else 0))


@helper
def _part_of(x, kind, top, like):
    """What one vector of numbers adds to its group's total; a minimum is the maximum of the negative numbers."""
    zero = vector_of(like, like.dtype.type(0))
    if kind == MIN:
        return vector_sub(zero, x)
    if kind == MAGNITUDES:
        return vector_max(x, vector_sub(zero, x))
    if kind == SQUARES or kind == LENGTH:
        return vector_mul(x, x)
    if kind == LOG_SUM_EXP:
        return vector_exp(vector_sub(x, top))
    return x


@helper
def _together(total, value, kind):
    """Two totals as one; a NaN wins."""
    if kind == MAX or kind == MIN:
        return vector_where_beats(value, total, value, total)
    if kind == PRODUCT:
        return vector_mul(total, value)
    return vector_add(total, value)


@helper
def _logarithm(total, alone, like):
    """The logarithms of some groups' totals, or of one that all lanes hold."""
    if alone:
        return vector_of(like, like.dtype.type(np.log(vector_highest(total))))
    return vector_ln(total)


@helper
def _finished(total, kind, scale, top, alone, like):
    """The result from a group's total."""
    real = like.dtype.type
    if kind == SUM:
        return vector_mul(total, vector_of(like, real(scale)))
    if kind == MIN:
        return vector_sub(vector_of(like, real(0)), total)
    if kind == LENGTH:
        return vector_sqrt(total)
    if kind == LOG_SUM:
        return _logarithm(total, alone, like)
    if kind == LOG_SUM_EXP:
        return vector_add(top, _logarithm(total, alone, like))
    return total


@helper
def total_of(x, at, stride, first, last, count, kind, top, like):
    """The total of numbers first to last of a group, `stride` apart; a whole vector of groups where count is 0.

    count: how many groups lie side by side; 0 where the vector runs along one group, whose lanes are then not yet together.
    """
    neutral = _neutral(kind, like)
    total, part, parts = neutral, neutral, 0
    step = stride if count else lanes(like)
    for i in range(at + first * stride, at + last * stride, step):
        if count:
            value = _part_of(vector_take(x, i, count), kind, top, like)
        else:
            have = at + last - i
            value = vector_where_first(have, _part_of(vector_take(x, i, have), kind, top, like), neutral)
        part = _together(part, value, kind)
        parts += 1
        if parts == PART:
            total, part, parts = _together(total, part, kind), neutral, 0
    return _together(total, part, kind)


@helper
def across_lanes(total, kind, like):
    """A vector of what its lanes are together."""
    if kind == MAX or kind == MIN:
        if vector_any_nan(total):
            return vector_of(like, like.dtype.type(np.nan))
        return vector_of(like, vector_highest(total))
    if kind == PRODUCT:
        return vector_of(like, vector_product(total))
    return vector_of(like, vector_sum(total))


@helper
def _top_of(x, at, inner, count, C, like):
    """The largest number of each group, 0 where that is infinite: what the exponents are shifted by."""
    zero = vector_of(like, like.dtype.type(0))
    top = total_of(x, at, inner, 0, C, count, MAX, zero, like)
    if count == 0:
        top = across_lanes(top, MAX, like)
    infinite = vector_of(like, like.dtype.type(np.inf))
    return vector_where_equal(top, infinite, zero, vector_where_equal(vector_sub(zero, top), infinite, zero, top))


@helper
def _forward_job(x, y, job, C, inner, kind, scale):
    width, blocks, per_job = job_shape(x, C, inner)
    units = y.size // inner * blocks
    for unit in range(job * per_job, min(units, (job + 1) * per_job)):
        at, to, count = unit_at(unit, width, blocks, C, inner)
        top = vector_of(x, x.dtype.type(0))
        if kind == LOG_SUM_EXP:
            top = _top_of(x, at, inner, count, C, x)
        total = total_of(x, at, inner, 0, C, count, kind, top, x)
        if count == 0:
            total = across_lanes(total, kind, x)
        vector_write(_finished(total, kind, scale, top, count == 0, x), y, to, max(1, count))


@helper
def _work_of(kind, size):
    return size * (20 if kind >= LOG_SUM else 2)


@kernel
@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def reduce(x, C, inner, kind, scale, threads, y):
    """One number for each group.

    Shapes   x (outer, C, inner), y (outer, inner), flat
    Writes   y (overwritten)
    Threads  one iteration per 4,096 numbers or one group, each owns its groups
    Source   ONNX ReduceSum-13 (times scale: ReduceMean-18), ReduceMax-20, ReduceMin-20, ReduceProd-18, ReduceL1-18,
             ReduceSumSquare-18, ReduceL2-18, ReduceLogSum-18, ReduceLogSumExp-18; sums in parts of 256 additions
    """
    jobs = job_count(x, y.size, C, inner)
    if threads > 1:
        for index in numba.prange(jobs):
            job = np.int64(index)
            _forward_job(x, y, job, C, inner, kind, scale)
    else:
        for job in range(jobs):
            _forward_job(x, y, job, C, inner, kind, scale)


@entry("x< y> outer C inner kind scale")
def forward(arena, row, batch):
    row = fields_of(row)
    size = batch * row.outer * row.inner
    reduce(view(arena, row.x, size * row.C), row.C, row.inner, row.kind, number(row.scale),
           threads_for(arena, _work_of(row.kind, size * row.C)), view(arena, row.y, size))


@helper
def _equal_numbers(x, at, stride, C, count, y, zeros, like):
    """How many numbers of each group equal y and, with zeros, the product of those that do not."""
    real = like.dtype.type
    zero, one = vector_of(like, real(0)), vector_of(like, real(1))
    equal, product = zero, one
    step = stride if count else lanes(like)
    for i in range(at, at + C * stride, step):
        have = count if count else at + C - i
        value = vector_take(x, i, have)
        equal = vector_add(equal, vector_where_first(have, vector_where_equal(value, y, one, zero), zero))
        if zeros:
            value = vector_where_equal(value, zero, one, value)
            product = vector_mul(product, vector_where_first(have, value, one))
    if count == 0:
        equal = vector_of(like, vector_sum(equal))
        if zeros:
            product = vector_of(like, vector_product(product))
    return equal, product


@helper
def _slopes(x, at, inner, C, count, y, dy, kind, scale, like):
    """Two vectors, of which each number's gradient is made: see _derivative."""
    real = like.dtype.type
    zero, one = vector_of(like, real(0)), vector_of(like, real(1))
    if kind == SUM:
        return vector_mul(dy, vector_of(like, real(scale))), zero
    if kind == MAX or kind == MIN:
        equal, _ = _equal_numbers(x, at, inner, C, count, y, False, like)
        return vector_div(dy, equal), y
    if kind == PRODUCT:
        zeros, others = _equal_numbers(x, at, inner, C, count, zero, True, like)
        through = vector_mul(dy, others)
        return (vector_where_equal(zeros, zero, through, zero), vector_where_equal(zeros, one, through, zero))
    if kind == SQUARES:
        return vector_add(dy, dy), zero
    if kind == LENGTH:
        return vector_where_equal(y, zero, zero, vector_div(dy, y)), zero
    if kind == LOG_SUM:
        return vector_div(dy, vector_exp(y)), zero
    return dy, y


@helper
def _derivative(x, slope, other, kind, like):
    """One vector of the gradient."""
    zero = vector_of(like, like.dtype.type(0))
    if kind == MAX or kind == MIN:
        return vector_where_equal(x, other, slope, zero)
    if kind == PRODUCT:
        return vector_where_equal(x, zero, other, vector_div(slope, x))
    if kind == MAGNITUDES:
        return vector_where_greater(x, zero, slope, vector_where_greater(zero, x, vector_sub(zero, slope), zero))
    if kind == SQUARES or kind == LENGTH:
        return vector_mul(slope, x)
    if kind == LOG_SUM_EXP:
        return vector_mul(slope, vector_exp(vector_sub(x, other)))
    return slope


@helper
def _backward_job(x, y, dy, dx, job, C, inner, kind, scale, accumulate):
    width, blocks, per_job = job_shape(dx, C, inner)
    units = dy.size // inner * blocks
    reads_x, reads_y = x.size > 0, y.size > 0
    zero = vector_of(dx, dx.dtype.type(0))
    for unit in range(job * per_job, min(units, (job + 1) * per_job)):
        at, to, count = unit_at(unit, width, blocks, C, inner)
        result, gradient = zero, zero
        if count:
            gradient = vector_take(dy, to, count)
            if reads_y:
                result = vector_take(y, to, count)
        else:
            gradient = vector_of(dx, dy[to])
            if reads_y:
                result = vector_of(dx, y[to])
        slope, other = _slopes(x, at, inner, C, count, result, gradient, kind, scale, dx)
        step = inner if count else lanes(dx)
        for i in range(at, at + C * inner, step):
            have = count if count else at + C - i
            value = _derivative(vector_take(x, i, have) if reads_x else zero, slope, other, kind, dx)
            if accumulate:
                value = vector_add(value, vector_take(dx, i, have))
            vector_write(value, dx, i, have)


@kernel
@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def reduce_backward(x, y, dy, C, inner, kind, scale, accumulate, threads, dx):
    """The gradient of reduce.

    Shapes   x, dx (outer, C, inner), y, dy (outer, inner), flat; x and y are empty where the kind does not need them
    Writes   dx (overwritten, or added to with accumulate)
    Threads  one iteration per 4,096 numbers or one group, each owns its groups
    Source   the derivatives of reduce; equal maxima or minima share the gradient, and a length of 0 has none
    """
    jobs = job_count(dx, dy.size, C, inner)
    if threads > 1:
        for index in numba.prange(jobs):
            job = np.int64(index)
            _backward_job(x, y, dy, dx, job, C, inner, kind, scale, accumulate)
    else:
        for job in range(jobs):
            _backward_job(x, y, dy, dx, job, C, inner, kind, scale, accumulate)


@entry("x< y< dy< dx= outer C inner kind scale accumulate")
def backward(arena, row, batch):
    row = fields_of(row)
    size = batch * row.outer * row.inner
    reduce_backward(view(arena, row.x, size * row.C if row.x >= 0 else 0), view(arena, row.y, size if row.y >= 0 else 0),
                    view(arena, row.dy, size), row.C, row.inner, row.kind, number(row.scale), row.accumulate,
                    threads_for(arena, _work_of(row.kind, size * row.C)), view(arena, row.dx, size * row.C))
