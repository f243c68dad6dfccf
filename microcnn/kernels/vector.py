"""Vector operations: loads and stores with a count, arithmetic, comparisons, exp and log, conversions."""
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .simd import (
    I32,
    I64,
    INSTRUCTION_SET,
    VectorType,
    bits_of,
    fmuladd,
    is_real_array,
    lane_mask,
    lanes_of,
    load_vector,
    masked_load,
    masked_store,
    pointer_to,
    splat,
    store_vector,
    vector_type,
)


@intrinsic
def vector_load(typing_context, a, offset):
    """a[offset : offset + lanes]"""
    if not is_real_array(a):
        return None

    def codegen(context, builder, sig, args):
        pointer = pointer_to(context, builder, sig.args[0], args[0], args[1])
        return load_vector(builder, pointer, vector_type(a.dtype), bits_of(a.dtype))
    return VectorType(a.dtype)(a, types.intp), codegen


@intrinsic
def vector_load_first(typing_context, a, offset, count):
    """a[offset : offset + count], then zeros."""
    if not is_real_array(a):
        return None

    def codegen(context, builder, sig, args):
        pointer = pointer_to(context, builder, sig.args[0], args[0], args[1])
        return masked_load(builder, pointer, vector_type(a.dtype), bits_of(a.dtype), args[2])
    return VectorType(a.dtype)(a, types.intp, types.intp), codegen


@intrinsic
def vector_store(typing_context, vector, a, offset):
    """a[offset : offset + lanes] = vector"""
    if not isinstance(vector, VectorType):
        return None

    def codegen(context, builder, sig, args):
        pointer = pointer_to(context, builder, sig.args[1], args[1], args[2])
        store_vector(builder, args[0], pointer, bits_of(vector.dtype))
        return context.get_dummy_value()
    return types.void(vector, a, types.intp), codegen


@intrinsic
def vector_store_first(typing_context, vector, a, offset, count):
    """a[offset : offset + count] = vector[:count]"""
    if not isinstance(vector, VectorType):
        return None

    def codegen(context, builder, sig, args):
        pointer = pointer_to(context, builder, sig.args[1], args[1], args[2])
        masked_store(builder, args[0], pointer, bits_of(vector.dtype), args[3])
        return context.get_dummy_value()
    return types.void(vector, a, types.intp, types.intp), codegen


@intrinsic
def vector_of(typing_context, like, value):
    """A vector of like's dtype with value in every lane."""
    if not is_real_array(like):
        return None

    def codegen(context, builder, sig, args):
        return splat(builder, args[1], lanes_of(like.dtype))
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
        fmuladd(builder, vector_type(kind.dtype), bits_of(kind.dtype)), [x, y, z]))(typing_context, a, b, c)


@intrinsic
def vector_sqrt(typing_context, a):
    """The square root of each lane."""
    def operation(builder, kind, x):
        vector, bits = vector_type(kind.dtype), bits_of(kind.dtype)
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
        vector, bits = vector_type(a.dtype), bits_of(a.dtype)
        count = vector.count
        integers = ir.VectorType(ir.IntType(bits), count)
        fma = fmuladd(builder, vector, bits)

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
        vector, bits = vector_type(kind.dtype), bits_of(kind.dtype)
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
        return builder.select(lane_mask(builder, args[0], lanes_of(x.dtype)), args[1], args[2])
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
    if not (is_real_array(like) and isinstance(key, types.Integer) and isinstance(index, types.Integer)):
        return None
    count, bits = lanes_of(like.dtype), bits_of(like.dtype)
    mantissa = 23 if bits == 32 else 52
    one = 0x3F800000 if bits == 32 else 0x3FF0000000000000

    def codegen(context, builder, sig, args):
        wide, narrow = ir.VectorType(I64, count), ir.VectorType(ir.IntType(bits), count)

        def every(kind, value):
            return ir.Constant(kind, [value] * count)

        def fold(value, shift):
            return builder.xor(value, builder.lshr(value, every(wide, shift)))
        counter = builder.add(splat(builder, args[2], count), ir.Constant(wide, list(range(count))))
        state = builder.add(splat(builder, args[1], count), builder.mul(counter, every(wide, 0x9E3779B97F4A7C15)))
        state = builder.mul(fold(state, 30), every(wide, 0xBF58476D1CE4E5B9))
        state = fold(builder.mul(fold(state, 27), every(wide, 0x94D049BB133111EB)), 31)
        # the highest bits become the mantissa of a number in [1, 2)
        fraction = builder.lshr(state, every(wide, 64 - mantissa))
        if bits == 32:
            fraction = builder.trunc(fraction, narrow)
        number = builder.bitcast(builder.or_(fraction, every(narrow, one)), vector_type(like.dtype))
        return builder.fsub(number, ir.Constant(vector_type(like.dtype), [1.0] * count))
    return VectorType(like.dtype)(like, types.uint64, types.int64), codegen


def _conversion(source, target):
    """The builder's method that turns numbers of one numba dtype into another's."""
    if isinstance(source, types.Float) and isinstance(target, types.Float):
        return "fptrunc" if source.bitwidth > target.bitwidth else "fpext"
    if isinstance(source, types.Float):
        return "fptosi" if target.signed else "fptoui"
    return "sitofp" if source.signed else "uitofp"


def convert(builder, value, source, target, vector):
    return value if source == target else getattr(builder, _conversion(source, target))(value, vector)


def is_number_array(kind):
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
    if not (is_real_array(like) and is_number_array(a)):
        return None

    def codegen(context, builder, sig, args):
        lane_count, size = lanes_of(like.dtype), a.dtype.bitwidth // 8
        vector = ir.VectorType(context.get_value_type(a.dtype), lane_count)
        pointer = builder.bitcast(pointer_to(context, builder, a, args[1], args[2]), vector.as_pointer())
        part = [pointer, I32(size), lane_mask(builder, args[3], lane_count), ir.Constant(vector, None)]
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
        return convert(builder, value, a.dtype, like.dtype, vector_type(like.dtype))
    return VectorType(like.dtype)(like, a, types.intp, types.intp), codegen


@intrinsic
def vector_write(typing_context, vector, a, offset, count):
    """a[offset : offset + min(count, lanes)] = vector as numbers of a's dtype; they must fit if it is an integer."""
    if not (isinstance(vector, VectorType) and is_number_array(a)):
        return None

    def codegen(context, builder, sig, args):
        lane_count, size = lanes_of(vector.dtype), a.dtype.bitwidth // 8
        target = ir.VectorType(context.get_value_type(a.dtype), lane_count)
        pointer = builder.bitcast(pointer_to(context, builder, a, args[1], args[2]), target.as_pointer())
        value = convert(builder, args[0], vector.dtype, a.dtype, target)
        with builder.if_else(builder.icmp_signed(">=", args[3], I64(lane_count))) as (whole, part):
            with whole:
                builder.store(value, pointer).align = size
            with part:
                _masked_access(builder, "store", ir.VoidType(), [
                    value, pointer, I32(size), lane_mask(builder, args[3], lane_count)], target)
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


@intrinsic
def vector_any_nan(typing_context, a):
    """Whether any lane is NaN."""
    if not isinstance(a, VectorType):
        return None

    def codegen(context, builder, sig, args):
        every = builder.bitcast(builder.fcmp_unordered("uno", args[0], args[0]), ir.IntType(lanes_of(a.dtype)))
        return builder.icmp_unsigned("!=", every, ir.Constant(every.type, 0))
    return types.boolean(a), codegen
