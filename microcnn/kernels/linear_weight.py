"""The gradient of a matrix product to its weight, by register tiles: x^T dy, a block of rows after the other."""
import numba
import numpy as np

from .compiler import helper, inlined, kernel
from .entry import entry, fields_of, threads_for, view
from .layout import zero_run
from .rows import rows_strided
from .simd import MASKS_ARE_FREE, MR1, MR2, lanes
from .tile import tile_add, tile_store, tile_zeros
from .tile_fma import tile_fma, tile_fma_tail
from .vector import vector_add, vector_load_first, vector_of, vector_store_first

# A sum over rows is cut into blocks of this many, so that rounding errors do not pile up and a block stays in the cache.
BLOCK = 128


@inlined
def _weight_rows(x, x_at, C, count, begin, end, dy, k, K, columns, first, dweight, w_at, mr, nv):
    """dweight[c .. c + count, k .. k + columns] from rows begin to end: overwritten when first, else added to."""
    tile = tile_zeros(x, mr, nv)
    rows = rows_strided(x_at, 1, count, mr)
    if MASKS_ARE_FREE or columns < nv * lanes(x):
        for m in range(begin, end):
            tile = tile_fma_tail(tile, x, rows, m * C, dy, m * K + k, columns)
    else:
        for m in range(begin, end):
            tile = tile_fma(tile, x, rows, m * C, dy, m * K + k)
    out = rows_strided(w_at, K, count, mr)
    if not first:
        tile = tile_add(tile, dweight, out, 0, count, columns)
    tile_store(tile, dweight, out, 0, count, columns)


@helper
def _weight_tile(x, x_at, C, count, begin, end, dy, k, K, columns, first, dweight, w_at, mr, nv):
    """_weight_rows; where the tile is whole its rows lie at constant distances, which takes one register and not mr."""
    if count == mr:
        _weight_rows(x, x_at, C, mr, begin, end, dy, k, K, columns, first, dweight, w_at, mr, nv)
    else:
        _weight_rows(x, x_at, C, count, begin, end, dy, k, K, columns, first, dweight, w_at, mr, nv)


@helper
def weight_columns(x, dy, begin, end, c_begin, c_end, C, K, k, first, dweight):
    """dweight[c_begin .. c_end] from rows begin to end, the columns of one width of tiles from k on: how many these are.

    Overwritten when first, else added to.
    """
    width = lanes(x)
    if K - k > width:
        columns = min(K - k, 2 * width)
        for c in range(c_begin, c_end, MR2):
            _weight_tile(x, c, C, min(c_end - c, MR2), begin, end, dy, k, K, columns, first, dweight, c * K + k, MR2, 2)
    else:
        columns = K - k
        for c in range(c_begin, c_end, MR1):
            _weight_tile(x, c, C, min(c_end - c, MR1), begin, end, dy, k, K, columns, first, dweight, c * K + k, MR1, 1)
    return columns


@helper
def weight_job(x, dy, begin, end, c_begin, c_end, C, K, accumulate, dweight):
    """dweight[c_begin .. c_end] from rows begin to end, BLOCK rows after BLOCK rows."""
    for block in range(begin, end, BLOCK):
        stop = min(end, block + BLOCK)
        k = 0
        while k < K:
            k += weight_columns(x, dy, block, stop, c_begin, c_end, C, K, k, block == begin and not accumulate, dweight)


@helper
def add_partials(partials, count, size, begin, end, accumulate, total):
    """total[begin : end] (= or +=) the partial sums, in order."""
    step = lanes(total)
    i = begin
    while i < end:
        n = min(step, end - i)
        value = vector_load_first(total, i, n) if accumulate else vector_of(total, total.dtype.type(0))
        for p in range(count):
            value = vector_add(value, vector_load_first(partials, p * size + i, n))
        vector_store_first(value, total, i, n)
        i += step


@helper
def _weight_part(job, groups, x, dy, M, C, K, chunks, chunk_rows, c_rows, accumulate, partials, dweight):
    chunk, group = job // groups, job % groups
    begin, end = min(M, chunk * chunk_rows), min(M, (chunk + 1) * chunk_rows)
    c_begin, c_end = min(C, group * c_rows), min(C, (group + 1) * c_rows)
    if chunks == 1:
        weight_job(x, dy, begin, end, c_begin, c_end, C, K, accumulate, dweight)
    else:
        part = partials[chunk * C * K:(chunk + 1) * C * K]
        if begin >= end:
            zero_run(part, c_begin * K, (c_end - c_begin) * K)
        weight_job(x, dy, begin, end, c_begin, c_end, C, K, False, part)


@kernel
@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def linear_backward_weight(x, dy, M, C, K, chunks, chunk_rows, accumulate, threads, partials, dweight):
    """dweight = x^T dy.

    Shapes   x (M, C); dy (M, K); dweight (C, K); partials (chunks, C, K), unused when chunks is 1
    Writes   dweight (overwritten, or added to with accumulate); partials (undefined)
    Threads  one iteration per chunk of rows and group of input channels; each owns its partial sums, which are added in
             order: the number of chunks does not depend on the threads, and that of groups changes no sum
    Source   seed, dW of a fully connected layer and of a 1x1 convolution
    """
    # each group goes through all rows once; how many there are changes no sum
    tiles = (C + 2 * MR2 - 1) // (2 * MR2)
    groups = min(tiles, 2 * threads) if threads > 1 else 1
    c_rows = (tiles + groups - 1) // groups * 2 * MR2
    jobs = chunks * groups
    if threads > 1 and jobs > 1:
        for index in numba.prange(jobs):
            job = np.int64(index)
            _weight_part(job, groups, x, dy, M, C, K, chunks, chunk_rows, c_rows, accumulate, partials, dweight)
    else:
        for job in range(jobs):
            _weight_part(job, groups, x, dy, M, C, K, chunks, chunk_rows, c_rows, accumulate, partials, dweight)
    if chunks > 1:
        add_partials(partials, chunks, C * K, 0, C * K, accumulate, dweight)


@entry("x< dy< dweight= scratch> rows C K chunks chunk_rows accumulate")
def backward(arena, row, batch):
    row = fields_of(row)
    M = row.rows * batch
    partials = row.chunks * row.C * row.K if row.chunks > 1 else 0
    linear_backward_weight(view(arena, row.x, M * row.C), view(arena, row.dy, M * row.K), M, row.C, row.K, row.chunks,
                           row.chunk_rows, row.accumulate, threads_for(arena, M * row.C * row.K),
                           view(arena, row.scratch, partials), view(arena, row.dweight, row.C * row.K))
