"""Which neighbouring nodes run as one step: batch norm folded in, a residual added, the result clamped, in one store;
quantizing and the way back."""
from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from .graph import Graph, Node
from .layers.conv2d import CONVOLUTIONS

Shapes = dict[str, tuple[int, ...]]


@dataclass
class Step:
    """A node, and what of its followers is done in the same kernel.

    source: the (first) tensor that the step reads. output: the tensor that it makes. bn: a batch norm folded into the
    weights. residual: a tensor added before the clamp to low..high. pool: the max pooling that alone reads the output.
    fused: the names of all nodes that run in this one's kernel.
    """

    node: Node
    source: str
    output: str
    bn: Node | None = None
    residual: str | None = None
    pool: Node | None = None
    low: float = -math.inf
    high: float = math.inf
    fused: list[str] = field(default_factory=list)

    @property
    def clamps(self) -> bool:
        return self.low > -math.inf or self.high < math.inf


TILED = (*CONVOLUTIONS, "Linear")
POOLED = ("MaxPool2d", "GlobalMaxPool2d", "AdaptiveMaxPool2d")
CLAMPED = (*TILED, "BatchNorm2d", "Add", "Sub", "Mul", "Div")


def is_clamp(node: Node) -> bool:
    """Whether a node is an activation that only limits its input."""
    return node.op in ("Relu", "Clip")


def bounds_of(clamp: Node) -> tuple[float, float]:
    return (0.0, math.inf) if clamp.op == "Relu" else (clamp.attrs["low"], clamp.attrs["high"])


def same_steps(node: Node, other: Node) -> bool:
    """Whether two nodes quantize alike."""
    return all(node.attrs[name] == other.attrs[name] for name in ("axis", "scale", "zero_point"))


def fuse(graph: Graph, shapes: Shapes, may_fold: Callable[[Node, Node], bool],
         wanted: set[str]) -> list[Step]:
    """The steps in an order in which every step's inputs are made before it.

    may_fold(convolution, batch norm) says whether that pair may become one in this program. wanted: tensors that are read
    from outside and so must be made.
    """
    consumers = graph.consumers()
    makers = {name: node for node in graph.nodes for name in node.outputs}
    position = {node.name: i for i, node in enumerate(graph.nodes)}
    taken: set[str] = set()

    def only_reader(tensor: str) -> Node | None:
        readers = consumers.get(tensor, [])
        return readers[0] if len(readers) == 1 and tensor not in wanted else None

    def chain_of(node: Node) -> Step:
        step = Step(node, node.inputs[0], node.outputs[0])
        before = makers.get(step.source)
        if before is not None and behind_pool(before):
            step.source = before.inputs[0]
            step.low, step.high = bounds_of(before)
            step.fused.append(before.name)
            return step
        follower = only_reader(step.output)
        if node.op == "QuantizeLinear" and follower and follower.op == "DequantizeLinear" and same_steps(node, follower):
            step.output = follower.outputs[0]
            return step
        if node.op in CONVOLUTIONS and follower and follower.op == "BatchNorm2d" and may_fold(node, follower):
            step.bn, step.output = follower, follower.outputs[0]
            follower = only_reader(step.output)
        if node.op in TILED and follower and follower.op == "Add" and len(follower.inputs) == 2 \
                and follower.name not in taken:
            other = follower.inputs[1] if follower.inputs[0] == step.output else follower.inputs[0]
            if other != step.output and shapes[other] == shapes[step.output] \
                    and made_before(other, node):
                step.residual, step.output = other, follower.outputs[0]
                taken.add(follower.name)
                follower = only_reader(step.output)
        if node.op in CLAMPED and follower and is_clamp(follower) and not behind_pool(follower):
            step.low, step.high = bounds_of(follower)
            step.output = follower.outputs[0]
            follower = only_reader(step.output)
        if node.op == "Conv2d" and follower and is_clamp(follower) and behind_pool(follower):
            follower = only_reader(follower.outputs[0])
        if node.op == "Conv2d" and follower and follower.op == "MaxPool2d":
            step.pool = follower
        return step

    def behind_pool(node: Node) -> bool:
        """Whether a clamp runs with the max pooling that alone reads it, on fewer numbers and with the same result."""
        reader = only_reader(node.outputs[0]) if is_clamp(node) else None
        return reader is not None and reader.op in POOLED

    def made_before(tensor: str, node: Node) -> bool:
        maker = makers.get(tensor)
        return maker is None or position[maker.name] < position[node.name]

    steps: list[Step] = []
    inside: set[str] = set()
    for node in graph.nodes:
        if node.outputs[0] in inside or behind_pool(node):
            continue
        step = chain_of(node)
        tensor = node.outputs[0]
        while tensor != step.output:            # every follower that the step contains is done
            reader = consumers[tensor][0]
            step.fused.append(reader.name)
            tensor = reader.outputs[0]
            inside.add(tensor)
        steps.append(step)
    return steps
