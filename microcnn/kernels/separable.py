"""A depthwise 3 x 3 convolution and the pointwise one that alone reads it, band by band: what is between stays in the cache.

Both sums are those of depthwise3x3.py and linear.py, to the last bit.
"""
import numba
import numpy as np

from .compiler import helper, kernel
from .depthwise3x3 import fetch_band, forward_band
from .entry import entry, fields_of, number, numbers_between, threads_for, view
from .fetch import fetch
from .layout import vectors_of, zero_run
from .linear import forward_tiles
from .simd import LESS1, LESS2, LESS4, MR1, MR2, MR4, lanes


@helper
def _product(x, rows, weight, bias, residual, C, K, low, high, y):
    """y = clamp(x weight + bias + residual) for some rows, a block of columns after the other."""
    k = 0
    while k < K:
        vectors = vectors_of(K - k, lanes(x))
        columns = min(K - k, vectors * lanes(x))
        if MR4 > 0 and vectors == 4:
            forward_tiles(x, 0, rows, 0, C, C, weight, k, K, bias, k, residual, y, K, columns, low, high, MR4, LESS4, 4)
        elif vectors == 2:
            forward_tiles(x, 0, rows, 0, C, C, weight, k, K, bias, k, residual, y, K, columns, low, high, MR2, LESS2, 2)
        else:
            forward_tiles(x, 0, rows, 0, C, C, weight, k, K, bias, k, residual, y, K, columns, low, high, MR1, LESS1, 1)
        k += columns


@helper
def _bands(chunk, chunks, x, weight, bias, zeros_at, batch, H, W, C, stride, dilation_h, origin_h, origin_w, OH, OW, band, low,
           high, point_weight, point_bias, residual, K, least, most, fetch_x, fetch_y, middle, y):
    """The bands of one chunk of the work, one after the other."""
    bands = (OH + band - 1) // band
    jobs = batch * bands
    for job in range(chunk * jobs // chunks, (chunk + 1) * jobs // chunks):
        n, first = job // bands, job % bands * band
        rows = min(band, OH - first)
        h_first = first * stride + origin_h
        if fetch_x:
            fetch_band(x, n, H, W * C, h_first, (rows - 1) * stride + 2 * dilation_h + 1)
        forward_band(x, n * H * W * C, -1, zeros_at, H, W, C, h_first, stride, dilation_h, origin_w, stride, weight, 0, 3 * C,
                     C, bias, 0, C, middle[:0], None, middle, 0, OW * C, C, rows, OW, low, high)
        begin, end = (n * OH + first) * OW * K, (n * OH + first + rows) * OW * K
        if fetch_y:
            fetch(y, begin, end - begin)
        _product(middle, rows * OW, point_weight, point_bias, residual[begin:end], C, K, least, most, y[begin:end])


@kernel
@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def separable_forward(x, weight, bias, batch, H, W, C, stride, dilation_h, origin_h, origin_w, OH, OW, band, low, high,
                      point_weight, point_bias, residual, K, least, most, fetch_x, fetch_y, chunks, threads, zeros, middle, y):
    """y = clamp(depthwise(x) point_weight + point_bias + residual), between least and most.

    Shapes   x (batch, H, W, C); weight (3, 3, C); bias (C,) or empty; point_weight (C, K); point_bias (K,) or empty; residual
             like y, empty, or y itself; zeros (W, C) where a row may lie outside the image; y (batch, OH, OW, K)
    Numbers  stride is 1 or 2; low, high: the bounds of what is between; fetch_x, fetch_y: whether x is read, y touched in
             order first
    Writes   y (overwritten), zeros, middle (chunks, band, OW, C)
    Threads  one iteration per chunk of bands of rows, each owns its part of y and of middle
    Source   ONNX Conv with group = C, then Conv of 1 x 1
    """
    zero_run(zeros, 0, zeros.size)
    zeros_at, room = numbers_between(x, zeros), band * OW * C
    if threads > 1 and chunks > 1:
        for index in numba.prange(chunks):
            chunk = np.int64(index)
            _bands(chunk, chunks, x, weight, bias, zeros_at, batch, H, W, C, stride, dilation_h, origin_h, origin_w, OH, OW,
                   band, low, high, point_weight, point_bias, residual, K, least, most, fetch_x, fetch_y,
                   middle[chunk * room:(chunk + 1) * room], y)
    else:
        for chunk in range(chunks):
            _bands(chunk, chunks, x, weight, bias, zeros_at, batch, H, W, C, stride, dilation_h, origin_h, origin_w, OH, OW,
                   band, low, high, point_weight, point_bias, residual, K, least, most, fetch_x, fetch_y,
                   middle[chunk * room:(chunk + 1) * room], y)


@entry("x< weight< bias< point_weight< point_bias< residual< y= middle> zeros> H W C stride dilation_h origin_h origin_w OH OW "
       "K band low high least most zeros_size chunks fetch_x fetch_y")
def forward(arena, row, batch):
    row = fields_of(row)
    C, K = row.C, row.K
    real, size = view(arena, 0, 1).dtype.type, batch * row.OH * row.OW * row.K
    separable_forward(view(arena, row.x, batch * row.H * row.W * C), view(arena, row.weight, 9 * C),
                      view(arena, row.bias, C if row.bias >= 0 else 0), batch, row.H, row.W, C, row.stride, row.dilation_h,
                      row.origin_h, row.origin_w, row.OH, row.OW, row.band, real(number(row.low)), real(number(row.high)),
                      view(arena, row.point_weight, C * K), view(arena, row.point_bias, K if row.point_bias >= 0 else 0),
                      view(arena, row.residual, size if row.residual >= 0 else 0), K, real(number(row.least)),
                      real(number(row.most)), row.fetch_x, row.fetch_y, row.chunks,
                      threads_for(arena, batch * row.OH * row.OW * C * (18 + K)), view(arena, row.zeros, row.zeros_size),
                      view(arena, row.middle, row.chunks * row.band * row.OW * C), view(arena, row.y, size))
