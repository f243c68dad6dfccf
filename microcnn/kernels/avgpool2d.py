"""Average and global average pooling over images N,H,W,C, forward and backward.

Forward, a job is one row of the output. Backward, a job is one row of dx, which gathers from the windows that cover it,
so that windows may overlap and no two jobs write the same place.
"""
import numba
import numpy as np

from .compiler import helper, kernel
from .entry import entry, fields_of, threads_for, view
from .simd import lanes
from .vector import vector_add, vector_div, vector_mul, vector_of, vector_read, vector_write
from .windows import end_inside, first_inside, interior, prepare_row

PIXELS = 64


@helper
def _counted(start, extent, kernel, dilation, pad_end, count_include_pad):
    """How many positions of a window beginning at `start` the average counts along one axis."""
    if count_include_pad:
        return end_inside(start, extent + pad_end, kernel, dilation)
    return max(0, end_inside(start, extent, kernel, dilation) - first_inside(start, dilation))


@helper
def _average_run(x, corner, windows, stride, rows, columns, step_h, step_w, share, y, to, C):
    """The sums of a run of windows, of which rows x columns positions lie inside, times the share of each position."""
    for _ in range(windows):
        for c in range(0, C, lanes(x)):
            total = vector_of(x, x.dtype.type(0))
            for r in range(rows):
                for s in range(columns):
                    total = vector_add(total, vector_read(x, x, corner + c + r * step_h + s * step_w, C - c))
            vector_write(vector_mul(total, vector_of(x, share)), y, to + c, C - c)
        corner += stride
        to += C


@helper
def _average_row(x, job, geometry, y):
    """Row oh of sample n, where job = n * OH + oh."""
    (H, W, C, OH, OW, kernel_h, kernel_w, stride_h, stride_w,
     pad_top, pad_left, pad_bottom, pad_right, dilation_h, dilation_w, count_include_pad, inner, outer) = geometry
    real = x.dtype.type
    n = job // OH
    top = (job - n * OH) * stride_h - pad_top
    first_r = first_inside(top, dilation_h)
    rows = max(0, end_inside(top, H, kernel_h, dilation_h) - first_r)
    count_h = _counted(top, H, kernel_h, dilation_h, pad_bottom, count_include_pad)
    step_h, step_w, stride = dilation_h * W * C, dilation_w * C, stride_w * C
    ow = 0
    while ow < OW:
        windows = outer - ow if inner <= ow < outer else 1
        left = ow * stride_w - pad_left
        first_s = first_inside(left, dilation_w)
        columns = max(0, end_inside(left, W, kernel_w, dilation_w) - first_s)
        counted = count_h * _counted(left, W, kernel_w, dilation_w, pad_right, count_include_pad)
        share = real(1) / real(max(1, counted))
        corner = ((n * H + top + first_r * dilation_h) * W + left + first_s * dilation_w) * C
        to = (job * OW + ow) * C
        # the usual widths as constants, for which a loop disappears
        if columns == 2:
            _average_run(x, corner, windows, stride, rows, 2, step_h, step_w, share, y, to, C)
        elif columns == 3:
            _average_run(x, corner, windows, stride, rows, 3, step_h, step_w, share, y, to, C)
        else:
            _average_run(x, corner, windows, stride, rows, columns, step_h, step_w, share, y, to, C)
        ow += windows


@kernel
@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def average_pool(x, batch, geometry, threads, y):
    """The average of each window.

    Shapes   x (N, H, W, C); y (N, OH, OW, C), flat; geometry (H, W, C, OH, OW, kernel_h, kernel_w, stride_h, stride_w,
             pad_top, pad_left, pad_bottom, pad_right, dilation_h, dilation_w, count_include_pad, inner, outer), inner and
             outer being the range of windows along W that lie wholly inside
    Writes   y (overwritten)
    Threads  one iteration per (n, oh), each owns its row of y
    Source   ONNX AveragePool-19; with count_include_pad the padding counts, but not what hangs over it (ceil_mode); a
             window that counts nothing gives 0
    """
    jobs = batch * geometry[3]
    if threads > 1:
        for index in numba.prange(jobs):
            job = np.int64(index)
            _average_row(x, job, geometry, y)
    else:
        for job in range(jobs):
            _average_row(x, job, geometry, y)


@entry("x< y> H W C OH OW kernel_h kernel_w stride_h stride_w pad_top pad_left pad_bottom pad_right dilation_h "
       "dilation_w count_include_pad")
def forward(arena, row, batch):
    row = fields_of(row)
    size = batch * row.OH * row.OW * row.C
    inner, outer = interior(row.W, row.OW, row.kernel_w, row.dilation_w, row.stride_w, row.pad_left)
    geometry = (row.H, row.W, row.C, row.OH, row.OW, row.kernel_h, row.kernel_w, row.stride_h, row.stride_w,
                row.pad_top, row.pad_left, row.pad_bottom, row.pad_right, row.dilation_h, row.dilation_w,
                row.count_include_pad, inner, outer)
    average_pool(view(arena, row.x, batch * row.H * row.W * row.C), batch, geometry,
                 threads_for(arena, size * row.kernel_h * row.kernel_w), view(arena, row.y, size))


@helper
def _spread_run(dy, at, windows, stride, columns, step_w, share, add, dx, to, C):
    """One row of a run of windows, of which `columns` positions lie inside."""
    for _ in range(windows):
        for c in range(0, C, lanes(dy)):
            part = vector_mul(vector_read(dy, dy, at + c, C - c), vector_of(dy, share))
            for s in range(columns):
                place = to + c + s * step_w
                value = part
                if add:
                    value = vector_add(vector_read(dx, dx, place, C - c), value)
                vector_write(value, dx, place, C - c)
        at += C
        to += stride


@helper
def _spread_row(dy, job, geometry, accumulate, dx):
    """Row ih of sample n, where job = n * H + ih."""
    (H, W, C, OH, OW, kernel_h, kernel_w, stride_h, stride_w,
     pad_top, pad_left, pad_bottom, pad_right, dilation_h, dilation_w, count_include_pad, inner, outer) = geometry
    real = dy.dtype.type
    n = job // H
    position = job - n * H + pad_top
    tiled = kernel_h == stride_h and kernel_w == stride_w and dilation_h == 1 and dilation_w == 1
    add = prepare_row(dx, job, W, C, stride_w, pad_left, position < OH * stride_h, OW, tiled, accumulate)
    step_w, stride = dilation_w * C, stride_w * C
    for oh in range(min(OH - 1, position // stride_h), -1, -1):
        distance = position - oh * stride_h
        r = distance if dilation_h == 1 else distance // dilation_h
        if r >= kernel_h:
            break
        count_h = _counted(oh * stride_h - pad_top, H, kernel_h, dilation_h, pad_bottom, count_include_pad)
        ow = 0 if r * dilation_h == distance else OW
        while ow < OW:
            windows = outer - ow if inner <= ow < outer else 1
            left = ow * stride_w - pad_left
            counted = count_h * _counted(left, W, kernel_w, dilation_w, pad_right, count_include_pad)
            share = real(1) / real(max(1, counted))
            first_s = first_inside(left, dilation_w)
            columns = max(0, end_inside(left, W, kernel_w, dilation_w) - first_s)
            at, to = ((n * OH + oh) * OW + ow) * C, (job * W + left + first_s * dilation_w) * C
            # the usual widths as constants, for which a loop disappears
            if columns == 2:
                _spread_run(dy, at, windows, stride, 2, step_w, share, add, dx, to, C)
            elif columns == 3:
                _spread_run(dy, at, windows, stride, 3, step_w, share, add, dx, to, C)
            else:
                _spread_run(dy, at, windows, stride, columns, step_w, share, add, dx, to, C)
            ow += windows


@kernel
@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def average_unpool(dy, batch, geometry, accumulate, threads, dx):
    """The gradient of average pooling: dy spread evenly over each window; overlapping windows add up.

    Shapes   dy (N, OH, OW, C); dx (N, H, W, C), flat; geometry as for average_pool
    Writes   dx (overwritten, or added to with accumulate)
    Threads  one iteration per (n, ih), each owns its row of dx
    Source   seed, "Backpropagation through Average-Pooling"
    """
    jobs = batch * geometry[0]
    if threads > 1:
        for index in numba.prange(jobs):
            job = np.int64(index)
            _spread_row(dy, job, geometry, accumulate, dx)
    else:
        for job in range(jobs):
            _spread_row(dy, job, geometry, accumulate, dx)


@entry("dy< dx= H W C OH OW kernel_h kernel_w stride_h stride_w pad_top pad_left pad_bottom pad_right dilation_h "
       "dilation_w count_include_pad accumulate")
def backward(arena, row, batch):
    row = fields_of(row)
    size = batch * row.OH * row.OW * row.C
    inner, outer = interior(row.W, row.OW, row.kernel_w, row.dilation_w, row.stride_w, row.pad_left)
    geometry = (row.H, row.W, row.C, row.OH, row.OW, row.kernel_h, row.kernel_w, row.stride_h, row.stride_w,
                row.pad_top, row.pad_left, row.pad_bottom, row.pad_right, row.dilation_h, row.dilation_w,
                row.count_include_pad, inner, outer)
    average_unpool(view(arena, row.dy, size), batch, geometry, row.accumulate,
                   threads_for(arena, size * row.kernel_h * row.kernel_w),
                   view(arena, row.dx, batch * row.H * row.W * row.C))


@helper
def _global_average(x, n, c, pixels, C, y):
    """The averages of one vector of channels, summed in blocks of 64 pixels so that no chain of additions is long."""
    real = x.dtype.type
    zero = vector_of(x, real(0))
    total = zero
    for block in range(0, pixels, PIXELS):
        end = min(pixels, block + PIXELS)
        first, second, third, fourth = zero, zero, zero, zero
        p = block
        while p + 4 <= end:
            at = (n * pixels + p) * C + c
            first = vector_add(first, vector_read(x, x, at, C - c))
            second = vector_add(second, vector_read(x, x, at + C, C - c))
            third = vector_add(third, vector_read(x, x, at + 2 * C, C - c))
            fourth = vector_add(fourth, vector_read(x, x, at + 3 * C, C - c))
            p += 4
        while p < end:
            first = vector_add(first, vector_read(x, x, (n * pixels + p) * C + c, C - c))
            p += 1
        total = vector_add(total, vector_add(vector_add(first, second), vector_add(third, fourth)))
    vector_write(vector_div(total, vector_of(x, real(pixels))), y, n * C + c, C - c)


@kernel
@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def global_average_pool(x, batch, pixels, C, threads, y):
    """The average over all pixels.

    Shapes   x (N, pixels, C); y (N, C), flat
    Writes   y (overwritten)
    Threads  one iteration per sample and vector of channels, each owns its part of y
    Source   ONNX GlobalAveragePool
    """
    step = lanes(x)
    blocks = (C + step - 1) // step
    if threads > 1:
        for index in numba.prange(batch * blocks):
            job = np.int64(index)
            _global_average(x, job // blocks, job % blocks * step, pixels, C, y)
    else:
        for job in range(batch * blocks):
            _global_average(x, job // blocks, job % blocks * step, pixels, C, y)


@entry("x< y> pixels C")
def forward_global(arena, row, batch):
    row = fields_of(row)
    size = batch * row.pixels * row.C
    global_average_pool(view(arena, row.x, size), batch, row.pixels, row.C, threads_for(arena, size),
                        view(arena, row.y, batch * row.C))


@helper
def _global_spread(dy, n, begin, end, pixels, C, accumulate, dx):
    """Pixels begin to end of sample n."""
    divisor = vector_of(dy, dy.dtype.type(pixels))
    for c in range(0, C, lanes(dy)):
        share = vector_div(vector_read(dy, dy, n * C + c, C - c), divisor)
        for p in range(begin, end):
            to = (n * pixels + p) * C + c
            value = vector_add(share, vector_read(dx, dx, to, C - c)) if accumulate else share
            vector_write(value, dx, to, C - c)


@kernel
@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def global_average_unpool(dy, batch, pixels, C, accumulate, threads, dx):
    """The gradient of the average over all pixels.

    Shapes   dy (N, C); dx (N, pixels, C), flat
    Writes   dx (overwritten, or added to with accumulate)
    Threads  one iteration per sample and 64 pixels, each owns its part of dx
    Source   seed, "Backpropagation through Average-Pooling", the window being the whole image
    """
    blocks = (pixels + PIXELS - 1) // PIXELS
    if threads > 1:
        for index in numba.prange(batch * blocks):
            job = np.int64(index)
            begin = job % blocks * PIXELS
            _global_spread(dy, job // blocks, begin, min(pixels, begin + PIXELS), pixels, C, accumulate, dx)
    else:
        for job in range(batch * blocks):
            begin = job % blocks * PIXELS
            _global_spread(dy, job // blocks, begin, min(pixels, begin + PIXELS), pixels, C, accumulate, dx)


@entry("dy< dx= pixels C accumulate")
def backward_global(arena, row, batch):
    row = fields_of(row)
    size = batch * row.pixels * row.C
    global_average_unpool(view(arena, row.dy, batch * row.C), batch, row.pixels, row.C, row.accumulate,
                          threads_for(arena, size), view(arena, row.dx, size))
