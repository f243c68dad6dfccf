"""Products of many matrices at once: both operands tensors, or one of them a constant, repeated where they broadcast.

Matrices are visited by an odometer over the batch and up to three axes; a result that does not have one of them is summed
along it, which makes one kernel of the product and of both its gradients.
"""
import numba
import numpy as np

from .compiler import helper, kernel
from .elementwise import next_place, place_of, row_at, rows_of
from .elementwise_gradient import kept_axes, repeated_axes
from .entry import entry, fields_of, threads_for, view
from .linear import transpose_matrix
from .linear_weight import BLOCK
from .rows import rows_strided
from .simd import MASKS_ARE_FREE, MR1, MR2, MR4, lanes
from .tile import tile_add, tile_store, tile_zeros
from .tile_fma import tile_fma, tile_fma_tail

# Rows of a result that one iteration of a parallel loop takes.
ROWS = 48


@helper
def _tile(a, a_at, a_row, a_col, count, b, b_at, b_row, columns, begin, end, first, y, y_at, K, mr, nv):
    """`count` rows and `columns` columns of y from the inner numbers begin to end: overwritten when first, else added to."""
    tile = tile_zeros(a, mr, nv)
    rows = rows_strided(a_at, a_row, count, mr)
    if MASKS_ARE_FREE or columns < nv * lanes(a):
        for c in range(begin, end):
            tile = tile_fma_tail(tile, a, rows, c * a_col, b, b_at + c * b_row, columns)
    else:
        for c in range(begin, end):
            tile = tile_fma(tile, a, rows, c * a_col, b, b_at + c * b_row)
    out = rows_strided(y_at, K, count, mr)
    if not first:
        tile = tile_add(tile, y, out, 0, count, columns)
    tile_store(tile, y, out, 0, count, columns)


@helper
def _add_product(a, a_at, b, b_at, y, y_at, m_begin, m_end, sizes, strides, first):
    """Rows m_begin to m_end of one product into y, BLOCK inner numbers after BLOCK; overwritten when first, else added to."""
    _, C, K = sizes
    a_row, a_col, b_row = strides
    width = lanes(a)
    for block in range(0, C, BLOCK):
        stop = min(C, block + BLOCK)
        fresh = first and block == 0
        k = 0
        while k < K:
            if MR4 > 0 and K - k > 3 * width:
                columns = min(K - k, 4 * width)
                for m in range(m_begin, m_end, MR4):
                    _tile(a, a_at + m * a_row, a_row, a_col, min(m_end - m, MR4), b, b_at + k, b_row, columns, block, stop,
                          fresh, y, y_at + m * K + k, K, MR4, 4)
            elif K - k > width:
                columns = min(K - k, 2 * width)
                for m in range(m_begin, m_end, MR2):
                    _tile(a, a_at + m * a_row, a_row, a_col, min(m_end - m, MR2), b, b_at + k, b_row, columns, block, stop,
                          fresh, y, y_at + m * K + k, K, MR2, 2)
            else:
                columns = K - k
                for m in range(m_begin, m_end, MR1):
                    _tile(a, a_at + m * a_row, a_row, a_col, min(m_end - m, MR1), b, b_at + k, b_row, columns, block, stop,
                          fresh, y, y_at + m * K + k, K, MR1, 1)
            k += columns


@helper
def _product_job(job, per_matrix, a, b, y, dims, a_strides, b_strides, y_strides, sizes, strides, accumulate):
    """Some rows of one matrix of y: the sum of all products that belong to it."""
    begin = job % per_matrix * ROWS
    end = min(sizes[0], begin + ROWS)
    repeated = repeated_axes(dims, y_strides)
    owner = place_of(job // per_matrix, kept_axes(dims, y_strides))
    a_start, b_start, y_at = row_at(owner, a_strides), row_at(owner, b_strides), row_at(owner, y_strides)
    place = (0, 0, 0, 0, 0)
    for i in range(rows_of(repeated)):
        _add_product(a, a_start + row_at(place, a_strides), b, b_start + row_at(place, b_strides), y, y_at, begin, end, sizes,
                     strides, i == 0 and not accumulate)
        place = next_place(place, repeated)


@kernel
@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def products(a, b, dims, a_strides, b_strides, y_strides, sizes, strides, accumulate, threads, y):
    """y = a b for many matrices.

    Shapes   dims (N, d0, d1, d2, 1, 1) of the odometer, and by how many numbers it moves in each operand: 0 where that
             repeats; along axes of stride 0 y is summed. sizes (M, C, K): a (M, C) has its rows and columns
             strides[0] and strides[1] apart, b (C, K) its rows strides[2] apart, y (M, K) is contiguous
    Writes   y (overwritten, or added to with accumulate)
    Threads  one iteration per 48 rows of a matrix of y, each sums all that belongs to them; no scratch
    Source   ONNX MatMul-13; dA = dY B^T, dB = A^T dY, summed over what repeats
    """
    per_matrix = (sizes[0] + ROWS - 1) // ROWS
    jobs = rows_of(kept_axes(dims, y_strides)) * per_matrix
    if threads > 1 and jobs > 1:
        for index in numba.prange(jobs):
            job = np.int64(index)
            _product_job(job, per_matrix, a, b, y, dims, a_strides, b_strides, y_strides, sizes, strides, accumulate)
    else:
        for job in range(jobs):
            _product_job(job, per_matrix, a, b, y, dims, a_strides, b_strides, y_strides, sizes, strides, accumulate)


@helper
def _all_of(size, batch_stride, batch):
    """The numbers of an operand, that has samples where it moves from one to the next."""
    return size * batch if batch_stride else size


@entry("a< b< y= d0 d1 d2 a_batch a0 a1 a2 b_batch b0 b1 b2 y_batch y0 y1 y2 M C K a_row a_col b_row a_size b_size y_size "
       "accumulate")
def product(arena, row, batch):
    row = fields_of(row)
    dims = (batch, row.d0, row.d1, row.d2, 1, 1)
    products(view(arena, row.a, _all_of(row.a_size, row.a_batch, batch)),
             view(arena, row.b, _all_of(row.b_size, row.b_batch, batch)), dims,
             (row.a_batch, row.a0, row.a1, row.a2, 0), (row.b_batch, row.b0, row.b1, row.b2, 0),
             (row.y_batch, row.y0, row.y1, row.y2, 0), (row.M, row.C, row.K), (row.a_row, row.a_col, row.b_row),
             row.accumulate, threads_for(arena, batch * row.d0 * row.d1 * row.d2 * row.M * row.C * row.K),
             view(arena, row.y, _all_of(row.y_size, row.y_batch, batch)))


@helper
def _transpose_job(job, x, C, K, y):
    transpose_matrix(x, job * C * K, K, y, job * C * K, C, C, K)


@kernel
@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def transpose_all(x, count, C, K, threads, y):
    """y (count, K, C) = x (count, C, K) with every matrix transposed.

    Writes   y (overwritten)
    Threads  one iteration per matrix
    """
    if threads > 1 and count > 1:
        for index in numba.prange(count):
            job = np.int64(index)
            _transpose_job(job, x, C, K, y)
    else:
        for job in range(count):
            _transpose_job(job, x, C, K, y)


@entry("x< y> count per_sample C K")
def transpose(arena, row, batch):
    row = fields_of(row)
    count = row.count * (batch if row.per_sample else 1)
    size = count * row.C * row.K
    transpose_all(view(arena, row.x, size), count, row.C, row.K, threads_for(arena, size * 2), view(arena, row.y, size))
