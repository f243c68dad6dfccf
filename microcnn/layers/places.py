"""Where along an axis the largest or the smallest number stands."""
from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from ..errors import ModelError
from .base import Layer, Shape, expect_inputs
from .movement import own_axis
from .reduction import grouped, kept_shape, reduced

if TYPE_CHECKING:
    from ..fusion import Step
    from ..graph import Node
    from ..plan import Schedule

# Places are numbers of the network's own dtype, and float32 holds integers up to here.
MOST_PLACES = 2**24


class ArgMax(Layer):
    """ONNX ArgMax. Attributes axis (the batch being 0), keepdims, last (of equal numbers the last one's place, not the first).

    The places are whole numbers of the network's dtype inside, and int64 where they are an output. No gradient passes.

    Raises   ModelError: an axis that is the batch or not there, or with more numbers than float32 can count
    Memory   nothing beside the output
    """

    op = "ArgMax"
    integers = True
    sign: ClassVar[int] = 1
    onnx = {"ArgMax": {}}

    @staticmethod
    def infer(node: Node, shapes: list[Shape], weights: dict[str, Shape]) -> list[Shape]:
        expect_inputs(node, shapes, 1)
        axis = own_axis(node, node.attrs["axis"], shapes[0])
        if shapes[0][axis] > MOST_PLACES:
            raise ModelError(f'{node.op} "{node.name}": axis {axis + 1} has {shapes[0][axis]} numbers; up to {MOST_PLACES} '
                             "can be told apart")
        return [kept_shape(shapes[0], [axis], node.attrs["keepdims"])]

    @classmethod
    def forward(cls, s: Schedule, step: Step) -> None:
        node = step.node
        axis = own_axis(node, node.attrs["axis"], s.shapes[node.inputs[0]])
        x, C, inner = grouped(s, s.value(node.inputs[0]), [axis])
        y = s.make(step.output, reduced(x.layout, [axis], node.attrs["keepdims"]))
        s.row("places.forward", x=x.buffer, y=y.buffer, outer=x.numbers // (C * inner), C=C, inner=inner, sign=cls.sign,
              last=int(node.attrs["last"]))


class ArgMin(ArgMax):
    """ONNX ArgMin: the place of the smallest number, as ArgMax."""

    op = "ArgMin"
    sign = -1
    onnx = {"ArgMin": {}}
