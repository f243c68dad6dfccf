"""Converters of the operators of two or more tensors, number by number: sums, products, powers, the larger, the smaller."""
from __future__ import annotations

from typing import Any

from .onnx_registry import Op, converter
from .onnx_tensor import from_float
from .onnx_values import Constant, Dim, Tensor, show

COMMUTING = ("Add", "Mul", "Max", "Min")


@converter("Add", 7, 13, 14)
@converter("Sub", 7, 13, 14)
@converter("Mul", 7, 13, 14)
@converter("Div", 7, 13, 14)
def arithmetic(op: Op) -> None:
    combine(op, op.type, _operand(op, 0), _operand(op, 1))


@converter("Pow", 7, 12, 13, 15)
def power(op: Op) -> None:
    """An exponent that the file gives as one number without axes, or as an integer, stays that number; others are weights."""
    base, exponent = _operand(op, 0), op.value(1)
    if isinstance(base, Tensor) and isinstance(exponent, Constant) and exponent.array is not None \
            and (not exponent.shape or (exponent.shape == (1,) and not exponent.is_float)):
        assert base.dims is not None
        op.emit("Pow", base, base.dims, {"scalar": _number(exponent)})
        return
    combine(op, "Pow", base, _operand(op, 1))


@converter("Mod", 10, 13, 28)
def remainder(op: Op) -> None:
    combine(op, "Mod", _operand(op, 0), _operand(op, 1), attrs={} if op.attribute("fmod", 0) else {"floor": True})


@converter("Max", 6, 8, 12, 13)
@converter("Min", 6, 8, 12, 13)
@converter("Sum", 6, 8, 13)
def chain(op: Op) -> None:
    _chain(op, {"Sum": "Add"}.get(op.type, op.type))


@converter("Mean", 6, 8, 13)
def mean(op: Op) -> None:
    """The sum, divided by how many there are."""
    if len(op.inputs) == 1:
        _chain(op, "Add")
        return
    total = _chain(op, "Add", f"{op.outputs[0]}/sum")
    assert total.dims is not None
    op.emit("Div", total, total.dims, {"scalar": float(len(op.inputs))}, suffix="mean")


def _chain(op: Op, layer: str, output: str = "") -> Tensor:
    """All inputs, combined one after the other: tensors first, in their order."""
    given = [_operand(op, index) for index in range(len(op.inputs))]
    tensors = op.aligned(*(one for one in given if isinstance(one, Tensor)))
    operands: list[Tensor | Constant] = [*tensors, *(one for one in given if isinstance(one, Constant))]
    total = tensors[0]
    if len(operands) == 1:
        op.draft.values[op.outputs[0]] = total
    for number, other in enumerate(operands[1:], 1):
        last = number == len(operands) - 1
        made = output or op.outputs[0] if last else f"{op.outputs[0]}/partial{number}"
        total = combine(op, layer, total, other, made, "" if last else f"partial{number}")
    return total


def _operand(op: Op, index: int) -> Tensor | Constant:
    """An input: a floating-point tensor, or a constant."""
    if isinstance(op.value(index), Constant):
        return op.required(index, "constant operand")
    return op.tensor(index)


def _number(found: Constant) -> float:
    """The number that a constant of one number holds."""
    assert found.array is not None
    return float(from_float(found.array).reshape(-1)[0])


def _is_literal(op: Op, found: Constant) -> bool:
    """Whether a constant is a number of a formula and no weight: without axes, in a Constant node or computed at import."""
    kind = op.draft.kinds.get(found.ref.name, ("initializer",))[0]
    return found.array is not None and found.shape == () and kind != "initializer"


def combine(op: Op, layer: str, first: Tensor | Constant, second: Tensor | Constant, output: str | None = None,
            suffix: str = "", attrs: dict[str, Any] | None = None) -> Tensor:
    """Add the node of a function of two, broadcast as ONNX says; the batch has to stay axis 0. Constants become weights."""
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        a, b = op.aligned(first, second)
        assert a.dims is not None and b.dims is not None
        return op.emit(layer, [a, b], broadcast(op, a.dims, b.dims), attrs, output=output, suffix=suffix)
    x, constant = (first, second) if isinstance(first, Tensor) else (second, first)
    if not isinstance(x, Tensor) or not isinstance(constant, Constant):
        op.refuse("none of its inputs is computed at run time")
    if layer in ("Max", "Min") and constant.probes[0].size == 1 and len(constant.shape) <= len(x.dims or ()) - op.draft.whole:
        assert x.dims is not None
        bounds = (_number(constant), float("inf")) if layer == "Max" else (float("-inf"), _number(constant))
        return op.emit("Clip", x, x.dims, dict(zip(("low", "high"), bounds, strict=True)), output=output, suffix=suffix)
    attrs = {**(attrs or {}), **({"first": True} if isinstance(first, Constant) and layer not in COMMUTING else {})}
    if _is_literal(op, constant):
        assert x.dims is not None
        return op.emit(layer, x, x.dims, {**attrs, "scalar": _number(constant)}, output=output, suffix=suffix)
    x = widened(op, x, constant, output or op.outputs[0])
    assert x.dims is not None
    return op.emit(layer, x, broadcast(op, x.dims, constant.shape), attrs, {"other": constant}, output, suffix)


def widened(op: Op, x: Tensor, constant: Constant, output: str) -> Tensor:
    """The tensor with as many axes as the constant. Refuses constants that would meet the batch."""
    dims, shape = x.dims or (), constant.shape
    if op.draft.whole:
        missing = len(shape) - (len(dims) - 1)
        if missing <= 0:
            return x
        wide = (dims[0], *(1,) * missing, *dims[1:])
        return op.emit("Reshape", x, wide, {"shape": op.sample(wide)}, output=f"{output}/operand", suffix="operand")
    if len(shape) > len(dims) or (len(shape) == len(dims) and shape[0] != 1):
        op.refuse(f'its constant operand "{constant.ref.name}" of shape {shape} runs along the batch')
    return x


def broadcast(op: Op, left: tuple[Dim, ...], right: tuple[Dim, ...]) -> tuple[Dim, ...]:
    """The dimensions of two tensors' broadcast; right may have fewer. A known size counts more than an open one."""
    right = (*(1,) * (len(left) - len(right)), *right)
    result: list[Dim] = []
    for ours, theirs in zip(left, right, strict=True):
        if isinstance(ours, int) and isinstance(theirs, int) and ours != theirs and 1 not in (ours, theirs):
            op.refuse(f"its operands {show(left)} and {show(right)} do not fit each other")
        keep = ours != 1 and (theirs == 1 or isinstance(ours, int) or not isinstance(theirs, int))
        result.append(ours if keep else theirs)
    return tuple(result)
