"""3 x 3 convolution of stride 1 by Winograd's F(2 x 2, 3 x 3): 16 multiplications where the sum has 36.

A tile of 2 x 2 output pixels comes from 4 x 4 pixels of the input: y = A^T [(G w G^T) * (B^T x B)] A (Lavin and Gray 2016,
"Fast Algorithms for Convolutional Neural Networks"). What stands in brackets is, over the channels, a matrix product for each
of the 16 points, whose rows are tiles. Rounding errors grow by a factor of two or three.
"""
import numba
import numpy as np

from .compiler import helper, inlined, kernel
from .depthwise2d import finish
from .entry import entry, fields_of, number, threads_for, view
from .layout import vectors_of
from .linear import forward_tiles
from .rows import rows_strided
from .simd import INSTRUCTION_SET, LESS1, LESS2, LESS4, MR1, MR2, MR4, lanes
from .tile import tile_add, tile_zeros
from .tile_fma import tile_weighted
from .vector import vector_add, vector_mul, vector_of, vector_sub, vector_take, vector_write

POINTS = 16
# Numbers between two points' matrices: without them they often lie multiples of 4096 bytes apart, where a cache has few places.
GAP = 16
# Input channels whose weights, one vector wide, fit into half of the registers and are multiplied from there; 0: none do.
HELD = 16 if INSTRUCTION_SET == "avx512" else 0


@helper
def _padded(K, like):
    """K rounded up to whole registers."""
    step = lanes(like)
    return (K + step - 1) // step * step


@inlined
def _weight_points(first, second, third, half):
    """G times a column of three."""
    ends, middle = vector_mul(vector_add(first, third), half), vector_mul(second, half)
    return first, vector_add(ends, middle), vector_sub(ends, middle), third


@helper
def _weight_vector(weight, at, tap, count, packed, to, point):
    """The 16 points of one vector of output channels; neighbouring taps lie `tap` apart, neighbouring points `point`."""
    half = vector_of(weight, weight.dtype.type(0.5))
    left = _weight_points(vector_take(weight, at, count), vector_take(weight, at + 3 * tap, count),
                          vector_take(weight, at + 6 * tap, count), half)
    middle = _weight_points(vector_take(weight, at + tap, count), vector_take(weight, at + 4 * tap, count),
                            vector_take(weight, at + 7 * tap, count), half)
    right = _weight_points(vector_take(weight, at + 2 * tap, count), vector_take(weight, at + 5 * tap, count),
                           vector_take(weight, at + 8 * tap, count), half)
    _put_points(_weight_points(left[0], middle[0], right[0], half), packed, to, point, count)
    _put_points(_weight_points(left[1], middle[1], right[1], half), packed, to + 4 * point, point, count)
    _put_points(_weight_points(left[2], middle[2], right[2], half), packed, to + 8 * point, point, count)
    _put_points(_weight_points(left[3], middle[3], right[3], half), packed, to + 12 * point, point, count)


@inlined
def _put_points(points, target, at, step, count):
    """Four vectors, each `step` from the one before."""
    vector_write(points[0], target, at, count)
    vector_write(points[1], target, at + step, count)
    vector_write(points[2], target, at + 2 * step, count)
    vector_write(points[3], target, at + 3 * step, count)


@helper
def _weight_job(c, weight, C, K, w_row, packed):
    """All points of one input channel, laid out for tiles: as copy_panels does, each point a matrix of its own."""
    step = lanes(weight)
    point = C * _padded(K, weight)
    block = 0
    while block < K:
        columns = vectors_of(K - block, step) * step
        for k in range(block, min(K, block + columns), step):
            _weight_vector(weight, c * w_row + k, C * w_row, K - k, packed, block * C + c * columns + k - block, point)
        block += columns


@kernel
@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def winograd_weight(weight, C, K, w_row, threads, packed):
    """packed = G weight G^T, for winograd_forward.

    Shapes   weight (3, 3, C, K), rows w_row apart; packed (16, C, K rounded up to registers), each point in the panels of
             copy_panels
    Writes   packed (columns past K are undefined)
    Threads  one iteration per input channel, each owns its rows
    Source   Lavin and Gray 2016
    """
    if threads > 1 and C > 1:
        for index in numba.prange(C):
            c = np.int64(index)
            _weight_job(c, weight, C, K, w_row, packed)
    else:
        for c in range(C):
            _weight_job(c, weight, C, K, w_row, packed)


@entry("weight< packed> C K w_row")
def weight(arena, row, batch):
    row = fields_of(row)
    packed = view(arena, row.packed, 0)
    winograd_weight(view(arena, row.weight, 9 * row.C * row.w_row), row.C, row.K, row.w_row,
                    threads_for(arena, 64 * row.C * row.K),
                    view(arena, row.packed, POINTS * row.C * _padded(row.K, packed)))


@inlined
def _pixel(x, line, column, W, C, count, whole):
    """A vector of a pixel of a line, zeros where that is outside; whole: it never is."""
    return vector_take(x, line + column * C, count if whole or 0 <= column < W else 0)


@inlined
def _row_points(x, plane, h, w, H, W, C, count, whole):
    """Four neighbouring pixels of row h, times B."""
    inside = count if whole or 0 <= h < H else 0
    line = plane + h * W * C
    first, second = _pixel(x, line, w, W, C, inside, whole), _pixel(x, line, w + 1, W, C, inside, whole)
    third, fourth = _pixel(x, line, w + 2, W, C, inside, whole), _pixel(x, line, w + 3, W, C, inside, whole)
    return vector_sub(first, third), vector_add(second, third), vector_sub(third, second), vector_sub(second, fourth)


@inlined
def _column_points(first, second, third, fourth):
    """B^T times a column of four."""
    return vector_sub(first, third), vector_add(second, third), vector_sub(third, second), vector_sub(second, fourth)


@inlined
def _patch(x, plane, h, w, H, W, C, count, whole, points, to, point):
    """B^T x B of the 4 x 4 pixels from (h, w) on, of one vector of channels; points are `point` apart."""
    first = _row_points(x, plane, h, w, H, W, C, count, whole)
    second = _row_points(x, plane, h + 1, w, H, W, C, count, whole)
    third = _row_points(x, plane, h + 2, w, H, W, C, count, whole)
    fourth = _row_points(x, plane, h + 3, w, H, W, C, count, whole)
    _put_points(_column_points(first[0], second[0], third[0], fourth[0]), points, to, 4 * point, count)
    _put_points(_column_points(first[1], second[1], third[1], fourth[1]), points, to + point, 4 * point, count)
    _put_points(_column_points(first[2], second[2], third[2], fourth[2]), points, to + 2 * point, 4 * point, count)
    _put_points(_column_points(first[3], second[3], third[3], fourth[3]), points, to + 3 * point, 4 * point, count)


@helper
def _gather(x, plane, h, w, H, W, C, points, to, point):
    """_patch for all channels."""
    step = lanes(x)
    if h >= 0 and h + 4 <= H and w >= 0 and w + 4 <= W:
        for c in range(0, C, step):
            _patch(x, plane + c, h, w, H, W, C, C - c, True, points, to + c, point)
    else:
        for c in range(0, C, step):
            _patch(x, plane + c, h, w, H, W, C, C - c, False, points, to + c, point)


@helper
def _multiply_held(points, weight, tiles, block, K, products):
    """As _multiply for as many channels as HELD: a vector of a point's weights stays in registers for all tiles."""
    width = lanes(points)
    size = HELD * _padded(K, points)
    for point in range(POINTS):
        x_at, to = point * (block * HELD + GAP), point * (block * K + GAP)
        k = 0
        while k < K:
            row = vectors_of(K - k, width) * width
            for j in range(k, min(K, k + row), width):
                count = min(K - j, width)
                rows = rows_strided(point * size + k * HELD + j - k, row, HELD, HELD)
                held = tile_add(tile_zeros(points, HELD, 1), weight, rows, 0, HELD, count)
                for tile in range(tiles):
                    vector_write(tile_weighted(held, points, x_at + tile * HELD), products, to + tile * K + j, count)
            k += row


@helper
def _multiply(points, weight, tiles, block, C, K, products):
    """products (16, block, K) = points (16, block, C) times the weight's 16 matrices, of the first `tiles` rows."""
    if HELD > 0 and C == HELD:
        _multiply_held(points, weight, tiles, block, K, products)
        return
    width, size, none = lanes(points), C * _padded(K, points), products[:0]
    low, high = -points.dtype.type(np.inf), points.dtype.type(np.inf)
    for point in range(POINTS):
        k = 0
        while k < K:
            vectors = vectors_of(K - k, width)
            columns = min(K - k, vectors * width)
            w_at, x_at, to = point * size + k * C, point * (block * C + GAP), point * (block * K + GAP) + k
            if MR4 > 0 and vectors == 4:
                forward_tiles(points, 0, tiles, x_at, C, C, weight, w_at, 4 * width, none, to, none, products, K,
                              columns, low, high, MR4, LESS4, 4)
            elif vectors == 2:
                forward_tiles(points, 0, tiles, x_at, C, C, weight, w_at, 2 * width, none, to, none, products, K,
                              columns, low, high, MR2, LESS2, 2)
            else:
                forward_tiles(points, 0, tiles, x_at, C, C, weight, w_at, width, none, to, none, products, K,
                              columns, low, high, MR1, LESS1, 1)
            k += columns


@inlined
def _outputs(products, at, point, count):
    """Four neighbouring points times A."""
    first, second = vector_take(products, at, count), vector_take(products, at + point, count)
    third, fourth = vector_take(products, at + 2 * point, count), vector_take(products, at + 3 * point, count)
    return vector_add(first, vector_add(second, third)), vector_sub(vector_sub(second, third), fourth)


@helper
def _put(products, at, point, bias, residual, y, y_at, OW, K, rows, columns, low, high):
    """A^T m A of one tile, with bias and residual, into its up to 2 x 2 pixels of y."""
    for k in range(0, K, lanes(y)):
        count = K - k
        start = vector_of(y, y.dtype.type(0))
        if bias.size > 0:
            start = vector_take(bias, k, count)
        first, second = _outputs(products, at + k, point, count), _outputs(products, at + k + 4 * point, point, count)
        third = _outputs(products, at + k + 8 * point, point, count)
        fourth = _outputs(products, at + k + 12 * point, point, count)
        to = y_at + k
        above, below = vector_add(vector_add(second[0], third[0]), start), vector_add(vector_sub(second[0], third[0]), start)
        finish(vector_add(first[0], above), residual, y, to, count, low, high)
        if rows > 1:
            finish(vector_sub(below, fourth[0]), residual, y, to + OW * K, count, low, high)
        if columns > 1:
            above = vector_add(vector_add(second[1], third[1]), start)
            below = vector_add(vector_sub(second[1], third[1]), start)
            finish(vector_add(first[1], above), residual, y, to + K, count, low, high)
            if rows > 1:
                finish(vector_sub(below, fourth[1]), residual, y, to + (OW + 1) * K, count, low, high)


@helper
def _next(n, oh, ow, OH, OW):
    """Sample and first pixel of the tile that follows."""
    ow += 2
    if ow >= OW:
        ow, oh = 0, oh + 2
        if oh >= OH:
            oh, n = 0, n + 1
    return n, oh, ow


@helper
def _tiles(chunk, chunks, x, weight, bias, residual, batch, H, W, C, K, OH, OW, pad_top, pad_left, block, low, high, scratch,
           y):
    """The blocks of tiles of one chunk of the work, one after the other."""
    down, across = (OH + 1) // 2, (OW + 1) // 2
    total = batch * down * across
    jobs = (total + block - 1) // block
    size, point, product = scratch.size // chunks, block * C + GAP, block * K + GAP
    points, products = scratch[chunk * size:(chunk + 1) * size], scratch[chunk * size + POINTS * point:(chunk + 1) * size]
    for job in range(chunk * jobs // chunks, (chunk + 1) * jobs // chunks):
        begin, tiles = job * block, min(block, total - job * block)
        place = begin % (down * across)
        first = begin // (down * across), place // across * 2, place % across * 2
        n, oh, ow = first
        for tile in range(tiles):
            _gather(x, n * H * W * C, oh - pad_top, ow - pad_left, H, W, C, points, tile * C, point)
            n, oh, ow = _next(n, oh, ow, OH, OW)
        _multiply(points, weight, tiles, block, C, K, products)
        n, oh, ow = first
        for tile in range(tiles):
            _put(products, tile * K, product, bias, residual, y, ((n * OH + oh) * OW + ow) * K, OW, K, OH - oh, OW - ow, low,
                 high)
            n, oh, ow = _next(n, oh, ow, OH, OW)


@kernel
@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def winograd_forward(x, weight, bias, residual, batch, H, W, C, K, OH, OW, pad_top, pad_left, block, chunks, low, high, threads,
                     scratch, y):
    """y = clamp(x * weight + bias + residual), for windows of 3 x 3 and a stride of 1.

    Shapes   x (N, H, W, C); weight: winograd_weight's; bias (K,) or empty; y (N, OH, OW, K); residual like y, empty, or y
             itself; scratch (chunks, 16, block (C + K) + 2 GAP)
    Numbers  block: tiles of 2 x 2 pixels that are multiplied at a time
    Writes   y (overwritten), scratch
    Threads  one iteration per chunk of blocks, each owns its pixels of y and its part of scratch
    Source   ONNX Conv; Lavin and Gray 2016
    """
    if threads > 1 and chunks > 1:
        for index in numba.prange(chunks):
            chunk = np.int64(index)
            _tiles(chunk, chunks, x, weight, bias, residual, batch, H, W, C, K, OH, OW, pad_top, pad_left, block, low, high,
                   scratch, y)
    else:
        for chunk in range(chunks):
            _tiles(chunk, chunks, x, weight, bias, residual, batch, H, W, C, K, OH, OW, pad_top, pad_left, block, low, high,
                   scratch, y)


@entry("x< weight< bias< residual< y= scratch> H W C K OH OW pad_top pad_left block chunks low high")
def forward(arena, row, batch):
    row = fields_of(row)
    numbers = view(arena, 0, 1)
    real = numbers.dtype.type
    size = batch * row.OH * row.OW * row.K
    winograd_forward(view(arena, row.x, batch * row.H * row.W * row.C),
                     view(arena, row.weight, POINTS * row.C * _padded(row.K, numbers)),
                     view(arena, row.bias, row.K if row.bias >= 0 else 0),
                     view(arena, row.residual, size if row.residual >= 0 else 0), batch, row.H, row.W, row.C, row.K, row.OH,
                     row.OW, row.pad_top, row.pad_left, row.block, row.chunks, real(number(row.low)), real(number(row.high)),
                     threads_for(arena, 4 * size * row.C),
                     view(arena, row.scratch, row.chunks * POINTS * (row.block * (row.C + row.K) + 2 * GAP)),
                     view(arena, row.y, size))
