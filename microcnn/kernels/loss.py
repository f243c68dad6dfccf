"""Losses: the mean goes to control slot LOSS (added, so that several losses add up), the gradient to dx.

Targets and sample weights are the caller's arrays, their addresses in control slots. Sums run in float64 over at most
16 chunks whose number follows from the sizes only; each chunk's partial sums stand in scratch (512 bytes) and are added
in order.
"""
import numba
import numpy as np

from ..arena import FLAGS, LOSS
from .compiler import helper, kernel
from .entry import entry, fields_of, number, outside, slot, threads_for, view, view_as
from .simd import lanes
from .vector import (
    vector_add,
    vector_exp,
    vector_fma,
    vector_highest,
    vector_max,
    vector_mul,
    vector_of,
    vector_sub,
    vector_sum,
    vector_take,
    vector_where_first,
    vector_write,
)

CHUNKS = 16
# Squares are summed in the network's dtype over this many vectors, then in float64.
PART = 16


@entry("")
def reset(arena, row, batch):
    # the step's loss starts at zero
    view_as(arena, 0, LOSS + 1, np.float64)[LOSS] = 0.0


@helper
def _address(arena, index):
    """The address in a control slot; 0 for slot -1, that is for nothing."""
    return slot(arena, index) if index >= 0 else 0


@helper
def _add_to_slot(arena, index, value):
    view_as(arena, 0, index + 1, np.float64)[index] += value


@helper
def _total(partial, first, chunks):
    """The sum of the chunks' partial sums, in order."""
    total = 0.0
    for chunk in range(chunks):
        total += partial[first + chunk]
    return total


@helper
def _first_at(x, at, C, inner, value):
    """The first index in a group where x is value, -1 if nowhere."""
    for c in range(C):
        if x[at + c * inner] == value:
            return c
    return -1


@helper
def _width(like, inner):
    """How many numbers of a group one step takes: a register, or one where the group is spread out."""
    return lanes(like) if inner == 1 else 1


@helper
def _maximum(x, at, C, inner):
    """The largest number of a group, NaN passed over."""
    width = _width(x, inner)
    lowest = vector_of(x, x.dtype.type(-np.inf))
    highest = lowest
    for c in range(0, C, width):
        count = min(width, C - c)
        highest = vector_max(highest, vector_where_first(count, vector_take(x, at + c * inner, count), lowest))
    return vector_highest(highest)


@helper
def _share(goal, class_weight, at, c, count, probabilities, smoothing, uniform):
    """One vector of q's dense part: targets and the smoothing's share, times the classes' weights."""
    real = goal.dtype.type
    share = vector_of(goal, real(uniform))
    if probabilities:
        share = vector_fma(vector_take(goal, at, count), vector_of(goal, real(1.0 - smoothing)), share)
    if class_weight.size > 0:
        share = vector_mul(share, vector_take(class_weight, c, count))
    return share


@helper
def _group(x, goal, label, class_weight, dx, at, C, inner, probabilities, smoothing, scale, gradient, counting):
    """One group: writes scale times its gradient to dx, gives its loss and (counting) its predicted class.

    The loss is sum(q (log sum exp(x) - x)) over the classes, its gradient sum(q) softmax(x) - q. q has a dense part
    (probabilities, label smoothing) and, for a class index, (1 - smoothing) times the class's weight at that index.
    """
    real = x.dtype.type
    width = _width(x, inner)
    weighted = class_weight.size > 0
    zero = vector_of(x, real(0))
    dense = probabilities or smoothing != 0.0
    uniform = smoothing / C
    top = _maximum(x, at, C, inner)
    # dx may be x: whatever is needed of single logits is read first
    predicted = _first_at(x, at, C, inner, top) if counting else -1
    index_share = 0.0
    loss = 0.0
    if not probabilities:
        index_share = (1.0 - smoothing) * (np.float64(class_weight[label]) if weighted else 1.0)
        loss = index_share * (np.float64(top) - np.float64(x[at + label * inner]))
    peak = vector_of(x, top)
    total, shares, distance = zero, zero, zero
    for c in range(0, C, width):
        count = min(width, C - c)
        i = at + c * inner
        below = vector_sub(vector_take(x, i, count), peak)
        power = vector_where_first(count, vector_exp(below), zero)
        total = vector_add(total, power)
        if dense:
            share = _share(goal, class_weight, i, c, count, probabilities, smoothing, uniform)
            share = vector_where_first(count, share, zero)
            shares = vector_add(shares, share)
            distance = vector_add(distance, vector_where_first(count, vector_mul(share, below), zero))
        if gradient:
            vector_write(power, dx, i, count)
    powers = np.float64(vector_sum(total))
    whole_share = index_share + np.float64(vector_sum(shares))
    loss += whole_share * np.log(powers) - np.float64(vector_sum(distance))
    if gradient:
        factor, back = vector_of(x, real(whole_share * scale / powers)), vector_of(x, real(-scale))
        for c in range(0, C, width):
            count = min(width, C - c)
            i = at + c * inner
            value = vector_mul(vector_take(dx, i, count), factor)
            if dense:
                value = vector_fma(_share(goal, class_weight, i, c, count, probabilities, smoothing, uniform), back,
                                   value)
            vector_write(value, dx, i, count)
        if not probabilities:
            dx[at + label * inner] -= real(index_share * scale)
    # a NaN among the logits makes their sum one; no prediction is right then
    return loss, predicted if powers == powers else -1


@helper
def _clear_group(dx, at, C, inner):
    """No gradient for a group that is not counted."""
    width = _width(dx, inner)
    zero = vector_of(dx, dx.dtype.type(0))
    for c in range(0, C, width):
        vector_write(zero, dx, at + c * inner, min(width, C - c))


@helper
def _count_chunk(labels, class_weight, ignore_index, chunk, chunks, partial):
    """What a chunk adds to the mean's denominator: its targets that are not ignored, by their classes' weights."""
    total = 0.0
    for group in range(labels.size * chunk // chunks, labels.size * (chunk + 1) // chunks):
        label = labels[group]
        if label != ignore_index:
            total += np.float64(class_weight[label]) if class_weight.size > 0 else 1.0
    partial[chunk] = total


@helper
def _cross_entropy_chunk(x, labels, goal, sample_weight, class_weight, rows, C, inner, probabilities, smoothing,
                         ignore_index, gradient, counting, mean, chunk, chunks, dx, partial):
    groups = x.size // C
    loss = 0.0
    correct = 0.0
    for group in range(groups * chunk // chunks, groups * (chunk + 1) // chunks):
        at = group // inner * inner * C + group % inner
        label = 0 if probabilities else labels[group]
        if not probabilities and label == ignore_index:
            if gradient:
                _clear_group(dx, at, C, inner)
            continue
        weight = sample_weight[group // rows] if sample_weight.size > 0 else 1.0
        value, predicted = _group(x, goal, label, class_weight, dx, at, C, inner, probabilities, smoothing,
                                  weight * mean, gradient, counting)
        loss += weight * value
        if counting:
            if probabilities:
                label = _first_at(goal, at, C, inner, _maximum(goal, at, C, inner))
            correct += 1.0 if predicted == label else 0.0
    partial[CHUNKS + chunk] = loss
    partial[2 * CHUNKS + chunk] = correct


@kernel
@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def softmax_cross_entropy(x, labels, goal, sample_weight, class_weight, rows, C, inner, probabilities, smoothing,
                          ignore_index, gradient, counting, threads, dx, partial):
    """The mean cross-entropy of logits, its gradient, and how many predictions are right.

    Shapes   x, dx (N, rows / inner, C, inner); labels (N, rows) int64, or goal of x's shape with probabilities;
             sample_weight (N,) float64 or empty; class_weight (C,) or empty; all flat
    Writes   dx (overwritten, with gradient; it may be x); partial (48 float64, undefined)
    Threads  one iteration per chunk of groups (at most 16, by size only), each owns its part of dx
    Source   torch.nn.CrossEntropyLoss: for labels the mean is weighted by class_weight[label], groups whose label is
             ignore_index do not count, and where none counts loss and gradient are 0; for probabilities the mean is
             over all groups. Labels lie in [0, C) or are ignore_index: the caller has checked them.
    """
    groups = x.size // C
    chunks = min(CHUNKS, groups)
    counted = float(groups)
    if not probabilities:
        if threads > 1:
            for index in numba.prange(chunks):
                chunk = np.int64(index)
                _count_chunk(labels, class_weight, ignore_index, chunk, chunks, partial)
        else:
            for chunk in range(chunks):
                _count_chunk(labels, class_weight, ignore_index, chunk, chunks, partial)
        counted = _total(partial, 0, chunks)
    mean = 1.0 / counted if counted != 0.0 else 0.0
    if threads > 1:
        for index in numba.prange(chunks):
            chunk = np.int64(index)
            _cross_entropy_chunk(x, labels, goal, sample_weight, class_weight, rows, C, inner, probabilities,
                                 smoothing, ignore_index, gradient, counting, mean, chunk, chunks, dx, partial)
    else:
        for chunk in range(chunks):
            _cross_entropy_chunk(x, labels, goal, sample_weight, class_weight, rows, C, inner, probabilities,
                                 smoothing, ignore_index, gradient, counting, mean, chunk, chunks, dx, partial)
    return _total(partial, CHUNKS, chunks) * mean, _total(partial, 2 * CHUNKS, chunks)


@entry("x< dx> scratch> class_weight< target_slot weight_slot correct_slot rows C inner probabilities gradient "
       "ignore_index label_smoothing")
def cross_entropy(arena, row, batch):
    # rows: groups per sample. class_weight -1, weight_slot -1 (or an address of 0) and correct_slot -1 when there are
    # none; dx is not touched without gradient.
    row = fields_of(row)
    groups = row.rows * batch
    size = groups * row.C
    x = view(arena, row.x, size)
    target = slot(arena, row.target_slot)
    weights = _address(arena, row.weight_slot)
    loss, correct = softmax_cross_entropy(
        x, outside(target, groups, np.int64), outside(target, size, x.dtype),
        outside(weights, batch if weights else 0, np.float64),
        view(arena, row.class_weight, row.C if row.class_weight >= 0 else 0), row.rows, row.C, row.inner,
        row.probabilities, number(row.label_smoothing), row.ignore_index, row.gradient, row.correct_slot >= 0,
        threads_for(arena, size * 20), view(arena, row.dx, size),
        view_as(arena, row.scratch, 3 * CHUNKS, np.float64))
    _add_to_slot(arena, LOSS, loss)
    if row.correct_slot >= 0:
        _add_to_slot(arena, row.correct_slot, correct)


@helper
def _squares(x, target, begin, end, factor, gradient, dx):
    """The sum of the squared differences of a range; writes factor times the difference to dx."""
    step = lanes(x)
    zero, slope = vector_of(x, x.dtype.type(0)), vector_of(x, x.dtype.type(factor))
    total = 0.0
    for first in range(begin, end, step * PART):
        part = zero
        for i in range(first, min(end, first + step * PART), step):
            count = min(step, end - i)
            difference = vector_sub(vector_take(x, i, count), vector_take(target, i, count))
            part = vector_fma(difference, difference, part)
            if gradient:
                vector_write(vector_mul(difference, slope), dx, i, count)
        total += np.float64(vector_sum(part))
    return total


@helper
def _mse_chunk(x, target, sample_weight, size, gradient, chunk, chunks, dx, partial):
    begin, end = x.size * chunk // chunks, x.size * (chunk + 1) // chunks
    slope = 2.0 / x.size
    if sample_weight.size == 0:
        partial[chunk] = _squares(x, target, begin, end, slope, gradient, dx)
        return
    loss = 0.0
    while begin < end:
        n = begin // size
        last = min(end, (n + 1) * size)
        loss += sample_weight[n] * _squares(x, target, begin, last, slope * sample_weight[n], gradient, dx)
        begin = last
    partial[chunk] = loss


@kernel
@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def mean_squared_error(x, target, sample_weight, size, gradient, threads, dx, partial):
    """The mean of weight (x - target)^2 over all numbers, and its gradient.

    Shapes   x, target, dx (N, size), flat; sample_weight (N,) float64 or empty
    Writes   dx (overwritten, with gradient; it may be x); partial (16 float64, undefined)
    Threads  one iteration per chunk of numbers (at most 16, by size only), each owns its part of dx
    Source   torch.nn.MSELoss, each sample's loss times its weight
    """
    chunks = min(CHUNKS, (x.size + 1023) // 1024)
    if threads > 1:
        for index in numba.prange(chunks):
            chunk = np.int64(index)
            _mse_chunk(x, target, sample_weight, size, gradient, chunk, chunks, dx, partial)
    else:
        for chunk in range(chunks):
            _mse_chunk(x, target, sample_weight, size, gradient, chunk, chunks, dx, partial)
    return _total(partial, 0, chunks) / x.size


@entry("x< dx> scratch> target_slot weight_slot size gradient")
def mse(arena, row, batch):
    # weight_slot -1 (or an address of 0) when there are none; dx is not touched without gradient
    row = fields_of(row)
    count = row.size * batch
    x = view(arena, row.x, count)
    weights = _address(arena, row.weight_slot)
    loss = mean_squared_error(x, outside(slot(arena, row.target_slot), count, x.dtype),
                              outside(weights, batch if weights else 0, np.float64), row.size, row.gradient,
                              threads_for(arena, count * 4), view(arena, row.dx, count),
                              view_as(arena, row.scratch, CHUNKS, np.float64))
    _add_to_slot(arena, LOSS, loss)


# Why a program stopped before it changed anything: what slot FLAGS says.
BAD_LABEL, NOT_FINITE = 1, 2


@entry("x< size")
def check_input(arena, row, batch):
    # stops the program where an input is NaN or infinite: a clamp may hide it from the loss, but not from a gradient
    row = fields_of(row)
    x = view(arena, row.x, row.size * batch)
    width = lanes(x)
    zero = vector_of(x, x.dtype.type(0))
    total = zero
    for i in range(0, x.size, width):
        total = vector_fma(vector_take(x, i, min(width, x.size - i)), zero, total)
    if vector_sum(total) != 0.0:
        view_as(arena, 0, FLAGS + 1, np.int64)[FLAGS] = NOT_FINITE


@entry("target_slot rows C ignore_index probabilities")
def check_labels(arena, row, batch):
    # stops the program where a class index is out of range, before anything is computed from it
    row = fields_of(row)
    if not row.probabilities:
        labels = outside(slot(arena, row.target_slot), row.rows * batch, np.int64)
        wrong = 0
        for i in range(labels.size):
            if (labels[i] < 0 or labels[i] >= row.C) and labels[i] != row.ignore_index:
                wrong = BAD_LABEL
        if wrong != 0:
            view_as(arena, 0, FLAGS + 1, np.int64)[FLAGS] = wrong


@entry("")
def check_finite(arena, row, batch):
    # stops the program where the loss is NaN or infinite, before a weight is touched
    loss = view_as(arena, 0, LOSS + 1, np.float64)[LOSS]
    if not np.isfinite(loss):
        view_as(arena, 0, FLAGS + 1, np.int64)[FLAGS] = NOT_FINITE
