"""Functions of two tensors as plain loops: forward and backward with the gradients that PyTorch gives."""
from __future__ import annotations

import math

import numpy as np

from tests.oracles import operand_place


def power(a, b):
    try:
        return a ** b if a >= 0 or b == int(b) else math.nan
    except ZeroDivisionError:
        return math.inf


def power_by_a(a, b):
    return b * power(a, b - 1) if b else 0.0


def power_by_b(a, b):
    if a == 0 and b >= 0:
        return 0.0
    return power(a, b) * math.log(a) if a > 0 else math.nan


def share(mine, other):
    """How much of the gradient of the larger goes to one of two."""
    return 1.0 if mine > other else 0.5 if mine == other else 0.0


# op: (function, derivative by a, derivative by b)
FUNCTIONS = {
    "Sub": (lambda a, b: a - b, lambda a, b: 1.0, lambda a, b: -1.0),
    "Mul": (lambda a, b: a * b, lambda a, b: b, lambda a, b: a),
    "Div": (lambda a, b: a / b, lambda a, b: 1 / b, lambda a, b: -a / (b * b)),
    "Pow": (power, power_by_a, power_by_b),
    "Max": (max, share, lambda a, b: share(b, a)),
    "Min": (min, lambda a, b: share(-a, -b), lambda a, b: share(-b, -a)),
    "Mod": (math.fmod, lambda a, b: 1.0, lambda a, b: -float(math.trunc(a / b))),
}


FLOOR_MOD = (lambda a, b: a % b, lambda a, b: 1.0, lambda a, b: -float(math.floor(a / b)))


def functions_of(node):
    """What a node computes, and its derivatives."""
    return FLOOR_MOD if node.attrs.get("floor") else FUNCTIONS[node.op]


def operands(node, inputs, weights):
    """(a, b, where the constant is: None, 0 or 1)."""
    constant = weights.get("other")
    if node.attrs.get("scalar") is not None:
        constant = np.asarray(node.attrs["scalar"], np.float64)
    if constant is None:
        return *inputs, None
    return (constant, inputs[0], 0) if node.attrs.get("first") else (inputs[0], constant, 1)


def walk(a, b, *functions):
    """Each function of every pair of numbers, broadcast."""
    shape = np.broadcast_shapes(a.shape, b.shape)
    results = [np.zeros(shape) for _ in functions]
    for place in np.ndindex(shape):
        pair = float(a[operand_place(place, a.shape)]), float(b[operand_place(place, b.shape)])
        for result, function in zip(results, functions, strict=True):
            result[place] = function(*pair)
    return results


def forward(node, inputs, weights, _):
    a, b, _ = operands(node, inputs, weights)
    return walk(a, b, functions_of(node)[0])[0]


def backward(node, inputs, weights, dy, _):
    a, b, constant = operands(node, inputs, weights)
    gradients = []
    for operand, slope in zip((a, b), walk(a, b, *functions_of(node)[1:]), strict=True):
        dx = np.zeros(operand.shape)
        for place in np.ndindex(dy.shape):
            # what the gradient does not reach may be infinite
            dx[operand_place(place, operand.shape)] += dy[place] * slope[place]
        gradients.append(dx)
    if constant is None:
        return gradients, {}
    own = gradients[1 - constant]
    trained = "other" in weights and node.op not in ("Max", "Min", "Mod")
    return [own], {"other": gradients[constant]} if trained else {}


NUMPY = {"Sub": np.subtract, "Mul": np.multiply, "Div": np.divide, "Pow": np.power, "Max": np.maximum, "Min": np.minimum,
         "Mod": np.fmod}


def operation(node, inputs, weights):
    a, b, _ = operands(node, inputs, weights)
    return np.mod(a, b) if node.attrs.get("floor") else NUMPY[node.op](a, b)


OPS = {op: (forward, backward) for op in FUNCTIONS}
OPERATIONS = dict.fromkeys(FUNCTIONS, operation)
