"""Dropout: a mask that is a function of a seed and a number's place, never stored."""
import numba
import numpy as np

from ..arena import FIRST, SEED, STEP
from .compiler import helper, kernel
from .entry import entry, fields_of, number, slot, threads_for, view
from .simd import lanes
from .uniform import vector_uniform
from .vector import (
    vector_add,
    vector_load,
    vector_load_first,
    vector_mul,
    vector_of,
    vector_store,
    vector_store_first,
    vector_where_greater,
)

CHUNK = 8192


@helper
def _mix(state):
    """splitmix64's output function."""
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


@helper
def dropout_key(seed, step, layer):
    """The key of one layer's mask in one step."""
    golden = np.uint64(0x9E3779B97F4A7C15)
    key = _mix(np.uint64(seed) + golden)
    key = _mix((key ^ np.uint64(step)) + golden)
    return _mix((key ^ np.uint64(layer)) + golden)


@helper
def _drop(x, i, key, p, scale, like):
    """One vector: x scaled where the generator's number i is at least p, else 0."""
    real = like.dtype.type
    return vector_where_greater(vector_of(like, real(p)), vector_uniform(like, key, i), vector_of(like, real(0)),
                                vector_mul(x, vector_of(like, real(scale))))


@helper
def _dropout_chunk(x, y, begin, end, first, key, p, scale, accumulate):
    step = lanes(y)
    i = begin
    while i + step <= end:
        value = _drop(vector_load(x, i), first + i, key, p, scale, y)
        if accumulate:
            value = vector_add(value, vector_load(y, i))
        vector_store(value, y, i)
        i += step
    if i < end:
        count = end - i
        value = _drop(vector_load_first(x, i, count), first + i, key, p, scale, y)
        if accumulate:
            value = vector_add(value, vector_load_first(y, i, count))
        vector_store_first(value, y, i, count)


@kernel
@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def dropout(x, first, key, p, accumulate, threads, y):
    """Inverted dropout, and its gradient with the same key: 0 with probability p, else x / (1 - p).

    Shapes   x, y (any), flat; they may be the same buffer
    Numbers  first: x[0] is number `first` of its tensor
    Writes   y (overwritten, or added to with accumulate)
    Threads  one iteration per chunk of 8,192 numbers, each owns its part of y
    Source   ONNX Dropout-13 in training mode; the mask is a function of the key and a number's index, never stored
    """
    scale = 1.0 / (1.0 - p) if p < 1.0 else 0.0
    chunks = (y.size + CHUNK - 1) // CHUNK
    if threads > 1:
        for index in numba.prange(chunks):
            chunk = np.int64(index)
            _dropout_chunk(x, y, chunk * CHUNK, min(y.size, (chunk + 1) * CHUNK), first, key, p, scale, accumulate)
    else:
        for chunk in range(chunks):
            _dropout_chunk(x, y, chunk * CHUNK, min(y.size, (chunk + 1) * CHUNK), first, key, p, scale, accumulate)


@entry("x< y> size p layer")
def forward(arena, row, batch):
    row = fields_of(row)
    size = row.size * batch
    dropout(view(arena, row.x, size), slot(arena, FIRST) * row.size,
            dropout_key(slot(arena, SEED), slot(arena, STEP), row.layer), number(row.p),
            0, threads_for(arena, size * 8), view(arena, row.y, size))


@entry("dy< dx= size p layer accumulate")
def backward(arena, row, batch):
    row = fields_of(row)
    size = row.size * batch
    dropout(view(arena, row.dy, size), slot(arena, FIRST) * row.size,
            dropout_key(slot(arena, SEED), slot(arena, STEP), row.layer), number(row.p),
            row.accumulate, threads_for(arena, size * 8), view(arena, row.dx, size))
