"""Matrix products over rows: Linear layers, and 1x1 convolutions as products over all pixels."""
import numba
import numpy as np

from .cache import helper, kernel
from .entry import entry, fields_of, number, threads_for, view
from .layout import zero_run
from .rows import rows_strided
from .simd import MASKS_ARE_FREE, MR1, MR2, MR4, lanes
from .tile import tile_add, tile_clamp, tile_fill, tile_store, tile_zeros
from .tile_fma import tile_fma, tile_fma_steps, tile_fma_steps_tail, tile_fma_tail
from .transpose import transpose_block
from .vector import vector_add, vector_fma, vector_load, vector_load_first, vector_of, vector_store_first, vector_sum

# A sum over rows is cut into blocks of this many, so that rounding errors do not pile up and a block stays in the cache.
BLOCK = 128
# Rows that one iteration of a parallel loop takes.
ROWS = 48


@helper
def _forward_tiles(x, begin, end, C, weight, k, w_row, bias, residual, y, K, columns, low, high, mr, nv):
    """Rows begin to end of y, mr at a time, columns <= nv * lanes of its columns from k on."""
    masked = MASKS_ARE_FREE or columns < nv * lanes(x)
    for m in range(begin, end, mr):
        count = min(end - m, mr)
        tile = tile_zeros(x, mr, nv)
        if bias.size > 0:
            tile = tile_fill(tile, bias, k, columns)
        rows = rows_strided(m * C, C, count, mr)
        if masked:
            tile = tile_fma_steps_tail(tile, x, rows, 0, weight, k, w_row, C, columns)
        else:
            tile = tile_fma_steps(tile, x, rows, 0, weight, k, w_row, C)
        out = rows_strided(m * K + k, K, count, mr)
        if residual.size > 0:
            tile = tile_add(tile, residual, out, 0, count, columns)
        tile_store(tile_clamp(tile, low, high), y, out, 0, count, columns)


@helper
def _forward_rows(x, weight, bias, residual, begin, end, C, K, w_row, low, high, y):
    """Rows begin to end of y, a block of columns after the other; a few rows one by one."""
    width = lanes(x)
    k = 0
    while k < K:
        left = K - k
        if left > 3 * width and (MR4 > 0 or end - begin < 4):
            columns = min(left, 4 * width)
            if end - begin < 4:
                _forward_tiles(x, begin, end, C, weight, k, w_row, bias, residual, y, K, columns, low, high, 1, 4)
            elif MR4 > 0:
                _forward_tiles(x, begin, end, C, weight, k, w_row, bias, residual, y, K, columns, low, high, MR4, 4)
        elif left > width:
            columns = min(left, 2 * width)
            _forward_tiles(x, begin, end, C, weight, k, w_row, bias, residual, y, K, columns, low, high, MR2, 2)
        else:
            columns = left
            _forward_tiles(x, begin, end, C, weight, k, w_row, bias, residual, y, K, columns, low, high, MR1, 1)
        k += columns


@kernel
@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def linear_forward(x, weight, bias, residual, M, C, K, w_row, low, high, threads, y):
    """y = clamp(x weight + bias + residual).

    Shapes   x (M, C); weight (C, K) with rows w_row apart; bias (K,) or empty; residual, y (M, K); residual may be empty
             or y itself
    Writes   y (overwritten)
    Threads  one iteration per 48 rows, or per block of columns where rows are few; each owns its part of y
    Source   ONNX Gemm, MatMul; seed, the fully connected layer
    """
    jobs = (M + ROWS - 1) // ROWS
    if threads > 1 and jobs > 1:
        for index in numba.prange(jobs):
            job = np.int64(index)
            _forward_rows(x, weight, bias, residual, job * ROWS, min(M, (job + 1) * ROWS), C, K, w_row, low, high, y)
    else:
        for job in range(jobs):
            _forward_rows(x, weight, bias, residual, job * ROWS, min(M, (job + 1) * ROWS), C, K, w_row, low, high, y)


@entry("x< weight< bias< residual< y= rows C K w_row low high")
def forward(arena, row, batch):
    row = fields_of(row)
    M = row.rows * batch
    real = view(arena, 0, 1).dtype.type
    linear_forward(view(arena, row.x, M * row.C), view(arena, row.weight, row.C * row.w_row),
                   view(arena, row.bias, row.K if row.bias >= 0 else 0),
                   view(arena, row.residual, M * row.K if row.residual >= 0 else 0), M, row.C, row.K, row.w_row,
                   real(number(row.low)), real(number(row.high)), threads_for(arena, M * row.C * row.K),
                   view(arena, row.y, M * row.K))


@helper
def _weight_tile(x, x_at, C, count, begin, end, dy, k, K, columns, first, dweight, w_at, mr, nv):
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
def _weight_job(x, dy, begin, end, c_begin, c_end, C, K, accumulate, dweight):
    """dweight[c_begin .. c_end] from rows begin to end, BLOCK rows after BLOCK rows."""
    width = lanes(x)
    for block in range(begin, end, BLOCK):
        stop = min(end, block + BLOCK)
        first = block == begin and not accumulate
        k = 0
        while k < K:
            if K - k > width:
                columns = min(K - k, 2 * width)
                for c in range(c_begin, c_end, MR2):
                    _weight_tile(x, c, C, min(c_end - c, MR2), block, stop, dy, k, K, columns, first, dweight,
                                 c * K + k, MR2, 2)
            else:
                columns = K - k
                for c in range(c_begin, c_end, MR1):
                    _weight_tile(x, c, C, min(c_end - c, MR1), block, stop, dy, k, K, columns, first, dweight,
                                 c * K + k, MR1, 1)
            k += columns


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
        _weight_job(x, dy, begin, end, c_begin, c_end, C, K, accumulate, dweight)
    else:
        part = partials[chunk * C * K:(chunk + 1) * C * K]
        if begin >= end:
            zero_run(part, c_begin * K, (c_end - c_begin) * K)
        _weight_job(x, dy, begin, end, c_begin, c_end, C, K, False, part)


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
def backward_weight(arena, row, batch):
    row = fields_of(row)
    M = row.rows * batch
    partials = row.chunks * row.C * row.K if row.chunks > 1 else 0
    linear_backward_weight(view(arena, row.x, M * row.C), view(arena, row.dy, M * row.K), M, row.C, row.K, row.chunks,
                           row.chunk_rows, row.accumulate, threads_for(arena, M * row.C * row.K),
                           view(arena, row.scratch, partials), view(arena, row.dweight, row.C * row.K))


@helper
def _bias_chunk(dy, begin, end, K, total):
    """total (K,) = the sum of rows begin to end of dy; four running sums hide the latency of an addition."""
    step = lanes(dy)
    k = 0
    while k < K:
        n = min(step, K - k)
        zero = vector_of(dy, dy.dtype.type(0))
        a, b, c, d = zero, zero, zero, zero
        m = begin
        while m + 4 <= end:
            a = vector_add(a, vector_load_first(dy, m * K + k, n))
            b = vector_add(b, vector_load_first(dy, (m + 1) * K + k, n))
            c = vector_add(c, vector_load_first(dy, (m + 2) * K + k, n))
            d = vector_add(d, vector_load_first(dy, (m + 3) * K + k, n))
            m += 4
        while m < end:
            a = vector_add(a, vector_load_first(dy, m * K + k, n))
            m += 1
        vector_store_first(vector_add(vector_add(a, b), vector_add(c, d)), total, k, n)
        k += step


@kernel
@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def linear_backward_bias(dy, M, K, chunks, accumulate, threads, partials, dbias):
    """dbias = the sum of dy over its rows.

    Shapes   dy (M, K); dbias (K,); partials (chunks, K)
    Writes   dbias (overwritten, or added to with accumulate); partials (undefined)
    Threads  one iteration per chunk of rows, each owns its partial sums, added in order
    Source   seed, dB: the sum of dZ over all positions
    """
    size = (M + chunks - 1) // chunks
    if threads > 1 and chunks > 1:
        for index in numba.prange(chunks):
            chunk = np.int64(index)
            _bias_chunk(dy, min(M, chunk * size), min(M, (chunk + 1) * size), K, partials[chunk * K:(chunk + 1) * K])
    else:
        for chunk in range(chunks):
            _bias_chunk(dy, min(M, chunk * size), min(M, (chunk + 1) * size), K, partials[chunk * K:(chunk + 1) * K])
    add_partials(partials, chunks, K, 0, K, accumulate, dbias)


@entry("dy< dbias= scratch> rows K chunks accumulate")
def backward_bias(arena, row, batch):
    row = fields_of(row)
    M = row.rows * batch
    linear_backward_bias(view(arena, row.dy, M * row.K), M, row.K, row.chunks, row.accumulate,
                         threads_for(arena, M * row.K * 2), view(arena, row.scratch, row.chunks * row.K),
                         view(arena, row.dbias, row.K))


@helper
def _input_dots(dy, m, weight, c, C, K, accumulate, dx):
    """dx[m, c : c + 4] as dot products of dy[m] with four rows of weight."""
    step = lanes(dy)
    zero = vector_of(dy, dy.dtype.type(0))
    a, b, d, e = zero, zero, zero, zero
    # past the last row the last one is read again
    second, third, fourth = min(c + 1, C - 1) * K, min(c + 2, C - 1) * K, min(c + 3, C - 1) * K
    k = 0
    while k + step <= K:
        row = vector_load(dy, m * K + k)
        a = vector_fma(row, vector_load(weight, c * K + k), a)
        b = vector_fma(row, vector_load(weight, second + k), b)
        d = vector_fma(row, vector_load(weight, third + k), d)
        e = vector_fma(row, vector_load(weight, fourth + k), e)
        k += step
    if k < K:
        n = K - k
        row = vector_load_first(dy, m * K + k, n)
        a = vector_fma(row, vector_load_first(weight, c * K + k, n), a)
        b = vector_fma(row, vector_load_first(weight, second + k, n), b)
        d = vector_fma(row, vector_load_first(weight, third + k, n), d)
        e = vector_fma(row, vector_load_first(weight, fourth + k, n), e)
    _put(vector_sum(a), accumulate, dx, m * C + c)
    if c + 1 < C:
        _put(vector_sum(b), accumulate, dx, m * C + c + 1)
    if c + 2 < C:
        _put(vector_sum(d), accumulate, dx, m * C + c + 2)
    if c + 3 < C:
        _put(vector_sum(e), accumulate, dx, m * C + c + 3)


@helper
def _put(value, accumulate, target, at):
    target[at] = target[at] + value if accumulate else value


@helper
def _input_job(dy, M, weight, c_begin, c_end, C, K, accumulate, dx):
    for c in range(c_begin, c_end, 4):
        for m in range(M):
            _input_dots(dy, m, weight, c, C, K, accumulate, dx)


@kernel
@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def linear_backward_input_few(dy, weight, M, C, K, accumulate, threads, dx):
    """dx = dy weight^T for few rows, as dot products: the weights are read once and not transposed.

    Shapes   dy (M, K); weight (C, K); dx (M, C)
    Writes   dx (overwritten, or added to with accumulate)
    Threads  one iteration per 32 input channels, each owns those columns of dx
    Source   seed, dZ = W^T dZ of the layer behind
    """
    jobs = (C + 31) // 32
    if threads > 1 and jobs > 1:
        for index in numba.prange(jobs):
            job = np.int64(index)
            _input_job(dy, M, weight, job * 32, min(C, job * 32 + 32), C, K, accumulate, dx)
    else:
        for job in range(jobs):
            _input_job(dy, M, weight, job * 32, min(C, job * 32 + 32), C, K, accumulate, dx)


@entry("dy< weight< dx= rows C K accumulate")
def backward_input_few(arena, row, batch):
    row = fields_of(row)
    M = row.rows * batch
    linear_backward_input_few(view(arena, row.dy, M * row.K), view(arena, row.weight, row.C * row.K), M, row.C, row.K,
                              row.accumulate, threads_for(arena, M * row.C * row.K), view(arena, row.dx, M * row.C))


@helper
def transpose_matrix(source, source_at, source_row, target, target_at, target_row, rows, columns):
    """target (columns, rows) = source (rows, columns) transposed; rows of each lie source_row and target_row apart."""
    step = lanes(source)
    for i in range(0, rows, step):
        for j in range(0, columns, step):
            transpose_block(source, source_at + i * source_row + j, source_row, target, target_at + j * target_row + i,
                            target_row, min(step, rows - i), min(step, columns - j))


@helper
def _transpose_job(job, weight, C, K, w_row, packed):
    step = 64
    transpose_matrix(weight, job * step, K, packed, job * step * w_row, w_row, C, min(step, K - job * step))


@kernel
@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def linear_transpose(weight, C, K, w_row, threads, packed):
    """packed (K, w_row) = weight (C, K) transposed, for the gradient of the input; columns past C are undefined.

    Writes   packed (overwritten)
    Threads  one iteration per 64 output channels, each owns those rows
    """
    jobs = (K + 63) // 64
    if threads > 1 and jobs > 1:
        for index in numba.prange(jobs):
            job = np.int64(index)
            _transpose_job(job, weight, C, K, w_row, packed)
    else:
        for job in range(jobs):
            _transpose_job(job, weight, C, K, w_row, packed)


@entry("weight< packed> C K w_row")
def transpose(arena, row, batch):
    row = fields_of(row)
    linear_transpose(view(arena, row.weight, row.C * row.K), row.C, row.K, row.w_row,
                     threads_for(arena, row.C * row.K * 2), view(arena, row.packed, row.K * row.w_row))
