"""Batch normalisation backward, through frozen statistics or through those of the batch, and through the clamp behind it."""
import numba
import numpy as np

from .batchnorm import deviation, factors
from .batchnorm_statistics import FACTOR, FIRST, SCRATCH, SECOND, SUMS, block_rows, chunk_count, sweep_rows
from .cache import helper, inlined, kernel
from .entry import entry, fields_of, number, threads_for, view
from .layout import copy_run
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
def _put(value, target, at, count, accumulate):
    """target[at : at + count] = value, or += with accumulate."""
    vector_write(vector_add(value, vector_take(target, at, count)) if accumulate else value, target, at, count)


@helper
def _sums_tile(x, mean, y, dy, begin, end, C, masked, low, high, first, scratch, to):
    """Add the sums of dz and of dz * (x - mean) over rows begin to end to scratch[to : to + 2 C]; or put, if first."""
    zero = vector_of(dy, dy.dtype.type(0))
    for c in range(0, C, lanes(dy)):
        count = C - c
        plain, weighted, centre = zero, zero, vector_take(mean, c, count)
        for at in range(begin * C + c, end * C, C):
            dz = _masked(y, dy, at, count, masked, low, high)
            plain = vector_add(plain, dz)
            weighted = vector_fma(dz, vector_sub(vector_take(x, at, count), centre), weighted)
        _add_sums(plain, weighted, scratch, to + c, C, count, first)


@helper
def _add_sums(plain, weighted, scratch, to, C, count, first):
    """Both sums of one vector of channels, put to their places or added to what is there."""
    if not first:
        plain = vector_add(plain, vector_take(scratch, to, count))
        weighted = vector_add(weighted, vector_take(scratch, to + C, count))
    vector_write(plain, scratch, to, count)
    vector_write(weighted, scratch, to + C, count)


@helper
def _scale_tile(y, dy, begin, end, C, masked, low, high, accumulate, scratch, dx):
    """dx = dz * factor for rows begin to end."""
    step = lanes(dy)
    for at in range(begin * C, end * C, C):
        for c in range(0, C, step):
            count = C - c
            value = vector_mul(_masked(y, dy, at + c, count, masked, low, high),
                               vector_take(scratch, FACTOR * C + c, count))
            _put(value, dx, at + c, count, accumulate)


@helper
def _sums_chunk(x, mean, y, dy, begin, end, C, masked, low, high, need_dx, need_sums, accumulate, scratch, to, dx):
    """Rows begin to end, a few at a time: their sums, then their dx, which may take the place of dy."""
    tile = sweep_rows(x.size // C, C)
    for row in range(begin, end, tile):
        last = min(row + tile, end)
        if need_sums:
            _sums_tile(x, mean, y, dy, row, last, C, masked, low, high, row == begin, scratch, to)
        if need_dx:
            _scale_tile(y, dy, row, last, C, masked, low, high, accumulate, scratch, dx)


@kernel
@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def backward_sums(x, mean, y, dy, rows, C, masked, low, high, need_dx, need_sums, accumulate, threads, scratch, dx):
    """The sums over the rows that batch norm's gradients are made of, and dx where the statistics are frozen.

    Shapes   x, y, dy, dx (rows, C); mean (C,), flat; dx may be dy
    Writes   scratch: the sums of dz and dz * (x - mean), with need_sums; dx = dz * factor (overwritten, or added to
             with accumulate), with need_dx; dz is dy where low < y < high (if masked)
    Threads  one iteration per chunk of rows, each owns its part of scratch and dx; added in order
    Source   the derivative of ONNX BatchNormalization-15
    """
    chunks = chunk_count(rows, C)
    if threads > 1:
        for index in numba.prange(chunks):
            chunk = np.int64(index)
            _sums_chunk(x, mean, y, dy, chunk * rows // chunks, (chunk + 1) * rows // chunks, C, masked, low, high,
                        need_dx, need_sums, accumulate, scratch, 2 * chunk * C, dx)
    else:
        for chunk in range(chunks):
            _sums_chunk(x, mean, y, dy, chunk * rows // chunks, (chunk + 1) * rows // chunks, C, masked, low, high,
                        need_dx, need_sums, accumulate, scratch, 2 * chunk * C, dx)
    if need_sums:
        _add_chunks(scratch, chunks, C)


@helper
def _add_chunks(scratch, chunks, C):
    """The sums of all chunks, in order, into the first chunk's place."""
    for i in range(0, 2 * C, lanes(scratch)):
        total = vector_take(scratch, i, 2 * C - i)
        for chunk in range(1, chunks):
            total = vector_add(total, vector_take(scratch, 2 * chunk * C + i, 2 * C - i))
        vector_write(total, scratch, i, 2 * C - i)


@entry("x< scale< mean< var< y< dy< dx= dscale= dbias= scratch> pixels C eps low high need_dx need_params "
       "accumulate accumulate_params")
def backward_frozen(arena, row, batch):
    """scratch: SCRATCH * C reals. x, dscale and dbias may be absent without need_params, dx without need_dx."""
    row = fields_of(row)
    rows, C = batch * row.pixels, row.C
    size = rows * C
    scratch, variance = view(arena, row.scratch, SCRATCH * C), view(arena, row.var, C)
    dy = view(arena, row.dy, size)
    factors(view(arena, row.scale, C), variance, C, number(row.eps), scratch, FACTOR * C)
    backward_sums(view(arena, row.x, size), view(arena, row.mean, C), view(arena, row.y, size), dy, rows, C, row.y >= 0,
                  number(row.low), number(row.high), row.need_dx, row.need_params, row.accumulate,
                  threads_for(arena, 2 * size), scratch, view(arena, row.dx, size))
    if row.need_params:
        dscale, dbias = view(arena, row.dscale, C), view(arena, row.dbias, C)
        for c in range(0, C, lanes(dy)):
            weighted = vector_take(scratch, C + c, C - c)
            weighted = vector_div(weighted, deviation(variance, c, C, number(row.eps)))
            _put(weighted, dscale, c, C - c, row.accumulate_params)
            _put(vector_take(scratch, c, C - c), dbias, c, C - c, row.accumulate_params)


@helper
def _passed(centred, factor, shift, dz, clamps, low, high):
    """dz, zero where the clamp held the output, which is made again from x: cheaper than reading it from memory."""
    if not clamps:
        return dz
    zero, output = vector_sub(dz, dz), vector_fma(centred, factor, shift)
    return vector_where_greater(high, output, vector_where_greater(output, low, dz, zero), zero)


@helper
def _batch_sums_chunk(x, mean, bias, dy, begin, end, C, clamps, low, high, scratch, to):
    """The sums of dz and of dz * (x - mean) over rows begin to end into scratch[to : to + 2 C]."""
    tile, step = sweep_rows(x.size // C, C), lanes(dy)
    whole = C - C % step
    row = begin
    while row < end:
        last, first = min(row + tile, end), row == begin
        c = 0
        while c < whole:
            _batch_sums_tile(x, mean, bias, dy, row, last, C, c, step, clamps, low, high, scratch, to, first)
            c += step
        if c < C:
            _batch_sums_tile(x, mean, bias, dy, row, last, C, c, C - c, clamps, low, high, scratch, to, first)
        row = last


@inlined
def _batch_sums_tile(x, mean, bias, dy, begin, end, C, c, count, clamps, low, high, scratch, to, first):
    """_batch_sums_chunk of some rows and one vector of channels, from c on; put if these are the first rows, else added."""
    real = dy.dtype.type
    zero, least, most = vector_of(dy, real(0)), vector_of(dy, real(low)), vector_of(dy, real(high))
    plain, weighted, centre = zero, zero, vector_take(mean, c, count)
    factor, shift = vector_take(scratch, FACTOR * C + c, count), vector_take(bias, c, count)
    at = begin * C + c
    while at < end * C:
        centred = vector_sub(vector_take(x, at, count), centre)
        dz = _passed(centred, factor, shift, vector_take(dy, at, count), clamps, least, most)
        plain = vector_add(plain, dz)
        weighted = vector_fma(dz, centred, weighted)
        at += C
    _add_sums(plain, weighted, scratch, to + c, C, count, first)


@kernel
@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def backward_batch_sums(x, mean, bias, dy, rows, C, clamps, low, high, threads, scratch):
    """The sums over the rows that batch norm's gradients are made of, where it ran on the batch's statistics.

    Shapes   x, dy (rows, C); mean, bias (C,), flat; scratch: the factor (C,) in its place
    Writes   scratch: the sums of dz and dz * (x - mean); dz is dy where low < the output < high (if clamps)
    Threads  one iteration per chunk of rows, each owns its part of scratch; added in order
    Source   Ioffe and Szegedy 2015, section 3
    """
    chunks = chunk_count(rows, C)
    if threads > 1:
        for index in numba.prange(chunks):
            chunk = np.int64(index)
            _batch_sums_chunk(x, mean, bias, dy, chunk * rows // chunks, (chunk + 1) * rows // chunks, C, clamps, low, high,
                              scratch, 2 * chunk * C)
    else:
        for chunk in range(chunks):
            _batch_sums_chunk(x, mean, bias, dy, chunk * rows // chunks, (chunk + 1) * rows // chunks, C, clamps, low, high,
                              scratch, 2 * chunk * C)
    _add_chunks(scratch, chunks, C)


@helper
def _wide_row(C, like):
    """The numbers of as many rows as fit into one register, C where that is one row.

    A narrower row would be stored with a mask; where dx takes dy's place, the next load, whose masked half lies there, would
    wait for that store to reach the cache.
    """
    together = lanes(like) // C
    return C * together if together > 1 and 5 * C * together <= SUMS * C else C


@helper
def _repeat(source, at, C, target, to, width):
    """target[to : to + width] = source[at : at + C], again and again."""
    for i in range(0, width, C):
        copy_run(source, at, target, to + i, C)


@helper
def _dx_rows(x, dy, constants, width, begin, end, C, clamps, low, high, accumulate, dx):
    """dx = (dz - first - (x - mean) * second) * factor for rows begin to end, from the last block to the first.

    constants: mean, bias, factor, first and second, each from the next multiple of width on.
    """
    tile, block, step = sweep_rows(x.size // C, C), block_rows(C), lanes(dy)
    whole = C - C % step
    for left in range((end - begin + block - 1) // block, 0, -1):
        row = begin + (left - 1) * block
        stop = min(row + block, end)
        while row < stop:
            last = min(row + tile, stop)
            c = 0
            while c < whole:
                _dx_tile(x, dy, constants, width, row, last, C, c, step, clamps, low, high, accumulate, dx)
                c += step
            if c < C:
                _dx_tile(x, dy, constants, width, row, last, C, c, C - c, clamps, low, high, accumulate, dx)
            row = last


@inlined
def _dx_tile(x, dy, constants, width, begin, end, C, c, count, clamps, low, high, accumulate, dx):
    """_dx_rows of some rows and one vector of channels, from c on."""
    real = dy.dtype.type
    least, most = vector_of(dy, real(low)), vector_of(dy, real(high))
    centre, shift = vector_take(constants, c, count), vector_take(constants, width + c, count)
    factor = vector_take(constants, 2 * width + c, count)
    first, second = vector_take(constants, 3 * width + c, count), vector_take(constants, 4 * width + c, count)
    at = begin * C + c
    while at < end * C:
        centred = vector_sub(vector_take(x, at, count), centre)
        dz = _passed(centred, factor, shift, vector_take(dy, at, count), clamps, least, most)
        value = vector_sub(vector_sub(dz, first), vector_mul(centred, second))
        _put(vector_mul(value, factor), dx, at, count, accumulate)
        at += C


@kernel
@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def backward_through_statistics(x, mean, bias, dy, rows, C, clamps, low, high, accumulate, threads, scratch, dx):
    """The gradient of the input where mean and variance depend on it.

    Shapes   x, dy, dx (rows, C); mean, bias (C,), flat; dx may be dy; scratch: factor, first, second (C,) in their places
    Writes   dx (overwritten, or added to with accumulate); the sums in scratch (undefined)
    Threads  one iteration per thread, each owns its rows of dx
    Source   Ioffe and Szegedy 2015, section 3
    """
    width = _wide_row(C, dy)
    _repeat(mean, 0, C, scratch, 0, width)
    _repeat(bias, 0, C, scratch, width, width)
    for place in range(3):
        _repeat(scratch, (FACTOR + place) * C, C, scratch, (2 + place) * width, width)
    wide = rows // (width // C)
    if threads > 1:
        for index in numba.prange(threads):
            part = np.int64(index)
            _dx_rows(x, dy, scratch, width, part * wide // threads, (part + 1) * wide // threads, width, clamps, low, high,
                     accumulate, dx)
    else:
        _dx_rows(x, dy, scratch, width, 0, wide, width, clamps, low, high, accumulate, dx)
    _dx_rows(x, dy, scratch, width, wide * (width // C), rows, C, clamps, low, high, accumulate, dx)


@helper
def _finish_backward(scale, saved, rows, C, need_params, accumulate_params, scratch, dscale, dbias):
    """The parameters' gradients, and what the gradient of the input is made of, from the sums in scratch."""
    count_of_rows = vector_of(scale, scale.dtype.type(rows))
    for c in range(0, C, lanes(scale)):
        count = C - c
        inverse = vector_take(saved, C + c, count)
        total = vector_take(scratch, c, count)
        weighted = vector_mul(vector_take(scratch, C + c, count), inverse)
        if need_params:
            _put(weighted, dscale, c, count, accumulate_params)
            _put(total, dbias, c, count, accumulate_params)
        vector_write(vector_div(total, count_of_rows), scratch, FIRST * C + c, count)
        vector_write(vector_div(vector_mul(weighted, inverse), count_of_rows), scratch, SECOND * C + c, count)


@entry("x< scale< bias< saved< dy< dx= dscale= dbias= scratch> pixels C low high clamps need_dx need_params "
       "accumulate accumulate_params")
def backward_batch(arena, row, batch):
    """scratch: SCRATCH * C reals. saved: from forward_batch. dscale and dbias may be absent without need_params."""
    row = fields_of(row)
    rows, C = batch * row.pixels, row.C
    size = rows * C
    low, high = number(row.low), number(row.high)
    scratch, saved = view(arena, row.scratch, SCRATCH * C), view(arena, row.saved, 2 * C)
    scale, bias = view(arena, row.scale, C), view(arena, row.bias, C)
    x, dy, dx = view(arena, row.x, size), view(arena, row.dy, size), view(arena, row.dx, size)
    threads = threads_for(arena, 2 * size)
    for c in range(0, C, lanes(scale)):         # as forward had it, to the last bit
        factor = vector_mul(vector_take(scale, c, C - c), vector_take(saved, C + c, C - c))
        vector_write(factor, scratch, FACTOR * C + c, C - c)
    backward_batch_sums(x, saved, bias, dy, rows, C, row.clamps, low, high, threads, scratch)
    _finish_backward(scale, saved, rows, C, row.need_params, row.accumulate_params, scratch,
                     view(arena, row.dscale, C), view(arena, row.dbias, C))
    if row.need_dx:
        backward_through_statistics(x, saved, bias, dy, rows, C, row.clamps, low, high, row.accumulate, threads, scratch, dx)
