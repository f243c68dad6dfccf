"""A model as every peer can read it: ONNX files with the batch fixed, and a plain description (JSON and .npz) for those that do
not read ONNX and build their twin of it. See runners/twin.py for how it is read."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from microcnn.errors import ModelError
from microcnn.files import atomic_write
from microcnn.graph import Graph, Node
from microcnn.layers.windows import resolve_pads

from .models import folded, macs_of

LR, MOMENTUM = 1e-3, 0.9
WINDOWS = ("Conv2d", "MaxPool2d", "AvgPool2d")


class Recipe:
    """A model in a folder of its own, in the forms that peers take.

    graph      with batch norm on its own, for training; folded: batch norm folded in, for everything else
    macs       multiply-adds of one sample, forward
    trains     whether its output is class scores (N, K), which cross-entropy takes
    Raises ModelError for a model with several inputs or outputs, or with open sizes.
    """

    def __init__(self, graph: Graph, folder: Path):
        if len(graph.inputs) != 1 or len(graph.outputs) != 1:
            raise ModelError(f"{graph.name} has {len(graph.inputs)} inputs and {len(graph.outputs)} outputs; peers are "
                             "compared on models with one of each")
        if any(size is None for size in graph.inputs[0].shape):
            raise ModelError(f"{graph.name} leaves sizes of its input open, {graph.inputs[0].shape}; give a model that "
                             "fixes them")
        self.name, self.graph, self.folded, self.folder = graph.name, graph, folded(graph), folder
        shapes = graph.shapes()
        self.shape, self.output_shape = shapes[graph.inputs[0].name], shapes[graph.outputs[0]]
        self.macs = sum(macs_of(graph).values())
        self.trains = len(self.output_shape) == 1 and self.output_shape[0] > 1
        folder.mkdir(parents=True, exist_ok=True)
        for kind, which in (("plain", self.graph), ("folded", self.folded)):
            description, arrays = describe(which)
            atomic_write(folder / f"{kind}.json", [json.dumps(description, default=_number).encode()])
            np.savez(folder / f"{kind}.npz", **arrays)   # type: ignore[arg-type]

    def prepare(self, batch: int) -> None:
        """Write what depends on the batch, where it is not there yet: ONNX files, and one batch of samples and classes."""
        if (self.folder / f"data-{batch}.npz").exists():
            return
        from ..onnx_build import build_model
        for kind, graph in (("plain", self.graph), ("folded", self.folded)):
            model = build_model(graph)
            for tensor in (*model.graph.input, *model.graph.output):
                tensor.type.tensor_type.shape.dim[0].dim_value = batch
            atomic_write(self.folder / f"{kind}-{batch}.onnx", [model.SerializeToString(deterministic=True)])
        rng = np.random.default_rng(1)
        x = rng.standard_normal((batch, *self.shape)).astype(np.float32)
        np.savez(self.folder / f"data-{batch}.npz", x=x, classes=self.output_shape[0],
                 t=rng.integers(0, self.output_shape[0], batch))


def describe(graph: Graph) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """A graph as plain data: names, attributes and shapes (of one sample), and the weights as the nodes see them.

    Windows have "pads" (top, left, bottom, right) in numbers; a Linear's weight is (K, C). "head": whether the node's weights
    are those that train in a last-layer step.
    """
    shapes, head = graph.shapes(), graph.head()
    nodes, arrays = [], {}
    for number, node in enumerate(graph.nodes):
        weights = {}
        for role, ref in node.weights.items():
            array = ref.apply(graph.weights[ref.name])
            weights[role] = f"{number}.{role}"
            arrays[weights[role]] = array if role != "weight" or node.op != "Linear" or node.attrs["transposed"] else array.T
        nodes.append({"op": node.op, "name": f"node{number}", "inputs": list(node.inputs), "output": node.outputs[0],
                      "attrs": _attributes(node, shapes), "weights": weights,
                      "head": any(ref.name in head for ref in node.weights.values())})
    return {"name": graph.name, "input": graph.inputs[0].name, "output": graph.outputs[0], "nodes": nodes, "shapes": shapes,
            "lr": LR, "momentum": MOMENTUM}, arrays


def _attributes(node: Node, shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    """A node's attributes, padding resolved to numbers."""
    attrs = dict(node.attrs)
    if node.op in WINDOWS:
        attrs["dilation"] = attrs.get("dilation", (1, 1))
        size = shapes[node.inputs[0]]
        attrs["pads"] = resolve_pads(attrs["pads"], (size[1], size[2]), attrs["kernel"], attrs["stride"], attrs["dilation"])
    return attrs


def _number(value: Any) -> Any:
    """numpy's numbers and arrays for JSON."""
    return value.tolist()
