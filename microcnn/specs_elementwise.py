"""Functions of two tensors that networks are built of in Python, with PyTorch's names; see specs.py."""
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from .specs import Described, LayerSpec, PlainSpec, Shape, number_of


@dataclass
class _Function(LayerSpec):
    """A function of two tensors, or of one and a number; with first the number is the first operand. Broadcasts."""

    op: ClassVar[str]
    value: float | None = None
    first: bool = False
    name: str | None = None

    def node(self, shape: Shape, rng: np.random.Generator) -> Described:
        if self.value is None:
            return self.op, {}, {}
        scalar = number_of(self.value, type(self).__name__, "value", ", or None for two tensors")
        return self.op, {"scalar": scalar, **({"first": True} if self.first else {})}, {}


@dataclass
class Add(PlainSpec):
    """The sum of two tensors, with broadcasting."""

    short: ClassVar[str] = "add"
    op: ClassVar[str] = "Add"


@dataclass
class Sub(_Function):
    """torch.sub: a - b of two tensors, with broadcasting; with a value x - value, with first value - x."""

    short: ClassVar[str] = "sub"
    op: ClassVar[str] = "Sub"


@dataclass
class Mul(_Function):
    """torch.mul: a * b of two tensors, with broadcasting; with a value x * value."""

    short: ClassVar[str] = "mul"
    op: ClassVar[str] = "Mul"


@dataclass
class Div(_Function):
    """torch.div: a / b of two tensors, with broadcasting; with a value x / value, with first value / x."""

    short: ClassVar[str] = "div"
    op: ClassVar[str] = "Div"


@dataclass
class Pow(_Function):
    """torch.pow: a ** b of two tensors, with broadcasting; with a value x ** value, with first value ** x."""

    short: ClassVar[str] = "pow"
    op: ClassVar[str] = "Pow"


@dataclass
class Maximum(_Function):
    """torch.maximum of two tensors, with broadcasting; with a value the larger of x and that."""

    short: ClassVar[str] = "maximum"
    op: ClassVar[str] = "Max"


@dataclass
class Minimum(_Function):
    """torch.minimum of two tensors, with broadcasting; with a value the smaller of x and that."""

    short: ClassVar[str] = "minimum"
    op: ClassVar[str] = "Min"
