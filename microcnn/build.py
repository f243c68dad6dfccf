"""Networks built in Python: layers with PyTorch's names and keywords, without the input sizes.

    graph = mc.Sequential([mc.Conv2d(16, 3, padding=1), mc.ReLU(), mc.Flatten(), mc.Linear(10)], input_shape=(1, 8, 8)).graph()

and with branches:

    b = mc.GraphBuilder()
    x = b.input("input", (16, 32, 32))
    y = b(mc.Conv2d(16, 3, padding=1), x)
    graph = b.graph(b(mc.Add(), x, y))

Weights are drawn as PyTorch draws them (uniform within 1 / sqrt(fan in)), from a seed.
"""
from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from . import layers
from .errors import ModelError
from .graph import Graph, Input, Node, WeightRef

Size = int | tuple[int, int]
Shape = tuple[int, ...]


def _pair(value: Any, owner: str, name: str, least: int = 1) -> tuple[int, int]:
    """An integer for both axes, or one for each. Raises ModelError."""
    both = (value, value) if isinstance(value, (int, np.integer)) and not isinstance(value, bool) else value
    if not isinstance(both, (tuple, list)) or len(both) != 2 or \
            any(isinstance(n, bool) or not isinstance(n, (int, np.integer)) or n < least for n in both):
        raise ModelError(f"{owner}: {name} is {value!r}; expected an integer of at least {least}, or two")
    return int(both[0]), int(both[1])


def _pads(value: Any, owner: str) -> str | tuple[int, int, int, int]:
    """Padding as the layers take it: an integer, (vertical, horizontal), (top, left, bottom, right), or "same"."""
    if value == "same":
        return "same_upper"
    if value == "valid":
        return 0, 0, 0, 0
    if isinstance(value, (tuple, list)) and len(value) == 4:
        first, last = _pair(value[:2], owner, "padding", 0), _pair(value[2:], owner, "padding", 0)
        return *first, *last
    both = _pair(value, owner, "padding", 0)
    return both[0], both[1], both[0], both[1]


def _count(value: Any, owner: str, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise ModelError(f"{owner}: {name} is {value!r}; expected an integer of at least 1")
    return int(value)


@dataclass
class LayerSpec:
    """The base of all layers. name: what its weights' names begin with; made from the kind and a number if None."""

    short: ClassVar[str] = ""

    def node(self, shape: Shape, rng: np.random.Generator) -> tuple[str, dict[str, Any], dict[str, np.ndarray]]:
        """(operation, attributes, weights by PyTorch's name) for an input of that shape."""
        raise NotImplementedError

    # PyTorch's names of weights, and the roles of the layers
    roles: ClassVar[dict[str, str]] = {"weight": "weight", "bias": "bias"}


def _channels(shape: Shape, owner: str) -> int:
    if len(shape) != 3:
        raise ModelError(f"{owner}: the input has shape {shape} for one sample; expected (channels, height, width)")
    return shape[0]


@dataclass
class Conv2d(LayerSpec):
    """torch.nn.Conv2d without in_channels. padding may also be (top, left, bottom, right) or "same"."""

    short: ClassVar[str] = "conv"
    out_channels: int
    kernel_size: Size
    stride: Size = 1
    padding: Any = 0
    dilation: Size = 1
    groups: int = 1
    bias: bool = True
    name: str | None = None

    def node(self, shape: Shape, rng: np.random.Generator) -> tuple[str, dict[str, Any], dict[str, np.ndarray]]:
        C, K, groups = _channels(shape, "Conv2d"), _count(self.out_channels, "Conv2d", "out_channels"), self.groups
        R, S = _pair(self.kernel_size, "Conv2d", "kernel_size")
        _count(groups, "Conv2d", "groups")
        if C % groups or K % groups:
            usable = [g for g in range(1, C + 1) if C % g == 0 and K % g == 0]
            raise ModelError(f"Conv2d: groups (={groups}) must divide the {C} input and {K} output channels; use one of "
                             f"{usable}")
        bound = 1 / math.sqrt(C // groups * R * S)
        weights = {"weight": _uniform(rng, bound, (K, C // groups, R, S))}
        if self.bias:
            weights["bias"] = _uniform(rng, bound, (K,))
        attrs = {"kernel": (R, S), "stride": _pair(self.stride, "Conv2d", "stride"), "pads": _pads(self.padding, "Conv2d"),
                 "dilation": _pair(self.dilation, "Conv2d", "dilation"), "groups": groups}
        return "Conv2d", attrs, weights


@dataclass
class Linear(LayerSpec):
    """torch.nn.Linear without in_features, over the last axis."""

    short: ClassVar[str] = "linear"
    out_features: int
    bias: bool = True
    name: str | None = None

    def node(self, shape: Shape, rng: np.random.Generator) -> tuple[str, dict[str, Any], dict[str, np.ndarray]]:
        K = _count(self.out_features, "Linear", "out_features")
        if len(shape) == 3 and shape[1:] != (1, 1):
            raise ModelError(f"Linear: the input has shape {shape} for one sample; put a Flatten before it")
        bound = 1 / math.sqrt(shape[-1])
        weights = {"weight": _uniform(rng, bound, (K, shape[-1]))}
        if self.bias:
            weights["bias"] = _uniform(rng, bound, (K,))
        return "Linear", {"transposed": True}, weights


@dataclass
class BatchNorm2d(LayerSpec):
    """torch.nn.BatchNorm2d without num_features; momentum in PyTorch's meaning (the new value's share)."""

    short: ClassVar[str] = "bn"
    roles: ClassVar[dict[str, str]] = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
    eps: float = 1e-5
    momentum: float = 0.1
    name: str | None = None

    def node(self, shape: Shape, rng: np.random.Generator) -> tuple[str, dict[str, Any], dict[str, np.ndarray]]:
        C = shape[0]
        weights = {"weight": np.ones(C, np.float32), "bias": np.zeros(C, np.float32),
                   "running_mean": np.zeros(C, np.float32), "running_var": np.ones(C, np.float32)}
        return "BatchNorm2d", {"eps": float(self.eps), "momentum": 1.0 - float(self.momentum)}, weights


@dataclass
class MaxPool2d(LayerSpec):
    """torch.nn.MaxPool2d; stride None is the kernel's size."""

    short: ClassVar[str] = "maxpool"
    kernel_size: Size
    stride: Size | None = None
    padding: Any = 0
    dilation: Size = 1
    ceil_mode: bool = False
    name: str | None = None

    def node(self, shape: Shape, rng: np.random.Generator) -> tuple[str, dict[str, Any], dict[str, np.ndarray]]:
        kernel = _pair(self.kernel_size, "MaxPool2d", "kernel_size")
        stride = kernel if self.stride is None else _pair(self.stride, "MaxPool2d", "stride")
        return "MaxPool2d", {"kernel": kernel, "stride": stride, "pads": _pads(self.padding, "MaxPool2d"),
                             "dilation": _pair(self.dilation, "MaxPool2d", "dilation"), "ceil_mode": bool(self.ceil_mode)}, {}


@dataclass
class AvgPool2d(LayerSpec):
    """torch.nn.AvgPool2d; stride None is the kernel's size."""

    short: ClassVar[str] = "avgpool"
    kernel_size: Size
    stride: Size | None = None
    padding: Any = 0
    ceil_mode: bool = False
    count_include_pad: bool = True
    name: str | None = None

    def node(self, shape: Shape, rng: np.random.Generator) -> tuple[str, dict[str, Any], dict[str, np.ndarray]]:
        kernel = _pair(self.kernel_size, "AvgPool2d", "kernel_size")
        stride = kernel if self.stride is None else _pair(self.stride, "AvgPool2d", "stride")
        return "AvgPool2d", {"kernel": kernel, "stride": stride, "pads": _pads(self.padding, "AvgPool2d"),
                             "ceil_mode": bool(self.ceil_mode), "count_include_pad": bool(self.count_include_pad)}, {}


@dataclass
class GlobalAvgPool2d(LayerSpec):
    """The mean over height and width: (C, H, W) -> (C, 1, 1), as torch.nn.AdaptiveAvgPool2d(1)."""

    short: ClassVar[str] = "gap"
    name: str | None = None

    def node(self, shape: Shape, rng: np.random.Generator) -> tuple[str, dict[str, Any], dict[str, np.ndarray]]:
        return "GlobalAvgPool2d", {}, {}


@dataclass
class ReLU(LayerSpec):
    """torch.nn.ReLU"""

    short: ClassVar[str] = "relu"
    name: str | None = None

    def node(self, shape: Shape, rng: np.random.Generator) -> tuple[str, dict[str, Any], dict[str, np.ndarray]]:
        return "Relu", {}, {}


@dataclass
class Clip(LayerSpec):
    """min(max(x, low), high); torch.nn.Hardtanh with other defaults."""

    short: ClassVar[str] = "clip"
    low: float = -math.inf
    high: float = math.inf
    name: str | None = None

    def node(self, shape: Shape, rng: np.random.Generator) -> tuple[str, dict[str, Any], dict[str, np.ndarray]]:
        return "Clip", {"low": float(self.low), "high": float(self.high)}, {}


@dataclass
class ReLU6(Clip):
    """torch.nn.ReLU6"""

    short: ClassVar[str] = "relu6"
    low: float = 0.0
    high: float = 6.0


@dataclass
class Sigmoid(LayerSpec):
    """torch.nn.Sigmoid"""

    short: ClassVar[str] = "sigmoid"
    name: str | None = None

    def node(self, shape: Shape, rng: np.random.Generator) -> tuple[str, dict[str, Any], dict[str, np.ndarray]]:
        return "Sigmoid", {}, {}


@dataclass
class Tanh(LayerSpec):
    """torch.nn.Tanh"""

    short: ClassVar[str] = "tanh"
    name: str | None = None

    def node(self, shape: Shape, rng: np.random.Generator) -> tuple[str, dict[str, Any], dict[str, np.ndarray]]:
        return "Tanh", {}, {}


@dataclass
class Softmax(LayerSpec):
    """torch.nn.Softmax; dim counts the batch as 0."""

    short: ClassVar[str] = "softmax"
    dim: int = 1
    name: str | None = None

    def node(self, shape: Shape, rng: np.random.Generator) -> tuple[str, dict[str, Any], dict[str, np.ndarray]]:
        return "Softmax", {"axis": int(self.dim), "flatten": False}, {}


@dataclass
class Flatten(LayerSpec):
    """torch.nn.Flatten: all axes of a sample in one."""

    short: ClassVar[str] = "flatten"
    name: str | None = None

    def node(self, shape: Shape, rng: np.random.Generator) -> tuple[str, dict[str, Any], dict[str, np.ndarray]]:
        return "Flatten", {"axis": 1}, {}


@dataclass
class Reshape(LayerSpec):
    """Another shape for one sample; one size may be -1."""

    short: ClassVar[str] = "reshape"
    shape: Sequence[int]
    name: str | None = None

    def node(self, shape: Shape, rng: np.random.Generator) -> tuple[str, dict[str, Any], dict[str, np.ndarray]]:
        return "Reshape", {"shape": tuple(int(n) for n in self.shape)}, {}


@dataclass
class Dropout(LayerSpec):
    """torch.nn.Dropout"""

    short: ClassVar[str] = "dropout"
    p: float = 0.5
    name: str | None = None

    def node(self, shape: Shape, rng: np.random.Generator) -> tuple[str, dict[str, Any], dict[str, np.ndarray]]:
        return "Dropout", {"p": float(self.p)}, {}


@dataclass
class Add(LayerSpec):
    """The sum of two tensors, with broadcasting."""

    short: ClassVar[str] = "add"
    name: str | None = None

    def node(self, shape: Shape, rng: np.random.Generator) -> tuple[str, dict[str, Any], dict[str, np.ndarray]]:
        return "Add", {}, {}


def _uniform(rng: np.random.Generator, bound: float, shape: Shape) -> np.ndarray:
    return rng.uniform(-bound, bound, shape).astype(np.float32)


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
        sizes = tuple(_count(n, f'input "{name}"', "each size") for n in shape)
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
