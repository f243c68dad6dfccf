"""Depthwise 2-D convolution: one kernel per channel, vectors along the channels.

As in conv2d, each chunk of the work copies a band of the image with its zeros into scratch where there is padding, so that
every pixel has all its taps and images of any size run alike. Most 3 x 3 windows have a kernel of their own, depthwise3x3.
"""
import numba
import numpy as np

from .compiler import helper, kernel
from .conv2d import copy_band
from .entry import entry, fields_of, number, threads_for, view
from .layout import zero_run
from .linear_weight import add_partials
from .simd import lanes
from .vector import (
    vector_add,
    vector_fma,
    vector_load_first,
    vector_max,
    vector_min,
    vector_of,
    vector_store_first,
    vector_take,
)


@helper
def finish(value, residual, y, at, columns, low, high):
    """The residual added, the result clamped and stored."""
    if residual.size > 0:
        value = vector_add(value, vector_take(residual, at, columns))
    vector_store_first(vector_min(vector_max(value, vector_of(y, low)), vector_of(y, high)), y, at, columns)


@helper
def _row(x, x_at, x_row, x_tap, x_pixel, R, S, weight, w_at, w_row, w_tap, start, residual, y, y_at, y_pixel, count, columns,
         low, high):
    """count pixels of one vector of channels, four at a time: their sums hide each other's latency and share the weights."""
    ow = 0
    while ow + 4 <= count:
        first, second, third, fourth = start, start, start, start
        for r in range(R):
            at, tap = x_at + ow * x_pixel + r * x_row, w_at + r * w_row
            for s in range(S):
                factor = vector_take(weight, tap + s * w_tap, columns)
                first = vector_fma(vector_take(x, at, columns), factor, first)
                second = vector_fma(vector_take(x, at + x_pixel, columns), factor, second)
                third = vector_fma(vector_take(x, at + 2 * x_pixel, columns), factor, third)
                fourth = vector_fma(vector_take(x, at + 3 * x_pixel, columns), factor, fourth)
                at += x_tap
        to = y_at + ow * y_pixel
        finish(first, residual, y, to, columns, low, high)
        finish(second, residual, y, to + y_pixel, columns, low, high)
        finish(third, residual, y, to + 2 * y_pixel, columns, low, high)
        finish(fourth, residual, y, to + 3 * y_pixel, columns, low, high)
        ow += 4
    while ow < count:
        value = start
        for r in range(R):
            at, tap = x_at + ow * x_pixel + r * x_row, w_at + r * w_row
            for s in range(S):
                factor = vector_take(weight, tap + s * w_tap, columns)
                value = vector_fma(vector_take(x, at + s * x_tap, columns), factor, value)
        finish(value, residual, y, y_at + ow * y_pixel, columns, low, high)
        ow += 1


@helper
def _bands(chunk, chunks, x, weight, bias, residual, padded, batch, H, W, C, R, S, w_at, w_row, w_tap, dilation_h, dilation_w,
           stride_h, stride_w, origin_h, origin_w, OH, OW, y_size, y_row, y_pixel, y_base, band, low, high, y):
    """The bands of one chunk of the work, one after the other."""
    bands = (OH + band - 1) // band
    jobs = batch * bands
    rows = (band - 1) * stride_h + (max(R, 1) - 1) * dilation_h + 1
    columns = (OW - 1) * stride_w + (max(S, 1) - 1) * dilation_w + 1
    copied = padded.size > 0
    part = padded[chunk * rows * columns * C:(chunk + 1) * rows * columns * C] if copied else x
    width = columns if copied else W
    step = lanes(x)
    if copied:
        zero_run(part, 0, rows * columns * C)
    x_row, x_tap, x_pixel = dilation_h * width * C, dilation_w * C, stride_w * C
    for job in range(chunk * jobs // chunks, (chunk + 1) * jobs // chunks):
        n, first = job // bands, (job % bands) * band
        height = min(band, OH - first)
        top = first * stride_h + origin_h
        if copied:
            copy_band(x, n * H * W * C, H, W, C, top, origin_w, (height - 1) * stride_h + (R - 1) * dilation_h + 1, columns,
                      bands > 1, part)
            begin = 0
        else:
            begin = ((n * H + top) * W + origin_w) * C
        for c in range(0, C, step):
            count = min(step, C - c)
            start = vector_of(x, x.dtype.type(0))
            if bias.size > 0:
                start = vector_take(bias, c, count)
            for oh in range(height):
                x_at, y_at = begin + oh * stride_h * width * C + c, n * y_size + y_base + (first + oh) * y_row + c
                _row(part, x_at, x_row, x_tap, x_pixel, R, S, weight, w_at + c, w_row, w_tap, start, residual, y, y_at,
                     y_pixel, OW, count, low, high)


@kernel
@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def depthwise2d_forward(x, weight, bias, residual, padded, batch, H, W, C, R, S, w_at, w_row, w_tap, dilation_h, dilation_w,
                        stride_h, stride_w, origin_h, origin_w, OH, OW, y_size, y_row, y_pixel, y_base, band, chunks, low,
                        high, threads, y):
    """y[c] = clamp(x[c] * weight[c] + bias[c] + residual), on a grid of output pixels that may be a part of y.

    Shapes   x (N, H, W, C); weight: tap (r, s) of the R x S in use at w_at + r * w_row + s * w_tap (steps may be negative:
             a flipped kernel); bias (C,) or empty; residual like y, empty, or y itself; y and the bands as in conv2d_forward
    Writes   y (its grid overwritten); padded (chunks bands, or empty when nothing lies outside)
    Threads  one iteration per chunk of bands, each owns its rows of y and its part of padded
    Source   ONNX Conv with group = C; backward to the input is this kernel on dY with the taps of one phase of the stride in
             reverse order (seed, dZ through flipped kernels)
    """
    if threads > 1 and chunks > 1:
        for index in numba.prange(chunks):
            chunk = np.int64(index)
            _bands(chunk, chunks, x, weight, bias, residual, padded, batch, H, W, C, R, S, w_at, w_row, w_tap, dilation_h,
                   dilation_w, stride_h, stride_w, origin_h, origin_w, OH, OW, y_size, y_row, y_pixel, y_base, band, low,
                   high, y)
    else:
        for chunk in range(chunks):
            _bands(chunk, chunks, x, weight, bias, residual, padded, batch, H, W, C, R, S, w_at, w_row, w_tap, dilation_h,
                   dilation_w, stride_h, stride_w, origin_h, origin_w, OH, OW, y_size, y_row, y_pixel, y_base, band, low,
                   high, y)


@entry("x< weight< bias< residual< y= padded> weight_size H W C R S w_at w_row w_tap dilation_h dilation_w stride_h stride_w "
       "origin_h origin_w OH OW y_size y_row y_pixel y_base band padded_size chunks low high")
def forward(arena, row, batch):
    row = fields_of(row)
    real = view(arena, 0, 1).dtype.type
    y_numbers = batch * row.y_size
    biases = row.C if row.bias >= 0 else 0
    residuals = y_numbers if row.residual >= 0 else 0
    depthwise2d_forward(view(arena, row.x, batch * row.H * row.W * row.C), view(arena, row.weight, row.weight_size),
                        view(arena, row.bias, biases), view(arena, row.residual, residuals),
                        view(arena, row.padded, row.padded_size), batch, row.H, row.W, row.C, row.R, row.S, row.w_at,
                        row.w_row, row.w_tap, row.dilation_h, row.dilation_w, row.stride_h, row.stride_w, row.origin_h,
                        row.origin_w, row.OH, row.OW, row.y_size, row.y_row, row.y_pixel, row.y_base, row.band, row.chunks,
                        real(number(row.low)), real(number(row.high)),
                        threads_for(arena, batch * row.OH * row.OW * row.C * row.R * row.S * 2),
                        view(arena, row.y, y_numbers))


@helper
def add_to(total, at, value, columns):
    vector_store_first(vector_add(value, vector_load_first(total, at, columns)), total, at, columns)


@helper
def _weight_tap(x, x_at, x_line, x_pixel, dy, dy_at, dy_line, C, height, OW, columns, total, t_at):
    """The sum of one tap and one vector of channels over a band; four sums hide the latency."""
    zero = vector_of(x, x.dtype.type(0))
    a, b, c, d = zero, zero, zero, zero
    for oh in range(height):
        at, to = x_at + oh * x_line, dy_at + oh * dy_line
        ow = 0
        while ow + 4 <= OW:
            a = vector_fma(vector_take(x, at, columns), vector_take(dy, to, columns), a)
            b = vector_fma(vector_take(x, at + x_pixel, columns), vector_take(dy, to + C, columns), b)
            c = vector_fma(vector_take(x, at + 2 * x_pixel, columns), vector_take(dy, to + 2 * C, columns), c)
            d = vector_fma(vector_take(x, at + 3 * x_pixel, columns), vector_take(dy, to + 3 * C, columns), d)
            at, to, ow = at + 4 * x_pixel, to + 4 * C, ow + 4
        while ow < OW:
            a = vector_fma(vector_take(x, at, columns), vector_take(dy, to, columns), a)
            at, to, ow = at + x_pixel, to + C, ow + 1
    add_to(total, t_at, vector_add(vector_add(a, b), vector_add(c, d)), columns)


@helper
def _weight_chunk(chunk, chunks, x, dy, padded, batch, H, W, C, OH, OW, R, S, stride_h, stride_w, dilation_h, dilation_w,
                  pad_top, pad_left, band, partials):
    """One chunk's bands into its partial sum."""
    bands = (OH + band - 1) // band
    jobs = batch * bands
    rows = (band - 1) * stride_h + (R - 1) * dilation_h + 1
    columns = (OW - 1) * stride_w + (S - 1) * dilation_w + 1
    copied = padded.size > 0
    part = padded[chunk * rows * columns * C:(chunk + 1) * rows * columns * C] if copied else x
    width = columns if copied else W
    step, size = lanes(x), R * S * C
    total = partials[chunk * size:(chunk + 1) * size]
    if copied:
        zero_run(part, 0, rows * columns * C)
    zero_run(total, 0, size)
    x_line, x_row, x_tap, x_pixel = stride_h * width * C, dilation_h * width * C, dilation_w * C, stride_w * C
    for job in range(chunk * jobs // chunks, (chunk + 1) * jobs // chunks):
        n, first = job // bands, (job % bands) * band
        height = min(band, OH - first)
        top = first * stride_h - pad_top
        begin = ((n * H + top) * W - pad_left) * C
        if copied:
            copy_band(x, n * H * W * C, H, W, C, top, -pad_left, (height - 1) * stride_h + (R - 1) * dilation_h + 1, columns,
                      bands > 1, part)
            begin = 0
        dy_at = (n * OH + first) * OW * C
        for c in range(0, C, step):
            count = min(step, C - c)
            for r in range(R):
                for s in range(S):
                    _weight_tap(part, begin + r * x_row + s * x_tap + c, x_line, x_pixel, dy, dy_at + c, OW * C, C, height, OW,
                                count, total, (r * S + s) * C + c)


@kernel
@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def depthwise2d_backward_weight(x, dy, padded, batch, H, W, C, OH, OW, R, S, stride_h, stride_w, dilation_h, dilation_w,
                                pad_top, pad_left, band, chunks, accumulate, threads, partials, dweight):
    """dweight[r, s, c] = sum over pixels of x under the tap times dy.

    Shapes   x (N, H, W, C); dy (N, OH, OW, C); dweight (R, S, C); partials (chunks, R, S, C); padded as in forward
    Writes   dweight (overwritten, or added to with accumulate); padded and partials (undefined)
    Threads  one iteration per chunk of bands, each owns its partial sum, added in order
    Source   seed, dW = sum of the patches of A times dZ, channel by channel
    """
    if threads > 1 and chunks > 1:
        for index in numba.prange(chunks):
            chunk = np.int64(index)
            _weight_chunk(chunk, chunks, x, dy, padded, batch, H, W, C, OH, OW, R, S, stride_h, stride_w, dilation_h,
                          dilation_w, pad_top, pad_left, band, partials)
    else:
        for chunk in range(chunks):
            _weight_chunk(chunk, chunks, x, dy, padded, batch, H, W, C, OH, OW, R, S, stride_h, stride_w, dilation_h,
                          dilation_w, pad_top, pad_left, band, partials)
    add_partials(partials, chunks, R * S * C, 0, R * S * C, accumulate, dweight)


@entry("x< dy< dweight= padded> scratch> H W C OH OW R S stride_h stride_w dilation_h dilation_w pad_top pad_left band "
       "padded_size chunks accumulate")
def backward_weight(arena, row, batch):
    row = fields_of(row)
    size = row.R * row.S * row.C
    depthwise2d_backward_weight(view(arena, row.x, batch * row.H * row.W * row.C),
                                view(arena, row.dy, batch * row.OH * row.OW * row.C),
                                view(arena, row.padded, row.padded_size), batch, row.H, row.W, row.C, row.OH, row.OW, row.R,
                                row.S, row.stride_h, row.stride_w, row.dilation_h, row.dilation_w, row.pad_top, row.pad_left,
                                row.band, row.chunks, row.accumulate,
                                threads_for(arena, batch * row.OH * row.OW * size * 2),
                                view(arena, row.scratch, row.chunks * size), view(arena, row.dweight, size))
