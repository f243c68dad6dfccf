"""Moving tensors: other axis orders, the caller's arrays in and out, zeros and copies.

A tensor is given by five sizes, slowest axis first, of one sample of the target, and by the strides with which the
source is read. Axes that lie one after the other on both sides are joined; what is left is cut into blocks of two axes,
the target's fastest one and, where there is one, that along which the source is contiguous.
"""
import numba
import numpy as np

from .compiler import helper, kernel
from .entry import entry, fields_of, outside, slot, threads_for, view
from .simd import MR4, lanes
from .transpose import interleave_three, transpose_square
from .vector import (
    vector_add,
    vector_load,
    vector_load_first,
    vector_of,
    vector_read,
    vector_store,
    vector_store_first,
    vector_write,
)

BLOCK = 4096    # numbers in a block, and the least that a job moves
SIDE = 64


@helper
def copy_run(x, x_at, y, y_at, count):
    """y[y_at : y_at + count] = x[x_at : x_at + count]; slices would say the same and take ten times as long to compile."""
    step = lanes(y)
    i = 0
    while i + step <= count:
        vector_store(vector_load(x, x_at + i), y, y_at + i)
        i += step
    if i < count:
        vector_store_first(vector_load_first(x, x_at + i, count - i), y, y_at + i, count - i)


@helper
def vectors_of(columns, width):
    """How many registers wide the tiles are that begin where so many columns are left."""
    return 4 if MR4 > 0 and columns > 3 * width else 2 if columns > width else 1


@helper
def copy_panels(weight, at, w_row, rows, k_begin, k_end, panel):
    """Columns k_begin to k_end of some rows, the first at `at`: a matrix for each width of tiles, one behind the other.

    The weight is read in its order, which memory is made for; columns past the last are not written.
    """
    width = lanes(weight)
    for i in range(rows):
        k = k_begin
        while k < k_end:
            columns = vectors_of(k_end - k, width) * width
            copy_run(weight, at + i * w_row + k, panel, (k - k_begin) * rows + i * columns, min(k_end - k, columns))
            k += columns


@helper
def zero_run(y, at, count):
    """y[at : at + count] = 0"""
    step = lanes(y)
    zero = vector_of(y, y.dtype.type(0))
    i = 0
    while i + step <= count:
        vector_store(zero, y, at + i)
        i += step
    if i < count:
        vector_store_first(zero, y, at + i, count - i)


@helper
def _joins(outer_size, outer_stride, size, stride):
    return outer_size == 1 or size == 1 or outer_stride == size * stride


@helper
def _joined(sizes, strides):
    """Sizes and strides with neighbouring axes joined where the source allows it, sizes of 1 in front."""
    d0, d1, d2, d3, d4 = sizes
    s0, s1, s2, s3, s4 = strides
    for _ in range(4):
        if _joins(d3, s3, d4, s4):
            s4 = s3 if d4 == 1 else s4
            d4, d3, d2, d1, d0 = d3 * d4, d2, d1, d0, 1
            s3, s2, s1, s0 = s2, s1, s0, 0
    for _ in range(3):
        if _joins(d2, s2, d3, s3):
            s3 = s2 if d3 == 1 else s3
            d3, d2, d1, d0 = d2 * d3, d1, d0, 1
            s2, s1, s0 = s1, s0, 0
    for _ in range(2):
        if _joins(d1, s1, d2, s2):
            s2 = s1 if d2 == 1 else s2
            d2, d1, d0 = d1 * d2, d0, 1
            s1, s0 = s0, 0
    if _joins(d0, s0, d1, s1):
        s1 = s0 if d1 == 1 else s1
        d1, d0, s0 = d0 * d1, 1, 0
    return (d0, d1, d2, d3, d4), (s0, s1, s2, s3, s4)


@helper
def _blocks(sizes, strides):
    """The joined sizes, strides in source and target, and the sides of a block."""
    (d0, d1, d2, d3, d4), (s0, s1, s2, s3, s4) = _joined(sizes, strides)
    t3 = d4
    t2 = d3 * t3
    t1 = d2 * t2
    t0 = d1 * t1
    # the row axis becomes the one along which the source is contiguous
    if s4 != 1 and s3 != 1:
        if s2 == 1:
            d2, s2, t2, d3, s3, t3 = d3, s3, t3, d2, s2, t2
        elif s1 == 1:
            d1, s1, t1, d3, s3, t3 = d3, s3, t3, d1, s1, t1
        elif s0 == 1:
            d0, s0, t0, d3, s3, t3 = d3, s3, t3, d0, s0, t0
    rows = min(d3, max(SIDE, BLOCK // max(1, d4)))
    columns = min(d4, max(SIDE, BLOCK // max(1, d3)))
    return (d0, d1, d2, d3, d4), (s0, s1, s2, s3, s4), (t0, t1, t2, t3), max(1, rows), max(1, columns)


@helper
def move_line(x, from_at, from_stride, y, to_at, to_stride, count, accumulate):
    """One number after the other; unsigned positions spare the test for negative ones."""
    convert = y.dtype.type
    if accumulate:
        for i in range(count):
            y[np.uintp(to_at + i * to_stride)] += convert(x[np.uintp(from_at + i * from_stride)])
    else:
        for i in range(count):
            y[np.uintp(to_at + i * to_stride)] = convert(x[np.uintp(from_at + i * from_stride)])


@helper
def _move_singly(x, from_at, row_stride, column_stride, y, to_at, to_stride, rows, columns, accumulate):
    """A block, number by number, the longer side innermost."""
    if rows > columns:
        for j in range(columns):
            move_line(x, from_at + j * column_stride, row_stride, y, to_at + j, to_stride, rows, accumulate)
    else:
        for i in range(rows):
            move_line(x, from_at + i * row_stride, column_stride, y, to_at + i * to_stride, 1, columns, accumulate)


@helper
def move_block(x, from_at, row_stride, column_stride, y, to_at, to_stride, rows, columns, accumulate, like):
    """y[to_at + i * to_stride + j] = x[from_at + i * row_stride + j * column_stride]"""
    step = lanes(like)
    if column_stride == 1:
        for i in range(rows):
            for j in range(0, columns, step):
                to = to_at + i * to_stride + j
                value = vector_read(like, x, from_at + i * row_stride + j, columns - j)
                if accumulate:
                    value = vector_add(value, vector_read(like, y, to, columns - j))
                vector_write(value, y, to, columns - j)
        return
    if row_stride == 1 and columns == 3 and to_stride == 3 and not accumulate:
        whole = rows - rows % step           # three colours, which a picture has
        for i in range(0, whole, step):
            interleave_three(like, x, from_at + i, column_stride, y, to_at + 3 * i)
        _move_singly(x, from_at + whole, 1, column_stride, y, to_at + 3 * whole, 3, rows - whole, 3, accumulate)
        return
    square_rows, square_columns = 0, 0
    if row_stride == 1 and rows >= step and columns >= step:
        square_rows, square_columns = rows - rows % step, columns - columns % step
        for j in range(0, square_columns, step):
            for i in range(0, square_rows, step):
                transpose_square(like, x, from_at + i + j * column_stride, column_stride, y, to_at + i * to_stride + j,
                                to_stride, accumulate)
    _move_singly(x, from_at + square_columns * column_stride, row_stride, column_stride, y, to_at + square_columns,
                 to_stride, square_rows, columns - square_columns, accumulate)
    _move_singly(x, from_at + square_rows * row_stride, row_stride, column_stride, y, to_at + square_rows * to_stride,
                 to_stride, rows - square_rows, columns, accumulate)


@helper
def _move_blocks(x, y, begin, end, blocks, size, accumulate, like):
    """Blocks begin to end, counted over samples, the three outer axes, and the two of the blocks."""
    (d0, d1, d2, d3, d4), (s0, s1, s2, s3, s4), (t0, t1, t2, t3), rows, columns = blocks
    across, down = (d4 + columns - 1) // columns, (d3 + rows - 1) // rows
    rest, k = begin // across, begin % across
    rest, j = rest // down, rest % down
    rest, i2 = rest // d2, rest % d2
    rest, i1 = rest // d1, rest % d1
    n, i0 = rest // d0, rest % d0
    for _ in range(begin, end):
        from_at = n * size + i0 * s0 + i1 * s1 + i2 * s2 + j * rows * s3 + k * columns * s4
        to_at = n * size + i0 * t0 + i1 * t1 + i2 * t2 + j * rows * t3 + k * columns
        move_block(x, from_at, s3, s4, y, to_at, t3, min(rows, d3 - j * rows), min(columns, d4 - k * columns),
                    accumulate, like)
        k += 1
        if k == across:
            k, j = 0, j + 1
            if j == down:
                j, i2 = 0, i2 + 1
                if i2 == d2:
                    i2, i1 = 0, i1 + 1
                    if i1 == d1:
                        i1, i0 = 0, i0 + 1
                        if i0 == d0:
                            i0, n = 0, n + 1


@helper
def _counts(batch, blocks):
    """How many blocks there are, and how many of them make a job."""
    (d0, d1, d2, d3, d4), _, _, rows, columns = blocks
    return (batch * d0 * d1 * d2 * ((d3 + rows - 1) // rows) * ((d4 + columns - 1) // columns),
            max(1, BLOCK // (rows * columns)))


@helper
def _size(sizes):
    d0, d1, d2, d3, d4 = sizes
    return d0 * d1 * d2 * d3 * d4


@helper
def _move_job(job, x, batch, d0, d1, d2, d3, d4, s0, s1, s2, s3, s4, accumulate, y):
    """One group of blocks. prange carries no tuples, so each job works out the blocks again."""
    sizes = (d0, d1, d2, d3, d4)
    blocks = _blocks(sizes, (s0, s1, s2, s3, s4))
    count, group = _counts(batch, blocks)
    _move_blocks(x, y, job * group, min(count, (job + 1) * group), blocks, _size(sizes), accumulate, y)


@kernel
@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def move(x, batch, d0, d1, d2, d3, d4, s0, s1, s2, s3, s4, accumulate, threads, y):
    """Put the axes of each sample into another order.

    Shapes   y (N, d0, d1, d2, d3, d4), x of as many numbers, read with the strides of one sample; flat
    Writes   y (overwritten, or added to with accumulate)
    Threads  one iteration per group of blocks of y, each owns its blocks
    Source   ONNX Transpose; with accumulate, the gradient of one
    """
    jobs = 0
    if d0 * d1 * d2 * d3 * d4 > 0:
        count, group = _counts(batch, _blocks((d0, d1, d2, d3, d4), (s0, s1, s2, s3, s4)))
        jobs = (count + group - 1) // group
    if threads > 1 and jobs > 1:
        for index in numba.prange(jobs):
            job = np.int64(index)
            _move_job(job, x, batch, d0, d1, d2, d3, d4, s0, s1, s2, s3, s4, accumulate, y)
    else:
        for job in range(jobs):
            _move_job(job, x, batch, d0, d1, d2, d3, d4, s0, s1, s2, s3, s4, accumulate, y)


@helper
def _numbers(row):
    return row.d0 * row.d1 * row.d2 * row.d3 * row.d4


@helper
def _move(x, batch, row, accumulate, threads, y):
    move(x, batch, row.d0, row.d1, row.d2, row.d3, row.d4, row.s0, row.s1, row.s2, row.s3, row.s4, accumulate, threads,
         y)


@entry("x< y> d0 d1 d2 d3 d4 s0 s1 s2 s3 s4")
def permute(arena, row, batch):
    row = fields_of(row)
    count = batch * _numbers(row)
    _move(view(arena, row.x, count), batch, row, False, threads_for(arena, count), view(arena, row.y, count))


@entry("x< y= d0 d1 d2 d3 d4 s0 s1 s2 s3 s4")
def accumulate_permute(arena, row, batch):
    row = fields_of(row)
    count = batch * _numbers(row)
    _move(view(arena, row.x, count), batch, row, True, threads_for(arena, count), view(arena, row.y, count))


@entry("y> slot d0 d1 d2 d3 d4 s0 s1 s2 s3 s4")
def input(arena, row, batch):
    # reads the caller's array, of the network's dtype, whose address stands in the slot
    row = fields_of(row)
    count = batch * _numbers(row)
    y = view(arena, row.y, count)
    _move(outside(slot(arena, row.slot), count, y.dtype), batch, row, False, threads_for(arena, count), y)


@entry("x< slot d0 d1 d2 d3 d4 s0 s1 s2 s3 s4")
def output(arena, row, batch):
    # writes the caller's array, of the network's dtype, whose address stands in the slot
    row = fields_of(row)
    count = batch * _numbers(row)
    x = view(arena, row.x, count)
    _move(x, batch, row, False, threads_for(arena, count), outside(slot(arena, row.slot), count, x.dtype))


@helper
def _fill_chunk(y, begin, end):
    value = vector_of(y, y.dtype.type(0))
    for i in range(begin, end, lanes(y)):
        vector_write(value, y, i, end - i)


@kernel
@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def fill_zero(threads, y):
    """Zeros.

    Shapes   y (any), flat
    Writes   y (overwritten)
    Threads  one iteration per chunk of 4,096 numbers, each owns its part of y
    Source   the gradient of what nothing depends on
    """
    chunks = (y.size + BLOCK - 1) // BLOCK
    if threads > 1:
        for index in numba.prange(chunks):
            chunk = np.int64(index)
            _fill_chunk(y, chunk * BLOCK, min(y.size, (chunk + 1) * BLOCK))
    else:
        for chunk in range(chunks):
            _fill_chunk(y, chunk * BLOCK, min(y.size, (chunk + 1) * BLOCK))


@entry("y> size per_sample")
def zero(arena, row, batch):
    row = fields_of(row)
    size = row.size * (batch if row.per_sample else 1)
    fill_zero(threads_for(arena, size), view(arena, row.y, size))


@entry("x< y> size per_sample")
def copy(arena, row, batch):
    row = fields_of(row)
    size = row.size * (batch if row.per_sample else 1)
    move(view(arena, row.x, size), 1, 1, 1, 1, 1, size, 0, 0, 0, 0, 1, False, threads_for(arena, size),
         view(arena, row.y, size))
