"""Products of matrices of which both are computed at run time, or of more constant matrices than one."""
from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import ModelError
from ..layout import Layout, merge_loops
from .base import Layer, Shape, expect_inputs
from .elementwise import against_batch, broadcast

if TYPE_CHECKING:
    from ..fusion import Step
    from ..graph import Node
    from ..memory import Buffer
    from ..plan import Schedule


def shapes_of(node: Node, shapes: list[Shape], weights: dict[str, Shape]) -> tuple[Shape, Shape]:
    """Both operands' shapes for one sample, in the product's order, with equally many axes. Raises ModelError."""
    if "other" not in weights:
        expect_inputs(node, shapes, 2)
        a, b = shapes
        if len(a) != len(b):
            raise ModelError(f'MatMul "{node.name}": shapes {a} and {b} of one sample have different numbers of axes, so the '
                             "batch of one would meet another axis")
    else:
        expect_inputs(node, shapes, 1)
        constant = against_batch(node, weights["other"], len(shapes[0]))
        a, b = (constant, shapes[0]) if node.attrs.get("first") else (shapes[0], constant)
    if min(len(a), len(b)) < 2 or a[-1] != b[-2]:
        raise ModelError(f'MatMul "{node.name}": {a} times {b}, of one sample, is no product of matrices; expected (..., M, C) '
                         "and (..., C, K)")
    rank = max(len(a), len(b))
    return (1,) * (rank - len(a)) + a, (1,) * (rank - len(b)) + b


@dataclass
class Operand:
    """A factor or the product: its buffer, how far it moves from sample to sample and along the loops, its numbers."""

    buffer: Buffer
    batch: int
    strides: Shape
    size: int

    def fields(self, letter: str) -> dict[str, int]:
        """Its fields in a row."""
        steps = (0,) * (3 - len(self.strides)) + self.strides
        return {f"{letter}_batch": self.batch, **{f"{letter}{i}": n for i, n in enumerate(steps)}, f"{letter}_size": self.size}


def leading_strides(shape: Shape) -> Shape:
    """How far the axes before the matrices move; 0 for those of size 1."""
    return tuple(0 if n == 1 else math.prod(shape[axis + 1:]) for axis, n in enumerate(shape[:-2]))


class MatMul(Layer):
    """ONNX MatMul of (..., M, C) and (..., C, K): two tensors, or one and the weight "other", which is the first with `first`.

    The axes before the matrices broadcast. A product with one constant matrix on the right is Linear.

    Raises   ModelError: matrices that do not fit, axes before them that take more than three loops
    Memory   backward: the second operand once more, transposed
    """

    op = "MatMul"
    trainable = ("other",)
    onnx = {"MatMul": {}}

    @staticmethod
    def infer(node: Node, shapes: list[Shape], weights: dict[str, Shape]) -> list[Shape]:
        a, b = shapes_of(node, shapes, weights)
        return [(*broadcast(node, a[:-2], b[:-2]), a[-2], b[-1])]

    @staticmethod
    def macs(node: Node, shapes: list[Shape], outputs: list[Shape], weights: dict[str, Shape]) -> int:
        a, _ = shapes_of(node, shapes, weights)
        return math.prod(outputs[0]) * a[-1]

    @staticmethod
    def forward(s: Schedule, step: Step) -> None:
        Product(s, step).rows()


class Product:
    """The rows of one MatMul, forward and backward."""

    def __init__(self, s: Schedule, step: Step):
        self.s, self.step, self.node = s, step, step.node
        node = step.node
        names: list[str] = [s.plain(s.value(name)).name for name in node.inputs]
        if "other" in node.weights:
            names.insert(0 if node.attrs.get("first") else 1, "")
        self.names = names
        weights = {role: ref.apply(s.graph.weights[ref.name]).shape for role, ref in node.weights.items()}
        a, b = shapes_of(node, [s.shapes[name] for name in node.inputs], weights)
        shape = s.shapes[node.outputs[0]]
        self.M, self.C, self.K = a[-2], a[-1], b[-1]
        self.loops, a_strides, b_strides, y_strides = merge_loops(
            shape[:-2], leading_strides(a), leading_strides(b), leading_strides(shape))
        if len(self.loops) > 3:
            raise ModelError(f'MatMul "{node.name}": {a} times {b} takes {len(self.loops)} loops over the matrices; 3 are '
                             "supported; reshape the operands to fewer axes")
        self.a = self._operand(names[0], a, a_strides)
        self.b = self._operand(names[1], b, b_strides)
        size = math.prod(shape)
        self.y = Operand(s.make(step.output, Layout.plain(shape)).buffer, size, y_strides, size)

    def _operand(self, name: str, shape: Shape, strides: Shape) -> Operand:
        s, size = self.s, math.prod(shape)
        if name:
            return Operand(s.value(name).buffer, size, strides, size)
        buffer = s.weight(self.node, "other")
        assert buffer is not None
        return Operand(buffer, 0, strides, size)

    def _row(self, a: Operand, b: Operand, y: Operand, sizes: Shape, steps: Shape, accumulate: int) -> None:
        dims = (1,) * (3 - len(self.loops)) + self.loops
        self.s.row("matmul.product", a=a.buffer, b=b.buffer, y=y.buffer, accumulate=accumulate,
                   **{f"d{i}": n for i, n in enumerate(dims)}, **dict(zip("MCK", sizes, strict=True)),
                   **dict(zip(("a_row", "a_col", "b_row"), steps, strict=True)),
                   **a.fields("a"), **b.fields("b"), **y.fields("y"))

    def _wanted(self, name: str) -> bool:
        return self.s.needs_gradient(name) if name else self.s.trains(self.node, "other")

    def rows(self) -> None:
        """Forward, and what backward does."""
        s, first, second = self.s, *self.names
        self._row(self.a, self.b, self.y, (self.M, self.C, self.K), (self.C, 1, self.K), 0)
        if not s.node_live(self.step):
            return
        if first and self._wanted(second):
            s.keep(s.value(first))
        if second and self._wanted(first):
            s.keep(s.value(second))
        s.backward(self._backward)

    def _backward(self) -> None:
        s, (first, second) = self.s, self.names
        dy = s.gradient(self.step.output)
        if dy is None:
            return
        M, C, K = self.M, self.C, self.K
        given = Operand(dy.buffer, self.y.batch, self.y.strides, self.y.size)
        if self._wanted(second):        # dB = A^T dY
            target, accumulate = self._target(second)
            db = Operand(target, self.b.batch, self.b.strides, self.b.size)
            self._row(self.a, given, db, (C, M, K), (1, C, K), accumulate)
        if self._wanted(first):         # dA = dY B^T
            turned = s.scratch((s.batch if self.b.batch else 1) * self.b.size * s.itemsize, "turned")
            s.row("matmul.transpose", x=self.b.buffer, y=turned, count=self.b.size // (C * K),
                  per_sample=int(self.b.batch > 0), C=C, K=K)
            target, accumulate = self._target(first)
            da = Operand(target, self.a.batch, self.a.strides, self.a.size)
            self._row(given, Operand(turned, self.b.batch, self.b.strides, self.b.size), da, (M, K, C), (K, 1, C), accumulate)
        if "other" in self.node.weights and self._wanted(""):       # it may change as soon as nothing reads it any more
            s.weight_done(self.node, "other")
        s.release(dy)

    def _target(self, name: str) -> tuple[Buffer, int]:
        """Where an operand's gradient goes."""
        return self.s.dx(name) if name else self.s.dweight(self.node, "other")
