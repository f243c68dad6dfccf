"""Converters of the operators that make one number of many: sums, means, norms, extremes and their places."""
from __future__ import annotations

from .onnx_registry import Op, converter
from .onnx_values import Dim, Tensor

VERSIONS = {"ReduceSum": (1, 11, 13), "ReduceMax": (1, 11, 12, 13, 18, 20), "ReduceMin": (1, 11, 12, 13, 18, 20),
            **dict.fromkeys(("ReduceLogSum", "ReduceLogSumExp"), (1, 11, 13, 18, 28)),
            **dict.fromkeys(("ReduceMean", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceSumSquare"), (1, 11, 13, 18))}


def _axes(op: Op) -> tuple[int, ...]:
    """The axes that go, as the graph counts them, in order. Refuses the batch."""
    given = op.integers(1, "axes") if len(op.inputs) > 1 else op.attribute("axes")
    rank = len(op.dims())
    if given:
        axes = sorted({op.axis(axis) for axis in given})
        if len(axes) < len(given):
            op.refuse(f"axes {tuple(given)} names an axis twice")
        return tuple(axes)
    if op.attribute("noop_with_empty_axes", 0):
        return ()
    if not op.draft.whole:
        op.refuse("it reduces all axes, the batch among them")
    return tuple(range(1, rank))


def _kept(dims: tuple[Dim, ...], axes: tuple[int, ...], keepdims: bool) -> tuple[Dim, ...]:
    return tuple(1 if axis in axes else n for axis, n in enumerate(dims) if keepdims or axis not in axes)


def reduction(op: Op) -> None:
    x, dims, axes = op.tensor(), op.dims(), _axes(op)
    keepdims = bool(op.attribute("keepdims", 1))
    if op.type == "ReduceMean" and len(dims) == 4 and axes in ((2, 3), (1, 2)):
        _spatial_mean(op, x, dims, axes, keepdims)
        return
    op.emit(op.type, x, _kept(dims, axes, keepdims), {"axes": axes, "keepdims": keepdims})


for _operator, _versions in VERSIONS.items():
    converter(_operator, *_versions)(reduction)


def _spatial_mean(op: Op, x: Tensor, dims: tuple[Dim, ...], axes: tuple[int, ...], keepdims: bool) -> None:
    """A mean over the two spatial axes, of an image whose channels lie first or last: global average pooling."""
    output = op.outputs[0]
    if axes == (1, 2):
        x = op.emit("Transpose", x, (dims[0], dims[3], dims[1], dims[2]), {"perm": (0, 3, 1, 2)},
                    output=f"{output}/channels_first", suffix="channels_first")
    channels = dims[1] if axes == (2, 3) else dims[3]
    if axes == (2, 3) and keepdims:
        op.emit("GlobalAvgPool2d", x, (dims[0], channels, 1, 1))
        return
    pooled = op.emit("GlobalAvgPool2d", x, (dims[0], channels, 1, 1), output=f"{output}/pooled")
    if keepdims:
        op.emit("Transpose", pooled, (dims[0], 1, 1, channels), {"perm": (0, 2, 3, 1)}, suffix="channels_last")
    else:
        op.emit("Flatten", pooled, (dims[0], channels), {"axis": 1}, suffix="flatten")


@converter("ArgMax", 1, 11, 12, 13)
@converter("ArgMin", 1, 11, 12, 13)
def place(op: Op) -> None:
    x, dims, axis = op.tensor(), op.dims(), op.axis(op.attribute("axis", 0))
    keepdims = bool(op.attribute("keepdims", 1))
    result = op.emit(op.type, x, _kept(dims, (axis,), keepdims),
                     {"axis": axis, "keepdims": keepdims, "last": bool(op.attribute("select_last_index", 0))})
    # what computes with floating-point numbers cannot read it
    op.draft.values[result.name] = Tensor(result.name, result.dims, "int64")
