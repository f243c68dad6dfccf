"""Vector operations: loads and stores with a count, arithmetic, comparisons, exp and log, conversions."""
import functools

from llvmlite import ir
from numba import types
from numba.extending import intrinsic, models, register_model

from .simd import (
    I32,
    I64,
    MASKS_ARE_FREE,
    bits_of,
    is_real_array,
    lane_mask,
    lanes_of,
    lanewise_call,
    load_vector,
    masked_load,
    masked_store,
    multiply_add,
    pointer_to,
    splat,
    store_vector,
    vector_type,
)


class VectorType(types.Type):
    """One register of dtype."""

    def __init__(self, dtype):
        self.dtype = dtype
        super().__init__(name=f"Vector({dtype},{lanes_of(dtype)})")


@register_model(VectorType)
class VectorModel(models.PrimitiveModel):
    def __init__(self, dmm, vector):
        super().__init__(dmm, vector, vector_type(vector.dtype))


@intrinsic
def vector_load(typing_context, a, offset):
    """a[offset : offset + lanes]"""
    if not is_real_array(a):
        return None

    def codegen(context, builder, sig, args):
        pointer = pointer_to(context, builder, sig.args[0], args[0], args[1])
        return load_vector(builder, pointer, vector_type(a.dtype))
    return VectorType(a.dtype)(a, types.intp), codegen


@intrinsic
def vector_load_first(typing_context, a, offset, count):
    """a[offset : offset + count], then zeros."""
    if not is_real_array(a):
        return None

    def codegen(context, builder, sig, args):
        pointer = pointer_to(context, builder, sig.args[0], args[0], args[1])
        return masked_load(builder, pointer, vector_type(a.dtype), args[2])
    return VectorType(a.dtype)(a, types.intp, types.intp), codegen


@intrinsic
def vector_store(typing_context, vector, a, offset):
    """a[offset : offset + lanes] = vector"""
    if not isinstance(vector, VectorType):
        return None

    def codegen(context, builder, sig, args):
        pointer = pointer_to(context, builder, sig.args[1], args[1], args[2])
        store_vector(builder, args[0], pointer)
        return context.get_dummy_value()
    return types.void(vector, a, types.intp), codegen


@intrinsic
def vector_store_first(typing_context, vector, a, offset, count):
    """a[offset : offset + count] = vector[:count]"""
    if not isinstance(vector, VectorType):
        return None

    def codegen(context, builder, sig, args):
        pointer = pointer_to(context, builder, sig.args[1], args[1], args[2])
        masked_store(builder, args[0], pointer, args[3])
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


def lanewise(operation):
    """Decorator: the intrinsic on vectors of one type whose LLVM code operation(builder, *vectors) makes."""
    @functools.wraps(operation)     # its parameters are the intrinsic's
    def typer(typing_context, *vectors):
        first = vectors[0]
        if not isinstance(first, VectorType) or any(vector != first for vector in vectors):
            return None
        return first(*vectors), lambda context, builder, sig, args: operation(builder, *args)
    return intrinsic(typer)


@lanewise
def vector_add(builder, a, b):
    """a + b"""
    return builder.fadd(a, b)


@lanewise
def vector_sub(builder, a, b):
    """a - b"""
    return builder.fsub(a, b)


@lanewise
def vector_mul(builder, a, b):
    """a * b"""
    return builder.fmul(a, b)


@lanewise
def vector_div(builder, a, b):
    """a / b"""
    return builder.fdiv(a, b)


@lanewise
def vector_fma(builder, a, b, c):
    """a * b + c, rounded once where the CPU can."""
    return multiply_add(builder, a, b, c)


@lanewise
def vector_sqrt(builder, a):
    """The square root of each lane."""
    return lanewise_call(builder, "sqrt", a)


@lanewise
def vector_log(builder, a):
    """The natural logarithm of each lane: the C library's, lane by lane."""
    return lanewise_call(builder, "log", a)


@lanewise
def vector_max(builder, a, b):
    """b where a < b, else a: a NaN in a stays."""
    return builder.select(builder.fcmp_ordered("<", a, b), b, a)


@lanewise
def vector_min(builder, a, b):
    """b where a > b, else a: a NaN in a stays."""
    return builder.select(builder.fcmp_ordered(">", a, b), b, a)


@lanewise
def vector_where_greater(builder, a, b, x, y):
    """x where a > b, else y; false where either is NaN."""
    return builder.select(builder.fcmp_ordered(">", a, b), x, y)


@lanewise
def vector_where_equal(builder, a, b, x, y):
    """x where a == b, else y; false where either is NaN."""
    return builder.select(builder.fcmp_ordered("==", a, b), x, y)


@lanewise
def vector_where_beats(builder, a, b, x, y):
    """x where a beats b as the maximum, that is a > b or only a is NaN, else y."""
    beats = builder.and_(builder.fcmp_unordered(">", a, b), builder.fcmp_ordered("ord", b, b))
    return builder.select(beats, x, y)


@intrinsic
def vector_where_first(typing_context, count, x, y):
    """x in the first `count` lanes, y in the others."""
    if not isinstance(x, VectorType) or x != y:
        return None

    def codegen(context, builder, sig, args):
        return builder.select(lane_mask(builder, args[0], lanes_of(x.dtype)), args[1], args[2])
    return x(types.intp, x, y), codegen


def across(kind, combine):
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
    return a.dtype(a), across(a, lambda builder, x, y: builder.fadd(x, y))


@intrinsic
def vector_highest(typing_context, a):
    """The largest lane; none may be NaN."""
    if not isinstance(a, VectorType):
        return None
    return a.dtype(a), across(a, lambda builder, x, y: builder.select(builder.fcmp_ordered("<", x, y), y, x))


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

        def constant(value):
            return ir.Constant(vector, [value] * count)

        x = args[0]
        inside = builder.select(builder.fcmp_ordered("<", x, constant(smallest)), constant(smallest), x)
        inside = builder.select(builder.fcmp_ordered(">", inside, constant(largest)), constant(largest), inside)
        inside = builder.select(builder.fcmp_unordered("uno", x, x), constant(0.0), inside)
        n = lanewise_call(builder, "rint", builder.fmul(inside, constant(1.4426950408889634)))
        remainder = multiply_add(builder, n, constant(-high), inside)
        remainder = multiply_add(builder, n, constant(-low), remainder)
        power = constant(coefficients[-1])
        for coefficient in reversed(coefficients[:-1]):
            power = multiply_add(builder, power, remainder, constant(coefficient))
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


def _read(context, builder, array_type, array, offset, count, lane_count):
    """The first `count` numbers from offset on, then zeros; a plain load for a whole vector where masks cost something."""
    vector = ir.VectorType(context.get_value_type(array_type.dtype), lane_count)
    pointer = pointer_to(context, builder, array_type, array, offset)
    if MASKS_ARE_FREE:
        return masked_load(builder, pointer, vector, count)
    with builder.if_else(builder.icmp_signed(">=", count, I64(lane_count))) as (whole, part):
        with whole:
            everything = load_vector(builder, pointer, vector)
            whole_block = builder.block
        with part:
            first = masked_load(builder, pointer, vector, count)
            part_block = builder.block
    value = builder.phi(vector)
    value.add_incoming(everything, whole_block)
    value.add_incoming(first, part_block)
    return value


@intrinsic
def vector_take(typing_context, a, offset, count):
    """a[offset : offset + min(count, lanes)], then zeros."""
    if not is_real_array(a):
        return None

    def codegen(context, builder, sig, args):
        return _read(context, builder, a, *args, lanes_of(a.dtype))
    return VectorType(a.dtype)(a, types.intp, types.intp), codegen


@intrinsic
def vector_read(typing_context, like, a, offset, count):
    """vector_take of an array of any number dtype, as numbers of like's dtype."""
    if not (is_real_array(like) and is_number_array(a)):
        return None

    def codegen(context, builder, sig, args):
        value = _read(context, builder, a, *args[1:], lanes_of(like.dtype))
        return convert(builder, value, a.dtype, like.dtype, vector_type(like.dtype))
    return VectorType(like.dtype)(like, a, types.intp, types.intp), codegen


@intrinsic
def vector_write(typing_context, vector, a, offset, count):
    """a[offset : offset + min(count, lanes)] = vector as numbers of a's dtype; they must fit if it is an integer."""
    if not (isinstance(vector, VectorType) and is_number_array(a)):
        return None

    def codegen(context, builder, sig, args):
        target = ir.VectorType(context.get_value_type(a.dtype), lanes_of(vector.dtype))
        pointer = pointer_to(context, builder, a, args[1], args[2])
        value = convert(builder, args[0], vector.dtype, a.dtype, target)
        with builder.if_else(builder.icmp_signed(">=", args[3], I64(target.count))) as (whole, part):
            with whole:
                store_vector(builder, value, pointer)
            with part:
                masked_store(builder, value, pointer, args[3])
        return context.get_dummy_value()
    return types.void(vector, a, types.intp, types.intp), codegen


@intrinsic
def vector_any_nan(typing_context, a):
    """Whether any lane is NaN."""
    if not isinstance(a, VectorType):
        return None

    def codegen(context, builder, sig, args):
        every = builder.bitcast(builder.fcmp_unordered("uno", args[0], args[0]), ir.IntType(lanes_of(a.dtype)))
        return builder.icmp_unsigned("!=", every, ir.Constant(every.type, 0))
    return types.boolean(a), codegen
