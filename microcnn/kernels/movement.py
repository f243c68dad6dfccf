"""Moving parts of tensors: boxes copied from one place to another, boxes filled, rows gathered and summed by a table.

A box is given by six sizes, the batch first, and the strides with which each tensor is walked; strides may be negative,
and 0 in the source, which repeats it.
"""
import numba
import numpy as np

from .compiler import helper, kernel
from .entry import entry, fields_of, number, threads_for, view, view_as
from .layout import BLOCK, SIDE, move_block, move_line
from .simd import lanes
from .vector import vector_add, vector_of, vector_read, vector_take, vector_write


@helper
def _sides(dims):
    """Rows and columns of a block of the two fastest axes."""
    return (max(1, min(dims[4], max(SIDE, BLOCK // max(1, dims[5])))),
            max(1, min(dims[5], max(SIDE, BLOCK // max(1, dims[4])))))


@helper
def _repeat_rows(x, from_at, row_stride, y, to_at, to_stride, rows, columns, accumulate):
    """Rows that each repeat one number of the source."""
    for i in range(rows):
        value = vector_of(y, x[from_at + i * row_stride])
        for j in range(0, columns, lanes(y)):
            to = to_at + i * to_stride + j
            if accumulate:
                vector_write(vector_add(value, vector_read(y, y, to, columns - j)), y, to, columns - j)
            else:
                vector_write(value, y, to, columns - j)


@helper
def _copy_blocks(x, x_at, y, y_at, begin, end, dims, x_strides, y_strides, accumulate):
    """Blocks begin to end, counted over the batch, the three outer axes, and the two of the blocks."""
    rows, columns = _sides(dims)
    across, down = (dims[5] + columns - 1) // columns, (dims[4] + rows - 1) // rows
    for index in range(begin, end):
        rest, k = index // across, index % across * columns
        rest, j = rest // down, rest % down * rows
        rest, i2 = rest // dims[3], rest % dims[3]
        rest, i1 = rest // dims[2], rest % dims[2]
        n, i0 = rest // dims[1], rest % dims[1]
        from_at = (x_at + n * x_strides[0] + i0 * x_strides[1] + i1 * x_strides[2] + i2 * x_strides[3] + j * x_strides[4]
                   + k * x_strides[5])
        to_at = (y_at + n * y_strides[0] + i0 * y_strides[1] + i1 * y_strides[2] + i2 * y_strides[3] + j * y_strides[4]
                 + k * y_strides[5])
        height, width = min(rows, dims[4] - j), min(columns, dims[5] - k)
        if y_strides[5] != 1:
            for i in range(height):
                move_line(x, from_at + i * x_strides[4], x_strides[5], y, to_at + i * y_strides[4], y_strides[5], width,
                          accumulate)
        elif x_strides[5] == 0:
            _repeat_rows(x, from_at, x_strides[4], y, to_at, y_strides[4], height, width, accumulate)
        else:
            move_block(x, from_at, x_strides[4], x_strides[5], y, to_at, y_strides[4], height, width, accumulate, y)


@helper
def _block_count(dims):
    rows, columns = _sides(dims)
    return (dims[0] * dims[1] * dims[2] * dims[3] * ((dims[4] + rows - 1) // rows) * ((dims[5] + columns - 1) // columns))


@helper
def _blocks_per_job(dims):
    rows, columns = _sides(dims)
    return max(1, BLOCK // (rows * columns))


@helper
def _copy_job(job, x, x_at, y, y_at, dims, x_strides, y_strides, accumulate):
    group = _blocks_per_job(dims)
    _copy_blocks(x, x_at, y, y_at, job * group, min(_block_count(dims), (job + 1) * group), dims, x_strides, y_strides,
                 accumulate)


@kernel
@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def copy_box(x, x_at, dims, x_strides, y_strides, accumulate, threads, y, y_at):
    """Copy a box of x into a box of y.

    Shapes   dims (N, d0, d1, d2, d3, d4) of both boxes, which begin at x_at and y_at; strides in numbers; flat
    Writes   the box of y (overwritten, or added to with accumulate), whose numbers are all different
    Threads  one iteration per group of blocks of the box, each owns its blocks
    Source   ONNX Concat-13, Slice-13, Pad-13, Tile-13, Expand-13, and the gradients of the first three
    """
    group = _blocks_per_job(dims)
    jobs = (_block_count(dims) + group - 1) // group
    if threads > 1 and jobs > 1:
        for index in numba.prange(jobs):
            job = np.int64(index)
            _copy_job(job, x, x_at, y, y_at, dims, x_strides, y_strides, accumulate)
    else:
        for job in range(jobs):
            _copy_job(job, x, x_at, y, y_at, dims, x_strides, y_strides, accumulate)


@entry("x< y= x_at y_at x_batch y_batch d0 d1 d2 d3 d4 s0 s1 s2 s3 s4 t0 t1 t2 t3 t4 accumulate")
def copy(arena, row, batch):
    row = fields_of(row)
    dims = (batch, row.d0, row.d1, row.d2, row.d3, row.d4)
    copy_box(view(arena, row.x, batch * row.x_batch), row.x_at, dims,
             (row.x_batch, row.s0, row.s1, row.s2, row.s3, row.s4),
             (row.y_batch, row.t0, row.t1, row.t2, row.t3, row.t4), row.accumulate,
             threads_for(arena, batch * row.d0 * row.d1 * row.d2 * row.d3 * row.d4),
             view(arena, row.y, batch * row.y_batch), row.y_at)


@entry("x< y= rows per_sample columns x_row y_row accumulate")
def columns(arena, row, batch):
    # the first columns of rows that lie x_row apart, put or added to those of rows that lie y_row apart
    row = fields_of(row)
    rows = row.rows * (batch if row.per_sample else 1)
    copy_box(view(arena, row.x, rows * row.x_row), 0, (1, 1, 1, 1, rows, row.columns), (0, 0, 0, 0, row.x_row, 1),
             (0, 0, 0, 0, row.y_row, 1), row.accumulate, threads_for(arena, rows * row.columns),
             view(arena, row.y, rows * row.y_row), 0)


@helper
def _fill_rows(y, y_at, begin, end, dims, strides, value):
    """Rows begin to end of a box whose fastest axis is contiguous."""
    vector = vector_of(y, y.dtype.type(value))
    for index in range(begin, end):
        rest, i3 = index // dims[4], index % dims[4]
        rest, i2 = rest // dims[3], rest % dims[3]
        rest, i1 = rest // dims[2], rest % dims[2]
        n, i0 = rest // dims[1], rest % dims[1]
        at = y_at + n * strides[0] + i0 * strides[1] + i1 * strides[2] + i2 * strides[3] + i3 * strides[4]
        for j in range(0, dims[5], lanes(y)):
            vector_write(vector, y, at + j, dims[5] - j)


@kernel
@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def fill_box(value, dims, strides, threads, y, y_at):
    """One number everywhere in a box of y.

    Shapes   dims (N, d0, d1, d2, d3, d4) of the box, which begins at y_at; strides in numbers, the last one 1; flat
    Writes   the box of y (overwritten)
    Threads  one iteration per group of rows, each owns its rows
    Source   ONNX Pad-13, mode constant; the zeros around the gradient of Slice
    """
    rows = dims[0] * dims[1] * dims[2] * dims[3] * dims[4]
    group = max(1, BLOCK // max(1, dims[5]))
    jobs = (rows + group - 1) // group
    if threads > 1 and jobs > 1:
        for index in numba.prange(jobs):
            job = np.int64(index)
            _fill_rows(y, y_at, job * group, min(rows, (job + 1) * group), dims, strides, value)
    else:
        _fill_rows(y, y_at, 0, rows, dims, strides, value)


@entry("y= y_at y_batch d0 d1 d2 d3 d4 t0 t1 t2 t3 t4 value")
def fill(arena, row, batch):
    row = fields_of(row)
    fill_box(number(row.value), (batch, row.d0, row.d1, row.d2, row.d3, row.d4),
             (row.y_batch, row.t0, row.t1, row.t2, row.t3, row.t4),
             threads_for(arena, batch * row.d0 * row.d1 * row.d2 * row.d3 * row.d4),
             view(arena, row.y, batch * row.y_batch), row.y_at)


@helper
def _gather_short(x, order, first, last, x_at, inner, y, y_at, accumulate):
    """A row too short for a register."""
    for c in range(inner):
        total = y.dtype.type(0)
        if first < last:
            total = x[x_at + order[first] * inner + c]
        for k in range(first + 1, last):
            total += x[x_at + order[k] * inner + c]
        if accumulate:
            total += y[y_at + c]
        y[y_at + c] = total


@helper
def _gather_long(x, order, first, last, x_at, inner, y, y_at, accumulate):
    """A row, a register at a time."""
    for c in range(0, inner, lanes(y)):
        count = inner - c
        total = vector_of(y, y.dtype.type(0))
        if first < last:
            total = vector_take(x, x_at + order[first] * inner + c, count)
        for k in range(first + 1, last):
            total = vector_add(total, vector_take(x, x_at + order[k] * inner + c, count))
        if accumulate:
            total = vector_add(total, vector_take(y, y_at + c, count))
        vector_write(total, y, y_at + c, count)


@helper
def _gather_rows(x, order, starts, begin, end, size, count, inner, accumulate, y):
    """Rows begin to end of y."""
    for row in range(begin, end):
        outer, i = row // count, row % count
        if inner < 4:
            _gather_short(x, order, starts[i], starts[i + 1], outer * size * inner, inner, y, row * inner, accumulate)
        else:
            _gather_long(x, order, starts[i], starts[i + 1], outer * size * inner, inner, y, row * inner, accumulate)


@kernel
@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def sum_rows(x, order, starts, outer, size, count, inner, accumulate, threads, y):
    """y[o, i] = the sum of x[o, order[k]] over k from starts[i] to starts[i + 1]; 0 where there is none.

    Shapes   x (outer, size, inner), y (outer, count, inner), order (any), starts (count + 1); flat
    Writes   y (overwritten, or added to with accumulate)
    Threads  one iteration per group of rows of y, each owns its rows; sums in the table's order
    Source   ONNX Gather-13 and Pad-13 by reflection, edge or wrapping; with the inverse table, their gradients
    """
    rows = outer * count
    group = max(1, BLOCK // max(1, inner))
    jobs = (rows + group - 1) // group
    if threads > 1 and jobs > 1:
        for index in numba.prange(jobs):
            job = np.int64(index)
            _gather_rows(x, order, starts, job * group, min(rows, (job + 1) * group), size, count, inner, accumulate, y)
    else:
        _gather_rows(x, order, starts, 0, rows, size, count, inner, accumulate, y)


@entry("x< order< starts< y= outer size count inner entries accumulate")
def gather(arena, row, batch):
    row = fields_of(row)
    outer = batch * row.outer
    sum_rows(view(arena, row.x, outer * row.size * row.inner), view_as(arena, row.order, row.entries, np.int64),
             view_as(arena, row.starts, row.count + 1, np.int64), outer, row.size, row.count, row.inner, row.accumulate,
             threads_for(arena, outer * (row.count + row.entries) * row.inner),
             view(arena, row.y, outer * row.count * row.inner))
