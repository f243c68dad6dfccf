"""Backward to a convolution's weights by register tiles.

A tile is MR rows of dW x NV vectors of output channels, summed along pixels. Two forms: with many channels a tile's rows
are neighbouring channels of one tap, and only pixels whose input exists are visited; with few channels they run across
taps, over bands of the image that hold their zeros.
"""
import numba
import numpy as np

from .compiler import helper, inlined, kernel
from .conv2d import copy_band, fill_table
from .entry import entry, fields_of, threads_for, view, view_as
from .layout import zero_run
from .linear_weight import add_partials
from .rows import rows_strided, rows_table
from .simd import MASKS_ARE_FREE, MR1, MR2, lanes
from .tile import tile_add, tile_store, tile_zeros
from .tile_fma import tile_fma, tile_fma_tail


@helper
def first_inside(offset, stride):
    """The first output position whose input position, offset + position * stride, is not negative."""
    return 0 if offset >= 0 else (stride - 1 - offset) // stride


@helper
def past_inside(offset, stride, size, limit):
    """One past the last output position, at most limit, whose input position is below size."""
    return 0 if size <= offset else min(limit, (size - 1 - offset) // stride + 1)


@helper
def _tile_rows(x, CG, KG):
    """Input channels in a tile: more where it is one register wide and there are as many."""
    return MR1 if KG <= lanes(x) and CG > MR2 else MR2


@inlined
def _tap_rows(x, dy, n_begin, n_end, oh_begin, oh_end, ow_begin, ow_end, H, W, C, OH, OW, K, stride_h, stride_w, top, left,
              c, count, k, columns, first, dweight, w_at, mr, nv):
    """count <= mr input channels of one tap x columns output channels, over a block of pixels."""
    tile = tile_zeros(x, mr, nv)
    rows = rows_strided(c, 1, count, mr)
    plain = not MASKS_ARE_FREE and columns == nv * lanes(x)
    for n in range(n_begin, n_end):
        for oh in range(oh_begin, oh_end):
            x_at = ((n * H + oh * stride_h + top) * W + left) * C
            dy_at = (n * OH + oh) * OW * K + k
            if plain:
                for ow in range(ow_begin, ow_end):
                    tile = tile_fma(tile, x, rows, x_at + ow * stride_w * C, dy, dy_at + ow * K)
            else:
                for ow in range(ow_begin, ow_end):
                    tile = tile_fma_tail(tile, x, rows, x_at + ow * stride_w * C, dy, dy_at + ow * K, columns)
    out = rows_strided(w_at, K, count, mr)
    if not first:
        tile = tile_add(tile, dweight, out, 0, count, columns)
    tile_store(tile, dweight, out, 0, count, columns)


@helper
def _tap_tile(x, dy, n_begin, n_end, oh_begin, oh_end, ow_begin, ow_end, H, W, C, OH, OW, K, stride_h, stride_w, top, left,
              c, count, k, columns, first, dweight, w_at, mr, nv):
    """_tap_rows; where the tile is whole its rows lie at constant distances, which takes one register and not mr."""
    if count == mr:
        _tap_rows(x, dy, n_begin, n_end, oh_begin, oh_end, ow_begin, ow_end, H, W, C, OH, OW, K, stride_h, stride_w, top, left,
                  c, mr, k, columns, first, dweight, w_at, mr, nv)
    else:
        _tap_rows(x, dy, n_begin, n_end, oh_begin, oh_end, ow_begin, ow_end, H, W, C, OH, OW, K, stride_h, stride_w, top, left,
                  c, count, k, columns, first, dweight, w_at, mr, nv)


@helper
def _tap_block(x, dy, n_begin, n_end, oh_begin, oh_end, tile_begin, tile_end, H, W, C, OH, OW, K, G, R, S, stride_h, stride_w,
               dilation_h, dilation_w, pad_top, pad_left, first, dweight):
    """Tiles tile_begin to tile_end of dW from one block of pixels; the taps change fastest, they share dY."""
    width = lanes(x)
    CG, KG = C // G, K // G
    rows = _tile_rows(x, CG, KG)
    k_blocks, c_blocks, taps = (KG + 2 * width - 1) // (2 * width), (CG + rows - 1) // rows, R * S
    for tile in range(tile_begin, tile_end):
        tap, block = tile % taps, tile // taps
        r, s = tap // S, tap % S
        c, block = (block % c_blocks) * rows, block // c_blocks
        k, g = (block % k_blocks) * 2 * width, block // k_blocks
        top, left = r * dilation_h - pad_top, s * dilation_w - pad_left
        begin, end = max(oh_begin, first_inside(top, stride_h)), min(oh_end, past_inside(top, stride_h, H, OH))
        ow_begin, ow_end = first_inside(left, stride_w), past_inside(left, stride_w, W, OW)
        count, columns = min(rows, CG - c), min(2 * width, KG - k)
        at = (tap * CG + c) * K + g * KG + k
        if columns > width:
            _tap_tile(x, dy, n_begin, n_end, begin, end, ow_begin, ow_end, H, W, C, OH, OW, K, stride_h, stride_w, top, left,
                      g * CG + c, count, g * KG + k, columns, first, dweight, at, MR2, 2)
        elif rows == MR1:
            _tap_tile(x, dy, n_begin, n_end, begin, end, ow_begin, ow_end, H, W, C, OH, OW, K, stride_h, stride_w, top, left,
                      g * CG + c, count, g * KG + k, columns, first, dweight, at, MR1, 1)
        else:
            _tap_tile(x, dy, n_begin, n_end, begin, end, ow_begin, ow_end, H, W, C, OH, OW, K, stride_h, stride_w, top, left,
                      g * CG + c, count, g * KG + k, columns, first, dweight, at, MR2, 1)


@helper
def _tap_job(job, groups, tiles, chunks, blocks, bands, band, samples, x, dy, batch, H, W, C, OH, OW, K, G, R, S, stride_h,
             stride_w, dilation_h, dilation_w, pad_top, pad_left, accumulate, partials, dweight):
    chunk, group = job // groups, job % groups
    size = R * S * (C // G) * K
    total = dweight if chunks == 1 else partials[chunk * size:(chunk + 1) * size]
    first = not (accumulate and chunks == 1)
    begin, end = chunk * blocks // chunks, (chunk + 1) * blocks // chunks
    tile_begin, tile_end = group * tiles // groups, (group + 1) * tiles // groups
    # an empty chunk still writes its zeros
    for block in range(begin, max(end, begin + 1)):
        n, oh = (block // bands) * samples, (block % bands) * band
        past = min(batch, n + samples) if block < end else n
        _tap_block(x, dy, n, past, oh, min(OH, oh + band), tile_begin, tile_end, H, W, C, OH, OW, K, G, R, S, stride_h,
                   stride_w, dilation_h, dilation_w, pad_top, pad_left, first and block == begin, total)


@kernel
@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def conv2d_backward_weight(x, dy, batch, H, W, C, OH, OW, K, G, R, S, stride_h, stride_w, dilation_h, dilation_w, pad_top,
                           pad_left, band, samples, chunks, accumulate, threads, partials, dweight):
    """dweight = sum over pixels of patch(x) dy, for many channels.

    Shapes   x (N, H, W, C); dy (N, OH, OW, K); dweight (R, S, C / G, K); partials (chunks, R, S, C / G, K), unused when
             chunks is 1
    Writes   dweight (overwritten, or added to with accumulate); partials (undefined)
    Threads  one iteration per chunk of pixels and group of tiles; each owns its tiles of its partial sum; the sums are added
             in order and their number follows from the layer's shape
    Source   seed, dW = sum of the patches of A times dZ
    """
    width = lanes(x)
    CG, KG = C // G, K // G
    rows = _tile_rows(x, CG, KG)
    tiles = ((KG + 2 * width - 1) // (2 * width)) * ((CG + rows - 1) // rows) * R * S * G
    bands = (OH + band - 1) // band
    blocks = ((batch + samples - 1) // samples) * bands
    # each group goes through all pixels once; how many there are changes no sum
    groups = min(tiles, 2 * threads) if threads > 1 else 1
    jobs = chunks * groups
    if threads > 1 and jobs > 1:
        for index in numba.prange(jobs):
            job = np.int64(index)
            _tap_job(job, groups, tiles, chunks, blocks, bands, band, samples, x, dy, batch, H, W, C, OH, OW, K, G, R, S,
                     stride_h, stride_w, dilation_h, dilation_w, pad_top, pad_left, accumulate, partials, dweight)
    else:
        for job in range(jobs):
            _tap_job(job, groups, tiles, chunks, blocks, bands, band, samples, x, dy, batch, H, W, C, OH, OW, K, G, R, S,
                     stride_h, stride_w, dilation_h, dilation_w, pad_top, pad_left, accumulate, partials, dweight)
    if chunks > 1:
        size = R * S * CG * K
        add_partials(partials, chunks, size, 0, size, accumulate, dweight)


@entry("x< dy< dweight= scratch> H W C OH OW K G R S stride_h stride_w dilation_h dilation_w pad_top pad_left band samples "
       "chunks accumulate")
def backward(arena, row, batch):
    row = fields_of(row)
    size = row.R * row.S * (row.C // row.G) * row.K
    partials = row.chunks * size if row.chunks > 1 else 0
    conv2d_backward_weight(view(arena, row.x, batch * row.H * row.W * row.C),
                           view(arena, row.dy, batch * row.OH * row.OW * row.K), batch, row.H, row.W, row.C, row.OH, row.OW,
                           row.K, row.G, row.R, row.S, row.stride_h, row.stride_w, row.dilation_h, row.dilation_w,
                           row.pad_top, row.pad_left, row.band, row.samples, row.chunks, row.accumulate,
                           threads_for(arena, batch * row.OH * row.OW * size),
                           view(arena, row.scratch, partials),
                           view(arena, row.dweight, size))


@helper
def _window_tile(x, x_at, x_table, row_table, j, count, dy, dy_at, K, pixels, k, columns, first, total, mr, nv):
    """count <= mr rows of dW (across taps) x columns output channels, over a band of pixels."""
    tile = tile_zeros(x, mr, nv)
    rows = rows_table(row_table, j, count, x_at, mr)
    if MASKS_ARE_FREE or columns < nv * lanes(x):
        for p in range(pixels):
            tile = tile_fma_tail(tile, x, rows, x_table[p], dy, dy_at + p * K + k, columns)
    else:
        for p in range(pixels):
            tile = tile_fma(tile, x, rows, x_table[p], dy, dy_at + p * K + k)
    out = rows_strided(j * K + k, K, count, mr)
    if not first:
        tile = tile_add(tile, total, out, 0, count, columns)
    tile_store(tile, total, out, 0, count, columns)


@helper
def _window_chunk(chunk, chunks, x, dy, batch, H, W, C, OH, OW, K, R, S, stride_h, stride_w, dilation_h, dilation_w, pad_top,
                  pad_left, band, x_table, row_table, padded, partials):
    """One chunk's bands into its partial sum."""
    lane_count = lanes(x)
    bands = (OH + band - 1) // band
    jobs = batch * bands
    rows = (band - 1) * stride_h + (R - 1) * dilation_h + 1
    columns = (OW - 1) * stride_w + (S - 1) * dilation_w + 1
    window = R * S * C
    copied = padded.size > 0
    part = padded[chunk * rows * columns * C:(chunk + 1) * rows * columns * C] if copied else x
    total = partials[chunk * window * K:(chunk + 1) * window * K]
    if copied:
        zero_run(part, 0, rows * columns * C)
    begin, end = chunk * jobs // chunks, (chunk + 1) * jobs // chunks
    if begin == end:
        zero_run(total, 0, window * K)
    for job in range(begin, end):
        n, oh = job // bands, (job % bands) * band
        height = min(band, OH - oh)
        top = oh * stride_h - pad_top
        x_at = ((n * H + top) * W - pad_left) * C
        if copied:
            copy_band(x, n * H * W * C, H, W, C, top, -pad_left, (height - 1) * stride_h + (R - 1) * dilation_h + 1,
                      columns, bands > 1, part)
            x_at = 0
        dy_at = (n * OH + oh) * OW * K
        k = 0
        while k < K:
            if K - k > lane_count:
                size = min(K - k, 2 * lane_count)
                for j in range(0, window, MR2):
                    _window_tile(part, x_at, x_table, row_table, j, min(MR2, window - j), dy, dy_at, K, height * OW, k, size,
                                 job == begin, total, MR2, 2)
            else:
                size = K - k
                for j in range(0, window, MR1):
                    _window_tile(part, x_at, x_table, row_table, j, min(MR1, window - j), dy, dy_at, K, height * OW, k, size,
                                 job == begin, total, MR1, 1)
            k += size


@kernel
@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def conv2d_backward_weight_few(x, dy, batch, H, W, C, OH, OW, K, R, S, stride_h, stride_w, dilation_h, dilation_w, pad_top,
                               pad_left, band, chunks, accumulate, threads, x_table, row_table, padded, partials, dweight):
    """dweight = sum over pixels of patch(x) dy, for few channels and one group.

    Shapes   as conv2d_backward_weight; x_table (band * OW), row_table (R * S * C) int64; padded: chunks bands, or empty
             when nothing lies outside; partials (chunks, R, S, C, K)
    Writes   dweight (overwritten, or added to with accumulate); the tables, padded and partials (undefined)
    Threads  one iteration per chunk of bands, each owns its partial sum, added in order
    Source   seed, dW = sum of the patches of A times dZ
    """
    columns = (OW - 1) * stride_w + (S - 1) * dilation_w + 1
    width = columns if padded.size > 0 else W
    fill_table(x_table, band, OW, stride_h * width * C, stride_w * C)
    for r in range(R):
        for s in range(S):
            for c in range(C):
                row_table[(r * S + s) * C + c] = (r * dilation_h * width + s * dilation_w) * C + c
    if threads > 1 and chunks > 1:
        for index in numba.prange(chunks):
            chunk = np.int64(index)
            _window_chunk(chunk, chunks, x, dy, batch, H, W, C, OH, OW, K, R, S, stride_h, stride_w, dilation_h, dilation_w,
                          pad_top, pad_left, band, x_table, row_table, padded, partials)
    else:
        for chunk in range(chunks):
            _window_chunk(chunk, chunks, x, dy, batch, H, W, C, OH, OW, K, R, S, stride_h, stride_w, dilation_h, dilation_w,
                          pad_top, pad_left, band, x_table, row_table, padded, partials)
    size = R * S * C * K
    add_partials(partials, chunks, size, 0, size, accumulate, dweight)


@entry("x< dy< dweight= tables> padded> scratch> H W C OH OW K R S stride_h stride_w dilation_h dilation_w pad_top pad_left "
       "band padded_size chunks accumulate")
def backward_few(arena, row, batch):
    row = fields_of(row)
    size = row.R * row.S * row.C * row.K
    table = row.band * row.OW
    conv2d_backward_weight_few(view(arena, row.x, batch * row.H * row.W * row.C),
                               view(arena, row.dy, batch * row.OH * row.OW * row.K), batch, row.H, row.W, row.C, row.OH,
                               row.OW, row.K, row.R, row.S, row.stride_h, row.stride_w, row.dilation_h, row.dilation_w,
                               row.pad_top, row.pad_left, row.band, row.chunks, row.accumulate,
                               threads_for(arena, batch * row.OH * row.OW * size),
                               view_as(arena, row.tables, table, np.int64),
                               view_as(arena, row.tables + 8 * table, row.R * row.S * row.C, np.int64),
                               view(arena, row.padded, row.padded_size),
                               view(arena, row.scratch, row.chunks * size), view(arena, row.dweight, size))
