"""Converters of the operators that only change axes. The batch stays axis 0, also where a file fixes it to a number."""
from __future__ import annotations

from .onnx_layers import per_sample
from .onnx_registry import Op, converter
from .onnx_values import BATCH, Dim, each, product, show

REARRANGING = (13, 21, 23, 24, 25)


@converter("Flatten", 1, 9, 11, *REARRANGING)
def flatten(op: Op) -> None:
    x, dims = op.tensor(), op.dims()
    axis = op.attribute("axis", 1)
    if op.draft.whole:
        axis = axis % (len(dims) - 1) if axis < 0 else axis
        result = (BATCH, product(dims[1:axis + 1]), product(dims[axis + 1:]))
        op.emit("Reshape", x, result, {"shape": op.sample(result)})
        return
    axis = axis + len(dims) if axis < 0 else axis
    if axis < 1 or any(n != 1 for n in dims[1:axis]):
        op.refuse(f"axis is {op.attribute('axis', 1)}; only axis 1, which keeps the batch, is supported")
    op.emit("Flatten", x, (dims[0], per_sample(dims)), {"axis": 1})


@converter("Reshape", 5, 14, 19, *REARRANGING)
def reshape(op: Op) -> None:
    x, dims = op.tensor(), op.dims()
    known = op.known(1, "shape")
    if known is None:
        op.refuse("its shape is missing")
    zero_is_size = bool(op.attribute("allowzero", 0))
    target = known.elements()
    if target.count(-1) > 1:
        op.refuse(f"its shape {show(tuple(target))} has -1 more than once; ONNX allows one")
    if op.draft.whole:
        target.insert(0, BATCH)
    if not target:
        op.refuse("its shape is empty; the batch has to stay axis 0")
    wanted: list[int] = []                         # one sample; 0 copies an open size, -1 is what is left
    for axis, n in enumerate(target[1:], 1):
        if n == 0 and zero_is_size:
            op.refuse(f"its shape {show(tuple(target))} asks for an empty tensor")
        if n == 0 and axis >= len(dims):
            op.refuse(f"its shape {show(tuple(target))} copies axis {axis}, which {show(dims)} does not have")
        if n == 0:
            n = dims[axis]
        if not isinstance(n, int) and axis < len(dims) and n == dims[axis]:
            wanted.append(0)
        else:
            wanted.append(n if isinstance(n, int) else -1)
    whole = per_sample(dims)
    if wanted.count(-1) > 1 or min(wanted, default=1) < -1:
        op.refuse(f"its shape {show(tuple(target))} leaves more than one size open; give input_shapes to load_onnx")
    result = _resolved(op, dims, wanted, whole)
    _check_batch(op, dims, target, result, whole)
    shape = tuple(size if isinstance(size, int) else asked for size, asked in zip(result, wanted, strict=True))
    op.emit("Reshape", x, (BATCH, *result), {"shape": shape})


def _resolved(op: Op, dims: tuple[Dim, ...], wanted: list[int], whole: Dim) -> tuple[Dim, ...]:
    """The sizes of one sample: zeros copied, -1 computed where it divides."""
    result: list[Dim] = [dims[axis] if n == 0 else n for axis, n in enumerate(wanted, 1)]
    if -1 in result:
        rest = product(tuple(n for n in result if n != -1))
        left = each(lambda total, known: total // known if known and total % known == 0 else -1, whole, rest)
        if left == -1:
            op.refuse(f"{show(dims)} cannot become {show((BATCH, *wanted))}: the sizes do not divide")
        result[result.index(-1)] = left
    return tuple(result)


def _check_batch(op: Op, dims: tuple[Dim, ...], target: list[Dim], result: tuple[Dim, ...], whole: Dim) -> None:
    """Refuse a reshape that does not keep each sample's numbers together."""
    first, batch = target[0], op.draft.batch
    have = product(result)
    fits = not (isinstance(have, int) and isinstance(whole, int)) or have == whole
    if first in (BATCH, 0, -1) or (isinstance(first, int) and first == (batch or 1)):
        if fits:
            return
    elif isinstance(first, int) and batch is None and first > 1:
        op.refuse(f"its shape {show(tuple(target))} fixes the batch to {first}; export the model with an open batch")
    op.refuse(f"{show(dims)} -> {show(tuple(target))} mixes the batch with other axes")


@converter("Squeeze", 1, 11, *REARRANGING)
def squeeze(op: Op) -> None:
    dims = op.dims()
    axes = op.integers(1, "axes") if len(op.inputs) > 1 else op.attribute("axes")
    if axes is None:
        if (op.draft.batch == 1 and not op.draft.whole) or any(not isinstance(n, int) for n in dims[1:]):
            op.refuse("it names no axes; which ones go depends on the batch or on open sizes")
        axes = tuple(axis - op.draft.whole for axis, n in enumerate(dims) if n == 1)
    gone = {op.axis(axis) for axis in axes}
    if any(isinstance(dims[axis], int) and dims[axis] != 1 for axis in gone):
        op.refuse(f"it removes the axes {tuple(sorted(gone))} of {show(dims)}, which are not all 1")
    _as_reshape(op, tuple(n for axis, n in enumerate(dims) if axis not in gone))


@converter("Unsqueeze", 1, 11, *REARRANGING)
def unsqueeze(op: Op) -> None:
    dims = op.dims()
    axes = op.integers(1, "axes") if len(op.inputs) > 1 else op.attribute("axes", ())
    rank = len(dims) + len(axes or ())
    places = {op.axis(axis, rank - op.draft.whole) for axis in axes or ()}
    old = iter(dims)
    _as_reshape(op, tuple(1 if axis in places else next(old) for axis in range(rank)))


def _as_reshape(op: Op, dims: tuple[Dim, ...]) -> None:
    """A Reshape to dims, of which at most one may be open (or all of those that stay where they are)."""
    before = op.dims()
    shape = [n if isinstance(n, int) else 0 if axis < len(before) and before[axis] == n else -1
             for axis, n in enumerate(dims[1:], 1)]
    if shape.count(-1) > 1:
        op.refuse(f"{show(before)} -> {show(dims)} leaves more than one size open; give input_shapes to load_onnx")
    op.emit("Reshape", op.tensor(), dims, {"shape": tuple(shape)})


@converter("Transpose", 1, *REARRANGING)
def transpose(op: Op) -> None:
    x, dims = op.tensor(), op.dims()
    rank = len(dims) - op.draft.whole
    perm = tuple(op.attribute("perm", tuple(reversed(range(rank)))))
    perm = tuple(axis + rank if axis < 0 else axis for axis in perm)
    if sorted(perm) != list(range(rank)):
        op.refuse(f"perm {perm} is no permutation of {rank} axes")
    if op.draft.whole:
        perm = (0, *(axis + 1 for axis in perm))
    if perm[0] != 0:
        op.refuse(f"perm {perm} moves the batch away from axis 0")
    op.emit("Transpose", x, tuple(dims[axis] for axis in perm), {"perm": perm})


@converter("Identity", 1, 14, 16, 19, *REARRANGING)
def identity(op: Op) -> None:
    """Gone: the result is another name of the input."""
    op.draft.values[op.outputs[0]] = op.tensor()


@converter("Dropout", 7, 10, 12, 13, 22)
def dropout(op: Op) -> None:
    """Gone, in inference form."""
    op.single_output()
    training = op.known(2, "training_mode")
    if training is not None and any(bool(probe.any()) for probe in training.probes):
        op.refuse("training_mode is true; export the model in inference mode")
    op.draft.values[op.outputs[0]] = op.tensor()
