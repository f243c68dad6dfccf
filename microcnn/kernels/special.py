"""Vector functions that no instruction computes: expm1, log1p, erf and their kin, each with the accuracy of its dtype."""
import math

from llvmlite import ir

from .compiler import helper
from .simd import lanewise_call, multiply_add
from .vector import (
    lanewise,
    vector_add,
    vector_div,
    vector_exp,
    vector_max,
    vector_mul,
    vector_of,
    vector_sub,
    vector_where_greater,
)

# erfc(z) exp(z^2) (z + 2) for z >= 1 as a polynomial of s = 1 - 6 / (z + 2), through the Chebyshev nodes: within 5e-8 and
# 1e-15 of itself.
TAIL_SINGLE = (
    0.8219967457503683, -0.34380977444584543, 0.10291790094951626, -0.01662909364699817, -0.0014139066510621887,
    0.0012420794360656438, -3.618351971861567e-05, -8.3813571447446e-05, 5.6010463935057145e-06)
TAIL_DOUBLE = (
    0.8219967457503683, -0.34380947367040077, 0.1029178878235331, -0.016633141230942724, -0.0014137333859642756,
    0.0012570181790407253, -3.678927622295617e-05, -0.00010491720867170777, 6.3438260616796445e-06,
    1.1183348671052808e-05, -2.1075942252826915e-07, -1.4033836749349057e-06, -1.2566623646936824e-07,
    1.7977011618112815e-07, 4.644451116107485e-08, -1.954111164907753e-08, -9.841716312509446e-09,
    1.2771414915301332e-09, 1.092677558600582e-09)


def _polynomial(single, double):
    """The intrinsic that evaluates a polynomial; its coefficients, the constant first, in float32 and float64."""
    def evaluate(builder, a):
        first, *others = [ir.Constant(a.type, [coefficient] * a.type.count)
                          for coefficient in reversed(single if isinstance(a.type.element, ir.FloatType) else double)]
        for coefficient in others:
            first = multiply_add(builder, first, a, coefficient)
        return first
    return lanewise(evaluate)


def _series(coefficient, single, double):
    """The polynomial of the first terms of a power series, as many as each dtype needs."""
    return _polynomial([coefficient(k) for k in range(single)], [coefficient(k) for k in range(double)])


# (exp(x) - 1) / x for |x| <= 1/2
_expm1_series = _series(lambda k: 1 / math.factorial(k + 1), 9, 16)
# 2 artanh(s) / s of s^2 for s <= 1/3
_log1p_series = _series(lambda k: 2 / (2 * k + 1), 9, 18)
# erf(z) / z of z^2 for |z| <= 1
_erf_series = _series(lambda k: 2 / math.sqrt(math.pi) * (-1) ** k / (math.factorial(k) * (2 * k + 1)), 12, 20)
_tail_polynomial = _polynomial(TAIL_SINGLE, TAIL_DOUBLE)


@lanewise
def vector_abs(builder, a):
    """|a|"""
    return lanewise_call(builder, "fabs", a)


@lanewise
def vector_neg(builder, a):
    """-a, also of zeros."""
    return builder.fneg(a)


@lanewise
def vector_ceil(builder, a):
    """The least integer that is not below."""
    return lanewise_call(builder, "ceil", a)


@lanewise
def vector_floor(builder, a):
    """The greatest integer that is not above."""
    return lanewise_call(builder, "floor", a)


@lanewise
def vector_rint(builder, a):
    """The nearest integer, the even one of two."""
    return lanewise_call(builder, "rint", a)


@lanewise
def vector_sin(builder, a):
    """The sine of each lane: the C library's, lane by lane."""
    return lanewise_call(builder, "sin", a)


@lanewise
def vector_cos(builder, a):
    """The cosine of each lane: the C library's, lane by lane."""
    return lanewise_call(builder, "cos", a)


@helper
def vector_sigmoid(x, like):
    """1 / (1 + exp(-x)), without overflow at either end."""
    one = vector_of(like, like.dtype.type(1))
    return vector_div(one, vector_add(one, vector_exp(vector_neg(x))))


@helper
def vector_expm1(x, like):
    """exp(x) - 1, to its own accuracy also near 0."""
    real = like.dtype.type
    near = vector_mul(x, _expm1_series(x))
    far = vector_sub(vector_exp(x), vector_of(like, real(1)))
    return vector_where_greater(vector_of(like, real(0.5)), vector_abs(x), near, far)


@helper
def vector_softplus(x, like):
    """log(1 + exp(x)) = max(x, 0) + log1p(exp(-|x|)), where log1p(e) = 2 artanh(e / (2 + e))."""
    real = like.dtype.type
    power = vector_exp(vector_neg(vector_abs(x)))
    s = vector_div(power, vector_add(power, vector_of(like, real(2))))
    return vector_add(vector_max(x, vector_of(like, real(0))), vector_mul(s, _log1p_series(vector_mul(s, s))))


@helper
def _tail(z, power, like):
    """erfc(z) for z >= 1, given power = exp(-z^2)."""
    real = like.dtype.type
    w = vector_div(vector_of(like, real(1)), vector_add(z, vector_of(like, real(2))))
    s = vector_sub(vector_of(like, real(1)), vector_mul(vector_of(like, real(6)), w))
    return vector_mul(power, vector_mul(w, _tail_polynomial(s)))


@helper
def vector_erf(x, like):
    """The error function of each lane."""
    real = like.dtype.type
    one, zero = vector_of(like, real(1)), vector_of(like, real(0))
    z, square = vector_abs(x), vector_mul(x, x)
    far = vector_sub(one, _tail(z, vector_exp(vector_neg(square)), like))
    far = vector_where_greater(zero, x, vector_neg(far), far)
    return vector_where_greater(z, one, far, vector_mul(x, _erf_series(square)))


@helper
def vector_normal(x, power, like):
    """The standard normal distribution function, given power = exp(-x^2 / 2); its lower tail to its own accuracy."""
    real = like.dtype.type
    half, one = vector_of(like, real(0.5)), vector_of(like, real(1))
    z = vector_mul(x, vector_of(like, real(math.sqrt(0.5))))
    square = vector_mul(z, z)
    tail = vector_mul(half, _tail(vector_abs(z), power, like))
    far = vector_where_greater(x, vector_of(like, real(0)), vector_sub(one, tail), tail)
    near = vector_add(half, vector_mul(half, vector_mul(z, _erf_series(square))))
    return vector_where_greater(square, one, far, near)
