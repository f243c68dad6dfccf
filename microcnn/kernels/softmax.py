"""Softmax and log-softmax along any axis, forward and backward. A group, as in axis.py, is what one softmax normalises."""
import numba
import numpy as np

from .axis import job_count, job_shape, unit_at
from .compiler import helper, kernel
from .entry import entry, fields_of, threads_for, view
from .simd import lanes
from .vector import (
    vector_add,
    vector_div,
    vector_exp,
    vector_fma,
    vector_highest,
    vector_log,
    vector_max,
    vector_mul,
    vector_of,
    vector_sub,
    vector_sum,
    vector_take,
    vector_where_first,
    vector_write,
)

SOFTMAX, LOG_SOFTMAX = range(2)


@helper
def _forward_row(x, y, at, C, kind):
    """One contiguous group. A NaN does not win the maximum, but it makes the sum NaN, and so the whole group."""
    step = lanes(x)
    real = x.dtype.type
    lowest, zero = vector_of(x, real(-np.inf)), vector_of(x, real(0))
    highest = lowest
    for c in range(0, C, step):
        count = min(step, C - c)
        highest = vector_max(highest, vector_where_first(count, vector_take(x, at + c, count), lowest))
    top = vector_of(x, vector_highest(highest))
    total = zero
    for c in range(0, C, step):
        count = min(step, C - c)
        power = vector_exp(vector_sub(vector_take(x, at + c, count), top))
        total = vector_add(total, vector_where_first(count, power, zero))
        if kind == SOFTMAX:
            vector_write(power, y, at + c, count)
    total = vector_of(x, vector_sum(total))
    if kind == SOFTMAX:
        factor = vector_div(vector_of(x, real(1)), total)
        for c in range(0, C, step):
            count = min(step, C - c)
            vector_write(vector_mul(vector_take(y, at + c, count), factor), y, at + c, count)
    else:
        logarithm = vector_log(total)
        for c in range(0, C, step):
            count = min(step, C - c)
            vector_write(vector_sub(vector_sub(vector_take(x, at + c, count), top), logarithm), y, at + c, count)


@helper
def _forward_columns(x, y, at, count, C, inner, kind):
    """Up to a register of neighbouring groups."""
    real = x.dtype.type
    top = vector_of(x, real(-np.inf))
    for c in range(C):
        top = vector_max(top, vector_take(x, at + c * inner, count))
    total = vector_of(x, real(0))
    for c in range(C):
        power = vector_exp(vector_sub(vector_take(x, at + c * inner, count), top))
        total = vector_add(total, power)
        if kind == SOFTMAX:
            vector_write(power, y, at + c * inner, count)
    if kind == SOFTMAX:
        factor = vector_div(vector_of(x, real(1)), total)
        for c in range(C):
            vector_write(vector_mul(vector_take(y, at + c * inner, count), factor), y, at + c * inner, count)
    else:
        logarithm = vector_log(total)
        for c in range(C):
            i = at + c * inner
            vector_write(vector_sub(vector_sub(vector_take(x, i, count), top), logarithm), y, i, count)


@helper
def _forward_job(x, y, job, C, inner, kind):
    width, blocks, per_job = job_shape(x, C, inner)
    units = x.size // (C * inner) * blocks
    for unit in range(job * per_job, min(units, (job + 1) * per_job)):
        at, _, count = unit_at(unit, width, blocks, C, inner)
        if inner == 1:
            _forward_row(x, y, at, C, kind)
        else:
            _forward_columns(x, y, at, count, C, inner, kind)


@kernel
@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def softmax_forward(x, C, inner, kind, threads, y):
    """Softmax (kind 0) or its logarithm (kind 1) of each group.

    Shapes   x, y (outer, C, inner), flat; they may be the same buffer
    Writes   y (overwritten)
    Threads  one iteration per 4,096 numbers or one group, each owns its groups
    Source   ONNX Softmax-13, LogSoftmax-13, the group's maximum subtracted; a group with a NaN is NaN
    """
    jobs = job_count(x, x.size // C, C, inner)
    if threads > 1:
        for index in numba.prange(jobs):
            job = np.int64(index)
            _forward_job(x, y, job, C, inner, kind)
    else:
        for job in range(jobs):
            _forward_job(x, y, job, C, inner, kind)


@entry("x< y> rows C inner kind")
def forward(arena, row, batch):
    # rows: groups per sample, so that a sample has rows * C numbers whatever inner is
    row = fields_of(row)
    size = row.rows * row.C * batch
    softmax_forward(view(arena, row.x, size), row.C, row.inner, row.kind, threads_for(arena, size * 20),
                    view(arena, row.y, size))


@helper
def _derivative(y, dy, dot, kind, zero):
    """One vector of the gradient; dot is the sum of dy y (softmax) or of dy (log-softmax) over the group."""
    if kind == SOFTMAX:
        return vector_mul(y, vector_sub(dy, dot))
    return vector_fma(vector_sub(zero, vector_exp(y)), dot, dy)


@helper
def _backward_row(y, dy, dx, at, C, kind, accumulate):
    step = lanes(y)
    zero = vector_of(y, y.dtype.type(0))
    dot = zero
    for c in range(0, C, step):
        count = min(step, C - c)
        value = vector_take(dy, at + c, count)
        dot = vector_add(dot, vector_mul(value, vector_take(y, at + c, count)) if kind == SOFTMAX else value)
    dot = vector_of(y, vector_sum(dot))
    for c in range(0, C, step):
        count = min(step, C - c)
        value = _derivative(vector_take(y, at + c, count), vector_take(dy, at + c, count), dot, kind, zero)
        if accumulate:
            value = vector_add(value, vector_take(dx, at + c, count))
        vector_write(value, dx, at + c, count)


@helper
def _backward_columns(y, dy, dx, at, count, C, inner, kind, accumulate):
    zero = vector_of(y, y.dtype.type(0))
    dot = zero
    for c in range(C):
        value = vector_take(dy, at + c * inner, count)
        dot = vector_add(dot, vector_mul(value, vector_take(y, at + c * inner, count)) if kind == SOFTMAX else value)
    for c in range(C):
        i = at + c * inner
        value = _derivative(vector_take(y, i, count), vector_take(dy, i, count), dot, kind, zero)
        if accumulate:
            value = vector_add(value, vector_take(dx, i, count))
        vector_write(value, dx, i, count)


@helper
def _backward_job(y, dy, dx, job, C, inner, kind, accumulate):
    width, blocks, per_job = job_shape(y, C, inner)
    units = y.size // (C * inner) * blocks
    for unit in range(job * per_job, min(units, (job + 1) * per_job)):
        at, _, count = unit_at(unit, width, blocks, C, inner)
        if inner == 1:
            _backward_row(y, dy, dx, at, C, kind, accumulate)
        else:
            _backward_columns(y, dy, dx, at, count, C, inner, kind, accumulate)


@kernel
@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def softmax_backward(y, dy, C, inner, kind, accumulate, threads, dx):
    """The gradient of softmax (kind 0) or log-softmax (kind 1) from its output.

    Shapes   y, dy, dx (outer, C, inner), flat; dx may be y or dy (unless it accumulates)
    Writes   dx (overwritten, or added to with accumulate)
    Threads  one iteration per 4,096 numbers or one group, each owns its groups
    Source   dx = y (dy - sum(dy y)); for the logarithm dx = dy - exp(y) sum(dy)
    """
    jobs = job_count(y, y.size // C, C, inner)
    if threads > 1:
        for index in numba.prange(jobs):
            job = np.int64(index)
            _backward_job(y, dy, dx, job, C, inner, kind, accumulate)
    else:
        for job in range(jobs):
            _backward_job(y, dy, dx, job, C, inner, kind, accumulate)


@entry("y< dy< dx= rows C inner kind accumulate")
def backward(arena, row, batch):
    row = fields_of(row)
    size = row.rows * row.C * batch
    softmax_backward(view(arena, row.y, size), view(arena, row.dy, size), row.C, row.inner, row.kind, row.accumulate,
                     threads_for(arena, size * 20), view(arena, row.dx, size))
