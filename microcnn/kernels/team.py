"""A team of threads for parallel loops: the loop's pieces are claimed, so that nobody waits for a thread that sleeps.

numba hands a parallel loop to its threading layer through Python's lock and a scheduler that waits for every thread: two or
three microseconds for each loop, and as long as the other threads need to wake. Here the threads of the team look for work
while a program runs. Who starts a loop publishes it, takes pieces of it itself, and waits only for pieces that others have
begun; what nobody else claims it does alone. Handing over costs about as long as a line of memory takes from one core to the
other. Which thread computes a piece changes nothing in what is computed.
"""
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ..block import (
    ARGUMENT_COUNT,
    ARGUMENTS,
    CLAIMS,
    DATA,
    DONE,
    FUNCTION,
    GENERATION,
    LINE,
    MOST,
    OWNER,
    SIZE_COUNT,
    SIZES,
    SPACE,
    SPACES,
    STEPS,
    STOP,
    TEAM,
)
from .compiler import function, helper
from .simd import I32, I64, INSTRUCTION_SET

# The low bits of the number of the loop say in how many pieces it is.
PIECE_BITS = 8
# A thread looks at what the owner writes only so often: each time the owner has to get that line back.
FAR = 256
# How often one waits for the others before it lets them have its processor.
PATIENCE = 10_000


def _word(builder, base, index):
    return builder.gep(builder.inttoptr(base, I64.as_pointer()), [index])


@intrinsic
def _load(typing_context, base, index):
    """A word, and what was written before it was."""
    def codegen(context, builder, sig, args):
        return builder.load_atomic(_word(builder, *args), "acquire", 8)
    return types.int64(types.int64, types.int64), codegen


@intrinsic
def _store(typing_context, base, index, value):
    """A word, after all that was written before."""
    def codegen(context, builder, sig, args):
        builder.store_atomic(args[2], _word(builder, *args[:2]), "release", 8)
        return context.get_dummy_value()
    return types.void(types.int64, types.int64, types.int64), codegen


@intrinsic
def _replace(typing_context, base, index, old, new):
    """1 and the word is `new` where it was `old`, else 0."""
    def codegen(context, builder, sig, args):
        result = builder.cmpxchg(_word(builder, *args[:2]), args[2], args[3], "acq_rel", "acquire")
        return builder.zext(builder.extract_value(result, 1), I64)
    return types.int64(types.int64, types.int64, types.int64, types.int64), codegen


@intrinsic
def _count(typing_context, base, index):
    """The word becomes one more."""
    def codegen(context, builder, sig, args):
        builder.atomic_rmw("add", _word(builder, *args), I64(1), "acq_rel")
        return context.get_dummy_value()
    return types.void(types.int64, types.int64), codegen


@intrinsic
def _pause(typing_context):
    """Tells the core that it waits."""
    def codegen(context, builder, sig, args):
        if INSTRUCTION_SET == "neon":
            hint = cgutils.get_or_insert_function(builder.module, ir.FunctionType(ir.VoidType(), [I32]), "llvm.aarch64.hint")
            builder.call(hint, [I32(1)])
        else:
            pause = cgutils.get_or_insert_function(builder.module, ir.FunctionType(ir.VoidType(), []), "llvm.x86.sse2.pause")
            builder.call(pause, [])
        return context.get_dummy_value()
    return types.void(), codegen


@intrinsic
def _let_others(typing_context):
    """sched_yield()"""
    def codegen(context, builder, sig, args):
        builder.call(cgutils.get_or_insert_function(builder.module, ir.FunctionType(I32, []), "sched_yield"), [])
        return context.get_dummy_value()
    return types.void(), codegen


@intrinsic
def _call(typing_context, part, arguments, sizes, steps, data):
    """Call a part of a parallel loop as numba compiles it."""
    def codegen(context, builder, sig, args):
        kind = ir.FunctionType(ir.VoidType(), [I64] * 4)
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), args[1:])
        return context.get_dummy_value()
    return types.void(*[types.int64] * 5), codegen


@intrinsic
def _control(typing_context):
    """The address of the block of words (block.py)."""
    def codegen(context, builder, sig, args):
        block = cgutils.add_global_variable(builder.module, ir.IntType(8), TEAM)
        block.linkage = "external"
        return builder.ptrtoint(block, I64)
    return types.int64(), codegen


@intrinsic
def _own_space(typing_context):
    """The address of SPACE words on the stack."""
    def codegen(context, builder, sig, args):
        return builder.ptrtoint(cgutils.alloca_once(builder, ir.ArrayType(I64, SPACE)), I64)
    return types.int64(), codegen


@helper
def _run_piece(piece, part, arguments, sizes, steps, data, size_count, argument_count, space):
    """numba's call of one piece: the first size is 1, and every argument is moved on by the piece's number."""
    for i in range(argument_count):
        _store(space, i, _load(arguments, i) + _load(steps, i) * piece)
    _store(space, argument_count, 1)
    for i in range(1, size_count):
        _store(space, argument_count + i, _load(sizes, i))
    _call(part, space, space + 8 * argument_count, steps, data)


@helper
def _pieces(control, generation, place):
    """All pieces that are left to claim, first the one that is this thread's in every loop: its data is in its cache.

    A thread that comes late, when the loop is done and the next one may stand there, finds all pieces claimed.
    """
    pieces = generation & ((1 << PIECE_BITS) - 1)
    for i in range(pieces):
        piece = place + i if place + i < pieces else place + i - pieces
        claimed = _load(control, CLAIMS + piece * LINE)
        if claimed < generation and _replace(control, CLAIMS + piece * LINE, claimed, generation) == 1:
            _run_piece(piece, _load(control, FUNCTION), _load(control, ARGUMENTS), _load(control, SIZES), _load(control, STEPS),
                       _load(control, DATA), _load(control, SIZE_COUNT), _load(control, ARGUMENT_COUNT),
                       control + 8 * (SPACES + place * SPACE))
            _count(control, DONE)


@function(8)
def parallel_for(part, arguments, sizes, steps, data, inner_sizes, argument_count, threads):
    """What numba asks its threading layer for: the part, a function, for each of sizes[0] pieces, by up to `threads` threads.

    All but the counts are addresses: of the function, of the arguments' addresses, of sizes and of steps.
    """
    control = _control()
    pieces = _load(sizes, 0)
    if threads < 2 or pieces < 2 or pieces > MOST or _replace(control, OWNER, 0, 1) == 0:
        # alone, or another Python thread works with the team
        space = _own_space()
        for piece in range(pieces):
            _run_piece(piece, part, arguments, sizes, steps, data, inner_sizes + 1, argument_count, space)
        return
    _store(control, FUNCTION, part)
    _store(control, ARGUMENTS, arguments)
    _store(control, SIZES, sizes)
    _store(control, STEPS, steps)
    _store(control, DATA, data)
    _store(control, SIZE_COUNT, inner_sizes + 1)
    _store(control, ARGUMENT_COUNT, argument_count)
    before = _load(control, DONE)       # at hand: the last loop waited for it
    number = (_load(control, GENERATION) >> PIECE_BITS) + 1
    generation = (number << PIECE_BITS) | pieces
    _store(control, GENERATION, generation)
    _pieces(control, generation, 0)
    looks = 0
    while _load(control, DONE) - before < pieces:
        _pause()
        looks += 1
        if looks == PATIENCE:
            # who has begun the piece may wait for this processor
            _let_others()
            looks = 0
    _store(control, OWNER, 0)


@function(3)
def look(control, place, looks):
    """Take part in loops until there was none for so many looks, or the threads shall end; place: from 1 on.

    A loop that runs when it comes is taken part in, too, and while one runs that this thread has a place in it stays.
    """
    seen = 0
    left = looks
    while left > 0 and _load(control, STOP) == 0:
        generation = _load(control, GENERATION)
        takes_part = place < generation & ((1 << PIECE_BITS) - 1)
        if generation != seen:
            seen = generation
            if takes_part:
                left = looks
                _pieces(control, generation, place)
        elif not takes_part or left % FAR != 1 or _load(control, OWNER) == 0:
            left -= 1
        _pause()
