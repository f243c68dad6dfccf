"""Weights for several neighbouring output pixels at once, and their gradients back.

A convolution with few output channels leaves most lanes of a register empty. P neighbouring pixels of a row are P * K
channels of a convolution with P times the stride, whose kernel is wide enough for all of them: pixel p sees it p strides
further to the right, and zeros beside it.
"""
from .compiler import helper
from .entry import entry, fields_of, view
from .layout import copy_run, zero_run
from .simd import lanes
from .vector import vector_add, vector_load_first, vector_of, vector_store_first


@entry("weight< bias< wide> wide_bias> rows S C K P step WS")
def widen(arena, row, batch):
    # wide (rows, WS, C, P, K)[r, s + p * step, c, p, k] = weight (rows, S, C, K)[r, s, c, k], zeros elsewhere;
    # wide_bias (P, K) repeats bias
    row = fields_of(row)
    K, C = row.K, row.C
    weight, bias = view(arena, row.weight, row.rows * row.S * C * K), view(arena, row.bias, K if row.bias >= 0 else 0)
    wide = view(arena, row.wide, row.rows * row.WS * C * row.P * K)
    zero_run(wide, 0, wide.size)
    for r in range(row.rows):
        for s in range(row.S):
            for p in range(row.P):
                for c in range(C):
                    copy_run(weight, ((r * row.S + s) * C + c) * K, wide,
                             (((r * row.WS + s + p * row.step) * C + c) * row.P + p) * K, K)
    if bias.size > 0:
        wide_bias = view(arena, row.wide_bias, row.P * K)
        for p in range(row.P):
            copy_run(bias, 0, wide_bias, p * K, K)


@helper
def _sum_of_pixels(wide, at, pixel, P, K, accumulate, target, to):
    """target[to : to + K] (= or +=) the sum over p of wide[at + p * pixel : ... + K]"""
    step = lanes(wide)
    for k in range(0, K, step):
        n = min(step, K - k)
        total = vector_load_first(target, to + k, n) if accumulate else vector_of(target, target.dtype.type(0))
        for p in range(P):
            total = vector_add(total, vector_load_first(wide, at + p * pixel + k, n))
        vector_store_first(total, target, to + k, n)


@entry("wide< gradient= rows S C K P step WS accumulate")
def narrow(arena, row, batch):
    # gradient (rows, S, C, K)[r, s, c, k] (= or +=) the sum over p of wide (rows, WS, C, P, K)[r, s + p * step, c, p, k],
    # in the order of p
    row = fields_of(row)
    C, K = row.C, row.K
    wide = view(arena, row.wide, row.rows * row.WS * C * row.P * K)
    gradient = view(arena, row.gradient, row.rows * row.S * C * K)
    for r in range(row.rows):
        for s in range(row.S):
            for c in range(C):
                _sum_of_pixels(wide, ((r * row.WS + s) * C + c) * row.P * K, (row.step * C * row.P + 1) * K, row.P, K,
                               row.accumulate, gradient, ((r * row.S + s) * C + c) * K)
