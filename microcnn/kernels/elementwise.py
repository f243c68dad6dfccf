"""Functions of two tensors, number by number, with and without broadcasting; accumulation."""
import numba
import numpy as np

from .compiler import helper, kernel
from .entry import entry, fields_of, number, threads_for, view
from .powers import vector_fmod, vector_pow
from .simd import lanes
from .vector import (
    vector_add,
    vector_div,
    vector_load,
    vector_load_first,
    vector_max,
    vector_min,
    vector_mul,
    vector_of,
    vector_sqrt,
    vector_store,
    vector_store_first,
    vector_sub,
    vector_where_beats,
    vector_where_greater,
)

# The five after MOD are powers with a constant exponent: of a alone. 13 and 14 are gradients' own.
ADD, SUB, MUL, DIV, MAX, MIN, POW, MOD, SQUARE, CUBE, ROOT, INVERSE_ROOT, INVERSE = range(13)
FLOOR_MOD = 15
CHUNK = 8192


@helper
def _power(a, kind, like):
    """One vector: a to a constant exponent."""
    if kind == SQUARE:
        return vector_mul(a, a)
    if kind == CUBE:
        return vector_mul(vector_mul(a, a), a)
    if kind == ROOT:
        return vector_sqrt(a)
    one = vector_of(like, like.dtype.type(1))
    if kind == INVERSE_ROOT:
        return vector_div(one, vector_sqrt(a))
    return vector_div(one, a)


@helper
def _function(a, b, kind, like):
    """One vector: the function of a and b. The larger and the smaller of a number and NaN are NaN."""
    if kind == ADD:
        return vector_add(a, b)
    if kind == SUB:
        return vector_sub(a, b)
    if kind == MUL:
        return vector_mul(a, b)
    if kind == DIV:
        return vector_div(a, b)
    if kind == MAX:
        return vector_where_beats(b, a, b, a)
    if kind == MIN:
        zero = vector_of(like, like.dtype.type(0))
        return vector_where_beats(vector_sub(zero, b), vector_sub(zero, a), b, a)
    if kind == POW:
        return vector_pow(a, b)
    if kind == MOD:
        return vector_fmod(a, b)
    if kind == FLOOR_MOD:
        rest = vector_fmod(a, b)
        zero = vector_of(like, like.dtype.type(0))
        return vector_where_greater(zero, vector_mul(rest, b), vector_add(rest, b), rest)
    return _power(a, kind, like)


@helper
def _combined(a, b, kind, low, high, like):
    """One vector: the function of a and b between low and high; NaN stays NaN."""
    real = like.dtype.type
    value = _function(a, b, kind, like)
    return vector_min(vector_max(value, vector_of(like, real(low))), vector_of(like, real(high)))


@helper
def _chunk(a, b, y, begin, end, kind, low, high):
    step = lanes(y)
    i = begin
    while i + step <= end:
        vector_store(_combined(vector_load(a, i), vector_load(b, i), kind, low, high, y), y, i)
        i += step
    if i < end:
        count = end - i
        vector_store_first(_combined(vector_load_first(a, i, count), vector_load_first(b, i, count), kind, low, high, y),
                           y, i, count)


@kernel
@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def combine_same_shape(a, b, kind, low, high, threads, y):
    """A function of two arrays of one shape, clamped.

    Shapes   a, b, y (any), flat; y may be a or b
    Writes   y (overwritten)
    Threads  one iteration per chunk of 8,192 numbers, each owns its part of y
    Source   ONNX Add-14, Sub-14, Mul-14, Div-14, Max-13, Min-13, Pow-15, Mod-13, with a Relu or Clip that follows
             fused; a NaN stays a NaN
    """
    chunks = (y.size + CHUNK - 1) // CHUNK
    if threads > 1:
        for index in numba.prange(chunks):
            chunk = np.int64(index)
            _chunk(a, b, y, chunk * CHUNK, min(y.size, (chunk + 1) * CHUNK), kind, low, high)
    else:
        for chunk in range(chunks):
            _chunk(a, b, y, chunk * CHUNK, min(y.size, (chunk + 1) * CHUNK), kind, low, high)


@helper
def work_of(kind, size):
    """The work of so many numbers: powers and remainders are calls."""
    return size * 100 if kind == POW or kind == MOD or kind == FLOOR_MOD else size * 4


@entry("a< b< y> size kind low high")
def combine(arena, row, batch):
    row = fields_of(row)
    size = row.size * batch
    combine_same_shape(view(arena, row.a, size), view(arena, row.b, size), row.kind, number(row.low), number(row.high),
                       threads_for(arena, work_of(row.kind, size)), view(arena, row.y, size))


@entry("x< y= size")
def accumulate(arena, row, batch):
    row = fields_of(row)
    size = row.size * batch
    y = view(arena, row.y, size)
    combine_same_shape(y, view(arena, row.x, size), ADD, -np.inf, np.inf, threads_for(arena, size * 4), y)


# Broadcasting works on six axes, the batch first; rows of the innermost one are visited by an odometer over the other
# five, whose reading is called a place.

@helper
def place_of(index, dims):
    """The odometer's reading at a row's index."""
    i3 = index % dims[4]
    index //= dims[4]
    i2 = index % dims[3]
    index //= dims[3]
    i1 = index % dims[2]
    index //= dims[2]
    return index // dims[1], index % dims[1], i1, i2, i3


@helper
def next_place(place, dims):
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
def row_at(place, strides):
    """The element offset of a row's first number."""
    return (place[0] * strides[0] + place[1] * strides[1] + place[2] * strides[2] + place[3] * strides[3]
            + place[4] * strides[4])


@helper
def extent(dims, strides):
    """How many numbers an operand spans."""
    last = (dims[0] - 1, dims[1] - 1, dims[2] - 1, dims[3] - 1, dims[4] - 1)
    return row_at(last, strides) + (dims[5] - 1) * strides[5] + 1


@helper
def row_width(like, a_stride, b_stride):
    """How many numbers of a row one step takes: a register, or one where an operand is spread out."""
    return lanes(like) if a_stride <= 1 and b_stride <= 1 else 1


@helper
def fetch(a, at, stride, count):
    """`count` numbers of a row in one vector; a row of stride 0 repeats its number."""
    if stride == 0:
        return vector_of(a, a[at])
    if count == lanes(a):
        return vector_load(a, at)
    return vector_load_first(a, at, count)


@helper
def put(value, y, at, count):
    """The first `count` lanes into y."""
    if count == lanes(y):
        vector_store(value, y, at)
    else:
        vector_store_first(value, y, at, count)


@helper
def rows_of(dims):
    """How many rows there are."""
    return dims[0] * dims[1] * dims[2] * dims[3] * dims[4]


@helper
def _grouping(dims):
    """(rows of a job, segments of a row): short rows go together, long ones are cut."""
    return max(1, CHUNK // dims[5]), (dims[5] + CHUNK - 1) // CHUNK


@helper
def jobs_of(dims):
    """How many jobs take all rows."""
    together, segments = _grouping(dims)
    return (rows_of(dims) + together - 1) // together * segments


@helper
def part_of(job, dims):
    """(first row, end of the rows, first number in a row, end of the numbers) of a job."""
    together, segments = _grouping(dims)
    first, begin = job // segments * together, job % segments * CHUNK
    return first, min(rows_of(dims), first + together), begin, min(dims[5], begin + CHUNK)


@helper
def _broadcast_job(a, b, y, job, dims, a_strides, b_strides, kind, low, high):
    """One segment of some neighbouring rows."""
    first, last, begin, end = part_of(job, dims)
    step = row_width(y, a_strides[5], b_strides[5])
    place = place_of(first, dims)
    for row in range(first, last):
        a_at, b_at, y_at = row_at(place, a_strides), row_at(place, b_strides), row * dims[5]
        for i in range(begin, end, step):
            count = min(step, end - i)
            value = _combined(fetch(a, a_at + i * a_strides[5], a_strides[5], count),
                              fetch(b, b_at + i * b_strides[5], b_strides[5], count), kind, low, high, y)
            put(value, y, y_at + i, count)
        place = next_place(place, dims)


@kernel
@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def combine_strided(a, b, dims, a_strides, b_strides, kind, low, high, threads, y):
    """A function of two operands that broadcast against each other, clamped.

    Shapes   dims (N, d0, d1, d2, d3, d4) of y, which is contiguous; strides in numbers, 0 where an operand repeats
    Writes   y (overwritten); it may be an operand that does not repeat
    Threads  one iteration per group of rows (or segment of a long row), each owns its part of y
    Source   as combine_same_shape, multidirectional broadcasting; innermost strides 1 and 0 take vectors, others one number
    """
    jobs = jobs_of(dims)
    if threads > 1:
        for index in numba.prange(jobs):
            job = np.int64(index)
            _broadcast_job(a, b, y, job, dims, a_strides, b_strides, kind, low, high)
    else:
        for job in range(jobs):
            _broadcast_job(a, b, y, job, dims, a_strides, b_strides, kind, low, high)


@entry("a< b< y> d0 d1 d2 d3 d4 a_batch a0 a1 a2 a3 a4 b_batch b0 b1 b2 b3 b4 kind low high")
def combine_broadcast(arena, row, batch):
    row = fields_of(row)
    dims = (batch, row.d0, row.d1, row.d2, row.d3, row.d4)
    a_strides = (row.a_batch, row.a0, row.a1, row.a2, row.a3, row.a4)
    b_strides = (row.b_batch, row.b0, row.b1, row.b2, row.b3, row.b4)
    size = rows_of(dims) * dims[5]
    combine_strided(view(arena, row.a, extent(dims, a_strides)), view(arena, row.b, extent(dims, b_strides)), dims,
                    a_strides, b_strides, row.kind, number(row.low), number(row.high),
                    threads_for(arena, work_of(row.kind, size)), view(arena, row.y, size))
