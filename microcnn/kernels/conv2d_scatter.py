"""Backward to the input of a convolution with few channels, and a transposed one forward: every pixel adds its window.

Where C is a fraction of a register, the forward kernel on dY leaves most lanes empty. A window's row, S x C numbers side by
side, fills them: dY times the turned weights gives whole windows, which are added up in a padded image that stays in the
first-level cache.
"""
import numba
import numpy as np

from .compiler import helper, kernel
from .entry import entry, fields_of, number, threads_for, view, view_as
from .layout import copy_run, zero_run
from .linear import transpose_matrix
from .rows import rows_table
from .simd import MR1, MR2, lanes
from .tile import tile_accumulate, tile_zeros
from .tile_fma import tile_fma
from .vector import vector_add, vector_max, vector_min, vector_of, vector_take, vector_write


@helper
def _window_tiles(dy, dy_at, dy_table, pixels, K, packed, w_at, w_row, sums, s_at, s_table, columns, mr, nv):
    """All output pixels, mr at a time, one row of taps, columns numbers of it: added to the padded image."""
    for q in range(0, pixels, mr):
        count = min(pixels - q, mr)
        tile = tile_zeros(dy, mr, nv)
        rows = rows_table(dy_table, q, count, dy_at, mr)
        for k in range(K):
            tile = tile_fma(tile, dy, rows, k, packed, w_at + k * w_row)
        tile_accumulate(tile, sums, rows_table(s_table, q, count, s_at, mr), 0, count, columns)


@helper
def _window_row(dy, dy_at, dy_table, pixels, K, packed, w_at, w_row, sums, s_at, s_table, width):
    """One row of taps of all output pixels of a sample."""
    step = lanes(dy)
    c = 0
    while c < width:
        left = width - c
        # the packed rows are padded to whole registers, so that plain loads stay inside
        if left > step:
            columns = min(left, 2 * step)
            _window_tiles(dy, dy_at, dy_table, pixels, K, packed, w_at + c, w_row, sums, s_at + c, s_table, columns, MR2, 2)
        else:
            columns = left
            _window_tiles(dy, dy_at, dy_table, pixels, K, packed, w_at + c, w_row, sums, s_at + c, s_table, columns, MR1, 1)
        c += columns


@helper
def _start_image(sums, image, rows, columns, C, bias):
    """The padded image before anything is added: the bias in every pixel, or zeros."""
    zero_run(sums, image, rows * columns * C)
    if bias.size > 0:
        for i in range(columns):
            for c in range(C):
                sums[image + i * C + c] = bias[c]
        for r in range(1, rows):
            copy_run(sums, image, sums, image + r * columns * C, columns * C)


@helper
def _finish_run(x, x_at, residual, y, y_at, count, low, high):
    """y[y_at : y_at + count] = clamp(x[x_at : x_at + count] + residual)"""
    least, most = vector_of(y, low), vector_of(y, high)
    for i in range(0, count, lanes(y)):
        n = count - i
        value = vector_take(x, x_at + i, n)
        if residual.size > 0:
            value = vector_add(value, vector_take(residual, y_at + i, n))
        vector_write(vector_min(vector_max(value, least), most), y, y_at + i, n)


@helper
def put_image(sums, image, residual, H, W, C, pad_top, pad_left, columns, n, low, high, dx):
    """Sample n of dx = clamp(the inside of a padded image of so many columns + residual)."""
    for h in range(H):
        begin, to = image + ((pad_top + h) * columns + pad_left) * C, (n * H + h) * W * C
        _finish_run(sums, begin, residual, dx, to, W * C, low, high)


@helper
def _samples(chunk, chunks, dy, packed, dy_table, s_table, sums, batch, H, W, C, OH, OW, K, R, S, w_row, dilation_h, pad_top,
             pad_left, rows, columns, bias, residual, low, high, dx):
    """The samples of one chunk, one after the other, in the chunk's padded image."""
    size = rows * columns * C
    image = chunk * size
    for n in range(chunk * batch // chunks, (chunk + 1) * batch // chunks):
        _start_image(sums, image, rows, columns, C, bias)
        for r in range(R):
            _window_row(dy, n * OH * OW * K, dy_table, OH * OW, K, packed, r * K * w_row, w_row, sums,
                        image + r * dilation_h * columns * C, s_table, S * C)
        put_image(sums, image, residual, H, W, C, pad_top, pad_left, columns, n, low, high, dx)


@kernel
@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def conv2d_backward_input_few(dy, packed, dy_table, s_table, sums, batch, H, W, C, OH, OW, K, R, S, w_row, stride_h, stride_w,
                              dilation_h, pad_top, pad_left, rows, columns, chunks, bias, residual, low, high, threads, dx):
    """dX: the windows of all output pixels added up, clamp(sum + bias + residual).

    Shapes   dy (N, OH, OW, K); packed (R, K, w_row), of which S * C columns count; dx (N, H, W, C); bias (C,) or empty;
             residual like dx, empty, or dx itself; dy_table, s_table (OH * OW) int64; sums (chunks, rows, columns, C), the
             padded image of one sample for each chunk
    Writes   dx (overwritten); the tables and sums (undefined)
    Threads  one iteration per chunk of samples, each owns them and its padded image
    Source   seed, dZ through a convolution, as the transposed convolution that puts each output back where it came from
    """
    # neighbours in the tables lie in different rows of the image: additions to one place do not follow each other closely
    for ow in range(OW):
        for oh in range(OH):
            dy_table[ow * OH + oh] = (oh * OW + ow) * K
            s_table[ow * OH + oh] = (oh * stride_h * columns + ow * stride_w) * C
    if threads > 1 and chunks > 1:
        for index in numba.prange(chunks):
            chunk = np.int64(index)
            _samples(chunk, chunks, dy, packed, dy_table, s_table, sums, batch, H, W, C, OH, OW, K, R, S, w_row, dilation_h,
                     pad_top, pad_left, rows, columns, bias, residual, low, high, dx)
    else:
        for chunk in range(chunks):
            _samples(chunk, chunks, dy, packed, dy_table, s_table, sums, batch, H, W, C, OH, OW, K, R, S, w_row, dilation_h,
                     pad_top, pad_left, rows, columns, bias, residual, low, high, dx)


@entry("dy< packed< bias< residual< dx= tables> sums> H W C OH OW K R S w_row stride_h stride_w dilation_h pad_top pad_left "
       "rows columns chunks low high")
def backward_input(arena, row, batch):
    row = fields_of(row)
    real = view(arena, 0, 1).dtype.type
    table, size = row.OH * row.OW, batch * row.H * row.W * row.C
    biases = row.C if row.bias >= 0 else 0
    residuals = size if row.residual >= 0 else 0
    conv2d_backward_input_few(view(arena, row.dy, batch * table * row.K), view(arena, row.packed, row.R * row.K * row.w_row),
                              view_as(arena, row.tables, table, np.int64),
                              view_as(arena, row.tables + 8 * table, table, np.int64),
                              view(arena, row.sums, row.chunks * row.rows * row.columns * row.C), batch, row.H, row.W, row.C,
                              row.OH, row.OW, row.K, row.R, row.S, row.w_row, row.stride_h, row.stride_w, row.dilation_h,
                              row.pad_top, row.pad_left, row.rows, row.columns, row.chunks, view(arena, row.bias, biases),
                              view(arena, row.residual, residuals), real(number(row.low)), real(number(row.high)),
                              threads_for(arena, batch * table * row.R * row.S * row.C * row.K),
                              view(arena, row.dx, size))


@entry("weight< packed> R SC K w_row")
def turn(arena, row, batch):
    # packed (R, K, w_row) = weight (R, S * C, K) with its last two axes exchanged; columns past S * C are undefined
    row = fields_of(row)
    weight, packed = view(arena, row.weight, row.R * row.SC * row.K), view(arena, row.packed, row.R * row.K * row.w_row)
    for r in range(row.R):
        transpose_matrix(weight, r * row.SC * row.K, row.K, packed, r * row.K * row.w_row, row.w_row, row.SC, row.K)
