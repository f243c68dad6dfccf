"""Quantizing and back: integers held as floating-point numbers, with a scale and a zero point for each of C rows."""
import numba
import numpy as np

from .axis import beside, run_at
from .compiler import helper, kernel
from .entry import entry, fields_of, number, threads_for, view
from .simd import lanes
from .special import vector_rint
from .vector import (
    vector_add,
    vector_div,
    vector_max,
    vector_min,
    vector_mul,
    vector_of,
    vector_sub,
    vector_take,
    vector_write,
)

CHUNK = 8192
QUANTIZE, DEQUANTIZE, THERE_AND_BACK = range(3)


@helper
def _value(x, scale, zero, kind, low, high, like):
    """One vector, quantized, or back, or both."""
    if kind == DEQUANTIZE:
        return vector_mul(vector_sub(x, zero), scale)
    real = like.dtype.type
    # the zero point is added to what was rounded: an odd one would turn the rounding of halves
    whole = vector_add(vector_rint(vector_div(x, scale)), zero)
    whole = vector_min(vector_max(whole, vector_of(like, real(low))), vector_of(like, real(high)))
    return whole if kind == QUANTIZE else vector_mul(vector_sub(whole, zero), scale)


@helper
def _chunk(x, scale, zero, y, chunk, C, inner, kind, low, high):
    """One chunk, run by run of the scales."""
    i, end = chunk * CHUNK, min(x.size, (chunk + 1) * CHUNK)
    while i < end:
        run_end, first = run_at(i, end, C, inner)
        for j in range(i, run_end, lanes(x)):
            count = run_end - j
            factor, middle = beside(scale, first, j - i, count, inner, x), beside(zero, first, j - i, count, inner, x)
            vector_write(_value(vector_take(x, j, count), factor, middle, kind, low, high, x), y, j, count)
        i = run_end


@kernel
@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def quantize_linear(x, scale, zero, C, inner, kind, low, high, threads, y):
    """x / scale, rounded to the even of two, plus zero, between low and high; the way back, (x - zero) scale; or both.

    Shapes   x, y (outer, C, inner), flat; scale, zero (C,); y may be x
    Writes   y (overwritten)
    Threads  one iteration per chunk of 8,192 numbers, each owns its part of y
    Source   ONNX QuantizeLinear-13, DequantizeLinear-13; a NaN stays a NaN
    """
    chunks = (x.size + CHUNK - 1) // CHUNK
    if threads > 1:
        for index in numba.prange(chunks):
            chunk = np.int64(index)
            _chunk(x, scale, zero, y, chunk, C, inner, kind, low, high)
    else:
        for chunk in range(chunks):
            _chunk(x, scale, zero, y, chunk, C, inner, kind, low, high)


@entry("x< scale< zero< y> outer C inner kind low high")
def linear(arena, row, batch):
    row = fields_of(row)
    size = row.outer * row.C * row.inner * batch
    quantize_linear(view(arena, row.x, size), view(arena, row.scale, row.C), view(arena, row.zero, row.C), row.C, row.inner,
                    row.kind, number(row.low), number(row.high), threads_for(arena, size * 8), view(arena, row.y, size))
