"""Elementwise functions of one tensor beside those of activation.py: the ReLU family, the smooth gates, arithmetic."""
from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from ..errors import ModelError
from .activation import Activation
from .base import Shape, expect_inputs

if TYPE_CHECKING:
    from ..fusion import Step
    from ..graph import Node
    from ..plan import Schedule

# As kernels/unary.py numbers them.
(LEAKY, ELU, ELU_OF_X, THRESHOLD, HARD_SIGMOID, HARD_SWISH, SWISH, GELU, GELU_TANH, SOFTPLUS, SOFTSIGN, MISH, NEG, ABS,
 SQRT, EXP, LOG, RECIPROCAL, ERF, SIN, COS, SIGN, CEIL, FLOOR, ROUND, INTEGER) = range(26)

INPUT, OUTPUT, NOTHING = "input", "output", "nothing"


def apply(s: Schedule, step: Step, kind: int, keeps: str, a: float = 0.0, b: float = 0.0, c: float = 0.0) -> None:
    """The rows of a function of one tensor, in place where its input is free and not kept.

    keeps: what backward reads, INPUT, OUTPUT or NOTHING. a, b, c: numbers as kernels/unary.py takes them.
    """
    x = s.value(step.node.inputs[0])
    live = s.needs_gradient(x.name)
    if live and keeps == INPUT:
        s.keep(x)
    y = s.make(step.output, x.layout, x.buffer if s.free_to_overwrite(x) else None)
    numbers = {"a": float(a), "b": float(b), "c": float(c)}
    s.row("unary.forward", x=x.buffer, y=y.buffer, size=x.numbers, kind=kind, **numbers)
    if not live:
        return
    if keeps == OUTPUT:
        s.keep(y)

    def backward() -> None:
        dy = s.gradient(step.output)
        if dy is not None:
            kept = {INPUT: x.buffer, OUTPUT: y.buffer, NOTHING: dy.buffer}[keeps]
            target, accumulate = s.dx_over(x.name, dy)
            s.row("unary.backward", kept=kept, dy=dy.buffer, dx=target, size=x.numbers, kind=kind, **numbers,
                  accumulate=accumulate)
            s.release(dy)
    s.backward(backward)


class Unary(Activation):
    """A function that a kind of kernels/unary.py computes.

    kind     its number there
    keeps    what backward reads: INPUT, OUTPUT or NOTHING
    Memory   nothing beside what it keeps
    """

    kind: ClassVar[int]
    keeps: ClassVar[str] = INPUT

    @classmethod
    def numbers(cls, attrs: dict[str, Any]) -> tuple[float, ...]:
        """The kernel's numbers from the node's attributes."""
        return ()

    @classmethod
    def forward(cls, s: Schedule, step: Step) -> None:
        apply(s, step, cls.kind, cls.keeps, *cls.numbers(step.node.attrs))


class OneNumber(Unary):
    """A function with one attribute, alpha."""

    @classmethod
    def numbers(cls, attrs: dict[str, Any]) -> tuple[float, ...]:
        return (attrs["alpha"],)


class LeakyRelu(OneNumber):
    """ONNX LeakyRelu: x where it is positive, else alpha x. For a negative alpha backward reads the input."""

    op = "LeakyRelu"
    onnx = {"LeakyRelu": {"versions": (6, 16), "attributes": {"alpha": ("alpha", 0.01)}}}

    @classmethod
    def forward(cls, s: Schedule, step: Step) -> None:
        alpha = step.node.attrs["alpha"]
        apply(s, step, LEAKY, OUTPUT if alpha >= 0 else INPUT, alpha)


class ThresholdedRelu(OneNumber):
    """ONNX ThresholdedRelu: x where it is above alpha, else 0. For a negative alpha backward reads the input."""

    op = "ThresholdedRelu"
    onnx = {"ThresholdedRelu": {"versions": (10, 22), "attributes": {"alpha": ("alpha", 1.0)}}}

    @classmethod
    def forward(cls, s: Schedule, step: Step) -> None:
        alpha = step.node.attrs["alpha"]
        apply(s, step, THRESHOLD, OUTPUT if alpha >= 0 else INPUT, alpha)


class Elu(Unary):
    """ONNX Elu: x where it is positive, else alpha (exp(x) - 1). Backward reads the output where that tells x's sign."""

    op = "Elu"
    onnx = {"Elu": {"versions": (6, 22), "attributes": {"alpha": ("alpha", 1.0)}}}

    @classmethod
    def numbers(cls, attrs: dict[str, Any]) -> tuple[float, ...]:
        return attrs["alpha"], 1.0, 1.0

    @classmethod
    def forward(cls, s: Schedule, step: Step) -> None:
        below, above, rate = cls.numbers(step.node.attrs)
        if min(below, above, rate) >= 0:
            apply(s, step, ELU, OUTPUT, below, above, rate)
        else:
            apply(s, step, ELU_OF_X, INPUT, below, above, rate)


class Selu(Elu):
    """ONNX Selu: gamma times Elu."""

    op = "Selu"
    onnx = {"Selu": {"versions": (6, 22), "attributes": {"alpha": ("alpha", 1.67326319217681884765625),
                                                         "gamma": ("gamma", 1.05070102214813232421875)}}}

    @classmethod
    def numbers(cls, attrs: dict[str, Any]) -> tuple[float, ...]:
        return attrs["alpha"] * attrs["gamma"], attrs["gamma"], 1.0


class Celu(Elu):
    """ONNX Celu: x where it is positive, else alpha (exp(x / alpha) - 1).

    Raises   ModelError: alpha 0
    """

    op = "Celu"
    onnx = {"Celu": {"versions": (12, 28), "attributes": {"alpha": ("alpha", 1.0)}}}

    @staticmethod
    def infer(node: Node, shapes: list[Shape], weights: dict[str, Shape]) -> list[Shape]:
        expect_inputs(node, shapes, 1)
        if node.attrs["alpha"] == 0:
            raise ModelError(f'Celu "{node.name}": alpha is 0; it divides by alpha, so give it another')
        return [shapes[0]]

    @classmethod
    def numbers(cls, attrs: dict[str, Any]) -> tuple[float, ...]:
        return attrs["alpha"], 1.0, 1 / attrs["alpha"]


class HardSigmoid(Unary):
    """ONNX HardSigmoid: alpha x + beta between 0 and 1."""

    op = "HardSigmoid"
    kind, keeps = HARD_SIGMOID, OUTPUT
    onnx = {"HardSigmoid": {"versions": (6, 22), "attributes": {"alpha": ("alpha", 0.2), "beta": ("beta", 0.5)}}}

    @classmethod
    def numbers(cls, attrs: dict[str, Any]) -> tuple[float, ...]:
        return attrs["alpha"], attrs["beta"]


class HardSwish(Unary):
    """ONNX HardSwish: x times x / 6 + 1/2 between 0 and 1."""

    op = "HardSwish"
    kind = HARD_SWISH
    onnx = {"HardSwish": {"versions": (14, 22)}}

    @classmethod
    def numbers(cls, attrs: dict[str, Any]) -> tuple[float, ...]:
        return 1 / 6, 0.5


class Swish(OneNumber):
    """ONNX Swish: x sigmoid(alpha x); SiLU with alpha 1."""

    op = "Swish"
    kind = SWISH
    onnx = {"Swish": {}}


class Gelu(Unary):
    """ONNX Gelu: x times the normal distribution function; attribute approximate, "none" or "tanh".

    Raises   ModelError: another approximation
    """

    op = "Gelu"
    onnx = {"Gelu": {}}

    @staticmethod
    def infer(node: Node, shapes: list[Shape], weights: dict[str, Shape]) -> list[Shape]:
        expect_inputs(node, shapes, 1)
        if node.attrs["approximate"] not in ("none", "tanh"):
            raise ModelError(f'Gelu "{node.name}": approximate is {node.attrs["approximate"]!r}; expected "none" or "tanh"')
        return [shapes[0]]

    @classmethod
    def forward(cls, s: Schedule, step: Step) -> None:
        apply(s, step, GELU if step.node.attrs["approximate"] == "none" else GELU_TANH, INPUT)


# The functions without attributes: (operation, kind, what backward reads, ONNX's versions, what it computes).
_FUNCTIONS = (
    ("Softplus", SOFTPLUS, OUTPUT, (1, 22), "log(1 + exp(x))"),
    ("Softsign", SOFTSIGN, OUTPUT, (1, 22), "x / (1 + |x|)"),
    ("Mish", MISH, INPUT, (), "x tanh(log(1 + exp(x)))"),
    ("Neg", NEG, NOTHING, (6, 13), "-x"),
    ("Abs", ABS, INPUT, (6, 13), "|x|; at 0 the derivative is 0"),
    ("Sqrt", SQRT, OUTPUT, (6, 13), "the square root"),
    ("Exp", EXP, OUTPUT, (6, 13), "exp(x)"),
    ("Log", LOG, INPUT, (6, 13), "the natural logarithm"),
    ("Reciprocal", RECIPROCAL, OUTPUT, (6, 13), "1 / x"),
    ("Erf", ERF, INPUT, (9, 13), "the error function"),
    ("Sin", SIN, INPUT, (7, 22), "the sine"),
    ("Cos", COS, INPUT, (7, 22), "the cosine"),
    ("Sign", SIGN, NOTHING, (9, 13), "-1, 0 or 1; the gradient is 0"),
    ("Ceil", CEIL, NOTHING, (6, 13), "the least integer that is not below; the gradient is 0"),
    ("Floor", FLOOR, NOTHING, (6, 13), "the greatest integer that is not above; the gradient is 0"),
    ("Round", ROUND, NOTHING, (11, 22), "the nearest integer, the even one of two; the gradient is 0"),
)
for _op, _kind, _keeps, _versions, _text in _FUNCTIONS:
    type(_op, (Unary,), {"__doc__": f"ONNX {_op}: {_text}.", "__module__": __name__, "op": _op, "kind": _kind, "keeps": _keeps,
                         "onnx": {_op: {"versions": _versions} if _versions else {}}})
