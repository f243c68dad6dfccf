"""Converters of the operators that compute: convolution, pooling, normalisation.

Those that a layer's own data describes in full (activations) are registered from that data.
"""
from __future__ import annotations

from typing import Any

from microcnn.graph import WeightRef
from microcnn.layers import LAYERS

from .onnx_registry import Op, converter
from .onnx_values import BATCH, Constant, Dim, each, product, show


def _plain(layer: str, attributes: dict[str, tuple[str, Any]]) -> Any:
    """The converter of an operator that a layer's own data describes."""
    def convert(op: Op) -> None:
        attrs = {name: op.attribute(written, default) for written, (name, default) in attributes.items()}
        op.emit(layer, op.tensor(), op.dims(), attrs)
    return convert


for _layer in LAYERS.values():
    for _operator, _data in _layer.onnx.items():
        if "versions" in _data:
            converter(_operator, *_data["versions"])(_plain(_layer.op, _data.get("attributes", {})))


def _window(op: Op, kernel: tuple[int, ...], spatial: tuple[Dim, ...], ceil_mode: bool = False,
            ) -> tuple[dict[str, Any], tuple[Dim, ...]]:
    """The attributes of a sliding window, automatic padding resolved where the size is known, and the result's size."""
    rank = len(kernel)
    stride = tuple(op.attribute("strides", (1,) * rank))
    dilation = tuple(op.attribute("dilations", (1,) * rank))
    pads: Any = tuple(op.attribute("pads", (0,) * (2 * rank)))
    auto_pad = op.attribute("auto_pad", "NOTSET")
    if len(stride) != rank or len(dilation) != rank or len(pads) != 2 * rank:
        op.refuse(f"strides {stride}, dilations {dilation} and pads {pads} do not fit a kernel of {rank} axes")
    if min(*kernel, *stride, *dilation) < 1:
        op.refuse(f"kernel {kernel}, strides {stride} and dilations {dilation} must be at least 1")
    if min(pads) < 0:
        op.refuse(f"pads {pads} are negative")
    reach = tuple(spread * (taps - 1) + 1 for taps, spread in zip(kernel, dilation, strict=True))
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        result = tuple(each(lambda n, step=step: -(-n // step), size) for size, step in zip(spatial, stride, strict=True))
        pads = _same_pads(auto_pad, spatial, reach, stride)
    else:
        if auto_pad not in ("NOTSET", "VALID"):
            op.refuse(f"auto_pad is {auto_pad!r}; expected NOTSET, VALID, SAME_UPPER or SAME_LOWER")
        if auto_pad == "VALID":
            pads = (0,) * (2 * rank)
        def places(axis: int) -> Dim:
            return each(lambda n: _steps(n, reach[axis], stride[axis], pads[axis], pads[rank + axis], ceil_mode), spatial[axis])
        result = tuple(places(axis) for axis in range(rank))
    if any(isinstance(size, int) and size < 1 for size in result):
        op.refuse(f"a window of {reach} is larger than its input of size {show(spatial)} with pads {pads}")
    return {"kernel": tuple(kernel), "stride": stride, "pads": pads, "dilation": dilation}, result


def _steps(size: int, reach: int, stride: int, before: int, after: int, ceil_mode: bool) -> int:
    """How many places a window takes along one axis. With ceil_mode none of them starts in the padding at the end."""
    room = size + before + after - reach
    if not ceil_mode:
        return room // stride + 1
    count = -(-room // stride) + 1
    return count - 1 if (count - 1) * stride >= size + before else count


def _same_pads(auto_pad: str, spatial: tuple[Dim, ...], reach: tuple[int, ...], stride: tuple[int, ...]) -> Any:
    """Explicit pads where the sizes are known, else the name of the rule."""
    begin, end = [], []
    for size, window, step in zip(spatial, reach, stride, strict=True):
        if not isinstance(size, int):
            return auto_pad.lower()
        total = max(0, (-(-size // step) - 1) * step + window - size)
        small, large = total // 2, total - total // 2
        begin.append(small if auto_pad == "SAME_UPPER" else large)
        end.append(large if auto_pad == "SAME_UPPER" else small)
    return (*begin, *end)


@converter("Conv", 1, 11, 22)
def convolution(op: Op) -> None:
    x, dims = op.tensor(0, rank=4), op.dims()
    weight = op.required(1, "weight", (None, None, None, None))
    groups = op.attribute("group", 1)
    channels, (count, per_group, *kernel) = dims[1], weight.shape
    if tuple(op.attribute("kernel_shape", tuple(kernel))) != tuple(kernel):
        op.refuse(f"kernel_shape is {op.attribute('kernel_shape')}, but the weight has the shape {weight.shape}")
    if groups < 1 or count % groups or (isinstance(channels, int) and channels != per_group * groups):
        op.refuse(f"group is {groups}; that does not fit {channels} input channels and a weight of {weight.shape}")
    bias = op.weight(2, "bias", (count,))
    attrs, spatial = _window(op, tuple(kernel), dims[2:])
    op.emit("Conv2d", x, (BATCH, count, *spatial), {**attrs, "groups": groups}, {"weight": weight, "bias": bias})


@converter("MaxPool", 1, 8, 10, 11, 12, 22)
def max_pool(op: Op) -> None:
    x, dims = op.tensor(0, rank=4), op.dims()
    op.single_output()
    ceil_mode = bool(op.attribute("ceil_mode", 0))
    attrs, spatial = _window(op, _kernel(op), dims[2:], ceil_mode)
    op.emit("MaxPool2d", x, (*dims[:2], *spatial), {**attrs, "ceil_mode": ceil_mode})


@converter("AveragePool", 7, 10, 11, 19, 22)
def average_pool(op: Op) -> None:
    x, dims = op.tensor(0, rank=4), op.dims()
    ceil_mode = bool(op.attribute("ceil_mode", 0))
    op.allow("dilations", (1, 1))
    attrs, spatial = _window(op, _kernel(op), dims[2:], ceil_mode)
    del attrs["dilation"]
    op.emit("AvgPool2d", x, (*dims[:2], *spatial),
            {**attrs, "ceil_mode": ceil_mode, "count_include_pad": bool(op.attribute("count_include_pad", 0))})


def _kernel(op: Op) -> tuple[int, ...]:
    """kernel_shape, of two axes."""
    kernel = tuple(op.attribute("kernel_shape", ()))
    if len(kernel) != 2:
        op.refuse(f"kernel_shape is {kernel}; expected two sizes")
    return kernel


@converter("GlobalAveragePool", 1, 22)
def global_average_pool(op: Op) -> None:
    x, dims = op.tensor(0, rank=4), op.dims()
    op.emit("GlobalAvgPool2d", x, (*dims[:2], 1, 1))


@converter("BatchNormalization", 7, 9, 14, 15)
def batch_norm(op: Op) -> None:
    x, dims = op.tensor(0, rank=(2, 4)), op.dims()
    if op.attribute("training_mode", 0):
        op.refuse("training_mode is 1; export the model in inference mode")
    op.allow("spatial", 1)
    op.single_output()
    channels = dims[1] if isinstance(dims[1], int) else None
    weights: dict[str, Constant | None] = {
        role: op.required(index, role, (channels,)) for index, role in enumerate(("scale", "bias", "mean", "var"), 1)}
    op.emit("BatchNorm2d", x, dims, {"eps": float(op.attribute("epsilon", 1e-5)),
                                     "momentum": float(op.attribute("momentum", 0.9))}, weights)


@converter("Clip", 6, 11, 12, 13)
def clip(op: Op) -> None:
    x = op.tensor()
    low = op.scalar(1, "min", op.attribute("min", float("-inf")))
    high = op.scalar(2, "max", op.attribute("max", float("inf")))
    op.emit("Clip", x, op.dims(), {"low": float(low), "high": float(high)})


@converter("Softmax", 1, 11, 13)
@converter("LogSoftmax", 1, 11, 13)
def softmax(op: Op) -> None:
    x, dims = op.tensor(), op.dims()
    old = op.opset < 13
    axis = op.axis(op.attribute("axis", 1 if old else -1))
    op.emit(op.type, x, dims, {"axis": axis, "flatten": old and axis != len(dims) - 1})


def viewed(found: Constant, step: str, argument: tuple[int, ...]) -> Constant:
    """A constant through one more view."""
    probes = tuple(array.reshape(argument) if step == "reshape" else array.transpose(argument)
                   for array in found.probes)
    return Constant(probes, WeightRef(found.ref.name, (*found.ref.view, (step, tuple(argument)))))


def per_sample(dims: tuple[Dim, ...]) -> Dim:
    """How many numbers one sample holds."""
    return product(dims[1:])
