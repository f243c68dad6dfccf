"""Matrix products over rows: Linear layers, and 1x1 convolutions as products over all pixels."""
import numba
import numpy as np

from .compiler import helper, inlined, kernel
from .entry import entry, fields_of, number, threads_for, view
from .fetch import fetch
from .layout import copy_panels, vectors_of
from .linear_weight import add_partials
from .rows import rows_strided
from .simd import HALVES, LESS1, LESS2, LESS4, MASKS_ARE_FREE, MR1, MR2, MR4, MR_CHAINS, lanes
from .tile import tile_add, tile_clamp, tile_fill, tile_store, tile_sum, tile_zeros
from .tile_fma import tile_fma_steps, tile_fma_steps_half, tile_fma_steps_tail, tile_fma_tail
from .transpose import transpose_block
from .vector import vector_add, vector_fma, vector_load, vector_load_first, vector_of, vector_store_first, vector_sum

# Iterations of a parallel loop that there should at least be where nothing is copied for each.
JOBS = 8
# From so many steps on a sum of few columns is split into chains.
CHAINS_DEPTH = 64


@inlined
def _forward_tile(x, m, count, x_at, x_row, steps, weight, w_at, w_row, bias, k, residual, y, K, columns, masked, low, high,
                  mr, nv):
    """count <= mr rows from m on of y, columns <= nv * lanes of its columns from k on: their sums over some steps."""
    tile = tile_zeros(x, mr, nv)
    if bias.size > 0:
        tile = tile_fill(tile, bias, k, columns)
    rows = rows_strided(m * x_row + x_at, x_row, count, mr)
    if HALVES and 2 * columns <= (2 * nv - 1) * lanes(x):
        tile = tile_fma_steps_half(tile, x, rows, 0, weight, w_at, w_row, steps, columns)
    elif masked:
        tile = tile_fma_steps_tail(tile, x, rows, 0, weight, w_at, w_row, steps, columns)
    else:
        tile = tile_fma_steps(tile, x, rows, 0, weight, w_at, w_row, steps)
    out = rows_strided(m * K + k, K, count, mr)
    if residual.size > 0:
        tile = tile_add(tile, residual, out, 0, count, columns)
    tile_store(tile_clamp(tile, low, high), y, out, 0, count, columns)


@helper
def forward_tiles(x, begin, end, x_at, x_row, steps, weight, w_at, w_row, bias, k, residual, y, K, columns, low, high, mr,
                  less, nv):
    """Rows begin to end of y, mr at a time, and if no more than less are left, these in a smaller tile.

    Whole tiles have a loop of their own, in which no row is in question.
    """
    masked = MASKS_ARE_FREE or columns < nv * lanes(x)
    m = begin
    while m + mr <= end:
        _forward_tile(x, m, mr, x_at, x_row, steps, weight, w_at, w_row, bias, k, residual, y, K, columns, masked, low, high,
                      mr, nv)
        m += mr
    if m < end <= m + less:
        _forward_tile(x, m, end - m, x_at, x_row, steps, weight, w_at, w_row, bias, k, residual, y, K, columns, masked, low,
                      high, less, nv)
    elif m < end:
        _forward_tile(x, m, end - m, x_at, x_row, steps, weight, w_at, w_row, bias, k, residual, y, K, columns, masked, low,
                      high, mr, nv)


@inlined
def _chains_tile(x, m, count, C, weight, w_row, bias, residual, y, K, low, high, mr):
    """count <= mr rows from m on of y, all K columns: a sum of four, each of every fourth step."""
    first, second, third, fourth = tile_zeros(x, mr, 1), tile_zeros(x, mr, 1), tile_zeros(x, mr, 1), tile_zeros(x, mr, 1)
    if bias.size > 0:
        first = tile_fill(first, bias, 0, K)
    rows = rows_strided(m * C, C, count, mr)
    c = 0
    while c + 4 <= C:
        first = tile_fma_tail(first, x, rows, c, weight, c * w_row, K)
        second = tile_fma_tail(second, x, rows, c + 1, weight, (c + 1) * w_row, K)
        third = tile_fma_tail(third, x, rows, c + 2, weight, (c + 2) * w_row, K)
        fourth = tile_fma_tail(fourth, x, rows, c + 3, weight, (c + 3) * w_row, K)
        c += 4
    while c < C:
        first = tile_fma_tail(first, x, rows, c, weight, c * w_row, K)
        c += 1
    tile = tile_sum(tile_sum(first, second), tile_sum(third, fourth))
    out = rows_strided(m * K, K, count, mr)
    if residual.size > 0:
        tile = tile_add(tile, residual, out, 0, count, K)
    tile_store(tile_clamp(tile, low, high), y, out, 0, count, K)


@helper
def _chains(x, begin, end, C, weight, w_row, bias, residual, y, K, low, high):
    """Rows begin to end of y where its columns fill a register at most: one chain of additions would wait for each of them."""
    m = begin
    while m + MR_CHAINS <= end:
        _chains_tile(x, m, MR_CHAINS, C, weight, w_row, bias, residual, y, K, low, high, MR_CHAINS)
        m += MR_CHAINS
    while m < end:
        _chains_tile(x, m, 1, C, weight, w_row, bias, residual, y, K, low, high, 1)
        m += 1


@helper
def forward_part(x, weight, bias, residual, begin, end, k_begin, k_end, C, K, w_row, low, high, depth, fetches, panel,
                  y):
    """Rows begin to end and columns k_begin to k_end of y, a block of columns after the other; a few rows one by one.

    depth: how many rows of the weight all rows of x pass over before the next ones are read, their sums waiting in y.
    fetches: whether y is touched in order first.
    """
    width = lanes(x)
    if K <= width and C >= CHAINS_DEPTH:        # of the shape alone: a row's sum does not depend on how many there are
        _chains(x, begin, end, C, weight, w_row, bias, residual, y, K, low, high)
        return
    few = end - begin < 4 and panel.size == 0
    if fetches:
        fetch(y, begin * K, (end - begin) * K)
    blocks = max(1, (C + depth - 1) // depth)
    part = max(1, (C + blocks - 1) // blocks)
    for c in range(0, max(C, 1), part):
        steps, last = min(C - c, part), c + part >= C
        biased, added = bias if c == 0 else bias[:0], residual if c == 0 else y
        least, most = low if last else -x.dtype.type(np.inf), high if last else x.dtype.type(np.inf)
        if panel.size > 0:
            copy_panels(weight, c * w_row, w_row, steps, k_begin, k_end, panel)
        k = k_begin
        while k < k_end:
            left = k_end - k
            vectors = vectors_of(left, width)
            if few and left > 3 * width:
                vectors = 8 if left > 7 * width else 4
            columns = min(left, vectors * width)
            source, w_at, row = weight, c * w_row + k, w_row
            if panel.size > 0:
                source, w_at, row = panel, (k - k_begin) * steps, vectors * width
            if vectors == 8:
                forward_tiles(x, begin, end, c, C, steps, source, w_at, row, biased, k, added, y, K, columns, least, most,
                               1, 1, 8)
            elif few and vectors == 4:
                forward_tiles(x, begin, end, c, C, steps, source, w_at, row, biased, k, added, y, K, columns, least, most,
                               1, 1, 4)
            elif few and vectors == 2:
                forward_tiles(x, begin, end, c, C, steps, source, w_at, row, biased, k, added, y, K, columns, least, most,
                               1, 1, 2)
            elif few:
                forward_tiles(x, begin, end, c, C, steps, source, w_at, row, biased, k, added, y, K, columns, least, most,
                               1, 1, 1)
            elif MR4 > 0 and vectors == 4:
                forward_tiles(x, begin, end, c, C, steps, source, w_at, row, biased, k, added, y, K, columns, least, most,
                               MR4, LESS4, 4)
            elif vectors == 2:
                forward_tiles(x, begin, end, c, C, steps, source, w_at, row, biased, k, added, y, K, columns, least, most,
                               MR2, LESS2, 2)
            else:
                forward_tiles(x, begin, end, c, C, steps, source, w_at, row, biased, k, added, y, K, columns, least, most,
                               MR1, LESS1, 1)
            k += columns


@helper
def _forward_chunk(chunk, chunks, jobs, splits, rows, x, weight, bias, residual, M, C, K, w_row, low, high, depth,
                   fetches, panels, y):
    """Those of the jobs that belong to one chunk: blocks of rows one after the other, each with all its blocks of columns.

    A thread then makes rows that lie together, as it does in the layers before and behind: they stay in its cache.
    """
    size = panels.size // chunks
    panel = panels[chunk * size:(chunk + 1) * size]
    pair = 2 * lanes(x)
    pairs = (K + pair - 1) // pair
    for job in range(chunk * jobs // chunks, (chunk + 1) * jobs // chunks):
        block, split = job // splits, job % splits
        forward_part(x, weight, bias, residual, block * rows, min(M, (block + 1) * rows), split * pairs // splits * pair,
                      min(K, (split + 1) * pairs // splits * pair), C, K, w_row, low, high, depth, fetches,
                      panel, y)


@kernel
@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def linear_forward(x, weight, bias, residual, M, C, K, w_row, low, high, depth, columns, chunks, block, fetches,
                   threads, panels, y):
    """y = clamp(x weight + bias + residual).

    Shapes   x (M, C); weight (C, K) with rows w_row apart; bias (K,) or empty; residual, y (M, K); residual may be empty
             or y itself
    Numbers  depth: rows of the weight that are read at a time; block: rows of x that a job takes, about;
             with panels, chunks: how many, columns: the most that a split has; fetches: whether y is touched in order first
    Writes   y (overwritten); panels (chunks, depth, columns of a split), or empty: the weight is read where it lies
    Threads  one iteration per chunk of blocks of rows, and of columns where rows are few; each owns its part of y
    Source   ONNX Gemm, MatMul; seed, the fully connected layer
    """
    tile, wide = MR4 if MR4 > 0 else MR2, 4 * lanes(x)
    blocks = max(1, (M + block // 2) // block)
    # as many jobs for each of two threads, or four, if that is not far off
    blocks = blocks if blocks < 3 else (blocks + 2) // 4 * 4 if blocks > 4 else blocks // 2 * 2
    rows = ((M + blocks - 1) // blocks + tile - 1) // tile * tile
    blocks = (M + rows - 1) // rows
    if chunks == 0:
        across = (K + wide - 1) // wide
        splits = max(1, min(across, (JOBS + blocks - 1) // blocks))
        columns = (across + splits - 1) // splits * wide
    splits = (K + columns - 1) // columns
    jobs = blocks * splits
    parts = chunks if chunks > 0 else jobs
    if threads > 1 and parts > 1:
        for index in numba.prange(parts):
            chunk = np.int64(index)
            _forward_chunk(chunk, parts, jobs, splits, rows, x, weight, bias, residual, M, C, K, w_row, low, high,
                           depth, fetches, panels, y)
    else:
        for chunk in range(parts):
            _forward_chunk(chunk, parts, jobs, splits, rows, x, weight, bias, residual, M, C, K, w_row, low, high,
                           depth, fetches, panels, y)


@entry("x< weight< bias< residual< y= panels> rows C K w_row depth columns chunks block fetches panels_size low high")
def forward(arena, row, batch):
    row = fields_of(row)
    M = row.rows * batch
    real = view(arena, 0, 1).dtype.type
    linear_forward(view(arena, row.x, M * row.C), view(arena, row.weight, row.C * row.w_row),
                   view(arena, row.bias, row.K if row.bias >= 0 else 0),
                   view(arena, row.residual, M * row.K if row.residual >= 0 else 0), M, row.C, row.K, row.w_row,
                   real(number(row.low)), real(number(row.high)), row.depth, row.columns, row.chunks, row.block, row.fetches,
                   threads_for(arena, M * row.C * row.K), view(arena, row.panels, row.panels_size),
                   view(arena, row.y, M * row.K))


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
