"""Depthwise 3 x 3 windows of stride 2 put back: the gradient of such a convolution to its input, vectors along the channels.

A row of dx sees one row of dy, or two; along it every second pixel sees one column of them, the others two, which the loop
keeps in registers: what all four phases of the stride need is read once. There is no padding: a row of dy outside the image is
a line of zeros in scratch, a column outside is a register of zeros.
"""
import numba
import numpy as np

from .compiler import helper, inlined, kernel
from .depthwise3x3 import line_of, put, take_inside
from .entry import entry, fields_of, number, numbers_between, threads_for, view
from .fetch import fetch
from .layout import zero_run
from .simd import MASKS_ARE_FREE, lanes
from .vector import vector_fma, vector_of, vector_take


@inlined
def input_rows(x, plane, zeros_at, H, W, C, OH, OW, begin, end, pad_top, pad_left, weight, w_at, columns, start, residual, mask,
               y, y_at, low, high):
    """Rows begin to end of dx, of one vector of channels; mask as depthwise3x3.put takes it.

    first, second: the rows of dy that taps 0 (or 1) and 2 reach.
    """
    inside_begin, inside_end = (pad_left + 1) // 2, min(OW, (W + pad_left) // 2)
    for h in range(begin, end):
        even = (h + pad_top) % 2 == 0
        oh, tap = (h + pad_top) // 2, w_at if even else w_at + 3 * C
        first, second = line_of(plane, oh, OH, OW * C, -1, zeros_at), line_of(plane, oh - 1, OH, OW * C, -1, zeros_at)
        a0, a1 = vector_take(weight, tap, columns), vector_take(weight, tap + C, columns)
        a2 = vector_take(weight, tap + 2 * C, columns)
        b0, b1 = vector_take(weight, w_at + 6 * C, columns), vector_take(weight, w_at + 7 * C, columns)
        b2 = vector_take(weight, w_at + 8 * C, columns)
        before = take_inside(x, first, pad_left // 2 - 1, OW, C, columns)
        above = take_inside(x, second, pad_left // 2 - 1, OW, C, columns)
        for ow in range(pad_left // 2, (W + pad_left + 1) // 2):
            w = 2 * ow - pad_left
            to = y_at + (h * W + w) * C
            if inside_begin <= ow < inside_end:
                one = vector_take(x, first + ow * C, columns)
                left, right = vector_fma(before, a2, vector_fma(one, a0, start)), vector_fma(one, a1, start)
                if even:
                    other = vector_take(x, second + ow * C, columns)
                    left = vector_fma(above, b2, vector_fma(other, b0, left))
                    right = vector_fma(other, b1, right)
                    above = other
                before = one
                put(left, residual, mask, y, to, columns, low, high)
                put(right, residual, mask, y, to + C, columns, low, high)
            else:
                one = take_inside(x, first, ow, OW, C, columns)
                left, right = vector_fma(before, a2, vector_fma(one, a0, start)), vector_fma(one, a1, start)
                if even:
                    other = take_inside(x, second, ow, OW, C, columns)
                    left = vector_fma(above, b2, vector_fma(other, b0, left))
                    right = vector_fma(other, b1, right)
                    above = other
                before = one
                if w >= 0:
                    put(left, residual, mask, y, to, columns, low, high)
                if w + 1 < W:
                    put(right, residual, mask, y, to + C, columns, low, high)


@helper
def _bands(chunk, chunks, splits, x, weight, bias, residual, zeros_at, batch, H, W, C, OH, OW, pad_top, pad_left, band,
           fetches, low, high, y):
    """The bands of rows of dx of one chunk of the work, one after the other, each in parts of its channels."""
    bands = (H + band - 1) // band
    jobs = batch * bands * splits
    step = lanes(x)
    vectors = (C + step - 1) // step
    for job in range(chunk * jobs // chunks, (chunk + 1) * jobs // chunks):
        n, begin, split = job // splits // bands, (job // splits % bands) * band, job % splits
        end = min(H, begin + band)
        if fetches:
            fetch(y, (n * H + begin) * W * C, (end - begin) * W * C)
        for c in range(split * vectors // splits * step, min(C, (split + 1) * vectors // splits * step), step):
            columns = min(step, C - c)
            start = vector_of(x, x.dtype.type(0))
            if bias.size > 0:
                start = vector_take(bias, c, columns)
            plane, to = n * OH * OW * C + c, n * H * W * C + c
            if not MASKS_ARE_FREE and columns == step:
                # the same with a count that is known when this is compiled: plain loads
                input_rows(x, plane, zeros_at, H, W, C, OH, OW, begin, end, pad_top, pad_left, weight, c, step, start,
                           residual, None, y, to, low, high)
            else:
                input_rows(x, plane, zeros_at, H, W, C, OH, OW, begin, end, pad_top, pad_left, weight, c, columns, start,
                           residual, None, y, to, low, high)


@kernel
@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def depthwise3x3_backward_input(x, weight, bias, residual, batch, H, W, C, OH, OW, pad_top, pad_left, band, splits, chunks,
                                fetches, low, high, threads, zeros, y):
    """y[c] = clamp(x[c] put back through weight[c] + bias[c] + residual), for windows of 3 x 3 and a stride of 2.

    Shapes   x (N, OH, OW, C), the convolution's dy; weight (3, 3, 1, C); bias (C,) or empty; y (N, H, W, C), its dx;
             residual like y, empty, or y itself; zeros (OW, C)
    Numbers  splits: parts of the channels; fetches: whether y is touched in order first
    Writes   y (overwritten), zeros
    Threads  one iteration per chunk of bands of rows and parts of channels, each owns its part of y
    Source   seed, dZ through flipped kernels; ONNX ConvTranspose with group = C
    """
    zero_run(zeros, 0, zeros.size)
    zeros_at = numbers_between(x, zeros)
    if threads > 1 and chunks > 1:
        for index in numba.prange(chunks):
            chunk = np.int64(index)
            _bands(chunk, chunks, splits, x, weight, bias, residual, zeros_at, batch, H, W, C, OH, OW, pad_top, pad_left, band,
                   fetches, low, high, y)
    else:
        for chunk in range(chunks):
            _bands(chunk, chunks, splits, x, weight, bias, residual, zeros_at, batch, H, W, C, OH, OW, pad_top, pad_left, band,
                   fetches, low, high, y)


@entry("x< weight< bias< residual< y= zeros> H W C OH OW pad_top pad_left band splits chunks fetches low high")
def backward(arena, row, batch):
    row = fields_of(row)
    real = view(arena, 0, 1).dtype.type
    size = batch * row.H * row.W * row.C
    depthwise3x3_backward_input(view(arena, row.x, batch * row.OH * row.OW * row.C), view(arena, row.weight, 9 * row.C),
                                view(arena, row.bias, row.C if row.bias >= 0 else 0),
                                view(arena, row.residual, size if row.residual >= 0 else 0), batch, row.H, row.W, row.C, row.OH,
                                row.OW, row.pad_top, row.pad_left, row.band, row.splits, row.chunks, row.fetches,
                                real(number(row.low)), real(number(row.high)), threads_for(arena, size * 5),
                                view(arena, row.zeros, row.OW * row.C), view(arena, row.y, size))
