"""Reductions in numpy's own words, and their gradients group by group in plain loops."""
from __future__ import annotations

import itertools
import math

import numpy as np

FORWARD = {
    "ReduceSum": np.sum,
    "ReduceMean": np.mean,
    "ReduceMax": np.max,
    "ReduceMin": np.min,
    "ReduceProd": np.prod,
    "ReduceL1": lambda x, axis, keepdims: np.sum(np.abs(x), axis, keepdims=keepdims),
    "ReduceL2": lambda x, axis, keepdims: np.sqrt(np.sum(x * x, axis, keepdims=keepdims)),
    "ReduceSumSquare": lambda x, axis, keepdims: np.sum(x * x, axis, keepdims=keepdims),
    "ReduceLogSum": lambda x, axis, keepdims: np.log(np.sum(x, axis, keepdims=keepdims)),
    "ReduceLogSumExp": lambda x, axis, keepdims: np.log(np.sum(np.exp(x), axis, keepdims=keepdims)),
}


def share(numbers, best):
    """1 for the best, or its share where several are equal."""
    winners = [n == best for n in numbers]
    return [won / sum(winners) for won in winners]


def length(numbers):
    total = math.sqrt(sum(n * n for n in numbers))
    return [n / total if total else 0.0 for n in numbers]


def softmax(numbers):
    total = sum(math.exp(n) for n in numbers)
    return [math.exp(n) / total for n in numbers]


# The derivatives of a group's result by each of its numbers.
SLOPES = {
    "ReduceSum": lambda numbers: [1.0] * len(numbers),
    "ReduceMean": lambda numbers: [1.0 / len(numbers)] * len(numbers),
    "ReduceMax": lambda numbers: share(numbers, max(numbers)),
    "ReduceMin": lambda numbers: share(numbers, min(numbers)),
    "ReduceProd": lambda numbers: [math.prod(numbers[:i] + numbers[i + 1:]) for i in range(len(numbers))],
    "ReduceL1": lambda numbers: [float(np.sign(n)) for n in numbers],
    "ReduceL2": length,
    "ReduceSumSquare": lambda numbers: [2 * n for n in numbers],
    "ReduceLogSum": lambda numbers: [1 / sum(numbers)] * len(numbers),
    "ReduceLogSumExp": softmax,
}


def forward(node, inputs):
    with np.errstate(invalid="ignore"):        # the logarithm of a negative sum
        return FORWARD[node.op](inputs[0], axis=tuple(node.attrs["axes"]), keepdims=node.attrs["keepdims"])


def backward(node, inputs, weights, dy, _):
    x, axes = inputs[0], {axis % inputs[0].ndim for axis in node.attrs["axes"]}
    dy = dy.reshape([1 if axis in axes else n for axis, n in enumerate(x.shape)])
    dx = np.zeros(x.shape)
    for place in itertools.product(*(range(n) for n in dy.shape)):
        group = tuple(slice(None) if axis in axes else i for axis, i in enumerate(place))
        slopes = SLOPES[node.op](x[group].reshape(-1).tolist())
        dx[group] = np.reshape(slopes, x[group].shape) * dy[place]
    return [dx], {}


def place(node, inputs):
    x, axis = inputs[0] if node.op == "ArgMax" else -inputs[0], node.attrs["axis"]
    if not node.attrs["last"]:
        return x.argmax(axis, keepdims=node.attrs["keepdims"])
    return x.shape[axis] - 1 - np.flip(x, axis).argmax(axis, keepdims=node.attrs["keepdims"])


OPS = {**{op: (lambda node, inputs, weights, _: forward(node, inputs), backward) for op in FORWARD},
       **{op: (lambda node, inputs, weights, _: place(node, inputs),
               lambda node, inputs, weights, dy, _: ([np.zeros(inputs[0].shape)], {})) for op in ("ArgMax", "ArgMin")}}
OPERATIONS = {**{op: lambda node, inputs, weights: forward(node, inputs) for op in FORWARD},
              **{op: lambda node, inputs, weights: place(node, inputs) for op in ("ArgMax", "ArgMin")}}
