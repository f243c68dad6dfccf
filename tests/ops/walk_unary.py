"""The elementwise functions of layers/unary.py, PRelu and LogSoftmax in float64: number by number, with derivatives."""
from __future__ import annotations

import math

import numpy as np

from tests import oracles


def leaky(alpha):
    return lambda x: x if x > 0 else alpha * x, lambda x: 1.0 if x > 0 else alpha


def elu(alpha, above, rate):
    return (lambda x: above * x if x > 0 else alpha * math.expm1(rate * x),
            lambda x: above if x > 0 else alpha * rate * math.exp(rate * x))


def normal(x):
    """The standard normal distribution function."""
    return math.erfc(-x / math.sqrt(2)) / 2


def gelu(approximate):
    if approximate == "none":
        return lambda x: x * normal(x), lambda x: normal(x) + x * math.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    root = math.sqrt(2 / math.pi)

    def bend(x):
        return math.tanh(root * (x + 0.044715 * x ** 3))
    return (lambda x: x * (1 + bend(x)) / 2,
            lambda x: (1 + bend(x)) / 2 + x / 2 * (1 - bend(x) ** 2) * root * (1 + 3 * 0.044715 * x * x))


def softplus(x):
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def mish_slope(x):
    t = math.tanh(softplus(x))
    return t + x * (1 - t * t) * oracles.sigmoid(x)


def hard_sigmoid(alpha, beta):
    return (lambda x: min(max(alpha * x + beta, 0.0), 1.0), lambda x: alpha if 0 < alpha * x + beta < 1 else 0.0)


def hard_swish_slope(x):
    return 0.0 if x <= -3 else 1.0 if x >= 3 else x / 3 + 0.5


def swish(alpha):
    def slope(x):
        y = oracles.sigmoid(alpha * x)
        return y + alpha * x * y * (1 - y)
    return lambda x: x * oracles.sigmoid(alpha * x), slope


def sign(x):
    return float(x > 0) - float(x < 0)


FUNCTIONS = {
    "LeakyRelu": lambda attrs: leaky(attrs["alpha"]),
    "ThresholdedRelu": lambda attrs: (lambda x: x if x > attrs["alpha"] else 0.0, lambda x: float(x > attrs["alpha"])),
    "Elu": lambda attrs: elu(attrs["alpha"], 1.0, 1.0),
    "Selu": lambda attrs: elu(attrs["alpha"] * attrs["gamma"], attrs["gamma"], 1.0),
    "Celu": lambda attrs: elu(attrs["alpha"], 1.0, 1 / attrs["alpha"]),
    "HardSigmoid": lambda attrs: hard_sigmoid(attrs["alpha"], attrs["beta"]),
    "HardSwish": lambda attrs: (lambda x: x * min(max(x / 6 + 0.5, 0.0), 1.0), hard_swish_slope),
    "Swish": lambda attrs: swish(attrs["alpha"]),
    "Gelu": lambda attrs: gelu(attrs["approximate"]),
    "Softplus": lambda attrs: (softplus, oracles.sigmoid),
    "Softsign": lambda attrs: (lambda x: x / (1 + abs(x)), lambda x: 1 / (1 + abs(x)) ** 2),
    "Mish": lambda attrs: (lambda x: x * math.tanh(softplus(x)), mish_slope),
    "Neg": lambda attrs: (lambda x: -x, lambda x: -1.0),
    "Abs": lambda attrs: (abs, sign),
    "Sqrt": lambda attrs: (lambda x: math.sqrt(x) if x >= 0 else math.nan, lambda x: 0.5 / math.sqrt(x)),
    "Exp": lambda attrs: (math.exp, math.exp),
    "Log": lambda attrs: (lambda x: math.log(x) if x > 0 else math.nan, lambda x: 1 / x),
    "Reciprocal": lambda attrs: (lambda x: 1 / x, lambda x: -1 / (x * x)),
    "Erf": lambda attrs: (math.erf, lambda x: 2 / math.sqrt(math.pi) * math.exp(-x * x)),
    "Sin": lambda attrs: (math.sin, math.cos),
    "Cos": lambda attrs: (math.cos, lambda x: -math.sin(x)),
    "Sign": lambda attrs: (sign, lambda x: 0.0),
    "Ceil": lambda attrs: (math.ceil, lambda x: 0.0),
    "Floor": lambda attrs: (math.floor, lambda x: 0.0),
    "Round": lambda attrs: (round, lambda x: 0.0),
}


def function(node, inputs, weights, _=None):
    return oracles.elementwise(FUNCTIONS[node.op](node.attrs)[0], inputs[0])


def function_backward(node, inputs, weights, dy, _):
    derivative = FUNCTIONS[node.op](node.attrs)[1]
    return [oracles.elementwise(lambda x, here: derivative(x) * here, inputs[0], dy)], {}


def prelu(node, inputs, weights, _=None):
    x = inputs[0]
    return oracles.elementwise(lambda value, slope: value if value > 0 else slope * value, x,
                               np.broadcast_to(weights["slope"], x.shape))


def prelu_backward(node, inputs, weights, dy, _):
    x, slope = inputs[0], weights["slope"]
    wide = np.broadcast_to(slope, x.shape)
    dx = oracles.elementwise(lambda value, factor, here: here if value > 0 else factor * here, x, wide, dy)
    each = oracles.elementwise(lambda value, here: 0.0 if value > 0 else value * here, x, dy)
    return [dx], {"slope": oracles.add_backward(slope.shape, each)}


def grouped(node, x):
    """x with the axes that are normalised together as one, and that axis."""
    axis = node.attrs["axis"] % x.ndim
    return (x.reshape(*x.shape[:axis], -1) if node.attrs["flatten"] else x), axis


def log_softmax(node, inputs, weights, _=None):
    x, axis = grouped(node, inputs[0])
    shifted = x - x.max(axis=axis, keepdims=True)
    return (shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True))).reshape(inputs[0].shape)


def log_softmax_backward(node, inputs, weights, dy, _):
    x, axis = grouped(node, inputs[0])
    dy = dy.reshape(x.shape)
    return [(dy - oracles.softmax(x, axis) * dy.sum(axis=axis, keepdims=True)).reshape(inputs[0].shape)], {}


OPS = {**{op: (function, function_backward) for op in FUNCTIONS}, "PRelu": (prelu, prelu_backward),
       "LogSoftmax": (log_softmax, log_softmax_backward)}
OPERATIONS = {op: forward for op, (forward, _) in OPS.items()}
