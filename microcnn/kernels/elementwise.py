"""Addition with and without broadcasting, its gradient, accumulation and dropout."""
import numba
import numpy as np

from .cache import helper
from .entry import SEED, STEP, entry, fields_of, number, slot, threads_for, view
from .simd import lanes
from .vector import (
    vector_add,
    vector_load,
    vector_load_first,
    vector_max,
    vector_min,
    vector_mul,
    vector_of,
    vector_store,
    vector_store_first,
    vector_sum,
    vector_uniform,
    vector_where_greater,
)

CHUNK = 8192
# Sums are made of parts this many additions long: one chain over an image would lose a digit.
PART = 256


@helper
def _clamped_sum(a, b, low, high, like):
    """One vector: a + b between low and high; NaN stays NaN."""
    real = like.dtype.type
    return vector_min(vector_max(vector_add(a, b), vector_of(like, real(low))), vector_of(like, real(high)))


@helper
def _add_chunk(a, b, y, begin, end, low, high):
    step = lanes(y)
    i = begin
    while i + step <= end:
        vector_store(_clamped_sum(vector_load(a, i), vector_load(b, i), low, high, y), y, i)
        i += step
    if i < end:
        count = end - i
        vector_store_first(_clamped_sum(vector_load_first(a, i, count), vector_load_first(b, i, count), low, high, y),
                           y, i, count)


@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def add_same_shape(a, b, low, high, threads, y):
    """Add two arrays of one shape and clamp the sum.

    Shapes   a, b, y (any), flat; y may be a or b
    Writes   y (overwritten)
    Threads  one iteration per chunk of 8,192 numbers, each owns its part of y
    Source   ONNX Add-14, with a Relu or Clip that follows it fused; a NaN stays a NaN
    """
    chunks = (y.size + CHUNK - 1) // CHUNK
    if threads > 1:
        for index in numba.prange(chunks):
            chunk = np.int64(index)
            _add_chunk(a, b, y, chunk * CHUNK, min(y.size, (chunk + 1) * CHUNK), low, high)
    else:
        for chunk in range(chunks):
            _add_chunk(a, b, y, chunk * CHUNK, min(y.size, (chunk + 1) * CHUNK), low, high)


@entry("a< b< y> size low high")
def add(arena, row, batch):
    row = fields_of(row)
    size = row.size * batch
    add_same_shape(view(arena, row.a, size), view(arena, row.b, size), number(row.low), number(row.high),
                   threads_for(arena, size * 4), view(arena, row.y, size))


# Broadcasting works on six axes, the batch first; rows of the innermost one are visited by an odometer over the other
# five, whose reading is called a place.

@helper
def _place(index, dims):
    """The odometer's reading at a row's index."""
    i3 = index % dims[4]
    index //= dims[4]
    i2 = index % dims[3]
    index //= dims[3]
    i1 = index % dims[2]
    index //= dims[2]
    return index // dims[1], index % dims[1], i1, i2, i3


@helper
def _next(place, dims):
    """The reading one row later."""
    n, i0, i1, i2, i3 = place
    i3 += 1
    if i3 == dims[4]:
        i3 = 0
        i2 += 1
        if i2 == dims[3]:
            i2 = 0
            i1 += 1
            if i1 == dims[2]:
                i1 = 0
                i0 += 1
                if i0 == dims[1]:
                    i0 = 0
                    n += 1
    return n, i0, i1, i2, i3


@helper
def _at(place, strides):
    """The element offset of a row's first number."""
    return (place[0] * strides[0] + place[1] * strides[1] + place[2] * strides[2] + place[3] * strides[3]
            + place[4] * strides[4])


@helper
def _extent(dims, strides):
    """How many numbers an operand spans."""
    last = (dims[0] - 1, dims[1] - 1, dims[2] - 1, dims[3] - 1, dims[4] - 1)
    return _at(last, strides) + (dims[5] - 1) * strides[5] + 1


@helper
def _width(like, a_stride, b_stride):
    """How many numbers of a row one step takes: a register, or one where an operand is spread out."""
    return lanes(like) if a_stride <= 1 and b_stride <= 1 else 1


@helper
def _fetch(a, at, stride, count):
    """`count` numbers of a row in one vector; a row of stride 0 repeats its number."""
    if stride == 0:
        return vector_of(a, a[at])
    if count == lanes(a):
        return vector_load(a, at)
    return vector_load_first(a, at, count)


@helper
def _broadcast_job(a, b, y, job, segments, rows_per_job, rows, dims, a_strides, b_strides, low, high):
    """One segment of some neighbouring rows."""
    first = job // segments * rows_per_job
    last = min(rows, first + rows_per_job)
    begin = job % segments * CHUNK
    end = min(dims[5], begin + CHUNK)
    step = _width(y, a_strides[5], b_strides[5])
    place = _place(first, dims)
    for row in range(first, last):
        a_at, b_at, y_at = _at(place, a_strides), _at(place, b_strides), row * dims[5]
        for i in range(begin, end, step):
            count = min(step, end - i)
            value = _clamped_sum(_fetch(a, a_at + i * a_strides[5], a_strides[5], count),
                                 _fetch(b, b_at + i * b_strides[5], b_strides[5], count), low, high, y)
            if count == lanes(y):
                vector_store(value, y, y_at + i)
            else:
                vector_store_first(value, y, y_at + i, count)
        place = _next(place, dims)


@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def add_strided(a, b, dims, a_strides, b_strides, low, high, threads, y):
    """Add two operands that broadcast against each other and clamp the sum.

    Shapes   dims (N, d0, d1, d2, d3, d4) of y, which is contiguous; strides in numbers, 0 where an operand repeats
    Writes   y (overwritten); it may be an operand that does not repeat
    Threads  one iteration per group of rows (or segment of a long row), each owns its part of y
    Source   ONNX Add-14, multidirectional broadcasting; innermost strides 1 and 0 take vectors, others one number
    """
    rows = dims[0] * dims[1] * dims[2] * dims[3] * dims[4]
    segments = (dims[5] + CHUNK - 1) // CHUNK
    rows_per_job = max(1, CHUNK // dims[5])
    jobs = (rows + rows_per_job - 1) // rows_per_job * segments
    if threads > 1:
        for index in numba.prange(jobs):
            job = np.int64(index)
            _broadcast_job(a, b, y, job, segments, rows_per_job, rows, dims, a_strides, b_strides, low, high)
    else:
        for job in range(jobs):
            _broadcast_job(a, b, y, job, segments, rows_per_job, rows, dims, a_strides, b_strides, low, high)


@entry("a< b< y> d0 d1 d2 d3 d4 a_batch a0 a1 a2 a3 a4 b_batch b0 b1 b2 b3 b4 low high")
def add_broadcast(arena, row, batch):
    row = fields_of(row)
    dims = (batch, row.d0, row.d1, row.d2, row.d3, row.d4)
    a_strides = (row.a_batch, row.a0, row.a1, row.a2, row.a3, row.a4)
    b_strides = (row.b_batch, row.b0, row.b1, row.b2, row.b3, row.b4)
    size = batch * row.d0 * row.d1 * row.d2 * row.d3 * row.d4
    add_strided(view(arena, row.a, _extent(dims, a_strides)), view(arena, row.b, _extent(dims, b_strides)), dims,
                a_strides, b_strides, number(row.low), number(row.high), threads_for(arena, size * 4),
                view(arena, row.y, size))


@helper
def _kept(dims, strides):
    """The sizes of the axes that an operand has; 1 for those that repeat it."""
    return (dims[0] if strides[0] else 1, dims[1] if strides[1] else 1, dims[2] if strides[2] else 1,
            dims[3] if strides[3] else 1, dims[4] if strides[4] else 1)


@helper
def _repeated(dims, strides):
    """The sizes of the axes that repeat an operand; 1 for those it has."""
    return (1 if strides[0] else dims[0], 1 if strides[1] else dims[1], 1 if strides[2] else dims[2],
            1 if strides[3] else dims[3], 1 if strides[4] else dims[4])


@helper
def _product(dims):
    return dims[0] * dims[1] * dims[2] * dims[3] * dims[4]


@helper
def _reduce_job(dy, dx, job, blocks, width, dims, strides, accumulate):
    """One vector of dx (one number where the innermost axis repeats), summed over everything that repeats it."""
    dy_strides = (dims[1] * dims[2] * dims[3] * dims[4] * dims[5], dims[2] * dims[3] * dims[4] * dims[5],
                  dims[3] * dims[4] * dims[5], dims[4] * dims[5], dims[5])
    repeated = _repeated(dims, strides)
    owner = _place(job // blocks, _kept(dims, strides))
    begin = job % blocks * width
    end = min(dims[5], begin + width)
    step = min(width, lanes(dy))
    count = end - begin
    start = _at(owner, dy_strides)
    zero = vector_of(dy, dy.dtype.type(0))
    total, part, additions = zero, zero, 0
    place = (0, 0, 0, 0, 0)
    for _ in range(_product(repeated)):
        at = start + _at(place, dy_strides)
        for i in range(begin, end, step):
            part = vector_add(part, _fetch(dy, at + i, 1, min(step, end - i)))
            additions += 1
            if additions == PART:
                total, part, additions = vector_add(total, part), zero, 0
        place = _next(place, repeated)
    total = vector_add(total, part)
    at = _at(owner, strides) + begin * strides[5]
    if strides[5] == 0:
        dx[at] = vector_sum(total) + (dx[at] if accumulate else dy.dtype.type(0))
    else:
        if accumulate:
            total = vector_add(total, _fetch(dx, at, 1, count))
        if count == lanes(dy):
            vector_store(total, dx, at)
        else:
            vector_store_first(total, dx, at, count)


@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def sum_strided(dy, dims, strides, accumulate, threads, dx):
    """The gradient of a broadcast operand: dy summed over the axes that repeat it.

    Shapes   dy (N, d0, d1, d2, d3, d4) contiguous; dx by strides in numbers, 0 along the axes that are summed
    Writes   dx (overwritten, or added to with accumulate)
    Threads  one iteration per vector of dx, each sums all that belongs to it; no scratch
    Source   the transpose of broadcasting; sums in parts of 256 additions
    """
    if strides[5] == 0:
        width = dims[5]
    else:
        width = _width(dy, strides[5], 0)
    blocks = (dims[5] + width - 1) // width
    jobs = _product(_kept(dims, strides)) * blocks
    if threads > 1:
        for index in numba.prange(jobs):
            job = np.int64(index)
            _reduce_job(dy, dx, job, blocks, width, dims, strides, accumulate)
    else:
        for job in range(jobs):
            _reduce_job(dy, dx, job, blocks, width, dims, strides, accumulate)


@entry("dy< dx= d0 d1 d2 d3 d4 batch_stride s0 s1 s2 s3 s4 size accumulate")
def reduce_broadcast(arena, row, batch):
    row = fields_of(row)
    dims = (batch, row.d0, row.d1, row.d2, row.d3, row.d4)
    strides = (row.batch_stride, row.s0, row.s1, row.s2, row.s3, row.s4)
    dy_size = batch * row.d0 * row.d1 * row.d2 * row.d3 * row.d4
    size = row.size * (batch if row.batch_stride else 1)
    sum_strided(view(arena, row.dy, dy_size), dims, strides, row.accumulate, threads_for(arena, dy_size * 4),
                view(arena, row.dx, size))


@entry("x< y= size")
def accumulate(arena, row, batch):
    row = fields_of(row)
    size = row.size * batch
    y = view(arena, row.y, size)
    add_same_shape(y, view(arena, row.x, size), -np.inf, np.inf, threads_for(arena, size * 4), y)


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
    """One vector: x scaled where the generator's number is at least p, else 0."""
    real = like.dtype.type
    return vector_where_greater(vector_of(like, real(p)), vector_uniform(like, key, i), vector_of(like, real(0)),
                                vector_mul(x, vector_of(like, real(scale))))


@helper
def _dropout_chunk(x, y, begin, end, key, p, scale, accumulate):
    step = lanes(y)
    i = begin
    while i + step <= end:
        value = _drop(vector_load(x, i), i, key, p, scale, y)
        if accumulate:
            value = vector_add(value, vector_load(y, i))
        vector_store(value, y, i)
        i += step
    if i < end:
        count = end - i
        value = _drop(vector_load_first(x, i, count), i, key, p, scale, y)
        if accumulate:
            value = vector_add(value, vector_load_first(y, i, count))
        vector_store_first(value, y, i, count)


@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def dropout(x, key, p, accumulate, threads, y):
    """Inverted dropout, and its gradient with the same key: 0 with probability p, else x / (1 - p).

    Shapes   x, y (any), flat; they may be the same buffer
    Writes   y (overwritten, or added to with accumulate)
    Threads  one iteration per chunk of 8,192 numbers, each owns its part of y
    Source   ONNX Dropout-13 in training mode; the mask is a function of the key and a number's index, never stored
    """
    scale = 1.0 / (1.0 - p) if p < 1.0 else 0.0
    chunks = (y.size + CHUNK - 1) // CHUNK
    if threads > 1:
        for index in numba.prange(chunks):
            chunk = np.int64(index)
            _dropout_chunk(x, y, chunk * CHUNK, min(y.size, (chunk + 1) * CHUNK), key, p, scale, accumulate)
    else:
        for chunk in range(chunks):
            _dropout_chunk(x, y, chunk * CHUNK, min(y.size, (chunk + 1) * CHUNK), key, p, scale, accumulate)


@entry("x< y> size p layer")
def dropout_forward(arena, row, batch):
    row = fields_of(row)
    size = row.size * batch
    dropout(view(arena, row.x, size), dropout_key(slot(arena, SEED), slot(arena, STEP), row.layer), number(row.p),
            0, threads_for(arena, size * 8), view(arena, row.y, size))


@entry("dy< dx= size p layer accumulate")
def dropout_backward(arena, row, batch):
    row = fields_of(row)
    size = row.size * batch
    dropout(view(arena, row.dy, size), dropout_key(slot(arena, SEED), slot(arena, STEP), row.layer), number(row.p),
            row.accumulate, threads_for(arena, size * 8), view(arena, row.dx, size))
