"""What the arguments of compile mean for one graph: which loss each output has, the budget, folded batch norm."""
from __future__ import annotations

import math
import re
from collections import Counter
from typing import Any

import numpy as np

from .augment import Augment
from .errors import CompileError
from .graph import Graph, WeightRef
from .layers.conv2d import CONVOLUTIONS
from .losses import BCEWithLogitsLoss, CrossEntropyLoss, Loss, resolve_loss

UNITS = {"": 1, "b": 1, "kb": 1024, "mb": 1024**2, "gb": 1024**3}


def resolve_losses(graph: Graph, loss: Any, shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[Loss, str]]:
    """{output: (loss, tensor that it is computed from)}; a softmax or sigmoid at the end is fused into its cross-entropy.

    Raises CompileError for unknown losses and outputs.
    """
    if loss is None:
        return {}
    if isinstance(loss, dict):
        for name in loss:
            if name not in graph.outputs:
                raise CompileError(f'loss names output "{name}", which the model does not have; it has {graph.outputs}')
        chosen = {name: resolve_loss(one) for name, one in loss.items()}
    else:
        chosen = {name: resolve_loss(loss) for name in graph.outputs}
    return {name: (one, logits_of(graph, name, one, shapes)) for name, one in chosen.items() if one is not None}


def logits_of(graph: Graph, output: str, loss: Loss, shapes: dict[str, tuple[int, ...]]) -> str:
    """What the loss of an output reads: where it ends in the softmax or sigmoid that the loss has in itself, its input.

    Nodes that only change how memory is read may stand between. Raises CompileError for a softmax over another axis.
    """
    if not isinstance(loss, CrossEntropyLoss | BCEWithLogitsLoss):
        return output
    makers = {name: node for node in graph.nodes for name in node.outputs}
    node = makers.get(output)
    while node is not None and node.op in ("Identity", "Dropout"):
        node = makers.get(node.inputs[0])
    if node is None or node.op != ("Softmax" if isinstance(loss, CrossEntropyLoss) else "Sigmoid"):
        return output
    if node.op == "Sigmoid":
        return node.inputs[0]
    from .layers.softmax import axes_of
    shape = shapes[node.inputs[0]]
    sizes = [i for i in axes_of(node, shape) if shape[i] != 1]
    if sizes not in ([0], []) and not (len(shape) == 1):
        raise CompileError(f'output "{output}" is a softmax over axis {node.attrs["axis"]} of a sample of shape {shape}; '
                           "cross-entropy needs the classes on axis 1")
    return node.inputs[0]


def parse_budget(budget: Any) -> int | None:
    """Bytes. Raises CompileError for what is no size."""
    if budget is None:
        return None
    if isinstance(budget, int) and not isinstance(budget, bool) and budget > 0:
        return budget
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kKmMgG]?[bB]?)\s*", budget) if isinstance(budget, str) else None
    if found and len(found[1]) < 100:      # more digits are no size, and may be more than a float holds
        unit = found[2].lower()
        size = int(float(found[1]) * UNITS[unit if unit in UNITS else unit + "b"])
        if size > 0:
            return size
    raise CompileError(f'budget is {budget!r}; expected bytes as an integer above 0, or a size such as "256KB" or "8MB"')


def fold_batchnorm(graph: Graph) -> Graph:
    """A copy in which each batch norm behind a convolution is part of it, for training with bn="fold".

    The convolution's weight becomes W' and the batch norm's bias the bias of both; scale = sqrt(var + eps) and mean = 0
    make what is left of the batch norm an identity, so that the original graph with these weights computes the same.
    """
    folded = graph.copy()
    consumers = folded.consumers()
    users = Counter(ref.name for node in folded.nodes for ref in node.weights.values())
    gone: dict[str, str] = {}
    nodes = []
    for node in folded.nodes:
        readers = consumers.get(node.outputs[0], [])
        bn = readers[0] if len(readers) == 1 and readers[0].op == "BatchNorm2d" else None
        if node.op in CONVOLUTIONS and bn is not None and node.outputs[0] not in folded.outputs \
                and not any(ref.view for ref in bn.weights.values()) \
                and all(users[ref.name] == 1 for one in (node, bn) for ref in one.weights.values()):
            scale, beta, mean, var = (folded.weights[bn.weights[role].name] for role in ("scale", "bias", "mean", "var"))
            ref = node.weights["weight"]
            stored = folded.weights[ref.name]
            factor = scale.astype(np.float64) / np.sqrt(var.astype(np.float64) + bn.attrs["eps"])
            weight = ref.apply(stored)
            if node.op == "Conv2d":
                weight = weight * factor.reshape(-1, 1, 1, 1)
            else:                                # (C, K / G, R, S): each group of input channels has its own outputs
                groups = factor.reshape(node.attrs["groups"], -1)
                weight = weight * np.repeat(groups, weight.shape[0] // len(groups), 0)[:, :, None, None]
            bias = -mean.astype(np.float64)
            if "bias" in node.weights:
                own = node.weights["bias"]
                bias = bias + own.apply(folded.weights[own.name])
                folded.weights[own.name] = np.zeros_like(folded.weights[own.name])
            folded.weights[ref.name] = ref.undo(weight.astype(stored.dtype), stored.shape)
            folded.weights[bn.weights["bias"].name] = (bias * factor + beta).astype(beta.dtype)
            folded.weights[bn.weights["mean"].name] = np.zeros_like(mean)
            folded.weights[bn.weights["scale"].name] = np.sqrt(var.astype(np.float64) + bn.attrs["eps"]).astype(scale.dtype)
            node.weights["bias"] = WeightRef(bn.weights["bias"].name)
            node.outputs = bn.outputs
            gone[bn.name] = node.name
        if node.name not in gone:
            nodes.append(node)
    folded.nodes = nodes
    return folded


def resolve_augment(augment: Any, losses: dict[str, tuple[Any, str]], shapes: dict[str, tuple[int, ...]], factors: Any,
                  optimizer: Any) -> Augment | None:
    """What compile was given as augment. Raises CompileError where it makes no sense."""
    if augment is None:
        return None
    if not isinstance(augment, Augment):
        raise CompileError(f"augment is {augment!r}; expected None or mc.Augment(...)")
    if not losses or not factors or optimizer is None:
        missing = [name for name, there in (("train", factors), ("loss", losses), ("optimizer", optimizer)) if not there]
        raise CompileError(f"augment changes the samples of training steps, for which compile was given no {missing[0]}; give "
                           "train, loss and optimizer too, or leave it out")
    images = [name for name, (_, tensor) in losses.items() if math.prod(shapes[tensor][1:]) > 1]
    if augment.moves and images:
        raise CompileError("augment moves the pixels of the input, but not those of the targets of output "
                           f'"{images[0]}", shape {shapes[images[0]]} for one sample; leave out shift, flip and crop')
    return augment
