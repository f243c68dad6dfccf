"""Reading numbers before they are used, in the order in which they lie.

Memory delivers at its full speed to who reads one address after another: its prefetchers lose the thread where a kernel jumps
from pixel to pixel, channels outside.
"""
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .compiler import helper
from .simd import is_real_array, pointer_to

LINE_BYTES = 64


@intrinsic
def _touch(typing_context, a, offset):
    """Read a[offset]; no one uses it."""
    if not is_real_array(a):
        return None

    def codegen(context, builder, sig, args):
        word = ir.IntType(32)
        pointer = builder.bitcast(pointer_to(context, builder, sig.args[0], args[0], args[1]), word.as_pointer())
        # an empty piece of assembly that takes the value: the optimiser has to leave the load
        builder.asm(ir.FunctionType(ir.VoidType(), [word]), "", "r", [builder.load(pointer)], True)
        return context.get_dummy_value()
    return types.void(a, types.intp), codegen


@helper
def fetch(a, at, count):
    """Read a[at : at + count] line by line."""
    step = LINE_BYTES // a.itemsize
    i = at
    while i < at + count:
        _touch(a, i)
        i += step


@intrinsic
def ask(typing_context, a, offset):
    """Have the line with a[offset], which may lie outside, brought nearer; nothing waits for it."""
    if not is_real_array(a):
        return None

    def codegen(context, builder, sig, args):
        kind, raw = ir.IntType(32), ir.IntType(8).as_pointer()
        pointer = builder.bitcast(pointer_to(context, builder, sig.args[0], args[0], args[1]), raw)
        signature = ir.FunctionType(ir.VoidType(), [raw, kind, kind, kind])
        prefetch = builder.module.declare_intrinsic("llvm.prefetch", [raw], signature)
        builder.call(prefetch, [pointer, kind(0), kind(3), kind(1)])      # to read, often, data
        return context.get_dummy_value()
    return types.void(a, types.intp), codegen
