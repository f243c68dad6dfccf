"""Depthwise 2-D convolution: one kernel per channel, vectors along the channels, no padding copied."""
import numba

from .cache import entry, fields_of, helper, number, threads_for, view
from .conv2d_weight import first_inside, past_inside
from .layout import zero_run
from .linear import add_partials
from .simd import (
    lanes,
    rows_strided,
    tile_add,
    tile_clamp,
    tile_fill,
    tile_fma_rows,
    tile_store,
    tile_zeros,
    vector_add,
    vector_fma,
    vector_load_first,
    vector_of,
    vector_store_first,
)

PIXELS = 6
# Rows of output that one iteration of a parallel loop takes hold about this many numbers.
GRAIN = 16384


@helper
def _pixel_run(x, x_at, x_pixel, count, r_begin, r_end, s_begin, s_end, x_row, x_tap, weight, w_at, w_row, w_tap, bias, c,
               columns, residual, y, y_at, y_pixel, low, high, mr):
    """count <= mr neighbouring pixels of one vector of channels, taps from r_begin, s_begin to r_end, s_end."""
    tile = tile_zeros(x, mr, 1)
    if bias.size > 0:
        tile = tile_fill(tile, bias, c, columns)
    rows = rows_strided(x_at + c, x_pixel, count, mr)
    for r in range(r_begin, r_end):
        for s in range(s_begin, s_end):
            factor = vector_load_first(weight, w_at + r * w_row + s * w_tap + c, columns)
            tile = tile_fma_rows(tile, x, rows, r * x_row + s * x_tap, factor, columns)
    out = rows_strided(y_at + c, y_pixel, count, mr)
    if residual.size > 0:
        tile = tile_add(tile, residual, out, 0, count, columns)
    tile_store(tile_clamp(tile, low, high), y, out, 0, count, columns)


@helper
def _output_row(n, oh, x, weight, bias, residual, H, W, C, R, S, w_at, w_row, w_tap, dilation_h, dilation_w, stride_h,
                stride_w, origin_h, origin_w, OW, y_at, y_pixel, low, high, y):
    """One row of y: pixels at the sides with the taps they have, those between PIXELS at a time."""
    top = oh * stride_h + origin_h
    r_begin, r_end = first_inside(top, dilation_h), past_inside(top, dilation_h, H, R)
    inner = min(OW, first_inside(origin_w, stride_w))
    past = max(inner, past_inside(origin_w + (S - 1) * dilation_w, stride_w, W, OW))
    x_row, x_tap, x_pixel = dilation_h * W * C, dilation_w * C, stride_w * C
    x_at = (n * H + top) * W * C + origin_w * C
    width = lanes(x)
    for c in range(0, C, width):
        columns = min(width, C - c)
        for ow in range(inner, past, PIXELS):
            _pixel_run(x, x_at + ow * x_pixel, x_pixel, min(PIXELS, past - ow), r_begin, r_end, 0, S, x_row, x_tap, weight,
                       w_at, w_row, w_tap, bias, c, columns, residual, y, y_at + ow * y_pixel, y_pixel, low, high, PIXELS)
        for side in range(2):
            for ow in range(0 if side == 0 else past, inner if side == 0 else OW):
                left = ow * stride_w + origin_w
                _pixel_run(x, x_at + ow * x_pixel, x_pixel, 1, r_begin, r_end, first_inside(left, dilation_w),
                           past_inside(left, dilation_w, W, S), x_row, x_tap, weight, w_at, w_row, w_tap, bias, c, columns,
                           residual, y, y_at + ow * y_pixel, y_pixel, low, high, 1)


@helper
def _rows(begin, end, x, weight, bias, residual, H, W, C, R, S, w_at, w_row, w_tap, dilation_h, dilation_w, stride_h,
          stride_w, origin_h, origin_w, OH, OW, y_size, y_row, y_pixel, y_base, low, high, y):
    for job in range(begin, end):
        n, oh = job // OH, job % OH
        _output_row(n, oh, x, weight, bias, residual, H, W, C, R, S, w_at, w_row, w_tap, dilation_h, dilation_w, stride_h,
                    stride_w, origin_h, origin_w, OW, n * y_size + y_base + oh * y_row, y_pixel, low, high, y)


@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def depthwise2d_forward(x, weight, bias, residual, batch, H, W, C, R, S, w_at, w_row, w_tap, dilation_h, dilation_w,
                        stride_h, stride_w, origin_h, origin_w, OH, OW, y_size, y_row, y_pixel, y_base, low, high, threads,
                        y):
    """y[c] = clamp(x[c] * weight[c] + bias[c] + residual), on a grid of output pixels that may be a part of y.

    Shapes   x (N, H, W, C); weight: tap (r, s) of the R x S in use at w_at + r * w_row + s * w_tap (steps may be negative:
             a flipped kernel); bias (C,) or empty; residual like y, empty, or y itself; y as in conv2d_forward
    Writes   y (its grid overwritten)
    Threads  one iteration per group of output rows, each owns them
    Source   ONNX Conv with group = C; backward to the input is this kernel on dY with the taps of one phase of the stride in
             reverse order (seed, dZ through flipped kernels)
    """
    rows = max(1, GRAIN // (OW * C))
    jobs = (batch * OH + rows - 1) // rows
    if threads > 1 and jobs > 1:
        for job in numba.prange(jobs):
            _rows(job * rows, min(batch * OH, (job + 1) * rows), x, weight, bias, residual, H, W, C, R, S, w_at, w_row,
                  w_tap, dilation_h, dilation_w, stride_h, stride_w, origin_h, origin_w, OH, OW, y_size, y_row, y_pixel,
                  y_base, low, high, y)
    else:
        for job in range(jobs):
            _rows(job * rows, min(batch * OH, (job + 1) * rows), x, weight, bias, residual, H, W, C, R, S, w_at, w_row,
                  w_tap, dilation_h, dilation_w, stride_h, stride_w, origin_h, origin_w, OH, OW, y_size, y_row, y_pixel,
                  y_base, low, high, y)


@entry("x< weight< bias< residual< y= weight_size H W C R S w_at w_row w_tap dilation_h dilation_w stride_h stride_w origin_h "
       "origin_w OH OW y_size y_row y_pixel y_base low high")
def forward(arena, row, batch):
    row = fields_of(row)
    real = view(arena, 0, 1).dtype.type
    y_numbers = batch * row.y_size
    biases = row.C if row.bias >= 0 else 0
    residuals = y_numbers if row.residual >= 0 else 0
    depthwise2d_forward(view(arena, row.x, batch * row.H * row.W * row.C), view(arena, row.weight, row.weight_size),
                        view(arena, row.bias, biases),
                        view(arena, row.residual, residuals), batch, row.H, row.W, row.C, row.R,
                        row.S, row.w_at, row.w_row, row.w_tap, row.dilation_h, row.dilation_w, row.stride_h, row.stride_w,
                        row.origin_h, row.origin_w, row.OH, row.OW, row.y_size, row.y_row, row.y_pixel, row.y_base,
                        real(number(row.low)), real(number(row.high)),
                        threads_for(arena, batch * row.OH * row.OW * row.C * row.R * row.S * 2),
                        view(arena, row.y, y_numbers))


@helper
def _tap_sum(x, dy, begin, end, r, s, c, columns, H, W, C, OH, OW, stride_h, stride_w, top, left):
    """One vector: the sum over output rows begin to end of x under one tap times dy; four sums hide the latency."""
    zero = vector_of(x, x.dtype.type(0))
    a, b, d, e = zero, zero, zero, zero
    first, past = first_inside(left, stride_w), past_inside(left, stride_w, W, OW)
    step = stride_w * C
    for job in range(begin, end):
        n, h = job // OH, (job % OH) * stride_h + top
        if h < 0 or h >= H:
            continue
        x_at = ((n * H + h) * W + left) * C + c
        dy_at = job * OW * C + c
        ow = first
        while ow + 4 <= past:
            at, to = x_at + ow * step, dy_at + ow * C
            a = vector_fma(vector_load_first(x, at, columns), vector_load_first(dy, to, columns), a)
            b = vector_fma(vector_load_first(x, at + step, columns), vector_load_first(dy, to + C, columns), b)
            d = vector_fma(vector_load_first(x, at + 2 * step, columns), vector_load_first(dy, to + 2 * C, columns), d)
            e = vector_fma(vector_load_first(x, at + 3 * step, columns), vector_load_first(dy, to + 3 * C, columns), e)
            ow += 4
        while ow < past:
            a = vector_fma(vector_load_first(x, x_at + ow * step, columns), vector_load_first(dy, dy_at + ow * C, columns), a)
            ow += 1
    return vector_add(vector_add(a, b), vector_add(d, e))


@helper
def _weight_chunk(chunk, chunks, x, dy, batch, H, W, C, OH, OW, R, S, stride_h, stride_w, dilation_h, dilation_w, pad_top,
                  pad_left, partials):
    begin, end = chunk * batch * OH // chunks, (chunk + 1) * batch * OH // chunks
    # few enough rows at a time that their x and dy stay in the first-level cache for all taps
    block = max(1, 4096 // (OW * min(C, lanes(x))))
    size = R * S * C
    total = partials[chunk * size:(chunk + 1) * size]
    zero_run(total, 0, size)
    for c in range(0, C, lanes(x)):
        columns = min(lanes(x), C - c)
        for at in range(begin, end, block):
            for r in range(R):
                for s in range(S):
                    value = _tap_sum(x, dy, at, min(end, at + block), r, s, c, columns, H, W, C, OH, OW, stride_h, stride_w,
                                     r * dilation_h - pad_top, s * dilation_w - pad_left)
                    to = (r * S + s) * C + c
                    vector_store_first(vector_add(value, vector_load_first(total, to, columns)), total, to, columns)


@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def depthwise2d_backward_weight(x, dy, batch, H, W, C, OH, OW, R, S, stride_h, stride_w, dilation_h, dilation_w, pad_top,
                                pad_left, chunks, accumulate, threads, partials, dweight):
    """dweight[r, s, c] = sum over pixels of x under the tap times dy.

    Shapes   x (N, H, W, C); dy (N, OH, OW, C); dweight (R, S, C); partials (chunks, R, S, C)
    Writes   dweight (overwritten, or added to with accumulate); partials (undefined)
    Threads  one iteration per chunk of output rows, each owns its partial sum, added in order
    Source   seed, dW = sum of the patches of A times dZ, channel by channel
    """
    if threads > 1 and chunks > 1:
        for chunk in numba.prange(chunks):
            _weight_chunk(chunk, chunks, x, dy, batch, H, W, C, OH, OW, R, S, stride_h, stride_w, dilation_h, dilation_w,
                          pad_top, pad_left, partials)
    else:
        for chunk in range(chunks):
            _weight_chunk(chunk, chunks, x, dy, batch, H, W, C, OH, OW, R, S, stride_h, stride_w, dilation_h, dilation_w,
                          pad_top, pad_left, partials)
    add_partials(partials, chunks, R * S * C, 0, R * S * C, accumulate, dweight)


@entry("x< dy< dweight= scratch> H W C OH OW R S stride_h stride_w dilation_h dilation_w pad_top pad_left chunks accumulate")
def backward_weight(arena, row, batch):
    row = fields_of(row)
    size = row.R * row.S * row.C
    depthwise2d_backward_weight(view(arena, row.x, batch * row.H * row.W * row.C),
                                view(arena, row.dy, batch * row.OH * row.OW * row.C), batch, row.H, row.W, row.C, row.OH,
                                row.OW, row.R, row.S, row.stride_h, row.stride_w, row.dilation_h, row.dilation_w,
                                row.pad_top, row.pad_left, row.chunks, row.accumulate,
                                threads_for(arena, batch * row.OH * row.OW * size * 2),
                                view(arena, row.scratch, row.chunks * size), view(arena, row.dweight, size))
