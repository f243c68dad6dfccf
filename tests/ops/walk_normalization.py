"""Normalisations group by group in plain loops, and their gradients through the whole matrix of derivatives."""
from __future__ import annotations

import math

import numpy as np


def groups_of(node, x):
    """The places of each normalised group, as tuples of slices."""
    if node.op == "LayerNorm":
        leading = x.shape[:node.attrs["axis"] % x.ndim]
        return [place for place in np.ndindex(leading)]
    G = x.shape[1] if node.op == "InstanceNorm" else node.attrs["groups"]
    per = x.shape[1] // G
    return [(n, slice(g * per, (g + 1) * per)) for n in range(x.shape[0]) for g in range(G)]


def along(node, x, weights, role):
    """A weight as it broadcasts against x; 1 or 0 where there is none."""
    if role not in weights:
        return np.full(x.shape, 1.0 if role == "scale" else 0.0)
    weight = weights[role]
    if node.op != "LayerNorm":
        weight = weight.reshape(-1, *(1,) * (x.ndim - 2))
    return np.broadcast_to(weight, x.shape)


def normalised(node, x):
    """(x - mean) / deviation, and 1 / deviation."""
    y, inverse = np.zeros(x.shape), np.zeros(x.shape)
    for place in groups_of(node, x):
        numbers = x[place].reshape(-1).tolist()
        mean = math.fsum(numbers) / len(numbers)
        variance = math.fsum((n - mean) ** 2 for n in numbers) / len(numbers)
        inverse[place] = 1 / math.sqrt(variance + node.attrs["eps"])
        y[place] = (x[place] - mean) * inverse[place]
    return y, inverse


def forward(node, inputs, weights):
    x = inputs[0]
    return normalised(node, x)[0] * along(node, x, weights, "scale") + along(node, x, weights, "bias")


def backward(node, inputs, weights, dy, _):
    x = inputs[0]
    y, inverse = normalised(node, x)
    given, dx = dy * along(node, x, weights, "scale"), np.zeros(x.shape)
    for place in groups_of(node, x):
        h, g = y[place].reshape(-1), given[place].reshape(-1)
        derivative = (np.eye(h.size) - (1 + np.outer(h, h)) / h.size) * inverse[place].reshape(-1)[0]
        dx[place] = (derivative @ g).reshape(x[place].shape)
    gradients = {}
    for role, gradient in (("scale", dy * y), ("bias", dy)):
        if role in weights:
            axes = tuple(range(node.attrs["axis"] % x.ndim)) if node.op == "LayerNorm" else (0, *range(2, x.ndim))
            gradients[role] = gradient.sum(axes)
    return [dx], gradients


def windows(node, C):
    """The channels around each channel."""
    size = node.attrs["size"]
    return [range(max(0, c - (size - 1) // 2), min(C, c + size // 2 + 1)) for c in range(C)]


def response_sums(node, x):
    attrs = node.attrs
    sums = np.zeros(x.shape)
    for c, window in enumerate(windows(node, x.shape[1])):
        for other in window:
            sums[:, c] += x[:, other] ** 2
    return attrs["bias"] + attrs["alpha"] / attrs["size"] * sums


def local_response(node, inputs, weights):
    return inputs[0] / response_sums(node, inputs[0]) ** node.attrs["beta"]


def local_response_backward(node, inputs, weights, dy, _):
    x, attrs = inputs[0], node.attrs
    sums = response_sums(node, x)
    dx = dy / sums ** attrs["beta"]
    for c, window in enumerate(windows(node, x.shape[1])):
        for other in window:
            dx[:, other] -= dy[:, c] * x[:, c] * attrs["beta"] * sums[:, c] ** (-attrs["beta"] - 1) \
                * 2 * attrs["alpha"] / attrs["size"] * x[:, other]
    return [dx], {}


NORMS = ("LayerNorm", "GroupNorm", "InstanceNorm")
OPS = {**{op: (lambda node, inputs, weights, _: forward(node, inputs, weights), backward) for op in NORMS},
       "LRN": (lambda node, inputs, weights, _: local_response(node, inputs, weights), local_response_backward)}
OPERATIONS = {**dict.fromkeys(NORMS, forward), "LRN": local_response}
