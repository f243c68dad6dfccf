"""Reductions: one number for all numbers along some axes."""
from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from ..errors import ModelError
from ..layout import Layout
from .base import Layer, Shape, expect_inputs
from .movement import own_axis
from .softmax import groups

if TYPE_CHECKING:
    from ..fusion import Step
    from ..graph import Node
    from ..parts import Value
    from ..plan import Schedule

# As kernels/reduction.py numbers them.
SUM, MAX, MIN, PRODUCT, MAGNITUDES, SQUARES, LENGTH, LOG_SUM, LOG_SUM_EXP = range(9)


def kept_shape(shape: Shape, axes: list[int], keepdims: bool) -> Shape:
    """A shape with 1 for each of the axes, or without them."""
    return tuple(1 if axis in axes else n for axis, n in enumerate(shape) if keepdims or axis not in axes)


def grouped(s: Schedule, x: Value, axes: list[int]) -> tuple[Value, int, int]:
    """The tensor, moved if need be, and the numbers of a group and the distance between them."""
    if all(x.layout.shape[axis] == 1 for axis in axes):
        return x, 1, x.numbers
    found = groups(x.layout, axes)
    if found is None:
        # the axes that stay first, in their own order, then those that go
        rank = len(x.layout.shape)
        order = [axis for axis in range(rank) if axis not in axes] + axes
        dims = tuple(x.layout.shape[axis] for axis in order)
        x = s.moved(x, Layout(dims, tuple((order.index(axis),) for axis in range(rank))))
        found = groups(x.layout, axes)
        assert found is not None
    return x, *found


def reduced(layout: Layout, axes: list[int], keepdims: bool) -> Layout:
    """How the results lie, the axes being gone or of size 1."""
    gone = {i for axis in axes for i in layout.axes[axis]}
    kept = [i for i in range(len(layout.dims)) if i not in gone]
    dims = tuple(layout.dims[i] for i in kept)
    own = [(() if axis in axes else tuple(kept.index(i) for i in one)) for axis, one in enumerate(layout.axes)]
    if not keepdims:
        return Layout(dims, tuple(one for axis, one in enumerate(own) if axis not in axes))
    # an axis of size 1 has a stored dimension of its own, behind the others
    ones = iter(range(len(dims), len(dims) + len(axes)))
    return Layout((*dims, *(1,) * len(axes)), tuple((next(ones),) if axis in axes else one for axis, one in enumerate(own)))


class Reduction(Layer):
    """ONNX's Reduce operators. Attributes axes (the batch being 0, which stays), keepdims.

    kind      as kernels/reduction.py numbers them
    reads     what backward reads: "x" the input, "y" the output
    Raises    ModelError: axes that are not there, the batch, or one axis twice
    Memory    nothing beside what backward reads; a tensor whose axes do not lie side by side is moved
    """

    kind: ClassVar[int]
    reads: ClassVar[str] = ""
    mean: ClassVar[bool] = False

    @staticmethod
    def infer(node: Node, shapes: list[Shape], weights: dict[str, Shape]) -> list[Shape]:
        expect_inputs(node, shapes, 1)
        return [kept_shape(shapes[0], own_axes(node, shapes[0]), node.attrs["keepdims"])]

    @classmethod
    def forward(cls, s: Schedule, step: Step) -> None:
        node = step.node
        axes = own_axes(node, s.shapes[node.inputs[0]])
        x, C, inner = grouped(s, s.value(node.inputs[0]), axes)
        y = s.make(step.output, reduced(x.layout, axes, node.attrs["keepdims"]))
        fields = {"outer": x.numbers // (C * inner), "C": C, "inner": inner, "kind": cls.kind,
                  "scale": 1.0 / C if cls.mean else 1.0}
        s.row("reduction.forward", x=x.buffer, y=y.buffer, **fields)
        if not s.needs_gradient(x.name):
            return
        s.keep(x if "x" in cls.reads else None, y if "y" in cls.reads else None)

        def backward() -> None:
            dy = s.gradient(step.output)
            if dy is not None:
                target, accumulate = s.dx(x.name)
                s.row("reduction.backward", x=x.buffer if "x" in cls.reads else None, y=y.buffer if "y" in cls.reads else None,
                      dy=dy.buffer, dx=target, accumulate=accumulate, **fields)
                s.release(dy)
        s.backward(backward)


def own_axes(node: Node, shape: Shape) -> list[int]:
    """The axes of one sample that go, in order. Raises ModelError for the batch, and for an axis twice."""
    axes = sorted(own_axis(node, axis, shape) for axis in node.attrs["axes"])
    if len(set(axes)) < len(axes):
        raise ModelError(f'{node.op} "{node.name}": axes {tuple(node.attrs["axes"])} names an axis twice; name each once')
    return axes


# (operation, kind, what backward reads, what it computes)
_REDUCTIONS = (
    ("ReduceSum", SUM, "", "the sum"),
    ("ReduceMean", SUM, "", "the mean. Over the two spatial axes of an image import makes it GlobalAvgPool2d"),
    ("ReduceMax", MAX, "xy", "the largest number, NaN if one is NaN. Equal numbers share the gradient"),
    ("ReduceMin", MIN, "xy", "the smallest number, NaN if one is NaN. Equal numbers share the gradient"),
    ("ReduceProd", PRODUCT, "x", "the product"),
    ("ReduceL1", MAGNITUDES, "x", "the sum of the magnitudes"),
    ("ReduceL2", LENGTH, "xy", "the root of the sum of squares; where that is 0 the gradient is 0"),
    ("ReduceSumSquare", SQUARES, "x", "the sum of squares"),
    ("ReduceLogSum", LOG_SUM, "y", "the logarithm of the sum"),
    ("ReduceLogSumExp", LOG_SUM_EXP, "xy", "the logarithm of the sum of exponentials, the largest number taken out first"),
)
for _op, _kind, _reads, _text in _REDUCTIONS:
    type(_op, (Reduction,), {"__doc__": f"ONNX {_op}: {_text}.", "__module__": __name__, "op": _op, "kind": _kind,
                             "reads": _reads, "mean": _op == "ReduceMean", "onnx": {_op: {}}})
