"""Optimizer steps, each one sweep over a weight, its gradient and its state, with PyTorch's formulas."""
import numba
import numpy as np

from ..arena import RATE, STEP
from .compiler import helper, kernel
from .entry import entry, fields_of, number, slot, slot_number, threads_for, view, view_as
from .simd import lanes
from .vector import (
    vector_add,
    vector_div,
    vector_fma,
    vector_max,
    vector_mul,
    vector_of,
    vector_sqrt,
    vector_sub,
    vector_take,
    vector_where_greater,
    vector_write,
)

CHUNK = 8192


@helper
def _settled(value, like):
    """The value, 0 where it is below the smallest normal number.

    The averages of weights that get no gradient any more shrink for ever, and x86 takes a hundred times as long for numbers
    that small: Adam's step took 14 times as long in LeNet-5's third epoch.
    """
    real = like.dtype.type
    zero, tiny = vector_of(like, real(0)), vector_of(like, real(2.0 ** -126 if like.itemsize == 4 else 2.0 ** -1022))
    return vector_where_greater(tiny, vector_max(value, vector_sub(zero, value)), zero, value)


@helper
def _sgd_chunk(weight, gradient, velocity, begin, end, rate, momentum, dampening, weight_decay, nesterov, scale,
               first_step):
    real = weight.dtype.type
    step = lanes(weight)
    decay, inertia = vector_of(weight, real(weight_decay)), vector_of(weight, real(momentum))
    share, descent = vector_of(weight, real(1.0 - dampening)), vector_of(weight, real(-rate))
    clip = vector_of(weight, real(scale))
    for i in range(begin, end, step):
        count = min(step, end - i)
        w = vector_take(weight, i, count)
        g = vector_mul(vector_take(gradient, i, count), clip)
        if weight_decay != 0.0:
            g = vector_fma(w, decay, g)
        if momentum != 0.0:
            v = g
            if not first_step:
                v = _settled(vector_fma(vector_take(velocity, i, count), inertia, vector_mul(g, share)), weight)
            vector_write(v, velocity, i, count)
            g = vector_fma(v, inertia, g) if nesterov else v
        vector_write(vector_fma(g, descent, w), weight, i, count)


@kernel
@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def sgd_step(weight, gradient, velocity, rate, momentum, dampening, weight_decay, nesterov, scale, first_step,
             threads):
    """One step of stochastic gradient descent.

    Shapes   weight, gradient, velocity (any), flat; velocity is not touched when momentum is 0
    Numbers  scale multiplies the gradient before anything else
    Writes   weight and velocity (updated; the first step sets velocity to the gradient)
    Threads  one iteration per chunk of 8,192 numbers, each owns its part
    Source   torch.optim.SGD
    """
    chunks = (weight.size + CHUNK - 1) // CHUNK
    if threads > 1:
        for index in numba.prange(chunks):
            chunk = np.int64(index)
            _sgd_chunk(weight, gradient, velocity, chunk * CHUNK, min(weight.size, (chunk + 1) * CHUNK), rate,
                       momentum, dampening, weight_decay, nesterov, scale, first_step)
    else:
        for chunk in range(chunks):
            _sgd_chunk(weight, gradient, velocity, chunk * CHUNK, min(weight.size, (chunk + 1) * CHUNK), rate,
                       momentum, dampening, weight_decay, nesterov, scale, first_step)


@helper
def _scale(arena, offset):
    """What clipping multiplies every gradient by (a float64), 1 without."""
    return view_as(arena, offset, 1, np.float64)[0] if offset >= 0 else 1.0


@entry("weight= gradient< velocity= clip< size momentum dampening weight_decay nesterov factor")
def sgd(arena, row, batch):
    # size is the weight's whole size; velocity -1 when momentum is 0, clip -1 without clipping; STEP counts from 1
    row = fields_of(row)
    sgd_step(view(arena, row.weight, row.size), view(arena, row.gradient, row.size),
             view(arena, row.velocity, row.size), slot_number(arena, RATE) * number(row.factor), number(row.momentum),
             number(row.dampening), number(row.weight_decay), row.nesterov, _scale(arena, row.clip), slot(arena, STEP) == 1,
             threads_for(arena, row.size * 6))


@helper
def _adam_chunk(weight, gradient, first, second, begin, end, rate, beta1, beta2, eps, weight_decay, decoupled,
                scale, correction1, correction2):
    real = weight.dtype.type
    step = lanes(weight)
    shrink, decay = vector_of(weight, real(1.0 - rate * weight_decay)), vector_of(weight, real(weight_decay))
    share1 = vector_of(weight, real(1.0 - beta1))
    keep2, share2 = vector_of(weight, real(beta2)), vector_of(weight, real(1.0 - beta2))
    root, floor = vector_of(weight, real(np.sqrt(correction2))), vector_of(weight, real(eps))
    descent, clip = vector_of(weight, real(-rate / correction1)), vector_of(weight, real(scale))
    for i in range(begin, end, step):
        count = min(step, end - i)
        w = vector_take(weight, i, count)
        g = vector_mul(vector_take(gradient, i, count), clip)
        if weight_decay != 0.0:
            if decoupled:
                w = vector_mul(w, shrink)
            else:
                g = vector_fma(w, decay, g)
        m = vector_take(first, i, count)
        m = _settled(vector_fma(vector_sub(g, m), share1, m), weight)
        v = _settled(vector_fma(vector_mul(g, g), share2, vector_mul(vector_take(second, i, count), keep2)), weight)
        vector_write(m, first, i, count)
        vector_write(v, second, i, count)
        denominator = vector_add(vector_div(vector_sqrt(v), root), floor)
        vector_write(vector_fma(descent, vector_div(m, denominator), w), weight, i, count)


@kernel
@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def adam_step(weight, gradient, first, second, rate, beta1, beta2, eps, weight_decay, decoupled, scale, steps,
              threads):
    """One step of Adam, or of AdamW where the weight decay is decoupled from the gradient.

    Shapes   weight, gradient, first and second moment (any), flat; the moments are zero before the first step
    Numbers  scale multiplies the gradient before anything else
    Writes   weight, first, second (updated)
    Threads  one iteration per chunk of 8,192 numbers, each owns its part
    Source   torch.optim.Adam, torch.optim.AdamW; steps counts from 1
    """
    correction1, correction2 = 1.0 - beta1 ** float(steps), 1.0 - beta2 ** float(steps)
    chunks = (weight.size + CHUNK - 1) // CHUNK
    if threads > 1:
        for index in numba.prange(chunks):
            chunk = np.int64(index)
            _adam_chunk(weight, gradient, first, second, chunk * CHUNK, min(weight.size, (chunk + 1) * CHUNK), rate,
                        beta1, beta2, eps, weight_decay, decoupled, scale, correction1, correction2)
    else:
        for chunk in range(chunks):
            _adam_chunk(weight, gradient, first, second, chunk * CHUNK, min(weight.size, (chunk + 1) * CHUNK), rate,
                        beta1, beta2, eps, weight_decay, decoupled, scale, correction1, correction2)


@entry("weight= gradient< first= second= clip< size beta1 beta2 eps weight_decay decoupled factor")
def adam(arena, row, batch):
    row = fields_of(row)
    adam_step(view(arena, row.weight, row.size), view(arena, row.gradient, row.size),
              view(arena, row.first, row.size), view(arena, row.second, row.size),
              slot_number(arena, RATE) * number(row.factor), number(row.beta1), number(row.beta2), number(row.eps),
              number(row.weight_decay), row.decoupled, _scale(arena, row.clip), slot(arena, STEP),
              threads_for(arena, row.size * 12))


@helper
def _scaled_chunk(x, y, begin, end, scale):
    step = lanes(y)
    factor = vector_of(y, y.dtype.type(scale))
    for i in range(begin, end, step):
        count = min(step, end - i)
        vector_write(vector_fma(vector_take(x, i, count), factor, vector_take(y, i, count)), y, i, count)


@kernel
@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def add_scaled(x, scale, threads, y):
    """y += scale x

    Shapes   x, y (any), flat
    Writes   y (added to)
    Threads  one iteration per chunk of 8,192 numbers, each owns its part of y
    Source   the sum of gradients over micro-batches
    """
    chunks = (y.size + CHUNK - 1) // CHUNK
    if threads > 1:
        for index in numba.prange(chunks):
            chunk = np.int64(index)
            _scaled_chunk(x, y, chunk * CHUNK, min(y.size, (chunk + 1) * CHUNK), scale)
    else:
        for chunk in range(chunks):
            _scaled_chunk(x, y, chunk * CHUNK, min(y.size, (chunk + 1) * CHUNK), scale)


@entry("x< y= size scale")
def accumulate_scaled(arena, row, batch):
    row = fields_of(row)
    add_scaled(view(arena, row.x, row.size), number(row.scale), threads_for(arena, row.size * 4),
               view(arena, row.y, row.size))
