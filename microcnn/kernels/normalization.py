"""Normalisation by statistics of each sample: of its groups of channels, or of its rows.

Channels lie last: a sample is P pixels x C channels, cut into groups of C / G channels. Its pixels are cut into chunks whose
number follows from the shape alone; each chunk leaves two sums per channel in scratch, and those of a group are put together
in float64. Rows are contiguous and hold one normalised group each; their gradients by scale and bias are summed the same way.
"""
import numba
import numpy as np

from .batchnorm_statistics import statistics_chunk
from .compiler import helper, kernel, view_helper
from .entry import entry, fields_of, number, threads_for, view
from .simd import lanes
from .vector import (
    vector_add,
    vector_fma,
    vector_mul,
    vector_of,
    vector_sub,
    vector_sum,
    vector_take,
    vector_where_first,
    vector_write,
)

# Sums are made of parts this many additions long: one chain over an image would lose a digit.
PART = 256


@helper
def _scaled(value, scale, c, count):
    """One vector times the scales of its channels, if there are any."""
    return vector_mul(value, vector_take(scale, c, count)) if scale.size > 0 else value


@helper
def _shifted(value, bias, c, count):
    """One vector plus the biases of its channels, if there are any."""
    return vector_add(value, vector_take(bias, c, count)) if bias.size > 0 else value


@helper
def _input_gradient(g, h, mean, other, inverse):
    """One vector of dx: (g - mean - h * other) / deviation, with g = dy * scale, h normalised, the means those of g and g h."""
    return vector_mul(vector_sub(vector_sub(g, mean), vector_mul(h, other)), inverse)


@helper
def _bounds(chunk, chunks, size):
    return chunk * size // chunks, (chunk + 1) * size // chunks


@view_helper
def _given(arena, offset, size):
    """A buffer, empty where there is none."""
    return view(arena, offset, size if offset >= 0 else 0)


# Groups of channels.

@helper
def _group_statistics(sums, P, C, G, chunks, eps, saved, at):
    """saved[at : at + 2 C] = the mean and 1 / sqrt(variance + eps) of each channel's group, from its chunks' statistics."""
    per = C // G
    for g in range(G):
        total, squares = 0.0, 0.0
        for chunk in range(chunks):
            begin, end = _bounds(chunk, chunks, P)
            for c in range(g * per, (g + 1) * per):
                total += np.float64(sums[2 * chunk * C + c]) * (end - begin)
        mean = total / (P * per)
        for chunk in range(chunks):
            begin, end = _bounds(chunk, chunks, P)
            for c in range(g * per, (g + 1) * per):
                distance = sums[2 * chunk * C + c] - mean
                squares += np.float64(sums[(2 * chunk + 1) * C + c]) + distance * distance * (end - begin)
        inverse = 1.0 / np.sqrt(squares / (P * per) + eps)
        for c in range(g * per, (g + 1) * per):
            saved[at + c] = mean
            saved[at + C + c] = inverse


@helper
def _normalise_pixels(x, scale, bias, saved, at, begin, end, C, y):
    """y = (x - mean) / deviation * scale + bias for pixels begin to end, counted over the batch."""
    for i in range(begin * C, end * C, C):
        for c in range(0, C, lanes(x)):
            count = C - c
            factor = _scaled(vector_take(saved, at + C + c, count), scale, c, count)
            value = vector_mul(vector_sub(vector_take(x, i + c, count), vector_take(saved, at + c, count)), factor)
            vector_write(_shifted(value, bias, c, count), y, i + c, count)


@helper
def _group_job(phase, job, x, scale, bias, P, C, G, chunks, eps, sums, saved, y):
    """One chunk of one sample: its statistics in phase 0, its results in phase 2; one sample's statistics in phase 1."""
    if phase == 1:
        _group_statistics(sums[2 * job * chunks * C:2 * (job + 1) * chunks * C], P, C, G, chunks, eps, saved, 2 * job * C)
        return
    n = job // chunks
    begin, end = _bounds(job % chunks, chunks, P)
    if phase == 0:
        statistics_chunk(x, n * P + begin, n * P + end, C, 1, False, sums, 2 * job * C, 0)
    else:
        _normalise_pixels(x, scale, bias, saved, 2 * n * C, n * P + begin, n * P + end, C, y)


@kernel
@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def group_norm(x, scale, bias, batch, P, C, G, chunks, eps, threads, sums, saved, y):
    """Each group of channels of each sample with mean 0 and variance 1, times scale, plus bias.

    Shapes   x, y (batch, P, C); scale, bias (C,) or empty; saved (batch, 2, C): the group's mean and 1 / sqrt(variance + eps)
             for each channel; sums (batch, chunks, 2, C)
    Writes   y (overwritten; it may be x), saved, sums
    Threads  one iteration per chunk of a sample's pixels, then per sample, whose statistics are put together in order
    Source   ONNX GroupNormalization-21; InstanceNormalization-22 with G = C
    """
    for phase in range(3):
        jobs = batch if phase == 1 else batch * chunks
        if threads > 1:
            for index in numba.prange(jobs):
                job = np.int64(index)
                _group_job(phase, job, x, scale, bias, P, C, G, chunks, eps, sums, saved, y)
        else:
            for job in range(jobs):
                _group_job(phase, job, x, scale, bias, P, C, G, chunks, eps, sums, saved, y)


@entry("x< scale< bias< y> saved> scratch> P C G chunks eps")
def group_forward(arena, row, batch):
    row = fields_of(row)
    C, size = row.C, batch * row.P * row.C
    group_norm(view(arena, row.x, size), _given(arena, row.scale, C),
               _given(arena, row.bias, C), batch, row.P, C, row.G, row.chunks, number(row.eps),
               threads_for(arena, size * 4), view(arena, row.scratch, 2 * batch * row.chunks * C),
               view(arena, row.saved, 2 * batch * C), view(arena, row.y, size))


@helper
def _gradient_sums(x, dy, saved, at, begin, end, C, sums, to):
    """sums[to : to + 2 C] = the sums of dy and of dy times the normalised number over pixels begin to end."""
    zero = vector_of(x, x.dtype.type(0))
    for c in range(0, C, lanes(x)):
        count = C - c
        mean, inverse = vector_take(saved, at + c, count), vector_take(saved, at + C + c, count)
        plain, product, plain_part, product_part, additions = zero, zero, zero, zero, 0
        for i in range(begin * C + c, end * C + c, C):
            value = vector_take(dy, i, count)
            plain_part = vector_add(plain_part, value)
            product_part = vector_fma(value, vector_mul(vector_sub(vector_take(x, i, count), mean), inverse), product_part)
            additions += 1
            if additions == PART:
                plain, product = vector_add(plain, plain_part), vector_add(product, product_part)
                plain_part, product_part, additions = zero, zero, 0
        vector_write(vector_add(plain, plain_part), sums, to + c, count)
        vector_write(vector_add(product, product_part), sums, to + C + c, count)


@helper
def _sample_sums(sums, C, chunks):
    """The sums of a sample's chunks, in the place of its first."""
    for c in range(2 * C):
        total = 0.0
        for chunk in range(chunks):
            total += np.float64(sums[2 * chunk * C + c])
        sums[c] = total


@helper
def _group_means(sums, scale, P, C, G):
    """Each group's means of dy * scale and of that times the normalised number, for each channel, in the sums' place."""
    per = C // G
    for g in range(G):
        plain, product = 0.0, 0.0
        for c in range(g * per, (g + 1) * per):
            factor = np.float64(scale[c]) if scale.size > 0 else 1.0
            plain += factor * sums[c]
            product += factor * sums[C + c]
        for c in range(g * per, (g + 1) * per):
            sums[c] = plain / (P * per)
            sums[C + c] = product / (P * per)


@helper
def _batch_sum(sums, step, first, C, batch, accumulate, total):
    """total (C,) (= or +=) the sum over the batch of sums[n * step + first : ... + C]."""
    for c in range(total.size):
        value = np.float64(total[c]) if accumulate else 0.0
        for n in range(batch):
            value += np.float64(sums[n * step + first + c])
        total[c] = value


@helper
def _gradient_pixels(x, dy, scale, saved, at, means, means_at, begin, end, C, accumulate, dx):
    """dx for pixels begin to end: (dy * scale - mean - normalised * other mean) / deviation."""
    for i in range(begin * C, end * C, C):
        for c in range(0, C, lanes(x)):
            count = C - c
            inverse = vector_take(saved, at + C + c, count)
            normalised = vector_mul(vector_sub(vector_take(x, i + c, count), vector_take(saved, at + c, count)), inverse)
            value = _input_gradient(_scaled(vector_take(dy, i + c, count), scale, c, count), normalised,
                                    vector_take(means, means_at + c, count), vector_take(means, means_at + C + c, count),
                                    inverse)
            if accumulate:
                value = vector_add(value, vector_take(dx, i + c, count))
            vector_write(value, dx, i + c, count)


@helper
def _group_backward_job(phase, job, x, dy, scale, saved, P, C, G, chunks, accumulate, sums, dx):
    """One chunk of one sample: its sums in phase 0, its dx in phase 3; one sample's sums and means in phases 1 and 2."""
    step = 2 * chunks * C
    if phase == 1:
        _sample_sums(sums[job * step:(job + 1) * step], C, chunks)
    elif phase == 2:
        _group_means(sums[job * step:(job + 1) * step], scale, P, C, G)
    else:
        n = job // chunks
        begin, end = _bounds(job % chunks, chunks, P)
        if phase == 0:
            _gradient_sums(x, dy, saved, 2 * n * C, n * P + begin, n * P + end, C, sums, 2 * job * C)
        elif dx.size > 0:
            _gradient_pixels(x, dy, scale, saved, 2 * n * C, sums, n * step, n * P + begin, n * P + end, C, accumulate, dx)


@kernel
@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def group_norm_backward(x, dy, scale, saved, batch, P, C, G, chunks, accumulate, accumulate_scale, accumulate_bias, threads,
                        sums, dx, dscale, dbias):
    """The gradients of group_norm.

    Shapes   as there; dx (batch, P, C), dscale, dbias (C,), each empty where it is not wanted; dx may be dy
    Writes   dx, dscale, dbias (overwritten, or added to with accumulate...), sums
    Threads  one iteration per chunk of a sample's pixels, or per sample; sums are put together in order
    Source   with h normalised and g = dy scale: dx = (g - mean(g) - h mean(g h)) / deviation, dscale = sum(dy h)
    """
    for phase in range(4):
        jobs = batch if phase == 1 or phase == 2 else batch * chunks
        if threads > 1:
            for index in numba.prange(jobs):
                job = np.int64(index)
                _group_backward_job(phase, job, x, dy, scale, saved, P, C, G, chunks, accumulate, sums, dx)
        else:
            for job in range(jobs):
                _group_backward_job(phase, job, x, dy, scale, saved, P, C, G, chunks, accumulate, sums, dx)
        if phase == 1:
            _batch_sum(sums, 2 * chunks * C, 0, C, batch, accumulate_bias, dbias)
            _batch_sum(sums, 2 * chunks * C, C, C, batch, accumulate_scale, dscale)


@entry("x< dy< scale< saved< dx= dscale= dbias= scratch> P C G chunks accumulate accumulate_scale accumulate_bias")
def group_backward(arena, row, batch):
    row = fields_of(row)
    C, size = row.C, batch * row.P * row.C
    group_norm_backward(view(arena, row.x, size), view(arena, row.dy, size), _given(arena, row.scale, C),
                        view(arena, row.saved, 2 * batch * C), batch, row.P, C, row.G, row.chunks, row.accumulate,
                        row.accumulate_scale, row.accumulate_bias, threads_for(arena, size * 6),
                        view(arena, row.scratch, 2 * batch * row.chunks * C), _given(arena, row.dx, size),
                        _given(arena, row.dscale, C), _given(arena, row.dbias, C))


# Rows.

@helper
def _row_sum(x, at, M, mean, squared):
    """The sum of a row, or of its squared distances from the mean."""
    zero = vector_of(x, x.dtype.type(0))
    middle = vector_of(x, x.dtype.type(mean))
    total, part, additions = zero, zero, 0
    for i in range(0, M, lanes(x)):
        value = vector_take(x, at + i, M - i)
        if squared:
            value = vector_where_first(M - i, vector_sub(value, middle), zero)
            value = vector_mul(value, value)
        part = vector_add(part, value)
        additions += 1
        if additions == PART:
            total, part, additions = vector_add(total, part), zero, 0
    return vector_sum(vector_add(total, part))


@helper
def _rows_job(x, scale, bias, begin, end, M, eps, saved, y):
    real = x.dtype.type
    for row in range(begin, end):
        at = row * M
        mean = _row_sum(x, at, M, real(0), False) / real(M)
        variance = np.float64(_row_sum(x, at, M, mean, True)) / M
        inverse = real(1.0 / np.sqrt(variance + eps))
        saved[2 * row], saved[2 * row + 1] = mean, inverse
        middle, factor = vector_of(x, mean), vector_of(x, inverse)
        for i in range(0, M, lanes(x)):
            count = M - i
            value = _scaled(vector_mul(vector_sub(vector_take(x, at + i, count), middle), factor), scale, i, count)
            vector_write(_shifted(value, bias, i, count), y, at + i, count)


@kernel
@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def layer_norm(x, scale, bias, rows, M, chunks, eps, threads, saved, y):
    """Each row with mean 0 and variance 1, times scale, plus bias.

    Shapes   x, y (rows, M); scale, bias (M,) or empty; saved (rows, 2): the mean and 1 / sqrt(variance + eps)
    Writes   y (overwritten; it may be x), saved
    Threads  one iteration per chunk of rows, each owns its rows
    Source   ONNX LayerNormalization-17
    """
    if threads > 1 and chunks > 1:
        for index in numba.prange(chunks):
            chunk = np.int64(index)
            begin, end = _bounds(chunk, chunks, rows)
            _rows_job(x, scale, bias, begin, end, M, eps, saved, y)
    else:
        _rows_job(x, scale, bias, 0, rows, M, eps, saved, y)


@entry("x< scale< bias< y> saved> rows M chunks eps")
def rows_forward(arena, row, batch):
    row = fields_of(row)
    M, rows = row.M, batch * row.rows
    layer_norm(view(arena, row.x, rows * M), _given(arena, row.scale, M),
               _given(arena, row.bias, M), rows, M, row.chunks, number(row.eps),
               threads_for(arena, rows * M * 4), view(arena, row.saved, 2 * rows), view(arena, row.y, rows * M))


@helper
def _add_to(value, total, at, count):
    vector_write(vector_add(vector_take(total, at, count), value), total, at, count)


@helper
def _rows_backward_job(x, dy, scale, saved, begin, end, M, accumulate, sums, to, dx):
    """dx of rows begin to end; sums[to : to + 2 M] = their parts of dbias and dscale, where sums are wanted."""
    real = x.dtype.type
    zero = vector_of(x, real(0))
    for i in range(0, 2 * M if sums.size > 0 else 0, lanes(x)):
        vector_write(zero, sums, to + i, 2 * M - i)
    for row in range(begin, end):
        at = row * M
        middle, factor = vector_of(x, saved[2 * row]), vector_of(x, saved[2 * row + 1])
        plain, product = zero, zero
        for i in range(0, M, lanes(x)):
            count = M - i
            given = vector_take(dy, at + i, count)
            normalised = vector_mul(vector_sub(vector_take(x, at + i, count), middle), factor)
            scaled = _scaled(given, scale, i, count)
            plain = vector_add(plain, scaled)
            product = vector_fma(scaled, normalised, product)
            if sums.size > 0:
                _add_to(given, sums, to + i, count)
                _add_to(vector_mul(given, normalised), sums, to + M + i, count)
        if dx.size == 0:
            continue
        mean, other = vector_of(x, vector_sum(plain) / real(M)), vector_of(x, vector_sum(product) / real(M))
        for i in range(0, M, lanes(x)):
            count = M - i
            normalised = vector_mul(vector_sub(vector_take(x, at + i, count), middle), factor)
            value = _input_gradient(_scaled(vector_take(dy, at + i, count), scale, i, count), normalised, mean, other, factor)
            if accumulate:
                value = vector_add(value, vector_take(dx, at + i, count))
            vector_write(value, dx, at + i, count)


@kernel
@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def layer_norm_backward(x, dy, scale, saved, rows, M, chunks, accumulate, accumulate_scale, accumulate_bias, threads, sums, dx,
                        dscale, dbias):
    """The gradients of layer_norm.

    Shapes   as there; dx (rows, M), dscale, dbias (M,), each empty where it is not wanted; sums (chunks, 2, M), empty where
             neither of the last two is; dx may be dy
    Writes   dx, dscale, dbias (overwritten, or added to with accumulate...), sums
    Threads  one iteration per chunk of rows, each owns its rows and its partial sums, which are added in order
    Source   as group_norm_backward, a row being the group
    """
    if threads > 1 and chunks > 1:
        for index in numba.prange(chunks):
            chunk = np.int64(index)
            begin, end = _bounds(chunk, chunks, rows)
            _rows_backward_job(x, dy, scale, saved, begin, end, M, accumulate, sums, 2 * chunk * M, dx)
    else:
        for chunk in range(chunks):
            begin, end = _bounds(chunk, chunks, rows)
            _rows_backward_job(x, dy, scale, saved, begin, end, M, accumulate, sums, 2 * chunk * M, dx)
    _batch_sum(sums, 2 * M, 0, M, chunks, accumulate_bias, dbias)
    _batch_sum(sums, 2 * M, M, M, chunks, accumulate_scale, dscale)


@entry("x< dy< scale< saved< dx= dscale= dbias= scratch> rows M chunks accumulate accumulate_scale accumulate_bias")
def rows_backward(arena, row, batch):
    row = fields_of(row)
    M, rows = row.M, batch * row.rows
    layer_norm_backward(view(arena, row.x, rows * M), view(arena, row.dy, rows * M),
                        _given(arena, row.scale, M), view(arena, row.saved, 2 * rows), rows, M,
                        row.chunks, row.accumulate, row.accumulate_scale, row.accumulate_bias,
                        threads_for(arena, rows * M * 6), _given(arena, row.scratch, 2 * row.chunks * M),
                        _given(arena, row.dx, rows * M),
                        _given(arena, row.dscale, M), _given(arena, row.dbias, M))
