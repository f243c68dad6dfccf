"""What a Graph means, in float64 and plain numpy: the slow twin of everything that compile makes."""
from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from microcnn.graph import Graph, Node
from tests.ops import families

Weights = dict[str, np.ndarray]


def evaluate(graph: Graph, inputs: dict[str, np.ndarray], every: bool = False) -> dict[str, np.ndarray]:
    """The outputs of a graph (all its tensors with `every`) for inputs with the batch as axis 0. Inference form."""
    values = {entry.name: np.asarray(inputs[entry.name], np.float64) for entry in graph.inputs}
    for node in graph.nodes:
        weights = {role: np.asarray(ref.apply(graph.weights[ref.name]), np.float64)
                   for role, ref in node.weights.items()}
        results = OPERATIONS[node.op](node, [values[name] for name in node.inputs], weights)
        values.update(zip(node.outputs, [results], strict=True))
    return values if every else {name: values[name] for name in graph.outputs}


def conv2d(node: Node, inputs: list[np.ndarray], weights: Weights) -> np.ndarray:
    x, weight = inputs[0], weights["weight"]
    groups = node.attrs["groups"]
    K, CG, R, S = weight.shape
    padded, OH, OW = _padded(node, x, 0.0, node.attrs["dilation"])
    y = np.zeros((x.shape[0], K, OH, OW))
    for group in range(groups):
        channels = slice(group * CG, (group + 1) * CG)
        kernels = slice(group * (K // groups), (group + 1) * (K // groups))
        for r in range(R):
            for s in range(S):
                seen = _taps(node, padded, r, s, OH, OW, node.attrs["dilation"])[:, channels]
                y[:, kernels] += np.einsum("nchw,kc->nkhw", seen, weight[kernels, :, r, s])
    return y + weights["bias"][:, None, None] if "bias" in weights else y


def linear(node: Node, inputs: list[np.ndarray], weights: Weights) -> np.ndarray:
    weight = weights["weight"].T if node.attrs["transposed"] else weights["weight"]
    return inputs[0] @ weight + weights.get("bias", 0.0)


def max_pool(node: Node, inputs: list[np.ndarray], weights: Weights) -> np.ndarray:
    dilation = node.attrs["dilation"]
    padded, OH, OW = _padded(node, inputs[0], -math.inf, dilation)
    R, S = node.attrs["kernel"]
    return np.max([_taps(node, padded, r, s, OH, OW, dilation) for r in range(R) for s in range(S)], axis=0)


def average_pool(node: Node, inputs: list[np.ndarray], weights: Weights) -> np.ndarray:
    x, (R, S) = inputs[0], node.attrs["kernel"]
    dilation = node.attrs.get("dilation", (1, 1))
    padded, OH, OW = _padded(node, x, 0.0, dilation)
    total = sum(_taps(node, padded, r, s, OH, OW, dilation) for r in range(R) for s in range(S))
    # What counts: the image, and the explicit padding with count_include_pad; never what ceil_mode hangs over.
    top, left, bottom, right = _pads(node, x.shape[2:], dilation)
    counted = np.zeros(padded.shape[2:])
    H, W = x.shape[2:]
    if node.attrs["count_include_pad"]:
        counted[:top + H + bottom, :left + W + right] = 1
    else:
        counted[top:top + H, left:left + W] = 1
    count = sum(_taps(node, counted[None, None], r, s, OH, OW, dilation) for r in range(R) for s in range(S))
    return total / count


def global_average_pool(node: Node, inputs: list[np.ndarray], weights: Weights) -> np.ndarray:
    return inputs[0].mean(axis=(2, 3), keepdims=True)


def batch_norm(node: Node, inputs: list[np.ndarray], weights: Weights) -> np.ndarray:
    x = inputs[0]
    scale, bias, mean, var = (weights[role].reshape(1, -1, *(1,) * (x.ndim - 2))
                              for role in ("scale", "bias", "mean", "var"))
    return (x - mean) / np.sqrt(var + node.attrs["eps"]) * scale + bias


def softmax(node: Node, inputs: list[np.ndarray], weights: Weights) -> np.ndarray:
    x = inputs[0]
    axis = node.attrs["axis"] % x.ndim
    seen = x.reshape(*x.shape[:axis], -1) if node.attrs.get("flatten") else x
    shifted = np.exp(seen - seen.max(axis=axis, keepdims=True))
    return (shifted / shifted.sum(axis=axis, keepdims=True)).reshape(x.shape)


def add(node: Node, inputs: list[np.ndarray], weights: Weights) -> np.ndarray:
    if node.attrs.get("scalar") is not None:
        return inputs[0] + node.attrs["scalar"]
    return inputs[0] + (weights["other"] if "other" in weights else inputs[1])


def reshape(node: Node, inputs: list[np.ndarray], weights: Weights) -> np.ndarray:
    x = inputs[0]
    shape = [x.shape[axis] if n == 0 else n for axis, n in enumerate(node.attrs["shape"], 1)]
    return x.reshape(x.shape[0], *shape)


OPERATIONS: dict[str, Callable[[Node, list[np.ndarray], Weights], np.ndarray]] = {
    "Conv2d": conv2d,
    "Linear": linear,
    "MaxPool2d": max_pool,
    "AvgPool2d": average_pool,
    "GlobalAvgPool2d": global_average_pool,
    "BatchNorm2d": batch_norm,
    "Relu": lambda node, inputs, weights: np.maximum(inputs[0], 0),
    "Clip": lambda node, inputs, weights: np.clip(inputs[0], node.attrs["low"], node.attrs["high"]),
    "Sigmoid": lambda node, inputs, weights: 1 / (1 + np.exp(-inputs[0])),
    "Tanh": lambda node, inputs, weights: np.tanh(inputs[0]),
    "Softmax": softmax,
    "Add": add,
    "Flatten": lambda node, inputs, weights: inputs[0].reshape(inputs[0].shape[0], -1),
    "Reshape": reshape,
    "Transpose": lambda node, inputs, weights: inputs[0].transpose(node.attrs["perm"]),
    "Identity": lambda node, inputs, weights: inputs[0],
    "Dropout": lambda node, inputs, weights: inputs[0],
    **families.operations(),
}


def _reach(node: Node, dilation: tuple[int, int]) -> tuple[int, ...]:
    return tuple((k - 1) * d + 1 for k, d in zip(node.attrs["kernel"], dilation, strict=True))


def _pads(node: Node, size: tuple[int, ...], dilation: tuple[int, int]) -> tuple[int, int, int, int]:
    pads = node.attrs["pads"]
    if not isinstance(pads, str):
        return pads
    total = [max(0, (-(-n // s) - 1) * s + reach - n)
             for n, s, reach in zip(size, node.attrs["stride"], _reach(node, dilation), strict=True)]
    small, large = [n // 2 for n in total], [n - n // 2 for n in total]
    first, last = (small, large) if pads == "same_upper" else (large, small)
    return first[0], first[1], last[0], last[1]


def _padded(node: Node, x: np.ndarray, fill: float, dilation: tuple[int, int]) -> tuple[np.ndarray, int, int]:
    """x in its padding, with room for windows that ceil_mode lets hang over, and how many windows there are."""
    top, left, bottom, right = _pads(node, x.shape[2:], dilation)
    counts, extra = [], []
    for size, before, after, reach, stride in zip(x.shape[2:], (top, left), (bottom, right), _reach(node, dilation),
                                                  node.attrs["stride"], strict=True):
        room = size + before + after - reach
        count = room // stride + 1
        if node.attrs.get("ceil_mode") and room % stride and count * stride < size + before:
            count += 1
        counts.append(count)
        extra.append(max(0, (count - 1) * stride - room))
    padded = np.pad(x, ((0, 0), (0, 0), (top, bottom + extra[0]), (left, right + extra[1])), constant_values=fill)
    return padded, counts[0], counts[1]


def _taps(node: Node, padded: np.ndarray, r: int, s: int, OH: int, OW: int, dilation: tuple[int, int]) -> np.ndarray:
    """What the kernel's tap (r, s) sees in every window."""
    top, left = r * dilation[0], s * dilation[1]
    down, across = node.attrs["stride"]
    return padded[:, :, top:top + (OH - 1) * down + 1:down, left:left + (OW - 1) * across + 1:across]
