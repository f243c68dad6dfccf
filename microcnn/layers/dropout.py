"""Dropout."""
from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import ModelError
from .base import Layer, Shape, expect_inputs

if TYPE_CHECKING:
    from ..fusion import Step
    from ..graph import Node
    from ..plan import Schedule


class Dropout(Layer):
    """Inverted dropout in training, nothing otherwise. Attribute p. Seeded: the same seed and step give the same mask.

    Raises   ModelError: p outside 0..1
    Memory   nothing: the mask is made again in backward
    """

    op = "Dropout"
    onnx = {"Dropout": {}}

    @staticmethod
    def infer(node: Node, shapes: list[Shape], weights: dict[str, Shape]) -> list[Shape]:
        expect_inputs(node, shapes, 1)
        if not 0 <= node.attrs["p"] <= 1:
            raise ModelError(f'Dropout "{node.name}": p (={node.attrs["p"]}) must lie between 0 and 1')
        return [shapes[0]]

    @staticmethod
    def varies(node: Node, bn: str) -> tuple[str, str] | None:
        return ("drops other numbers in every step", "Set its p to 0, or take it out") if node.attrs["p"] else None

    @staticmethod
    def forward(s: Schedule, step: Step) -> None:
        node = step.node
        x = s.value(node.inputs[0])
        if not s.live or node.attrs["p"] == 0:
            s.alias(step.output, x, x.layout)
            if s.needs_gradient(x.name):
                s.backward(lambda: s.pass_on(step.output, x.name))
            return
        fields = {"size": x.numbers, "p": float(node.attrs["p"]), "layer": s.graph.nodes.index(node)}
        y = s.make(step.output, x.layout, x.buffer if s.free_to_overwrite(x) else None)
        s.row("dropout.forward", x=x.buffer, y=y.buffer, **fields)

        def backward() -> None:
            dy = s.gradient(step.output)
            if dy is not None:
                target, accumulate = s.dx_over(x.name, dy)
                s.row("dropout.backward", dy=dy.buffer, dx=target, accumulate=accumulate, **fields)
                s.release(dy)
        if s.needs_gradient(x.name):
            s.backward(backward)
