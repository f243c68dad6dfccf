"""Where a clamp let a gradient pass, one bit for each number: all that backward needs of its output."""
import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .compiler import helper, kernel
from .entry import entry, fields_of, number, threads_for, view, view_as
from .simd import I64, is_real_array, load_vector, pointer_to, splat, store_vector

# Numbers whose bits are one word: LLVM makes it of as many registers as there must be.
BITS = 16
WORD = ir.IntType(BITS)
CHUNK = 8192


def _vector(kind):
    return ir.VectorType(ir.FloatType() if kind.dtype == types.float32 else ir.DoubleType(), BITS)


@intrinsic
def _inside(typing_context, y, at, low, high):
    """A word whose bits say which of the 16 numbers of y from `at` on lie strictly between low and high; NaN does not."""
    if not is_real_array(y):
        return None
    signature = types.uint16(y, types.intp, y.dtype, y.dtype)

    def codegen(context, builder, sig, args):
        value = load_vector(builder, pointer_to(context, builder, sig.args[0], args[0], args[1]), _vector(sig.args[0]))
        above = builder.fcmp_ordered(">", value, splat(builder, args[2], BITS))
        below = builder.fcmp_ordered("<", value, splat(builder, args[3], BITS))
        return builder.bitcast(builder.and_(above, below), WORD)
    return signature, codegen


@intrinsic
def _pass_on(typing_context, bits, dy, dx, at, accumulate):
    """16 numbers of dy from `at` on, or zeros where a bit is none, into dx; with accumulate added to what is there."""
    if not is_real_array(dy) or dy.dtype != dx.dtype:
        return None
    signature = types.void(types.uint16, dy, dx, types.intp, types.boolean)

    def codegen(context, builder, sig, args):
        vector = _vector(sig.args[1])
        source = pointer_to(context, builder, sig.args[1], args[1], args[3])
        target = pointer_to(context, builder, sig.args[2], args[2], args[3])
        mask = builder.bitcast(args[0], ir.VectorType(ir.IntType(1), BITS))
        value = builder.select(mask, load_vector(builder, source, vector), ir.Constant(vector, None))
        with builder.if_else(builder.trunc(args[4], ir.IntType(1))) as (adds, writes):
            with adds:
                store_vector(builder, builder.fadd(value, load_vector(builder, target, vector)), target)
            with writes:
                store_vector(builder, value, target)
        return context.get_dummy_value()
    return signature, codegen


@intrinsic
def vector_pass(typing_context, value, mask, at):
    """The lanes of a vector whose bits are set, from that of number `at` on, a multiple of the lanes; zero in the others."""
    signature = value(value, mask, types.intp)

    def codegen(context, builder, sig, args):
        vector, byte = args[0].type, ir.IntType(8)
        count = vector.count
        words = context.make_array(sig.args[1])(context, builder, args[1]).data
        pointer = builder.gep(builder.bitcast(words, byte.as_pointer()), [builder.lshr(args[2], I64(3))])
        if count < 8:
            shift = builder.trunc(builder.and_(args[2], I64(7)), byte)
            bits = builder.trunc(builder.lshr(builder.load(pointer), shift), ir.IntType(count))
        else:
            bits = builder.load(builder.bitcast(pointer, ir.IntType(count).as_pointer()))
            bits.align = 1
        passing = builder.bitcast(bits, ir.VectorType(ir.IntType(1), count))
        return builder.select(passing, args[0], ir.Constant(vector, None))
    return signature, codegen


@helper
def pack_run(y, at, count, low, high, mask, word):
    """The words of count numbers of y from `at` on, as many as are whole."""
    real = y.dtype.type
    for i in range(count // BITS):
        mask[word + i] = _inside(y, at + i * BITS, real(low), real(high))


@helper
def _pack_chunk(y, begin, end, low, high, mask):
    real = y.dtype.type
    pack_run(y, begin, end - begin, low, high, mask, begin // BITS)
    i = end - (end - begin) % BITS
    if i < end:
        word = 0
        for j in range(i, end):
            if real(low) < y[j] < real(high):
                word |= 1 << (j - i)
        mask[i // BITS] = word


@kernel
@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def mask_pack(y, low, high, threads, mask):
    """What of a clamp's output lies strictly between its bounds.

    Shapes   y (any), flat; mask (ceil(size / 16),) uint16, bit i of word j for number 16 j + i
    Writes   mask (overwritten)
    Threads  one iteration per chunk of 8,192 numbers, each owns its words
    Source   seed, the derivative of the activation: 1 inside the bounds, 0 outside
    """
    chunks = (y.size + CHUNK - 1) // CHUNK
    if threads > 1:
        for index in numba.prange(chunks):
            chunk = np.int64(index)
            _pack_chunk(y, chunk * CHUNK, min(y.size, (chunk + 1) * CHUNK), low, high, mask)
    else:
        for chunk in range(chunks):
            _pack_chunk(y, chunk * CHUNK, min(y.size, (chunk + 1) * CHUNK), low, high, mask)


@entry("y< mask> size low high")
def pack(arena, row, batch):
    row = fields_of(row)
    size = row.size * batch
    mask_pack(view(arena, row.y, size), number(row.low), number(row.high), threads_for(arena, size * 2),
              view_as(arena, row.mask, (size + BITS - 1) // BITS, np.uint16))


@helper
def _backward_chunk(mask, dy, begin, end, accumulate, dx):
    i = begin
    while i + BITS <= end:
        _pass_on(mask[i // BITS], dy, dx, i, accumulate)
        i += BITS
    zero = dy.dtype.type(0)
    for j in range(i, end):
        value = dy[j] if (mask[i // BITS] >> (j - i)) & 1 else zero
        dx[j] = dx[j] + value if accumulate else value


@kernel
@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def mask_backward(mask, dy, accumulate, threads, dx):
    """The gradient of a clamp from the bits of its output.

    Shapes   mask as mask_pack writes it; dy, dx (any), flat; dx may be dy
    Writes   dx (overwritten, or added to with accumulate)
    Threads  one iteration per chunk of 8,192 numbers, each owns its part of dx
    Source   seed, the derivative of the activation; the same bits as activation_backward makes of the output itself
    """
    chunks = (dy.size + CHUNK - 1) // CHUNK
    if threads > 1:
        for index in numba.prange(chunks):
            chunk = np.int64(index)
            _backward_chunk(mask, dy, chunk * CHUNK, min(dy.size, (chunk + 1) * CHUNK), accumulate, dx)
    else:
        for chunk in range(chunks):
            _backward_chunk(mask, dy, chunk * CHUNK, min(dy.size, (chunk + 1) * CHUNK), accumulate, dx)


@entry("mask< dy< dx= size accumulate")
def backward(arena, row, batch):
    row = fields_of(row)
    size = row.size * batch
    mask_backward(view_as(arena, row.mask, (size + BITS - 1) // BITS, np.uint16), view(arena, row.dy, size),
                  row.accumulate != 0, threads_for(arena, size * 4), view(arena, row.dx, size))
