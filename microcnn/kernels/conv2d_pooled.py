"""Convolution with few channels and the max pooling of 2 x 2 windows behind it, in one: what lies between is never stored.

Few output channels leave most lanes of a register of channels empty. Here the lanes are neighbouring pixels of two rows,
which both see the same weights. The band of the input has its channels in planes, so that neighbouring pixels lie side by side.
"""
import numba
import numpy as np

from .compiler import helper, kernel
from .conv2d import copy_band
from .entry import entry, fields_of, number, threads_for, view, view_as
from .layout import zero_run
from .rows import rows_strided
from .simd import MR_POOLED, MR_POOLED_EVEN, lanes
from .tile import tile_clamp, tile_zeros
from .tile_fma import tile_fma
from .tile_pool import tile_fill_rows, tile_store_turned, tile_windows


@helper
def _copy_planes(x, x_at, H, W, C, top, left, rows, columns, plane, reused, planes):
    """planes (C, rows, columns) = the image's part that begins at (top, left), as copy_band; plane: from one to the next."""
    if C == 1:
        copy_band(x, x_at, H, W, C, top, left, rows, columns, reused, planes)
        return
    first = min(columns, max(0, -left))
    count = np.uintp(max(0, min(columns, W - left) - first))
    pixel = np.uintp(C)
    for c in range(C):
        for r in range(rows):
            h, to = top + r, c * plane + r * columns
            if 0 <= h < H:
                source, target = np.uintp(x_at + (h * W + left + first) * C + c), np.uintp(to + first)
                for i in range(count):
                    planes[target + np.uintp(i)] = x[source + np.uintp(i) * pixel]
            elif reused:
                zero_run(planes, to, columns)


@helper
def _pooled_row(planes, at, plane, row_step, columns, weight, bias, C, K, R, S, k, channels, PW, low, high, y, y_at, indices,
                mr):
    """One row of windows, of `channels` output channels from k on; the input they see begins at planes[at]."""
    width = lanes(planes)
    rows = rows_strided(k, 1, channels, mr)
    for w in range(0, PW, width):
        upper, lower = tile_zeros(planes, mr, 2), tile_zeros(planes, mr, 2)
        if bias.size > 0:
            upper, lower = tile_fill_rows(upper, bias, rows), tile_fill_rows(lower, bias, rows)
        for c in range(C):
            for r in range(R):
                begin, w_at = at + c * plane + r * row_step + 2 * w, (r * S * C + c) * K
                for _ in range(S):
                    upper = tile_fma(upper, weight, rows, w_at, planes, begin)
                    lower = tile_fma(lower, weight, rows, w_at, planes, begin + columns)
                    begin += 1
                    w_at += C * K
        best, index = tile_windows(upper, lower)
        tile_store_turned(tile_clamp(best, low, high), y, y_at + w * K + k, K, PW - w, channels)
        if indices.size > 0:
            tile_store_turned(index, indices, y_at + w * K + k, K, PW - w, channels)


@helper
def _bands(chunk, chunks, x, weight, bias, padded, batch, sizes, low, high, y, indices):
    """The bands of one chunk of the work, one after the other."""
    H, W, C, K, R, S, dilation_h, pad_top, pad_left, PH, PW, band, columns = sizes
    size = padded.size // chunks
    planes = padded[chunk * size:(chunk + 1) * size]
    plane, bands, row_step = size // C, (PH + band - 1) // band, dilation_h * columns
    jobs = batch * bands
    zero_run(planes, 0, size)
    for job in range(chunk * jobs // chunks, (chunk + 1) * jobs // chunks):
        n, ph = job // bands, (job % bands) * band
        height = min(band, PH - ph)
        _copy_planes(x, n * H * W * C, H, W, C, 2 * ph - pad_top, -pad_left, 2 * height + (R - 1) * dilation_h, columns, plane,
                     bands > 1, planes)
        for i in range(height):
            at, y_at = 2 * i * columns, ((n * PH + ph + i) * PW) * K
            k = 0
            while k < K:
                if (K - k) % MR_POOLED_EVEN == 0 or K - k < MR_POOLED_EVEN:
                    channels = min(K - k, MR_POOLED_EVEN)
                    _pooled_row(planes, at, plane, row_step, columns, weight, bias, C, K, R, S, k, channels, PW, low, high, y,
                                y_at, indices, MR_POOLED_EVEN)
                else:
                    channels = min(K - k, MR_POOLED)
                    _pooled_row(planes, at, plane, row_step, columns, weight, bias, C, K, R, S, k, channels, PW, low, high, y,
                                y_at, indices, MR_POOLED)
                k += channels


@kernel
@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def conv2d_pooled_forward(x, weight, bias, padded, batch, sizes, low, high, chunks, threads, y, indices):
    """y = clamp(max over 2 x 2 windows of (x * weight + bias)), windows side by side, and which of the four won.

    Shapes   x (N, H, W, C); weight (R, S, C, K); bias (K,) or empty; y (N, PH, PW, K), indices uint8 like y or empty; sizes
             (H, W, C, K, R, S, dilation_h, pad_top, pad_left, PH, PW, band, columns); padded (chunks, C, what `band` rows of
             windows see, columns), columns at least those that whole registers of windows see
    Writes   y, indices (overwritten), padded (undefined)
    Threads  one iteration per chunk of bands, each owns its rows of y and its part of padded
    Source   ONNX Conv and MaxPool; seed, Z = W * X and max-pooling with its indices: the first maximum wins, NaN wins
    """
    if threads > 1 and chunks > 1:
        for number_of_chunk in numba.prange(chunks):
            chunk = np.int64(number_of_chunk)
            _bands(chunk, chunks, x, weight, bias, padded, batch, sizes, low, high, y, indices)
    else:
        for chunk in range(chunks):
            _bands(chunk, chunks, x, weight, bias, padded, batch, sizes, low, high, y, indices)


@entry("x< weight< bias< y> indices> padded> H W C K R S dilation_h pad_top pad_left PH PW band columns padded_size chunks low "
       "high")
def forward(arena, row, batch):
    row = fields_of(row)
    real = view(arena, 0, 1).dtype.type
    sizes = (row.H, row.W, row.C, row.K, row.R, row.S, row.dilation_h, row.pad_top, row.pad_left, row.PH, row.PW, row.band,
             row.columns)
    pooled = batch * row.PH * row.PW * row.K
    biases = row.K if row.bias >= 0 else 0
    conv2d_pooled_forward(view(arena, row.x, batch * row.H * row.W * row.C),
                          view(arena, row.weight, row.R * row.S * row.C * row.K), view(arena, row.bias, biases),
                          view(arena, row.padded, row.padded_size), batch, sizes, real(number(row.low)), real(number(row.high)),
                          row.chunks, threads_for(arena, 4 * pooled * row.R * row.S * row.C), view(arena, row.y, pooled),
                          view_as(arena, row.indices, pooled if row.indices >= 0 else 0, np.uint8))
