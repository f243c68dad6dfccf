"""Where as plain loops: forward and backward."""
from __future__ import annotations

import numpy as np

from tests.oracles import operand_place


def operands(node, inputs, weights):
    """(condition, what it selects, the rest)."""
    both = list(inputs)
    if "other" in weights:
        both.insert(0 if node.attrs.get("first") else 1, weights["other"])
    return weights["condition"], *both


def forward(node, inputs, weights, _):
    condition, a, b = operands(node, inputs, weights)
    y = np.zeros(np.broadcast_shapes(condition.shape, a.shape, b.shape))
    for place in np.ndindex(y.shape):
        chosen = a if condition[operand_place(place, condition.shape)] else b
        y[place] = chosen[operand_place(place, chosen.shape)]
    return y


def backward(node, inputs, weights, dy, _):
    condition, a, b = operands(node, inputs, weights)
    gradients = [np.zeros(a.shape), np.zeros(b.shape)]
    for place in np.ndindex(dy.shape):
        one = gradients[0 if condition[operand_place(place, condition.shape)] else 1]
        one[operand_place(place, one.shape)] += dy[place]
    if "other" not in weights:
        return gradients, {}
    return ([gradients[1]], {"other": gradients[0]}) if node.attrs.get("first") else ([gradients[0]], {"other": gradients[1]})


def operation(node, inputs, weights):
    condition, a, b = operands(node, inputs, weights)
    return np.where(condition != 0, a, b)


OPS = {"Where": (forward, backward)}
OPERATIONS = {"Where": operation}
