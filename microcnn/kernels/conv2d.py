"""2-D convolution by register tiles: forward, and its use on dY as backward to the input. No im2col.

A tile is MR output pixels x NV vectors of output channels. Where each pixel's window begins stands in a table, so that a
tile may run across the ends of rows and any stride costs the same. Padding is copied in: each chunk of the work has a
small band of the image with its zeros in scratch, which stays in the first-level cache while all output channels pass over it.
Where windows hold many numbers, the band may fill the second-level cache instead, and the weights are read a part at a time,
each part copied into a panel first: the sums of the parts wait in y.
"""
import numba
import numpy as np

from .compiler import helper, inlined, kernel
from .entry import entry, fields_of, number, threads_for, view, view_as
from .layout import copy_panels, copy_run, vectors_of, zero_run
from .linear import transpose_matrix
from .rows import rows_strided, rows_table
from .simd import MASKS_ARE_FREE, MR1, MR2, MR4, MULTIPLIES_BY_ELEMENT, SEEN1, lanes
from .tile import tile_add, tile_clamp, tile_fill, tile_store, tile_zeros
from .tile_fma import tile_fma_steps, tile_fma_steps_tail, tile_fma_taps


@helper
def copy_band(x, x_at, H, W, C, top, left, rows, columns, reused, band):
    """band (rows, columns, C) = the image's part that begins at (top, left), zeros where that is outside.

    The band was all zeros at first. What lies beside the image is the same for all bands and stays; what lies above and
    below differs, and is zeroed where the band is reused for another part.
    """
    first = min(columns, max(0, -left))
    last = max(first, min(columns, W - left))
    for r in range(rows):
        h, to = top + r, r * columns * C
        if 0 <= h < H:
            copy_run(x, x_at + (h * W + left + first) * C, band, to + first * C, (last - first) * C)
        elif reused:
            zero_run(band, to, columns * C)


@helper
def fill_table(table, rows, columns, row_step, column_step):
    """table[r * columns + c] = r * row_step + c * column_step"""
    for r in range(rows):
        for c in range(columns):
            table[r * columns + c] = r * row_step + c * column_step


@inlined
def _pixel_tile(x, x_at, x_table, p, count, R, S, window, x_row, x_tap, weight, w_at, w_row, bias, k, residual, y, y_at,
                y_table, columns, masked, low, high, mr, nv):
    """count <= mr pixels from p on, columns <= nv * lanes of their channels: all taps of all input channels."""
    tile = tile_zeros(x, mr, nv)
    if bias.size > 0:
        tile = tile_fill(tile, bias, k, columns)
    rows = rows_table(x_table, p, count, x_at, mr)
    tap_at = w_at
    if masked:
        for r in range(R):
            for s in range(S):
                tile = tile_fma_steps_tail(tile, x, rows, r * x_row + s * x_tap, weight, tap_at, w_row, window, columns)
                tap_at += window * w_row
    else:
        for r in range(R):
            for s in range(S):
                tile = tile_fma_steps(tile, x, rows, r * x_row + s * x_tap, weight, tap_at, w_row, window)
                tap_at += window * w_row
    out = rows_table(y_table, p, count, y_at, mr)
    if residual.size > 0:
        tile = tile_add(tile, residual, out, 0, count, columns)
    tile_store(tile_clamp(tile, low, high), y, out, 0, count, columns)


@helper
def _pixel_tiles(x, x_at, x_table, pixels, R, S, window, x_row, x_tap, weight, w_at, w_row, bias, k, residual, y, y_at, y_table,
                 columns, low, high, mr, nv):
    """All pixels of a band, mr at a time. Whole tiles have a loop of their own, in which no row is in question.

    The loop over the tiles is in here because a call hands over sixty numbers, which a small tile would feel.
    """
    masked = MASKS_ARE_FREE or columns < nv * lanes(x)
    p = 0
    while p + mr <= pixels:
        _pixel_tile(x, x_at, x_table, p, mr, R, S, window, x_row, x_tap, weight, w_at, w_row, bias, k, residual, y, y_at,
                    y_table, columns, masked, low, high, mr, nv)
        p += mr
    if p < pixels:
        _pixel_tile(x, x_at, x_table, p, pixels - p, R, S, window, x_row, x_tap, weight, w_at, w_row, bias, k, residual, y,
                    y_at, y_table, columns, masked, low, high, mr, nv)


@helper
def _row_tiles(x, x_at, x_table, pixels, OW, C, R, x_row, weight, k, w_row, bias, residual, y, y_at, y_table, columns, low,
               high, mr, seen):
    """As _pixel_tiles for three neighbouring taps a row and stride 1: a tile stays within a row of OW pixels, and each of the
    `seen` pixels of the input that it sees is read once for all three taps.
    """
    w_tap = C * w_row
    for begin in range(0, pixels, OW):
        for ow in range(0, OW, mr):
            p, count = begin + ow, min(OW - ow, mr)
            tile = tile_zeros(x, mr, 1)
            if bias.size > 0:
                tile = tile_fill(tile, bias, k, columns)
            rows = rows_strided(x_at + x_table[p], C, count + 2, seen)
            for r in range(R):
                w_at = k + 3 * r * w_tap
                for c in range(C):
                    tile = tile_fma_taps(tile, x, rows, r * x_row + c, weight, w_at, w_tap, columns)
                    w_at += w_row
            out = rows_table(y_table, p, count, y_at, mr)
            if residual.size > 0:
                tile = tile_add(tile, residual, out, 0, count, columns)
            tile_store(tile_clamp(tile, low, high), y, out, 0, count, columns)


@helper
def _channels(x, x_at, x_table, pixels, R, S, window, x_row, x_tap, weight, w_at, w_row, bias, residual, y, y_at, y_table,
              k_begin, k_end, low, high, near, panel):
    """All pixels of a band, output channels k_begin to k_end, a block of channels after the other.

    near: as in _pixels.
    """
    width = lanes(x)
    k = k_begin
    while k < k_end:
        vectors = vectors_of(k_end - k, width)
        columns = min(k_end - k, vectors * width)
        source, at, row = weight, w_at + k, w_row
        if panel.size > 0:
            source, at, row = panel, (k - k_begin) * R * window, vectors * width
        if MR4 > 0 and vectors == 4:
            _pixel_tiles(x, x_at, x_table, pixels, R, S, window, x_row, x_tap, source, at, row, bias, k, residual, y, y_at + k,
                         y_table, columns, low, high, MR4, 4)
        elif vectors == 2:
            _pixel_tiles(x, x_at, x_table, pixels, R, S, window, x_row, x_tap, source, at, row, bias, k, residual, y, y_at + k,
                         y_table, columns, low, high, MR2, 2)
        elif near > 0:
            _row_tiles(x, x_at, x_table, pixels, near, window // 3, R, x_row, weight, k, w_row, bias, residual, y, y_at + k,
                       y_table, columns, low, high, MR1, SEEN1)
        else:
            _pixel_tiles(x, x_at, x_table, pixels, R, S, window, x_row, x_tap, source, at, row, bias, k, residual, y, y_at + k,
                         y_table, columns, low, high, MR1, 1)
        k += columns


@helper
def _pixels(x, x_at, x_table, pixels, R, S, window, x_row, x_tap, weight, w_row, bias, residual, y, y_at, y_table, k_begin,
            k_end, low, high, near, depth, panel):
    """All pixels of a band, output channels k_begin to k_end, a part of the weights after the other.

    near: how many pixels a row has, where the window is three taps of neighbouring pixels and a multiple of tiles fits; else 0.
    depth: how many rows of the weight all pixels pass over before the next ones are read, their sums waiting in y; 0: all.
    """
    # whole rows of windows where several fit, else one tap and a part of its channels
    taps_h, taps_w, part = max(R, 1), max(S, 1), max(window, 1)
    if depth > 0:
        taps_h = max(1, depth // window) if S == 1 else 1
        taps_w = 1
        part = (window + depth - 1) // depth
        part = (window + part - 1) // part
    for r in range(0, max(R, 1), taps_h):
        for s in range(0, max(S, 1), taps_w):
            for t in range(0, max(window, 1), part):
                rows, taps, length = min(R - r, taps_h), min(S - s, taps_w), min(window - t, part)
                first = r + s + t == 0
                last = r + taps_h >= R and s + taps_w >= S and t + part >= window
                w_at = ((r * S + s) * window + t) * w_row
                if panel.size > 0:
                    copy_panels(weight, w_at, w_row, rows * length, k_begin, k_end, panel)
                _channels(x, x_at + r * x_row + s * x_tap + t, x_table, pixels, rows, taps, length, x_row, x_tap, weight, w_at,
                          w_row, bias if first else bias[:0], residual if first else y, y, y_at, y_table, k_begin, k_end,
                          low if last else -x.dtype.type(np.inf), high if last else x.dtype.type(np.inf), near, panel)


@helper
def _bands(chunk, chunks, x, weight, bias, residual, x_table, y_table, padded, panels, batch, H, W, C, K, G, w_row, R, S,
           dilation_h, dilation_w, stride_h, stride_w, origin_h, origin_w, OH, OW, y_size, y_row, y_base, band, channels,
           depth, low, high, y):
    """The bands of one chunk of the work, one after the other, each as often as its channels are split."""
    bands = (OH + band - 1) // band
    splits = (K + channels - 1) // channels if G == 1 else 1
    jobs = batch * bands * splits
    rows = (band - 1) * stride_h + (max(R, 1) - 1) * dilation_h + 1
    columns = (OW - 1) * stride_w + (max(S, 1) - 1) * dilation_w + 1
    CG, KG = C // G, K // G
    copied = padded.size > 0
    part = padded[chunk * rows * columns * C:(chunk + 1) * rows * columns * C] if copied else x
    panel = panels[chunk * (panels.size // chunks):(chunk + 1) * (panels.size // chunks)]
    width = columns if copied else W
    if copied:
        zero_run(part, 0, rows * columns * C)
    merged = G == 1 and dilation_w == 1
    near = OW if merged and depth == 0 and S == 3 and stride_w == 1 and OW % MR1 == 0 and not MULTIPLIES_BY_ELEMENT else 0
    for job in range(chunk * jobs // chunks, (chunk + 1) * jobs // chunks):
        split, n, oh = job // (batch * bands), job // bands % batch, (job % bands) * band
        height = min(band, OH - oh)
        top = oh * stride_h + origin_h
        if copied:
            copy_band(x, n * H * W * C, H, W, C, top, origin_w, (height - 1) * stride_h + (R - 1) * dilation_h + 1,
                      columns, bands > 1, part)
            begin = 0
        else:
            begin = ((n * H + top) * W + origin_w) * C
        y_at = n * y_size + y_base + oh * y_row
        for g in range(G):
            k = g * KG + split * channels
            k_end = min(k + channels, (g + 1) * KG)
            # neighbouring taps of one group lie one after the other: one loop over all of them
            if merged:
                _pixels(part, begin, x_table, height * OW, R, 1, S * C, dilation_h * width * C, 0, weight, w_row, bias,
                        residual, y, y_at, y_table, k, k_end, low, high, near, depth, panel)
            else:
                _pixels(part, begin + g * CG, x_table, height * OW, R, S, CG, dilation_h * width * C, dilation_w * C, weight,
                        w_row, bias, residual, y, y_at, y_table, k, k_end, low, high, 0, depth, panel)


@kernel
@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def conv2d_forward(x, weight, bias, residual, x_table, y_table, padded, panels, batch, H, W, C, K, G, w_row, R, S, dilation_h,
                   dilation_w, stride_h, stride_w, origin_h, origin_w, OH, OW, y_size, y_row, y_pixel, y_base, band,
                   channels, depth, chunks, low, high, threads, y):
    """y = clamp(x * weight + bias + residual), on a grid of output pixels that may be a part of y.

    Shapes   x (N, H, W, C); weight (R, S, C / G, K), rows w_row apart; bias (K,) or empty; residual like y, empty, or y
             itself; y: N samples of y_size numbers, pixel (oh, ow) at y_base + oh * y_row + ow * y_pixel.
             Output pixel (0, 0) sees input from (origin_h, origin_w) on, which may be outside: zeros.
    Numbers  channels: those of a group that one job makes, all of them but with G = 1; depth: rows of the weight that are
             read at a time, 0 for all
    Writes   y (its grid overwritten); x_table, y_table (band * OW), padded (chunks bands, or empty when nothing lies outside),
             panels (chunks, depth, channels; or empty: the weight is read where it lies)
    Threads  one iteration per chunk of bands and splits; each owns its part of y, of padded and of panels
    Source   ONNX Conv; seed, Z = W * X. Backward to the input is this kernel on dY with flipped, transposed weights (seed,
             dZ through a convolution), once for each phase of the stride
    """
    columns = (OW - 1) * stride_w + (max(S, 1) - 1) * dilation_w + 1
    row_width = columns if padded.size > 0 else W
    fill_table(x_table, band, OW, stride_h * row_width * C, stride_w * C)
    fill_table(y_table, band, OW, y_row, y_pixel)
    if threads > 1 and chunks > 1:
        for index in numba.prange(chunks):
            chunk = np.int64(index)
            _bands(chunk, chunks, x, weight, bias, residual, x_table, y_table, padded, panels, batch, H, W, C, K, G, w_row, R,
                   S, dilation_h, dilation_w, stride_h, stride_w, origin_h, origin_w, OH, OW, y_size, y_row, y_base, band,
                   channels, depth, low, high, y)
    else:
        for chunk in range(chunks):
            _bands(chunk, chunks, x, weight, bias, residual, x_table, y_table, padded, panels, batch, H, W, C, K, G, w_row, R,
                   S, dilation_h, dilation_w, stride_h, stride_w, origin_h, origin_w, OH, OW, y_size, y_row, y_base, band,
                   channels, depth, low, high, y)


@entry("x< weight< bias< residual< y= tables> padded> panels> H W C K G w_row R S dilation_h dilation_w stride_h stride_w "
       "origin_h origin_w OH OW y_size y_row y_pixel y_base band channels depth padded_size panels_size chunks low high")
def forward(arena, row, batch):
    row = fields_of(row)
    real = view(arena, 0, 1).dtype.type
    table = row.band * row.OW
    y_numbers = batch * row.y_size
    biases = row.K if row.bias >= 0 else 0
    residuals = y_numbers if row.residual >= 0 else 0
    conv2d_forward(view(arena, row.x, batch * row.H * row.W * row.C),
                   view(arena, row.weight, row.R * row.S * (row.C // row.G) * row.w_row),
                   view(arena, row.bias, biases),
                   view(arena, row.residual, residuals),
                   view_as(arena, row.tables, table, np.int64), view_as(arena, row.tables + 8 * table, table, np.int64),
                   view(arena, row.padded, row.padded_size), view(arena, row.panels, row.panels_size), batch, row.H, row.W,
                   row.C, row.K, row.G, row.w_row, row.R, row.S, row.dilation_h, row.dilation_w, row.stride_h, row.stride_w,
                   row.origin_h, row.origin_w, row.OH, row.OW, row.y_size, row.y_row, row.y_pixel, row.y_base, row.band,
                   row.channels, row.depth, row.chunks, real(number(row.low)), real(number(row.high)),
                   threads_for(arena, batch * row.OH * row.OW * row.R * row.S * (row.C // row.G) * row.K),
                   view(arena, row.y, y_numbers))


@helper
def _flip_tap(job, weight, S, C, K, G, tap_r, tap_s, step_r, step_s, TR, TS, w_row, packed):
    r, s = tap_r + (TR - 1 - job // TS) * step_r, tap_s + (TS - 1 - job % TS) * step_s
    CG, KG = C // G, K // G
    for g in range(G):
        transpose_matrix(weight, (r * S + s) * CG * K + g * KG, K, packed, job * KG * w_row + g * CG, w_row, CG, KG)


@kernel
@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def conv2d_flip(weight, S, C, K, G, tap_r, tap_s, step_r, step_s, TR, TS, w_row, threads, packed):
    """The flipped, transposed weights of one phase of the stride: every step-th tap, last first.

    Shapes   weight (R, S, C / G, K); packed (TR, TS, K / G, w_row), of which the first C columns are written
    Writes   packed (overwritten; columns past C undefined)
    Threads  one iteration per tap, each owns its matrix
    Source   seed, the flipped kernel K^F
    """
    taps = TR * TS
    if threads > 1 and taps > 1:
        for index in numba.prange(taps):
            job = np.int64(index)
            _flip_tap(job, weight, S, C, K, G, tap_r, tap_s, step_r, step_s, TR, TS, w_row, packed)
    else:
        for job in range(taps):
            _flip_tap(job, weight, S, C, K, G, tap_r, tap_s, step_r, step_s, TR, TS, w_row, packed)


@entry("weight< packed> R S C K G tap_r tap_s step_r step_s TR TS w_row")
def flip(arena, row, batch):
    row = fields_of(row)
    numbers = row.TR * row.TS * (row.C // row.G) * row.K
    conv2d_flip(view(arena, row.weight, row.R * row.S * (row.C // row.G) * row.K), row.S, row.C, row.K, row.G, row.tap_r,
                row.tap_s, row.step_r, row.step_s, row.TR, row.TS, row.w_row, threads_for(arena, numbers * 2),
                view(arena, row.packed, row.TR * row.TS * (row.K // row.G) * row.w_row))
