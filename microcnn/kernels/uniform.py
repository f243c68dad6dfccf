"""Random numbers that depend on a counter alone."""
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .simd import I64, bits_of, is_real_array, lanes_of, splat, vector_type
from .vector import VectorType


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
