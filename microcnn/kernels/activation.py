"""ReLU, Clip, Sigmoid and Tanh, forward and backward. Backward needs only the output, so all of them may run in place."""
import numba
import numpy as np

from .compiler import helper, kernel
from .entry import entry, fields_of, number, threads_for, view
from .simd import lanes
from .special import vector_expm1
from .vector import (
    vector_add,
    vector_div,
    vector_exp,
    vector_load,
    vector_load_first,
    vector_max,
    vector_min,
    vector_mul,
    vector_of,
    vector_store,
    vector_store_first,
    vector_sub,
    vector_where_greater,
)

CLAMP, SIGMOID, TANH = range(3)
CHUNK = 8192
FAR = 22.0


@helper
def _activate(x, kind, low, high, like):
    """One vector: the activation of x."""
    real = like.dtype.type
    if kind == CLAMP:
        return vector_min(vector_max(x, vector_of(like, real(low))), vector_of(like, real(high)))
    one = vector_of(like, real(1))
    if kind == SIGMOID:
        return vector_div(one, vector_add(one, vector_exp(vector_sub(vector_of(like, real(0)), x))))
    # tanh(x) = e / (e + 2) with e = exp(2 x) - 1, to its own accuracy also near 0; 1 to the last bit from FAR on
    x = vector_min(vector_max(x, vector_of(like, real(-FAR))), vector_of(like, real(FAR)))
    e = vector_expm1(vector_add(x, x), like)
    return vector_div(e, vector_add(e, vector_of(like, real(2))))


@helper
def _derivative(y, dy, kind, low, high, like):
    """One vector: dy times the activation's derivative, from its output y."""
    real = like.dtype.type
    zero, one = vector_of(like, real(0)), vector_of(like, real(1))
    if kind == CLAMP:
        inside = vector_where_greater(y, vector_of(like, real(low)), dy, zero)
        return vector_where_greater(vector_of(like, real(high)), y, inside, zero)
    if kind == SIGMOID:
        return vector_mul(dy, vector_mul(y, vector_sub(one, y)))
    return vector_mul(dy, vector_sub(one, vector_mul(y, y)))


@helper
def _forward_chunk(x, y, begin, end, kind, low, high):
    step = lanes(x)
    i = begin
    while i + step <= end:
        vector_store(_activate(vector_load(x, i), kind, low, high, x), y, i)
        i += step
    if i < end:
        vector_store_first(_activate(vector_load_first(x, i, end - i), kind, low, high, x), y, i, end - i)


@kernel
@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def activation_forward(x, kind, low, high, threads, y):
    """Apply an activation.

    Shapes   x, y (any), flat; they may be the same buffer
    Writes   y (overwritten)
    Threads  one iteration per chunk of 8,192 numbers, each owns its part of y
    Source   ONNX Relu, Clip, Sigmoid, Tanh; a NaN stays a NaN
    """
    chunks = (x.size + CHUNK - 1) // CHUNK
    if threads > 1:
        for index in numba.prange(chunks):
            chunk = np.int64(index)
            _forward_chunk(x, y, chunk * CHUNK, min(x.size, (chunk + 1) * CHUNK), kind, low, high)
    else:
        for chunk in range(chunks):
            _forward_chunk(x, y, chunk * CHUNK, min(x.size, (chunk + 1) * CHUNK), kind, low, high)


@entry("x< y> size kind low high")
def forward(arena, row, batch):
    row = fields_of(row)
    size = row.size * batch
    activation_forward(view(arena, row.x, size), row.kind, number(row.low), number(row.high),
                       threads_for(arena, size * 4), view(arena, row.y, size))


@helper
def _backward_chunk(y, dy, dx, begin, end, kind, low, high, accumulate):
    step = lanes(y)
    i = begin
    while i + step <= end:
        value = _derivative(vector_load(y, i), vector_load(dy, i), kind, low, high, y)
        if accumulate:
            value = vector_add(value, vector_load(dx, i))
        vector_store(value, dx, i)
        i += step
    if i < end:
        count = end - i
        value = _derivative(vector_load_first(y, i, count), vector_load_first(dy, i, count), kind, low, high, y)
        if accumulate:
            value = vector_add(value, vector_load_first(dx, i, count))
        vector_store_first(value, dx, i, count)


@kernel
@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def activation_backward(y, dy, kind, low, high, accumulate, threads, dx):
    """The gradient of an activation from its output.

    Shapes   y, dy, dx (any), flat; dx may be dy
    Writes   dx (overwritten, or added to with accumulate)
    Threads  one iteration per chunk of 8,192 numbers, each owns its part of dx
    Source   seed, the derivative of the activation; Clip passes the gradient strictly between its bounds
    """
    chunks = (y.size + CHUNK - 1) // CHUNK
    if threads > 1:
        for index in numba.prange(chunks):
            chunk = np.int64(index)
            _backward_chunk(y, dy, dx, chunk * CHUNK, min(y.size, (chunk + 1) * CHUNK), kind, low, high, accumulate)
    else:
        for chunk in range(chunks):
            _backward_chunk(y, dy, dx, chunk * CHUNK, min(y.size, (chunk + 1) * CHUNK), kind, low, high, accumulate)


@entry("y< dy< dx= size kind low high accumulate")
def backward(arena, row, batch):
    row = fields_of(row)
    size = row.size * batch
    activation_backward(view(arena, row.y, size), view(arena, row.dy, size), row.kind, number(row.low),
                        number(row.high), row.accumulate, threads_for(arena, size * 4), view(arena, row.dx, size))


