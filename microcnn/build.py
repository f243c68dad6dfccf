"""Networks built in Python, layer by layer.

    graph = mc.Sequential([mc.Conv2d(16, 3, padding=1), mc.ReLU(), mc.Flatten(), mc.Linear(10)], input_shape=(1, 8, 8)).graph()

and with branches:

    b = mc.GraphBuilder()
    x = b.input("input", (16, 32, 32))
    y = b(mc.Conv2d(16, 3, padding=1), x)
    graph = b.graph(b(mc.Add(), x, y))

The layers are those of microcnn.specs; their weights are drawn from a seed.
"""
from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from . import layers
from .errors import ModelError
from .graph import Graph, Input, Node, WeightRef
from .specs import LayerSpec, Shape, count_of


class GraphBuilder:
    """A graph with branches, node by node: call it with a layer and the names of the tensors that the layer reads."""

    def __init__(self, name: str = "graph", seed: int = 0):
        self._name, self._rng = name, np.random.default_rng(seed)
        self._inputs: list[Input] = []
        self._nodes: list[Node] = []
        self._weights: dict[str, np.ndarray] = {}
        self._shapes: dict[str, Shape] = {}
        self._counts: dict[str, int] = {}

    def input(self, name: str, shape: Iterable[int]) -> str:
        """Declare an input of that shape for one sample; returns its name. Raises ModelError."""
        sizes = tuple(count_of(n, f'input "{name}"', "each size") for n in shape)
        if name in self._shapes:
            raise ModelError(f'tensor "{name}" is made twice')
        self._inputs.append(Input(name, sizes))
        self._shapes[name] = sizes
        return name

    def __call__(self, layer: LayerSpec, *tensors: str) -> str:
        """Add a layer that reads these tensors; returns the name of what it makes. Raises ModelError."""
        if not isinstance(layer, LayerSpec):
            hint = f"; make one of it: mc.{layer.__name__}(...)" if isinstance(layer, type) else ""
            raise ModelError(f"{layer!r} is no layer of microcnn{hint}")
        for tensor in tensors:
            if tensor not in self._shapes:
                raise ModelError(f"{type(layer).__name__} reads tensor {tensor!r}, which nothing before it makes; it may read "
                                 f"{list(self._shapes)}")
        if not tensors:
            raise ModelError(f"{type(layer).__name__} reads nothing; give it a tensor")
        name = getattr(layer, "name", None)
        if name is None:
            self._counts[layer.short] = self._counts.get(layer.short, 0) + 1
            name = f"{layer.short}{self._counts[layer.short]}"
        op, attrs, arrays = layer.node(self._shapes[tensors[0]], self._rng)
        weights = {}
        for own, array in arrays.items():
            full = f"{name}.{own}"
            if full in self._weights:
                raise ModelError(f'two weights are called "{full}"; give each layer its own name')
            self._weights[full] = array
            weights[layer.roles[own]] = WeightRef(full)
        output = f"{name}.out"
        if output in self._shapes:
            raise ModelError(f'two layers are called "{name}"; give each its own name')
        node = Node(op, name, tensors, (output,), attrs, weights)
        shapes = [self._shapes[tensor] for tensor in tensors]
        seen = {role: self._weights[ref.name].shape for role, ref in weights.items()}
        self._shapes[output] = layers.LAYERS[op].infer(node, shapes, seen)[0]
        self._nodes.append(node)
        return output

    def shape(self, tensor: str) -> Shape:
        """The shape of a tensor for one sample."""
        return self._shapes[tensor]

    def graph(self, *outputs: str) -> Graph:
        """The finished graph. One output is called "output", several keep the names of their tensors."""
        if not outputs:
            raise ModelError("graph needs the tensors that are its outputs")
        for tensor in outputs:
            if tensor not in self._shapes:
                raise ModelError(f"output {tensor!r} is made by no layer; there are {list(self._shapes)}")
        renamed = {}
        if len(outputs) == 1 and "output" not in self._shapes and any(outputs[0] in n.outputs for n in self._nodes):
            renamed = {outputs[0]: "output"}
        nodes = [Node(n.op, n.name, tuple(renamed.get(t, t) for t in n.inputs), tuple(renamed.get(t, t) for t in n.outputs),
                      dict(n.attrs), dict(n.weights)) for n in self._nodes]
        return Graph([Input(i.name, i.shape) for i in self._inputs], [renamed.get(t, t) for t in outputs], nodes,
                     {name: array.copy() for name, array in self._weights.items()}, name=self._name)


class Sequential:
    """Layers one after the other, as torch.nn.Sequential.

    layers       layers of this module
    input_shape  of one sample, such as (3, 32, 32)
    seed         of the weights
    Raises ModelError where a layer does not fit what comes before it.
    """

    def __init__(self, layers: Sequence[LayerSpec], input_shape: Iterable[int], seed: int = 0, name: str = "sequential"):
        self.layers, self.input_shape, self.seed, self.name = list(layers), tuple(input_shape), seed, name

    def graph(self) -> Graph:
        """The graph, with freshly drawn weights: the same ones for the same seed."""
        if not self.layers:
            raise ModelError("Sequential needs at least one layer")
        builder = GraphBuilder(self.name, self.seed)
        tensor = builder.input("input", self.input_shape)
        for layer in self.layers:
            tensor = builder(layer, tensor)
        return builder.graph(tensor)
