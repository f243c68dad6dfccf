"""Converters of the operators that put parts of tensors elsewhere, and of Cast. The batch stays axis 0."""
from __future__ import annotations

from onnx import TensorProto, helper

from microcnn.integers import INTEGERS

from .onnx_registry import FLOAT_DTYPES, Op, converter
from .onnx_values import BATCH, Constant, Dim, Tensor, each, show

REARRANGING = (13, 21, 23, 24, 25)
INFINITE = 2**63 - 1


@converter("Concat", 1, 4, 11, 13)
def concat(op: Op) -> None:
    tensors = [op.tensor(index) for index in range(len(op.inputs))]
    axis = op.axis(op.attribute("axis", 1))
    ranks = {len(tensor.dims or ()) for tensor in tensors}
    if len(ranks) > 1:
        op.refuse(f"its inputs have {' and '.join(map(str, sorted(ranks)))} axes; expected equally many")
    result: list[Dim] = list(op.dims())
    result[axis] = 0
    for tensor in tensors:
        dims = tensor.dims or ()
        result[axis] = each(lambda a, b: a + b, result[axis], dims[axis])
        for place, n in enumerate(dims):
            if place == axis:
                continue
            known = result[place]
            if isinstance(n, int) and isinstance(known, int) and n != known:
                op.refuse(f"its inputs {show(op.dims())} and {show(dims)} differ along axis {place}")
            result[place] = n if isinstance(n, int) else known
    op.emit("Concat", tensors, tuple(result), {"axis": axis})


@converter("Split", 1, 2, 11, 13, 18)
def split(op: Op) -> None:
    x, dims = op.tensor(), op.dims()
    axis = op.axis(op.attribute("axis", 0))
    size, count = dims[axis], len(op.outputs)
    sizes = op.integers(1, "sizes") if len(op.inputs) > 1 else op.attribute("split")
    if sizes is None:
        if not isinstance(size, int):
            op.refuse(f"it splits axis {axis} of {show(dims)}, whose size is open; give input_shapes to load_onnx")
        parts = op.attribute("num_outputs", count)
        if parts != count or (op.opset < 18 and size % count):
            op.refuse(f"a size of {size} does not make {parts} equal parts for its {count} outputs")
        width = -(-size // count)
        sizes = tuple(min(width, size - part * width) for part in range(count))
    if len(sizes) != count or (isinstance(size, int) and sum(sizes) != size):
        op.refuse(f"the sizes {tuple(sizes)} do not split {size} numbers into its {count} outputs")
    if min(sizes) < 1:
        op.refuse(f"the sizes {tuple(sizes)} make an empty tensor")
    begin = 0
    for name, width in zip(op.outputs, sizes, strict=True):
        if name:
            op.emit("Slice", x, (*dims[:axis], width, *dims[axis + 1:]),
                    {"axes": (axis,), "starts": (begin,), "ends": (begin + width,), "steps": (1,)}, output=name,
                    suffix=f"from_{begin}")
        begin += width


@converter("Slice", 1, 10, 11, 13)
def slice_(op: Op) -> None:
    inputs = op.opset >= 10
    x, dims = op.tensor(), op.dims()
    starts, ends, axes = ((op.integers(index, what) if inputs else op.attribute(what))
                          for index, what in enumerate(("starts", "ends", "axes"), 1))
    if starts is None or ends is None:
        op.refuse("its starts or ends are missing")
    steps = (op.integers(4, "steps") if inputs else None) or (1,) * len(starts)
    shift = int(op.draft.whole)
    axes = tuple(range(len(starts))) if axes is None else axes
    if not len(starts) == len(ends) == len(axes) == len(steps):
        op.refuse(f"starts {tuple(starts)}, ends {tuple(ends)}, axes {tuple(axes)} and steps {tuple(steps)} are not "
                  "equally many")
    kept, result = [], list(dims)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        rank = len(dims) - shift
        if -rank <= axis < rank and axis % rank + shift == 0 and step == 1 and start == 0 \
                and end >= (op.draft.batch or 2**31 - 1):
            continue                                       # all of the batch
        if step == 0:
            op.refuse("a step is 0")
        place = op.axis(axis)
        kept.append((place, int(start), int(end), int(step)))
        result[place] = each(lambda n, a=start, b=end, by=step: _count(n, a, b, by), dims[place])
        if result[place] == 0:
            op.refuse(f"its result {show(tuple(result))} is empty")
    if len({place for place, *_ in kept}) < len(kept):
        op.refuse(f"its axes {tuple(axes)} name one twice")
    names = ("axes", "starts", "ends", "steps")
    op.emit("Slice", x, tuple(result), {name: tuple(one[i] for one in kept) for i, name in enumerate(names)})


def _count(size: int, start: int, end: int, step: int) -> int:
    """How many numbers a slice takes of so many."""
    low, high = (0, size) if step > 0 else (-1, size - 1)
    start, end = (min(max(n + size if n < 0 else n, low), high) for n in (start, end))
    return len(range(start, end, step))


@converter("Pad", 1, 2, 11, 18, 19, *REARRANGING)
def pad(op: Op) -> None:
    """Gone where all pads are 0, as PyTorch writes them before average pooling."""
    x, dims = op.tensor(), op.dims()
    inputs, shift = op.opset >= 11, int(op.draft.whole)
    rank = len(dims) - shift
    pads = op.integers(1, "pads") if inputs else op.attribute("pads", op.attribute("paddings", ()))
    axes = op.integers(3, "axes") if len(op.inputs) > 3 else None
    axes = tuple(range(rank)) if axes is None else axes
    if pads is None or len(pads) != 2 * len(axes) or any(not -rank <= axis < rank for axis in axes):
        op.refuse(f"pads {pads} do not fit the axes {tuple(axes)} of {show(dims)}")
    before, after = [0] * len(dims), [0] * len(dims)
    for axis, first, last in zip(axes, pads, pads[len(axes):], strict=False):
        place = axis % rank + shift
        before[place], after[place] = int(first), int(last)
    if before[0] or after[0]:
        op.refuse(f"pads {tuple(pads)} add to the batch")
    if not any((*before, *after)):
        op.draft.values[op.outputs[0]] = x
        return
    mode = op.attribute("mode", "constant")
    if mode not in ("constant", "reflect", "edge", "wrap"):
        op.refuse(f"mode is {mode!r}; expected constant, reflect, edge or wrap")
    value = op.scalar(2, "value", 0.0) if inputs else op.attribute("value", 0.0)
    result = tuple(each(lambda n, a=first, b=last: n + a + b, n) for n, first, last in zip(dims, before, after, strict=True))
    for n, first, last in zip(dims[1:], before[1:], after[1:], strict=True):
        if isinstance(n, int) and n + min(first, 0) + min(last, 0) < 1:
            op.refuse(f"pads {tuple(pads)} crop away all of an axis of {show(dims)}")
    op.emit("Pad", x, result, {"pads": (*before[1:], *after[1:]), "mode": mode, "value": float(value)})


@converter("Tile", 6, 13)
def tile(op: Op) -> None:
    x, dims = op.tensor(), op.dims()
    repeats = op.integers(1, "repeats")
    if repeats is None or len(repeats) != len(dims) - op.draft.whole:
        op.refuse(f"repeats {repeats} do not fit {show(dims)}")
    repeats = (1, *repeats) if op.draft.whole else repeats
    if repeats[0] != 1:
        op.refuse(f"repeats {tuple(repeats)} repeat the batch")
    if min(repeats) < 1:
        op.refuse(f"repeats {tuple(repeats)} make an empty tensor")
    repeated = [axis for axis, times in enumerate(repeats) if times != 1]
    # two axes of an image are one node; more would take more loops than the kernels have
    groups = [repeated] if len(repeated) <= 2 and len(dims) <= 4 else [[axis] for axis in repeated]
    for number, group in enumerate(groups, 1):
        times = tuple(repeats[axis] if axis in group else 1 for axis in range(len(dims)))
        dims = tuple(each(lambda n, many=many: n * many, n) if many != 1 else n for n, many in zip(dims, times, strict=True))
        last = number == len(groups)
        x = op.emit("Tile", x, dims, {"repeats": times[1:]}, output=None if last else f"{op.outputs[0]}/tiled{number}",
                    suffix="" if last else f"tiled{number}")


@converter("Expand", 8, 13)
def expand(op: Op) -> None:
    x, dims = op.tensor(), op.dims()
    known = op.known(1, "shape")
    if known is None:
        op.refuse("its shape is missing")
    target = known.elements()
    missing = len(dims) - op.draft.whole - len(target)
    target = [*(1,) * missing, *target]
    if op.draft.whole:
        target.insert(0, 1)
        if missing < 0:
            wide = (dims[0], *(1,) * -missing, *dims[1:])
            x = op.emit("Reshape", x, wide, {"shape": op.sample(wide)}, output=f"{op.outputs[0]}/wide", suffix="wide")
            dims = wide
    if len(target) > len(dims):
        op.refuse(f"its shape {show(tuple(target))} has more axes than {show(dims)}: the batch would not stay axis 0")
    if target[0] not in (1, BATCH, op.draft.batch):
        op.refuse(f"its shape {show(tuple(target))} expands the batch")
    wanted, result = [], [dims[0]]
    for n, size in zip(dims[1:], target[1:], strict=True):
        if size == n:
            size = 1
        if not isinstance(size, int):
            op.refuse(f"its shape {show(tuple(target))} depends on an open size; give input_shapes to load_onnx")
        if size < 1 or (isinstance(n, int) and 1 not in (n, size)):
            op.refuse(f"{show(dims)} does not broadcast to {show(tuple(target))}")
        wanted.append(size)
        result.append(n if size == 1 else size)
    op.emit("Expand", x, tuple(result), {"shape": tuple(wanted)})


@converter("Gather", 1, 11, 13)
def gather(op: Op) -> None:
    x, dims = op.tensor(), op.dims()
    axis = op.axis(op.attribute("axis", 0))
    indices = op.integers(1, "indices")
    if indices is None:
        op.refuse("its indices are missing")
    if not indices:
        op.refuse("its indices are empty")
    size, shape = dims[axis], op.value(1).shape                  # type: ignore[union-attr]
    if isinstance(size, int) and any(not -size <= index < size for index in indices):
        op.refuse(f"its indices leave the {size} numbers of axis {axis}")
    flat = (*dims[:axis], len(indices), *dims[axis + 1:])
    output = None if len(shape) == 1 else f"{op.outputs[0]}/rows"
    step = indices[1] - indices[0] if len(indices) > 1 else 1
    run = step != 0 and all(b - a == step for a, b in zip(indices, indices[1:], strict=False))
    if run and min(indices) * max(indices) >= 0 and (min(indices) >= 0 or max(indices) < 0):
        end = indices[-1] + step
        if (end < 0) != (indices[0] < 0):                        # past the last number, or before the first
            end = INFINITE if step > 0 else -INFINITE
        attrs = {"axes": (axis,), "starts": (indices[0],), "ends": (end,), "steps": (step,)}
        rows = op.emit("Slice", x, flat, attrs, output=output)
    else:
        rows = op.emit("Gather", x, flat, {"axis": axis, "indices": indices}, output=output)
    if len(shape) != 1:
        wide = (*dims[:axis], *shape, *dims[axis + 1:])
        op.emit("Reshape", rows, wide, {"shape": op.sample(wide)}, suffix="shape")


@converter("DepthToSpace", 1, 11, 13, 28)
def depth_to_space(op: Op) -> None:
    x, dims = op.tensor(0, rank=4), op.dims()
    block, mode = op.attribute("blocksize", 0), op.attribute("mode", "DCR")
    if block < 1 or mode not in ("DCR", "CRD") or (isinstance(dims[1], int) and dims[1] % block**2):
        op.refuse(f"blocksize {block} and mode {mode!r} do not fit {show(dims)}")
    channels = each(lambda n: n // block**2, dims[1])
    op.emit("DepthToSpace", x, (dims[0], channels, *(each(lambda n: n * block, n) for n in dims[2:])),
            {"block": block, "mode": mode})


@converter("SpaceToDepth", 1, 13, 28)
def space_to_depth(op: Op) -> None:
    x, dims = op.tensor(0, rank=4), op.dims()
    block, mode = op.attribute("blocksize", 0), op.attribute("mode", "DCR")
    if block < 1 or mode not in ("DCR", "CRD") or any(isinstance(n, int) and n % block for n in dims[2:]):
        op.refuse(f"blocksize {block} and mode {mode!r} do not fit {show(dims)}")
    channels = each(lambda n: n * block**2, dims[1])
    op.emit("SpaceToDepth", x, (dims[0], channels, *(each(lambda n: n // block, n) for n in dims[2:])),
            {"block": block, "mode": mode})


@converter("Cast", 6, 9, 19, 28, *REARRANGING)
def cast(op: Op) -> None:
    """Gone between floating-point types: all numbers are of the network's own dtype."""
    to = op.attribute("to")
    _as_dtype(op, helper.tensor_dtype_to_np_dtype(to).name if to in TensorProto.DataType.values() and to else str(to))


@converter("CastLike", 15, 19, 21, 23, 24, 25)
def cast_like(op: Op) -> None:
    first, other = op.value(0), op.value(1)
    if isinstance(first, Constant) and first.is_float and isinstance(other, Tensor) and other.dtype in FLOAT_DTYPES:
        op.draft.values[op.outputs[0]] = first
    elif isinstance(other, Tensor):
        _as_dtype(op, other.dtype)
    elif isinstance(other, Constant):
        _as_dtype(op, other.probes[0].dtype.name)
    else:
        op.refuse("what it is to be like is missing")


def _as_dtype(op: Op, dtype: str) -> None:
    x = op.tensor()
    if dtype in FLOAT_DTYPES and x.dtype in FLOAT_DTYPES:
        op.draft.values[op.outputs[0]] = Tensor(x.name, x.dims, dtype)
        return
    if dtype not in (*FLOAT_DTYPES, *INTEGERS):
        op.refuse(f"it turns {x.dtype} numbers into {dtype}; only {', '.join((*FLOAT_DTYPES, *INTEGERS))} are supported")
    op.emit("Cast", x, op.dims(), dtype="float32" if dtype == "bfloat16" else dtype)
