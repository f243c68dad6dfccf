"""Converters of the operators that slide a window over an image: convolutions and pooling.

What has one spatial axis, (N, C, L), becomes an image of height 1, between two Reshapes that move nothing.
"""
from __future__ import annotations

from typing import Any

from .onnx_layers import viewed
from .onnx_registry import Op, converter
from .onnx_values import BATCH, Constant, Dim, Tensor, each, show


class Image:
    """The first input as (N, C, H, W), and the way back to as many axes as it has."""

    def __init__(self, op: Op):
        self.op, self.dims = op, op.dims()
        found = op.tensor()
        if op.draft.whole:
            op.refuse("it needs a batch; all of the model is one sample here")
        if len(self.dims) not in (3, 4):
            op.refuse(f'"{op.inputs[0]}" has {len(self.dims)} axes; only (N, C, L) and (N, C, H, W) are supported'
                      f"{', no volumes' if len(self.dims) == 5 else ''}")
        self.spatial = self.dims[2:]
        if len(self.spatial) == 1:
            wide = (*self.dims[:2], 1, *self.spatial)
            found = op.emit("Reshape", found, wide, {"shape": op.sample(wide)}, output=f"{op.outputs[0]}/image", suffix="image")
        self.tensor: Tensor = found

    @property
    def channels(self) -> Dim:
        return self.dims[1]

    def weight(self, found: Constant) -> Constant:
        """A kernel (K, C, ...) with two spatial axes."""
        if len(self.spatial) == 2:
            return found
        K, C, S = found.shape
        return viewed(found, "reshape", (K, C, 1, S))

    def emit(self, layer: str, channels: Dim, spatial: tuple[Dim, ...], attrs: dict[str, Any] | None = None,
             weights: dict[str, Constant | None] | None = None) -> None:
        """Add the layer that makes the operator's result; window attributes for as many axes as the operator has."""
        op, row = self.op, len(self.spatial) == 1
        attrs = dict(attrs or {})
        if row:
            for name, start in (("kernel", 1), ("stride", 1), ("dilation", 1), ("output_padding", 0)):
                if name in attrs:
                    attrs[name] = (start, *attrs[name])
            if isinstance(attrs.get("pads"), tuple):
                attrs["pads"] = (0, attrs["pads"][0], 0, attrs["pads"][1])
        wide = (BATCH, channels, *((1,) if row else ()), *spatial)
        made = op.emit(layer, self.tensor, wide, attrs, weights, output=f"{op.outputs[0]}/row" if row else None)
        if row:
            dims = (BATCH, channels, *spatial)
            op.emit("Reshape", made, dims, {"shape": op.sample(dims)}, suffix="row")


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
    _convolution(op, "Conv2d", transposed=False)


@converter("ConvTranspose", 1, 11, 22)
def transposed_convolution(op: Op) -> None:
    _convolution(op, "ConvTranspose2d", transposed=True)


def _convolution(op: Op, layer: str, transposed: bool) -> None:
    """Add the layer of a convolution with a weight (K, C / groups, ...), of a transposed one with (C, K / groups, ...)."""
    image = Image(op)
    weight = op.required(1, "weight", (None,) * len(image.dims))
    groups = op.attribute("group", 1)
    first, per_group, *kernel = weight.shape
    if tuple(op.attribute("kernel_shape", kernel)) != tuple(kernel):
        op.refuse(f"kernel_shape is {op.attribute('kernel_shape')}, but the weight has the shape {weight.shape}")
    channels, count = (first, per_group * groups) if transposed else (per_group * groups, first)
    if groups < 1 or first % groups or (isinstance(image.channels, int) and image.channels != channels):
        op.refuse(f"group is {groups}; that does not fit {image.channels} input channels and a weight of {weight.shape}")
    bias = op.weight(2, "bias", (count,))
    if transposed:
        attrs, spatial = _transposed_window(op, tuple(kernel), image.spatial)
    else:
        attrs, spatial = _window(op, tuple(kernel), image.spatial)
    image.emit(layer, count, spatial, {**attrs, "groups": groups}, {"weight": image.weight(weight), "bias": bias})


def _transposed_window(op: Op, kernel: tuple[int, ...],
                       spatial: tuple[Dim, ...]) -> tuple[dict[str, Any], tuple[Dim, ...]]:
    """The attributes of a transposed convolution, automatic padding resolved, and the result's size.

    Where more is asked for than the windows reach, the rest is output padding, as in ONNX Runtime.
    """
    rank = len(kernel)
    stride, dilation = (tuple(op.attribute(name, (1,) * rank)) for name in ("strides", "dilations"))
    pads, more = list(op.attribute("pads", (0,) * (2 * rank))), list(op.attribute("output_padding", (0,) * rank))
    asked, auto_pad = op.attribute("output_shape"), op.attribute("auto_pad", "NOTSET")
    if len(stride) != rank or len(dilation) != rank or len(pads) != 2 * rank or len(more) != rank:
        op.refuse(f"strides {stride}, dilations {dilation}, pads {tuple(pads)} and output_padding {tuple(more)} do not fit a "
                  f"kernel of {rank} axes")
    if min(*kernel, *stride, *dilation) < 1:
        op.refuse(f"kernel {kernel}, strides {stride} and dilations {dilation} must be at least 1")
    if min(*pads, *more) < 0:
        op.refuse(f"pads {tuple(pads)} or output_padding {tuple(more)} are negative")
    if auto_pad not in ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"):
        op.refuse(f"auto_pad is {auto_pad!r}; expected NOTSET, VALID, SAME_UPPER or SAME_LOWER")
    if asked is not None and len(asked) not in (rank, rank + 2):
        op.refuse(f"output_shape is {tuple(asked)}; expected {rank} sizes")
    if auto_pad == "VALID":
        pads = [0] * (2 * rank)
    reach = [spread * (taps - 1) + 1 for taps, spread in zip(kernel, dilation, strict=True)]
    for axis in range(rank):
        if asked is not None:
            n = spatial[axis]
            if not isinstance(n, int):
                op.refuse("output_shape is given for an input of open size; give input_shapes to load_onnx")
            total = (n - 1) * stride[axis] + reach[axis] + more[axis] - asked[len(asked) - rank + axis]
            more[axis] += max(0, -total)
        elif auto_pad.startswith("SAME"):
            total = reach[axis] + more[axis] - stride[axis]
        else:
            continue
        small = max(0, total) // 2
        large = max(0, total) - small
        pads[axis], pads[rank + axis] = (small, large) if auto_pad == "SAME_UPPER" else (large, small)

    def size(axis: int) -> Dim:
        cut = pads[axis] + pads[rank + axis]
        return each(lambda n: (n - 1) * stride[axis] + reach[axis] + more[axis] - cut, spatial[axis])
    result = tuple(size(axis) for axis in range(rank))
    if any(isinstance(n, int) and n < 1 for n in result):
        op.refuse(f"pads {tuple(pads)} leave nothing of its output")
    attrs = {"kernel": kernel, "stride": stride, "pads": tuple(pads), "dilation": dilation, "output_padding": tuple(more)}
    return attrs, result


@converter("MaxPool", 1, 8, 10, 11, 12, 22)
def max_pool(op: Op) -> None:
    image = Image(op)
    op.single_output()
    ceil_mode = bool(op.attribute("ceil_mode", 0))
    attrs, spatial = _window(op, _kernel(op, image), image.spatial, ceil_mode)
    image.emit("MaxPool2d", image.channels, spatial, {**attrs, "ceil_mode": ceil_mode})


@converter("AveragePool", 7, 10, 11, 19, 22)
def average_pool(op: Op) -> None:
    image = Image(op)
    ceil_mode = bool(op.attribute("ceil_mode", 0))
    attrs, spatial = _window(op, _kernel(op, image), image.spatial, ceil_mode)
    image.emit("AvgPool2d", image.channels, spatial,
               {**attrs, "ceil_mode": ceil_mode, "count_include_pad": bool(op.attribute("count_include_pad", 0))})


def _kernel(op: Op, image: Image) -> tuple[int, ...]:
    """kernel_shape, of as many axes as the image has."""
    kernel = tuple(op.attribute("kernel_shape", ()))
    if len(kernel) != len(image.spatial):
        op.refuse(f"kernel_shape is {kernel}; expected {len(image.spatial)} sizes")
    return kernel


@converter("GlobalAveragePool", 1, 22)
@converter("GlobalMaxPool", 1, 22)
def global_pool(op: Op) -> None:
    image = Image(op)
    layer = "GlobalAvgPool2d" if op.type == "GlobalAveragePool" else "GlobalMaxPool2d"
    image.emit(layer, image.channels, (1,) * len(image.spatial))
