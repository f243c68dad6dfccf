"""JAX on the CPU: one jitted function, a training step that gives its buffers on; images (N, H, W, C), as XLA likes them."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .twin import Node, Twin, refuse
from .worker import Task

CHANNELS_LAST = ("jax",)
Weights = dict[str, dict[str, Any]]


def start(threads: int, variant: str) -> str:
    return jax.__version__


def forward(twin: Twin, weights: Weights, x: Any, training: bool) -> tuple[Any, dict[str, Any]]:
    """The outputs, and the statistics that batch norm took of the batch."""
    made: dict[str, Any] = {twin.input: x}
    moments: dict[str, Any] = {}
    for node in twin.nodes:
        given, own = [made[name] for name in node.inputs], weights.get(node.name, {})
        if node.op == "BatchNorm2d":
            mean, var = own["mean"], own["var"]
            if training:
                axes = tuple(range(given[0].ndim - 1))
                mean = given[0].mean(axes)
                var = jnp.maximum((given[0] * given[0]).mean(axes) - mean * mean, 0.0)
                moments[node.name] = {"mean": mean, "var": var}
            factor = own["scale"] * lax.rsqrt(var + node.attrs["eps"])
            made[node.output] = given[0] * factor + (own["bias"] - mean * factor)
        else:
            made[node.output] = _apply(node, own, given)
    return made[twin.output], moments


def _apply(node: Node, own: dict[str, Any], given: list[Any]) -> Any:
    x, attrs = given[0], node.attrs
    if node.op == "Conv2d":
        top, left, bottom, right = attrs["pads"]
        y = lax.conv_general_dilated(x, own["weight"], attrs["stride"], ((top, bottom), (left, right)),
                                     rhs_dilation=attrs["dilation"], dimension_numbers=("NHWC", "HWIO", "NHWC"),
                                     feature_group_count=attrs["groups"])
        return y + own["bias"] if "bias" in own else y
    if node.op == "Linear":
        y = x @ own["weight"]
        return y + own["bias"] if "bias" in own else y
    if node.op == "MaxPool2d" and not attrs["ceil_mode"] and tuple(attrs["dilation"]) == (1, 1):
        top, left, bottom, right = attrs["pads"]
        return lax.reduce_window(x, -jnp.inf, lax.max, (1, *attrs["kernel"], 1), (1, *attrs["stride"], 1),
                                 ((0, 0), (top, bottom), (left, right), (0, 0)))
    if node.op == "Clip":
        return jnp.clip(x, attrs["low"], attrs["high"])
    if node.op == "Add" and len(given) == 2:
        return given[0] + given[1]
    simple: dict[str, Callable[[Any], Any]] = {
        "Relu": jax.nn.relu, "Sigmoid": jax.nn.sigmoid, "Tanh": jnp.tanh,
        "GlobalAvgPool2d": lambda image: image.mean((1, 2), keepdims=True),
        "Flatten": lambda image: image.reshape(image.shape[0], -1)}
    if node.op not in simple:
        raise refuse(node, "JAX")
    return simple[node.op](x)


def _weights(twin: Twin) -> Weights:
    return {node.name: {role: jnp.asarray(array) for role, array in node.weights.items()}
            for node in twin.nodes if node.weights}


def infer(task: Task) -> Callable[..., Any]:
    twin = task.twin().channels_last()
    weights = _weights(twin)
    run = jax.jit(lambda x: forward(twin, weights, x, False)[0])      # the weights are constants of the program
    return lambda x: np.asarray(run(x))


def train(task: Task) -> Callable[..., Any]:
    twin = task.twin().channels_last()
    weights = _weights(twin)
    trained = set(twin.trained(task.last))
    moving: Weights = {name: {role: array for role, array in own.items() if (name, role) in trained}
                       for name, own in weights.items()}
    fixed: Weights = {name: {role: array for role, array in own.items() if (name, role) not in trained}
                      for name, own in weights.items()}
    keep = {node.name: node.attrs["momentum"] for node in twin.nodes if node.op == "BatchNorm2d"}

    def loss_of(moving: Weights, fixed: Weights, x: Any, t: Any) -> Any:
        scores, moments = forward(twin, {name: {**fixed[name], **moving[name]} for name in fixed}, x, not task.last)
        return -jnp.take_along_axis(jax.nn.log_softmax(scores), t[:, None], 1).mean(), moments

    def step(moving: Weights, velocity: Weights, fixed: Weights, x: Any, t: Any) -> Any:
        (loss, moments), gradient = jax.value_and_grad(loss_of, has_aux=True)(moving, fixed, x, t)
        velocity = jax.tree.map(lambda v, g: twin.momentum * v + g, velocity, gradient)
        moving = jax.tree.map(lambda w, v: w - twin.lr * v, moving, velocity)
        fixed = {name: {role: keep[name] * array + (1 - keep[name]) * moments[name][role] if name in moments else array
                        for role, array in own.items()} for name, own in fixed.items()}
        return moving, velocity, fixed, loss
    run = jax.jit(step, donate_argnums=(0, 1, 2))
    state = moving, jax.tree.map(jnp.zeros_like, moving), fixed

    def call(x: Any, t: Any) -> float:
        nonlocal state
        *changed, loss = run(*state, x, np.asarray(t, np.int32))
        state = changed[0], changed[1], changed[2]
        return float(loss)
    return call
