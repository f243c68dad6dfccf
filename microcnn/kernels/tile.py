"""Tile: a block of vector registers as one numba value, and what fills, stores and clamps it.

LLVM keeps a Tile, MR rows x NV vectors, in registers across ordinary Python loops. MR and NV are literal integers.
"""
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, models, register_model

from .rows import RowsType, row_starts
from .simd import I64, lanes_of, load_vector, masked_load, masked_store, pointer_to, splat, store_vector, vector_type


class TileType(types.Type):
    """MR rows x NV vectors of dtype."""

    def __init__(self, dtype, mr, nv):
        self.dtype, self.mr, self.nv = dtype, mr, nv
        super().__init__(name=f"Tile({dtype},{lanes_of(dtype)},{mr},{nv})")


@register_model(TileType)
class TileModel(models.PrimitiveModel):
    def __init__(self, dmm, tile):
        super().__init__(dmm, tile, ir.ArrayType(vector_type(tile.dtype), tile.mr * tile.nv))


def load_columns(builder, pointer, tile, count=None):
    """The tile's NV vectors at pointer; with a count, only that many numbers are read, the rest are zero."""
    vector = vector_type(tile.dtype)
    columns = []
    for j in range(tile.nv):
        at = builder.gep(pointer, [I64(j * vector.count)])
        columns.append(load_vector(builder, at, vector) if count is None else
                       masked_load(builder, at, vector, builder.sub(count, I64(j * vector.count))))
    return columns


@intrinsic(prefer_literal=True)
def tile_zeros(typing_context, like, mr, nv):
    """A tile of zeros of like's dtype; mr and nv must be literal integers."""
    if not (isinstance(mr, types.IntegerLiteral) and isinstance(nv, types.IntegerLiteral)):
        return None
    tile = TileType(like.dtype, mr.literal_value, nv.literal_value)

    def codegen(context, builder, signature, args):
        return ir.Constant(context.get_value_type(tile), None)
    return tile(like, mr, nv), codegen


@intrinsic
def tile_fill(typing_context, tile, b, b_offset, count):
    """A tile each of whose rows is b[b_offset : b_offset + count], then zeros."""
    if not isinstance(tile, TileType):
        return None
    signature = tile(tile, b, types.intp, types.intp)

    def codegen(context, builder, sig, args):
        value, b_array, b_off, limit = args
        columns = load_columns(builder, pointer_to(context, builder, sig.args[1], b_array, b_off), tile, limit)
        for k in range(tile.mr * tile.nv):
            value = builder.insert_value(value, columns[k % tile.nv], k)
        return value
    return signature, codegen


def _each_row(builder, tile, count, body):
    """body(i) for the rows below count."""
    for i in range(tile.mr):
        with builder.if_then(builder.icmp_signed("<", I64(i), count)):
            body(i)


@intrinsic
def tile_store(typing_context, tile, c, rows, c_offset, row_count, count):
    """c[rows[i] + c_offset : ... + count] = tile[i, :count] for i < row_count"""
    if not (isinstance(tile, TileType) and isinstance(rows, RowsType)):
        return None
    signature = types.void(tile, c, rows, types.intp, types.intp, types.intp)
    lanes = lanes_of(tile.dtype)

    def codegen(context, builder, sig, args):
        value, c_array, row_offsets, c_off, row_count, count = args
        start = row_starts(context, builder, sig.args[1], c_array, row_offsets, c_off)
        full = builder.icmp_signed(">=", count, I64(tile.nv * lanes))

        def store(i):
            pointer = start(i)
            with builder.if_else(full) as (whole, part):
                with whole:
                    for j in range(tile.nv):
                        store_vector(builder, builder.extract_value(value, i * tile.nv + j),
                                     builder.gep(pointer, [I64(j * lanes)]))
                with part:
                    for j in range(tile.nv):
                        masked_store(builder, builder.extract_value(value, i * tile.nv + j),
                                     builder.gep(pointer, [I64(j * lanes)]), builder.sub(count, I64(j * lanes)))
        _each_row(builder, tile, row_count, store)
        return context.get_dummy_value()
    return signature, codegen


@intrinsic
def tile_add(typing_context, tile, c, rows, c_offset, row_count, count):
    """The tile plus c[rows[i] + c_offset : ... + count] in each row; rows past row_count repeat the last."""
    if not (isinstance(tile, TileType) and isinstance(rows, RowsType)):
        return None
    signature = tile(tile, c, rows, types.intp, types.intp, types.intp)

    def codegen(context, builder, sig, args):
        value, c_array, row_offsets, c_off, _, count = args
        start = row_starts(context, builder, sig.args[1], c_array, row_offsets, c_off)
        for i in range(tile.mr):
            for j, column in enumerate(load_columns(builder, start(i), tile, count)):
                k = i * tile.nv + j
                value = builder.insert_value(value, builder.fadd(builder.extract_value(value, k), column), k)
        return value
    return signature, codegen


@intrinsic
def tile_sum(typing_context, first, second):
    """The sum of two tiles of one shape."""
    if not (isinstance(first, TileType) and first == second):
        return None

    def codegen(context, builder, sig, args):
        value, other = args
        for k in range(first.mr * first.nv):
            total = builder.fadd(builder.extract_value(value, k), builder.extract_value(other, k))
            value = builder.insert_value(value, total, k)
        return value
    return first(first, second), codegen


@intrinsic
def tile_accumulate(typing_context, tile, c, rows, c_offset, row_count, count):
    """c[rows[i] + c_offset : ... + count] += tile[i, :count] for i < row_count, one row after the other: rows may overlap."""
    if not (isinstance(tile, TileType) and isinstance(rows, RowsType)):
        return None
    signature = types.void(tile, c, rows, types.intp, types.intp, types.intp)
    lanes = lanes_of(tile.dtype)

    def codegen(context, builder, sig, args):
        value, c_array, row_offsets, c_off, row_count, count = args
        start = row_starts(context, builder, sig.args[1], c_array, row_offsets, c_off)

        def add(i):
            pointer = start(i)
            for j, column in enumerate(load_columns(builder, pointer, tile, count)):
                total = builder.fadd(builder.extract_value(value, i * tile.nv + j), column)
                masked_store(builder, total, builder.gep(pointer, [I64(j * lanes)]),
                             builder.sub(count, I64(j * lanes)))
        _each_row(builder, tile, row_count, add)
        return context.get_dummy_value()
    return signature, codegen


@intrinsic
def tile_clamp(typing_context, tile, low, high):
    """min(max(tile, low), high); NaN stays NaN."""
    if not isinstance(tile, TileType):
        return None
    signature = tile(tile, tile.dtype, tile.dtype)
    lanes = lanes_of(tile.dtype)

    def codegen(context, builder, sig, args):
        value, low, high = args
        low, high = splat(builder, low, lanes), splat(builder, high, lanes)
        for k in range(tile.mr * tile.nv):
            element = builder.extract_value(value, k)
            element = builder.select(builder.fcmp_ordered("<", element, low), low, element)
            element = builder.select(builder.fcmp_ordered(">", element, high), high, element)
            value = builder.insert_value(value, element, k)
        return value
    return signature, codegen
