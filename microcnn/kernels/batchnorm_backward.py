"""Batch normalisation backward, through frozen statistics or through those of the batch, and through the clamp behind it.

Tensors are `rows` x width, as in batchnorm_statistics.py, which says what lies where in scratch.
"""
import numba
import numpy as np

from .batchnorm import deviation, frozen_constants
from .batchnorm_statistics import (
    BIAS,
    FACTOR,
    FIRST,
    MEAN,
    SECOND,
    block_rows,
    chunk_count,
    repeat,
    repeat_statistics,
    scratch_size,
    sums_of,
    sweep_rows,
)
from .compiler import helper, inlined, kernel
from .entry import entry, fields_of, number, threads_for, view
from .simd import lanes
from .vector import (
    vector_add,
    vector_div,
    vector_fma,
    vector_mul,
    vector_of,
    vector_sub,
    vector_take,
    vector_where_greater,
    vector_write,
)


@helper
def _masked(y, dy, at, count, masked, low, high):
    """One vector of dy, zero where the clamp held y."""
    value = vector_take(dy, at, count)
    if masked:
        real = dy.dtype.type
        output, zero = vector_take(y, at, count), vector_of(dy, real(0))
        value = vector_where_greater(output, vector_of(dy, real(low)), value, zero)
        value = vector_where_greater(vector_of(dy, real(high)), output, value, zero)
    return value


@helper
def put_or_add(value, target, at, count, accumulate):
    """target[at : at + count] = value, or += with accumulate."""
    vector_write(vector_add(value, vector_take(target, at, count)) if accumulate else value, target, at, count)


@helper
def _sums_tile(x, y, dy, begin, end, width, masked, low, high, first, scratch, to):
    """Add the sums of dz and of dz * (x - mean) over rows begin to end to scratch[to : to + 2 width]; or put, if first."""
    zero = vector_of(dy, dy.dtype.type(0))
    for c in range(0, width, lanes(dy)):
        count = width - c
        plain, weighted, centre = zero, zero, vector_take(scratch, MEAN * width + c, count)
        for at in range(begin * width + c, end * width, width):
            dz = _masked(y, dy, at, count, masked, low, high)
            plain = vector_add(plain, dz)
            weighted = vector_fma(dz, vector_sub(vector_take(x, at, count), centre), weighted)
        _add_sums(plain, weighted, scratch, to + c, width, count, first)


@helper
def _add_sums(plain, weighted, scratch, to, width, count, first):
    """Both sums of one vector of a row's numbers, put to their places or added to what is there."""
    if not first:
        plain = vector_add(plain, vector_take(scratch, to, count))
        weighted = vector_add(weighted, vector_take(scratch, to + width, count))
    vector_write(plain, scratch, to, count)
    vector_write(weighted, scratch, to + width, count)


@helper
def _scale_tile(y, dy, begin, end, width, masked, low, high, accumulate, scratch, dx):
    """dx = dz * factor for rows begin to end."""
    step = lanes(dy)
    for at in range(begin * width, end * width, width):
        for c in range(0, width, step):
            count = width - c
            value = vector_mul(_masked(y, dy, at + c, count, masked, low, high),
                               vector_take(scratch, FACTOR * width + c, count))
            put_or_add(value, dx, at + c, count, accumulate)


@helper
def _sums_chunk(x, y, dy, begin, end, width, masked, low, high, need_dx, need_sums, accumulate, scratch, to, dx):
    """Rows begin to end, a few at a time: their sums, then their dx, which may take the place of dy."""
    tile = sweep_rows(dy.size // width, width)
    for row in range(begin, end, tile):
        last = min(row + tile, end)
        if need_sums:
            _sums_tile(x, y, dy, row, last, width, masked, low, high, row == begin, scratch, to)
        if need_dx:
            _scale_tile(y, dy, row, last, width, masked, low, high, accumulate, scratch, dx)


@kernel
@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def backward_sums(x, y, dy, rows, C, width, masked, low, high, need_dx, need_sums, accumulate, threads, scratch, dx):
    """The sums over the rows that batch norm's gradients are made of, and dx where the statistics are frozen.

    Shapes   x, y, dy, dx (rows, width), flat; dx may be dy; scratch: mean and factor in their places
    Writes   scratch: the sums of dz and dz * (x - mean), with need_sums; dx = dz * factor (overwritten, or added to
             with accumulate), with need_dx; dz is dy where low < y < high (if masked)
    Threads  one iteration per chunk of rows, each owns its part of scratch and dx; added in order
    Source   the derivative of ONNX BatchNormalization-15
    """
    chunks = chunk_count(rows, width)
    if threads > 1:
        for index in numba.prange(chunks):
            chunk = np.int64(index)
            _sums_chunk(x, y, dy, chunk * rows // chunks, (chunk + 1) * rows // chunks, width, masked, low, high,
                        need_dx, need_sums, accumulate, scratch, sums_of(chunk, width), dx)
    else:
        for chunk in range(chunks):
            _sums_chunk(x, y, dy, chunk * rows // chunks, (chunk + 1) * rows // chunks, width, masked, low, high,
                        need_dx, need_sums, accumulate, scratch, sums_of(chunk, width), dx)
    if need_sums:
        _add_chunks(scratch, chunks, C, width)


@helper
def _add_chunks(scratch, chunks, C, width):
    """The sums of all chunks, in order, and of the pixels of a row, into the first chunk's place."""
    to = sums_of(0, width)
    for i in range(0, 2 * width, lanes(scratch)):
        total = vector_take(scratch, to + i, 2 * width - i)
        for chunk in range(1, chunks):
            total = vector_add(total, vector_take(scratch, sums_of(chunk, width) + i, 2 * width - i))
        vector_write(total, scratch, to + i, 2 * width - i)
    for c in range(0, C, lanes(scratch)):
        for at in (to + c, to + width + c):
            total = vector_take(scratch, at, C - c)
            for pixel in range(C, width, C):
                total = vector_add(total, vector_take(scratch, at + pixel, C - c))
            vector_write(total, scratch, at, C - c)


@entry("x< scale< mean< var< y< dy< dx= dscale= dbias= scratch> pixels C together eps low high need_dx need_params "
       "accumulate accumulate_scale accumulate_bias")
def backward_frozen(arena, row, batch):
    """pixels must be a multiple of together. scratch: scratch_size. x, dscale and dbias may be absent without need_params, dx
    without need_dx."""
    row = fields_of(row)
    C, width = row.C, row.C * row.together
    size = batch * row.pixels * C
    rows = size // width
    scratch, variance = view(arena, row.scratch, scratch_size(rows, width)), view(arena, row.var, C)
    dy = view(arena, row.dy, size)
    frozen_constants(view(arena, row.mean, C), view(arena, row.scale, C), variance, C, width, number(row.eps), scratch)
    backward_sums(view(arena, row.x, size), view(arena, row.y, size), dy, rows, C, width, row.y >= 0, number(row.low),
                  number(row.high), row.need_dx, row.need_params, row.accumulate, threads_for(arena, 2 * size), scratch,
                  view(arena, row.dx, size))
    if row.need_params:
        dscale, dbias, sums = view(arena, row.dscale, C), view(arena, row.dbias, C), sums_of(0, width)
        for c in range(0, C, lanes(dy)):
            weighted = vector_take(scratch, sums + width + c, C - c)
            weighted = vector_div(weighted, deviation(variance, c, C, number(row.eps)))
            put_or_add(weighted, dscale, c, C - c, row.accumulate_scale)
            put_or_add(vector_take(scratch, sums + c, C - c), dbias, c, C - c, row.accumulate_bias)


@helper
def _passed(centred, factor, shift, dz, clamps, low, high):
    """dz, zero where the clamp held the output, which is made again from x: cheaper than reading it from memory."""
    if not clamps:
        return dz
    zero, output = vector_sub(dz, dz), vector_fma(centred, factor, shift)
    return vector_where_greater(high, output, vector_where_greater(output, low, dz, zero), zero)


@helper
def _batch_sums_chunk(x, dy, begin, end, width, clamps, low, high, scratch, to):
    """The sums of dz and of dz * (x - mean) over rows begin to end into scratch[to : to + 2 width]."""
    tile, step = sweep_rows(x.size // width, width), lanes(dy)
    whole = width - width % step
    row = begin
    while row < end:
        last, first = min(row + tile, end), row == begin
        c = 0
        while c < whole:
            _batch_sums_tile(x, dy, row, last, width, c, step, clamps, low, high, scratch, to, first)
            c += step
        if c < width:
            _batch_sums_tile(x, dy, row, last, width, c, width - c, clamps, low, high, scratch, to, first)
        row = last


@inlined
def _batch_sums_tile(x, dy, begin, end, width, c, count, clamps, low, high, scratch, to, first):
    """_batch_sums_chunk of some rows and one vector of a row's numbers, from c on; put if these are the first rows, else
    added."""
    real = dy.dtype.type
    zero, least, most = vector_of(dy, real(0)), vector_of(dy, real(low)), vector_of(dy, real(high))
    plain, weighted, centre = zero, zero, vector_take(scratch, MEAN * width + c, count)
    factor, shift = vector_take(scratch, FACTOR * width + c, count), vector_take(scratch, BIAS * width + c, count)
    at = begin * width + c
    while at < end * width:
        centred = vector_sub(vector_take(x, at, count), centre)
        dz = _passed(centred, factor, shift, vector_take(dy, at, count), clamps, least, most)
        plain = vector_add(plain, dz)
        weighted = vector_fma(dz, centred, weighted)
        at += width
    _add_sums(plain, weighted, scratch, to + c, width, count, first)


@kernel
@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def backward_batch_sums(x, dy, rows, C, width, clamps, low, high, threads, scratch):
    """The sums over the rows that batch norm's gradients are made of, where it ran on the batch's statistics.

    Shapes   x, dy (rows, width), flat; scratch: mean, bias and factor in their places
    Writes   scratch: the sums of dz and dz * (x - mean); dz is dy where low < the output < high (if clamps)
    Threads  one iteration per chunk of rows, each owns its part of scratch; added in order
    Source   Ioffe and Szegedy 2015, section 3
    """
    chunks = chunk_count(rows, width)
    if threads > 1:
        for index in numba.prange(chunks):
            chunk = np.int64(index)
            _batch_sums_chunk(x, dy, chunk * rows // chunks, (chunk + 1) * rows // chunks, width, clamps, low, high, scratch,
                              sums_of(chunk, width))
    else:
        for chunk in range(chunks):
            _batch_sums_chunk(x, dy, chunk * rows // chunks, (chunk + 1) * rows // chunks, width, clamps, low, high, scratch,
                              sums_of(chunk, width))
    _add_chunks(scratch, chunks, C, width)


@helper
def _dx_rows(x, dy, scratch, width, begin, end, clamps, low, high, accumulate, dx):
    """dx = (dz - first - (x - mean) * second) * factor for rows begin to end, from the last block to the first."""
    tile, block, step = sweep_rows(x.size // width, width), block_rows(width), lanes(dy)
    whole = width - width % step
    for left in range((end - begin + block - 1) // block, 0, -1):
        row = begin + (left - 1) * block
        stop = min(row + block, end)
        while row < stop:
            last = min(row + tile, stop)
            c = 0
            while c < whole:
                _dx_tile(x, dy, scratch, row, last, width, c, step, clamps, low, high, accumulate, dx)
                c += step
            if c < width:
                _dx_tile(x, dy, scratch, row, last, width, c, width - c, clamps, low, high, accumulate, dx)
            row = last


@inlined
def _dx_tile(x, dy, scratch, begin, end, width, c, count, clamps, low, high, accumulate, dx):
    """_dx_rows of some rows and one vector of a row's numbers, from c on."""
    real = dy.dtype.type
    least, most = vector_of(dy, real(low)), vector_of(dy, real(high))
    centre, shift = vector_take(scratch, MEAN * width + c, count), vector_take(scratch, BIAS * width + c, count)
    factor = vector_take(scratch, FACTOR * width + c, count)
    first, second = vector_take(scratch, FIRST * width + c, count), vector_take(scratch, SECOND * width + c, count)
    at = begin * width + c
    while at < end * width:
        centred = vector_sub(vector_take(x, at, count), centre)
        dz = _passed(centred, factor, shift, vector_take(dy, at, count), clamps, least, most)
        value = vector_sub(vector_sub(dz, first), vector_mul(centred, second))
        put_or_add(vector_mul(value, factor), dx, at, count, accumulate)
        at += width


@kernel
@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def backward_through_statistics(x, dy, rows, width, clamps, low, high, accumulate, threads, scratch, dx):
    """The gradient of the input where mean and variance depend on it.

    Shapes   x, dy, dx (rows, width), flat; dx may be dy; scratch: mean, bias, factor, first, second in their places
    Writes   dx (overwritten, or added to with accumulate)
    Threads  one iteration per thread, each owns its rows of dx
    Source   Ioffe and Szegedy 2015, section 3
    """
    if threads > 1:
        for index in numba.prange(threads):
            part = np.int64(index)
            _dx_rows(x, dy, scratch, width, part * rows // threads, (part + 1) * rows // threads, clamps, low, high,
                     accumulate, dx)
    else:
        _dx_rows(x, dy, scratch, width, 0, rows, clamps, low, high, accumulate, dx)


@helper
def _finish_backward(scale, saved, count_of_rows, C, width, need_params, accumulate_scale, accumulate_bias, scratch, dscale,
                     dbias):
    """The parameters' gradients, and what the gradient of the input is made of, from the sums in scratch."""
    rows, sums = vector_of(scale, scale.dtype.type(count_of_rows)), sums_of(0, width)
    for c in range(0, C, lanes(scale)):
        count = C - c
        inverse = vector_take(saved, C + c, count)
        total = vector_take(scratch, sums + c, count)
        weighted = vector_mul(vector_take(scratch, sums + width + c, count), inverse)
        if need_params:
            put_or_add(weighted, dscale, c, count, accumulate_scale)
            put_or_add(total, dbias, c, count, accumulate_bias)
        vector_write(vector_div(total, rows), scratch, FIRST * width + c, count)
        vector_write(vector_div(vector_mul(weighted, inverse), rows), scratch, SECOND * width + c, count)
    repeat(scratch, FIRST * width, C, scratch, FIRST, width)
    repeat(scratch, SECOND * width, C, scratch, SECOND, width)


@entry("x< scale< bias< saved< dy< dx= dscale= dbias= scratch> pixels C together low high clamps need_dx need_params "
       "accumulate accumulate_scale accumulate_bias")
def backward_batch(arena, row, batch):
    """pixels must be a multiple of together. scratch: scratch_size. saved: from forward_batch. dscale and dbias may be absent
    without need_params."""
    row = fields_of(row)
    C, width = row.C, row.C * row.together
    size = batch * row.pixels * C
    rows, low, high = size // width, number(row.low), number(row.high)
    scratch, saved = view(arena, row.scratch, scratch_size(rows, width)), view(arena, row.saved, 2 * C)
    scale = view(arena, row.scale, C)
    x, dy, dx = view(arena, row.x, size), view(arena, row.dy, size), view(arena, row.dx, size)
    threads = threads_for(arena, 2 * size)
    repeat_statistics(scale, saved, C, width, scratch)         # as forward had it, to the last bit
    repeat(view(arena, row.bias, C), 0, C, scratch, BIAS, width)
    backward_batch_sums(x, dy, rows, C, width, row.clamps, low, high, threads, scratch)
    _finish_backward(scale, saved, rows * row.together, C, width, row.need_params, row.accumulate_scale, row.accumulate_bias,
                     scratch, view(arena, row.dscale, C), view(arena, row.dbias, C))
    if row.need_dx:
        backward_through_statistics(x, dy, rows, width, row.clamps, low, high, row.accumulate, threads, scratch, dx)
