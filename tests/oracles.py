"""Every operation as plain loops in float64, forward and backward: the formulas, slow and readable.

Arrays have the model's axes, images are (N, C, H, W). A backward takes dy and returns the gradients of the inputs
first, then those of the weights. numpy stores numbers here; the loops do the arithmetic.
"""
from __future__ import annotations

import math
from itertools import product

import numpy as np

Array = np.ndarray
Pair = tuple[int, int]


# Windows.

def same_pads(size, kernel, stride, dilation, lower):
    """(top, left, bottom, right) so that ceil(size / stride) windows fit; an odd zero goes last, with `lower` first."""
    first, last = [], []
    for length, taps, step, spread in zip(size, kernel, stride, dilation, strict=True):
        outputs = math.ceil(length / step)
        total = max(0, (outputs - 1) * step + (taps - 1) * spread + 1 - length)
        small, large = total // 2, total - total // 2
        first.append(large if lower else small)
        last.append(small if lower else large)
    return first[0], first[1], last[0], last[1]


def window_count(length, taps, step, before, after, spread=1, ceil_mode=False):
    """How many windows there are along one axis: each begins `step` after the last and ends within the padding."""
    count, begin = 0, 0
    reach = (taps - 1) * spread + 1
    while begin + reach <= before + length + after:
        count += 1
        begin += step
    # with ceil_mode one more may hang over the end, unless nothing is left or it would begin behind the image
    if ceil_mode and begin - step + reach < before + length + after and begin < before + length:
        count += 1
    return count


def window_counts(x, kernel, stride, pads, dilation, ceil_mode=False):
    H, W = x.shape[2:]
    return (window_count(H, kernel[0], stride[0], pads[0], pads[2], dilation[0], ceil_mode),
            window_count(W, kernel[1], stride[1], pads[1], pads[3], dilation[1], ceil_mode))


def positions(oh, ow, kernel, stride, pads, dilation):
    """(r, s, h, w): where the window (oh, ow) looks, inside the image or not, in the order of its taps."""
    for r, s in product(range(kernel[0]), range(kernel[1])):
        yield r, s, oh * stride[0] + r * dilation[0] - pads[0], ow * stride[1] + s * dilation[1] - pads[1]


def inside(x, h, w):
    return 0 <= h < x.shape[2] and 0 <= w < x.shape[3]


# Convolution and linear.

def conv2d(x, weight, bias=None, stride=(1, 1), pads=(0, 0, 0, 0), dilation=(1, 1), groups=1):
    """y[n, k, oh, ow] = bias[k] + sum over c, r, s of x[n, c, h, w] * weight[k, c, r, s]"""
    K, CG, R, S = weight.shape
    KG = K // groups
    OH, OW = window_counts(x, (R, S), stride, pads, dilation)
    y = np.zeros((len(x), K, OH, OW))
    for n, k, oh, ow in np.ndindex(y.shape):
        total = 0.0 if bias is None else bias[k]
        for r, s, h, w in positions(oh, ow, (R, S), stride, pads, dilation):
            if inside(x, h, w):
                for c in range(CG):
                    total += x[n, k // KG * CG + c, h, w] * weight[k, c, r, s]
        y[n, k, oh, ow] = total
    return y


def conv2d_backward(x, weight, dy, stride=(1, 1), pads=(0, 0, 0, 0), dilation=(1, 1), groups=1):
    """dx, dweight, dbias: every product of the forward loop, differentiated where it stands."""
    K, CG, R, S = weight.shape
    KG = K // groups
    dx, dweight, dbias = np.zeros(x.shape), np.zeros(weight.shape), np.zeros(K)
    for n, k, oh, ow in np.ndindex(dy.shape):
        here = dy[n, k, oh, ow]
        dbias[k] += here
        for r, s, h, w in positions(oh, ow, (R, S), stride, pads, dilation):
            if inside(x, h, w):
                for c in range(CG):
                    channel = k // KG * CG + c
                    dx[n, channel, h, w] += here * weight[k, c, r, s]
                    dweight[k, c, r, s] += here * x[n, channel, h, w]
    return dx, dweight, dbias


def linear(x, weight, bias=None):
    """y[..., k] = bias[k] + sum over c of x[..., c] * weight[c, k]"""
    C, K = weight.shape
    y = np.zeros((*x.shape[:-1], K))
    for place in np.ndindex(x.shape[:-1]):
        for k in range(K):
            total = 0.0 if bias is None else bias[k]
            for c in range(C):
                total += x[(*place, c)] * weight[c, k]
            y[(*place, k)] = total
    return y


def linear_backward(x, weight, dy):
    """dx, dweight, dbias"""
    C, K = weight.shape
    dx, dweight, dbias = np.zeros(x.shape), np.zeros(weight.shape), np.zeros(K)
    for place in np.ndindex(x.shape[:-1]):
        for k in range(K):
            here = dy[(*place, k)]
            dbias[k] += here
            for c in range(C):
                dx[(*place, c)] += here * weight[c, k]
                dweight[c, k] += here * x[(*place, c)]
    return dx, dweight, dbias


# Pooling.

def max_pool2d(x, kernel, stride, pads=(0, 0, 0, 0), dilation=(1, 1), ceil_mode=False):
    """(y, winners): each window's maximum and the (h, w) that it came from. The first one wins ties, NaN wins."""
    OH, OW = window_counts(x, kernel, stride, pads, dilation, ceil_mode)
    y = np.full((*x.shape[:2], OH, OW), -math.inf)
    winners = {}
    for n, c, oh, ow in np.ndindex(y.shape):
        best = None
        for _, _, h, w in positions(oh, ow, kernel, stride, pads, dilation):
            if inside(x, h, w):
                value = x[n, c, h, w]
                if best is None or value > best or (math.isnan(value) and not math.isnan(best)):
                    best, winners[n, c, oh, ow] = value, (h, w)
        if best is not None:
            y[n, c, oh, ow] = best
    return y, winners


def max_pool2d_backward(x, winners, dy):
    """dx: dy put back where the maximum came from; overlapping windows add up."""
    dx = np.zeros(x.shape)
    for (n, c, oh, ow), (h, w) in winners.items():
        dx[n, c, h, w] += dy[n, c, oh, ow]
    return dx


def counted(x, oh, ow, kernel, stride, pads, dilation, include_pad):
    """How many positions a window's average counts: those inside, or with include_pad those within the padding."""
    H, W = x.shape[2:]
    count = 0
    for _, _, h, w in positions(oh, ow, kernel, stride, pads, dilation):
        if include_pad:
            count += -pads[0] <= h < H + pads[2] and -pads[1] <= w < W + pads[3]
        else:
            count += inside(x, h, w)
    return count


def avg_pool2d(x, kernel, stride, pads=(0, 0, 0, 0), ceil_mode=False, include_pad=False, dilation=(1, 1)):
    """The mean of each window."""
    OH, OW = window_counts(x, kernel, stride, pads, dilation, ceil_mode)
    y = np.zeros((*x.shape[:2], OH, OW))
    for n, c, oh, ow in np.ndindex(y.shape):
        total = 0.0
        for _, _, h, w in positions(oh, ow, kernel, stride, pads, dilation):
            if inside(x, h, w):
                total += x[n, c, h, w]
        y[n, c, oh, ow] = total / counted(x, oh, ow, kernel, stride, pads, dilation, include_pad)
    return y


def avg_pool2d_backward(x, dy, kernel, stride, pads=(0, 0, 0, 0), include_pad=False, dilation=(1, 1)):
    """dx: dy spread evenly over its window; overlapping windows add up."""
    dx = np.zeros(x.shape)
    for n, c, oh, ow in np.ndindex(dy.shape):
        share = dy[n, c, oh, ow] / counted(x, oh, ow, kernel, stride, pads, dilation, include_pad)
        for _, _, h, w in positions(oh, ow, kernel, stride, pads, dilation):
            if inside(x, h, w):
                dx[n, c, h, w] += share
    return dx


# Batch norm. Images or (N, C); every array is read as (N, C, pixels).

def frozen_batchnorm(x, scale, bias, mean, var, eps):
    """y = (x - mean) / sqrt(var + eps) * scale + bias, with running statistics"""
    y = np.zeros(x.shape)
    for place in np.ndindex(x.shape):
        c = place[1]
        y[place] = (x[place] - mean[c]) / math.sqrt(var[c] + eps) * scale[c] + bias[c]
    return y


def frozen_batchnorm_backward(x, scale, mean, var, eps, dy):
    """dx, dscale, dbias"""
    dx, dscale, dbias = np.zeros(x.shape), np.zeros(scale.shape), np.zeros(scale.shape)
    for place in np.ndindex(x.shape):
        c = place[1]
        deviation = math.sqrt(var[c] + eps)
        dx[place] = dy[place] * scale[c] / deviation
        dscale[c] += dy[place] * (x[place] - mean[c]) / deviation
        dbias[c] += dy[place]
    return dx, dscale, dbias


def batch_statistics(x):
    """Mean and population variance of each channel."""
    C, count = x.shape[1], x.size // x.shape[1]
    mean, var = np.zeros(C), np.zeros(C)
    for c in range(C):
        mean[c] = math.fsum(x[:, c].reshape(-1)) / count
        var[c] = math.fsum((value - mean[c]) ** 2 for value in x[:, c].reshape(-1)) / count
    return mean, var


def batchnorm_backward(x, scale, eps, dy):
    """dx, dscale, dbias where mean and variance are the batch's own, and so depend on x."""
    mean, var = batch_statistics(x)
    count = x.size // x.shape[1]
    _, dscale, dbias = frozen_batchnorm_backward(x, scale, mean, var, eps, dy)
    dx = np.zeros(x.shape)
    for place in np.ndindex(x.shape):
        c = place[1]
        deviation = math.sqrt(var[c] + eps)
        normal = (x[place] - mean[c]) / deviation
        dx[place] = scale[c] / deviation * (dy[place] - dbias[c] / count - normal * dscale[c] / count)
    return dx, dscale, dbias


def running(old, new, momentum):
    """A running statistic after a batch, as ONNX says."""
    return np.array([a * momentum + b * (1 - momentum) for a, b in zip(old, new, strict=True)])


# Elementwise.

def elementwise(function, *arrays):
    """function of the numbers at each place."""
    result = np.zeros(arrays[0].shape)
    for place in np.ndindex(result.shape):
        result[place] = function(*(array[place] for array in arrays))
    return result


def clamp(low, high):
    """(function, derivative by x): min(max(x, low), high), whose derivative is 0 where it holds a number back."""
    return (lambda x: x if math.isnan(x) else min(max(x, low), high)), (lambda x: float(low < x < high))


def sigmoid(x):
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


ACTIVATIONS = {
    "Relu": lambda attrs: clamp(0.0, math.inf),
    "Clip": lambda attrs: clamp(attrs["low"], attrs["high"]),
    "Sigmoid": lambda attrs: (sigmoid, lambda x: sigmoid(x) * (1 - sigmoid(x))),
    "Tanh": lambda attrs: (math.tanh, lambda x: 1 - math.tanh(x) ** 2),
}


def softmax(x, axis):
    """exp(x) over its sum along an axis."""
    y = np.zeros(x.shape)
    for place in np.ndindex(*x.shape[:axis], 1, *x.shape[axis + 1:]):
        group = [(*place[:axis], i, *place[axis + 1:]) for i in range(x.shape[axis])]
        top = max(x[one] for one in group)
        total = math.fsum(math.exp(x[one] - top) for one in group)
        for one in group:
            y[one] = math.exp(x[one] - top) / total
    return y


def softmax_backward(y, dy, axis):
    """dx = y * (dy - sum of y * dy)"""
    dx = np.zeros(y.shape)
    for place in np.ndindex(*y.shape[:axis], 1, *y.shape[axis + 1:]):
        group = [(*place[:axis], i, *place[axis + 1:]) for i in range(y.shape[axis])]
        common = math.fsum(y[one] * dy[one] for one in group)
        for one in group:
            dx[one] = y[one] * (dy[one] - common)
    return dx


def operand_place(place, shape):
    """Where an operand of that shape is read for a place of the broadcast result: axes are aligned at the last one."""
    own = place[len(place) - len(shape):]
    return tuple(0 if size == 1 else i for i, size in zip(own, shape, strict=True))


def add(a, b):
    """a + b, broadcast."""
    rank = max(a.ndim, b.ndim)
    sizes = zip((1,) * (rank - a.ndim) + a.shape, (1,) * (rank - b.ndim) + b.shape, strict=True)
    y = np.zeros([max(pair) for pair in sizes])
    for place in np.ndindex(y.shape):
        y[place] = a[operand_place(place, a.shape)] + b[operand_place(place, b.shape)]
    return y


def add_backward(shape, dy):
    """The gradient of an operand of that shape: dy summed over where the operand was repeated."""
    dx = np.zeros(shape)
    for place in np.ndindex(dy.shape):
        dx[operand_place(place, shape)] += dy[place]
    return dx


# Losses: the mean and the gradient of the logits or outputs.

def cross_entropy(x, target, class_weight=None, ignore_index=-100, smoothing=0.0, sample_weight=None):
    """(loss, dx) as PyTorch's documentation says; target: class indices (N, ...) or probabilities (N, C, ...)."""
    C = x.shape[1]
    class_weight = [1.0] * C if class_weight is None else class_weight
    probabilities = target.ndim == x.ndim
    loss, counted_by, dx = 0.0, 0.0, np.zeros(x.shape)
    for n, *rest in np.ndindex(x.shape[0], *x.shape[2:]):
        at = [(n, c, *rest) for c in range(C)]
        label = None if probabilities else int(target[(n, *rest)])
        if label == ignore_index:
            continue
        wanted = [target[place] for place in at] if probabilities else [float(c == label) for c in range(C)]
        # spread evenly, then weighted by class
        q = [class_weight[c] * ((1 - smoothing) * wanted[c] + smoothing / C) for c in range(C)]
        top = max(x[place] for place in at)
        total = math.fsum(math.exp(x[place] - top) for place in at)
        logs = [x[place] - top - math.log(total) for place in at]
        share = 1.0 if sample_weight is None else sample_weight[n]
        loss -= share * math.fsum(q[c] * logs[c] for c in range(C))
        for c in range(C):
            dx[at[c]] = share * (math.fsum(q) * math.exp(logs[c]) - q[c])
        counted_by += 1.0 if probabilities else class_weight[label]
    return loss / counted_by, dx / counted_by


def mean_squared_error(x, target, sample_weight=None):
    """(loss, dx): the mean over all numbers."""
    loss, dx = 0.0, np.zeros(x.shape)
    for place in np.ndindex(x.shape):
        share = 1.0 if sample_weight is None else sample_weight[place[0]]
        loss += share * (x[place] - target[place]) ** 2 / x.size
        dx[place] = share * 2 * (x[place] - target[place]) / x.size
    return loss, dx


# Optimizers: one weight through the gradients of several steps.

def sgd(weight, gradients, lr, momentum=0.0, dampening=0.0, weight_decay=0.0, nesterov=False):
    """The weight after these steps, as torch.optim.SGD's documentation says."""
    weight, velocity = weight.astype(np.float64), np.zeros(weight.shape)
    for number, gradient in enumerate(gradients):
        for place in np.ndindex(weight.shape):
            g = gradient[place] + weight_decay * weight[place]
            if momentum:
                velocity[place] = g if number == 0 else momentum * velocity[place] + (1 - dampening) * g
                g = g + momentum * velocity[place] if nesterov else velocity[place]
            weight[place] -= lr * g
    return weight


def adam(weight, gradients, lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, decoupled=False):
    """The weight after these steps, as torch.optim.Adam's documentation says (AdamW: decoupled)."""
    weight = weight.astype(np.float64)
    first, second = np.zeros(weight.shape), np.zeros(weight.shape)
    for step, gradient in enumerate(gradients, 1):
        for place in np.ndindex(weight.shape):
            g = gradient[place]
            if decoupled:
                weight[place] -= lr * weight_decay * weight[place]
            else:
                g = g + weight_decay * weight[place]
            first[place] = betas[0] * first[place] + (1 - betas[0]) * g
            second[place] = betas[1] * second[place] + (1 - betas[1]) * g * g
            estimate = math.sqrt(second[place] / (1 - betas[1] ** step)) + eps
            weight[place] -= lr * (first[place] / (1 - betas[0] ** step)) / estimate
    return weight
