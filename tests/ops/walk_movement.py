"""The operations that put parts of tensors elsewhere: numpy's own words, and what each number's place gives back.

The forward pass runs on any array, so the gradient is found by sending the numbers' own places through it: what comes out
says where each number came from, -1 where from nowhere.
"""
from __future__ import annotations

import numpy as np


def concat(node, inputs, fill=0.0):
    return np.concatenate(inputs, node.attrs["axis"])


def take(node, inputs, fill=0.0):
    x, attrs = inputs[0], node.attrs
    slices = [slice(None)] * x.ndim
    for axis, start, end, step in zip(attrs["axes"], attrs["starts"], attrs["ends"], attrs["steps"], strict=True):
        # an end before the first number has no form among Python's slices but None
        slices[axis] = slice(start, None if step < 0 and end < -x.shape[axis] else end, step)
    return x[tuple(slices)]


def pad(node, inputs, fill=None):
    x, pads = inputs[0], node.attrs["pads"]
    rank = x.ndim - 1
    pairs = [(0, 0), *zip(pads[:rank], pads[rank:], strict=True)]
    x = x[tuple(slice(max(0, -a), n + min(b, 0)) for n, (a, b) in zip(x.shape, pairs, strict=True))]
    pairs = [(max(a, 0), max(b, 0)) for a, b in pairs]
    if node.attrs["mode"] == "constant":
        return np.pad(x, pairs, constant_values=node.attrs["value"] if fill is None else fill)
    return np.pad(x, pairs, mode=node.attrs["mode"])


def gather(node, inputs, fill=0.0):
    return np.take(inputs[0], node.attrs["indices"], node.attrs["axis"])


def tile(node, inputs, fill=0.0):
    return np.tile(inputs[0], (1, *node.attrs["repeats"]))


def expand(node, inputs, fill=0.0):
    x = inputs[0]
    return np.array(np.broadcast_to(x, np.broadcast_shapes(x.shape, (1, *node.attrs["shape"]))))


def depth_to_space(node, inputs, fill=0.0):
    x, block = inputs[0], node.attrs["block"]
    N, C, H, W = x.shape
    y = np.zeros((N, C // block**2, H * block, W * block), x.dtype)
    for c in range(C):
        if node.attrs["mode"] == "DCR":
            place, channel = divmod(c, C // block**2)
        else:
            channel, place = divmod(c, block**2)
        y[:, channel, place // block::block, place % block::block] = x[:, c]
    return y


def space_to_depth(node, inputs, fill=0.0):
    x, block = inputs[0], node.attrs["block"]
    parts = [x[:, :, i::block, j::block] for i in range(block) for j in range(block)]
    if node.attrs["mode"] == "DCR":
        return np.concatenate(parts, 1)
    return np.stack(parts, 2).reshape(len(x), -1, *parts[0].shape[2:])


def backward_of(forward):
    def backward(node, inputs, weights, dy, _):
        places, total = [], 0
        for x in inputs:
            places.append(np.arange(total, total + x.size).reshape(x.shape))
            total += x.size
        came_from = forward(node, places, -1)
        sums = np.zeros(total + 1)
        np.add.at(sums, came_from.reshape(-1), dy.reshape(-1))
        return [sums[one] for one in places], {}
    return backward


FORWARD = {"Concat": concat, "Slice": take, "Pad": pad, "Gather": gather, "Tile": tile, "Expand": expand,
           "DepthToSpace": depth_to_space, "SpaceToDepth": space_to_depth}
OPS = {op: (lambda node, inputs, weights, _, one=function: one(node, inputs, None), backward_of(function))
       for op, function in FORWARD.items()}
OPERATIONS = {op: lambda node, inputs, weights, one=function: one(node, inputs, None) for op, function in FORWARD.items()}
