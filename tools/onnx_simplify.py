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
from microcnn.layers.conv2d import CONVOLUTIONS

from .onnx_registry import Draft
from .onnx_values import Dim, Tensor

# What works on an image of height 1 as on a row, and had best stand directly behind a convolution, or before it.
EITHER_WAY = ("Relu", "Clip", "BatchNorm2d", "Add", "Sub", "Mul", "Div", "Pad")


def rows_as_images(draft: Draft, outputs: list[str]) -> None:
    """Layers between windows over rows, (C, L), work on the images (C, 1, L) that these windows work on.

    Reshapes cost nothing, but a layer behind one is not done in the store of the layer before it.
    """
    shapes = {name: found.dims for name, found in draft.values.items() if isinstance(found, Tensor) and found.dims is not None}
    raised: set[str] = set()                             # rows of which an image is wanted
    for node in reversed(draft.nodes):
        if _is_raising(node, shapes) or (node.op in EITHER_WAY and node.outputs[0] in raised and _are_rows(node, shapes)):
            raised.update(node.inputs)
    images: dict[str, str] = {}                          # the image of each row that has one
    same: dict[str, str] = {}                            # what a tensor is called that is one of them
    nodes: list[Node] = []

    def reshaped(source: str, target: str, dims: tuple[Dim, ...]) -> None:
        # at most one size is open, as in the Reshapes that there are already
        shape = tuple(n if isinstance(n, int) else -1 for n in dims[1:])
        nodes.append(Node("Reshape", draft.free_name(f"{target}/reshape"), (source,), (target,), {"shape": shape}))

    def image_of(row: str) -> str:
        if row not in images:
            images[row] = f"{row}/wide"
            dims = shapes[images[row]] = (*shapes[row][:2], 1, shapes[row][2])
            reshaped(row, images[row], dims)
        return images[row]

    for node in draft.nodes:
        node = replace(node, inputs=tuple(same.get(name, name) for name in node.inputs))
        output = node.outputs[0]
        if _is_raising(node, shapes) and node.inputs[0] in images and output not in outputs:
            same[output] = images[node.inputs[0]]
            continue
        if _is_raising(node, shapes):
            images.setdefault(node.inputs[0], output)
        elif node.op == "Reshape" and _is_wide(shapes.get(node.inputs[0]), shapes.get(output)):
            images[output] = node.inputs[0]
        elif node.op in EITHER_WAY and _are_rows(node, shapes) and (output in raised or any(n in images for n in node.inputs)):
            wide = f"{output}/wide"
            shapes[wide] = (*shapes[output][:2], 1, shapes[output][2])
            draft.values[wide] = Tensor(wide, shapes[wide])
            nodes.append(_on_image(draft, replace(node, inputs=tuple(image_of(n) for n in node.inputs), outputs=(wide,))))
            images[output] = wide
            reshaped(wide, output, shapes[output])
            continue
        nodes.append(node)
    if _different_forms(nodes) - _different_forms(draft.nodes):
        return                                   # a weight that another layer reads as it is
    draft.nodes = _raised_early(nodes, shapes)
    unused_nodes(draft, outputs)


def _different_forms(nodes: list[Node]) -> set[str]:
    """Names of weights that nodes see in more than one form, which a network cannot hold."""
    forms: dict[str, set[WeightRef]] = {}
    for node in nodes:
        for ref in node.weights.values():
            forms.setdefault(ref.name, set()).add(ref)
    return {name for name, refs in forms.items() if len(refs) > 1}


def _raised_early(nodes: list[Node], shapes: dict[str, tuple[Dim, ...]]) -> list[Node]:
    """The nodes with every image right behind the row that it is made of: a residual has to be there in time."""
    early: dict[str, list[Node]] = {}
    for node in nodes:
        if _is_raising(node, shapes):
            early.setdefault(node.inputs[0], []).append(node)
    made = {name for node in nodes for name in node.outputs}
    found = [node for name, raising in early.items() if name not in made for node in raising]
    for node in nodes:
        if not _is_raising(node, shapes):
            found.append(node)
            found += early.get(node.outputs[0], [])
    return found


def _is_wide(image: tuple[Dim, ...] | None, row: tuple[Dim, ...] | None) -> bool:
    """Whether the one is (N, C, 1, L) and the other (N, C, L)."""
    return image is not None and row is not None and len(image) == 4 and image == (*row[:2], 1, *row[2:])


def _is_raising(node: Node, shapes: dict[str, tuple[Dim, ...]]) -> bool:
    return node.op == "Reshape" and _is_wide(shapes.get(node.outputs[0]), shapes.get(node.inputs[0]))


def _are_rows(node: Node, shapes: dict[str, tuple[Dim, ...]]) -> bool:
    """Whether a node reads rows of one size, with at most one size open, and makes such a one."""
    read = [shapes.get(name) for name in node.inputs]
    first = read[0]
    return first is not None and len(first) == 3 and all(dims == first for dims in read) \
        and sum(not isinstance(n, int) for n in first[1:]) < 2 and len(shapes.get(node.outputs[0], ())) == 3


def _on_image(draft: Draft, node: Node) -> Node:
    """The node with what it says of axes said of an image."""
    if node.op == "Pad":
        above, left, below, right = node.attrs["pads"]
        return replace(node, attrs={**node.attrs, "pads": (above, 0, left, below, 0, right)})
    other = node.weights.get("other")
    shape = other.apply(draft.stored[other.name]).shape if other is not None else ()
    if other is not None and len(shape) > 1:
        view = (*other.view, ("reshape", (*shape[:-1], 1, shape[-1])))
        node = replace(node, weights={**node.weights, "other": WeightRef(other.name, view)})
    return node


def linear_bias(draft: Draft, outputs: list[str]) -> None:
    """Linear, then Add of a constant vector: the vector becomes the bias."""
    _merge_bias(draft, outputs, "Linear", lambda count, rank: {(*(1,) * lead, count) for lead in range(rank)})


def convolution_bias(draft: Draft, outputs: list[str]) -> None:
    """A convolution, then Add of a constant (K, 1, 1): the constant becomes the bias."""
    for layer in CONVOLUTIONS:
        _merge_bias(draft, outputs, layer, lambda count, rank: {(count, 1, 1), (1, count, 1, 1)})


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
        if layer == "ConvTranspose2d":
            count = matrix[1] * maker.attrs["groups"]
        else:
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
    "rows as images": rows_as_images,
    "bias of Linear": linear_bias,
    "bias of convolutions": convolution_bias,
    "padding of windows": padding,
    "x times its Sigmoid": silu,
    "layer norm of its parts": layer_norm,
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
