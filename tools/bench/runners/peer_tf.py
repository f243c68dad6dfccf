"""TensorFlow on the CPU: one traced function, images (N, H, W, C), which is all that its convolutions know there."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from .twin import Node, Twin, is_depthwise, refuse
from .worker import Task

CHANNELS_LAST = ("tf",)


def start(threads: int, variant: str) -> str:
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    return tf.__version__


def forward(twin: Twin, weights: dict[tuple[str, str], Any], x: Any, moments: dict[str, Any] | None = None) -> Any:
    """The outputs; with `moments` batch norm uses the batch's statistics and leaves them there."""
    made = {twin.input: x}
    for node in twin.nodes:
        own = {role: weights[node.name, role] for role in node.weights}
        made[node.output] = _apply(twin, node, own, [made[name] for name in node.inputs], moments)
    return made[twin.output]


def _apply(twin: Twin, node: Node, own: dict[str, Any], given: list[Any], moments: dict[str, Any] | None) -> Any:
    x, attrs = given[0], node.attrs
    if node.op == "Conv2d":
        strides, dilation = [1, *attrs["stride"], 1], list(attrs["dilation"])
        padding, x = _padding(twin, node, x, 0.0)
        if is_depthwise(node):
            R, S, _, K = node.weights["weight"].shape
            weight = tf.reshape(own["weight"], (R, S, attrs["groups"], K // attrs["groups"]))
            y = tf.nn.depthwise_conv2d(x, weight, strides, padding, dilations=dilation)
        else:
            y = tf.nn.conv2d(x, own["weight"], strides, padding, dilations=dilation)
        return tf.nn.bias_add(y, own["bias"]) if "bias" in own else y
    if node.op == "BatchNorm2d":
        running = {} if moments is not None else {"mean": own["mean"], "variance": own["var"]}
        y, mean, var = tf.compat.v1.nn.fused_batch_norm(x, own["scale"], own["bias"], epsilon=attrs["eps"],
                                                        is_training=moments is not None, **running)
        if moments is not None:
            moments[node.name] = mean, var
        return y
    if node.op == "MaxPool2d" and not attrs["ceil_mode"] and tuple(attrs["dilation"]) == (1, 1):
        padding, x = _padding(twin, node, x, tf.float32.min)
        return tf.nn.max_pool2d(x, attrs["kernel"], attrs["stride"], padding)
    if node.op == "Linear":
        y = tf.matmul(x, own["weight"])
        return tf.nn.bias_add(y, own["bias"]) if "bias" in own else y
    if node.op == "Clip":
        return tf.nn.relu6(x) if (attrs["low"], attrs["high"]) == (0, 6) else tf.clip_by_value(x, attrs["low"], attrs["high"])
    if node.op == "Flatten":
        return tf.reshape(x, [x.shape[0], -1])
    if node.op == "Add" and len(given) == 2:
        return given[0] + given[1]
    simple = {"Relu": tf.nn.relu, "Sigmoid": tf.sigmoid, "Tanh": tf.tanh,
              "GlobalAvgPool2d": lambda image: tf.reduce_mean(image, [1, 2], keepdims=True)}
    if node.op not in simple:
        raise refuse(node, "TensorFlow")
    return simple[node.op](x)


def _padding(twin: Twin, node: Node, x: Any, value: float) -> tuple[str, Any]:
    """"VALID" or "SAME" where these are the node's padding, else "VALID" and the padded image."""
    top, left, bottom, right = node.attrs["pads"]
    if not any(node.attrs["pads"]):
        return "VALID", x
    same = []
    for length, taps, step, spread in zip(twin.shapes[node.inputs[0]][1:], node.attrs["kernel"], node.attrs["stride"],
                                          node.attrs["dilation"], strict=True):
        total = max(0, (-(-length // step) - 1) * step + (taps - 1) * spread + 1 - length)
        same.append((total // 2, total - total // 2))
    if same == [(top, bottom), (left, right)]:
        return "SAME", x
    return "VALID", tf.pad(x, [[0, 0], [top, bottom], [left, right], [0, 0]], constant_values=value)


def _inference(task: Task) -> Any:
    """The traced function of the folded model."""
    twin = task.twin().channels_last()
    weights = {(node.name, role): tf.constant(array) for node in twin.nodes for role, array in node.weights.items()}
    return tf.function(lambda x: forward(twin, weights, x), input_signature=[_images(twin, task)]).get_concrete_function()


def _images(twin: Twin, task: Task) -> Any:
    C, *image = twin.shapes[twin.input]
    return tf.TensorSpec((task.batch, *image, C), tf.float32)


def infer(task: Task) -> Callable[..., Any]:
    run = _inference(task)
    return lambda x: run(tf.convert_to_tensor(x)).numpy()


def convert(task: Task) -> None:
    """Write the model as .tflite, for LiteRT."""
    holder = tf.Module()
    holder.run = _inference(task)
    task.tflite.write_bytes(tf.lite.TFLiteConverter.from_concrete_functions([holder.run], holder).convert())


def train(task: Task) -> Callable[..., Any]:
    twin = task.twin().channels_last()
    weights = {(node.name, role): tf.Variable(array) for node in twin.nodes for role, array in node.weights.items()}
    trained = twin.trained(task.last)
    velocities = {key: tf.Variable(tf.zeros_like(weights[key])) for key in trained}
    momenta = {node.name: node.attrs["momentum"] for node in twin.nodes if node.op == "BatchNorm2d"}

    @tf.function(input_signature=[_images(twin, task), tf.TensorSpec((task.batch,), tf.int64)])
    def step(x: Any, t: Any) -> Any:
        moments: dict[str, Any] | None = None if task.last else {}
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([weights[key] for key in trained])
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(t, forward(twin, weights, x, moments))
            loss = tf.reduce_mean(losses)
        for key, gradient in zip(trained, tape.gradient(loss, [weights[key] for key in trained]), strict=True):
            tf.raw_ops.ResourceApplyMomentum(var=weights[key].handle, accum=velocities[key].handle, lr=twin.lr, grad=gradient,
                                             momentum=twin.momentum)
        for name, (mean, var) in (moments or {}).items():
            for role, found in (("mean", mean), ("var", var)):
                weights[name, role].assign_sub((weights[name, role] - found) * (1 - momenta[name]))
        return loss
    run = step.get_concrete_function()
    return lambda x, t: float(run(tf.convert_to_tensor(x), tf.convert_to_tensor(np.asarray(t, np.int64))))
