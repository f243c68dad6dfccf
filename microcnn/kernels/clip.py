"""The norm of all gradients together, and the factor that brings it down to a limit."""
import numba
import numpy as np

from ..arena import BAD_GRADIENT, FLAGS
from .compiler import helper, kernel
from .entry import entry, fields_of, number, threads_for, view, view_as
from .simd import lanes
from .vector import vector_fma, vector_of, vector_read, vector_sum

CHUNK = 8192
CHUNKS = 64


@helper
def _chunk(gradient, chunk, chunks, partial):
    """A chunk's sum, in float64: the squares of large float32 numbers are more than a float32 holds."""
    begin, end = gradient.size * chunk // chunks, gradient.size * (chunk + 1) // chunks
    step = lanes(partial)
    total = vector_of(partial, 0.0)
    for i in range(begin, end, step):
        value = vector_read(partial, gradient, i, min(step, end - i))
        total = vector_fma(value, value, total)
    partial[chunk] = vector_sum(total)


@kernel
@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def sum_of_squares(gradient, threads, partial):
    """The sum of the squares of all numbers.

    Shapes   gradient (any), flat
    Writes   partial (64 float64, undefined)
    Threads  one iteration per chunk (at most 64, by size only); the chunks' sums are added in order
    Source   torch.nn.utils.clip_grad_norm_ with norm_type 2
    """
    chunks = min(CHUNKS, (gradient.size + CHUNK - 1) // CHUNK)
    if threads > 1:
        for index in numba.prange(chunks):
            _chunk(gradient, np.int64(index), chunks, partial)
    else:
        for chunk in range(chunks):
            _chunk(gradient, chunk, chunks, partial)
    total = 0.0
    for chunk in range(chunks):
        total += partial[chunk]
    return total


@entry("gradient< sums= scratch> size index")
def squares(arena, row, batch):
    # sums[index]: one float64 for each gradient; size is the gradient's whole size
    row = fields_of(row)
    total = sum_of_squares(view(arena, row.gradient, row.size), threads_for(arena, row.size * 4),
                           view_as(arena, row.scratch, CHUNKS, np.float64))
    view_as(arena, row.sums, row.index + 1, np.float64)[row.index] = total


@entry("sums< factor> count limit")
def factor(arena, row, batch):
    # what every gradient is multiplied by; stops the program where one holds NaN or infinity
    row = fields_of(row)
    sums = view_as(arena, row.sums, row.count, np.float64)
    total = 0.0
    for i in range(row.count):
        total += sums[i]
    if not np.isfinite(total):
        view_as(arena, 0, FLAGS + 1, np.int64)[FLAGS] = BAD_GRADIENT
    view_as(arena, row.factor, 1, np.float64)[0] = min(1.0, number(row.limit) / (np.sqrt(total) + 1e-6))
