"""Blocks of registers exchanged with their transposes, for weights and for axes."""
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .simd import (
    I32,
    I64,
    is_real_array,
    lanes_of,
    load_vector,
    masked_load,
    masked_store,
    pointer_to,
    store_vector,
    vector_type,
)
from .vector import convert, is_number_array


def _transpose(builder, vectors):
    """The transposes of squares of numbers, by Eklundh's method: vectors `distance` apart exchange blocks of lanes.

    A vector holds a row of one square, or of several side by side.
    """
    count = vectors[0].type.count
    distance = len(vectors) // 2
    while distance:
        keep = [lane if not lane & distance else count + lane - distance for lane in range(count)]
        give = [lane + distance if not lane & distance else count + lane for lane in range(count)]
        for i in range(len(vectors)):
            if not i & distance:
                a, b = vectors[i], vectors[i + distance]
                vectors[i] = builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, count), keep))
                vectors[i + distance] = builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, count), give))
        distance //= 2
    return vectors


def _load_transposed(builder, row_at, vector):
    """The transpose of a whole square whose rows begin at row_at(i).

    Quarters of rows (parts of 16 bytes) that lie one above the other come into one register by loads alone; what is left to
    shuffle are the numbers within the parts.
    """
    count = vector.count
    width = 4 if isinstance(vector.element, ir.FloatType) else 2
    part, parts = ir.VectorType(vector.element, width), count // width
    columns = []
    for q in range(parts):
        stacked = []
        for r in range(width):
            pieces = [load_vector(builder, builder.gep(row_at(r + width * g), [I64(width * q)]), part) for g in range(parts)]
            while len(pieces) > 1:
                both = ir.Constant(ir.VectorType(I32, 2 * pieces[0].type.count), list(range(2 * pieces[0].type.count)))
                pieces = [builder.shuffle_vector(a, b, both) for a, b in zip(pieces[::2], pieces[1::2], strict=True)]
            stacked.append(pieces[0])
        columns += _transpose(builder, stacked)
    return columns


@intrinsic
def transpose_block(typing_context, source, source_offset, source_stride, target, target_offset, target_stride,
                    row_count, column_count):
    """target[j, i] = source[i, j] for i < row_count, j < column_count, both at most one register's lanes.

    Rows of source lie source_stride apart, rows of target target_stride.
    """
    if not (is_real_array(source) and is_real_array(target)):
        return None
    index = types.intp
    signature = types.void(source, index, index, target, index, index, index, index)
    vector = vector_type(source.dtype)
    count = vector.count

    def codegen(context, builder, sig, args):
        source_array, source_off, source_step, target_array, target_off, target_step, row_limit, column_limit = args
        from_pointer = pointer_to(context, builder, sig.args[0], source_array, source_off)
        to_pointer = pointer_to(context, builder, sig.args[3], target_array, target_off)

        def row_of_source(i):
            return builder.gep(from_pointer, [builder.mul(i, source_step)])

        def row_of_target(j):
            return builder.gep(to_pointer, [builder.mul(I64(j), target_step)])
        whole = builder.icmp_signed(">=", builder.select(builder.icmp_signed("<", row_limit, column_limit), row_limit,
                                                         column_limit), I64(count))
        with builder.if_else(whole) as (square, part):
            with square:
                for j, value in enumerate(_load_transposed(builder, lambda i: row_of_source(I64(i)), vector)):
                    store_vector(builder, value, row_of_target(j))
            with part:
                last = builder.sub(row_limit, I64(1))
                rows = [builder.select(builder.icmp_signed("<", I64(i), last), I64(i), last) for i in range(count)]
                registers = _transpose(builder, [masked_load(builder, row_of_source(i), vector, column_limit) for i in rows])
                for j in range(count):
                    with builder.if_then(builder.icmp_signed("<", I64(j), column_limit)):
                        masked_store(builder, registers[j], row_of_target(j), row_limit)
        return context.get_dummy_value()
    return signature, codegen


@intrinsic
def transpose_square(typing_context, like, x, x_offset, x_stride, y, y_offset, y_stride, accumulate):
    """y[j, i] = x[i, j] for i, j < lanes of like, or += with accumulate; x and y of any number dtype.

    Rows lie x_stride and y_stride numbers apart.
    """
    if not (is_real_array(like) and is_number_array(x) and is_number_array(y)):
        return None
    offset = types.intp

    def codegen(context, builder, sig, args):
        _, x_array, x_off, x_stride, y_array, y_off, y_stride, accumulate = args
        count, real = lanes_of(like.dtype), vector_type(like.dtype)

        def vector_of_numbers(kind):
            return ir.VectorType(context.get_value_type(kind.dtype), count)

        def row(kind, array, begin, stride, i):
            return pointer_to(context, builder, kind, array, builder.add(begin, builder.mul(stride, I64(i))))

        def load(kind, pointer):
            value = load_vector(builder, pointer, vector_of_numbers(kind))
            return convert(builder, value, kind.dtype, like.dtype, real)

        vectors = _transpose(builder, [load(x, row(x, x_array, x_off, x_stride, i)) for i in range(count)])

        def store(add):
            for j in range(count):
                pointer = row(y, y_array, y_off, y_stride, j)
                value = builder.fadd(load(y, pointer), vectors[j]) if add else vectors[j]
                store_vector(builder, convert(builder, value, like.dtype, y.dtype, vector_of_numbers(y)), pointer)
        with builder.if_else(builder.icmp_signed("!=", accumulate, I64(0))) as (adding, overwriting):
            with adding:
                store(True)
            with overwriting:
                store(False)
        return context.get_dummy_value()
    return types.void(like, x, offset, offset, y, offset, offset, types.int64), codegen


@intrinsic
def interleave_three(typing_context, like, x, x_offset, x_stride, y, y_offset):
    """y[3 i + j] = x[j, i] for i < lanes of like and j < 3; x and y of any number dtype, rows of x lie x_stride apart."""
    if not (is_real_array(like) and is_number_array(x) and is_number_array(y)):
        return None
    count, real = lanes_of(like.dtype), vector_type(like.dtype)

    def codegen(context, builder, sig, args):
        _, x_array, x_off, x_step, y_array, y_off = args

        def vector_of_numbers(kind):
            return ir.VectorType(context.get_value_type(kind.dtype), count)

        def mask(lanes):
            return ir.Constant(ir.VectorType(I32, count), lanes)
        rows = []
        for j in range(3):
            at = pointer_to(context, builder, x, x_array, builder.add(x_off, builder.mul(x_step, I64(j))))
            rows.append(convert(builder, load_vector(builder, at, vector_of_numbers(x)), x.dtype, like.dtype, real))
        for j in range(3):
            places = [divmod(j * count + lane, 3) for lane in range(count)]
            # two registers first; the lanes that the third one fills are of no account
            value = builder.shuffle_vector(rows[0], rows[1], mask([i + count * (row == 1) for i, row in places]))
            value = builder.shuffle_vector(value, rows[2], mask([count + i if row == 2 else lane
                                                                 for lane, (i, row) in enumerate(places)]))
            value = convert(builder, value, like.dtype, y.dtype, vector_of_numbers(y))
            store_vector(builder, value, pointer_to(context, builder, y, y_array, builder.add(y_off, I64(j * count))))
        return context.get_dummy_value()
    offset = types.intp
    return types.void(like, x, offset, offset, y, offset), codegen
