"""Powers and remainders of vectors, lane by lane by the C library.

Each is a function of its own in the machine code: sixteen calls for every place that uses one would take long to compile.
"""
from llvmlite import ir
from numba.core import cgutils

from .simd import lanewise_call, llvm_name
from .vector import lanewise


def _apart(builder, name, make, *vectors):
    """A call of the function `name`, whose code make(builder, *vectors) writes when it is first used."""
    vector = vectors[0].type
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(vector, [vector] * len(vectors)), f"microcnn.{name}.{llvm_name(vector)}")
    if function.is_declaration:
        function.linkage = "internal"
        function.attributes.add("noinline")
        inside = ir.IRBuilder(function.append_basic_block())
        inside.ret(make(inside, *function.args))
    return builder.call(function, vectors)


@lanewise
def vector_pow(builder, a, b):
    """a ** b, with the C library's special cases: x ** 0 is 1, a negative number to a fraction NaN."""
    return _apart(builder, "pow", lambda inside, a, b: lanewise_call(inside, "pow", a, b), a, b)


@lanewise
def vector_ln(builder, a):
    """As vector_log."""
    return _apart(builder, "log", lambda inside, a: lanewise_call(inside, "log", a), a)


@lanewise
def vector_fmod(builder, a, b):
    """The remainder of a / b with the sign of a."""
    return _apart(builder, "fmod", lambda inside, a, b: inside.frem(a, b), a, b)


@lanewise
def vector_trunc(builder, a):
    """Each lane without its fraction."""
    return lanewise_call(builder, "trunc", a)
