"""Powers and remainders of vectors, lane by lane by the C library."""
from .simd import lanewise_call
from .vector import _lanewise


@_lanewise
def vector_pow(builder, a, b):
    """a ** b, with the C library's special cases: x ** 0 is 1, a negative number to a fraction NaN."""
    return lanewise_call(builder, "pow", a, b)


@_lanewise
def vector_fmod(builder, a, b):
    """The remainder of a / b with the sign of a."""
    return builder.frem(a, b)


@_lanewise
def vector_trunc(builder, a):
    """Each lane without its fraction."""
    return lanewise_call(builder, "trunc", a)
