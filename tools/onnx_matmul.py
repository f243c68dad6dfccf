"""Converters of products of matrices: Gemm and MatMul, of tensors and constants on either side.

A product with one constant matrix on the right is Linear; every other is MatMul, whose axes before the matrices broadcast.
"""
from __future__ import annotations

from .onnx_elementwise import broadcast, combine
from .onnx_layers import viewed
from .onnx_registry import Op, converter
from .onnx_values import BATCH, Constant, Dim, Tensor, show

Operand = Tensor | Constant


def _operands(op: Op) -> tuple[Operand, Operand]:
    """Both factors, at least one of them a tensor."""
    first, second = (op.required(i, "matrix") if isinstance(op.value(i), Constant) else op.tensor(i) for i in (0, 1))
    return first, second


def _fits(op: Op, width: Dim, height: Dim) -> None:
    """Refuse a product whose first matrix does not have as many columns as the second has rows."""
    if isinstance(width, int) and isinstance(height, int) and width != height:
        op.refuse(f"its input has {width} numbers along the last axis; the matrix expects {height}")


@converter("Gemm", 7, 9, 11, 13)
def gemm(op: Op) -> None:
    """alpha A B + beta C as beta (alpha / beta A B + C), so that C stays the weight that it is in the file."""
    first, second = _operands(op)
    alpha, beta = float(op.attribute("alpha", 1.0)), float(op.attribute("beta", 1.0))
    added = op.value(2) if beta else None
    if added is not None:
        added = op.required(2, "constant operand") if isinstance(added, Constant) else op.tensor(2)
    before, after = (alpha / beta, beta) if added is not None else (alpha, 1.0)
    turned = bool(op.attribute("transA", 0)), bool(op.attribute("transB", 0))
    steps = ["product"] + ["scaled"] * (before != 1.0) + ["sum"] * (added is not None) + ["result"] * (after != 1.0)
    bias = None
    if isinstance(second, Constant) and isinstance(added, Constant) and before == 1.0:
        bias = _as_vector(added, second.shape[0 if turned[1] else -1] if len(second.shape) == 2 else 0)
        if bias is not None:
            steps.remove("sum")

    def name(step: str) -> tuple[str | None, str]:
        """What a step's tensor is called, and the end of its node's name."""
        return (None if step == steps[-1] else f"{op.outputs[0]}/{step}"), ("" if step == "product" else step)
    product = _gemm_product(op, first, second, turned, bias, name("product")[0])
    for step, factor in (("scaled", before), ("sum", None), ("result", after)):
        if step in steps and factor is not None:
            product = op.emit("Mul", product, product.dims or (), {"scalar": factor}, None, *name(step))
        elif step in steps and added is not None:
            product = combine(op, "Add", product, added, *name(step))


def _gemm_product(op: Op, first: Operand, second: Operand, turned: tuple[bool, bool], bias: Constant | None,
                  output: str | None) -> Tensor:
    """A B of two matrices, or A^T, B^T where they are turned."""
    for number, one in enumerate((first, second)):
        rank = len(one.shape) if isinstance(one, Constant) else len(one.dims or ()) - op.draft.whole
        if rank != 2:
            op.refuse(f'"{op.inputs[number]}" has {rank} axes; only 2 are supported')
    if isinstance(first, Tensor):
        if turned[0] and not op.draft.whole:
            op.refuse("transA is 1; the product would run along the batch")
        first = _turned(op, first, "a") if turned[0] else first
        if isinstance(second, Constant):
            width, count = second.shape[::-1] if turned[1] else second.shape
            dims = first.dims or ()
            _fits(op, dims[-1], width)
            return op.emit("Linear", first, (*dims[:-1], count), {"transposed": turned[1]}, {"weight": second, "bias": bias},
                           output)
    elif turned[0]:
        first = viewed(first, "transpose", (1, 0))
    if isinstance(second, Tensor) and turned[1]:
        second = _turned(op, second, "b")
    return _many(op, first, second, output)


def _turned(op: Op, x: Tensor, letter: str) -> Tensor:
    """A matrix of one sample transposed. Refuses one that the batch is an axis of."""
    dims = x.dims or ()
    if len(dims) != 3:
        op.refuse(f'"{x.name}" of shape {show(dims)} is transposed; that would move the batch')
    return op.emit("Transpose", x, (dims[0], dims[2], dims[1]), {"perm": (0, 2, 1)}, output=f"{op.outputs[0]}/{letter}",
                   suffix=letter)


def _as_vector(found: Constant, count: int) -> Constant | None:
    """A constant of shape (K,), (1, K), ... as a vector, None if it is something else."""
    if not found.shape or found.shape[-1] != count or any(n != 1 for n in found.shape[:-1]):
        return None
    return found if len(found.shape) == 1 else viewed(found, "reshape", (count,))


@converter("MatMul", 1, 9, 13)
def matmul(op: Op) -> None:
    """As numpy: a vector is a matrix of one row on the left, of one column on the right, and that axis goes again."""
    first, second = _operands(op)
    ranks = [len(one.shape) if isinstance(one, Constant) else len(one.dims or ()) - op.draft.whole for one in (first, second)]
    if 0 in ranks:
        op.refuse("one of its operands is a number without axes")
    gone = [axis for axis, rank in zip((-2, -1), ranks, strict=True) if rank == 1]
    first, second = (_as_matrix(op, one, number) if rank == 1 else one
                     for number, (one, rank) in enumerate(zip((first, second), ranks, strict=True)))
    output = f"{op.outputs[0]}/matrices" if gone else None
    if isinstance(first, Tensor) and isinstance(second, Constant) and all(n == 1 for n in second.shape[:-2]) \
            and (len(second.shape) <= len(first.dims or ()) - op.draft.whole or len(second.shape) == 2):
        width, count = second.shape[-2:]
        weight = second if len(second.shape) == 2 else viewed(second, "reshape", (width, count))
        dims = first.dims or ()
        _fits(op, dims[-1], width)
        result = op.emit("Linear", first, (*dims[:-1], count), {"transposed": False}, {"weight": weight}, output)
    else:
        result = _many(op, first, second, output)
    if gone:
        left = list(result.dims or ())
        for axis in gone[::-1]:
            del left[axis]
        op.emit("Reshape", result, tuple(left), {"shape": op.sample(tuple(left))}, suffix="vector")


def _as_matrix(op: Op, vector: Operand, number: int) -> Operand:
    """A vector as a matrix of one row, if it is the first operand, or of one column."""
    if isinstance(vector, Constant):
        return viewed(vector, "reshape", (1, vector.shape[0]) if number == 0 else (vector.shape[0], 1))
    if not op.draft.whole:
        op.refuse(f'"{vector.name}" has no axis but the batch')
    dims = vector.dims or ()
    wide = (dims[0], 1, dims[1]) if number == 0 else (dims[0], dims[1], 1)
    return op.emit("Reshape", vector, wide, {"shape": op.sample(wide)}, output=f"{op.outputs[0]}/matrix{number}",
                   suffix=f"matrix{number}")


def _many(op: Op, first: Operand, second: Operand, output: str | None) -> Tensor:
    """A MatMul node. Refuses matrices of which the batch is an axis."""
    tensors = [one for one in (first, second) if isinstance(one, Tensor)]
    if any(len(one.dims or ()) < 3 for one in tensors):
        op.refuse("the batch is an axis of its matrices; only matrices within a sample are multiplied")
    if len(tensors) == 2:
        tensors = op.aligned(*tensors)
        first, second = tensors
    else:
        constant = next(one for one in (first, second) if isinstance(one, Constant))
        tensors = [_widened(op, tensors[0], len(constant.shape))]
        rank = len(tensors[0].dims or ())
        if not op.draft.whole and (len(constant.shape) > rank or (len(constant.shape) == rank and constant.shape[0] != 1)):
            op.refuse(f'its constant operand "{constant.ref.name}" of shape {constant.shape} runs along the batch')
        first, second = (tensors[0] if isinstance(one, Tensor) else one for one in (first, second))
    a, b = (one.dims or () if isinstance(one, Tensor) else one.shape for one in (first, second))
    _fits(op, a[-1], b[-2])
    longer, shorter = (a[:-2], b[:-2]) if isinstance(first, Tensor) else (b[:-2], a[:-2])
    dims = (*broadcast(op, longer, shorter), a[-2], b[-1])
    assert dims[0] == BATCH
    other = next((one for one in (first, second) if isinstance(one, Constant)), None)
    return op.emit("MatMul", tensors, dims, {"first": True} if other is first else {}, {"other": other}, output)


def _widened(op: Op, x: Tensor, rank: int) -> Tensor:
    """The only tensor of a model that is one sample, with at least as many axes as the constant."""
    dims = x.dims or ()
    missing = rank - (len(dims) - 1)
    if not op.draft.whole or missing <= 0:
        return x
    wide = (dims[0], *(1,) * missing, *dims[1:])
    return op.emit("Reshape", x, wide, {"shape": op.sample(wide)}, output=f"{op.outputs[0]}/operand", suffix="operand")
