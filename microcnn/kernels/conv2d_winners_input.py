"""Backward to the input of a convolution that only a max pooling reads, from the winners of its windows.

Behind a pooling with windows of kernel_h x kernel_w, one in so many of the convolution's gradients is not zero. The channels
that won at the same position of a window add their weights there, R rows of S x C numbers side by side, in registers; the
sum is added to a padded image in the first-level cache.
"""
import numba
import numpy as np

from .compiler import helper, kernel
from .conv2d import fill_table
from .conv2d_scatter import put_image
from .conv2d_winners import passed_on
from .entry import entry, fields_of, number, threads_for, view, view_as
from .layout import zero_run
from .rows import rows_strided
from .simd import lanes
from .tile import tile_accumulate, tile_zeros
from .tile_fma import tile_fma_rows


@helper
def _sort(indices, passed, at, begin, K, positions, values, channels, counts):
    """The gradients of one pooled pixel that are not zero, and their channels, by the position that won."""
    i, at, room = np.uintp(begin), np.uintp(at), np.uintp(K)     # an index that may be negative costs a test at each access
    for q in range(positions):
        counts[q] = 0
    for k in range(K):
        value, q = passed[i], np.uintp(indices[at])
        count = counts[q]
        to = q * room + np.uintp(count)
        values[to] = value
        channels[to] = k
        counts[q] = count + np.int64(value != 0)
        i += np.uintp(1)
        at += np.uintp(1)


@helper
def _add_weights(indices, passed, at, PH, PW, K, positions, base, place, packed, w_row, R, row_step, width, values, channels,
                 counts, image, mr, nv):
    """image += the weights of the winners of each pixel and position, times their gradients."""
    weights = rows_strided(0, K * w_row, R, mr)
    # neighbours of this order lie in different rows of the image: additions to one place do not follow each other closely
    for pw in range(PW):
        for ph in range(PH):
            p = ph * PW + pw
            _sort(indices, passed, at + p * K, p * K, K, positions, values, channels, counts)
            for q in range(positions):
                if counts[q] > 0:
                    tile = tile_zeros(image, mr, nv)
                    for i in range(q * K, q * K + counts[q]):
                        tile = tile_fma_rows(tile, values[i], packed, weights, channels[i] * w_row)
                    tile_accumulate(tile, image, rows_strided(base[p] + place[q], row_step, R, mr), 0, R, width)


@helper
def _add_sample(indices, passed, at, PH, PW, K, positions, base, place, packed, w_row, R, row_step, width, values, channels,
                counts, image):
    """_add_weights by the size of the window."""
    if width <= lanes(image):
        if R <= 3:
            _add_weights(indices, passed, at, PH, PW, K, positions, base, place, packed, w_row, R, row_step, width, values,
                         channels, counts, image, 3, 1)
        elif R <= 5:
            _add_weights(indices, passed, at, PH, PW, K, positions, base, place, packed, w_row, R, row_step, width, values,
                         channels, counts, image, 5, 1)
        else:
            _add_weights(indices, passed, at, PH, PW, K, positions, base, place, packed, w_row, R, row_step, width, values,
                         channels, counts, image, 7, 1)
    elif R <= 3:
        _add_weights(indices, passed, at, PH, PW, K, positions, base, place, packed, w_row, R, row_step, width, values,
                     channels, counts, image, 3, 2)
    elif R <= 5:
        _add_weights(indices, passed, at, PH, PW, K, positions, base, place, packed, w_row, R, row_step, width, values,
                     channels, counts, image, 5, 2)
    else:
        _add_weights(indices, passed, at, PH, PW, K, positions, base, place, packed, w_row, R, row_step, width, values,
                     channels, counts, image, 7, 2)


@helper
def _samples(chunk, chunks, indices, y, dy, packed, batch, sizes, low, high, accumulate, base, place, passed, values, channels,
             counts, images, dx):
    """The samples of one chunk, one after the other, in the chunk's padded image."""
    H, W, C, K, R, S, PH, PW, pad_top, pad_left, w_row, row_step, columns = sizes
    pixels, positions, size = PH * PW, place.size, images.size // chunks
    image = images[chunk * size:(chunk + 1) * size]
    own_passed = passed[chunk * pixels * K:(chunk + 1) * pixels * K]
    own_values = values[chunk * positions * K:(chunk + 1) * positions * K]
    own_channels = channels[chunk * positions * K:(chunk + 1) * positions * K]
    own_counts = counts[chunk * positions:(chunk + 1) * positions]
    residual = dx if accumulate else dx[:0]
    lowest, highest = dx.dtype.type(-np.inf), dx.dtype.type(np.inf)
    for n in range(chunk * batch // chunks, (chunk + 1) * batch // chunks):
        zero_run(image, 0, size)
        passed_on(y, dy, n * pixels * K, pixels * K, low, high, own_passed)
        _add_sample(indices, own_passed, n * pixels * K, PH, PW, K, positions, base, place, packed, w_row, R, row_step, S * C,
                    own_values, own_channels, own_counts, image)
        put_image(image, 0, residual, H, W, C, pad_top, pad_left, columns, n, lowest, highest, dx)


@kernel
@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def conv2d_backward_input_winners(indices, y, dy, packed, batch, sizes, kernel_h, kernel_w, stride_h, stride_w, low, high,
                                  chunks, accumulate, threads, base, place, passed, values, channels, counts, images, dx):
    """dX of a convolution behind which a max pooling with windows side by side lies.

    Shapes   indices uint8, dy and y (N, PH, PW, K), y empty where nothing clamps the maxima to low..high; packed (R, K, w_row),
             of which S * C columns count; sizes (H, W, C, K, R, S, PH, PW, pad_top, pad_left, w_row, row_step, columns):
             row_step from one row of a window to the next in the padded image (rows, columns, C); images (chunks, padded
             image); base (PH * PW), place (kernel_h * kernel_w) int64; passed (chunks, PH * PW, K); values and channels
             (chunks, kernel_h * kernel_w, K), counts (chunks, kernel_h * kernel_w); dx (N, H, W, C)
    Writes   dx (overwritten, or added to with accumulate); all between threads and dx (undefined)
    Threads  one iteration per chunk of samples, each owns them and its padded image
    Source   seed, dZ through a convolution, where what comes back is max-unpool(Z, idxs, dZ)
    """
    H, W, C, K, R, S, PH, PW, pad_top, pad_left, w_row, row_step, columns = sizes
    fill_table(base, PH, PW, kernel_h * stride_h * columns * C, kernel_w * stride_w * C)
    fill_table(place, kernel_h, kernel_w, stride_h * columns * C, stride_w * C)
    if threads > 1 and chunks > 1:
        for index in numba.prange(chunks):
            chunk = np.int64(index)
            _samples(chunk, chunks, indices, y, dy, packed, batch, sizes, low, high, accumulate, base, place, passed, values,
                     channels, counts, images, dx)
    else:
        for chunk in range(chunks):
            _samples(chunk, chunks, indices, y, dy, packed, batch, sizes, low, high, accumulate, base, place, passed, values,
                     channels, counts, images, dx)


@entry("indices< y< dy< packed< dx= tables> lists> images> H W C K R S PH PW kernel_h kernel_w stride_h stride_w dilation_h "
       "pad_top pad_left w_row rows columns chunks low high accumulate")
def backward_input(arena, row, batch):
    row = fields_of(row)
    real = view(arena, 0, 1).dtype.type
    pixels, positions = row.PH * row.PW, row.kernel_h * row.kernel_w
    pooled = batch * pixels * row.K
    sizes = (row.H, row.W, row.C, row.K, row.R, row.S, row.PH, row.PW, row.pad_top, row.pad_left, row.w_row,
             row.dilation_h * row.columns * row.C, row.columns)
    listed = row.chunks * positions * row.K
    whole = view_as(arena, row.lists, listed + row.chunks * positions, np.int64)
    numbers = view(arena, row.lists + 8 * whole.size, row.chunks * pixels * row.K + listed)
    conv2d_backward_input_winners(
        view_as(arena, row.indices, pooled, np.uint8), view(arena, row.y, pooled if row.y >= 0 else 0),
        view(arena, row.dy, pooled), view(arena, row.packed, row.R * row.K * row.w_row), batch, sizes, row.kernel_h,
        row.kernel_w, row.stride_h, row.stride_w, real(number(row.low)), real(number(row.high)), row.chunks, row.accumulate,
        threads_for(arena, pooled * row.R * row.w_row), view_as(arena, row.tables, pixels, np.int64),
        view_as(arena, row.tables + 8 * pixels, positions, np.int64), numbers[listed:], numbers[:listed], whole[:listed],
        whole[listed:], view(arena, row.images, row.chunks * row.rows * row.columns * row.C),
        view(arena, row.dx, batch * row.H * row.W * row.C))
