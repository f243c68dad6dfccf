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


def layer_norm(draft: Draft, outputs: list[str]) -> None:
    """The seven nodes that files before opset 17 make of a layer norm, and the scale and bias after them: one LayerNorm."""
    readers = _readers(draft, outputs)
    makers = {node.outputs[0]: node for node in draft.nodes}
    users: dict[str, list[Node]] = {}
    for node in draft.nodes:
        for name in node.inputs:
            users.setdefault(name, []).append(node)

    def before(node: Node | None, op: str, count: int = 1, place: int = 0, **attrs: Any) -> Node | None:
        """The maker of a node's input, if it is of that kind and nothing beside `count` inputs reads it."""
        found = makers.get(node.inputs[place]) if node is not None and len(node.inputs) > place else None
        if found is None or found.op != op or readers[found.outputs[0]] != count or found.weights:
            return None
        return found if all(found.attrs.get(key) == value for key, value in attrs.items()) else None

    def after(node: Node, op: str, shape: tuple[Any, ...]) -> WeightRef | None:
        """The weight of that shape that the only reader of a node applies."""
        name = node.outputs[0]
        reader = users[name][0] if readers.get(name) == 1 and name in users else None
        ref = reader.weights.get("other") if reader is not None and reader.op == op and not reader.attrs.get("first") else None
        return ref if ref is not None and ref.apply(draft.stored[ref.name]).shape == shape else None
    gone: set[str] = set()
    merged: dict[str, Node] = {}
    for node in draft.nodes:
        root = before(node, "Sqrt", place=1) if node.op == "Div" and not node.weights else None
        shifted = before(root, "Add")
        variance = before(shifted, "ReduceMean", keepdims=True)
        centred = before(before(variance, "Pow", scalar=2.0), "Sub", 2)
        mean = before(centred, "ReduceMean", place=1, keepdims=True)
        if centred is None or mean is None or variance is None or shifted is None or shifted.attrs.get("scalar") is None \
                or node.inputs[0] != centred.outputs[0] or mean.inputs[0] != centred.inputs[0] \
                or mean.attrs["axes"] != variance.attrs["axes"]:
            continue
        x, axes = draft.values[mean.inputs[0]], mean.attrs["axes"]
        assert isinstance(x, Tensor) and x.dims is not None
        if not axes or axes != tuple(range(axes[0], len(x.dims))):
            continue
        last, weights = node, {}
        for role, op in (("scale", "Mul"), ("bias", "Add")):
            ref = after(last, op, x.dims[axes[0]:])
            if ref is not None:
                gone.add(last.name)
                last, weights[role] = users[last.outputs[0]][0], ref
        merged[last.name] = Node("LayerNorm", node.name, mean.inputs, last.outputs,
                                 {"axis": axes[0], "eps": shifted.attrs["scalar"]}, weights)
    draft.nodes = [merged.get(node.name, node) for node in draft.nodes if node.name not in gone]


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
    "layer norm of its parts": layer_norm,
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
