"""Cast: the numbers of one type as another's. Integers are held as floating-point numbers, each of them exactly."""
from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..errors import CompileError, ModelError
from ..integers import INTEGERS, largest_exact
from .base import Layer, Shape, expect_inputs
from .movement import unchanged
from .unary import INTEGER, NOTHING, apply

if TYPE_CHECKING:
    from ..fusion import Step
    from ..graph import Node
    from ..plan import Schedule


def refuse_gradient(s: Schedule, node: Node) -> None:
    """Raises CompileError where a gradient would have to pass a node that makes integers."""
    if not s.needs_gradient(node.inputs[0]):
        return
    what = "forward and backward need" if s.mode == "manual" else "what trains needs"
    raise CompileError(f'no gradient passes {node.op} "{node.name}", whose numbers are integers, and {what} one there; run '
                       "this model with predict, or train the model that it was quantized from")


class Cast(Layer):
    """ONNX Cast. Attribute dtype: to integers the fraction goes, and what leaves the type's range wraps around.

    An integer beyond 2**24 (float32 networks) or 2**53 (float64) becomes NaN: it may be another's rounding.
    Raises   ModelError: a dtype that is no number's; CompileError: a gradient through integers
    Memory   nothing, in place where the input is free
    """

    op = "Cast"
    onnx = {"Cast": {}}

    @staticmethod
    def infer(node: Node, shapes: list[Shape], weights: dict[str, Shape]) -> list[Shape]:
        expect_inputs(node, shapes, 1)
        if node.attrs["dtype"] not in (*INTEGERS, "float16", "float32", "float64"):
            raise ModelError(f'Cast "{node.name}": dtype is {node.attrs["dtype"]!r}; expected float16, float32, float64 or one '
                             f"of {', '.join(INTEGERS)}")
        return [shapes[0]]

    @staticmethod
    def forward(s: Schedule, step: Step) -> None:
        node = step.node
        if node.attrs["dtype"] not in INTEGERS:
            unchanged(s, step)
            return
        refuse_gradient(s, node)
        limits = np.iinfo(node.attrs["dtype"])
        apply(s, step, INTEGER, NOTHING, float(limits.min), float(int(limits.max) - int(limits.min) + 1),
              largest_exact(s.itemsize))
