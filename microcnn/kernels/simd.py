"""SIMD registers as numba values: Tile, Rows and Vector.

A Tile is MR rows x NV vectors that LLVM keeps in registers across ordinary Python loops; Rows holds where each of the
tile's MR rows of the left operand begins; a Vector is one register. All work on flat (1-D, contiguous) arrays and element
offsets, in float32 and float64.

The register width follows the CPU that numba compiles for, which NUMBA_CPU_NAME together with NUMBA_CPU_FEATURES can
override, not the host. Loads and stores are unaligned; a count limits the ones that would leave their buffer.
"""
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic, models, register_model


def _features():
    return frozenset(cpu_target.target_context.codegen().magic_tuple()[2].split(","))


def _instruction_set():
    triple, _, _ = cpu_target.target_context.codegen().magic_tuple()
    features = _features()
    if "+avx512f" in features:
        return "avx512"
    if "+avx2" in features:
        return "avx2"
    return "neon" if triple.startswith(("aarch64", "arm64")) else "sse"


INSTRUCTION_SET = _instruction_set()
VECTOR_BYTES = {"avx512": 64, "avx2": 32, "neon": 16, "sse": 16}[INSTRUCTION_SET]
REGISTERS = {"avx512": 32, "avx2": 16, "neon": 32, "sse": 16}[INSTRUCTION_SET]

# Rows of the tiles four, two and one vectors wide: what fills the registers without spilling. 0: no such tile.
MR4, MR2, MR1 = {"avx512": (6, 8, 8), "avx2": (0, 6, 8), "neon": (6, 8, 8), "sse": (0, 6, 8)}[INSTRUCTION_SET]
# Where a load with a lane mask costs no more than a plain one, the plain variant of a loop is not needed.
MASKS_ARE_FREE = INSTRUCTION_SET == "avx512"

I1, I8, I32, I64 = ir.IntType(1), ir.IntType(8), ir.IntType(32), ir.IntType(64)


def lanes_of(dtype):
    """How many numbers of a numba or numpy dtype one register holds."""
    return VECTOR_BYTES // (4 if str(dtype) == "float32" else 8)


def _scalar(dtype):
    return ir.FloatType() if dtype == types.float32 else ir.DoubleType()


def _bits(dtype):
    return 32 if dtype == types.float32 else 64


def _vector(dtype):
    return ir.VectorType(_scalar(dtype), lanes_of(dtype))


def _is_real_array(kind):
    return isinstance(kind, types.Array) and kind.dtype in (types.float32, types.float64)


class TileType(types.Type):
    """MR rows x NV vectors of dtype."""

    def __init__(self, dtype, mr, nv):
        self.dtype, self.mr, self.nv = dtype, mr, nv
        super().__init__(name=f"Tile({dtype},{lanes_of(dtype)},{mr},{nv})")


@register_model(TileType)
class TileModel(models.PrimitiveModel):
    def __init__(self, dmm, tile):
        super().__init__(dmm, tile, ir.ArrayType(_vector(tile.dtype), tile.mr * tile.nv))


class RowsType(types.Type):
    """The element offsets at which a tile's MR rows begin."""

    def __init__(self, mr):
        self.mr = mr
        super().__init__(name=f"Rows({mr})")


@register_model(RowsType)
class RowsModel(models.PrimitiveModel):
    def __init__(self, dmm, rows):
        super().__init__(dmm, rows, ir.ArrayType(I64, rows.mr))


class VectorType(types.Type):
    """One register of dtype."""

    def __init__(self, dtype):
        self.dtype = dtype
        super().__init__(name=f"Vector({dtype},{lanes_of(dtype)})")


@register_model(VectorType)
class VectorModel(models.PrimitiveModel):
    def __init__(self, dmm, vector):
        super().__init__(dmm, vector, _vector(vector.dtype))


def _pointer(context, builder, array_type, array, offset):
    return builder.gep(context.make_array(array_type)(context, builder, array).data, [offset])


def _load(builder, pointer, vector, bits):
    value = builder.load(builder.bitcast(pointer, vector.as_pointer()))
    value.align = bits // 8
    return value


def _store(builder, value, pointer, bits):
    builder.store(value, builder.bitcast(pointer, value.type.as_pointer())).align = bits // 8


def _mask(builder, count, lanes):
    """A lane mask whose first `count` lanes are set."""
    lane_numbers = ir.Constant(ir.VectorType(I32, lanes), list(range(lanes)))
    return builder.icmp_signed("<", lane_numbers, _splat(builder, builder.trunc(count, I32), lanes))


def _splat(builder, scalar, lanes):
    undefined = ir.Constant(ir.VectorType(scalar.type, lanes), ir.Undefined)
    zeros = ir.Constant(ir.VectorType(I32, lanes), [0] * lanes)
    return builder.shuffle_vector(builder.insert_element(undefined, scalar, I32(0)), undefined, zeros)


def _masked_load(builder, pointer, vector, bits, count):
    lanes = vector.count
    mask = _mask(builder, count, lanes)
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(vector, [vector.as_pointer(), I32, mask.type, vector]),
        f"llvm.masked.load.v{lanes}f{bits}.p0v{lanes}f{bits}")
    return builder.call(function, [builder.bitcast(pointer, vector.as_pointer()), I32(bits // 8), mask,
                                   ir.Constant(vector, None)])


def _masked_store(builder, value, pointer, bits, count):
    vector = value.type
    lanes = vector.count
    mask = _mask(builder, count, lanes)
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(ir.VoidType(), [vector, vector.as_pointer(), I32, mask.type]),
        f"llvm.masked.store.v{lanes}f{bits}.p0v{lanes}f{bits}")
    builder.call(function, [value, builder.bitcast(pointer, vector.as_pointer()), I32(bits // 8), mask])


def _fmuladd(builder, vector, bits):
    # fmuladd fuses where the CPU can; llvm.fma would become calls to fmaf where it cannot
    return cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(vector, [vector] * 3), f"llvm.fmuladd.v{vector.count}f{bits}")


def _columns(builder, pointer, tile, vector, bits, count=None):
    """The tile's NV vectors at pointer; with a count, only that many numbers are read, the rest are zero."""
    columns = []
    for j in range(tile.nv):
        at = builder.gep(pointer, [I64(j * vector.count)])
        if count is None:
            columns.append(_load(builder, at, vector, bits))
        else:
            columns.append(_masked_load(builder, at, vector, bits, builder.sub(count, I64(j * vector.count))))
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
    vector, bits = _vector(tile.dtype), _bits(tile.dtype)

    def codegen(context, builder, sig, args):
        value, b_array, b_off, limit = args
        columns = _columns(builder, _pointer(context, builder, sig.args[1], b_array, b_off), tile, vector, bits, limit)
        for k in range(tile.mr * tile.nv):
            value = builder.insert_value(value, columns[k % tile.nv], k)
        return value
    return signature, codegen


@intrinsic(prefer_literal=True)
def rows_strided(typing_context, start, stride, count, mr):
    """Rows at start + min(i, count - 1) * stride: those past count repeat the last, so that reading them is safe."""
    if not isinstance(mr, types.IntegerLiteral):
        return None
    rows = RowsType(mr.literal_value)
    signature = rows(types.intp, types.intp, types.intp, mr)

    def codegen(context, builder, sig, args):
        start, stride, count, _ = args
        last = builder.sub(count, I64(1))
        value = ir.Constant(context.get_value_type(rows), ir.Undefined)
        for i in range(rows.mr):
            step = builder.select(builder.icmp_signed("<", I64(i), last), I64(i), last)
            value = builder.insert_value(value, builder.add(start, builder.mul(step, stride)), i)
        return value
    return signature, codegen


@intrinsic(prefer_literal=True)
def rows_table(typing_context, table, at, count, base, mr):
    """Rows at base + table[at + min(i, count - 1)]."""
    if not (isinstance(mr, types.IntegerLiteral) and isinstance(table, types.Array) and table.dtype == types.int64):
        return None
    rows = RowsType(mr.literal_value)
    signature = rows(table, types.intp, types.intp, types.intp, mr)

    def codegen(context, builder, sig, args):
        table, at, count, base, _ = args
        pointer = _pointer(context, builder, sig.args[0], table, at)
        last = builder.sub(count, I64(1))
        value = ir.Constant(context.get_value_type(rows), ir.Undefined)
        for i in range(rows.mr):
            step = builder.select(builder.icmp_signed("<", I64(i), last), I64(i), last)
            offset = builder.load(builder.gep(pointer, [step]))
            value = builder.insert_value(value, builder.add(base, offset), i)
        return value
    return signature, codegen


def _multiply_add(builder, tile, value, scalars, columns, bits):
    vector = _vector(tile.dtype)
    fma = _fmuladd(builder, vector, bits)
    for i, scalar in enumerate(scalars):
        row = _splat(builder, scalar, vector.count)
        for j in range(tile.nv):
            k = i * tile.nv + j
            value = builder.insert_value(value, builder.call(fma, [row, columns[j], builder.extract_value(value, k)]), k)
    return value


@intrinsic
def tile_fma(typing_context, tile, a, rows, a_offset, b, b_offset):
    """tile[i, :] += a[rows[i] + a_offset] * b[b_offset : b_offset + nv * lanes]"""
    if not (isinstance(tile, TileType) and isinstance(rows, RowsType)):
        return None
    signature = tile(tile, a, rows, types.intp, b, types.intp)
    vector, bits = _vector(tile.dtype), _bits(tile.dtype)

    def codegen(context, builder, sig, args):
        value, a_array, row_offsets, a_off, b_array, b_off = args
        columns = _columns(builder, _pointer(context, builder, sig.args[4], b_array, b_off), tile, vector, bits)
        data = context.make_array(sig.args[1])(context, builder, a_array).data
        scalars = [builder.load(builder.gep(builder.gep(data, [builder.extract_value(row_offsets, i)]), [a_off]))
                   for i in range(tile.mr)]
        return _multiply_add(builder, tile, value, scalars, columns, bits)
    return signature, codegen


@intrinsic
def tile_fma_tail(typing_context, tile, a, rows, a_offset, b, b_offset, count):
    """tile_fma that reads only b[b_offset : b_offset + count] and takes the rest as zeros."""
    if not (isinstance(tile, TileType) and isinstance(rows, RowsType)):
        return None
    signature = tile(tile, a, rows, types.intp, b, types.intp, types.intp)
    vector, bits = _vector(tile.dtype), _bits(tile.dtype)

    def codegen(context, builder, sig, args):
        value, a_array, row_offsets, a_off, b_array, b_off, limit = args
        columns = _columns(builder, _pointer(context, builder, sig.args[4], b_array, b_off), tile, vector, bits, limit)
        data = context.make_array(sig.args[1])(context, builder, a_array).data
        scalars = [builder.load(builder.gep(builder.gep(data, [builder.extract_value(row_offsets, i)]), [a_off]))
                   for i in range(tile.mr)]
        return _multiply_add(builder, tile, value, scalars, columns, bits)
    return signature, codegen


@intrinsic
def tile_fma_rows(typing_context, tile, a, rows, a_offset, vector, count):
    """tile[i, :] += a[rows[i] + a_offset : ... + count] * vector, for a tile one vector wide."""
    if not (isinstance(tile, TileType) and tile.nv == 1 and isinstance(rows, RowsType)):
        return None
    signature = tile(tile, a, rows, types.intp, vector, types.intp)
    kind, bits = _vector(tile.dtype), _bits(tile.dtype)

    def codegen(context, builder, sig, args):
        value, a_array, row_offsets, a_off, factor, count = args
        fma = _fmuladd(builder, kind, bits)
        data = context.make_array(sig.args[1])(context, builder, a_array).data
        for i in range(tile.mr):
            pointer = builder.gep(builder.gep(data, [builder.extract_value(row_offsets, i)]), [a_off])
            row = (_masked_load(builder, pointer, kind, bits, count) if MASKS_ARE_FREE else
                   _load_first(builder, pointer, kind, bits, count))
            value = builder.insert_value(value, builder.call(fma, [row, factor, builder.extract_value(value, i)]), i)
        return value
    return signature, codegen


def _load_first(builder, pointer, vector, bits, count):
    """A masked load behind a branch: where masks are not free, whole vectors are loaded plainly."""
    full = builder.icmp_signed(">=", count, I64(vector.count))
    with builder.if_else(full) as (whole, part):
        with whole:
            plain = _load(builder, pointer, vector, bits)
            plain_block = builder.basic_block
        with part:
            masked = _masked_load(builder, pointer, vector, bits, count)
            masked_block = builder.basic_block
    value = builder.phi(vector)
    value.add_incoming(plain, plain_block)
    value.add_incoming(masked, masked_block)
    return value


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
    vector, bits = _vector(tile.dtype), _bits(tile.dtype)

    def codegen(context, builder, sig, args):
        value, c_array, row_offsets, c_off, row_count, count = args
        data = context.make_array(sig.args[1])(context, builder, c_array).data
        full = builder.icmp_signed(">=", count, I64(tile.nv * vector.count))

        def store(i):
            pointer = builder.gep(builder.gep(data, [builder.extract_value(row_offsets, i)]), [c_off])
            with builder.if_else(full) as (whole, part):
                with whole:
                    for j in range(tile.nv):
                        _store(builder, builder.extract_value(value, i * tile.nv + j),
                               builder.gep(pointer, [I64(j * vector.count)]), bits)
                with part:
                    for j in range(tile.nv):
                        _masked_store(builder, builder.extract_value(value, i * tile.nv + j),
                                      builder.gep(pointer, [I64(j * vector.count)]), bits,
                                      builder.sub(count, I64(j * vector.count)))
        _each_row(builder, tile, row_count, store)
        return context.get_dummy_value()
    return signature, codegen


@intrinsic
def tile_add(typing_context, tile, c, rows, c_offset, row_count, count):
    """The tile plus c[rows[i] + c_offset : ... + count] in each row; rows past row_count repeat the last."""
    if not (isinstance(tile, TileType) and isinstance(rows, RowsType)):
        return None
    signature = tile(tile, c, rows, types.intp, types.intp, types.intp)
    vector, bits = _vector(tile.dtype), _bits(tile.dtype)

    def codegen(context, builder, sig, args):
        value, c_array, row_offsets, c_off, _, count = args
        data = context.make_array(sig.args[1])(context, builder, c_array).data
        for i in range(tile.mr):
            pointer = builder.gep(builder.gep(data, [builder.extract_value(row_offsets, i)]), [c_off])
            for j, column in enumerate(_columns(builder, pointer, tile, vector, bits, count)):
                k = i * tile.nv + j
                value = builder.insert_value(value, builder.fadd(builder.extract_value(value, k), column), k)
        return value
    return signature, codegen


@intrinsic
def tile_accumulate(typing_context, tile, c, rows, c_offset, row_count, count):
    """c[rows[i] + c_offset : ... + count] += tile[i, :count] for i < row_count, one row after the other: rows may overlap."""
    if not (isinstance(tile, TileType) and isinstance(rows, RowsType)):
        return None
    signature = types.void(tile, c, rows, types.intp, types.intp, types.intp)
    vector, bits = _vector(tile.dtype), _bits(tile.dtype)

    def codegen(context, builder, sig, args):
        value, c_array, row_offsets, c_off, row_count, count = args
        data = context.make_array(sig.args[1])(context, builder, c_array).data

        def add(i):
            pointer = builder.gep(builder.gep(data, [builder.extract_value(row_offsets, i)]), [c_off])
            for j, column in enumerate(_columns(builder, pointer, tile, vector, bits, count)):
                total = builder.fadd(builder.extract_value(value, i * tile.nv + j), column)
                _masked_store(builder, total, builder.gep(pointer, [I64(j * vector.count)]), bits,
                              builder.sub(count, I64(j * vector.count)))
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
        low, high = _splat(builder, low, lanes), _splat(builder, high, lanes)
        for k in range(tile.mr * tile.nv):
            element = builder.extract_value(value, k)
            element = builder.select(builder.fcmp_ordered("<", element, low), low, element)
            element = builder.select(builder.fcmp_ordered(">", element, high), high, element)
            value = builder.insert_value(value, element, k)
        return value
    return signature, codegen


@intrinsic
def transpose_block(typing_context, source, source_offset, source_stride, target, target_offset, target_stride,
                    row_count, column_count):
    """target[j, i] = source[i, j] for i < row_count, j < column_count, both at most one register's lanes.

    Rows of source lie source_stride apart, rows of target target_stride. Eklundh's method: log2(lanes) rounds in which
    pairs of registers exchange blocks.
    """
    if not (_is_real_array(source) and _is_real_array(target)):
        return None
    index = types.intp
    signature = types.void(source, index, index, target, index, index, index, index)
    vector, bits = _vector(source.dtype), _bits(source.dtype)
    count = vector.count

    def codegen(context, builder, sig, args):
        source_array, source_off, source_step, target_array, target_off, target_step, row_limit, column_limit = args
        from_pointer = _pointer(context, builder, sig.args[0], source_array, source_off)
        to_pointer = _pointer(context, builder, sig.args[3], target_array, target_off)
        last = builder.sub(row_limit, I64(1))
        registers = []
        for i in range(count):
            row = builder.select(builder.icmp_signed("<", I64(i), last), I64(i), last)
            at = builder.gep(from_pointer, [builder.mul(row, source_step)])
            registers.append(_masked_load(builder, at, vector, bits, column_limit))
        block = count // 2
        while block:
            low = [lane if not lane & block else count + lane - block for lane in range(count)]
            high = [lane + block if not lane & block else count + lane for lane in range(count)]
            for i in range(count):
                if not i & block:
                    a, b = registers[i], registers[i + block]
                    registers[i] = builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, count), low))
                    registers[i + block] = builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, count), high))
            block //= 2
        for j in range(count):
            with builder.if_then(builder.icmp_signed("<", I64(j), column_limit)):
                at = builder.gep(to_pointer, [builder.mul(I64(j), target_step)])
                _masked_store(builder, registers[j], at, bits, row_limit)
        return context.get_dummy_value()
    return signature, codegen


@intrinsic
def lanes(typing_context, like):
    """How many numbers of like's dtype one register holds: a constant."""
    if not _is_real_array(like):
        return None

    def codegen(context, builder, signature, args):
        return I64(lanes_of(like.dtype))
    return types.intp(like), codegen


@intrinsic
def vector_load(typing_context, a, offset):
    """a[offset : offset + lanes]"""
    if not _is_real_array(a):
        return None

    def codegen(context, builder, sig, args):
        pointer = _pointer(context, builder, sig.args[0], args[0], args[1])
        return _load(builder, pointer, _vector(a.dtype), _bits(a.dtype))
    return VectorType(a.dtype)(a, types.intp), codegen


@intrinsic
def vector_load_first(typing_context, a, offset, count):
    """a[offset : offset + count], then zeros."""
    if not _is_real_array(a):
        return None

    def codegen(context, builder, sig, args):
        pointer = _pointer(context, builder, sig.args[0], args[0], args[1])
        return _masked_load(builder, pointer, _vector(a.dtype), _bits(a.dtype), args[2])
    return VectorType(a.dtype)(a, types.intp, types.intp), codegen


@intrinsic
def vector_store(typing_context, vector, a, offset):
    """a[offset : offset + lanes] = vector"""
    if not isinstance(vector, VectorType):
        return None

    def codegen(context, builder, sig, args):
        pointer = _pointer(context, builder, sig.args[1], args[1], args[2])
        _store(builder, args[0], pointer, _bits(vector.dtype))
        return context.get_dummy_value()
    return types.void(vector, a, types.intp), codegen


@intrinsic
def vector_store_first(typing_context, vector, a, offset, count):
    """a[offset : offset + count] = vector[:count]"""
    if not isinstance(vector, VectorType):
        return None

    def codegen(context, builder, sig, args):
        pointer = _pointer(context, builder, sig.args[1], args[1], args[2])
        _masked_store(builder, args[0], pointer, _bits(vector.dtype), args[3])
        return context.get_dummy_value()
    return types.void(vector, a, types.intp, types.intp), codegen


@intrinsic
def vector_of(typing_context, like, value):
    """A vector of like's dtype with value in every lane."""
    if not _is_real_array(like):
        return None

    def codegen(context, builder, sig, args):
        return _splat(builder, args[1], lanes_of(like.dtype))
    return VectorType(like.dtype)(like, like.dtype), codegen


def _lanewise(operation):
    """The typing and code of an intrinsic on vectors of one type."""
    def typer(typing_context, *vectors):
        first = vectors[0]
        if not isinstance(first, VectorType) or any(v != first for v in vectors):
            return None

        def codegen(context, builder, sig, args):
            return operation(builder, first, *args)
        return first(*vectors), codegen
    return typer


@intrinsic
def vector_add(typing_context, a, b):
    """a + b"""
    return _lanewise(lambda builder, kind, x, y: builder.fadd(x, y))(typing_context, a, b)


@intrinsic
def vector_sub(typing_context, a, b):
    """a - b"""
    return _lanewise(lambda builder, kind, x, y: builder.fsub(x, y))(typing_context, a, b)


@intrinsic
def vector_mul(typing_context, a, b):
    """a * b"""
    return _lanewise(lambda builder, kind, x, y: builder.fmul(x, y))(typing_context, a, b)


@intrinsic
def vector_div(typing_context, a, b):
    """a / b"""
    return _lanewise(lambda builder, kind, x, y: builder.fdiv(x, y))(typing_context, a, b)


@intrinsic
def vector_fma(typing_context, a, b, c):
    """a * b + c, rounded once where the CPU can."""
    return _lanewise(lambda builder, kind, x, y, z: builder.call(
        _fmuladd(builder, _vector(kind.dtype), _bits(kind.dtype)), [x, y, z]))(typing_context, a, b, c)


@intrinsic
def vector_sqrt(typing_context, a):
    """The square root of each lane."""
    def operation(builder, kind, x):
        vector, bits = _vector(kind.dtype), _bits(kind.dtype)
        function = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(vector, [vector]), f"llvm.sqrt.v{vector.count}f{bits}")
        return builder.call(function, [x])
    return _lanewise(operation)(typing_context, a)


@intrinsic
def vector_max(typing_context, a, b):
    """b where a < b, else a: a NaN in a stays."""
    return _lanewise(lambda builder, kind, x, y: builder.select(builder.fcmp_ordered("<", x, y), y, x))(
        typing_context, a, b)


@intrinsic
def vector_min(typing_context, a, b):
    """b where a > b, else a: a NaN in a stays."""
    return _lanewise(lambda builder, kind, x, y: builder.select(builder.fcmp_ordered(">", x, y), y, x))(
        typing_context, a, b)


@intrinsic
def vector_where_greater(typing_context, a, b, x, y):
    """x where a > b, else y; false where either is NaN."""
    return _lanewise(lambda builder, kind, a, b, x, y: builder.select(builder.fcmp_ordered(">", a, b), x, y))(
        typing_context, a, b, x, y)


def _across(kind, combine):
    """The code of an intrinsic that combines a vector's lanes, halves pairwise in a fixed order."""
    def codegen(context, builder, sig, args):
        value = args[0]
        count = lanes_of(kind.dtype)
        while count > 1:
            count //= 2
            undefined = ir.Constant(value.type, ir.Undefined)
            low = builder.shuffle_vector(value, undefined, ir.Constant(ir.VectorType(I32, count), list(range(count))))
            high = builder.shuffle_vector(
                value, undefined, ir.Constant(ir.VectorType(I32, count), list(range(count, 2 * count))))
            value = combine(builder, low, high)
        return builder.extract_element(value, I32(0))
    return codegen


@intrinsic
def vector_sum(typing_context, a):
    """The sum of the lanes, halves added pairwise in a fixed order."""
    if not isinstance(a, VectorType):
        return None
    return a.dtype(a), _across(a, lambda builder, x, y: builder.fadd(x, y))


def _horner(builder, fma, x, coefficients, lanes):
    value = None
    for coefficient in coefficients:
        constant = ir.Constant(x.type, [coefficient] * lanes)
        value = constant if value is None else builder.call(fma, [value, x, constant])
    return value


@intrinsic
def vector_exp(typing_context, a):
    """exp of each lane: x = n ln 2 + r, a Taylor polynomial in |r| <= 0.35, then 2**n through the exponent bits.

    Within 2 ulp; below the smallest normal number 0, above the largest inf, NaN stays NaN.
    """
    if not isinstance(a, VectorType):
        return None
    single = a.dtype == types.float32
    degree = 7 if single else 13
    # ln 2 in two parts, the first with trailing zeros, so that x - n ln 2 loses nothing
    high, low = (0.693359375, -2.12194440e-4) if single else (6.93147180369123816490e-01, 1.90821492927058770002e-10)
    smallest, largest = (-87.33654, 88.722839) if single else (-708.396418532264, 709.782712893384)
    mantissa, bias = (23, 127) if single else (52, 1023)
    coefficients = [1.0]
    for k in range(1, degree + 1):
        coefficients.append(coefficients[-1] / k)

    def codegen(context, builder, sig, args):
        vector, bits = _vector(a.dtype), _bits(a.dtype)
        count = vector.count
        integers = ir.VectorType(ir.IntType(bits), count)
        fma = _fmuladd(builder, vector, bits)

        def constant(value):
            return ir.Constant(vector, [value] * count)

        x = args[0]
        nearest = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(vector, [vector]), f"llvm.rint.v{count}f{bits}")
        inside = builder.select(builder.fcmp_ordered("<", x, constant(smallest)), constant(smallest), x)
        inside = builder.select(builder.fcmp_ordered(">", inside, constant(largest)), constant(largest), inside)
        inside = builder.select(builder.fcmp_unordered("uno", x, x), constant(0.0), inside)
        n = builder.call(nearest, [builder.fmul(inside, constant(1.4426950408889634))])
        remainder = builder.call(fma, [n, constant(-high), inside])
        remainder = builder.call(fma, [n, constant(-low), remainder])
        power = _horner(builder, fma, remainder, reversed(coefficients), count)
        # 2**n in two factors: n reaches one past the largest exponent
        exponent = builder.fptosi(n, integers)
        half = builder.ashr(exponent, ir.Constant(integers, [1] * count))

        def two_to(power_of_two):
            shifted = builder.shl(builder.add(power_of_two, ir.Constant(integers, [bias] * count)),
                                  ir.Constant(integers, [mantissa] * count))
            return builder.bitcast(shifted, vector)
        value = builder.fmul(builder.fmul(power, two_to(half)), two_to(builder.sub(exponent, half)))
        value = builder.select(builder.fcmp_ordered("<", x, constant(smallest)), constant(0.0), value)
        value = builder.select(builder.fcmp_ordered(">", x, constant(largest)), constant(float("inf")), value)
        return builder.select(builder.fcmp_unordered("uno", x, x), x, value)
    return a(a), codegen


@intrinsic
def vector_log(typing_context, a):
    """The natural logarithm of each lane: the C library's, lane by lane."""
    def operation(builder, kind, x):
        vector, bits = _vector(kind.dtype), _bits(kind.dtype)
        function = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(vector, [vector]), f"llvm.log.v{vector.count}f{bits}")
        return builder.call(function, [x])
    return _lanewise(operation)(typing_context, a)


@intrinsic
def vector_where_first(typing_context, count, x, y):
    """x in the first `count` lanes, y in the others."""
    if not isinstance(x, VectorType) or x != y:
        return None

    def codegen(context, builder, sig, args):
        return builder.select(_mask(builder, args[0], lanes_of(x.dtype)), args[1], args[2])
    return x(types.intp, x, y), codegen


@intrinsic
def vector_highest(typing_context, a):
    """The largest lane; none may be NaN."""
    if not isinstance(a, VectorType):
        return None
    return a.dtype(a), _across(a, lambda builder, x, y: builder.select(builder.fcmp_ordered("<", x, y), y, x))


@intrinsic
def vector_uniform(typing_context, like, key, index):
    """Uniform numbers in [0, 1), lane i a function of key and index + i only: splitmix64's mix of a counter.

    The same key and index give the same number for every register width and, up to its rounding, for every dtype.
    """
    if not (_is_real_array(like) and isinstance(key, types.Integer) and isinstance(index, types.Integer)):
        return None
    count, bits = lanes_of(like.dtype), _bits(like.dtype)
    mantissa = 23 if bits == 32 else 52
    one = 0x3F800000 if bits == 32 else 0x3FF0000000000000

    def codegen(context, builder, sig, args):
        wide, narrow = ir.VectorType(I64, count), ir.VectorType(ir.IntType(bits), count)

        def every(kind, value):
            return ir.Constant(kind, [value] * count)

        def fold(value, shift):
            return builder.xor(value, builder.lshr(value, every(wide, shift)))
        counter = builder.add(_splat(builder, args[2], count), ir.Constant(wide, list(range(count))))
        state = builder.add(_splat(builder, args[1], count), builder.mul(counter, every(wide, 0x9E3779B97F4A7C15)))
        state = builder.mul(fold(state, 30), every(wide, 0xBF58476D1CE4E5B9))
        state = fold(builder.mul(fold(state, 27), every(wide, 0x94D049BB133111EB)), 31)
        # the highest bits become the mantissa of a number in [1, 2)
        fraction = builder.lshr(state, every(wide, 64 - mantissa))
        if bits == 32:
            fraction = builder.trunc(fraction, narrow)
        number = builder.bitcast(builder.or_(fraction, every(narrow, one)), _vector(like.dtype))
        return builder.fsub(number, ir.Constant(_vector(like.dtype), [1.0] * count))
    return VectorType(like.dtype)(like, types.uint64, types.int64), codegen


def _conversion(source, target):
    """The builder's method that turns numbers of one numba dtype into another's."""
    if isinstance(source, types.Float) and isinstance(target, types.Float):
        return "fptrunc" if source.bitwidth > target.bitwidth else "fpext"
    if isinstance(source, types.Float):
        return "fptosi" if target.signed else "fptoui"
    return "sitofp" if source.signed else "uitofp"


def _convert(builder, value, source, target, vector):
    return value if source == target else getattr(builder, _conversion(source, target))(value, vector)


def _is_number_array(kind):
    return isinstance(kind, types.Array) and isinstance(kind.dtype, (types.Float, types.Integer))


def _masked_access(builder, action, result, arguments, vector):
    """Call llvm.masked.load or store for a vector of any number type."""
    letter = "i" if isinstance(vector.element, ir.IntType) else "f"
    bits = vector.element.width if letter == "i" else 32 if isinstance(vector.element, ir.FloatType) else 64
    name = f"v{vector.count}{letter}{bits}"
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(result, [argument.type for argument in arguments]),
        f"llvm.masked.{action}.{name}.p0{name}")
    return builder.call(function, arguments)


@intrinsic
def vector_read(typing_context, like, a, offset, count):
    """a[offset : offset + min(count, lanes)] as numbers of like's dtype, then zeros; a is of any number dtype."""
    if not (_is_real_array(like) and _is_number_array(a)):
        return None

    def codegen(context, builder, sig, args):
        lane_count, size = lanes_of(like.dtype), a.dtype.bitwidth // 8
        vector = ir.VectorType(context.get_value_type(a.dtype), lane_count)
        pointer = builder.bitcast(_pointer(context, builder, a, args[1], args[2]), vector.as_pointer())
        part = [pointer, I32(size), _mask(builder, args[3], lane_count), ir.Constant(vector, None)]
        if INSTRUCTION_SET == "avx512":   # where a masked load costs no more than a whole one, a branch only costs
            value = _masked_access(builder, "load", vector, part, vector)
        else:
            with builder.if_else(builder.icmp_signed(">=", args[3], I64(lane_count))) as (all_lanes, some_lanes):
                with all_lanes:
                    everything = builder.load(pointer)
                    everything.align = size
                    all_block = builder.block
                with some_lanes:
                    first = _masked_access(builder, "load", vector, part, vector)
                    some_block = builder.block
            value = builder.phi(vector)
            value.add_incoming(everything, all_block)
            value.add_incoming(first, some_block)
        return _convert(builder, value, a.dtype, like.dtype, _vector(like.dtype))
    return VectorType(like.dtype)(like, a, types.intp, types.intp), codegen


@intrinsic
def vector_write(typing_context, vector, a, offset, count):
    """a[offset : offset + min(count, lanes)] = vector as numbers of a's dtype; they must fit if it is an integer."""
    if not (isinstance(vector, VectorType) and _is_number_array(a)):
        return None

    def codegen(context, builder, sig, args):
        lane_count, size = lanes_of(vector.dtype), a.dtype.bitwidth // 8
        target = ir.VectorType(context.get_value_type(a.dtype), lane_count)
        pointer = builder.bitcast(_pointer(context, builder, a, args[1], args[2]), target.as_pointer())
        value = _convert(builder, args[0], vector.dtype, a.dtype, target)
        with builder.if_else(builder.icmp_signed(">=", args[3], I64(lane_count))) as (whole, part):
            with whole:
                builder.store(value, pointer).align = size
            with part:
                _masked_access(builder, "store", ir.VoidType(), [
                    value, pointer, I32(size), _mask(builder, args[3], lane_count)], target)
        return context.get_dummy_value()
    return types.void(vector, a, types.intp, types.intp), codegen


@intrinsic
def vector_where_equal(typing_context, a, b, x, y):
    """x where a == b, else y; false where either is NaN."""
    return _lanewise(lambda builder, kind, a, b, x, y: builder.select(builder.fcmp_ordered("==", a, b), x, y))(
        typing_context, a, b, x, y)


@intrinsic
def vector_where_beats(typing_context, a, b, x, y):
    """x where a beats b as the maximum, that is a > b or only a is NaN, else y."""
    def operation(builder, kind, a, b, x, y):
        beats = builder.and_(builder.fcmp_unordered(">", a, b), builder.fcmp_ordered("ord", b, b))
        return builder.select(beats, x, y)
    return _lanewise(operation)(typing_context, a, b, x, y)


def _transpose(builder, vectors):
    """The transpose of a square of vectors: in each step, vectors `distance` apart exchange blocks of lanes."""
    count = len(vectors)
    distance = count // 2
    while distance:
        keep = [lane if not lane & distance else count + lane - distance for lane in range(count)]
        give = [lane + distance if not lane & distance else count + lane for lane in range(count)]
        for i in range(count):
            if not i & distance:
                a, b = vectors[i], vectors[i + distance]
                vectors[i] = builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, count), keep))
                vectors[i + distance] = builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, count), give))
        distance //= 2
    return vectors


@intrinsic
def transpose_square(typing_context, like, x, x_offset, x_stride, y, y_offset, y_stride, accumulate):
    """y[j, i] = x[i, j] for i, j < lanes of like, or += with accumulate; x and y of any number dtype.

    Rows lie x_stride and y_stride numbers apart.
    """
    if not (_is_real_array(like) and _is_number_array(x) and _is_number_array(y)):
        return None
    offset = types.intp

    def codegen(context, builder, sig, args):
        _, x_array, x_off, x_stride, y_array, y_off, y_stride, accumulate = args
        count, real = lanes_of(like.dtype), _vector(like.dtype)

        def row(kind, array, begin, stride, i):
            vector = ir.VectorType(context.get_value_type(kind.dtype), count)
            at = builder.add(begin, builder.mul(stride, I64(i)))
            return builder.bitcast(_pointer(context, builder, kind, array, at), vector.as_pointer()), vector

        def load(kind, pointer):
            value = builder.load(pointer)
            value.align = kind.dtype.bitwidth // 8
            return _convert(builder, value, kind.dtype, like.dtype, real)

        vectors = _transpose(builder, [load(x, row(x, x_array, x_off, x_stride, i)[0]) for i in range(count)])

        def store(add):
            for j in range(count):
                pointer, vector = row(y, y_array, y_off, y_stride, j)
                value = builder.fadd(load(y, pointer), vectors[j]) if add else vectors[j]
                builder.store(_convert(builder, value, like.dtype, y.dtype, vector),
                              pointer).align = y.dtype.bitwidth // 8
        with builder.if_else(builder.icmp_signed("!=", accumulate, I64(0))) as (adding, overwriting):
            with adding:
                store(True)
            with overwriting:
                store(False)
        return context.get_dummy_value()
    return types.void(like, x, offset, offset, y, offset, offset, types.int64), codegen
