"""The compiled loop that walks a program's rows and calls their kernels; called with the address of its header (arena.py)."""
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ..arena import ARENA, COUNT, FLAGS, KERNELS, MARKS, ROWS
from .compiler import function, helper
from .entry import outside


@intrinsic
def _call(typing_context, address, arena, row, batch):
    """Call the entry at an address."""
    def codegen(context, builder, sig, args):
        function = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, cgutils.voidptr_t, ir.IntType(64)])
        builder.call(builder.inttoptr(args[0], function.as_pointer()),
                     [builder.inttoptr(args[1], cgutils.voidptr_t), builder.inttoptr(args[2], cgutils.voidptr_t), args[3]])
        return context.get_dummy_value()
    return types.void(types.int64, types.int64, types.int64, types.int64), codegen


@intrinsic
def _nanoseconds(typing_context):
    """clock_gettime(CLOCK_MONOTONIC)"""
    def codegen(context, builder, sig, args):
        word = ir.IntType(64)
        timespec = cgutils.alloca_once(builder, ir.ArrayType(word, 2))
        clock = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(ir.IntType(32), [ir.IntType(32), timespec.type]), "clock_gettime")
        builder.call(clock, [ir.Constant(ir.IntType(32), 1), timespec])
        value = builder.load(timespec)
        return builder.add(builder.mul(builder.extract_value(value, 0), word(10**9)), builder.extract_value(value, 1))
    return types.int64(), codegen


@helper
def _walk(header, batch, noted):
    """Call every row's kernel, until one sets FLAGS; with `noted` note the clock after each."""
    arena = header[ARENA]
    count = header[COUNT]
    kernels = outside(header[KERNELS], count, np.int64)
    rows = outside(header[ROWS], count, np.int64)
    marks = outside(header[MARKS], count + 1, np.int64)
    flags = outside(arena, FLAGS + 1, np.int64)
    if noted:
        marks[0] = _nanoseconds()
    for i in range(count):
        _call(kernels[i], arena, rows[i], batch)
        if noted:
            marks[i + 1] = _nanoseconds()
        if flags[FLAGS] != 0:
            break


@function(2)
def plain(header, batch):
    _walk(outside(header, MARKS + 1, np.int64), batch, False)


@function(2)
def timed(header, batch):
    _walk(outside(header, MARKS + 1, np.int64), batch, True)


@function(2)
def clock(marks, count):
    readings = outside(marks, count, np.int64)
    for i in range(count):
        readings[i] = _nanoseconds()
