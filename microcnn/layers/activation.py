"""Relu, Clip, Sigmoid and Tanh. The clamps among them usually run inside the step before."""
from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ..errors import ModelError
from .base import Layer, Shape, expect_inputs

if TYPE_CHECKING:
    from ..fusion import Step
    from ..graph import Node
    from ..plan import Schedule

# As kernels/activation.py numbers them.
CLAMP, SIGMOID, TANH = range(3)


def activate(s: Schedule, step: Step, kind: int, low: float = 0.0, high: float = 0.0) -> None:
    """The rows of an activation whose derivative follows from its output, in place where its input is free.

    kind: CLAMP (min(max(x, low), high)), SIGMOID or TANH.
    """
    x = s.value(step.node.inputs[0])
    y = s.make(step.output, x.layout, x.buffer if s.free_to_overwrite(x) else None)
    s.row("activation.forward", x=x.buffer, y=y.buffer, size=x.numbers, kind=kind, low=low, high=high)
    if not s.needs_gradient(x.name):
        return
    s.keep(y)

    def backward() -> None:
        dy = s.gradient(step.output)
        if dy is not None:
            target, accumulate = s.dx_over(x.name, dy)
            s.row("activation.backward", y=y.buffer, dy=dy.buffer, dx=target, size=x.numbers, kind=kind, low=low, high=high,
                  accumulate=accumulate)
            s.release(dy)
    s.backward(backward)


class Activation(Layer):
    """An elementwise function of one tensor.

    Memory   nothing: the derivative needs only the output
    """

    @staticmethod
    def infer(node: Node, shapes: list[Shape], weights: dict[str, Shape]) -> list[Shape]:
        expect_inputs(node, shapes, 1)
        return [shapes[0]]


class Relu(Activation):
    """ONNX Relu: max(x, 0)."""

    op = "Relu"
    onnx = {"Relu": {"versions": (6, 13, 14)}}

    @staticmethod
    def forward(s: Schedule, step: Step) -> None:
        activate(s, step, CLAMP, 0.0, math.inf)


class Clip(Activation):
    """ONNX Clip: min(max(x, low), high); attributes low, high. ReLU6 is 0..6.

    Raises   ModelError: low above high
    """

    op = "Clip"
    onnx = {"Clip": {}}

    @staticmethod
    def infer(node: Node, shapes: list[Shape], weights: dict[str, Shape]) -> list[Shape]:
        expect_inputs(node, shapes, 1)
        if not node.attrs["low"] <= node.attrs["high"]:
            raise ModelError(f'Clip "{node.name}": low (={node.attrs["low"]}) must not be above high (={node.attrs["high"]})')
        return [shapes[0]]

    @staticmethod
    def forward(s: Schedule, step: Step) -> None:
        activate(s, step, CLAMP, float(step.node.attrs["low"]), float(step.node.attrs["high"]))


class Sigmoid(Activation):
    """ONNX Sigmoid: 1 / (1 + exp(-x))."""

    op = "Sigmoid"
    onnx = {"Sigmoid": {"versions": (6, 13)}}

    @staticmethod
    def forward(s: Schedule, step: Step) -> None:
        activate(s, step, SIGMOID)


class Tanh(Activation):
    """ONNX Tanh: the hyperbolic tangent."""

    op = "Tanh"
    onnx = {"Tanh": {"versions": (6, 13)}}

    @staticmethod
    def forward(s: Schedule, step: Step) -> None:
        activate(s, step, TANH)
