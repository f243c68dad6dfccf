"""A depthwise 3 x 3 convolution, and the gradient of its weight, of what batch norm on the batch's statistics makes of x.

The lines of an image are normalised one after the other into a ring of them, which stays in the cache while the window slides
over it: what is between is never written to memory, and made again for the gradient. All sums are those of depthwise3x3.py, and
the numbers those of batchnorm.py, to the last bit.
"""
import numba
import numpy as np

from .batchnorm import normalise_rows, saved_constants
from .batchnorm_statistics import FIRST
from .compiler import helper, kernel
from .depthwise3x3 import forward_band, weight_band
from .entry import entry, fields_of, number, numbers_between, threads_for, view, view_as
from .fetch import fetch
from .layout import zero_run
from .linear_weight import add_partials
from .masks import BITS, pack_run

# Numbers that the normalising of a line is ahead of itself: memory goes on while the window slides over the line before.
ASKED = 4096


@helper
def _ready(x, n, image, done, h_first, h_end, H, line, constants, width, low, high, ring, lines, mask):
    """Lines h_first to h_end of image n in the ring, of which those before `done` are there if n is `image`; the new `done`.

    mask: the bits of what the clamp lets pass, of all of x; may be empty, or None.
    """
    begin, end, rows = max(0, h_first), min(H, h_end), line // width
    if n == image:
        begin = max(begin, done)
    for h in range(begin, end):
        row, to = (n * H + h) * rows, (h & ring) * line
        if mask is not None and mask.size > 0:
            for r in range(rows):
                normalise_rows(x, row + r, row + r + 1, constants, width, low, high, ASKED, lines, to + r * width)
                pack_run(lines, to + r * width, width, low, high, mask, (row + r) * width // BITS)
        else:
            normalise_rows(x, row, row + rows, constants, width, low, high, ASKED, lines, to)
    return max(begin, end)


@helper
def _forward_chunk(chunk, chunks, x, constants, width, low, high, weight, bias, residual, batch, H, W, C, dilation_h, stride_h,
                   stride_w, origin_h, origin_w, OH, OW, band, fetch_y, least, most, ring, lines, zeros_at, y):
    """The bands of one chunk of the work, one after the other."""
    bands = (OH + band - 1) // band
    jobs = batch * bands
    image, done = -1, 0
    for job in range(chunk * jobs // chunks, (chunk + 1) * jobs // chunks):
        n, first = job // bands, job % bands * band
        rows = min(band, OH - first)
        h_first = first * stride_h + origin_h
        done = _ready(x, n, image, done, h_first, h_first + (rows - 1) * stride_h + 2 * dilation_h + 1, H, W * C, constants,
                      width, low, high, ring, lines, None)
        image = n
        to = (n * OH + first) * OW * C
        if fetch_y:
            fetch(y, to, rows * OW * C)
        forward_band(lines, 0, ring, zeros_at, H, W, C, h_first, stride_h, dilation_h, origin_w, stride_w, weight, 0, 3 * C, C,
                     bias, 0, C, residual, None, y, to, OW * C, C, rows, OW, least, most)


@kernel
@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def normalised3x3_forward(x, constants, width, low, high, weight, bias, residual, batch, H, W, C, dilation_h, stride_h,
                          stride_w, origin_h, origin_w, OH, OW, band, chunks, fetch_y, least, most, ring, threads, zeros,
                          lines, y):
    """y[c] = clamp(z[c] * weight[c] + bias[c] + residual) between least and most, z = clamp((x - mean) * factor + shift).

    Shapes   x (N, H, W, C); constants: mean, shift, factor, each (width,), whole pixels, in their places; weight (3, 3, C);
             bias (C,) or empty; residual like y, empty, or y itself; y (N, OH, OW, C); zeros (W, C) where a row may lie outside
             the image; lines (chunks, ring + 1, W, C)
    Numbers  low, high: the bounds of z; stride_w is 1 or 2; ring: one less than a power of 2 that is no less than the lines
             which a band of rows sees; fetch_y: whether y is touched in order first
    Writes   y (overwritten); zeros, lines
    Threads  one iteration per chunk of bands of rows, each owns its part of y and of lines
    Source   ONNX BatchNormalization-15, then Conv with group = C
    """
    zero_run(zeros, 0, zeros.size)
    room, zeros_at = (ring + 1) * W * C, numbers_between(lines, zeros)
    if threads > 1 and chunks > 1:
        for index in numba.prange(chunks):
            chunk = np.int64(index)
            _forward_chunk(chunk, chunks, x, constants, width, low, high, weight, bias, residual, batch, H, W, C, dilation_h,
                           stride_h, stride_w, origin_h, origin_w, OH, OW, band, fetch_y, least, most, ring,
                           lines[chunk * room:(chunk + 1) * room], zeros_at - chunk * room, y)
    else:
        for chunk in range(chunks):     # one ring does for all, and stays in the cache
            _forward_chunk(chunk, chunks, x, constants, width, low, high, weight, bias, residual, batch, H, W, C, dilation_h,
                           stride_h, stride_w, origin_h, origin_w, OH, OW, band, fetch_y, least, most, ring, lines, zeros_at, y)


@entry("x< scale< shift< saved< weight< bias< residual< y= zeros> lines> constants> H W C together dilation_h stride_h "
       "stride_w origin_h origin_w OH OW band zeros_size chunks ring fetch_y low high least most")
def forward(arena, row, batch):
    """saved: from batchnorm.statistics_batch. W must be a multiple of together. constants: 3 * C * together reals."""
    row = fields_of(row)
    C, width, size = row.C, row.C * row.together, batch * row.OH * row.OW * row.C
    constants = view(arena, row.constants, FIRST * width)
    real = constants.dtype.type
    saved_constants(view(arena, row.scale, C), view(arena, row.shift, C), view(arena, row.saved, 2 * C), C, width, constants)
    normalised3x3_forward(view(arena, row.x, batch * row.H * row.W * C), constants, width, number(row.low), number(row.high),
                          view(arena, row.weight, 9 * C), view(arena, row.bias, C if row.bias >= 0 else 0),
                          view(arena, row.residual, size if row.residual >= 0 else 0), batch, row.H, row.W, C, row.dilation_h,
                          row.stride_h, row.stride_w, row.origin_h, row.origin_w, row.OH, row.OW, row.band, row.chunks,
                          row.fetch_y, real(number(row.least)), real(number(row.most)), row.ring, threads_for(arena, size * 18),
                          view(arena, row.zeros, row.zeros_size),
                          view(arena, row.lines, row.chunks * (row.ring + 1) * row.W * C), view(arena, row.y, size))


@helper
def _weight_chunk(chunk, chunks, x, constants, width, low, high, dy, batch, H, W, C, OH, OW, stride_h, stride_w, dilation_h,
                  origin_h, origin_w, band, ring, lines, zeros_at, mask, total):
    """One chunk's bands into its partial sum."""
    bands = (OH + band - 1) // band
    jobs = batch * bands
    zero_run(total, 0, 9 * C)
    image, done = -1, 0
    for job in range(chunk * jobs // chunks, (chunk + 1) * jobs // chunks):
        n, first = job // bands, job % bands * band
        rows = min(band, OH - first)
        h_first, at = first * stride_h + origin_h, (n * OH + first) * OW * C
        done = _ready(x, n, image, done, h_first, h_first + (rows - 1) * stride_h + 2 * dilation_h + 1, H, W * C, constants,
                      width, low, high, ring, lines, mask)
        image = n
        weight_band(lines, 0, ring, zeros_at, H, W, C, h_first, stride_h, dilation_h, origin_w, stride_w, dy, at, rows, OW,
                    total)


@kernel
@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def normalised3x3_backward_weight(x, constants, width, low, high, dy, batch, H, W, C, OH, OW, stride_h, stride_w, dilation_h,
                                  origin_h, origin_w, band, chunks, ring, accumulate, threads, zeros, lines, partials, mask,
                                  dweight):
    """dweight[r, s, c] = sum over pixels of z under the tap times dy, z as in normalised3x3_forward.

    Shapes   x (N, H, W, C); dy (N, OH, OW, C); dweight (3, 3, C); partials (chunks, 3, 3, C); constants, zeros, lines as there;
             mask: a bit for each number of x as in masks.py, or empty; with one, C is a multiple of 16
    Numbers  as there
    Writes   dweight (overwritten, or added to with accumulate); mask: where z lies strictly between low and high, in the lines
             that a window sees (the same words may be written twice); zeros, lines, partials (undefined)
    Threads  one iteration per chunk of bands, each owns its part of lines and its partial sum, added in order
    Source   seed, dW = sum of the patches of A times dZ, channel by channel
    """
    zero_run(zeros, 0, zeros.size)
    room, size, zeros_at = (ring + 1) * W * C, 9 * C, numbers_between(lines, zeros)
    if threads > 1 and chunks > 1:
        for index in numba.prange(chunks):
            chunk = np.int64(index)
            _weight_chunk(chunk, chunks, x, constants, width, low, high, dy, batch, H, W, C, OH, OW, stride_h, stride_w,
                          dilation_h, origin_h, origin_w, band, ring, lines[chunk * room:(chunk + 1) * room],
                          zeros_at - chunk * room, mask, partials[chunk * size:(chunk + 1) * size])
    else:
        for chunk in range(chunks):
            _weight_chunk(chunk, chunks, x, constants, width, low, high, dy, batch, H, W, C, OH, OW, stride_h, stride_w,
                          dilation_h, origin_h, origin_w, band, ring, lines, zeros_at, mask,
                          partials[chunk * size:(chunk + 1) * size])
    add_partials(partials, chunks, size, 0, size, accumulate, dweight)


@entry("x< scale< shift< saved< dy< dweight= mask> zeros> lines> constants> scratch> H W C together OH OW stride_h stride_w "
       "dilation_h origin_h origin_w band zeros_size chunks ring accumulate low high")
def backward_weight(arena, row, batch):
    """saved, W, constants: as in forward. mask may be absent."""
    row = fields_of(row)
    C, width, size = row.C, row.C * row.together, 9 * row.C
    constants = view(arena, row.constants, FIRST * width)
    saved_constants(view(arena, row.scale, C), view(arena, row.shift, C), view(arena, row.saved, 2 * C), C, width, constants)
    normalised3x3_backward_weight(
        view(arena, row.x, batch * row.H * row.W * C), constants, width, number(row.low), number(row.high),
        view(arena, row.dy, batch * row.OH * row.OW * C), batch, row.H, row.W, C, row.OH, row.OW, row.stride_h, row.stride_w,
        row.dilation_h, row.origin_h, row.origin_w, row.band, row.chunks, row.ring, row.accumulate,
        threads_for(arena, batch * row.OH * row.OW * size * 2), view(arena, row.zeros, row.zeros_size),
        view(arena, row.lines, row.chunks * (row.ring + 1) * row.W * C), view(arena, row.scratch, row.chunks * size),
        view_as(arena, row.mask, batch * row.H * row.W * C // BITS if row.mask >= 0 else 0, np.uint16),
        view(arena, row.dweight, size))
