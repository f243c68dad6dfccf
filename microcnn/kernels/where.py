"""Selection between two tensors by a mask; all three broadcast. Its gradients are in elementwise_gradient.py."""
import numba
import numpy as np

from .compiler import helper, kernel
from .elementwise import extent, fetch, jobs_of, next_place, part_of, place_of, put, row_at, row_width, rows_of
from .entry import entry, fields_of, threads_for, view
from .vector import vector_of, vector_where_equal


@helper
def _job(mask, a, b, y, job, dims, mask_strides, a_strides, b_strides):
    """One segment of some neighbouring rows."""
    first, last, begin, end = part_of(job, dims)
    step = min(row_width(y, a_strides[5], b_strides[5]), row_width(y, mask_strides[5], 0))
    zero = vector_of(y, y.dtype.type(0))
    place = place_of(first, dims)
    for row in range(first, last):
        mask_at, a_at, b_at = row_at(place, mask_strides), row_at(place, a_strides), row_at(place, b_strides)
        for i in range(begin, end, step):
            count = min(step, end - i)
            chosen = vector_where_equal(fetch(mask, mask_at + i * mask_strides[5], mask_strides[5], count), zero,
                                        fetch(b, b_at + i * b_strides[5], b_strides[5], count),
                                        fetch(a, a_at + i * a_strides[5], a_strides[5], count))
            put(chosen, y, row * dims[5] + i, count)
        place = next_place(place, dims)


@kernel
@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def select_strided(mask, a, b, dims, mask_strides, a_strides, b_strides, threads, y):
    """a where the mask is not 0, else b.

    Shapes   dims (N, d0, d1, d2, d3, d4) of y, which is contiguous; strides in numbers, 0 where an operand repeats
    Writes   y (overwritten); it may be an operand that does not repeat
    Threads  one iteration per group of rows (or segment of a long row), each owns its part of y
    Source   ONNX Where-16; what is not selected takes no part, NaN or not
    """
    jobs = jobs_of(dims)
    if threads > 1:
        for index in numba.prange(jobs):
            job = np.int64(index)
            _job(mask, a, b, y, job, dims, mask_strides, a_strides, b_strides)
    else:
        for job in range(jobs):
            _job(mask, a, b, y, job, dims, mask_strides, a_strides, b_strides)


@entry("mask< a< b< y> d0 d1 d2 d3 d4 mask_batch mask0 mask1 mask2 mask3 mask4 a_batch a0 a1 a2 a3 a4 "
       "b_batch b0 b1 b2 b3 b4")
def select(arena, row, batch):
    row = fields_of(row)
    dims = (batch, row.d0, row.d1, row.d2, row.d3, row.d4)
    mask_strides = (row.mask_batch, row.mask0, row.mask1, row.mask2, row.mask3, row.mask4)
    a_strides = (row.a_batch, row.a0, row.a1, row.a2, row.a3, row.a4)
    b_strides = (row.b_batch, row.b0, row.b1, row.b2, row.b3, row.b4)
    size = rows_of(dims) * dims[5]
    select_strided(view(arena, row.mask, extent(dims, mask_strides)), view(arena, row.a, extent(dims, a_strides)),
                   view(arena, row.b, extent(dims, b_strides)), dims, mask_strides, a_strides, b_strides,
                   threads_for(arena, size * 4), view(arena, row.y, size))
