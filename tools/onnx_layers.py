"""Converters of the operators that compute: convolution, pooling, normalisation, matrix products.

Those that a layer's own data describes in full (activations) are registered from that data.
"""
from __future__ import annotations

from typing import Any

from microcnn.graph import WeightRef
from microcnn.layers import LAYERS

from .onnx_elementwise import combine
from .onnx_registry import Op, converter
from .onnx_values import BATCH, Constant, Dim, Tensor, each, product, show


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


@converter("ReduceMean", 1, 11, 13, 18)
def reduce_mean(op: Op) -> None:
    """A mean over the two spatial axes: global average pooling."""
    x, dims = op.tensor(0, rank=4), op.dims()
    axes = op.integers(1, "axes") if len(op.inputs) > 1 else op.attribute("axes")
    axes = tuple(sorted(axis % 4 for axis in axes)) if axes else ()
    if axes not in ((2, 3), (1, 2)):
        op.refuse(f"it reduces the axes {axes or 'all'}; only the spatial ones, (2, 3) or (1, 2), are supported")
    keep, output = bool(op.attribute("keepdims", 1)), op.outputs[0]
    if axes == (1, 2):
        x = op.emit("Transpose", x, (dims[0], dims[3], dims[1], dims[2]), {"perm": (0, 3, 1, 2)},
                    output=f"{output}/channels_first", suffix="channels_first")
    channels = dims[1] if axes == (2, 3) else dims[3]
    if axes == (2, 3) and keep:
        op.emit("GlobalAvgPool2d", x, (dims[0], channels, 1, 1))
        return
    pooled = op.emit("GlobalAvgPool2d", x, (dims[0], channels, 1, 1), output=f"{output}/pooled")
    if keep:
        op.emit("Transpose", pooled, (dims[0], 1, 1, channels), {"perm": (0, 2, 3, 1)}, suffix="channels_last")
    else:
        op.emit("Flatten", pooled, (dims[0], channels), {"axis": 1}, suffix="flatten")


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
    # where the bounds are the wrong way round, the upper one is what counts
    op.emit("Clip", x, op.dims(), {"low": min(float(low), float(high)), "high": float(high)})


@converter("Softmax", 1, 11, 13)
@converter("LogSoftmax", 1, 11, 13)
def softmax(op: Op) -> None:
    x, dims = op.tensor(), op.dims()
    old = op.opset < 13
    axis = op.axis(op.attribute("axis", 1 if old else -1))
    op.emit(op.type, x, dims, {"axis": axis, "flatten": old and axis != len(dims) - 1})


@converter("Gemm", 7, 9, 11, 13)
def gemm(op: Op) -> None:
    x, dims = op.tensor(0, rank=2), op.dims()
    for name in ("alpha", "beta"):
        op.allow(name, 1.0)
    op.allow("transA", 0)
    weight = op.required(1, "matrix", (None, None))
    transposed = bool(op.attribute("transB", 0))
    count, width = weight.shape if transposed else weight.shape[::-1]
    _same_width(op, dims[-1], width)
    bias = op.value(2)
    vector = _as_vector(bias, count) if isinstance(bias, Constant) and op.weight(2, "bias") else None
    weights: dict[str, Constant | None] = {"weight": weight, "bias": vector}
    if bias is None or vector is not None:
        op.emit("Linear", x, (dims[0], count), {"transposed": transposed}, weights)
        return
    linear = op.emit("Linear", x, (dims[0], count), {"transposed": transposed}, weights,
                     output=f"{op.outputs[0]}/product")
    combine(op, "Add", linear, op.required(2, "constant operand") if isinstance(bias, Constant) else op.tensor(2), suffix="add")


@converter("MatMul", 1, 9, 13)
def matmul(op: Op) -> None:
    if isinstance(op.value(0), Constant) or isinstance(op.value(1), Tensor):
        if isinstance(op.value(0), Tensor):
            op.tensor(0), op.tensor(1)
        op.refuse("only a tensor times a constant matrix is supported")
    x, dims = op.tensor(0), op.dims()
    weight = op.required(1, "matrix")
    if len(weight.shape) < 2 or any(n != 1 for n in weight.shape[:-2]) or len(dims) < max(2, len(weight.shape)):
        op.refuse(f'its matrix "{op.inputs[1]}" has the shape {weight.shape}; only (C, K) is supported')
    width, count = weight.shape[-2:]
    if len(weight.shape) > 2:
        weight = viewed(weight, "reshape", (width, count))
    _same_width(op, dims[-1], width)
    op.emit("Linear", x, (*dims[:-1], count), {"transposed": False}, {"weight": weight})


def _same_width(op: Op, found: Dim, width: int) -> None:
    """Refuse a product whose input does not have as many numbers as the matrix has rows."""
    if isinstance(found, int) and found != width:
        op.refuse(f"its input has {found} numbers along the last axis; the matrix expects {width}")


def viewed(found: Constant, step: str, argument: tuple[int, ...]) -> Constant:
    """A constant through one more view."""
    probes = tuple(array.reshape(argument) if step == "reshape" else array.transpose(argument)
                   for array in found.probes)
    return Constant(probes, WeightRef(found.ref.name, (*found.ref.view, (step, tuple(argument)))))


def _as_vector(found: Constant, count: int) -> Constant | None:
    """A constant of shape (K,), (1, K), ... as a vector, None if it is something else."""
    if not found.shape or found.shape[-1] != count or any(n != 1 for n in found.shape[:-1]):
        return None
    return found if len(found.shape) == 1 else viewed(found, "reshape", (count,))


def per_sample(dims: tuple[Dim, ...]) -> Dim:
    """How many numbers one sample holds."""
    return product(dims[1:])
