"""Functions of two tensors, number by number, with broadcasting: sums, products, powers, the larger, the smaller."""
from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from ..errors import ModelError
from ..layout import Layout, merge_loops, pad5
from .base import Layer, Shape, expect_inputs

if TYPE_CHECKING:
    from ..fusion import Step
    from ..graph import Node
    from ..memory import Buffer
    from ..parts import Gradient, Value
    from ..plan import Schedule

# As kernels/elementwise.py numbers them.
ADD, SUB, MUL, DIV, MAX, MIN, POW, MOD, SQUARE, CUBE, ROOT, INVERSE_ROOT, INVERSE = range(13)
WHERE, WHERE_NOT, FLOOR_MOD = 13, 14, 15
# Powers that need no call, by exponent.
POWERS = {2.0: SQUARE, 3.0: CUBE, 0.5: ROOT, -0.5: INVERSE_ROOT, -1.0: INVERSE}
# Which operands the gradient of the first and of the second needs: bit 0 the first, bit 1 the second.
NEEDS = {ADD: (0, 0), SUB: (0, 0), MUL: (2, 1), DIV: (2, 3), MAX: (3, 3), MIN: (3, 3), POW: (3, 3), MOD: (0, 3),
         FLOOR_MOD: (0, 3), **dict.fromkeys(POWERS.values(), (1, 0))}
# Those whose gradient is dy itself.
PASSES = {(ADD, 0), (ADD, 1), (SUB, 0), (MOD, 0), (FLOOR_MOD, 0)}


def against_batch(node: Node, weight: Shape, rank: int) -> Shape:
    """A weight's shape as one sample sees it. Raises ModelError where it has an axis of its own for the batch."""
    if len(weight) > rank + 1 or (len(weight) == rank + 1 and weight[0] != 1):
        raise ModelError(f'{node.op} "{node.name}": the constant has shape {weight}, which does not broadcast against a batch '
                         f"of tensors with {rank} axes")
    return weight[1:] if len(weight) == rank + 1 else weight


def broadcast(node: Node, a: Shape, b: Shape) -> Shape:
    """The common shape of two samples, aligned at the last axis. Raises ModelError where they do not fit."""
    rank = max(len(a), len(b))
    result = []
    for m, n in zip((1,) * (rank - len(a)) + a, (1,) * (rank - len(b)) + b, strict=True):
        if m != n and 1 not in (m, n):
            raise ModelError(f'{node.op} "{node.name}": shapes {a} and {b} of one sample do not broadcast')
        result.append(max(m, n) if 0 not in (m, n) else 0)
    return tuple(result)


def expanded_strides(layout: Layout, target: Layout) -> tuple[Shape, Shape] | None:
    """Sizes and strides to read a tensor in target's order, stride 0 along the axes that broadcast."""
    shape = target.shape
    stored = ((),) * (len(shape) - len(layout.axes)) + layout.axes
    still = [axis for axis, size in enumerate(shape) if math.prod(layout.dims[i] for i in stored[axis]) != size]
    # the axes that stand still, put in front: their strides are multiples of the whole tensor's size
    axes = tuple((still.index(axis),) if axis in still else tuple(len(still) + i for i in own)
                 for axis, own in enumerate(stored))
    whole = Layout((*(shape[axis] for axis in still), *layout.dims), axes)
    found = whole.strides_for(target)
    if found is None:
        return None
    return found[0], tuple(0 if stride >= max(1, layout.size) else stride for stride in found[1])


@dataclass
class Operand:
    """What a function reads: a tensor's name, or the role of a weight, or neither for a number that never changes.

    strides: along the loops of the function. batch: the stride from sample to sample, 0 for what all of them share.
    """

    name: str
    role: str
    layout: Layout
    buffer: Buffer
    strides: Shape = ()

    @property
    def batch(self) -> int:
        return self.layout.size if self.name else 0


class Elementwise(Layer):
    """A function of two tensors, or of one and a constant: the weight "other", or the attribute scalar, a number.

    Broadcasting is ONNX's. Attribute first: the constant is the first operand (it is the second without).

    Raises   ModelError: shapes that do not broadcast
    Memory   nothing beside the output, which takes an operand's place where that is free
    """

    kind: ClassVar[int]

    @staticmethod
    def infer(node: Node, shapes: list[Shape], weights: dict[str, Shape]) -> list[Shape]:
        if "other" in weights or node.attrs.get("scalar") is not None:
            expect_inputs(node, shapes, 1)
            return [broadcast(node, shapes[0], against_batch(node, weights.get("other", ()), len(shapes[0])))]
        expect_inputs(node, shapes, 2)
        if len(shapes[0]) != len(shapes[1]):
            raise ModelError(f'{node.op} "{node.name}": shapes {shapes[0]} and {shapes[1]} of one sample have different '
                             "numbers of axes, so the batch of one would meet another axis")
        return [broadcast(node, shapes[0], shapes[1])]

    @classmethod
    def forward(cls, s: Schedule, step: Step) -> None:
        node = step.node
        kind = cls.kind
        if kind == POW and not node.attrs.get("first"):
            kind = POWERS.get(node.attrs.get("scalar"), POW)     # type: ignore[arg-type]
        if kind == MOD and node.attrs.get("floor"):
            kind = FLOOR_MOD
        Function(s, step, kind).rows()


# (operation, kind, the roles that may train, what it computes)
_FUNCTIONS = (
    ("Add", ADD, ("other",), "a + b"),
    ("Sub", SUB, ("other",), "a - b"),
    ("Mul", MUL, ("other",), "a * b"),
    ("Div", DIV, ("other",), "a / b"),
    ("Pow", POW, ("other",), "a ** b. The exponents 2, 3, 0.5, -0.5 and -1 as scalar are made of products and roots. Gradients "
     "are PyTorch's: an exponent of 0 gives a none, a base of 0 the exponent none if that is not negative"),
    ("Max", MAX, (), "the larger number, NaN if one is NaN. Equal numbers get half the gradient each"),
    ("Min", MIN, (), "the smaller number, NaN if one is NaN. Equal numbers get half the gradient each"),
    ("Mod", MOD, (), "the remainder of a / b with the sign of a, or (attribute floor) with that of b"),
)
for _op, _kind, _roles, _text in _FUNCTIONS:
    type(_op, (Elementwise,), {"__doc__": f"ONNX {_op}: {_text}.", "__module__": __name__, "op": _op, "kind": _kind,
                               "trainable": _roles, "onnx": {_op: {}}})


class Function:
    """The rows of one function, forward and backward."""

    def __init__(self, s: Schedule, step: Step, kind: int):
        self.s, self.step, self.node, self.kind = s, step, step.node, kind
        self.shape = s.shapes[self.node.outputs[0]]
        self.operands = self._operands()
        self.layout = self._layout()
        self.sizes = self._loops()

    def _operands(self) -> list[Operand]:
        """Both, in the function's order; twice the tensor where there is but one."""
        s, node = self.s, self.node
        tensors = [self._tensor(s.value(name)) for name in node.inputs]
        if self.kind in POWERS.values():
            return [tensors[0], replace(tensors[0])]
        constant = self._constant()
        if constant is None:
            return tensors
        return [constant, tensors[0]] if node.attrs.get("first") else [tensors[0], constant]

    @staticmethod
    def _tensor(value: Value) -> Operand:
        return Operand(value.name, "", value.layout, value.buffer)

    def _weight(self, role: str) -> Operand:
        s, node = self.s, self.node
        ref = node.weights[role]
        stored = against_batch(node, ref.apply(s.graph.weights[ref.name]).shape, len(s.shapes[node.inputs[0]]))
        buffer = s.weight(node, role)
        assert buffer is not None
        return Operand("", role, Layout.plain(stored), buffer)

    def _constant(self) -> Operand | None:
        """The constant operand, if there is one."""
        s, node = self.s, self.node
        if "other" in node.weights:
            return self._weight("other")
        if node.attrs.get("scalar") is None:
            return None
        number = np.full(1, node.attrs["scalar"], np.float32 if s.itemsize == 4 else np.float64)
        return Operand("", "", Layout.plain(()), s.store.constant(f"{node.name}.scalar", number))

    def _layout(self) -> Layout:
        """How the result lies: as the first tensor of its shape. Tensors that do not fit that are moved."""
        first = next((one.layout for one in self.operands if one.name), None)
        for index, one in enumerate(self.operands):
            if one.name and first is not None and one.layout.shape == first.shape and not one.layout.same_order(first):
                self.operands[index] = self._tensor(self.s.moved(self.s.value(one.name), first))
        layout = next((one.layout for one in self.operands if one.layout.shape == self.shape), Layout.plain(self.shape))
        strides = [expanded_strides(one.layout, layout) for one in self.operands]
        if all(one is not None and strides[0] is not None and one[0] == strides[0][0] for one in strides):
            return layout
        for index, one in enumerate(self.operands):
            if one.name:
                moved = self._tensor(self.s.plain(self.s.value(one.name)))
                # as Layout.plain, for one that lies plainly may still be cut into other dimensions
                self.operands[index] = replace(moved, layout=Layout.plain(moved.layout.shape))
        return Layout.plain(self.shape)

    def _loops(self) -> Shape:
        """The sizes of the loops over one sample; the operands get their strides."""
        found = [expanded_strides(one.layout, self.layout) for one in self.operands]
        sizes, *loops = merge_loops(found[0][0], *(strides for _, strides in found))     # type: ignore[index, misc]
        if len(sizes) > 5:
            raise ModelError(f'{self.node.op} "{self.node.name}": this broadcast takes {len(sizes)} loops; 5 are supported')
        for one, strides in zip(self.operands, loops, strict=True):
            one.strides = strides
        return sizes

    def _same_shape(self) -> bool:
        """Whether neither operand repeats, and both lie as the result does."""
        return all(self._whole(one) for one in self.operands)

    def _whole(self, one: Operand) -> bool:
        """Whether an operand has every number of the result, in its order."""
        return bool(one.name) and one.layout.shape == self.shape and one.layout.same_order(self.layout)

    def _wants(self, one: Operand) -> bool:
        """Whether an operand's gradient is wanted."""
        if one.name:
            return self.s.needs_gradient(one.name)
        return bool(one.role) and self.s.trains(self.node, one.role)

    def _gradients(self) -> list[int]:
        """The operands, by number, whose gradients are wanted."""
        if not self.s.node_live(self.step):
            return []
        own = self.operands[:1] if self.kind in POWERS.values() else self.operands
        return [index for index, one in enumerate(own) if self._wants(one)]

    def rows(self) -> None:
        """Forward, and what backward does."""
        s, step, a, b = self.s, self.step, *self.operands
        gradients = self._gradients()
        needed = 0
        for index in gradients:
            needed |= NEEDS[self.kind][index]
        s.keep(*(s.value(one.name) for bit, one in enumerate(self.operands) if one.name and needed >> bit & 1))
        free = (one.buffer for one in self.operands if self._whole(one) and s.free_to_overwrite(s.value(one.name)))
        y = s.make(step.output, self.layout, next(free, None))
        fields = {"a": a.buffer, "b": b.buffer, "y": y.buffer, "kind": self.kind, "low": step.low, "high": step.high}
        if self._same_shape():
            s.row("elementwise.combine", size=y.numbers, **fields)
        else:
            s.row("elementwise.combine_broadcast", **fields, **self._strided())
        if not s.node_live(step):
            return
        if step.clamps:
            s.keep(y)
        s.backward(lambda: self._backward(y, gradients))

    def _strided(self) -> dict[str, int]:
        """The fields of the loops of both operands."""
        a, b = self.operands
        return {**self._fields("a", a), **self._fields("b", b)}

    def _fields(self, letter: str, one: Operand) -> dict[str, int]:
        """The sizes of the loops, and one operand's strides along them."""
        return {**pad5(self.sizes, one.strides, letter), f"{letter}_batch": one.batch}

    def _backward(self, y: Value, gradients: list[int]) -> None:
        s = self.s
        dy = s.through_clamp(self.step, y)
        if dy is None:
            return
        for index in gradients:
            one = self.operands[index]
            if not self._whole(one):
                self._reduce(index, dy.buffer)
            elif (self.kind, index) in PASSES:
                s.give(one.name, dy)
            else:
                target, accumulate = s.dx_over(one.name, dy) if index == gradients[-1] else s.dx(one.name)
                s.row("elementwise_gradient.gradient", dy=dy.buffer, dx=target, accumulate=accumulate, **self._given(index))
        self._done(dy, gradients)

    def _done(self, dy: Gradient, gradients: list[int]) -> None:
        """All gradients are made: a weight may be updated only now, for that of the other operand may need it as it was."""
        for index in gradients:
            if not self.operands[index].name:
                self.s.weight_done(self.node, self.operands[index].role)
        self.s.release(dy)

    def _reduce(self, index: int, dy: Buffer) -> None:
        """The gradient of an operand that repeats, or lies otherwise than the result."""
        s, one = self.s, self.operands[index]
        target, accumulate = s.dx(one.name) if one.name else s.dweight(self.node, one.role)
        steps = {name: n for name, n in pad5(self.sizes, one.strides).items() if name.startswith("s")}
        s.row("elementwise_gradient.reduce_broadcast", dy=dy, dx=target, batch_stride=one.batch, size=one.layout.size,
              accumulate=accumulate, **steps, **self._given(index))

    def _given(self, index: int) -> dict:
        """The fields of a gradient's function: the operands that it needs, None for the others."""
        needs = NEEDS[self.kind][index]
        a, b = (one.buffer if needs >> bit & 1 else None for bit, one in enumerate(self.operands))
        return {"a": a, "b": b, "kind": self.kind, "second": index, **self._strided()}
