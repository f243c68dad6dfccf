"""A batch's statistics: mean and variance of each channel, and the chunks, rows and scratch that all of batch norm shares.

Tensors are `rows` x width: a row holds the channels of one pixel, or of a few neighbouring ones where those of one would
leave lanes of a register empty. Rows are cut into chunks whose number follows from the shape alone; a chunk's sums go to its
own part of scratch and are merged in order, then those of the pixels of a row.
"""
import numba
import numpy as np

from .compiler import helper, kernel
from .layout import copy_run
from .simd import lanes
from .vector import (
    vector_add,
    vector_div,
    vector_fma,
    vector_mul,
    vector_of,
    vector_sqrt,
    vector_sub,
    vector_take,
    vector_write,
)

MAX_CHUNKS = 16
CHUNK = 4096    # a chunk has at least this many numbers
TILE = 2048     # numbers that are read twice in a row: they stay in the L1 cache
BLOCK = 65536   # numbers of a block: blocks are gone through backwards where the pass before went forwards
STREAMED = 131072   # tensors of so many numbers come from memory, which is quick only for who reads one address after another

# Scratch, in units of a row's width: the constants of a pass, one for each number of a row, then each chunk's sums.
MEAN, BIAS, FACTOR, FIRST, SECOND, SUMS = range(6)
CHUNK_SUMS = 3      # two sums, and those of a tile
SCRATCH = SUMS + CHUNK_SUMS * MAX_CHUNKS


@helper
def chunk_count(rows, C):
    return max(1, min(min(MAX_CHUNKS, rows), rows * C // CHUNK))


@helper
def scratch_size(rows, width):
    """Numbers of scratch that a pass may touch."""
    return (SUMS + CHUNK_SUMS * chunk_count(rows, width)) * width


@helper
def sums_of(chunk, width):
    """Where in scratch a chunk's sums begin."""
    return (SUMS + CHUNK_SUMS * chunk) * width


@helper
def repeat(source, at, C, scratch, place, width):
    """The constants source[at : at + C] for each pixel of a row, in their place in scratch."""
    for to in range(place * width, (place + 1) * width, C):
        copy_run(source, at, scratch, to, C)


@helper
def tile_rows(C):
    return max(8, TILE // C)


@helper
def block_rows(C):
    return max(1, BLOCK // C)


@helper
def sweep_rows(rows, C):
    """How many rows a pass takes at a time, channels outside: their constants and sums stay in registers.

    One where memory has to deliver: its prefetchers lose the thread where addresses jump from row to row (a third of the
    speed), and the registers' contents come from the L1 cache for less.
    """
    return 1 if rows * C >= STREAMED else tile_rows(C)


@helper
def _with(total, x, at, mean, count, squared):
    """One vector of numbers, or of their squared distances from the mean, added to total."""
    value = vector_take(x, at, count)
    if squared:
        value = vector_sub(value, mean)
        return vector_fma(value, value, total)
    return vector_add(total, value)


@helper
def tile_sum(x, mean, at, rows, C, count, squared):
    """One vector of channels summed over some rows, or their squared distances from the mean, in four chains of additions."""
    zero = vector_of(x, x.dtype.type(0))
    first, second, third, fourth = zero, zero, zero, zero
    i = 0
    while i + 4 <= rows:
        first = _with(first, x, at, mean, count, squared)
        second = _with(second, x, at + C, mean, count, squared)
        third = _with(third, x, at + 2 * C, mean, count, squared)
        fourth = _with(fourth, x, at + 3 * C, mean, count, squared)
        at += 4 * C
        i += 4
    while i < rows:
        first = _with(first, x, at, mean, count, squared)
        at += C
        i += 1
    return vector_add(vector_add(first, second), vector_add(third, fourth))


@helper
def _merge(mean, squares, other_mean, other_squares, before, added, like):
    """Mean and sum of squares of `before` and of `added` numbers together (Chan, Golub and LeVeque 1979)."""
    real = like.dtype.type
    share = added / (before + added)
    delta = vector_sub(other_mean, mean)
    between = vector_mul(vector_mul(delta, delta), vector_of(like, real(before * share)))
    squares = vector_add(squares, vector_add(other_squares, between))
    return vector_fma(delta, vector_of(like, real(share)), mean), squares


@helper
def _sums_in_order(x, begin, end, C, scratch, to):
    """scratch[to : to + C] = the sum of rows begin to end, read one address after another."""
    for row in range(begin, end):
        for c in range(0, C, lanes(x)):
            count = C - c
            value = vector_take(x, row * C + c, count)
            if row > begin:
                value = vector_add(value, vector_take(scratch, to + c, count))
            vector_write(value, scratch, to + c, count)


@helper
def _add_pixels(scratch, at, C, width):
    """Each of a row's sums is that of its channel over all pixels of the row."""
    step = lanes(scratch)
    for c in range(0, C, step):
        total = vector_take(scratch, at + c, C - c)
        for pixel in range(C, width, C):
            total = vector_add(total, vector_take(scratch, at + pixel + c, C - c))
        vector_write(total, scratch, at + c, C - c)
    for pixel in range(C, width, C):
        copy_run(scratch, at, scratch, at + pixel, C)


@helper
def statistics_chunk(x, begin, end, C, together, streamed, scratch, to, tile_sums):
    """scratch[to : to + 2 C] = mean and sum of squared deviations of rows begin to end, in one pass over memory.

    together: of so many neighbouring pixels that a row holds, whose mean is one: parts of a row that had means of their own
    would lose digits of their distances.
    streamed: a tile is read in order first, its sums go to scratch[tile_sums : tile_sums + C].
    """
    tile = tile_rows(C)
    for row in range(begin, end, tile):
        rows = min(tile, end - row)
        if streamed:
            _sums_in_order(x, row, row + rows, C, scratch, tile_sums)
            if together > 1:
                _add_pixels(scratch, tile_sums, C // together, C)
        for c in range(0, C, lanes(x)):
            count = C - c
            at = row * C + c
            zero = vector_of(x, x.dtype.type(0))
            if streamed:
                mean = vector_take(scratch, tile_sums + c, count)
            else:
                mean = tile_sum(x, zero, at, rows, C, count, False)
            mean = vector_div(mean, vector_of(x, x.dtype.type(rows * together)))
            squares = tile_sum(x, mean, at, rows, C, count, True)
            if row > begin:
                mean, squares = _merge(vector_take(scratch, to + c, count),
                                       vector_take(scratch, to + C + c, count),
                                       mean, squares, row - begin, rows, x)
            vector_write(mean, scratch, to + c, count)
            vector_write(squares, scratch, to + C + c, count)


@kernel
@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def statistics(x, scale, rows, C, together, eps, threads, saved, scratch):
    """Mean and population variance of each channel.

    Shapes   x (rows, together, C); scale (C,); saved (3, C): the mean, 1 / sqrt(variance + eps), the variance
    Writes   saved; mean and factor for each number of a row in their places in scratch
    Threads  one iteration per chunk of rows, each owns its part of scratch; merged in order
    Source   ONNX BatchNormalization-15, training mode; Chan, Golub and LeVeque 1979 for the merging
    """
    width = C * together
    chunks, streamed = chunk_count(rows, width), together > 1 or rows * width >= STREAMED
    if threads > 1:
        for index in numba.prange(chunks):
            chunk = np.int64(index)
            to = sums_of(chunk, width)
            statistics_chunk(x, chunk * rows // chunks, (chunk + 1) * rows // chunks, width, together, streamed, scratch,
                             to, to + 2 * width)
    else:
        for chunk in range(chunks):
            to = sums_of(chunk, width)
            statistics_chunk(x, chunk * rows // chunks, (chunk + 1) * rows // chunks, width, together, streamed, scratch,
                             to, to + 2 * width)
    _finish_statistics(scale, rows, chunks, C, together, eps, saved, scratch)


@helper
def _merge_chunks(like, rows, chunks, column, count, width, scratch):
    """Mean and sum of squares of one vector of a row's numbers, over all chunks in order."""
    first = sums_of(0, width)
    mean, squares = vector_take(scratch, first + column, count), vector_take(scratch, first + width + column, count)
    for chunk in range(1, chunks):
        begin, end, at = chunk * rows // chunks, (chunk + 1) * rows // chunks, sums_of(chunk, width) + column
        mean, squares = _merge(mean, squares, vector_take(scratch, at, count), vector_take(scratch, at + width, count),
                               begin, end - begin, like)
    return mean, squares


@helper
def _finish_statistics(scale, rows, chunks, C, together, eps, saved, scratch):
    real, width = scale.dtype.type, C * together
    for c in range(0, C, lanes(scale)):
        count = C - c
        mean, squares = _merge_chunks(scale, rows, chunks, c, count, width, scratch)
        for pixel in range(1, together):
            _, other = _merge_chunks(scale, rows, chunks, pixel * C + c, count, width, scratch)
            squares = vector_add(squares, other)        # around the mean that all pixels of a row have
        variance = vector_div(squares, vector_of(scale, real(rows * together)))
        inverse = vector_div(vector_of(scale, real(1)), vector_sqrt(vector_add(variance, vector_of(scale, real(eps)))))
        vector_write(mean, saved, c, count)
        vector_write(inverse, saved, C + c, count)
        vector_write(variance, saved, 2 * C + c, count)
    repeat_statistics(scale, saved, C, width, scratch)


@helper
def repeat_statistics(scale, saved, C, width, scratch):
    """Mean and factor, scale / sqrt(variance + eps), for each number of a row."""
    for c in range(0, C, lanes(scale)):
        factor = vector_mul(vector_take(scale, c, C - c), vector_take(saved, C + c, C - c))
        vector_write(factor, scratch, FACTOR * width + c, C - c)
    repeat(scratch, FACTOR * width, C, scratch, FACTOR, width)
    repeat(saved, 0, C, scratch, MEAN, width)
