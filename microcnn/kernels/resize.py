"""Resizing along one axis: every output position is a weighted sum of a few input positions, which a table lists.

The table is a sparse matrix by rows: position p is made of the taps begin[p] to begin[p + 1] - 1, tap t being weight[t]
times input position index[t]. Its transpose is the table of the gradient.
"""
import numba
import numpy as np

from .compiler import helper, kernel
from .entry import entry, fields_of, number, threads_for, view, view_as
from .simd import lanes
from .vector import vector_add, vector_fma, vector_mul, vector_of, vector_take, vector_write

BLOCK = 4096


@helper
def _blend_one(x, at, index, weight, first, last, fill, y, i, accumulate):
    """One output number where the input's numbers along the axis are neighbours."""
    if first < last:
        total = weight[first] * x[at + index[first]]
        for t in range(first + 1, last):
            total += weight[t] * x[at + index[t]]
    else:
        total = y.dtype.type(fill)
    y[i] = total + y[i] if accumulate else total


@helper
def _blend(x, at, stride, index, weight, first, last, fill, y, begin, count, accumulate):
    """`count` neighbouring output numbers of one position; at: where the first of them lies in input position 0."""
    step = lanes(y)
    for c in range(0, count, step):
        left = min(step, count - c)
        if first < last:
            total = vector_mul(vector_of(y, weight[first]), vector_take(x, at + index[first] * stride + c, left))
            for t in range(first + 1, last):
                total = vector_fma(vector_of(y, weight[t]), vector_take(x, at + index[t] * stride + c, left), total)
        else:
            total = vector_of(y, y.dtype.type(fill))
        if accumulate:
            total = vector_add(total, vector_take(y, begin + c, left))
        vector_write(total, y, begin + c, left)


@helper
def _units(inner):
    """Into how many blocks a position's numbers are cut, and how many such blocks one job takes."""
    return (inner + BLOCK - 1) // BLOCK, max(1, BLOCK // inner)


@helper
def _job(x, begin, index, weight, y, job, length, inner, fill, accumulate):
    positions = begin.size - 1
    blocks, per_job = _units(inner)
    unit = job * per_job
    end = min(y.size // inner * blocks, unit + per_job)
    block, row = unit % blocks, unit // blocks
    position, outer = row % positions, row // positions
    for _ in range(unit, end):
        first, last = np.int64(begin[position]), np.int64(begin[position + 1])
        at, to = outer * length * inner, (outer * positions + position) * inner
        if inner == 1:
            _blend_one(x, at, index, weight, first, last, fill, y, to, accumulate)
        else:
            skip = block * BLOCK
            _blend(x, at + skip, inner, index, weight, first, last, fill, y, to + skip, min(BLOCK, inner - skip), accumulate)
        block += 1
        if block == blocks:
            block = 0
            position += 1
            if position == positions:
                position = 0
                outer += 1


@kernel
@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def blend(x, begin, index, weight, length, inner, fill, accumulate, threads, y):
    """Weighted sums of positions along one axis.

    Shapes   x (outer, length, inner), y (outer, positions, inner), begin (positions + 1), index and weight (taps); flat
    Writes   y (overwritten, or added to with accumulate); positions without taps become fill
    Threads  one iteration per 4,096 numbers, each owns its part of y
    Source   ONNX Resize-19 along one axis: what it does along several is the same along one after the other
    """
    blocks, per_job = _units(inner)
    jobs = (y.size // inner * blocks + per_job - 1) // per_job
    if threads > 1:
        for count in numba.prange(jobs):
            job = np.int64(count)
            _job(x, begin, index, weight, y, job, length, inner, fill, accumulate)
    else:
        for job in range(jobs):
            _job(x, begin, index, weight, y, job, length, inner, fill, accumulate)


@entry("x< begin< index< weight< y> outer length positions inner taps fill")
def forward(arena, row, batch):
    row = fields_of(row)
    rows = row.outer * batch
    blend(view(arena, row.x, rows * row.length * row.inner), view_as(arena, row.begin, row.positions + 1, np.int32),
          view_as(arena, row.index, row.taps, np.int32), view(arena, row.weight, row.taps), row.length, row.inner,
          number(row.fill), 0, threads_for(arena, rows * row.inner * (row.taps * 2 + row.positions)),
          view(arena, row.y, rows * row.positions * row.inner))


# The table is the transposed one here: `length` positions of dy make each of the `positions` of dx.
@entry("dy< begin< index< weight< dx= outer length positions inner taps accumulate")
def backward(arena, row, batch):
    row = fields_of(row)
    rows = row.outer * batch
    blend(view(arena, row.dy, rows * row.length * row.inner), view_as(arena, row.begin, row.positions + 1, np.int32),
          view_as(arena, row.index, row.taps, np.int32), view(arena, row.weight, row.taps), row.length, row.inner,
          0.0, row.accumulate, threads_for(arena, rows * row.inner * (row.taps * 2 + row.positions)),
          view(arena, row.dx, rows * row.positions * row.inner))
