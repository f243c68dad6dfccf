"""Where in each group of numbers the largest or the smallest stands; groups lie as in axis.py."""
import numba
import numpy as np
from llvmlite import ir
from numba.extending import intrinsic

from .axis import job_count, job_shape, unit_at
from .compiler import helper, kernel
from .entry import entry, fields_of, threads_for, view
from .reduction import MAX, MIN, across_lanes, total_of
from .simd import is_real_array, lanes, lanes_of, vector_type
from .vector import (
    VectorType,
    vector_add,
    vector_any_nan,
    vector_highest,
    vector_max,
    vector_mul,
    vector_of,
    vector_take,
    vector_where_beats,
    vector_where_equal,
    vector_where_first,
    vector_write,
)


@intrinsic
def vector_lane_numbers(typing_context, like):
    """0, 1, 2, ... in the lanes."""
    if not is_real_array(like):
        return None

    def codegen(context, builder, sig, args):
        return ir.Constant(vector_type(like.dtype), [float(lane) for lane in range(lanes_of(like.dtype))])
    return VectorType(like.dtype)(like), codegen


@helper
def _place_in_row(x, at, C, sign, last):
    """Where in one contiguous group the largest number (of sign * x) stands, the first or the last of equal ones."""
    real = x.dtype.type
    zero, lowest = vector_of(x, real(0)), vector_of(x, real(-np.inf))
    top = across_lanes(total_of(x, at, 1, 0, C, 0, MAX if sign > 0 else MIN, zero, x), MAX, x)
    if vector_any_nan(top):
        for i in range(C):
            c = C - 1 - i if last else i
            if x[at + c] != x[at + c]:
                return c
    best = vector_mul(top, vector_of(x, real(sign)))
    # the largest place, or the largest negative one
    direction = vector_of(x, real(1 if last else -1))
    place = lowest
    for c in range(0, C, lanes(x)):
        here = vector_mul(vector_add(vector_of(x, real(c)), vector_lane_numbers(x)), direction)
        here = vector_where_first(C - c, vector_where_equal(vector_take(x, at + c, C - c), best, here, lowest), lowest)
        place = vector_max(place, here)
    return np.int64(abs(vector_highest(place)))


@helper
def _places_in_columns(x, at, inner, C, count, sign, last):
    """As _place_in_row, of groups that lie side by side."""
    real = x.dtype.type
    direction = vector_of(x, real(sign))
    best, place = vector_mul(vector_take(x, at, count), direction), vector_of(x, real(0))
    for c in range(1, C):
        value, here = vector_mul(vector_take(x, at + c * inner, count), direction), vector_of(x, real(c))
        if last:
            place = vector_where_beats(best, value, place, here)
            best = vector_where_beats(best, value, best, value)
        else:
            place = vector_where_beats(value, best, here, place)
            best = vector_where_beats(value, best, value, best)
    return place


@helper
def _place_job(x, y, job, C, inner, sign, last):
    width, blocks, per_job = job_shape(x, C, inner)
    units = y.size // inner * blocks
    for unit in range(job * per_job, min(units, (job + 1) * per_job)):
        at, to, count = unit_at(unit, width, blocks, C, inner)
        if count:
            vector_write(_places_in_columns(x, at, inner, C, count, sign, last), y, to, count)
        else:
            y[to] = _place_in_row(x, at, C, sign, last)


@kernel
@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def place_of_extreme(x, C, inner, sign, last, threads, y):
    """Where in each group its largest number stands (sign 1), or its smallest (sign -1); a NaN counts as that.

    Shapes   x (outer, C, inner), y (outer, inner), flat
    Writes   y (overwritten): 0 to C - 1, the first of equal numbers' places, with `last` the last one
    Threads  one iteration per 4,096 numbers or one group, each owns its groups
    Source   ONNX ArgMax-13, ArgMin-13
    """
    jobs = job_count(x, y.size, C, inner)
    if threads > 1:
        for index in numba.prange(jobs):
            job = np.int64(index)
            _place_job(x, y, job, C, inner, sign, last)
    else:
        for job in range(jobs):
            _place_job(x, y, job, C, inner, sign, last)


@entry("x< y> outer C inner sign last")
def forward(arena, row, batch):
    row = fields_of(row)
    size = batch * row.outer * row.inner
    place_of_extreme(view(arena, row.x, size * row.C), row.C, row.inner, row.sign, row.last,
                     threads_for(arena, size * row.C * 3), view(arena, row.y, size))
