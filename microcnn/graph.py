"""The network as data: nodes, tensors, weights; built by the importer, by Python code, or read from a file.

A Graph speaks the model's own language: tensors have the model's axes (N, C, H, W for what comes from PyTorch, N, H, W, C
where a file says so), weights have ONNX's layout and names. How things lie in memory is decided by compile, not here.
"""
from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import CompileError, ModelError

if TYPE_CHECKING:
    from .net import Net


@dataclass(frozen=True)
class WeightRef:
    """A weight as one node sees it: the array of that name, passed through a chain of views.

    view: steps ("reshape", shape) or ("transpose", permutation), from the stored array to what the node uses. Every step
    can be undone, so a trained weight is written back in its original form.
    """

    name: str
    view: tuple[tuple[str, tuple[int, ...]], ...] = ()

    def apply(self, array: np.ndarray) -> np.ndarray:
        """The stored array as the node sees it."""
        for step, argument in self.view:
            array = array.reshape(argument) if step == "reshape" else array.transpose(argument)
        return array

    def undo(self, array: np.ndarray, stored_shape: tuple[int, ...]) -> np.ndarray:
        """What the node sees, back in the stored form of that shape."""
        shapes = [tuple(stored_shape)]
        for step, argument in self.view:
            last = shapes[-1]
            shapes.append(tuple(argument) if step == "reshape" else tuple(last[i] for i in argument))
        array = array.reshape(shapes[-1])
        for (step, argument), before in zip(reversed(self.view), reversed(shapes[:-1]), strict=True):
            array = array.reshape(before) if step == "reshape" else array.transpose(np.argsort(argument))
        return array


@dataclass
class Node:
    """One operation. `op` names a layer of microcnn.layers; attributes and weight roles are that layer's."""

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attrs: dict[str, Any] = field(default_factory=dict)
    weights: dict[str, WeightRef] = field(default_factory=dict)


@dataclass
class Input:
    """A graph input: the shape of one sample, None where the model leaves a size open."""

    name: str
    shape: tuple[int | None, ...]
    dtype: str = "float32"


@dataclass
class Source:
    """Where a graph came from, so that it can be given back as it came.

    format: "onnx". model: the original file's bytes; `without_weights` says whether the large initializers were taken out
    (they stand in Graph.weights). replaced: how each weight is written back, by weight name: ("initializer", field of its
    tensor), ("constant", node output, field), or, where an initializer takes the place of the node that computed it from
    constants, ("dequantize", node output) or ("folded", node output); "resized" comes last where a new head changed its size.
    """

    format: str
    model: bytes
    replaced: dict[str, tuple[str, ...]] = field(default_factory=dict)
    without_weights: bool = False


class Graph:
    """A network as data.

    inputs      list of Input
    outputs     names of the tensors that the model returns, in order
    nodes       list of Node in topological order
    weights     name -> array in ONNX's layout, trained or not, constants included
    source      the original model, None for graphs built in Python
    meta        what belongs to the model but not to the network: {"scale": .., "mean": .., "std": .., "labels": ..}
    """

    def __init__(self, inputs: list[Input], outputs: list[str], nodes: list[Node], weights: dict[str, np.ndarray],
                 source: Source | None = None, meta: dict[str, Any] | None = None, name: str = "graph"):
        self.inputs, self.outputs, self.nodes, self.weights = inputs, outputs, nodes, weights
        self.source, self.meta, self.name = source, dict(meta or {}), name
        self.check()

    def check(self) -> None:
        """Raises ModelError unless every tensor and weight that a node uses is made before it, once."""
        from . import layers
        made = {i.name for i in self.inputs}
        if len(made) != len(self.inputs):
            raise ModelError(f"two inputs have the same name: {[i.name for i in self.inputs]}")
        names = set()
        for node in self.nodes:
            if node.op not in layers.LAYERS:
                raise ModelError(f'node "{node.name}": unknown op {node.op!r}; expected one of {sorted(layers.LAYERS)}')
            if node.name in names:
                raise ModelError(f'two nodes are called "{node.name}"; give each its own name')
            names.add(node.name)
            for tensor in node.inputs:
                if tensor not in made:
                    raise ModelError(f'node "{node.name}" reads tensor "{tensor}", which nothing before it makes')
            for ref in node.weights.values():
                if ref.name not in self.weights:
                    raise ModelError(f'node "{node.name}" uses weight "{ref.name}", which the graph does not hold')
            for tensor in node.outputs:
                if tensor in made:
                    raise ModelError(f'tensor "{tensor}" is made twice, the second time by node "{node.name}"')
                made.add(tensor)
        for tensor in self.outputs:
            if tensor not in made:
                raise ModelError(f'output "{tensor}" is made by no node')
        if not self.outputs:
            raise ModelError("the graph has no output")

    def copy(self) -> Graph:
        """An independent copy; weights are copied too."""
        return Graph(copy.deepcopy(self.inputs), list(self.outputs), copy.deepcopy(self.nodes),
                     {name: array.copy() for name, array in self.weights.items()}, copy.deepcopy(self.source),
                     copy.deepcopy(self.meta), self.name)

    def shapes(self, input_shapes: dict[str, tuple[int, ...]] | None = None) -> dict[str, tuple[int, ...]]:
        """The shape of one sample (the model's axes, without the batch) of every tensor.

        Raises CompileError where an input's size is still open or input_shapes names no input, ModelError where a node's
        inputs do not fit it.
        """
        from . import layers
        if input_shapes is not None and not isinstance(input_shapes, dict):
            raise CompileError(f"input_shapes is {input_shapes!r}; expected a dict of shapes of one sample by input "
                               f'name, such as {{"{self.inputs[0].name}": (3, 32, 32)}}')
        given = dict(input_shapes or {})
        known = {i.name for i in self.inputs}
        for name in given:
            if name not in known:
                raise CompileError(f'input_shapes names "{name}", which is no input of the model; expected one of '
                                   f"{sorted(known)}")
        shapes: dict[str, tuple[int, ...]] = {}
        for entry in self.inputs:
            shape = entry.shape
            if entry.name in given:
                wanted = given[entry.name]
                whole = isinstance(wanted, (tuple, list)) and all(
                    isinstance(n, (int, np.integer)) and not isinstance(n, bool) for n in wanted)
                fits = whole and len(wanted) == len(shape) and all(
                    n > 0 and s in (None, n) for n, s in zip(wanted, shape, strict=True))
                if not fits:
                    raise CompileError(f'input_shapes["{entry.name}"] is {wanted!r}; the model says '
                                       f"{show_shape(shape)} for one sample (without the batch)")
                shape = tuple(wanted)
            if any(n is None for n in shape):
                example = tuple(n if n is not None else 32 for n in shape)
                raise CompileError(f'input "{entry.name}" has open sizes {show_shape(shape)}; give them as '
                                   f'input_shapes={{"{entry.name}": {example}}} (one sample, without the batch)')
            shapes[entry.name] = tuple(int(n) for n in shape if n is not None)
        for node in self.nodes:
            layer = layers.LAYERS[node.op]
            seen = {role: ref.apply(self.weights[ref.name]).shape for role, ref in node.weights.items()}
            results = layer.infer(node, [shapes[name] for name in node.inputs], seen)
            for name, result in zip(node.outputs, results, strict=True):
                shapes[name] = result
        return shapes

    def types(self) -> dict[str, str]:
        """The declared type of every tensor: an input's, or what its node's attribute dtype or layer says, or its operand's.

        Floating-point numbers are of the network's own dtype, whatever stands here; integers are held as such numbers.
        """
        from . import layers
        types = {entry.name: entry.dtype for entry in self.inputs}
        for node in self.nodes:
            counts = layers.LAYERS[node.op].integers
            found = node.attrs.get("dtype") or ("int64" if counts else types[node.inputs[0]])
            types.update(dict.fromkeys(node.outputs, found))
        return types

    def consumers(self) -> dict[str, list[Node]]:
        """Which nodes read each tensor."""
        readers: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in node.inputs:
                readers.setdefault(name, []).append(node)
        return readers

    def head(self) -> set[str]:
        """The weights of the last node with weights before each output."""
        makers = {name: node for node in self.nodes for name in node.outputs}
        found: set[str] = set()
        for output in self.outputs:
            frontier, seen = [output], set()
            while frontier:
                following: list[str] = []
                for name in frontier:
                    node = makers.get(name)
                    if node is None or node.name in seen:
                        continue
                    seen.add(node.name)
                    if node.weights:
                        found.update(ref.name for ref in node.weights.values())
                    else:
                        following.extend(node.inputs)
                frontier = following
        return found

    def with_head(self, count: int, seed: int = 0) -> Graph:
        """A copy whose last layer with weights has `count` outputs and new weights. Raises ModelError. See microcnn.heads."""
        from .heads import with_head
        return with_head(self, count, seed)

    def parameter_count(self) -> int:
        """How many numbers the weights hold, trained or not."""
        return sum(array.size for array in self.weights.values())

    def compile(self, batch: int = 1, train: Any = None, loss: Any = None, optimizer: Any = None, bn: str = "frozen",
                dtype: str = "float32", budget: int | str | None = None,
                input_shapes: dict[str, tuple[int, ...]] | None = None, manual: bool = False, seed: int = 0,
                augment: Any = None, winograd: bool | None = None, recompute: bool | None = None,
                micro_batch: int | None = None, samples: Any = None) -> Net:
        """Fix every size and plan the memory: a network that runs and trains. See microcnn.net.Net.

        batch        samples that the buffers hold; train_step and forward take up to that many
        train        None (inference only), "all", "head", "biases", "last:3" (the last three layers), a list of fnmatch
                     patterns of weight names and of these words, or {pattern or word: learning-rate factor}, of which the
                     last that matches counts and 0 freezes. "PATTERN[:8]" trains the first 8 output channels of each such
                     weight, "PATTERN[:25%]" the first quarter. See microcnn.partial
        loss         a name, a loss object, None, or a dict of these by output name
        optimizer    mc.SGD(...), mc.Adam(...)
        bn           "frozen" (running statistics, fixed), "batch" (batch statistics), "fold"
        dtype        "float32" or "float64"
        budget       the arena without the parameters may take at most this (bytes, or "256KB"): backward makes tensors again,
                     a batch goes through in parts, or not all weights train; net.choice says what and why
        samples      (x, t): what is measured on which weights contribute most, where a budget lets not all of them train
                     (microcnn.contribution says how); a few dozen are enough, without them it is noise
        input_shapes sizes of one sample for the inputs whose sizes the model leaves open
        manual       plan forward/backward/update now rather than at first use
        seed         of dropout and augment
        augment      mc.Augment(...): how the samples of training steps are changed at random
        winograd     whether 3 x 3 convolutions of many channels go by Winograd's algorithm, where it is quicker (in training
                     where there is room for it, too): it takes more memory, and its rounding errors are two or three times
                     as large; None: unless there is a budget, or prediction would need more memory than training
        recompute    whether backward makes again what one pass over memory makes (batch norm, activations), instead of keeping
                     it: less memory for a little more time, and the same numbers, but for rounding where less memory forbids
                     or allows layers to run together; None: where that takes no longer (large outputs of batch norm whose
                     input backward reads, too), and where a budget asks for it; False: no tensor that some layer wants whole
        micro_batch  so many samples go through the network at a time; a step adds up the gradients of its parts and then
                     updates the weights: what a whole batch gives, but for rounding; None: the batch, unless a budget asks

        Raises CompileError for arguments that do not fit the model.
        """
        from .budget import compiled
        return compiled(self, budget, samples, batch=batch, train=train, loss=loss, optimizer=optimizer, bn=bn, dtype=dtype,
                        input_shapes=input_shapes, manual=manual, seed=seed, augment=augment, winograd=winograd,
                        recompute=recompute, micro_batch=micro_batch)

    def save(self, path: Any) -> None:
        """Write the graph as a .mcnn file, atomically. Raises FileError."""
        from .checkpoint import save_graph
        save_graph(self, path)

    def __repr__(self) -> str:
        sizes = ", ".join(f"{i.name} {show_shape(i.shape)}" for i in self.inputs)
        return f"Graph({self.name}: {sizes} -> {', '.join(self.outputs)}; {len(self.nodes)} nodes, " \
               f"{self.parameter_count():,} parameters)"


def show_shape(shape: tuple[int | None, ...]) -> str:
    """A shape for messages, with ? for open sizes."""
    return "(" + ", ".join("?" if n is None else str(n) for n in shape) + ("," if len(shape) == 1 else "") + ")"


def size_of(shape: tuple[int, ...]) -> int:
    """How many numbers a shape holds."""
    return math.prod(shape)
