"""Tiles whose lanes are neighbouring pixels: their 2 x 2 windows, and how they are stored with the channels last."""
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .simd import I32, I64, lanes_of, masked_store, pointer_to, splat, store_vector
from .tile import TileType
from .vector import convert, is_number_array


@intrinsic
def tile_fill_rows(typing_context, tile, b, rows):
    """A tile whose row i is b[rows[i]] in every lane."""
    if not isinstance(tile, TileType):
        return None

    def codegen(context, builder, sig, args):
        value, b_array, row_offsets = args
        for i in range(tile.mr):
            scalar = builder.load(pointer_to(context, builder, sig.args[1], b_array, builder.extract_value(row_offsets, i)))
            row = splat(builder, scalar, lanes_of(tile.dtype))
            for j in range(tile.nv):
                value = builder.insert_value(value, row, i * tile.nv + j)
        return value
    return tile(tile, b, rows), codegen


def _shuffle(builder, a, b, lanes):
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, len(lanes)), lanes))


def _beats(builder, a, b):
    """Lanes where a beats b as the maximum: a > b, or only a is NaN."""
    return builder.and_(builder.fcmp_unordered(">", a, b), builder.fcmp_ordered("ord", b, b))


@intrinsic
def tile_windows(typing_context, upper, lower):
    """The maxima of 2 x 2 windows of pixels, and which of the four they are: two tiles one vector wide.

    upper, lower: two rows of pixels, each two vectors wide, of the same channels. The first maximum wins, NaN wins.
    """
    if not (isinstance(upper, TileType) and upper == lower and upper.nv == 2):
        return None
    half = TileType(upper.dtype, upper.mr, 1)
    count = lanes_of(upper.dtype)

    def codegen(context, builder, sig, args):
        kind = context.get_value_type(half)
        maxima, indices = ir.Constant(kind, ir.Undefined), ir.Constant(kind, ir.Undefined)
        for i in range(upper.mr):
            four = []
            for tile in args:
                pixels = builder.extract_value(tile, 2 * i), builder.extract_value(tile, 2 * i + 1)
                four += [_shuffle(builder, *pixels, list(range(begin, 2 * count, 2))) for begin in (0, 1)]
            best, index = four[0], ir.Constant(four[0].type, [0.0] * count)
            for q in (1, 2, 3):
                beats = _beats(builder, four[q], best)
                index = builder.select(beats, ir.Constant(best.type, [float(q)] * count), index)
                best = builder.select(beats, four[q], best)
            maxima, indices = builder.insert_value(maxima, best, i), builder.insert_value(indices, index, i)
        return context.make_tuple(builder, sig.return_type, (maxima, indices))
    return types.UniTuple(half, 2)(upper, lower), codegen


def _zipped(builder, a, b):
    """Two sequences of vectors as one, in which their numbers take turns."""
    count = a[0].type.count
    both = [lane for i in range(count) for lane in (i, count + i)]
    return [_shuffle(builder, x, y, half) for x, y in zip(a, b, strict=True) for half in (both[:count], both[count:])]


def _turned(builder, rows):
    """The numbers of equally long rows, column after column, with as many places for each as the next power of two."""
    places = 1 << (len(rows) - 1).bit_length()
    sequences = [[row] for row in rows + [rows[-1]] * (places - len(rows))]
    while len(sequences) > 1:
        half = len(sequences) // 2
        sequences = [_zipped(builder, sequences[i], sequences[i + half]) for i in range(half)]
    return sequences[0], places


def _picked(builder, rows, places):
    """A vector whose lanes are rows[i][j] for the pairs (i, j) in places."""
    lanes = len(places)
    made = None
    for first in range(0, len(rows), 2):
        chosen = [(i - first) * lanes + j if i in (first, first + 1) else None for i, j in places]
        part = _shuffle(builder, rows[first], rows[min(first + 1, len(rows) - 1)], [lane or 0 for lane in chosen])
        made = part if made is None else _shuffle(builder, made, part, [i if lane is None else lanes + i
                                                                        for i, lane in enumerate(chosen)])
    return made


@intrinsic
def tile_store_turned(typing_context, tile, c, at, step, pixels, channels):
    """c[at + p * step + i] = tile[i, p], as a number of c's dtype, for the first `pixels` p and `channels` i."""
    if not (isinstance(tile, TileType) and tile.nv == 1 and is_number_array(c)):
        return None
    count = lanes_of(tile.dtype)

    def codegen(context, builder, sig, args):
        value, array, at, step, pixels, channels = args
        number = context.get_value_type(c.dtype)
        rows = [builder.extract_value(value, i) for i in range(tile.mr)]

        def converted(vector):
            return convert(builder, vector, tile.dtype, c.dtype, ir.VectorType(number, count))

        def pointer(offset):
            return pointer_to(context, builder, c, array, builder.add(at, offset))

        def side_by_side():
            total = builder.mul(pixels, I64(tile.mr))
            for first in range(0, count * tile.mr, count):
                places = [(i % tile.mr, i // tile.mr) for i in range(first, first + count)]
                vector, left = converted(_picked(builder, rows, places)), builder.sub(total, I64(first))
                with builder.if_else(builder.icmp_signed(">=", left, I64(count))) as (whole, part):
                    with whole:
                        store_vector(builder, vector, pointer(I64(first)))
                    with part:
                        masked_store(builder, vector, pointer(I64(first)), left)

        def apart():
            vectors, places = _turned(builder, rows)
            vectors = [converted(vector) for vector in vectors]
            for p in range(count):
                with builder.if_then(builder.icmp_signed("<", I64(p), pixels)):
                    for first in range(0, tile.mr, count):
                        vector, lane = divmod(p * places + first, count)
                        piece = _shuffle(builder, vectors[vector], vectors[vector],
                                         [min(lane + i, count - 1) for i in range(count)])
                        masked_store(builder, piece, pointer(builder.add(builder.mul(I64(p), step), I64(first))),
                                     builder.sub(channels, I64(first)))
        alone = builder.and_(builder.icmp_signed("==", step, I64(tile.mr)), builder.icmp_signed("==", channels, I64(tile.mr)))
        with builder.if_else(alone) as (together, others):
            with together:
                side_by_side()
            with others:
                apart()
        return context.get_dummy_value()
    return types.void(tile, c, types.intp, types.intp, types.intp, types.intp), codegen
