"""Where: a selection between two tensors, or a tensor and a constant, by a mask that never changes."""
from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import ModelError
from ..layout import pad5
from .base import Layer, Shape, expect_inputs
from .elementwise import WHERE, WHERE_NOT, Function, Operand, against_batch, broadcast

if TYPE_CHECKING:
    from ..fusion import Step
    from ..graph import Node
    from ..memory import Buffer
    from ..parts import Value
    from ..plan import Schedule


class Where(Layer):
    """ONNX Where with a constant condition, the weight "condition", which is not trained; broadcasting is ONNX's.

    Two inputs, or one and the weight "other"; attribute first: other is what the condition selects (it is the rest without).
    Raises   ModelError: shapes that do not broadcast
    Memory   nothing beside the output, which takes an operand's place where that is free
    """

    op = "Where"
    trainable = ("other",)
    onnx = {"Where": {}}

    @staticmethod
    def infer(node: Node, shapes: list[Shape], weights: dict[str, Shape]) -> list[Shape]:
        expect_inputs(node, shapes, 1 if "other" in weights else 2)
        rank = len(shapes[0])
        if len(shapes[-1]) != rank:
            raise ModelError(f'Where "{node.name}": shapes {shapes[0]} and {shapes[1]} of one sample have different numbers of '
                             "axes, so the batch of one would meet another axis")
        constants = [against_batch(node, weights[role], rank) for role in ("condition", "other") if role in weights]
        shape = shapes[0]
        for other in (*shapes[1:], *constants):
            shape = broadcast(node, shape, other)
        return [shape]

    @staticmethod
    def forward(s: Schedule, step: Step) -> None:
        Selection(s, step, WHERE).rows()


class Selection(Function):
    """The rows of a Where: its operands are the mask, what it selects, and the rest."""

    def _operands(self) -> list[Operand]:
        tensors = [self._tensor(self.s.value(name)) for name in self.node.inputs]
        if "other" in self.node.weights:
            tensors.insert(0 if self.node.attrs.get("first") else 1, self._weight("other"))
        return [self._weight("condition"), *tensors]

    def rows(self) -> None:
        """Forward, and what backward does."""
        s, (mask, a, b) = self.s, self.operands
        gradients = self._gradients()
        free = (one.buffer for one in self.operands if self._whole(one) and s.free_to_overwrite(s.value(one.name)))
        y = s.make(self.step.output, self.layout, next(free, None))
        loops = {**self._fields("mask", mask), **self._fields("a", a), **self._fields("b", b)}
        s.row("where.select", mask=mask.buffer, a=a.buffer, b=b.buffer, y=y.buffer, **loops)
        if s.node_live(self.step):
            s.backward(lambda: self._backward(y, gradients))

    def _backward(self, y: Value, gradients: list[int]) -> None:
        s = self.s
        dy = s.gradient(self.step.output)
        if dy is None:
            return
        for index in gradients:
            one = self.operands[index]
            if self._whole(one):
                target, accumulate = s.dx_over(one.name, dy) if index == gradients[-1] else s.dx(one.name)
                s.row("elementwise_gradient.gradient", dy=dy.buffer, dx=target, accumulate=accumulate, **self._given(index))
            else:
                self._reduce(index, dy.buffer)
        self._done(dy, gradients)

    def _given(self, index: int) -> dict[str, Buffer | int | None]:
        """The fields of a gradient's function: the mask stands in a's place, nothing in b's."""
        mask = self.operands[0]
        return {**self._fields("a", mask), **pad5(self.sizes, (0,) * len(self.sizes), "b"), "b_batch": 0, "a": mask.buffer,
                "b": None, "kind": WHERE if index == 1 else WHERE_NOT, "second": 0}
