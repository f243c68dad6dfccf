"""The multiply-adds of a Tile: each of its rows takes a number of a times a row of b."""
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .rows import RowsType, row_starts
from .simd import (
    I32,
    I64,
    MULTIPLIES_BY_ELEMENT,
    lanes_of,
    load_vector,
    masked_load,
    multiply_add,
    pointer_to,
    splat,
    vector_type,
)
from .tile import TileType, load_columns
from .vector import VectorType


def _load_some(builder, pointer, vector, count):
    """The first count >= 1 lanes from pointer on, without masks: in the lanes past them stands the last number again."""
    last = builder.sub(count, I64(1))
    value = ir.Constant(vector, ir.Undefined)
    for lane in range(vector.count):
        at = builder.select(builder.icmp_signed("<", I64(lane), last), I64(lane), last)
        value = builder.insert_element(value, builder.load(builder.gep(pointer, [at])), I32(lane))
    return value


def _factors(builder, pointer, tile, count=None, half=False):
    """load_columns for inner loops, each loaded when it is asked for. All but the last vector's numbers are among the count;
    the lanes past it are undefined. half: the last vector is half of one."""
    vector = vector_type(tile.dtype)
    load_last = _load_some if MULTIPLIES_BY_ELEMENT else masked_load
    for j in range(tile.nv):
        at = builder.gep(pointer, [I64(j * vector.count)])
        last = ir.VectorType(vector.element, vector.count // 2) if half else vector
        yield load_vector(builder, at, vector) if count is None or j < tile.nv - 1 else \
            load_last(builder, at, last, builder.sub(count, I64(j * vector.count)))


def _fma(tile, a, rows, b, *count):
    """The typing and code of tile_fma, with a count of tile_fma_tail."""
    if not (isinstance(tile, TileType) and isinstance(rows, RowsType)):
        return None
    signature = tile(tile, a, rows, types.intp, b, types.intp, *[types.intp for _ in count])

    def codegen(context, builder, sig, args):
        value, a_array, row_offsets, a_off, b_array, b_off, *limit = args
        columns = list(_factors(builder, pointer_to(context, builder, sig.args[4], b_array, b_off), tile, *limit))
        start = row_starts(context, builder, sig.args[1], a_array, row_offsets, a_off)
        scalars = [builder.load(start(i)) for i in range(tile.mr)]
        for i, scalar in enumerate(scalars):
            row = splat(builder, scalar, lanes_of(tile.dtype))
            for j in range(tile.nv):
                k = i * tile.nv + j
                total = multiply_add(builder, row, columns[j], builder.extract_value(value, k))
                value = builder.insert_value(value, total, k)
        return value
    return signature, codegen


def _halved(builder, vector):
    """The first half of a vector."""
    half = vector.type.count // 2
    return builder.shuffle_vector(vector, vector, ir.Constant(ir.VectorType(I32, half), list(range(half))))


def _doubled(builder, vector):
    """A vector both of whose halves are this one."""
    count = vector.type.count
    return builder.shuffle_vector(vector, vector, ir.Constant(ir.VectorType(I32, 2 * count), 2 * list(range(count))))


def _steps(tile, a, rows, b, *count, half=False):
    """The typing and code of tile_fma_steps, with a count of tile_fma_steps_tail, or of tile_fma_steps_half."""
    if not (isinstance(tile, TileType) and isinstance(rows, RowsType)):
        return None
    signature = tile(tile, a, rows, types.intp, b, types.intp, types.intp, types.intp, *[types.intp for _ in count])
    vector = vector_type(tile.dtype)

    def codegen(context, builder, sig, args):
        value, a_array, row_offsets, a_off, b_array, b_off, b_row, steps, *limit = args
        numbers = [builder.extract_value(value, k) for k in range(tile.mr * tile.nv)]
        halves = range(tile.nv - 1, tile.mr * tile.nv, tile.nv) if half else ()
        for k in halves:
            numbers[k] = _halved(builder, numbers[k])
        start = row_starts(context, builder, sig.args[1], a_array, row_offsets, a_off)
        starts = [start(i) for i in range(tile.mr)]
        b_start = pointer_to(context, builder, sig.args[4], b_array, b_off)

        def one(builder, t, numbers):
            columns = list(_factors(builder, builder.gep(b_start, [builder.mul(t, b_row)]), tile, *limit, half=half))
            for i, pointer in enumerate(starts):
                row = splat(builder, builder.load(builder.gep(pointer, [t])), vector.count)
                for j, column in enumerate(columns):
                    k = i * tile.nv + j
                    factor = _halved(builder, row) if k in halves else row
                    numbers[k] = multiply_add(builder, factor, column, numbers[k])

        def several(builder, t, numbers):
            # neighbouring inputs of a row in one register, a lane of it for each step: multiply-adds by element
            inputs = [load_vector(builder, builder.gep(pointer, [t]), vector) for pointer in starts]
            for lane in range(vector.count):
                every = ir.Constant(ir.VectorType(I32, vector.count), [lane] * vector.count)
                pointer = builder.gep(b_start, [builder.mul(builder.add(t, I64(lane)), b_row)])
                for j, column in enumerate(_factors(builder, pointer, tile, *limit)):
                    for i, row in enumerate(inputs):
                        k = i * tile.nv + j
                        factor = builder.shuffle_vector(row, row, every)
                        numbers[k] = multiply_add(builder, factor, column, numbers[k])

        done = I64(0)
        # a part of one register alone is read number by number: more addresses than there are integer registers for
        if MULTIPLIES_BY_ELEMENT and (tile.nv > 1 or not limit) and not half:
            done = builder.and_(steps, I64(-vector.count))
            numbers = _loop(builder, I64(0), done, vector.count, numbers, several)
        for k, number in enumerate(_loop(builder, done, steps, 1, numbers, one)):
            value = builder.insert_value(value, _doubled(builder, number) if k in halves else number, k)
        return value
    return signature, codegen


def _loop(builder, begin, end, step, values, body):
    """values after body(builder, index, values) for index from begin to end, in registers."""
    before = builder.block
    inside, after = builder.append_basic_block("steps"), builder.append_basic_block("steps.done")
    builder.cbranch(builder.icmp_signed("<", begin, end), inside, after)
    builder.position_at_end(inside)
    index = builder.phi(I64)
    index.add_incoming(begin, before)
    phis = [builder.phi(value.type) for value in values]
    for phi, value in zip(phis, values, strict=True):
        phi.add_incoming(value, before)
    current = list(phis)
    body(builder, index, current)
    following = builder.add(index, I64(step))
    index.add_incoming(following, builder.block)
    for phi, value in zip(phis, current, strict=True):
        phi.add_incoming(value, builder.block)
    builder.cbranch(builder.icmp_signed("<", following, end), inside, after)
    left = builder.block
    builder.position_at_end(after)
    results = [builder.phi(value.type) for value in values]
    for phi, first, last in zip(results, values, current, strict=True):
        phi.add_incoming(first, before)
        phi.add_incoming(last, left)
    return results


@intrinsic
def tile_fma_steps(typing_context, tile, a, rows, a_offset, b, b_offset, b_row, steps):
    """tile[i, :] += the sum over t < steps of a[rows[i] + a_offset + t] * b[b_offset + t * b_row : ... + nv * lanes]"""
    return _steps(tile, a, rows, b)


@intrinsic
def tile_fma_steps_tail(typing_context, tile, a, rows, a_offset, b, b_offset, b_row, steps, count):
    """tile_fma_steps for the first count columns, more than (nv - 1) * lanes: no more of b is read; the rest is undefined."""
    return _steps(tile, a, rows, b, count)


@intrinsic
def tile_fma_steps_half(typing_context, tile, a, rows, a_offset, b, b_offset, b_row, steps, count):
    """tile_fma_steps_tail for so few columns that half of the last register does, which takes half the time where wide
    registers are worked on in halves."""
    return _steps(tile, a, rows, b, count, half=True)


@intrinsic
def tile_fma(typing_context, tile, a, rows, a_offset, b, b_offset):
    """tile[i, :] += a[rows[i] + a_offset] * b[b_offset : b_offset + nv * lanes]"""
    return _fma(tile, a, rows, b)


@intrinsic
def tile_fma_tail(typing_context, tile, a, rows, a_offset, b, b_offset, count):
    """tile_fma for the first count columns, more than (nv - 1) * lanes: no more of b is read; the rest is undefined."""
    return _fma(tile, a, rows, b, count)


@intrinsic
def tile_fma_taps(typing_context, tile, a, rows, a_offset, b, b_offset, b_step, count):
    """tile[i, :] += a[rows[i + s] + a_offset] * b[b_offset + s * b_step : ... + count] for each of its taps s: as many as there
    are rows more than the tile has, and one. Every number of a is read once for all its taps.
    """
    if not (isinstance(tile, TileType) and isinstance(rows, RowsType) and tile.nv == 1 and rows.mr >= tile.mr):
        return None
    signature = tile(tile, a, rows, types.intp, b, types.intp, types.intp, types.intp)
    taps = rows.mr - tile.mr + 1

    def codegen(context, builder, sig, args):
        value, a_array, row_offsets, a_off, b_array, b_off, b_step, count = args
        columns = [load_columns(builder, pointer_to(context, builder, sig.args[4], b_array,
                                                builder.add(b_off, builder.mul(I64(s), b_step))), tile, count)[0]
                   for s in range(taps)]
        start = row_starts(context, builder, sig.args[1], a_array, row_offsets, a_off)
        scalars = [builder.load(start(i)) for i in range(rows.mr)]
        for j, scalar in enumerate(scalars):
            factor = splat(builder, scalar, lanes_of(tile.dtype))
            for s in range(taps):
                if 0 <= j - s < tile.mr:
                    total = multiply_add(builder, factor, columns[s], builder.extract_value(value, j - s))
                    value = builder.insert_value(value, total, j - s)
        return value
    return signature, codegen


@intrinsic
def tile_weighted(typing_context, tile, a, a_offset):
    """The sum of the tile's rows, one vector wide, the i-th times a[a_offset + i]; in four chains of additions."""
    if not (isinstance(tile, TileType) and tile.nv == 1):
        return None
    signature = VectorType(tile.dtype)(tile, a, types.intp)

    def codegen(context, builder, sig, args):
        value, a_array, a_off = args
        start = pointer_to(context, builder, sig.args[1], a_array, a_off)
        chains = [None] * min(4, tile.mr)
        for i in range(tile.mr):
            factor = splat(builder, builder.load(builder.gep(start, [I64(i)])), lanes_of(tile.dtype))
            row, chain = builder.extract_value(value, i), i % len(chains)
            total = chains[chain]
            chains[chain] = builder.fmul(factor, row) if total is None else multiply_add(builder, factor, row, total)
        while len(chains) > 1:
            chains = [builder.fadd(*chains[i:i + 2]) if i + 1 < len(chains) else chains[i] for i in range(0, len(chains), 2)]
        return chains[0]
    return signature, codegen


@intrinsic
def tile_fma_rows(typing_context, tile, value, b, rows, b_offset):
    """tile[i, :] += value * b[rows[i] + b_offset : ... + nv * lanes]"""
    if not (isinstance(tile, TileType) and isinstance(rows, RowsType)):
        return None
    signature = tile(tile, tile.dtype, b, rows, types.intp)

    def codegen(context, builder, sig, args):
        total, scalar, b_array, row_offsets, b_off = args
        start = row_starts(context, builder, sig.args[2], b_array, row_offsets, b_off)
        factor = splat(builder, scalar, lanes_of(tile.dtype))
        for i in range(tile.mr):
            for j, column in enumerate(load_columns(builder, start(i), tile)):
                k = i * tile.nv + j
                total = builder.insert_value(total, multiply_add(builder, factor, column, builder.extract_value(total, k)), k)
        return total
    return signature, codegen


@intrinsic
def tile_fma_windows(typing_context, tile, values, at, count, b, rows, base, indices, i_at, places):
    """tile[j * mr + r, :] += values[at + j] * b[rows[r] + base + places[indices[i_at + j]] : ... + nv * lanes]

    mr is the number of rows, of which the tile has a multiple: one block for each of its channels j, of which those past
    count repeat the last.
    """
    if not (isinstance(tile, TileType) and isinstance(rows, RowsType) and tile.mr % rows.mr == 0):
        return None
    signature = tile(tile, values, types.intp, types.intp, b, rows, types.intp, indices, types.intp, places)

    def codegen(context, builder, sig, args):
        total, values, at, count, b_array, row_offsets, base, indices, i_at, places = args
        value_at = pointer_to(context, builder, sig.args[1], values, at)
        index_at = pointer_to(context, builder, sig.args[7], indices, i_at)
        place_at = pointer_to(context, builder, sig.args[9], places, I64(0))
        last = builder.sub(count, I64(1))
        for channel in range(tile.mr // rows.mr):
            step = builder.select(builder.icmp_signed("<", I64(channel), last), I64(channel), last)
            index = builder.zext(builder.load(builder.gep(index_at, [step])), I64)
            window = builder.add(base, builder.load(builder.gep(place_at, [index])))
            factor = splat(builder, builder.load(builder.gep(value_at, [step])), lanes_of(tile.dtype))
            start = row_starts(context, builder, sig.args[4], b_array, row_offsets, window)
            for i in range(rows.mr):
                for j, column in enumerate(load_columns(builder, start(i), tile)):
                    k = (channel * rows.mr + i) * tile.nv + j
                    value = multiply_add(builder, factor, column, builder.extract_value(total, k))
                    total = builder.insert_value(total, value, k)
        return total
    return signature, codegen
