"""Parallel loops: what numba asks its threading layer for, answered by a team of threads of our own (team.py).

numba lowers a parallel loop to calls of some functions of its threading layer, which split the loop and start its threads, and
on the way take Python's lock four times. Here those functions are LLVM code that becomes part of every entry, and what is left
is one call, of `parallel_for`. So an entry calls nothing of numba's, and a process that only loads it need not import numba.
"""
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.np.ufunc import parallel

from ..block import PARALLEL_FOR, SPACE, SPLIT, TEAM

# What the names of the libraries begin with that numba makes of a parallel loop.
LOOP_PARTS = ("__numba_parfor_gufunc", "<numba.np.ufunc.wrappers.", "parallelgufuncwrapper")

WORD, BYTE = ir.IntType(64), ir.IntType(8)
WORDS, ANY, VOID = WORD.as_pointer(), BYTE.as_pointer(), ir.VoidType()

# What frees an array that is no view, and what raises an exception in a part of a loop: there are no such arrays, and the parts
# raise none, but LLVM cannot know it.
NEVER = [("NRT_MemInfo_call_dtor", VOID, [ANY]), ("numba_gil_ensure", VOID, [ANY]), ("numba_gil_release", VOID, [ANY]),
         ("PyErr_Clear", VOID, []), ("PyErr_SetString", VOID, [ANY, ANY]), ("numba_do_raise", VOID, [ANY]),
         ("numba_unpickle", ANY, [ANY, ir.IntType(32), ANY]), ("PyBytes_FromStringAndSize", ANY, [ANY, WORD]),
         ("numba_runtime_build_excinfo_struct", ANY, [ANY, ANY])]


def loop_for_team(library, context, info, signature, inner_ndim):
    """As numba's build_gufunc_kernel: what a parallel loop calls, which here hands it to our threads."""
    byte, word = BYTE.as_pointer(), context.get_value_type(types.intp)
    assert len(signature.args) + inner_ndim + 1 <= SPACE, f"{info.name} takes more arguments than there is room for"
    wrapper = context.codegen().create_library("parallelgufuncwrapper")
    module = wrapper.create_ir_module("parallel.gufunc.wrapper")
    addresses = [byte.as_pointer(), word.as_pointer(), word.as_pointer(), byte]
    function = ir.Function(module, ir.FunctionType(VOID, addresses), name=f".kernel.{id(info.env)}_{info.name}")
    builder = ir.IRBuilder(function.append_basic_block(""))
    part = cgutils.get_or_insert_function(module, ir.FunctionType(VOID, addresses), info.name)
    wrapper.add_linking_library(info.library)
    threads = builder.call(cgutils.get_or_insert_function(module, ir.FunctionType(word, []), "get_num_threads"), [])
    run = cgutils.get_or_insert_function(module, ir.FunctionType(VOID, [word] * 8), PARALLEL_FOR)
    builder.call(run, [builder.ptrtoint(value, word) for value in (part, *function.args)]
                 + [word(inner_ndim), word(len(signature.args)), threads])
    builder.ret_void()
    wrapper.add_ir_module(module)
    wrapper.add_linking_library(library)
    return parallel._wrapper_info(library=wrapper, name=function.name, env=info.env)


def numbas_functions():
    """What numba's loops of one dimension call outside themselves, as an LLVM module."""
    module = ir.Module("splitting")
    block = ir.GlobalVariable(module, BYTE, TEAM)

    # never less than one, and LLVM sees it: what numba does about none, a message and an exception, goes
    builder, _ = _define(module, "get_num_threads", WORD, [])
    pieces = builder.load(builder.gep(builder.bitcast(block, WORDS), [WORD(SPLIT)]))
    builder.ret(builder.select(builder.icmp_signed(">", pieces, WORD(1)), pieces, WORD(1)))

    # numba's way to ask for smaller pieces, which no kernel does
    builder, _ = _define(module, "get_parallel_chunksize", WORD, [])
    builder.ret(WORD(0))
    builder, _ = _define(module, "set_parallel_chunksize", VOID, [WORD])
    builder.ret_void()

    builder, (threads, _, first, last) = _define(module, "get_sched_size", WORD, [WORD, WORD, WORDS, WORDS])
    count = builder.add(builder.sub(builder.load(last), builder.load(first)), WORD(1))
    count = builder.select(builder.icmp_signed(">", count, WORD(1)), count, WORD(1))
    builder.ret(builder.select(builder.icmp_signed("<", count, threads), count, threads))

    builder, (size,) = _define(module, "allocate_sched", WORDS, [WORD])
    allocate = ir.Function(module, ir.FunctionType(ANY, [WORD]), "malloc")
    builder.ret(builder.bitcast(builder.call(allocate, [builder.mul(size, WORD(8))]), WORDS))
    builder, (given,) = _define(module, "deallocate_sched", VOID, [WORDS])
    free = ir.Function(module, ir.FunctionType(VOID, [ANY]), "free")
    builder.call(free, [builder.bitcast(given, ANY)])
    builder.ret_void()
    for name in ("do_scheduling_signed", "do_scheduling_unsigned"):
        _scheduling(module, name)
    for name, result, arguments in NEVER:
        builder, _ = _define(module, name, result, arguments)
        builder.ret(ir.Constant(result, None)) if result == ANY else builder.ret_void()
    ir.GlobalVariable(module, BYTE, "PyExc_RuntimeError").initializer = BYTE(0)
    return module


def _define(module, name, result, arguments):
    function = ir.Function(module, ir.FunctionType(result, arguments), name)
    return ir.IRBuilder(function.append_basic_block("")), function.args


def _scheduling(module, name):
    """Piece i of a loop over first..last has i * count / pieces of its indices before it; stored are both its ends."""
    builder, (_, first, last, pieces, ends, _) = _define(module, name, WORDS, [WORD, WORDS, WORDS, WORD, WORDS, WORD])
    begin = builder.load(first)
    count = builder.add(builder.sub(builder.load(last), begin), WORD(1))
    with cgutils.for_range(builder, pieces) as loop:
        def boundary(index):
            return builder.add(begin, builder.udiv(builder.mul(index, count), pieces))
        at = builder.mul(loop.index, WORD(2))
        builder.store(boundary(loop.index), builder.gep(ends, [at]))
        after = builder.sub(boundary(builder.add(loop.index, WORD(1))), WORD(1))
        builder.store(after, builder.gep(ends, [builder.add(at, WORD(1))]))
    builder.ret(ends)
