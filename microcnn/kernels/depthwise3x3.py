"""Depthwise convolution by 3 x 3 windows whose columns are neighbours, strides 1 and 2 across: vectors along the channels.

The window slides along a row of pixels: what two of its places share stays in registers, and nothing is copied for the
padding: a row outside the image is a line of zeros in scratch, a column outside is a register of zeros.
"""
import numba
import numpy as np

from .compiler import helper, inlined, kernel
from .depthwise2d import add_to, finish
from .entry import entry, fields_of, number, numbers_between, threads_for, view
from .fetch import fetch
from .layout import zero_run
from .linear_weight import add_partials
from .masks import vector_pass
from .simd import MASKS_ARE_FREE, lanes
from .vector import vector_fma, vector_of, vector_take, vector_write


@helper
def line_of(plane, h, H, line, ring, zeros_at):
    """Where row h of an image begins; one outside is the line of zeros.

    ring: one less than the power of 2 of lines after which a ring of them begins anew; -1: the whole image lies there.
    """
    return plane + (h & ring) * line if 0 <= h < H else zeros_at


@helper
def take_inside(x, at, column, W, C, columns):
    """One vector of channels of a pixel of a line, zeros where that is outside."""
    return vector_take(x, at + column * C, columns if 0 <= column < W else 0)


@helper
def put(value, residual, mask, y, at, columns, low, high):
    """The value stored as depthwise2d.finish does; with a mask only it, and zeros where their bits are none."""
    if mask is not None:
        vector_write(vector_pass(value, mask, at), y, at, columns)
    else:
        finish(value, residual, y, at, columns, low, high)


@helper
def fetch_band(x, n, H, line, h, rows):
    """Read those of some lines of sample n that lie in its image, from line h on."""
    begin, end = max(h, 0), min(h + rows, H)
    if end > begin:
        fetch(x, (n * H + begin) * line, (end - begin) * line)


@inlined
def _forward_rows(x, plane, ring, zeros_at, H, W, C, h_first, h_step, h_tap, origin_w, stride_w, weight, w_at, w_row, w_tap,
                  columns, start, residual, mask, y, y_at, y_row, y_pixel, rows, OW, low, high):
    """Some rows of pixels of one vector of channels. Each column of three pixels is read once, for all pixels that see it."""
    w00 = vector_take(weight, w_at, columns)
    w01 = vector_take(weight, w_at + w_tap, columns)
    w02 = vector_take(weight, w_at + 2 * w_tap, columns)
    w10 = vector_take(weight, w_at + w_row, columns)
    w11 = vector_take(weight, w_at + w_row + w_tap, columns)
    w12 = vector_take(weight, w_at + w_row + 2 * w_tap, columns)
    w20 = vector_take(weight, w_at + 2 * w_row, columns)
    w21 = vector_take(weight, w_at + 2 * w_row + w_tap, columns)
    w22 = vector_take(weight, w_at + 2 * w_row + 2 * w_tap, columns)
    for row in range(rows):
        h = h_first + row * h_step
        top, middle = line_of(plane, h, H, W * C, ring, zeros_at), line_of(plane, h + h_tap, H, W * C, ring, zeros_at)
        bottom, to = line_of(plane, h + 2 * h_tap, H, W * C, ring, zeros_at), y_at + row * y_row
        if stride_w == 1:
            # column t ends pixel t - 2, is the middle of t - 1 (in `middle_sum`) and begins t (in `begun`)
            first, last = min(max(0, -origin_w), OW + 2), max(0, min(OW + 2, W - origin_w))
            begun, middle_sum = start, start
            for t in range(2, first):
                put(start, residual, mask, y, to + (t - 2) * y_pixel, columns, low, high)
            for t in range(first, min(last, 2)):
                at = (origin_w + t) * C
                x0, x1 = vector_take(x, top + at, columns), vector_take(x, middle + at, columns)
                x2 = vector_take(x, bottom + at, columns)
                middle_sum = vector_fma(x2, w21, vector_fma(x1, w11, vector_fma(x0, w01, begun)))
                begun = vector_fma(x2, w20, vector_fma(x1, w10, vector_fma(x0, w00, start)))
            for t in range(max(first, 2), last):
                at = (origin_w + t) * C
                x0, x1 = vector_take(x, top + at, columns), vector_take(x, middle + at, columns)
                x2 = vector_take(x, bottom + at, columns)
                done = vector_fma(x2, w22, vector_fma(x1, w12, vector_fma(x0, w02, middle_sum)))
                middle_sum = vector_fma(x2, w21, vector_fma(x1, w11, vector_fma(x0, w01, begun)))
                begun = vector_fma(x2, w20, vector_fma(x1, w10, vector_fma(x0, w00, start)))
                put(done, residual, mask, y, to + (t - 2) * y_pixel, columns, low, high)
            for _ in range(max(first, last), 2):
                middle_sum, begun = begun, start
            for t in range(max(first, last, 2), OW + 2):
                put(middle_sum, residual, mask, y, to + (t - 2) * y_pixel, columns, low, high)
                middle_sum, begun = begun, start
        else:
            # every second column ends one pixel and begins the next
            inside = min(OW, max(0, (W - 1 - origin_w) // 2))
            x0, x1 = take_inside(x, top, origin_w, W, C, columns), take_inside(x, middle, origin_w, W, C, columns)
            x2 = take_inside(x, bottom, origin_w, W, C, columns)
            begun = vector_fma(x2, w20, vector_fma(x1, w10, vector_fma(x0, w00, start)))
            for ow in range(OW):
                column = origin_w + 2 * ow + 1
                if column >= 0 and ow < inside:
                    x0, x1 = vector_take(x, top + column * C, columns), vector_take(x, middle + column * C, columns)
                    x2 = vector_take(x, bottom + column * C, columns)
                    done = vector_fma(x2, w21, vector_fma(x1, w11, vector_fma(x0, w01, begun)))
                    column += 1
                    x0, x1 = vector_take(x, top + column * C, columns), vector_take(x, middle + column * C, columns)
                    x2 = vector_take(x, bottom + column * C, columns)
                else:
                    x0, x1 = take_inside(x, top, column, W, C, columns), take_inside(x, middle, column, W, C, columns)
                    x2 = take_inside(x, bottom, column, W, C, columns)
                    done = vector_fma(x2, w21, vector_fma(x1, w11, vector_fma(x0, w01, begun)))
                    column += 1
                    x0, x1 = take_inside(x, top, column, W, C, columns), take_inside(x, middle, column, W, C, columns)
                    x2 = take_inside(x, bottom, column, W, C, columns)
                done = vector_fma(x2, w22, vector_fma(x1, w12, vector_fma(x0, w02, done)))
                begun = vector_fma(x2, w20, vector_fma(x1, w10, vector_fma(x0, w00, start)))
                put(done, residual, mask, y, to + ow * y_pixel, columns, low, high)


@helper
def forward_band(x, plane, ring, zeros_at, H, W, C, h_first, stride_h, dilation_h, origin_w, stride_w, weight, w_at, w_row,
                 w_tap, bias, begin, end, residual, mask, y, y_at, y_row, y_pixel, rows, OW, low, high):
    """Some rows of the output, channels begin to end: those of the first pixel stand at y_at, the image at plane in x, or a
    ring of its lines (line_of); mask as put takes it."""
    step = lanes(x)
    for c in range(begin, end, step):
        columns = min(step, C - c)
        start = vector_of(x, x.dtype.type(0))
        if bias.size > 0:
            start = vector_take(bias, c, columns)
        if not MASKS_ARE_FREE and columns == step:
            # the same with a count that is known when this is compiled: plain loads
            _forward_rows(x, plane + c, ring, zeros_at, H, W, C, h_first, stride_h, dilation_h, origin_w, stride_w, weight,
                          w_at + c, w_row, w_tap, step, start, residual, mask, y, y_at + c, y_row, y_pixel, rows, OW, low, high)
        else:
            _forward_rows(x, plane + c, ring, zeros_at, H, W, C, h_first, stride_h, dilation_h, origin_w, stride_w, weight,
                          w_at + c, w_row, w_tap, columns, start, residual, mask, y, y_at + c, y_row, y_pixel, rows, OW, low,
                          high)


@helper
def _bands(chunk, chunks, splits, x, weight, bias, residual, zeros_at, batch, H, W, C, w_at, w_row, w_tap, dilation_h, stride_h,
           stride_w, origin_h, origin_w, OH, OW, y_size, y_row, y_pixel, y_base, band, fetch_x, fetch_y, low, high, y):
    """The bands of one chunk of the work, one after the other, each in parts of its channels."""
    bands = (OH + band - 1) // band
    jobs = batch * bands * splits
    step = lanes(x)
    vectors = (C + step - 1) // step
    for job in range(chunk * jobs // chunks, (chunk + 1) * jobs // chunks):
        n, first, split = job // splits // bands, (job // splits % bands) * band, job % splits
        rows = min(band, OH - first)
        if fetch_x:
            fetch_band(x, n, H, W * C, first * stride_h + origin_h, (rows - 1) * stride_h + 2 * dilation_h + 1)
        if fetch_y:
            for h in range(first, first + rows):
                fetch(y, n * y_size + y_base + h * y_row, OW * C)
        forward_band(x, n * H * W * C, -1, zeros_at, H, W, C, first * stride_h + origin_h, stride_h, dilation_h, origin_w,
                     stride_w, weight, w_at, w_row, w_tap, bias, split * vectors // splits * step,
                     min(C, (split + 1) * vectors // splits * step), residual, None, y, n * y_size + y_base + first * y_row,
                     y_row, y_pixel, rows, OW, low, high)


@kernel
@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def depthwise3x3_forward(x, weight, bias, residual, batch, H, W, C, w_at, w_row, w_tap, dilation_h, stride_h, stride_w,
                         origin_h, origin_w, OH, OW, y_size, y_row, y_pixel, y_base, band, splits, chunks, fetch_x, fetch_y,
                         low, high, threads, zeros, y):
    """y[c] = clamp(x[c] * weight[c] + bias[c] + residual), on a grid of output pixels that may be a part of y.

    Shapes   x (N, H, W, C); weight: tap (r, s) at w_at + r * w_row + s * w_tap (steps may be negative: a flipped kernel);
             bias (C,) or empty; residual like y, empty, or y itself; zeros (W, C) where a row may lie outside the image;
             y: N samples of y_size numbers, pixel (oh, ow) at y_base + oh * y_row + ow * y_pixel
    Numbers  stride_w is 1 or 2; splits: parts of the channels; fetch_x, fetch_y: whether x is read, y touched in order first
    Writes   y (its grid overwritten), zeros
    Threads  one iteration per chunk of bands of rows and parts of channels, each owns its part of y
    Source   ONNX Conv with group = C; backward to the input is this kernel on dY with the taps in reverse order (seed, dZ
             through flipped kernels)
    """
    zero_run(zeros, 0, zeros.size)
    zeros_at = numbers_between(x, zeros)
    if threads > 1 and chunks > 1:
        for index in numba.prange(chunks):
            chunk = np.int64(index)
            _bands(chunk, chunks, splits, x, weight, bias, residual, zeros_at, batch, H, W, C, w_at, w_row, w_tap, dilation_h,
                   stride_h, stride_w, origin_h, origin_w, OH, OW, y_size, y_row, y_pixel, y_base, band, fetch_x, fetch_y,
                   low, high, y)
    else:
        for chunk in range(chunks):
            _bands(chunk, chunks, splits, x, weight, bias, residual, zeros_at, batch, H, W, C, w_at, w_row, w_tap, dilation_h,
                   stride_h, stride_w, origin_h, origin_w, OH, OW, y_size, y_row, y_pixel, y_base, band, fetch_x, fetch_y,
                   low, high, y)


@entry("x< weight< bias< residual< y= zeros> weight_size H W C w_at w_row w_tap dilation_h stride_h stride_w origin_h origin_w "
       "OH OW y_size y_row y_pixel y_base band splits zeros_size chunks fetch_x fetch_y low high")
def forward(arena, row, batch):
    row = fields_of(row)
    real = view(arena, 0, 1).dtype.type
    y_numbers = batch * row.y_size
    bias, residual = row.C if row.bias >= 0 else 0, y_numbers if row.residual >= 0 else 0
    depthwise3x3_forward(view(arena, row.x, batch * row.H * row.W * row.C), view(arena, row.weight, row.weight_size),
                         view(arena, row.bias, bias), view(arena, row.residual, residual), batch, row.H, row.W, row.C, row.w_at,
                         row.w_row, row.w_tap, row.dilation_h, row.stride_h, row.stride_w, row.origin_h, row.origin_w, row.OH,
                         row.OW, row.y_size, row.y_row, row.y_pixel, row.y_base, row.band, row.splits, row.chunks,
                         row.fetch_x, row.fetch_y, real(number(row.low)), real(number(row.high)),
                         threads_for(arena, batch * row.OH * row.OW * row.C * 18),
                         view(arena, row.zeros, row.zeros_size), view(arena, row.y, y_numbers))


@inlined
def _weight_rows(x, plane, ring, zeros_at, H, W, C, h_first, h_step, h_tap, origin_w, stride_w, dy, dy_at, columns, rows, OW,
                 total, t_at):
    """The nine sums of one vector of channels over some rows of pixels, all in registers."""
    zero = vector_of(x, x.dtype.type(0))
    t00, t01, t02, t10, t11, t12, t20, t21, t22 = zero, zero, zero, zero, zero, zero, zero, zero, zero
    for row in range(rows):
        h, slopes = h_first + row * h_step, dy_at + row * OW * C
        top, middle = line_of(plane, h, H, W * C, ring, zeros_at), line_of(plane, h + h_tap, H, W * C, ring, zeros_at)
        bottom = line_of(plane, h + 2 * h_tap, H, W * C, ring, zeros_at)
        if stride_w == 1:
            # column t meets the slopes of the pixels t, t - 1 and t - 2, whose windows it is in
            first, last = min(max(0, -origin_w), OW + 2), max(0, min(OW + 2, W - origin_w))
            before = vector_take(dy, slopes + (first - 1) * C, columns if 1 <= first <= OW else 0)
            earlier = vector_take(dy, slopes + (first - 2) * C, columns if 2 <= first <= OW + 1 else 0)
            for t in range(first, last):
                at = (origin_w + t) * C
                slope = vector_take(dy, slopes + t * C, columns if t < OW else 0)
                value = vector_take(x, top + at, columns)
                t00, t01 = vector_fma(value, slope, t00), vector_fma(value, before, t01)
                t02, value = vector_fma(value, earlier, t02), vector_take(x, middle + at, columns)
                t10, t11 = vector_fma(value, slope, t10), vector_fma(value, before, t11)
                t12, value = vector_fma(value, earlier, t12), vector_take(x, bottom + at, columns)
                t20, t21 = vector_fma(value, slope, t20), vector_fma(value, before, t21)
                t22 = vector_fma(value, earlier, t22)
                earlier, before = before, slope
        else:
            for ow in range(OW):
                column, slope = origin_w + 2 * ow, vector_take(dy, slopes + ow * C, columns)
                if 0 <= column < W - 2:
                    at = column * C
                    t00, t01 = (vector_fma(vector_take(x, top + at, columns), slope, t00),
                                vector_fma(vector_take(x, top + at + C, columns), slope, t01))
                    t02, t10 = (vector_fma(vector_take(x, top + at + 2 * C, columns), slope, t02),
                                vector_fma(vector_take(x, middle + at, columns), slope, t10))
                    t11, t12 = (vector_fma(vector_take(x, middle + at + C, columns), slope, t11),
                                vector_fma(vector_take(x, middle + at + 2 * C, columns), slope, t12))
                    t20, t21 = (vector_fma(vector_take(x, bottom + at, columns), slope, t20),
                                vector_fma(vector_take(x, bottom + at + C, columns), slope, t21))
                    t22 = vector_fma(vector_take(x, bottom + at + 2 * C, columns), slope, t22)
                else:
                    t00 = vector_fma(take_inside(x, top, column, W, C, columns), slope, t00)
                    t01 = vector_fma(take_inside(x, top, column + 1, W, C, columns), slope, t01)
                    t02 = vector_fma(take_inside(x, top, column + 2, W, C, columns), slope, t02)
                    t10 = vector_fma(take_inside(x, middle, column, W, C, columns), slope, t10)
                    t11 = vector_fma(take_inside(x, middle, column + 1, W, C, columns), slope, t11)
                    t12 = vector_fma(take_inside(x, middle, column + 2, W, C, columns), slope, t12)
                    t20 = vector_fma(take_inside(x, bottom, column, W, C, columns), slope, t20)
                    t21 = vector_fma(take_inside(x, bottom, column + 1, W, C, columns), slope, t21)
                    t22 = vector_fma(take_inside(x, bottom, column + 2, W, C, columns), slope, t22)
    add_to(total, t_at, t00, columns)
    add_to(total, t_at + C, t01, columns)
    add_to(total, t_at + 2 * C, t02, columns)
    add_to(total, t_at + 3 * C, t10, columns)
    add_to(total, t_at + 4 * C, t11, columns)
    add_to(total, t_at + 5 * C, t12, columns)
    add_to(total, t_at + 6 * C, t20, columns)
    add_to(total, t_at + 7 * C, t21, columns)
    add_to(total, t_at + 8 * C, t22, columns)


@helper
def weight_band(x, plane, ring, zeros_at, H, W, C, h_first, stride_h, dilation_h, origin_w, stride_w, dy, dy_at, rows, OW,
                total):
    """What some rows of dy, from dy_at on, add to the sums total (3, 3, C); x, plane and ring as in forward_band."""
    step = lanes(x)
    for c in range(0, C, step):
        if not MASKS_ARE_FREE and C - c >= step:
            _weight_rows(x, plane + c, ring, zeros_at, H, W, C, h_first, stride_h, dilation_h, origin_w, stride_w, dy,
                         dy_at + c, step, rows, OW, total, c)
        else:
            _weight_rows(x, plane + c, ring, zeros_at, H, W, C, h_first, stride_h, dilation_h, origin_w, stride_w, dy,
                         dy_at + c, min(step, C - c), rows, OW, total, c)


@helper
def _weight_chunk(chunk, chunks, x, dy, zeros_at, batch, H, W, C, OH, OW, stride_h, stride_w, dilation_h, origin_h, origin_w,
                  band, fetches, partials):
    """One chunk's bands into its partial sum."""
    bands = (OH + band - 1) // band
    jobs = batch * bands
    size = 9 * C
    total = partials[chunk * size:(chunk + 1) * size]
    zero_run(total, 0, size)
    for job in range(chunk * jobs // chunks, (chunk + 1) * jobs // chunks):
        n, first = job // bands, (job % bands) * band
        if fetches:
            fetch_band(x, n, H, W * C, first * stride_h + origin_h, (min(band, OH - first) - 1) * stride_h + 2 * dilation_h + 1)
            fetch(dy, (n * OH + first) * OW * C, min(band, OH - first) * OW * C)
        weight_band(x, n * H * W * C, -1, zeros_at, H, W, C, first * stride_h + origin_h, stride_h, dilation_h, origin_w,
                    stride_w, dy, (n * OH + first) * OW * C, min(band, OH - first), OW, total)


@kernel
@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def depthwise3x3_backward_weight(x, dy, batch, H, W, C, OH, OW, stride_h, stride_w, dilation_h, origin_h, origin_w, band,
                                 chunks, fetches, accumulate, threads, zeros, partials, dweight):
    """dweight[r, s, c] = sum over pixels of x under the tap times dy.

    Shapes   x (N, H, W, C); dy (N, OH, OW, C); dweight (3, 3, C); partials (chunks, 3, 3, C); zeros as in forward
    Writes   dweight (overwritten, or added to with accumulate); zeros, partials (undefined)
    Threads  one iteration per chunk of bands, each owns its partial sum, added in order
    Numbers  stride_w is 1 or 2, with 1 a column of x that a tap does not see counts with a slope of 0 for it; fetches: whether
             x and dy are read in order first
    Source   seed, dW = sum of the patches of A times dZ, channel by channel
    """
    zero_run(zeros, 0, zeros.size)
    zeros_at = numbers_between(x, zeros)
    if threads > 1 and chunks > 1:
        for index in numba.prange(chunks):
            chunk = np.int64(index)
            _weight_chunk(chunk, chunks, x, dy, zeros_at, batch, H, W, C, OH, OW, stride_h, stride_w, dilation_h, origin_h,
                          origin_w, band, fetches, partials)
    else:
        for chunk in range(chunks):
            _weight_chunk(chunk, chunks, x, dy, zeros_at, batch, H, W, C, OH, OW, stride_h, stride_w, dilation_h, origin_h,
                          origin_w, band, fetches, partials)
    add_partials(partials, chunks, 9 * C, 0, 9 * C, accumulate, dweight)


@entry("x< dy< dweight= zeros> scratch> H W C OH OW stride_h stride_w dilation_h origin_h origin_w band zeros_size chunks "
       "fetches accumulate")
def backward_weight(arena, row, batch):
    row = fields_of(row)
    size = 9 * row.C
    depthwise3x3_backward_weight(view(arena, row.x, batch * row.H * row.W * row.C),
                                 view(arena, row.dy, batch * row.OH * row.OW * row.C), batch, row.H, row.W, row.C, row.OH,
                                 row.OW, row.stride_h, row.stride_w, row.dilation_h, row.origin_h, row.origin_w, row.band,
                                 row.chunks, row.fetches, row.accumulate,
                                 threads_for(arena, batch * row.OH * row.OW * size * 2),
                                 view(arena, row.zeros, row.zeros_size), view(arena, row.scratch, row.chunks * size),
                                 view(arena, row.dweight, size))
