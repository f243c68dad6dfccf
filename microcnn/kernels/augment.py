"""Random changes of training images: moved, mirrored, cut out and stretched, brighter or darker, noisy.

What happens to a sample is a function of a key, the step and its place in the batch, so that threads have no say in it.
"""
import numba
import numpy as np

from ..arena import FIRST, SEED, STEP
from .compiler import helper, kernel
from .dropout import dropout_key
from .entry import entry, fields_of, number, slot, threads_for, view
from .simd import lanes
from .uniform import vector_uniform
from .vector import vector_add, vector_fma, vector_load_first, vector_of, vector_store_first, vector_sub

# Which number of a sample's generator is drawn for what.
TOP, LEFT, MIRROR_H, MIRROR_W, HEIGHT, WIDTH, BRIGHTNESS, NOISE = range(8)
HORIZONTAL, VERTICAL = 1, 2


@helper
def _draw(key, what):
    """A uniform number in [0, 1)."""
    state = np.uint64(key) + np.uint64(what + 1) * np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.float64((state ^ (state >> np.uint64(31))) >> np.uint64(11)) / 9007199254740992.0


@helper
def _side(key, what, place, size, shift, crop):
    """(first, step): position i of the output is read at first + i * step, along one axis."""
    part = crop + (1.0 - crop) * _draw(key, what)
    first = (0.5 * part - 0.5) + (1.0 - part) * size * _draw(key, place)
    if shift > 0:
        first += np.floor(_draw(key, place + 16) * (2 * shift + 1)) - shift
    return first, part


@helper
def _source(position, size):
    """(index, next index, share of the next) of a position, the edge repeated."""
    inside = min(max(position, 0.0), size - 1.0)
    index = np.int64(inside)
    return index, min(index + 1, size - 1), inside - index


@helper
def _move_row(x, at, y, to, W, inner, first, step, mirrored):
    """One row of pixels at whole positions."""
    for w in range(W):
        source = np.int64(np.floor(first + 0.5)) + (W - 1 - w if mirrored else w)
        source = min(max(source, 0), W - 1)
        for i in range(inner):
            y[to + w * inner + i] = x[at + source * inner + i]


@helper
def _blend_row(x, above, below, share, y, to, W, inner, first, step, mirrored):
    """One row of pixels between two rows, share of the second."""
    real = x.dtype.type
    down = real(share)
    for w in range(W):
        one, other, part = _source(first + (W - 1 - w if mirrored else w) * step, W)
        across = real(part)
        for i in range(inner):
            top, bottom = x[above + one * inner + i], x[below + one * inner + i]
            top += across * (x[above + other * inner + i] - top)
            bottom += across * (x[below + other * inner + i] - bottom)
            y[to + w * inner + i] = top + down * (bottom - top)


@helper
def _recolour(y, begin, size, key, brightness, noise):
    """y += a number of the sample's, and noise: four uniform numbers added up, scaled to a standard deviation of noise."""
    real = y.dtype.type
    added = vector_of(y, real((2.0 * _draw(key, BRIGHTNESS) - 1.0) * brightness))
    half, scale = vector_of(y, real(2.0)), vector_of(y, real(noise * np.sqrt(3.0)))
    for i in range(0, size, lanes(y)):
        count = min(lanes(y), size - i)
        value = vector_add(vector_load_first(y, begin + i, count), added)
        if noise > 0:
            total = vector_uniform(y, key + np.uint64(NOISE), i)
            for again in range(1, 4):
                total = vector_add(total, vector_uniform(y, key + np.uint64(NOISE + again), i))
            value = vector_fma(vector_sub(total, half), scale, value)
        vector_store_first(value, y, begin + i, count)


@helper
def _sample(n, first, x, y, outer, H, W, inner, shift_h, shift_w, flips, crop, brightness, noise, key):
    """Sample n, from x to y; it is number first + n of its batch."""
    own = dropout_key(key, first + n, 0)
    first_h, step_h = _side(own, HEIGHT, TOP, H, shift_h, crop)
    first_w, step_w = _side(own, WIDTH, LEFT, W, shift_w, crop)
    mirror_h = flips & VERTICAL != 0 and _draw(own, MIRROR_H) < 0.5
    mirror_w = flips & HORIZONTAL != 0 and _draw(own, MIRROR_W) < 0.5
    size = outer * H * W * inner
    for o in range(outer):
        plane = n * size + o * H * W * inner
        for h in range(H):
            above, below, share = _source(first_h + (H - 1 - h if mirror_h else h) * step_h, H)
            to = plane + h * W * inner
            if crop < 1.0:
                _blend_row(x, plane + above * W * inner, plane + below * W * inner, share, y, to, W, inner, first_w, step_w,
                           mirror_w)
            else:
                _move_row(x, plane + above * W * inner, y, to, W, inner, first_w, step_w, mirror_w)
    if brightness > 0 or noise > 0:
        _recolour(y, n * size, size, own, brightness, noise)


@kernel
@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def augment(x, first, batch, outer, H, W, inner, shift_h, shift_w, flips, crop, brightness, noise, key, threads, y):
    """Samples changed at random.

    Shapes   x, y (N, outer, H, W, inner), flat: (C, H, W) has inner 1, (H, W, C) has outer 1
    Numbers  first: x[0] is sample `first` of its batch
    Writes   y (overwritten)
    Threads  one iteration per sample, each owns its part of y
    Source   microcnn.augment.Augment; flips: bit 0 horizontally, bit 1 vertically
    """
    if threads > 1:
        for index in numba.prange(batch):
            _sample(np.int64(index), first, x, y, outer, H, W, inner, shift_h, shift_w, flips, crop, brightness, noise, key)
    else:
        for n in range(batch):
            _sample(n, first, x, y, outer, H, W, inner, shift_h, shift_w, flips, crop, brightness, noise, key)


@entry("x< y> outer H W inner shift_h shift_w flips crop brightness noise layer")
def forward(arena, row, batch):
    row = fields_of(row)
    size = batch * row.outer * row.H * row.W * row.inner
    augment(view(arena, row.x, size), slot(arena, FIRST), batch, row.outer, row.H, row.W, row.inner, row.shift_h, row.shift_w,
            row.flips, number(row.crop), number(row.brightness), number(row.noise),
            dropout_key(slot(arena, SEED), slot(arena, STEP), row.layer), threads_for(arena, size * 8),
            view(arena, row.y, size))
