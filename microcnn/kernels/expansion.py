"""Backward of a pointwise convolution, batch norm on the batch's statistics, a clamp and a depthwise 3 x 3 convolution at once.

Networks for small devices widen their channels so, before another convolution narrows them again: what is between has several
times as many numbers as what comes in, and none of its gradients is ever written here. Bands of lines of dz, the gradient that
the clamp lets through, are made of dy, the depthwise convolution's, wherever they are wanted. Batch norm takes from dz its
mean, and of the product p = x W what is in line with it:

    dp = factor (dz - mean(dz) - (p - mean(p)) second),   factor = scale / sqrt(variance + eps),
                                                          second = mean(dz (p - mean(p))) / (variance + eps)

All that backward makes of p is linear in x: with the sums G = (x - mean(x))^T dz, mean(dz) and x's covariance (moments.py)

    mean(dz (p - mean(p))) = sum over c of W G / rows
    dW = factor (G - rows cov(x) W second)
    dx = [dz, x] [factor W^T; -W diag(factor second) W^T] + constants
"""
import numba
import numpy as np

from .batchnorm_backward import put_or_add
from .batchnorm_statistics import tile_sum
from .compiler import helper, kernel
from .depthwise3x3 import forward_band
from .depthwise3x3_input import input_rows
from .entry import entry, fields_of, numbers_between, threads_for, view, view_as
from .layout import zero_run
from .linear import forward_part, transpose_matrix
from .linear_weight import add_partials, weight_columns
from .masks import BITS
from .simd import lanes
from .vector import (
    vector_add,
    vector_div,
    vector_fma,
    vector_mul,
    vector_of,
    vector_sub,
    vector_sum,
    vector_take,
    vector_write,
)

# Pixels that are taken at a time: a cache holds their numbers until all is done that needs them.
SUMMED, MULTIPLIED = 128, 48


@helper
def _slopes(back, dy, kernel, mask, zeros_at, n, begin, lines, H, W, K, OH, OW, top, left, dilation, w_at, w_row, w_tap, dz):
    """dz (lines, W, K) of some lines of image n: dy put back through the kernel, zero where the mask has no bit."""
    real, none, plane = dy.dtype.type, dy[:0], n * OH * OW * K
    bits = mask[(n * H + begin) * W * K // BITS:]
    if back:
        for c in range(0, K, lanes(dy)):
            input_rows(dy, plane + c, zeros_at, H, W, K, OH, OW, begin, begin + lines, top, left, kernel, c, lanes(dy),
                       vector_of(dy, real(0)), none, bits, dz, c - begin * W * K, real(0), real(0))
    else:
        forward_band(dy, plane, -1, zeros_at, OH, OW, K, begin + top, 1, dilation, left, 1, kernel, w_at, w_row, w_tap, none, 0,
                     K, none, bits, dz, 0, W * K, K, lines, W, real(0), real(0))


@helper
def _weight_chunk(chunk, chunks, x, back, dy, kernel, mask, zeros_at, batch, H, W, C, K, OH, OW, top, left, dilation, w_at,
                  w_row, w_tap, band, dz, partial):
    """partial = x^T dz, then the sum of dz, over the bands of one chunk."""
    bands = (H + band - 1) // band
    jobs = batch * bands
    zero_run(partial, 0, C * K + K)
    for job in range(chunk * jobs // chunks, (chunk + 1) * jobs // chunks):
        n, begin = job // bands, job % bands * band
        lines = min(band, H - begin)
        _slopes(back, dy, kernel, mask, zeros_at, n, begin, lines, H, W, K, OH, OW, top, left, dilation, w_at, w_row, w_tap, dz)
        inputs = x[(n * H + begin) * W * C:]
        for first in range(0, lines * W, SUMMED):
            end = min(first + SUMMED, lines * W)
            k = 0
            while k < K:
                columns = weight_columns(inputs, dz, first, end, 0, C, C, K, k, False, partial)
                for i in range(k, k + columns, lanes(x)):
                    total = tile_sum(dz, vector_of(x, x.dtype.type(0)), first * K + i, end - first, K, K - i, False)
                    vector_write(vector_add(vector_take(partial, C * K + i, K - i), total), partial, C * K + i, K - i)
                k += columns


@kernel
@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def expansion_sums(x, back, dy, kernel, mask, batch, H, W, C, K, OH, OW, top, left, dilation, w_at, w_row, w_tap, band, chunks,
                   threads, zeros, bands, partials, sums):
    """sums = x^T dz (C, K), then the sum of dz (K,).

    Shapes   x (N, H, W, C); dy (N, OH, OW, K); kernel, zeros as the depthwise convolution's gradient to its input takes them:
             depthwise3x3_backward_input if back, else depthwise3x3_forward with a stride of 1; mask: a bit for each number of
             dz as in masks.py; K is a multiple of 16; bands (chunks, band, W, K); partials (chunks, C * K + K)
    Numbers  top, left: the padding if back, else where the first window lies; dilation: that of the rows of the window; band:
             how many lines are made at a time
    Writes   sums (overwritten); zeros, bands, partials (undefined)
    Threads  one iteration per chunk of bands, each owns its part of partials, which are added in order, and with threads its
             part of bands
    Source   seed, dZ through flipped kernels, the derivative of the activation, dW of a 1x1 convolution
    """
    zero_run(zeros, 0, zeros.size)
    zeros_at, room, size = numbers_between(dy, zeros), band * W * K, C * K + K
    if threads > 1:
        for index in numba.prange(chunks):
            chunk = np.int64(index)
            _weight_chunk(chunk, chunks, x, back, dy, kernel, mask, zeros_at, batch, H, W, C, K, OH, OW, top, left, dilation,
                          w_at, w_row, w_tap, band, bands[chunk * room:(chunk + 1) * room],
                          partials[chunk * size:(chunk + 1) * size])
    else:
        for chunk in range(chunks):     # one band does for all, and stays in the cache
            _weight_chunk(chunk, chunks, x, back, dy, kernel, mask, zeros_at, batch, H, W, C, K, OH, OW, top, left, dilation,
                          w_at, w_row, w_tap, band, bands, partials[chunk * size:(chunk + 1) * size])
    add_partials(partials, chunks, size, 0, size, False, sums)


@helper
def _gradients(sums, weight, scale, saved, moments, rows, C, K, accumulate, dweight, need_params, accumulate_scale,
               accumulate_bias, dscale, dbias, weighted, taking, means):
    """dweight, dscale and dbias from the sums of expansion_sums.

    weighted, taking (C, K) = factor * weight, and that times `second`. means (K,): of dz.
    """
    count_of_rows = vector_of(scale, scale.dtype.type(rows))
    for k in range(0, K, lanes(scale)):
        count = K - k
        total, along = vector_take(sums, C * K + k, count), vector_of(scale, scale.dtype.type(0))
        for c in range(C):
            mean = vector_of(scale, moments[c])
            value = vector_sub(vector_take(sums, c * K + k, count), vector_mul(mean, total))
            along = vector_fma(vector_take(weight, c * K + k, count), value, along)
            vector_write(value, sums, c * K + k, count)
        inverse = vector_take(saved, K + k, count)
        factor, along = vector_mul(vector_take(scale, k, count), inverse), vector_mul(along, inverse)
        if need_params:
            put_or_add(along, dscale, k, count, accumulate_scale)
            put_or_add(total, dbias, k, count, accumulate_bias)
        vector_write(vector_div(total, count_of_rows), means, k, count)
        of_all = vector_mul(along, inverse)
        second = vector_div(of_all, count_of_rows)
        for c in range(C):
            product = vector_of(scale, scale.dtype.type(0))
            for d in range(C):
                covariance = vector_of(scale, moments[C + c * C + d])
                product = vector_fma(covariance, vector_take(weight, d * K + k, count), product)
            value = vector_sub(vector_take(sums, c * K + k, count), vector_mul(of_all, product))
            put_or_add(vector_mul(factor, value), dweight, c * K + k, count, accumulate)
            value = vector_mul(factor, vector_take(weight, c * K + k, count))
            vector_write(value, weighted, c * K + k, count)
            vector_write(vector_mul(value, second), taking, c * K + k, count)


@helper
def _dot(a, a_at, b, b_at, count):
    total = vector_of(a, a.dtype.type(0))
    for i in range(0, count, lanes(a)):
        total = vector_fma(vector_take(a, a_at + i, count - i), vector_take(b, b_at + i, count - i), total)
    return vector_sum(total)


@helper
def _factors(weight, weighted, taking, means, moments, C, K, f_row, factors):
    """factors (K + C, f_row): what dz and x are multiplied by for dx; then what is added."""
    transpose_matrix(weighted, 0, K, factors, 0, f_row, C, K)
    of_x, constants = K * f_row, (K + C) * f_row
    for c in range(C):
        for d in range(C):
            factors[of_x + d * f_row + c] = -_dot(taking, d * K, weight, c * K, K)
    for c in range(C):
        value = -_dot(weighted, c * K, means, 0, K)
        for d in range(C):
            value -= moments[d] * factors[of_x + d * f_row + c]
        factors[constants + c] = value


@entry("x< dy< kernel< mask< weight< scale< saved< moments< dweight= dscale= dbias= factors> zeros> bands> partials> sums> "
       "back H W C K OH OW top left dilation w_at w_row w_tap band chunks zeros_size f_row need_params accumulate "
       "accumulate_scale accumulate_bias")
def backward_weight(arena, row, batch):
    """The gradients of the product's and the batch norm's weights, and the factors that backward_input takes.

    saved, moments: from moments.statistics_batch; the product has no bias. sums: (3 C + 2) * K reals. dscale and dbias may be
    absent without need_params.
    """
    row = fields_of(row)
    C, K, rows = row.C, row.K, batch * row.H * row.W
    sums, weight = view(arena, row.sums, (3 * C + 2) * K), view(arena, row.weight, C * K)
    size, scale, moments = C * K + K, view(arena, row.scale, K), view(arena, row.moments, C + C * C)
    expansion_sums(view(arena, row.x, rows * C), row.back, view(arena, row.dy, batch * row.OH * row.OW * K),
                   view(arena, row.kernel, 9 * K), view_as(arena, row.mask, rows * K // BITS, np.uint16), batch, row.H,
                   row.W, C, K, row.OH, row.OW, row.top, row.left, row.dilation, row.w_at, row.w_row, row.w_tap, row.band,
                   row.chunks, threads_for(arena, 2 * rows * C * K), view(arena, row.zeros, row.zeros_size),
                   view(arena, row.bands, row.chunks * row.band * row.W * K), view(arena, row.partials, row.chunks * size),
                   sums)
    weighted, taking, means = sums[size:], sums[size + C * K:], sums[size + 2 * C * K:]
    _gradients(sums, weight, scale, view(arena, row.saved, 2 * K), moments, rows, C, K, row.accumulate,
               view(arena, row.dweight, C * K), row.need_params, row.accumulate_scale, row.accumulate_bias,
               view(arena, row.dscale, K), view(arena, row.dbias, K), weighted, taking, means)
    _factors(weight, weighted, taking, means, moments, C, K, row.f_row, view(arena, row.factors, (K + C + 1) * row.f_row))


@helper
def _input_chunk(chunk, chunks, x, back, dy, kernel, mask, factors, residual, zeros_at, batch, H, W, C, K, OH, OW, top, left,
                 dilation, w_at, w_row, w_tap, f_row, low, high, band, dz, dx):
    """dx of the bands of one chunk: what x adds, then what dz adds to that while it is in the cache."""
    bands = (H + band - 1) // band
    jobs = batch * bands
    of_x, constants = factors[K * f_row:], factors[(K + C) * f_row:(K + C) * f_row + C]
    for job in range(chunk * jobs // chunks, (chunk + 1) * jobs // chunks):
        n, begin = job // bands, job % bands * band
        lines = min(band, H - begin)
        _slopes(back, dy, kernel, mask, zeros_at, n, begin, lines, H, W, K, OH, OW, top, left, dilation, w_at, w_row, w_tap, dz)
        for first in range(0, lines * W, MULTIPLIED):
            rows, at = min(MULTIPLIED, lines * W - first), ((n * H + begin) * W + first) * C
            added, target = residual[at:] if residual.size > 0 else residual, dx[at:]
            forward_part(x[at:], of_x, constants, added, 0, rows, 0, C, C, C, f_row, low, high, C, False, x[:0], target)
            forward_part(dz[first * K:], factors, x[:0], target, 0, rows, 0, C, K, C, f_row, low, high, K, False, x[:0], target)


@kernel
@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def expansion_input(x, back, dy, kernel, mask, factors, residual, batch, H, W, C, K, OH, OW, top, left, dilation, w_at, w_row,
                    w_tap, f_row, low, high, band, chunks, threads, zeros, bands, dx):
    """dx = [dz, x] factors + constants + residual.

    Shapes   x, dx (N, H, W, C); factors (K + C + 1, f_row), the constants last: from backward_weight; residual like dx, empty,
             or dx itself; the others as in expansion_sums
    Numbers  low, high: minus and plus infinity; the others as there
    Writes   dx (overwritten); zeros, bands (undefined)
    Threads  one iteration per chunk of bands, each owns its part of dx, and with threads its part of bands
    Source   seed, dZ through flipped kernels, the derivative of the activation; Ioffe and Szegedy 2015, section 3
    """
    zero_run(zeros, 0, zeros.size)
    zeros_at, room = numbers_between(dy, zeros), band * W * K
    if threads > 1:
        for index in numba.prange(chunks):
            chunk = np.int64(index)
            _input_chunk(chunk, chunks, x, back, dy, kernel, mask, factors, residual, zeros_at, batch, H, W, C, K, OH, OW, top,
                         left, dilation, w_at, w_row, w_tap, f_row, low, high, band, bands[chunk * room:(chunk + 1) * room], dx)
    else:
        _input_chunk(0, 1, x, back, dy, kernel, mask, factors, residual, zeros_at, batch, H, W, C, K, OH, OW, top, left,
                     dilation, w_at, w_row, w_tap, f_row, low, high, band, bands, dx)


@entry("x< dy< kernel< mask< factors< residual< dx= zeros> bands> back H W C K OH OW top left dilation w_at w_row w_tap band "
       "chunks zeros_size f_row")
def backward_input(arena, row, batch):
    """factors: from backward_weight. residual may be absent."""
    row = fields_of(row)
    C, K, rows = row.C, row.K, batch * row.H * row.W
    x = view(arena, row.x, rows * C)
    infinity = x.dtype.type(np.inf)
    expansion_input(x, row.back, view(arena, row.dy, batch * row.OH * row.OW * K), view(arena, row.kernel, 9 * K),
                    view_as(arena, row.mask, rows * K // BITS, np.uint16),
                    view(arena, row.factors, (K + C + 1) * row.f_row),
                    view(arena, row.residual, rows * C if row.residual >= 0 else 0), batch, row.H, row.W, C, K, row.OH, row.OW,
                    row.top, row.left, row.dilation, row.w_at, row.w_row, row.w_tap, row.f_row, -infinity, infinity, row.band,
                    row.chunks, threads_for(arena, 2 * rows * C * K), view(arena, row.zeros, row.zeros_size),
                    view(arena, row.bands, row.chunks * row.band * row.W * K), view(arena, row.dx, rows * C))
