"""Elementwise functions of one tensor beside those of activation.py, forward and backward.

Backward reads one array `kept`: the output where the derivative follows from that (the function may then run in place),
else the input. Up to three numbers a, b, c are an operator's attributes.
"""
import math

import numba
import numpy as np

from .compiler import helper, kernel
from .entry import entry, fields_of, number, threads_for, view
from .powers import vector_trunc
from .simd import lanes
from .special import (
    vector_abs,
    vector_ceil,
    vector_cos,
    vector_erf,
    vector_expm1,
    vector_floor,
    vector_neg,
    vector_normal,
    vector_rint,
    vector_sigmoid,
    vector_sin,
    vector_softplus,
)
from .vector import (
    vector_add,
    vector_div,
    vector_exp,
    vector_fma,
    vector_log,
    vector_max,
    vector_min,
    vector_mul,
    vector_of,
    vector_sqrt,
    vector_sub,
    vector_take,
    vector_where_greater,
    vector_write,
)

(LEAKY, ELU, ELU_OF_X, THRESHOLD, HARD_SIGMOID, HARD_SWISH, SWISH, GELU, GELU_TANH, SOFTPLUS, SOFTSIGN, MISH, NEG, ABS,
 SQRT, EXP, LOG, RECIPROCAL, ERF, SIN, COS, SIGN, CEIL, FLOOR, ROUND, INTEGER) = range(26)
CHUNK = 8192
# where the smooth functions below are 0 or the identity to the last bit, in float64 too
FAR, MISH_FAR = 64.0, 20.0
GELU_CUBE, GELU_SLOPE = 0.044715, math.sqrt(8 / math.pi)


@helper
def _gelu_angle(x, like):
    """2 sqrt(2 / pi) (x + 0.044715 x^3): the sigmoid of it is half of 1 + tanh of half of it."""
    real = like.dtype.type
    inner = vector_fma(vector_mul(x, x), vector_of(like, real(GELU_CUBE)), vector_of(like, real(1)))
    return vector_mul(vector_mul(x, vector_of(like, real(GELU_SLOPE))), inner)


@helper
def _smooth(x, kind, a, like):
    """One vector: the functions made of exp."""
    real = like.dtype.type
    if kind == SWISH:
        return vector_mul(x, vector_sigmoid(vector_mul(x, vector_of(like, real(a))), like))
    if kind == GELU:
        power = vector_exp(vector_mul(vector_mul(x, x), vector_of(like, real(-0.5))))
        return vector_mul(x, vector_normal(x, power, like))
    if kind == GELU_TANH:
        return vector_mul(x, vector_sigmoid(_gelu_angle(x, like), like))
    if kind == SOFTPLUS:
        return vector_softplus(x, like)
    if kind == ERF:
        return vector_erf(x, like)
    # Mish: tanh(log(1 + e)) = n / (n + 2) with n = e (e + 2)
    two = vector_of(like, real(2))
    power = vector_exp(vector_min(x, vector_of(like, real(MISH_FAR))))
    n = vector_mul(power, vector_add(power, two))
    return vector_mul(x, vector_div(n, vector_add(n, two)))


@helper
def _integer(x, low, count, most, like):
    """One vector: x without its fraction, modulo count into low .. low + count - 1; NaN where that cannot be exact.

    most: the largest number up to which every integer is one of the dtype's.
    """
    x = vector_trunc(x)
    raw = vector_sub(x, vector_mul(count, vector_floor(vector_div(vector_sub(x, low), count))))
    # where the quotient was rounded up to a whole number, or down below one
    value = vector_where_greater(low, raw, vector_add(raw, count), raw)
    value = vector_where_greater(vector_add(low, count), value, value, vector_sub(value, count))
    bad = vector_of(like, like.dtype.type(np.nan))
    return vector_where_greater(vector_max(vector_abs(x), vector_abs(raw)), most, bad, value)


@helper
def _function(x, kind, a, b, c, like):
    """One vector: the function of x."""
    real = like.dtype.type
    zero, one = vector_of(like, real(0)), vector_of(like, real(1))
    first, second = vector_of(like, real(a)), vector_of(like, real(b))
    if kind == LEAKY:
        return vector_where_greater(x, zero, x, vector_mul(x, first))
    if kind == ELU or kind == ELU_OF_X:
        below = vector_mul(first, vector_expm1(vector_mul(x, vector_of(like, real(c))), like))
        return vector_where_greater(x, zero, vector_mul(x, second), below)
    if kind == THRESHOLD:
        # a NaN is not above, but stays
        return vector_where_greater(x, first, x, vector_where_greater(first, x, zero, vector_sub(x, x)))
    if kind == HARD_SIGMOID or kind == HARD_SWISH:
        line = vector_min(vector_max(vector_fma(x, first, second), zero), one)
        return line if kind == HARD_SIGMOID else vector_mul(x, line)
    if kind == SOFTSIGN:
        # 1 / (1 + 1 / |x|) far out, so that infinity gives 1
        size = vector_abs(x)
        far = vector_div(one, vector_add(one, vector_div(one, size)))
        far = vector_where_greater(zero, x, vector_neg(far), far)
        return vector_where_greater(size, one, far, vector_div(x, vector_add(one, size)))
    if kind == NEG:
        return vector_neg(x)
    if kind == ABS:
        return vector_abs(x)
    if kind == SQRT:
        return vector_sqrt(x)
    if kind == EXP:
        return vector_exp(x)
    if kind == LOG:
        return vector_log(x)
    if kind == RECIPROCAL:
        return vector_div(one, x)
    if kind == SIN:
        return vector_sin(x)
    if kind == COS:
        return vector_cos(x)
    if kind == SIGN:
        return vector_where_greater(x, zero, one, vector_where_greater(zero, x, vector_neg(one), x))
    if kind == CEIL:
        return vector_ceil(x)
    if kind == FLOOR:
        return vector_floor(x)
    if kind == ROUND:
        return vector_rint(x)
    if kind == INTEGER:
        return _integer(x, first, second, vector_of(like, real(c)), like)
    return _smooth(x, kind, a, like)


@helper
def _smooth_slope(x, kind, a, like):
    """One vector: the derivative at x of the functions made of exp."""
    real = like.dtype.type
    one = vector_of(like, real(1))
    if kind == SWISH:
        first = vector_of(like, real(a))
        angle = vector_mul(x, first)
        y = vector_sigmoid(angle, like)
        return vector_mul(y, vector_fma(vector_sub(one, y), angle, one))
    if kind == GELU:
        power = vector_exp(vector_mul(vector_mul(x, x), vector_of(like, real(-0.5))))
        density = vector_mul(power, vector_of(like, real(1 / math.sqrt(2 * math.pi))))
        return vector_fma(x, density, vector_normal(x, power, like))
    if kind == GELU_TANH:
        # far out the cube would be infinite
        x = vector_min(vector_max(x, vector_of(like, real(-FAR))), vector_of(like, real(FAR)))
        y = vector_sigmoid(_gelu_angle(x, like), like)
        inner = vector_fma(vector_mul(x, x), vector_of(like, real(3 * GELU_CUBE)), one)
        slope = vector_mul(vector_mul(x, vector_of(like, real(GELU_SLOPE))), inner)
        return vector_mul(y, vector_fma(vector_sub(one, y), slope, one))
    if kind == ERF:
        return vector_mul(vector_of(like, real(2 / math.sqrt(math.pi))), vector_exp(vector_neg(vector_mul(x, x))))
    # Mish: tanh t + x (1 - t^2) sigmoid(x), the latter being 4 e (1 + e) / (n + 2)^2
    two = vector_of(like, real(2))
    x = vector_min(x, vector_of(like, real(MISH_FAR)))
    power = vector_exp(x)
    n = vector_mul(power, vector_add(power, two))
    inverse = vector_div(one, vector_add(n, two))
    rest = vector_mul(vector_mul(power, inverse), vector_mul(vector_add(power, one), inverse))
    return vector_fma(vector_mul(x, vector_of(like, real(4))), rest, vector_mul(n, inverse))


@helper
def _slope(kept, kind, a, b, c, like):
    """One vector: the derivative, from the output or the input."""
    real = like.dtype.type
    zero, one = vector_of(like, real(0)), vector_of(like, real(1))
    first, second, third = vector_of(like, real(a)), vector_of(like, real(b)), vector_of(like, real(c))
    if kind == LEAKY:
        return vector_where_greater(kept, zero, one, first)
    if kind == ELU:
        return vector_where_greater(kept, zero, second, vector_mul(vector_add(kept, first), third))
    if kind == ELU_OF_X:
        power = vector_exp(vector_mul(kept, third))
        return vector_where_greater(kept, zero, second, vector_mul(vector_mul(first, third), power))
    if kind == THRESHOLD:
        return vector_where_greater(kept, first, one, zero)
    if kind == HARD_SIGMOID:
        return vector_where_greater(one, kept, vector_where_greater(kept, zero, first, zero), zero)
    if kind == HARD_SWISH:
        line = vector_fma(kept, first, second)
        inside = vector_where_greater(one, line, vector_fma(kept, first, line), one)
        return vector_where_greater(line, zero, inside, zero)
    if kind == SOFTPLUS:
        return vector_neg(vector_expm1(vector_neg(kept), like))
    if kind == SOFTSIGN:
        rest = vector_sub(one, vector_abs(kept))
        return vector_mul(rest, rest)
    if kind == NEG:
        return vector_neg(one)
    if kind == ABS:
        return vector_where_greater(kept, zero, one, vector_where_greater(zero, kept, vector_neg(one), zero))
    if kind == SQRT:
        return vector_div(vector_of(like, real(0.5)), kept)
    if kind == EXP:
        return kept
    if kind == LOG:
        return vector_div(one, kept)
    if kind == RECIPROCAL:
        return vector_neg(vector_mul(kept, kept))
    if kind == SIN:
        return vector_cos(kept)
    if kind == COS:
        return vector_neg(vector_sin(kept))
    if kind == SIGN or kind == CEIL or kind == FLOOR or kind == ROUND:
        return zero
    return _smooth_slope(kept, kind, a, like)


@helper
def _forward_chunk(x, y, chunk, kind, a, b, c):
    for i in range(chunk * CHUNK, min(x.size, (chunk + 1) * CHUNK), lanes(x)):
        count = x.size - i
        vector_write(_function(vector_take(x, i, count), kind, a, b, c, x), y, i, count)


@kernel
@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def unary_forward(x, kind, a, b, c, threads, y):
    """Apply a function to every number.

    Shapes   x, y (any), flat; they may be the same buffer
    Writes   y (overwritten)
    Threads  one iteration per chunk of 8,192 numbers, each owns its part of y
    Source   the ONNX operators of layers/unary.py; a NaN stays a NaN
    """
    chunks = (x.size + CHUNK - 1) // CHUNK
    if threads > 1:
        for index in numba.prange(chunks):
            chunk = np.int64(index)
            _forward_chunk(x, y, chunk, kind, a, b, c)
    else:
        for chunk in range(chunks):
            _forward_chunk(x, y, chunk, kind, a, b, c)


@entry("x< y> size kind a b c")
def forward(arena, row, batch):
    row = fields_of(row)
    size = row.size * batch
    unary_forward(view(arena, row.x, size), row.kind, number(row.a), number(row.b), number(row.c),
                  threads_for(arena, size * 8), view(arena, row.y, size))


@helper
def _backward_chunk(kept, dy, dx, chunk, kind, a, b, c, accumulate):
    for i in range(chunk * CHUNK, min(dy.size, (chunk + 1) * CHUNK), lanes(dy)):
        count = dy.size - i
        value = vector_mul(vector_take(dy, i, count), _slope(vector_take(kept, i, count), kind, a, b, c, dy))
        if accumulate:
            value = vector_add(value, vector_take(dx, i, count))
        vector_write(value, dx, i, count)


@kernel
@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def unary_backward(kept, dy, kind, a, b, c, accumulate, threads, dx):
    """The gradient of a function: dy times its derivative.

    Shapes   kept (the output or the input), dy, dx (any), flat; dx may be dy
    Writes   dx (overwritten, or added to with accumulate)
    Threads  one iteration per chunk of 8,192 numbers, each owns its part of dx
    Source   PyTorch's derivative where the function has a kink; 0 for those that are constant almost everywhere
    """
    chunks = (dy.size + CHUNK - 1) // CHUNK
    if threads > 1:
        for index in numba.prange(chunks):
            chunk = np.int64(index)
            _backward_chunk(kept, dy, dx, chunk, kind, a, b, c, accumulate)
    else:
        for chunk in range(chunks):
            _backward_chunk(kept, dy, dx, chunk, kind, a, b, c, accumulate)


@entry("kept< dy< dx= size kind a b c accumulate")
def backward(arena, row, batch):
    row = fields_of(row)
    size = row.size * batch
    unary_backward(view(arena, row.kept, size), view(arena, row.dy, size), row.kind, number(row.a), number(row.b),
                   number(row.c), row.accumulate, threads_for(arena, size * 8), view(arena, row.dx, size))
