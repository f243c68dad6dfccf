"""How layers that slide windows over an image become ONNX nodes."""
from __future__ import annotations

import math
from typing import Any

import numpy as np

from microcnn.errors import ModelError
from microcnn.graph import Node
from microcnn.layers.adaptivepool2d import ranges, spread_out
from microcnn.layers.windows import resolve_pads

from .onnx_build import OPSET, Build, builder, given


def _ceil_mode(build: Build, node: Node) -> int:
    """ceil_mode, unless rounding down gives the same size: opset 17 counts windows that lie in the padding alone."""
    if not node.attrs["ceil_mode"] or build.shapes is None or isinstance(node.attrs["pads"], str):
        return int(node.attrs["ceil_mode"])
    pads, dilation = node.attrs["pads"], node.attrs.get("dilation", (1, 1))
    axes = zip(build.shapes[node.inputs[0]][1:], node.attrs["kernel"], node.attrs["stride"], pads, pads[2:], dilation,
               strict=False)
    rounded_down = tuple((size + before + after - spread * (taps - 1) - 1) // stride + 1
                         for size, taps, stride, before, after, spread in axes)
    return int(build.shapes[node.outputs[0]][1:] != rounded_down)


def _window(build: Build, node: Node, dilations: bool = True) -> dict[str, Any]:
    """The ONNX attributes of a sliding window; without `dilations` for operators that have none."""
    attrs = node.attrs
    found: dict[str, Any] = {"kernel_shape": list(attrs["kernel"]), "strides": list(attrs["stride"])}
    pads, dilation = attrs["pads"], tuple(attrs["dilation"]) if dilations else (1, 1)
    skips = any(step > taps for step, taps in zip(attrs["stride"], attrs["kernel"], strict=True))
    if isinstance(pads, str) and (skips or dilation != (1, 1)) and build.shapes is not None:
        # onnxruntime refuses auto_pad with a dilation, and takes a stride above the window for negative padding
        H, W = build.shapes[node.inputs[0]][1:]
        pads = resolve_pads(pads, (H, W), tuple(attrs["kernel"]), tuple(attrs["stride"]), dilation)
    if isinstance(pads, str):
        found["auto_pad"] = pads.upper()
    else:
        found["pads"] = list(pads)
    if dilations:
        found["dilations"] = list(dilation)
    return found


@builder("Conv2d")
def convolution(build: Build, node: Node) -> None:
    build.add("Conv", node, given(node.inputs[0], build.weight(node, "weight"), build.weight(node, "bias")),
              group=node.attrs["groups"], **_window(build, node))


@builder("ConvTranspose2d")
def transposed_convolution(build: Build, node: Node) -> None:
    build.add("ConvTranspose", node, given(node.inputs[0], build.weight(node, "weight"), build.weight(node, "bias")),
              group=node.attrs["groups"], output_padding=list(node.attrs["output_padding"]), **_window(build, node))


@builder("MaxPool2d")
def max_pool(build: Build, node: Node) -> None:
    build.add("MaxPool", node, [node.inputs[0]], ceil_mode=_ceil_mode(build, node), **_window(build, node))


@builder("AvgPool2d")
def average_pool(build: Build, node: Node) -> None:
    if tuple(node.attrs.get("dilation", (1, 1))) != (1, 1):
        raise ModelError(f'node "{node.name}": average pooling with a dilation has no form in ONNX opset {OPSET}')
    build.add("AveragePool", node, [node.inputs[0]], ceil_mode=_ceil_mode(build, node),
              count_include_pad=int(node.attrs["count_include_pad"]), **_window(build, node, dilations=False))


@builder("GlobalAvgPool2d", "GlobalMaxPool2d")
def global_pool(build: Build, node: Node) -> None:
    build.add("GlobalAveragePool" if node.op == "GlobalAvgPool2d" else "GlobalMaxPool", node, [node.inputs[0]])


def _sizes(build: Build, node: Node) -> list[tuple[int, int]]:
    """(length, size) of both axes of an adaptive pooling. Raises ModelError where a length is open."""
    if build.shapes is None:
        raise ModelError(f'node "{node.name}": {node.op} of open sizes has no form in ONNX opset {OPSET}')
    return list(zip(build.shapes[node.inputs[0]][1:], node.attrs["size"], strict=True))


@builder("AdaptiveAvgPool2d", "AdaptiveMaxPool2d")
def adaptive_pool(build: Build, node: Node) -> None:
    """One axis after the other: the windows next to each other, made equally large, then plain pooling.

    A maximum stays what it is when a number is repeated, a mean when all are, equally often.
    """
    average = node.op == "AdaptiveAvgPool2d"
    name = node.inputs[0]
    for axis, (length, size) in enumerate(_sizes(build, node), 2):
        if average:
            windows = ranges(length, size)
            widest = math.lcm(*map(len, windows))
            places = np.array([np.repeat(one, widest // len(one)) for one in windows])
        else:
            places = spread_out(length, size)
        if places.size != length:
            indices = build.constant(f"{node.name}.places", places.reshape(-1).astype(np.int64))
            name = build.add("Gather", node, [name, indices], build.free(f"{node.name}/axis{axis}"), f"/axis{axis}", axis=axis)
        kernel = [places.shape[1], 1] if axis == 2 else [1, places.shape[1]]
        result = "" if axis == 3 else build.free(f"{node.name}/pooled{axis}")
        name = build.add("AveragePool" if average else "MaxPool", node, [name], result, f"/pooled{axis}" if result else "",
                         kernel_shape=kernel, strides=kernel)
