"""Batch norm's statistics of a matrix product from the moments of its input: no pass over the product, which is far larger.

With y = x W, a channel's mean is mean(x) W and its variance W^T cov(x) W. The moments are kept for backward.
"""
import numba
import numpy as np

from .batchnorm_statistics import scratch_size, statistics, tile_sum
from .compiler import helper, kernel
from .entry import entry, fields_of, number, threads_for, view, view_as
from .linear_weight import weight_job
from .simd import lanes
from .vector import vector_of, vector_write

# Rows whose products are added up before they become part of a sum of more digits.
BLOCK = 256
# A variance smaller than this share of what it would be if no terms cancelled has lost too many digits on the way.
CANCELLED = 1 / 4096


@helper
def _moments_chunk(x, begin, end, C, products, total):
    """total (float64) = the sums of rows begin to end, then those of their products; products: C + C * C reals."""
    for i in range(C + C * C):
        total[i] = 0
    for row in range(begin, end, BLOCK):
        rows, inputs = min(BLOCK, end - row), x[row * C:]
        weight_job(inputs, inputs, 0, rows, 0, C, C, C, False, products)
        for i in range(C * C):
            total[C + i] += products[i]
        for c in range(0, C, lanes(x)):
            zero = vector_of(x, x.dtype.type(0))
            vector_write(tile_sum(x, zero, row * C + c, rows, C, C - c, False), products, c, C - c)
        for c in range(C):
            total[c] += products[c]


@helper
def _merge_moments(chunks, rows, C, totals, moments):
    """moments = means and covariances, from the sums of all chunks in order.

    totals, in the first chunk's place: the means of x and of the products, around zero: how much of these a variance is says
    how many digits it has.
    """
    size = C + C * C
    for chunk in range(1, chunks):
        for i in range(size):
            totals[i] += totals[chunk * size + i]
    for i in range(size):
        totals[i] /= rows
    for c in range(C):
        moments[c] = totals[c]
        for d in range(C):
            moments[C + c * C + d] = totals[C + c * C + d] - totals[c] * totals[d]


@helper
def _product_statistics(totals, weight, C, K, eps, room, saved):
    """saved = mean, 1 / sqrt(variance + eps) and variance of x weight; whether the variances have digits enough.

    room (3, K) float64: the variances, the largest terms that they are made of, one row of covariance times weight
    """
    for k in range(K):
        room[k] = 0
        room[K + k] = 0
    for c in range(C):
        for k in range(K):
            room[2 * K + k] = 0
        for d in range(C):
            covariance = totals[C + c * C + d] - totals[c] * totals[d]
            for k in range(K):
                room[2 * K + k] += covariance * weight[d * K + k]
        root = np.sqrt(totals[C + c * C + c])
        for k in range(K):
            room[k] += weight[c * K + k] * room[2 * K + k]
            room[K + k] += abs(weight[c * K + k]) * root
    exact = True
    for k in range(K):
        mean = 0.0
        for c in range(C):
            mean += totals[c] * weight[c * K + k]
        variance = max(room[k], 0.0)
        exact = exact and variance >= CANCELLED * room[K + k] * room[K + k]
        saved[k] = mean
        saved[K + k] = 1 / np.sqrt(variance + eps)
        saved[2 * K + k] = variance
    return exact


@kernel
@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def input_moments(x, rows, C, chunks, threads, products, totals, moments):
    """Means and covariances of the columns of x.

    Shapes   x (rows, C); products (chunks, C + C * C); totals (chunks, C + C * C) float64; moments (C + C * C,)
    Writes   moments; totals: the means of x and of the products in the first chunk's place; products (undefined)
    Threads  one iteration per chunk of rows, each owns its part of products and totals, which are added in order
    Source   the definition of a covariance
    """
    size = C + C * C
    if threads > 1:
        for index in numba.prange(chunks):
            chunk = np.int64(index)
            _moments_chunk(x, chunk * rows // chunks, (chunk + 1) * rows // chunks, C,
                           products[chunk * size:(chunk + 1) * size], totals[chunk * size:(chunk + 1) * size])
    else:
        for chunk in range(chunks):
            _moments_chunk(x, chunk * rows // chunks, (chunk + 1) * rows // chunks, C, products,
                           totals[chunk * size:(chunk + 1) * size])
    _merge_moments(chunks, rows, C, totals, moments)


@entry("x< weight< y? scale< saved> moments> products> totals> scratch> rows C K together chunks eps")
def statistics_batch(arena, row, batch):
    """What batchnorm.forward_batch saves of the product y (rows, K) of x (rows, C) and weight, and x's moments for backward:
    mean (C,), covariance (C, C). totals: chunks * (C + C * C) + 3 * K float64; scratch: as for batchnorm.statistics_batch,
    which takes over where a variance is what is left of far larger terms.
    """
    row = fields_of(row)
    C, K, rows = row.C, row.K, batch * row.rows
    x, weight = view(arena, row.x, rows * C), view(arena, row.weight, C * K)
    saved, size = view(arena, row.saved, 3 * K), row.chunks * (C + C * C)
    totals = view_as(arena, row.totals, size + 3 * K, np.float64)
    input_moments(x, rows, C, row.chunks, threads_for(arena, 2 * rows * C * C), view(arena, row.products, size), totals,
                  view(arena, row.moments, C + C * C))
    if not _product_statistics(totals, weight, C, K, number(row.eps), totals[size:], saved):
        width = K * row.together
        statistics(view(arena, row.y, rows * K), view(arena, row.scale, K), rows // row.together, K, row.together,
                   number(row.eps), threads_for(arena, rows * K), saved,
                   view(arena, row.scratch, scratch_size(rows // row.together, width)))
