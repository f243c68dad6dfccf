"""QuantizeLinear and DequantizeLinear: 8- and 16-bit integers, held as floating-point numbers."""
from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from ..errors import ModelError
from ..integers import INTEGERS
from .base import Layer, Shape, expect_inputs
from .cast import refuse_gradient
from .movement import own_axis
from .prelu import rows_of

if TYPE_CHECKING:
    from ..fusion import Step
    from ..graph import Node
    from ..plan import Schedule

# As kernels/quantize.py numbers them.
QUANTIZE, DEQUANTIZE, THERE_AND_BACK = range(3)


class DequantizeLinear(Layer):
    """ONNX DequantizeLinear: (x - zero point) times the scale.

    Attributes scale and zero_point: one number each, or one for each place along axis (the batch being 0); dtype, the
    result's type.
    Raises   ModelError: scales or zero points that are not as many as axis has places
    Memory   nothing, in place where the input is free
    """

    op = "DequantizeLinear"
    onnx = {"DequantizeLinear": {}}
    kind: ClassVar[int] = DEQUANTIZE

    @classmethod
    def infer(cls, node: Node, shapes: list[Shape], weights: dict[str, Shape]) -> list[Shape]:
        expect_inputs(node, shapes, 1)
        scale, zero = node.attrs["scale"], node.attrs["zero_point"]
        count = 1 if len(scale) == 1 else shapes[0][own_axis(node, node.attrs["axis"], shapes[0])]
        if not len(scale) == len(zero) == count:
            raise ModelError(f'{node.op} "{node.name}": {len(scale)} scales and {len(zero)} zero points for {count} places of '
                             f"axis {node.attrs['axis']}; expected as many")
        return [shapes[0]]

    @classmethod
    def forward(cls, s: Schedule, step: Step) -> None:
        node = step.node
        refuse_gradient(s, node)
        x = s.value(node.inputs[0])
        scale, zero = (np.asarray(node.attrs[name], np.float32 if s.itemsize == 4 else np.float64)
                       for name in ("scale", "zero_point"))
        axes = [] if len(scale) == 1 else [own_axis(node, node.attrs["axis"], x.layout.shape)]
        found = rows_of(x.layout, axes)
        if found is None:
            x = s.plain(x)
            found = rows_of(x.layout, axes)
            assert found is not None
        C, inner = found
        y = s.make(step.output, x.layout, x.buffer if s.free_to_overwrite(x) else None)
        low, high = cls.limits(node)
        s.row("quantize.linear", x=x.buffer, scale=s.store.constant(f"{node.name}.scale", scale),
              zero=s.store.constant(f"{node.name}.zero_point", zero), y=y.buffer, outer=x.numbers // (C * inner), C=C,
              inner=inner, kind=cls.kind if step.output == node.outputs[0] else THERE_AND_BACK, low=low, high=high)

    @classmethod
    def limits(cls, node: Node) -> tuple[float, float]:
        """Where the result ends."""
        return -math.inf, math.inf


class QuantizeLinear(DequantizeLinear):
    """ONNX QuantizeLinear: x / scale, rounded to the nearest integer (the even one of two), plus the zero point, within dtype.

    Attributes as DequantizeLinear's; dtype is an integer type of 8 or 16 bits. Where the way back alone reads the result, both
    are one step.
    Raises   ModelError: another dtype; CompileError: a gradient, for none passes
    """

    op = "QuantizeLinear"
    onnx = {"QuantizeLinear": {}}
    kind = QUANTIZE

    @classmethod
    def infer(cls, node: Node, shapes: list[Shape], weights: dict[str, Shape]) -> list[Shape]:
        if node.attrs["dtype"] not in INTEGERS[:4]:
            raise ModelError(f'QuantizeLinear "{node.name}": dtype is {node.attrs["dtype"]!r}; expected one of '
                             f"{', '.join(INTEGERS[:4])}")
        return super().infer(node, shapes, weights)

    @classmethod
    def limits(cls, node: Node) -> tuple[float, float]:
        return float(np.iinfo(node.attrs["dtype"]).min), float(np.iinfo(node.attrs["dtype"]).max)
