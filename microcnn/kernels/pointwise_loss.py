"""Losses of one number and its target at a time: L1, smooth L1, Huber, binary cross-entropy of logits.

As in loss.py: the mean goes to control slot LOSS (added), the gradient to dx, sums are made in at most 16 chunks whose
number follows from the sizes only.
"""
import numba
import numpy as np

from ..arena import LOSS
from .compiler import helper, kernel
from .entry import entry, fields_of, number, outside, slot, threads_for, view, view_as
from .loss import CHUNKS, PART, _add_to_slot, _address, _total
from .simd import lanes
from .vector import (
    vector_add,
    vector_div,
    vector_exp,
    vector_fma,
    vector_max,
    vector_min,
    vector_mul,
    vector_of,
    vector_sub,
    vector_sum,
    vector_take,
    vector_where_first,
    vector_where_greater,
    vector_write,
)

L1, SMOOTH_L1, HUBER, LOGITS = range(4)
# Terms of 2 atanh(s) = 2 s (1 + s^2 / 3 + s^4 / 5 ...): s is at most 1/3, and (1/9)^16 / 33 is below float64's last bit.
TERMS = 17


@helper
def _log_of_one_plus(like, power):
    """log(1 + power) of powers from 0 to 1, exact to the last bits for small ones too."""
    real = like.dtype.type
    s = vector_div(power, vector_add(power, vector_of(like, real(2))))
    square = vector_mul(s, s)
    series = vector_of(like, real(1.0 / (2 * TERMS - 1)))
    for term in range(TERMS - 2, -1, -1):
        series = vector_fma(series, square, vector_of(like, real(1.0 / (2 * term + 1))))
    return vector_mul(vector_add(s, s), series)


@helper
def _of_difference(like, difference, kind, bound):
    """(loss, its derivative) of a vector of differences; bound: beta or delta."""
    real = like.dtype.type
    zero, one, minus = vector_of(like, real(0)), vector_of(like, real(1)), vector_of(like, real(-1))
    if kind == L1:
        slope = vector_where_greater(difference, zero, one, vector_where_greater(zero, difference, minus, zero))
        return vector_max(difference, vector_sub(zero, difference)), slope
    limit = vector_of(like, real(bound))
    half = vector_of(like, real(-0.5))
    # with the slope c clamped, c (d - c / 2) is the square's half inside and the straight line outside
    if kind == SMOOTH_L1:
        slope = vector_min(vector_max(vector_div(difference, limit), minus), one)
        return vector_mul(slope, vector_fma(vector_mul(half, limit), slope, difference)), slope
    slope = vector_min(vector_max(difference, vector_sub(zero, limit)), limit)
    return vector_mul(slope, vector_fma(half, slope, difference)), slope


@helper
def _of_logit(like, x, target, positive):
    """(loss, its derivative) of a vector of logits; positive: what the loss of a target of 1 is multiplied by.

    positive t log(1 + exp(-x)) + (1 - t) log(1 + exp(x)), where exp is taken of -|x| only.
    """
    real = like.dtype.type
    zero, one = vector_of(like, real(0)), vector_of(like, real(1))
    below = vector_sub(zero, x)
    power = vector_exp(vector_min(x, below))
    yes, no = vector_mul(positive, target), vector_sub(one, target)
    both = vector_add(yes, no)
    straight = vector_fma(yes, vector_max(below, zero), vector_mul(no, vector_max(x, zero)))
    loss = vector_fma(both, _log_of_one_plus(like, power), straight)
    share = vector_div(vector_where_greater(below, zero, power, one), vector_add(one, power))
    return loss, vector_fma(both, share, vector_sub(zero, yes))


@helper
def _range(x, target, pos_weight, begin, end, place, kind, bound, factor, gradient, dx):
    """The sum of the losses of a range; writes factor times the derivative to dx. place: begin's in pos_weight."""
    real = x.dtype.type
    step = lanes(x)
    zero, share, positive = vector_of(x, real(0)), vector_of(x, real(factor)), vector_of(x, real(bound))
    total = 0.0
    for first in range(begin, end, step * PART):
        part = zero
        for i in range(first, min(end, first + step * PART), step):
            count = min(step, end - i)
            value, goal = vector_take(x, i, count), vector_take(target, i, count)
            if kind == LOGITS:
                if pos_weight.size > 0:
                    positive = vector_take(pos_weight, place + i - begin, count)
                loss, slope = _of_logit(x, value, goal, positive)
            else:
                loss, slope = _of_difference(x, vector_sub(value, goal), kind, bound)
            part = vector_add(part, vector_where_first(count, loss, zero))
            if gradient:
                vector_write(vector_mul(slope, share), dx, i, count)
        total += np.float64(vector_sum(part))
    return total


@helper
def _chunk(x, target, sample_weight, pos_weight, size, kind, bound, gradient, chunk, chunks, dx, partial):
    begin, end = x.size * chunk // chunks, x.size * (chunk + 1) // chunks
    mean = 1.0 / x.size
    if sample_weight.size == 0 and pos_weight.size == 0:
        partial[chunk] = _range(x, target, pos_weight, begin, end, 0, kind, bound, mean, gradient, dx)
        return
    loss = 0.0
    while begin < end:
        n = begin // size
        last = min(end, (n + 1) * size)
        weight = sample_weight[n] if sample_weight.size > 0 else 1.0
        loss += weight * _range(x, target, pos_weight, begin, last, begin - n * size, kind, bound, mean * weight, gradient,
                                dx)
        begin = last
    partial[chunk] = loss


@kernel
@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def pointwise(x, target, sample_weight, pos_weight, size, kind, bound, gradient, threads, dx, partial):
    """The mean of weight loss(x, target) over all numbers, and its gradient.

    Shapes   x, target, dx (N, size), flat; sample_weight (N,) float64 or empty; pos_weight (size,) or empty, LOGITS only
    Numbers  kind: L1, SMOOTH_L1 (bound is beta, above 0), HUBER (bound is delta), LOGITS (bound is the weight of targets
             of 1 where pos_weight is empty)
    Writes   dx (overwritten, with gradient; it may be x); partial (16 float64, undefined)
    Threads  one iteration per chunk of numbers (at most 16, by size only), each owns its part of dx
    Source   torch.nn.L1Loss, SmoothL1Loss, HuberLoss, BCEWithLogitsLoss, each sample's loss times its weight
    """
    chunks = min(CHUNKS, (x.size + 1023) // 1024)
    if threads > 1:
        for index in numba.prange(chunks):
            chunk = np.int64(index)
            _chunk(x, target, sample_weight, pos_weight, size, kind, bound, gradient, chunk, chunks, dx, partial)
    else:
        for chunk in range(chunks):
            _chunk(x, target, sample_weight, pos_weight, size, kind, bound, gradient, chunk, chunks, dx, partial)
    return _total(partial, 0, chunks) / x.size


@entry("x< dx> scratch> pos_weight< target_slot weight_slot size kind bound gradient")
def mean(arena, row, batch):
    # pos_weight -1 and weight_slot -1 (or an address of 0) when there are none; dx is not touched without gradient
    row = fields_of(row)
    count = row.size * batch
    x = view(arena, row.x, count)
    weights = _address(arena, row.weight_slot)
    loss = pointwise(x, outside(slot(arena, row.target_slot), count, x.dtype),
                     outside(weights, batch if weights else 0, np.float64),
                     view(arena, row.pos_weight, row.size if row.pos_weight >= 0 else 0), row.size, row.kind,
                     number(row.bound), row.gradient, threads_for(arena, count * (30 if row.kind == LOGITS else 6)),
                     view(arena, row.dx, count), view_as(arena, row.scratch, CHUNKS, np.float64))
    _add_to_slot(arena, LOSS, loss)
