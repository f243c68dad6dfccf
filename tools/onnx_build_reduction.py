"""How layers that make one number of many become ONNX nodes."""
from __future__ import annotations

import numpy as np

from microcnn.graph import Node
from microcnn.layers import LAYERS
from microcnn.layers.places import ArgMax
from microcnn.layers.reduction import Reduction

from .onnx_build import Build, builder


@builder(*(layer.op for layer in LAYERS.values() if issubclass(layer, Reduction)))
def reduction(build: Build, node: Node) -> None:
    axes, keepdims = list(node.attrs["axes"]), int(node.attrs["keepdims"])
    if node.op == "ReduceSum":        # the only one whose axes are an input in opset 17, and may be none
        given = build.constant(f"{node.name}.axes", np.asarray(axes, np.int64))
        build.add("ReduceSum", node, [node.inputs[0], given], keepdims=keepdims, noop_with_empty_axes=1)
    elif axes:
        build.add(node.op, node, [node.inputs[0]], axes=axes, keepdims=keepdims)
    else:                             # over a new axis of size 1
        last = build.constant(f"{node.name}.axis", np.asarray([-1], np.int64))
        wide = build.add("Unsqueeze", node, [node.inputs[0], last], build.free(f"{node.name}/wide"), "/wide")
        build.add(node.op, node, [wide], axes=[-1], keepdims=0)


@builder(*(layer.op for layer in LAYERS.values() if issubclass(layer, ArgMax)))
def place(build: Build, node: Node) -> None:
    build.add(node.op, node, [node.inputs[0]], axis=node.attrs["axis"], keepdims=int(node.attrs["keepdims"]),
              select_last_index=int(node.attrs["last"]))
