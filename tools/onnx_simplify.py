"""The chain of named simplifications that an imported graph goes through, in this order.

Each is a function of the Draft and the names of the outputs; it changes the draft's nodes and keeps what every output
and every weight means. To add one, write it and put it into SIMPLIFICATIONS.
"""
from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from microcnn.graph import Node, WeightRef

from .onnx_registry import Draft
from .onnx_values import Tensor


def linear_bias(draft: Draft, outputs: list[str]) -> None:
    """Linear, then Add of a constant vector: the vector becomes the bias."""
    _merge_bias(draft, outputs, "Linear", lambda count, rank: {(*(1,) * lead, count) for lead in range(rank)})


def convolution_bias(draft: Draft, outputs: list[str]) -> None:
    """Conv2d, then Add of a constant (K, 1, 1): the constant becomes the bias."""
    _merge_bias(draft, outputs, "Conv2d", lambda count, rank: {(count, 1, 1), (1, count, 1, 1)})


def _merge_bias(draft: Draft, outputs: list[str], layer: str,
                shapes: Callable[[int, int], set[tuple[int, ...]]]) -> None:
    readers = _readers(draft, outputs)
    makers = {node.outputs[0]: node for node in draft.nodes}
    merged: dict[str, Node] = {}
    for node in draft.nodes:
        maker = makers.get(node.inputs[0])
        if node.op != "Add" or "other" not in node.weights or maker is None or maker.op != layer \
                or "bias" in maker.weights or readers[maker.outputs[0]] != 1:
            continue
        other, weight = node.weights["other"], maker.weights["weight"]
        shape = other.apply(draft.stored[other.name]).shape
        matrix = weight.apply(draft.stored[weight.name]).shape
        count = matrix[0] if layer == "Conv2d" or maker.attrs["transposed"] else matrix[-1]
        dims = _dims(draft, maker.outputs[0])
        if dims is None or shape not in shapes(count, dims):
            continue
        bias = other if len(shape) == 1 else WeightRef(other.name, (*other.view, ("reshape", (count,))))
        merged[node.name] = replace(maker, outputs=node.outputs, weights={**maker.weights, "bias": bias})
        merged[maker.name] = merged[node.name]
    done: set[str] = set()
    nodes = []
    for node in draft.nodes:
        new = merged.get(node.name, node)
        if new.name not in done:
            done.add(new.name)
            nodes.append(new)
    draft.nodes = nodes


def padding(draft: Draft, outputs: list[str]) -> None:
    """Pad of an image, then a convolution or pooling that can pad so itself: the pads become that node's.

    A convolution pads with zeros; average pooling too, if it counts them or has no padding of its own; max pooling pads with
    what is less than everything. Where a pooling's last window may hang over, its padding means something else.
    """
    readers = _readers(draft, outputs)
    pads = {node.outputs[0]: node for node in draft.nodes if node.op == "Pad" and readers[node.outputs[0]] == 1}
    merged: dict[str, Node | None] = {}
    for node in draft.nodes:
        pad = pads.get(node.inputs[0])
        attrs = _with_pads(node, pad) if pad is not None else None
        if pad is not None and attrs is not None:
            merged[pad.name] = None
            merged[node.name] = replace(node, inputs=(pad.inputs[0], *node.inputs[1:]), attrs=attrs)
    nodes = [merged.get(node.name, node) for node in draft.nodes]
    draft.nodes = [node for node in nodes if node is not None]


def _with_pads(node: Node, pad: Node) -> dict[str, Any] | None:
    """The attributes of a window that pads as the Pad before it does, None where it cannot."""
    attrs = dict(node.attrs)
    if node.op not in ("Conv2d", "AvgPool2d", "MaxPool2d") or len(pad.attrs["pads"]) != 6 or pad.attrs["mode"] != "constant":
        return None
    above, top, left, below, bottom, right = pad.attrs["pads"]
    if above or below or min(top, left, bottom, right) < 0 or isinstance(attrs["pads"], str) or attrs.get("ceil_mode") \
            or pad.attrs["value"] != (-math.inf if node.op == "MaxPool2d" else 0.0):
        return None
    own = attrs["pads"]
    if node.op == "AvgPool2d":
        if any(own) and not attrs["count_include_pad"]:
            return None
        attrs["count_include_pad"] = True
    attrs["pads"] = tuple(a + b for a, b in zip(own, (top, left, bottom, right), strict=True))
    reach = [(taps - 1) * spread + 1 for taps, spread in zip(attrs["kernel"], attrs.get("dilation", (1, 1)), strict=True)]
    if node.op != "Conv2d" and any(n >= window for n, window in zip(attrs["pads"], (*reach, *reach), strict=True)):
        return None                                     # a window of nothing but padding
    return attrs


def silu(draft: Draft, outputs: list[str]) -> None:
    """Mul of a tensor and its Sigmoid: one Swish, which keeps the tensor alone for backward."""
    readers = _readers(draft, outputs)
    gates = {node.outputs[0]: node.inputs[0] for node in draft.nodes
             if node.op == "Sigmoid" and readers.get(node.outputs[0]) == 1}
    merged = set()
    nodes = []
    for node in draft.nodes:
        gate = next((name for name in node.inputs if name in gates), "") if node.op == "Mul" else ""
        if gate and sorted(node.inputs) == sorted((gate, gates[gate])) and not node.weights:
            node = replace(node, op="Swish", inputs=(gates[gate],), attrs={"alpha": 1.0})
            merged.add(gate)
        nodes.append(node)
    draft.nodes = [node for node in nodes if node.outputs[0] not in merged]


def dequantized_once(draft: Draft, outputs: list[str]) -> None:
    """Files dequantize a tensor anew for each of its readers: one node is enough."""
    found: dict[Any, str] = {}
    same: dict[str, str] = {}
    nodes = []
    for node in draft.nodes:
        node = replace(node, inputs=tuple(same.get(name, name) for name in node.inputs))
        if node.op == "DequantizeLinear" and node.outputs[0] not in outputs:
            first = found.setdefault((node.inputs, tuple(sorted(node.attrs.items()))), node.outputs[0])
            if first != node.outputs[0]:
                same[node.outputs[0]] = first
                continue
        nodes.append(node)
    draft.nodes = nodes


def unused_nodes(draft: Draft, outputs: list[str]) -> None:
    """Nodes that no output depends on go: what only shape arithmetic read, for example."""
    needed = set(outputs)
    kept = []
    for node in reversed(draft.nodes):
        if needed & set(node.outputs):
            kept.append(node)
            needed.update(node.inputs)
    draft.nodes = kept[::-1]


SIMPLIFICATIONS: dict[str, Callable[[Draft, list[str]], None]] = {
    "bias of Linear": linear_bias,
    "bias of Conv2d": convolution_bias,
    "padding of windows": padding,
    "x times its Sigmoid": silu,
    "dequantized once": dequantized_once,
    "unused nodes": unused_nodes,
}


def simplify(draft: Draft, outputs: list[str]) -> None:
    """Run the whole chain. outputs: the tensors that the graph returns, by their names in the draft."""
    for simplification in SIMPLIFICATIONS.values():
        simplification(draft, outputs)


def _readers(draft: Draft, outputs: list[str]) -> dict[str, int]:
    """How often each tensor is read, being an output counted."""
    count = {name: outputs.count(name) for name in outputs}
    for node in draft.nodes:
        for name in node.inputs:
            count[name] = count.get(name, 0) + 1
    return count


def _dims(draft: Draft, name: str) -> int | None:
    """The rank of a tensor, the batch counted."""
    found = draft.values.get(name)
    return len(found.dims) if isinstance(found, Tensor) and found.dims is not None else None
