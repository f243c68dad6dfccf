"""A model as plain data, for the peers that build their own twin of it."""
from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np


class NoTwin(Exception):
    """A model that this peer has no form for."""


@dataclass
class Node:
    """An operation: attributes as in the description, weights as arrays by role; head: trained in a last-layer step."""

    op: str
    name: str
    inputs: list[str]
    output: str
    attrs: dict[str, Any]
    weights: dict[str, np.ndarray]
    head: bool


@dataclass
class Twin:
    """A model: nodes in the order in which they run, shapes of one sample by tensor, what SGD is given."""

    name: str
    input: str
    output: str
    nodes: list[Node]
    shapes: dict[str, tuple[int, ...]]
    lr: float
    momentum: float

    @classmethod
    def load(cls, stem: Path) -> Twin:
        """What recipe.py wrote as stem.json and stem.npz."""
        data = json.loads(stem.with_suffix(".json").read_text(encoding="utf-8"))
        with np.load(stem.with_suffix(".npz")) as arrays:
            nodes = [Node(**{**node, "weights": {role: np.ascontiguousarray(arrays[name])
                                                 for role, name in node["weights"].items()}}) for node in data["nodes"]]
        shapes = {name: tuple(shape) for name, shape in data["shapes"].items()}
        return cls(data["name"], data["input"], data["output"], nodes, shapes, data["lr"], data["momentum"])

    def trained(self, last: bool) -> list[tuple[str, str]]:
        """(node, role) of the weights that train."""
        return [(node.name, role) for node in self.nodes if node.head or not last for role in node.weights
                if role not in ("mean", "var")]

    def channels_last(self) -> Twin:
        """The same model for images (N, H, W, C): convolution weights (R, S, C / G, K), linear ones (C, K).

        Raises NoTwin where a flattened image goes anywhere but into a linear layer.
        """
        makers = {node.output: node for node in self.nodes}
        nodes = []
        for node in self.nodes:
            weights = dict(node.weights)
            if node.op == "Conv2d":
                weights["weight"] = weights["weight"].transpose(2, 3, 1, 0)
            if node.op == "Linear":
                weights["weight"] = self._rows(node, makers).T
            elif any(self._mixes(makers.get(name)) for name in node.inputs) or self._mixes(makers.get(self.output)):
                raise NoTwin(f"{node.op} reads a flattened image")
            nodes.append(replace(node, weights={role: np.ascontiguousarray(array) for role, array in weights.items()}))
        return replace(self, nodes=nodes)

    def _mixes(self, node: Node | None) -> bool:
        """Whether a node makes one axis of channels and pixels."""
        return node is not None and node.op == "Flatten" and math.prod(self.shapes[node.inputs[0]][1:]) > 1

    def _rows(self, node: Node, makers: dict[str, Node]) -> np.ndarray:
        """A linear layer's weight (K, C) with its features in the order in which an image (H, W, C) has them."""
        weight, before = node.weights["weight"], makers.get(node.inputs[0])
        if before is None or not self._mixes(before):
            return weight
        image = self.shapes[before.inputs[0]]
        return weight.reshape(-1, *image).transpose(0, 2, 3, 1).reshape(weight.shape)


def refuse(node: Node, peer: str) -> NoTwin:
    """The error for an operation that a peer's runner has no form for."""
    return NoTwin(f"{peer}'s runner has no form for {node.op}")


def is_depthwise(node: Node) -> bool:
    """Whether each output channel of a convolution, channels last, sees one input channel of several."""
    return node.attrs["groups"] > 1 and node.weights["weight"].shape[2] == 1
