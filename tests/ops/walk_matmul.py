"""Products of matrices in plain loops over the matrices, and their gradients."""
from __future__ import annotations

import itertools

import numpy as np


def operands(node, inputs, weights):
    """Both factors, and which of the two is the weight, if one is."""
    if "other" not in weights:
        return inputs, None
    return ([weights["other"], inputs[0]], 0) if node.attrs.get("first") else ([inputs[0], weights["other"]], 1)


def matrix_at(array, place):
    """Where the matrix that belongs to that place of the result lies: axes of size 1 stand still, missing ones too."""
    own = place[len(place) - (array.ndim - 2):]
    return tuple(0 if n == 1 else i for i, n in zip(own, array.shape, strict=False))


def forward(node, inputs, weights):
    (a, b), _ = operands(node, inputs, weights)
    y = np.zeros((*np.broadcast_shapes(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1]))
    for place in itertools.product(*map(range, y.shape[:-2])):
        left, right = a[matrix_at(a, place)], b[matrix_at(b, place)]
        for c in range(a.shape[-1]):
            y[place] += left[:, c, None] * right[c, None, :]
    return y


def backward(node, inputs, weights, dy, _):
    (a, b), weight = operands(node, inputs, weights)
    da, db = np.zeros(a.shape), np.zeros(b.shape)
    for place in itertools.product(*map(range, dy.shape[:-2])):
        left, right = matrix_at(a, place), matrix_at(b, place)
        for m, k in itertools.product(*map(range, dy.shape[-2:])):
            da[left][m] += dy[place][m, k] * b[right][:, k]
            db[right][:, k] += dy[place][m, k] * a[left][m]
    found = [da, db]
    if weight is None:
        return found, {}
    return [found[1 - weight]], {"other": found[weight]}


OPS = {"MatMul": (lambda node, inputs, weights, _: forward(node, inputs, weights), backward)}
OPERATIONS = {"MatMul": forward}
