"""Backward of a convolution that only a max pooling reads, from the winners of its windows.

All other gradients of the convolution's output are zero: three of four behind 2 x 2 windows. What is left is too scattered
for register tiles of pixels. But every winner adds its window of the input, R rows of S x C numbers side by side, to its own
channel's dW, and the dW of several channels stay in registers while all pixels pass.
"""
import numba
import numpy as np

from .compiler import helper, kernel
from .conv2d import copy_band, fill_table
from .entry import entry, fields_of, number, threads_for, view, view_as
from .layout import copy_run, zero_run
from .linear_weight import add_partials
from .rows import rows_grid, rows_strided
from .simd import WIDE_WINDOWS3, WIDE_WINDOWS5, WIDE_WINDOWS7, WINDOWS3, WINDOWS5, WINDOWS7, lanes
from .tile import tile_add, tile_store, tile_zeros
from .tile_fma import tile_fma_windows
from .vector import vector_add, vector_load_first, vector_of, vector_store_first, vector_take, vector_where_greater


@helper
def passed_on(y, dy, begin, count, low, high, passed):
    """passed = dy where low < y < high, else 0; all of dy where there is no y."""
    if y.size == 0:
        copy_run(dy, begin, passed, 0, count)
        return
    zero, least, most = vector_of(dy, dy.dtype.type(0)), vector_of(dy, low), vector_of(dy, high)
    for i in range(0, count, lanes(dy)):
        n = min(lanes(dy), count - i)
        best, value = vector_load_first(y, begin + i, n), vector_load_first(dy, begin + i, n)
        value = vector_where_greater(most, best, vector_where_greater(best, least, value, zero), zero)
        vector_store_first(value, passed, i, n)


@helper
def _add_windows(passed, indices, at, pixels, K, base, place, image, row_step, R, first, part, rows, mr, nv):
    """part (K, R, nv * lanes) (= or +=) the window of each pixel's winner, times its gradient, mr // rows channels at a time.

    Gradients of zero are multiplied too: to look for the others costs more. Rows past R, and channels past K, repeat the last,
    in the registers and in what they are stored to.
    """
    width = nv * lanes(image)
    window = rows_strided(0, row_step, R, rows)
    channels = mr // rows
    for k in range(0, K, channels):
        count = min(channels, K - k)
        tile = tile_zeros(image, mr, nv)
        out = rows_grid(k * R * width, R * width, count, width, R, rows, mr)
        if not first:
            tile = tile_add(tile, part, out, 0, mr, width)
        for p in range(pixels):
            tile = tile_fma_windows(tile, passed, p * K + k, count, image, window, base[p], indices, at + p * K + k, place)
        tile_store(tile, part, out, 0, mr, width)


@helper
def _add_sample(passed, indices, at, pixels, K, base, place, image, row_step, R, vectors, first, part):
    """_add_windows by the size of the window."""
    if vectors == 1:
        if R <= 3:
            _add_windows(passed, indices, at, pixels, K, base, place, image, row_step, R, first, part, 3, WINDOWS3, 1)
        elif R <= 5:
            _add_windows(passed, indices, at, pixels, K, base, place, image, row_step, R, first, part, 5, WINDOWS5, 1)
        else:
            _add_windows(passed, indices, at, pixels, K, base, place, image, row_step, R, first, part, 7, WINDOWS7, 1)
    elif R <= 3:
        _add_windows(passed, indices, at, pixels, K, base, place, image, row_step, R, first, part, 3, WIDE_WINDOWS3, 2)
    elif R <= 5:
        _add_windows(passed, indices, at, pixels, K, base, place, image, row_step, R, first, part, 5, WIDE_WINDOWS5, 2)
    else:
        _add_windows(passed, indices, at, pixels, K, base, place, image, row_step, R, first, part, 7, WIDE_WINDOWS7, 2)


@helper
def _add_biases(passed, pixels, K, sums):
    """sums (K) += the pixels of one sample."""
    for k in range(0, K, lanes(passed)):
        count = min(lanes(passed), K - k)
        total = vector_take(sums, k, count)
        for p in range(pixels):
            total = vector_add(total, vector_take(passed, p * K + k, count))
        vector_store_first(total, sums, k, count)


@helper
def _samples(chunk, chunks, x, indices, y, dy, batch, sizes, low, high, base, place, passed, images, partials, sums):
    """The samples of one chunk, one after the other, in the chunk's padded image."""
    H, W, C, K, R, S, pixels, pad_top, pad_left, row_step, rows, columns, vectors = sizes
    size, width = images.size // chunks, R * vectors * lanes(x)
    image = images[chunk * size:(chunk + 1) * size]
    own_passed = passed[chunk * K * pixels:(chunk + 1) * K * pixels]
    own_sums = sums[chunk * K:(chunk + 1) * K]
    part = partials[chunk * K * width:(chunk + 1) * K * width]
    begin, end = chunk * batch // chunks, (chunk + 1) * batch // chunks
    zero_run(image, 0, size)
    if begin == end:
        zero_run(part, 0, K * width)
    zero_run(own_sums, 0, K)
    for n in range(begin, end):
        at = n * pixels * K
        copy_band(x, n * H * W * C, H, W, C, -pad_top, -pad_left, rows, columns, False, image)
        passed_on(y, dy, at, pixels * K, low, high, own_passed)
        _add_sample(own_passed, indices, at, pixels, K, base, place, image, row_step, R, vectors, n == begin, part)
        _add_biases(own_passed, pixels, K, own_sums)


@kernel
@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def conv2d_backward_weight_winners(x, indices, y, dy, batch, sizes, kernel_h, kernel_w, stride_h, stride_w, PH, PW, low, high,
                                   chunks, accumulate, accumulate_bias, threads, base, place, passed, images, partials,
                                   sums, dweight, dbias):
    """dweight and dbias of a convolution behind which a max pooling with windows side by side lies.

    Shapes   x (N, H, W, C); indices uint8, dy and y (N, PH, PW, K), y empty where nothing clamps the maxima to low..high;
             sizes (H, W, C, K, R, S, PH * PW, pad_top, pad_left, row_step, rows, columns, vectors): row_step from one row of
             a window to the next in the padded image (rows, columns, C), vectors registers hold S * C numbers; images
             (chunks, padded image and as many registers); base (PH * PW), place (kernel_h * kernel_w) int64; passed (chunks,
             PH * PW, K); sums (chunks, K); partials (chunks, K, R, vectors * lanes); dweight (R, S, C, K); dbias (K) or empty
    Writes   dweight, dbias (overwritten, or added to with accumulate, accumulate_bias); all between place and dweight
             (undefined)
    Threads  one iteration per chunk of samples, each owns its partial sums, which are added in order
    Source   seed, dW = sum of the patches of A times dZ, where dZ is max-unpool(Z, idxs, dZ)
    """
    H, W, C, K, R, S, pixels, pad_top, pad_left, row_step, rows, columns, vectors = sizes
    fill_table(base, PH, PW, kernel_h * stride_h * columns * C, kernel_w * stride_w * C)
    fill_table(place, kernel_h, kernel_w, stride_h * columns * C, stride_w * C)
    if threads > 1 and chunks > 1:
        for index in numba.prange(chunks):
            chunk = np.int64(index)
            _samples(chunk, chunks, x, indices, y, dy, batch, sizes, low, high, base, place, passed, images,
                     partials, sums)
    else:
        for chunk in range(chunks):
            _samples(chunk, chunks, x, indices, y, dy, batch, sizes, low, high, base, place, passed, images,
                     partials, sums)
    width = vectors * lanes(x)
    total = partials[:K * R * width]
    add_partials(partials, chunks, total.size, 0, total.size, False, total)
    for k in range(K):
        for r in range(R):
            for i in range(S * C):
                at = (r * S * C + i) * K + k
                dweight[at] = total[(k * R + r) * width + i] + (dweight[at] if accumulate else x.dtype.type(0))
    if dbias.size > 0:
        add_partials(sums, chunks, K, 0, K, accumulate_bias, dbias)


@entry("x< indices< y< dy< dweight= dbias= tables> images> scratch> H W C K R S PH PW kernel_h kernel_w stride_h "
       "stride_w dilation_h pad_top pad_left rows columns vectors chunks low high accumulate accumulate_bias")
def backward_weight(arena, row, batch):
    row = fields_of(row)
    real = view(arena, 0, 1).dtype.type
    pixels = row.PH * row.PW
    pooled = batch * pixels * row.K
    width = row.vectors * lanes(view(arena, 0, 1))
    image = row.rows * row.columns * row.C + width
    partials = row.chunks * row.K * row.R * width
    listed = row.chunks * row.K * pixels
    positions = row.kernel_h * row.kernel_w
    weights = row.R * row.S * row.C * row.K
    sizes = (row.H, row.W, row.C, row.K, row.R, row.S, pixels, row.pad_top, row.pad_left,
             row.dilation_h * row.columns * row.C, row.rows, row.columns, row.vectors)
    scratch = view(arena, row.scratch, partials + row.chunks * row.K + listed)
    conv2d_backward_weight_winners(
        view(arena, row.x, batch * row.H * row.W * row.C), view_as(arena, row.indices, pooled, np.uint8),
        view(arena, row.y, pooled if row.y >= 0 else 0), view(arena, row.dy, pooled), batch, sizes, row.kernel_h, row.kernel_w,
        row.stride_h, row.stride_w, row.PH, row.PW, real(number(row.low)), real(number(row.high)), row.chunks, row.accumulate,
        row.accumulate_bias, threads_for(arena, pooled * row.R * width), view_as(arena, row.tables, pixels, np.int64),
        view_as(arena, row.tables + 8 * pixels, positions, np.int64),
        scratch[partials + row.chunks * row.K:], view(arena, row.images, row.chunks * image), scratch[:partials],
        scratch[partials:partials + row.chunks * row.K], view(arena, row.dweight, weights),
        view(arena, row.dbias, row.K if row.dbias >= 0 else 0))
