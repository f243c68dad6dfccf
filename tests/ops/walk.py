"""A whole graph through the plain loops of tests/oracles.py: every tensor, every gradient."""
from __future__ import annotations

import math

import numpy as np

from tests import oracles
from tests.ops import families
from tests.oracles import ACTIVATIONS


def weights_of(graph, node):
    return {role: np.asarray(ref.apply(graph.weights[ref.name]), np.float64) for role, ref in node.weights.items()}


def forward(graph, inputs, batch_statistics=False):
    """{tensor: array} for inputs (N, ...)."""
    values = {name: np.asarray(x, np.float64) for name, x in inputs.items()}
    for node in graph.nodes:
        inputs = [values[name] for name in node.inputs]
        values[node.outputs[0]] = OPS[node.op][0](node, inputs, weights_of(graph, node), batch_statistics)
    return values


def backward(graph, values, dy, batch_statistics=False):
    """({tensor: gradient}, {weight: gradient in the stored form}) given the gradients of the outputs."""
    gradients = {name: np.asarray(array, np.float64) for name, array in dy.items()}
    of_weights = {}
    for node in reversed(graph.nodes):
        if node.outputs[0] not in gradients:
            continue
        inputs, weights = [values[name] for name in node.inputs], weights_of(graph, node)
        dxs, dweights = OPS[node.op][1](node, inputs, weights, gradients[node.outputs[0]], batch_statistics)
        for name, dx in zip(node.inputs, dxs, strict=True):
            gradients[name] = gradients[name] + dx if name in gradients else dx
        for role, dweight in dweights.items():
            ref = node.weights[role]
            stored = ref.undo(dweight, graph.weights[ref.name].shape)
            of_weights[ref.name] = of_weights.get(ref.name, 0.0) + stored
    return gradients, of_weights


def running(graph, values, batch_statistics):
    """{weight: running statistic after a training step} of every batch norm that uses the batch's."""
    found = {}
    for node in graph.nodes if batch_statistics else ():
        if node.op == "BatchNorm2d":
            new = oracles.batch_statistics(values[node.inputs[0]])
            for role, statistic in zip(("mean", "var"), new, strict=True):
                name = node.weights[role].name
                found[name] = oracles.running(graph.weights[name].astype(np.float64), statistic, node.attrs["momentum"])
    return found


def window_of(node, x):
    """(stride, pads, dilation) with "same" resolved."""
    attrs = node.attrs
    dilation, pads = attrs.get("dilation", (1, 1)), attrs["pads"]
    if isinstance(pads, str):
        pads = oracles.same_pads(x.shape[2:], attrs["kernel"], attrs["stride"], dilation, pads == "same_lower")
    return attrs["stride"], pads, dilation


def conv2d(node, inputs, weights, _):
    return oracles.conv2d(inputs[0], weights["weight"], weights.get("bias"), *window_of(node, inputs[0]),
                          node.attrs["groups"])


def conv2d_backward(node, inputs, weights, dy, _):
    dx, dweight, dbias = oracles.conv2d_backward(inputs[0], weights["weight"], dy, *window_of(node, inputs[0]),
                                                 node.attrs["groups"])
    return [dx], given(weights, weight=dweight, bias=dbias)


def given(weights, **gradients):
    """The gradients of those weights that the node has."""
    return {role: gradient for role, gradient in gradients.items() if role in weights}


def matrix(node, weights):
    return weights["weight"].T if node.attrs["transposed"] else weights["weight"]


def linear_backward(node, inputs, weights, dy, _):
    dx, dweight, dbias = oracles.linear_backward(inputs[0], matrix(node, weights), dy)
    return [dx], given(weights, weight=dweight.T if node.attrs["transposed"] else dweight, bias=dbias)


def max_pool(node, x):
    stride, pads, dilation = window_of(node, x)
    return oracles.max_pool2d(x, node.attrs["kernel"], stride, pads, dilation, node.attrs["ceil_mode"])


def avg_pool(node, inputs, weights, _):
    stride, pads, dilation = window_of(node, inputs[0])
    return oracles.avg_pool2d(inputs[0], node.attrs["kernel"], stride, pads, node.attrs["ceil_mode"],
                              node.attrs["count_include_pad"], dilation)


def avg_pool_backward(node, inputs, weights, dy, _):
    stride, pads, dilation = window_of(node, inputs[0])
    return [oracles.avg_pool2d_backward(inputs[0], dy, node.attrs["kernel"], stride, pads,
                                        node.attrs["count_include_pad"], dilation)], {}


def statistics(inputs, weights, batch_statistics):
    return oracles.batch_statistics(inputs[0]) if batch_statistics else (weights["mean"], weights["var"])


def batchnorm(node, inputs, weights, batch_statistics):
    return oracles.frozen_batchnorm(inputs[0], weights["scale"], weights["bias"],
                                    *statistics(inputs, weights, batch_statistics), node.attrs["eps"])


def batchnorm_backward(node, inputs, weights, dy, batch_statistics):
    if batch_statistics:
        dx, dscale, dbias = oracles.batchnorm_backward(inputs[0], weights["scale"], node.attrs["eps"], dy)
    else:
        dx, dscale, dbias = oracles.frozen_batchnorm_backward(inputs[0], weights["scale"], weights["mean"],
                                                              weights["var"], node.attrs["eps"], dy)
    return [dx], {"scale": dscale, "bias": dbias}


def activation(node, inputs, weights, _):
    return oracles.elementwise(ACTIVATIONS[node.op](node.attrs)[0], inputs[0])


def activation_backward(node, inputs, weights, dy, _):
    derivative = ACTIVATIONS[node.op](node.attrs)[1]
    return [oracles.elementwise(lambda x, here: derivative(x) * here, inputs[0], dy)], {}


def as_groups(node, x):
    """x with the axes that a softmax takes together as one, and that axis."""
    axis = node.attrs["axis"] % x.ndim
    return (x.reshape(*x.shape[:axis], -1) if node.attrs["flatten"] else x), axis


def softmax(node, inputs, weights, _):
    return oracles.softmax(*as_groups(node, inputs[0])).reshape(inputs[0].shape)


def softmax_backward(node, inputs, weights, dy, _):
    x, axis = as_groups(node, inputs[0])
    return [oracles.softmax_backward(oracles.softmax(x, axis), dy.reshape(x.shape), axis).reshape(dy.shape)], {}


def operands(inputs, weights):
    return inputs[0], weights["other"] if "other" in weights else inputs[1]


def add(node, inputs, weights, _):
    return oracles.add(*operands(inputs, weights))


def add_backward(node, inputs, weights, dy, _):
    a, b = (oracles.add_backward(one.shape, dy) for one in operands(inputs, weights))
    return ([a], {"other": b}) if "other" in weights else ([a, b], {})


def reshape_backward(node, inputs, weights, dy, _):
    return [dy.reshape(inputs[0].shape)], {}


OPS = {
    "Conv2d": (conv2d, conv2d_backward),
    "Linear": (lambda node, inputs, weights, _: oracles.linear(inputs[0], matrix(node, weights), weights.get("bias")),
               linear_backward),
    "MaxPool2d": (lambda node, inputs, weights, _: max_pool(node, inputs[0])[0],
                  lambda node, inputs, weights, dy, _: (
                      [oracles.max_pool2d_backward(inputs[0], max_pool(node, inputs[0])[1], dy)], {})),
    "AvgPool2d": (avg_pool, avg_pool_backward),
    "GlobalAvgPool2d": (
        lambda node, inputs, weights, _: oracles.avg_pool2d(inputs[0], inputs[0].shape[2:], (1, 1)),
        lambda node, inputs, weights, dy, _: (
            [oracles.avg_pool2d_backward(inputs[0], dy, inputs[0].shape[2:], (1, 1))], {})),
    "BatchNorm2d": (batchnorm, batchnorm_backward),
    "Softmax": (softmax, softmax_backward),
    "Add": (add, add_backward),
    "Flatten": (lambda node, inputs, weights, _: inputs[0].reshape(len(inputs[0]), math.prod(inputs[0].shape[1:])),
                reshape_backward),
    "Reshape": (lambda node, inputs, weights, _: inputs[0].reshape(len(inputs[0]), *node.attrs["shape"]),
                reshape_backward),
    "Transpose": (lambda node, inputs, weights, _: inputs[0].transpose(node.attrs["perm"]),
                  lambda node, inputs, weights, dy, _: ([dy.transpose(np.argsort(node.attrs["perm"]))], {})),
    "Identity": (lambda node, inputs, weights, _: inputs[0], reshape_backward),
    **{op: (activation, activation_backward) for op in ACTIVATIONS},
    **families.pairs(),
}
