"""Max pooling over images N,H,W,C, forward and backward, with the activation before it done on its results.

Forward, a job is one row of the output. Backward, a job is one row of dx, which gathers from the windows that cover it,
so that windows may overlap and no two jobs write the same place.

A clamp grows with its argument, so that the maximum of clamped numbers is the clamped maximum; and where that lies strictly
between the bounds, which is where a gradient passes, the winner is the same. The clamp runs on the few outputs.
"""
import numba
import numpy as np

from .compiler import helper, kernel
from .entry import entry, fields_of, number, outside, threads_for, view, view_as
from .simd import lanes
from .vector import (
    vector_add,
    vector_any_nan,
    vector_fma,
    vector_max,
    vector_min,
    vector_of,
    vector_read,
    vector_where_beats,
    vector_where_equal,
    vector_where_greater,
    vector_write,
)
from .windows import end_inside, first_inside, interior, prepare_row


@helper
def _address_of(arena, offset):
    """A buffer of indices as the kernels take it: its type is known only from index_bytes."""
    return view_as(arena, offset, 1, np.uint8).ctypes.data


@helper
def _geometry(H, W, C, OH, OW, kernel_h, kernel_w, stride_h, stride_w, pad_top, pad_left, dilation_h, dilation_w):
    """The numbers that both kernels need, see max_pool."""
    inner, outer = interior(W, OW, kernel_w, dilation_w, stride_w, pad_left)
    whole = (kernel_h == stride_h and kernel_w == stride_w and pad_top == 0 and pad_left == 0 and dilation_h == 1
             and dilation_w == 1 and OH * kernel_h <= H and OW * kernel_w <= W)
    return (H, W, C, OH, OW, kernel_h, kernel_w, stride_h, stride_w, pad_top, pad_left, dilation_h, dilation_w, inner, outer,
            whole)


@helper
def _write_index(index, indices, at, count, index_bytes):
    if index_bytes == 1:
        vector_write(index, outside(indices, at + count, np.uint8), at, count)
    elif index_bytes == 2:
        vector_write(index, outside(indices, at + count, np.uint16), at, count)
    else:
        vector_write(index, outside(indices, at + count, np.int32), at, count)


@helper
def _read_index(like, indices, at, count, index_bytes):
    if index_bytes == 1:
        return vector_read(like, outside(indices, at + count, np.uint8), at, count)
    if index_bytes == 2:
        return vector_read(like, outside(indices, at + count, np.uint16), at, count)
    return vector_read(like, outside(indices, at + count, np.int32), at, count)


@helper
def _winner_with_nan(x, at, count, rows, columns, first, kernel_w, step_h, step_w):
    """The maximum of one window and its index, where some of its numbers may be NaN."""
    real = x.dtype.type
    best, index = vector_read(x, x, at, count), vector_of(x, real(first))
    for r in range(rows):
        for s in range(columns):
            value = vector_read(x, x, at + r * step_h + s * step_w, count)
            index = vector_where_beats(value, best, vector_of(x, real(first + r * kernel_w + s)), index)
            best = vector_where_beats(value, best, value, best)
    return best, index


@helper
def _max_run(x, corner, windows, stride, rows, columns, first, kernel_w, step_h, step_w, index_bytes, low, high, y, indices,
             to, C):
    """A run of windows of which rows x columns positions lie inside, from `corner` and position `first` on."""
    real = x.dtype.type
    zero, one, start = vector_of(x, real(0)), vector_of(x, real(1)), vector_of(x, real(first))
    jump = vector_of(x, real(kernel_w - columns))
    least, most = vector_of(x, low), vector_of(x, high)
    for _ in range(windows):
        for c in range(0, C, lanes(x)):
            best, index, here, odd = vector_of(x, real(-np.inf)), start, start, zero
            for r in range(rows):
                at = corner + c + r * step_h
                for s in range(columns):
                    value = vector_read(x, x, at + s * step_w, C - c)
                    index = vector_where_greater(value, best, here, index)
                    best = vector_max(value, best)
                    odd = vector_fma(value, zero, odd)      # NaN once a value is NaN or infinite
                    here = vector_add(here, one)
                here = vector_add(here, jump)
            if vector_any_nan(odd):
                best, index = _winner_with_nan(x, corner + c, C - c, rows, columns, first, kernel_w, step_h, step_w)
            if rows > 0 and columns > 0:
                best = vector_min(vector_max(best, least), most)
            vector_write(best, y, to + c, C - c)
            if index_bytes:
                _write_index(index, indices, to + c, C - c, index_bytes)
        corner += stride
        to += C


@helper
def _max_row(x, job, geometry, index_bytes, low, high, y, indices):
    """Row oh of sample n, where job = n * OH + oh."""
    (H, W, C, OH, OW, kernel_h, kernel_w, stride_h, stride_w, pad_top, pad_left,
     dilation_h, dilation_w, inner, outer, whole) = geometry
    n = job // OH
    top = (job - n * OH) * stride_h - pad_top
    windows, rows, columns, first_r, first_s, left = OW, kernel_h, kernel_w, 0, 0, 0
    if not whole:
        first_r, end_r = first_inside(top, dilation_h), end_inside(top, H, kernel_h, dilation_h)
        rows = max(0, end_r - first_r)
    step_h, step_w, stride = dilation_h * W * C, dilation_w * C, stride_w * C
    ow = 0
    while ow < OW:
        if not whole:
            windows = outer - ow if inner <= ow < outer else 1
            left = ow * stride_w - pad_left
            first_s, end_s = first_inside(left, dilation_w), end_inside(left, W, kernel_w, dilation_w)
            columns = max(0, end_s - first_s)
        corner = ((n * H + top + first_r * dilation_h) * W + left + first_s * dilation_w) * C
        first = first_r * kernel_w + first_s if rows > 0 and columns > 0 else 0
        to = (job * OW + ow) * C
        # the usual sizes as constants, for which the loops disappear
        if columns == 2 and rows == 2:
            _max_run(x, corner, windows, stride, 2, 2, first, kernel_w, step_h, step_w, index_bytes, low, high, y, indices,
                     to, C)
        elif columns == 3:
            _max_run(x, corner, windows, stride, rows, 3, first, kernel_w, step_h, step_w, index_bytes, low, high, y,
                     indices, to, C)
        else:
            _max_run(x, corner, windows, stride, rows, columns, first, kernel_w, step_h, step_w, index_bytes, low, high, y,
                     indices, to, C)
        ow += windows


@kernel
@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def max_pool(x, batch, geometry, index_bytes, low, high, threads, y, indices):
    """The maximum of each window, clamped to low..high.

    Shapes   x (N, H, W, C); y and indices (N, OH, OW, C), flat; geometry (H, W, C, OH, OW, kernel_h, kernel_w,
             stride_h, stride_w, pad_top, pad_left, dilation_h, dilation_w, inner, outer, whole), inner and outer
             being the range of windows along W that lie wholly inside, whole: all windows do, and lie side by side like
             tiles; indices is an address of integers of index_bytes
    Writes   y; indices (the winner's r * kernel_w + s) unless index_bytes is 0
    Threads  one iteration per (n, oh), each owns its row of y and indices
    Source   ONNX MaxPool-12; seed, "Backprop through Max-Pooling" keeps the indices; the first maximum wins, a NaN wins
             over numbers, padding never wins, and a window outside the image gives -inf, not clamped, and index 0
    """
    jobs = batch * geometry[3]
    if threads > 1:
        for index in numba.prange(jobs):
            job = np.int64(index)
            _max_row(x, job, geometry, index_bytes, low, high, y, indices)
    else:
        for job in range(jobs):
            _max_row(x, job, geometry, index_bytes, low, high, y, indices)


@entry("x< y> indices> H W C OH OW kernel_h kernel_w stride_h stride_w pad_top pad_left dilation_h dilation_w "
       "index_bytes low high")
def forward(arena, row, batch):
    row = fields_of(row)
    real = view(arena, 0, 1).dtype.type
    size = batch * row.OH * row.OW * row.C
    index_bytes = row.index_bytes if row.indices >= 0 else 0
    geometry = _geometry(row.H, row.W, row.C, row.OH, row.OW, row.kernel_h, row.kernel_w, row.stride_h, row.stride_w,
                         row.pad_top, row.pad_left, row.dilation_h, row.dilation_w)
    max_pool(view(arena, row.x, batch * row.H * row.W * row.C), batch, geometry, index_bytes, real(number(row.low)),
             real(number(row.high)), threads_for(arena, size * row.kernel_h * row.kernel_w), view(arena, row.y, size),
             _address_of(arena, row.indices))


@helper
def _unpool_run(indices, y, dy, at, windows, stride, columns, first, step_w, index_bytes, low, high, add, dx, to, C):
    """One row of a run of windows, of which `columns` positions lie inside, numbered from `first` on."""
    real = dy.dtype.type
    zero, one, start = vector_of(dy, real(0)), vector_of(dy, real(1)), vector_of(dy, real(first))
    least, most = vector_of(dy, low), vector_of(dy, high)
    for _ in range(windows):
        for c in range(0, C, lanes(dy)):
            index = _read_index(dy, indices, at + c, C - c, index_bytes)
            gradient = vector_read(dy, dy, at + c, C - c)
            if y.size > 0:
                best = vector_read(dy, y, at + c, C - c)
                gradient = vector_where_greater(most, best, vector_where_greater(best, least, gradient, zero), zero)
            here = start
            for s in range(columns):
                place = to + c + s * step_w
                value = vector_where_equal(index, here, gradient, zero)
                if add:
                    value = vector_add(vector_read(dx, dx, place, C - c), value)
                vector_write(value, dx, place, C - c)
                here = vector_add(here, one)
        at += C
        to += stride


@helper
def _unpool_row(indices, y, dy, job, geometry, index_bytes, low, high, accumulate, dx):
    """Row ih of sample n, where job = n * H + ih."""
    (H, W, C, OH, OW, kernel_h, kernel_w, stride_h, stride_w, pad_top, pad_left,
     dilation_h, dilation_w, inner, outer, whole) = geometry
    n = job // H
    position = job - n * H + pad_top
    windows, columns, first_s, left = OW, kernel_w, 0, 0
    tiled = kernel_h == stride_h and kernel_w == stride_w and dilation_h == 1 and dilation_w == 1
    add = prepare_row(dx, job, W, C, stride_w, pad_left, position < OH * stride_h, OW, tiled, accumulate)
    step_w, stride = dilation_w * C, stride_w * C
    for oh in range(min(OH - 1, position // stride_h), -1, -1):
        distance = position - oh * stride_h
        r = distance if dilation_h == 1 else distance // dilation_h
        if r >= kernel_h:
            break
        ow = 0 if r * dilation_h == distance else OW
        while ow < OW:
            if not whole:
                windows = outer - ow if inner <= ow < outer else 1
                left = ow * stride_w - pad_left
                first_s, end_s = first_inside(left, dilation_w), end_inside(left, W, kernel_w, dilation_w)
                columns = end_s - first_s
            at = ((n * OH + oh) * OW + ow) * C
            to = (job * W + left + first_s * dilation_w) * C
            first = r * kernel_w + first_s
            # the usual case as constants, for which a loop and a branch disappear
            if columns == 2 and not add:
                _unpool_run(indices, y, dy, at, windows, stride, 2, first, step_w, index_bytes, low, high, False, dx, to, C)
            elif columns == 3:
                _unpool_run(indices, y, dy, at, windows, stride, 3, first, step_w, index_bytes, low, high, add, dx, to, C)
            else:
                _unpool_run(indices, y, dy, at, windows, stride, columns, first, step_w, index_bytes, low, high, add, dx, to,
                            C)
            ow += windows


@kernel
@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def max_unpool(indices, y, dy, batch, geometry, index_bytes, low, high, accumulate, threads, dx):
    """The gradient of max pooling: dy at each window's winner; overlapping windows add up.

    Shapes   indices, dy (N, OH, OW, C); y like dy where it was clamped to low..high, else empty; dx (N, H, W, C), flat;
             geometry and index_bytes as for max_pool
    Writes   dx (overwritten, or added to with accumulate)
    Threads  one iteration per (n, ih), each owns its row of dx
    Source   seed, "Backprop through Max-Pooling": max-unpool(Z, idxs, dZ); a clamp passes what lies strictly inside
    """
    jobs = batch * geometry[0]
    if threads > 1:
        for index in numba.prange(jobs):
            job = np.int64(index)
            _unpool_row(indices, y, dy, job, geometry, index_bytes, low, high, accumulate, dx)
    else:
        for job in range(jobs):
            _unpool_row(indices, y, dy, job, geometry, index_bytes, low, high, accumulate, dx)


@entry("indices< y< dy< dx= H W C OH OW kernel_h kernel_w stride_h stride_w pad_top pad_left dilation_h dilation_w "
       "index_bytes low high accumulate")
def backward(arena, row, batch):
    row = fields_of(row)
    real = view(arena, 0, 1).dtype.type
    size = batch * row.OH * row.OW * row.C
    clamped = size if row.y >= 0 else 0
    geometry = _geometry(row.H, row.W, row.C, row.OH, row.OW, row.kernel_h, row.kernel_w, row.stride_h, row.stride_w,
                         row.pad_top, row.pad_left, row.dilation_h, row.dilation_w)
    max_unpool(_address_of(arena, row.indices), view(arena, row.y, clamped), view(arena, row.dy, size), batch, geometry,
               row.index_bytes, real(number(row.low)), real(number(row.high)), row.accumulate,
               threads_for(arena, size * row.kernel_h * row.kernel_w), view(arena, row.dx, batch * row.H * row.W * row.C))
