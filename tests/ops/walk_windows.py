"""Transposed convolutions, global and adaptive pooling as plain loops in float64, forward and backward."""
import math
from itertools import product

import numpy as np


def sizes(node, x, weight):
    """(K, OH, OW) of the result."""
    attrs = node.attrs
    top, left, bottom, right = attrs["pads"]
    found = []
    for length, taps, stride, dilation, more, cut in zip(x.shape[2:], weight.shape[2:], attrs["stride"], attrs["dilation"],
                                                         attrs["output_padding"], (top + bottom, left + right), strict=True):
        found.append((length - 1) * stride + (taps - 1) * dilation + 1 + more - cut)
    return weight.shape[1] * attrs["groups"], *found


def products(node, x, weight, OH, OW):
    """(n, c, h, w, i, r, s, k, oh, ow) of each x[n, c, h, w] * weight[c, i, r, s] that is a part of y[n, k, oh, ow]."""
    attrs = node.attrs
    C, KG, R, S = weight.shape
    for n, c, h, w in np.ndindex(x.shape):
        for i, r, s in product(range(KG), range(R), range(S)):
            oh = h * attrs["stride"][0] + r * attrs["dilation"][0] - attrs["pads"][0]
            ow = w * attrs["stride"][1] + s * attrs["dilation"][1] - attrs["pads"][1]
            if 0 <= oh < OH and 0 <= ow < OW:
                yield n, c, h, w, i, r, s, c // (C // attrs["groups"]) * KG + i, oh, ow


def conv_transpose2d(node, inputs, weights):
    x, weight = inputs[0], weights["weight"]
    K, OH, OW = sizes(node, x, weight)
    y = np.zeros((len(x), K, OH, OW))
    for n, c, h, w, i, r, s, k, oh, ow in products(node, x, weight, OH, OW):
        y[n, k, oh, ow] += x[n, c, h, w] * weight[c, i, r, s]
    return y + weights["bias"].reshape(K, 1, 1) if "bias" in weights else y


def conv_transpose2d_backward(node, inputs, weights, dy, _):
    x, weight = inputs[0], weights["weight"]
    dx, dweight = np.zeros(x.shape), np.zeros(weight.shape)
    for n, c, h, w, i, r, s, k, oh, ow in products(node, x, weight, *dy.shape[2:]):
        dx[n, c, h, w] += weight[c, i, r, s] * dy[n, k, oh, ow]
        dweight[c, i, r, s] += x[n, c, h, w] * dy[n, k, oh, ow]
    found = {"weight": dweight, "bias": dy.sum((0, 2, 3))}
    return [dx], {role: found[role] for role in weights}


def conv_transpose2d_taps(node, inputs, weights):
    """The same, one tap of the kernel after the other."""
    x, weight = inputs[0], weights["weight"]
    K, OH, OW = sizes(node, x, weight)
    C, KG, R, S = weight.shape
    (down, across), (spread, apart), groups = node.attrs["stride"], node.attrs["dilation"], node.attrs["groups"]
    (top, left, _, _), (N, _, H, W) = node.attrs["pads"], x.shape
    whole = np.zeros((N, K, max((H - 1) * down + (R - 1) * spread + 1, top + OH),
                      max((W - 1) * across + (S - 1) * apart + 1, left + OW)))
    for g, r, s in product(range(groups), range(R), range(S)):
        own = slice(g * (C // groups), (g + 1) * (C // groups))
        whole[:, g * KG:(g + 1) * KG, r * spread:r * spread + (H - 1) * down + 1:down,
              s * apart:s * apart + (W - 1) * across + 1:across] += np.einsum("nchw,ck->nkhw", x[:, own], weight[own, :, r, s])
    y = whole[:, :, top:top + OH, left:left + OW]
    return y + weights["bias"].reshape(K, 1, 1) if "bias" in weights else y


def windows(node, x):
    """(oh, ow, pixels): what each output pixel of a global or adaptive pooling looks at."""
    H, W = x.shape[2:]
    OH, OW = node.attrs.get("size", (1, 1))
    for oh, ow in product(range(OH), range(OW)):
        rows = [h for h in range(H) if math.floor(oh * H / OH) <= h < math.ceil((oh + 1) * H / OH)]
        columns = [w for w in range(W) if math.floor(ow * W / OW) <= w < math.ceil((ow + 1) * W / OW)]
        yield oh, ow, list(product(rows, columns))


def best(x, n, c, pixels):
    """The first pixel with the largest number."""
    return max(pixels, key=lambda pixel: x[n, c, pixel[0], pixel[1]])


def adaptive(node, inputs, weights, average):
    x = inputs[0]
    y = np.zeros((*x.shape[:2], *node.attrs.get("size", (1, 1))))
    for oh, ow, pixels in windows(node, x):
        for n, c in np.ndindex(x.shape[:2]):
            if average:
                y[n, c, oh, ow] = sum(x[n, c, h, w] for h, w in pixels) / len(pixels)
            else:
                y[n, c, oh, ow] = x[(n, c, *best(x, n, c, pixels))]
    return y


def adaptive_backward(node, inputs, dy, average):
    x = inputs[0]
    dx = np.zeros(x.shape)
    for oh, ow, pixels in windows(node, x):
        for n, c in np.ndindex(x.shape[:2]):
            for h, w in pixels if average else [best(x, n, c, pixels)]:
                dx[n, c, h, w] += dy[n, c, oh, ow] / (len(pixels) if average else 1)
    return [dx], {}


OPS = {
    "ConvTranspose2d": (lambda node, inputs, weights, _: conv_transpose2d(node, inputs, weights), conv_transpose2d_backward),
    **{op: (lambda node, inputs, weights, _, average=average: adaptive(node, inputs, weights, average),
            lambda node, inputs, weights, dy, _, average=average: adaptive_backward(node, inputs, dy, average))
       for op, average in (("GlobalMaxPool2d", False), ("AdaptiveAvgPool2d", True), ("AdaptiveMaxPool2d", False))},
}
OPERATIONS = {
    "ConvTranspose2d": conv_transpose2d_taps,
    "GlobalMaxPool2d": lambda node, inputs, weights: inputs[0].max(axis=(2, 3), keepdims=True),
    "AdaptiveAvgPool2d": lambda node, inputs, weights: adaptive(node, inputs, weights, True),
    "AdaptiveMaxPool2d": lambda node, inputs, weights: adaptive(node, inputs, weights, False),
}
