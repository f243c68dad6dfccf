"""Entries: what a row of a program is, and how a kernel reads it.

A program is a table of rows, each a call of one entry `function(arena, row, batch)`. A row holds byte offsets into the
arena, and plain numbers; the arena begins with the control block, whose slots change from step to step (arena.py).
"""
import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.core import cgutils
from numba.extending import intrinsic

from ..arena import LEAST_WORK, THREADS
from .compiler import ENTRY_FUNCTIONS, helper, view_helper


def entry(fields):
    """Decorator: registers an entry `file.function` whose row has these fields (entries.Entry says how they are marked)."""
    def register(function):
        name = f"{function.__module__.rpartition('.')[2]}.{function.__name__}"
        if name in ENTRY_FUNCTIONS:
            raise ValueError(f"two entries are called {name}")
        ENTRY_FUNCTIONS[name] = function, fields
        return function
    return register


@view_helper
def fields_of(row):
    """The row's fields by name."""
    return carray(row, (1,))[0]


@intrinsic
def _at(typing_context, base, offset):
    """base + offset bytes, of base's pointer type."""
    def codegen(context, builder, sig, args):
        raw = builder.bitcast(args[0], cgutils.voidptr_t)
        return builder.bitcast(builder.gep(raw, [args[1]]), args[0].type)
    return base(base, types.int64), codegen


@intrinsic
def _at_as(typing_context, base, offset, dtype):
    """base + offset bytes, as a pointer to dtype."""
    pointer = types.CPointer(dtype.dtype)

    def codegen(context, builder, sig, args):
        raw = builder.bitcast(args[0], cgutils.voidptr_t)
        return builder.bitcast(builder.gep(raw, [args[1]]), context.get_value_type(pointer))
    return pointer(base, types.int64, dtype), codegen


@intrinsic
def _address_as(typing_context, address, dtype):
    """An address outside the arena, as a pointer to dtype."""
    pointer = types.CPointer(dtype.dtype)

    def codegen(context, builder, sig, args):
        return builder.inttoptr(args[0], context.get_value_type(pointer))
    return pointer(types.int64, dtype), codegen


@intrinsic
def number(typing_context, bits):
    """The float64 that a row carries as an integer's bits."""
    def codegen(context, builder, sig, args):
        return builder.bitcast(args[0], ir.DoubleType())
    return types.float64(types.int64), codegen


@view_helper
def view(arena, offset, size):
    """The arena's numbers from a byte offset on, as a flat array of the network's dtype."""
    return carray(_at(arena, offset), (size,))


@view_helper
def view_as(arena, offset, size, dtype):
    """The arena from a byte offset on, as a flat array of another dtype."""
    return carray(_at_as(arena, offset, dtype), (size,))


@view_helper
def outside(address, size, dtype):
    """A flat array at an address outside the arena: the caller's input or output."""
    return carray(_address_as(address, dtype), (size,))


@intrinsic
def numbers_between(typing_context, first, second):
    """How many numbers lie from the first one of one flat array to the first one of another, both parts of one arena."""
    signature = types.intp(first, second)

    def codegen(context, builder, sig, args):
        begin, end = (builder.ptrtoint(context.make_array(kind)(context, builder, array).data, ir.IntType(64))
                      for kind, array in zip(sig.args, args, strict=True))
        return builder.sdiv(builder.sub(end, begin), ir.Constant(ir.IntType(64), first.dtype.bitwidth // 8))
    return signature, codegen


@helper
def slot(arena, index):
    """An integer of the arena's control block."""
    return view_as(arena, 0, index + 1, np.int64)[index]


@helper
def slot_number(arena, index):
    """A float64 of the arena's control block."""
    return view_as(arena, 0, index + 1, np.float64)[index]


@helper
def threads_for(arena, work):
    """How many threads a kernel with this much work, in elementary operations, may use: 1 runs its serial branch."""
    return slot(arena, THREADS) if work >= slot(arena, LEAST_WORK) else 1
