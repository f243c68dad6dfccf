"""Layers that slide a window over an image, with PyTorch's names and keywords: convolutions, pooling."""
from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from .errors import ModelError
from .specs import Described, LayerSpec, PlainSpec, Shape, Size, channels_of, count_of, pads_of, pair_of, uniform


@dataclass
class _Convolution(LayerSpec):
    """What both kinds of convolution take first. op: the operation that each becomes."""

    op: ClassVar[str]
    out_channels: int
    kernel_size: Size
    stride: Size = 1
    padding: Any = 0

    def _node(self, shape: Shape, rng: np.random.Generator, bias: bool, transposed: bool, dilation: Size, groups: Any,
              ) -> Described:
        """The node with its weights; of a transposed one the weight is (C, K / groups, R, S)."""
        owner = self.op
        C, K = channels_of(shape, owner), count_of(self.out_channels, owner, "out_channels")
        R, S = pair_of(self.kernel_size, owner, "kernel_size")
        count = _groups(groups, owner, C, K)
        first, second = (C, K) if transposed else (K, C)
        bound = 1 / math.sqrt(second // count * R * S)
        weights = {"weight": uniform(rng, bound, (first, second // count, R, S))}
        if bias:
            weights["bias"] = uniform(rng, bound, (K,))
        attrs = {"kernel": (R, S), "stride": pair_of(self.stride, owner, "stride"), "pads": pads_of(self.padding, owner),
                 "dilation": pair_of(dilation, owner, "dilation"), "groups": count}
        return owner, attrs, weights


@dataclass
class Conv2d(_Convolution):
    """torch.nn.Conv2d without in_channels: (C, H, W) -> (out_channels, OH, OW).

    padding may also be (top, left, bottom, right), "same" or "valid". Weights: weight (K, C / groups, R, S), bias (K,).
    """

    short: ClassVar[str] = "conv"
    op: ClassVar[str] = "Conv2d"
    dilation: Size = 1
    groups: int = 1
    bias: bool = True
    name: str | None = None

    def node(self, shape: Shape, rng: np.random.Generator) -> Described:
        return self._node(shape, rng, self.bias, False, self.dilation, self.groups)


@dataclass
class ConvTranspose2d(_Convolution):
    """torch.nn.ConvTranspose2d without in_channels: (C, H, W) -> (out_channels, OH, OW), by default the larger.

    OH = (H - 1) * stride - 2 * padding + dilation * (kernel_size - 1) + output_padding + 1; padding may also be (top, left,
    bottom, right). Weights: weight (C, K / groups, R, S), bias (K,).
    """

    short: ClassVar[str] = "convt"
    op: ClassVar[str] = "ConvTranspose2d"
    output_padding: Size = 0
    groups: int = 1
    bias: bool = True
    dilation: Size = 1
    name: str | None = None

    def node(self, shape: Shape, rng: np.random.Generator) -> Described:
        owner, attrs, weights = self._node(shape, rng, self.bias, True, self.dilation, self.groups)
        stride, dilation = attrs["stride"], attrs["dilation"]
        more = pair_of(self.output_padding, owner, "output_padding", 0)
        if any(n >= max(pair) for n, *pair in zip(more, stride, dilation, strict=True)):
            raise ModelError(f"{owner}: output_padding is {self.output_padding!r}; it must be smaller than the stride "
                             f"{stride} or the dilation {dilation}")
        if isinstance(attrs["pads"], str):
            raise ModelError(f"{owner}: padding is {self.padding!r}; expected an integer, two, or four")
        return owner, {**attrs, "output_padding": more}, weights


def _groups(groups: Any, owner: str, C: int, K: int) -> int:
    """The number of groups, if it fits. Raises ModelError."""
    count_of(groups, owner, "groups")
    if C % groups or K % groups:
        usable = [g for g in range(1, C + 1) if C % g == 0 and K % g == 0]
        raise ModelError(f"{owner}: groups (={groups}) must divide the {C} input and {K} output channels; use one of {usable}")
    return int(groups)


@dataclass
class _Pool2d(LayerSpec):
    """What pooling takes first. op: the operation that it becomes."""

    op: ClassVar[str]
    kernel_size: Size
    stride: Size | None = None
    padding: Any = 0

    def _node(self, **more: Any) -> Described:
        owner = self.op
        kernel = pair_of(self.kernel_size, owner, "kernel_size")
        stride = kernel if self.stride is None else pair_of(self.stride, owner, "stride")
        return owner, {"kernel": kernel, "stride": stride, "pads": pads_of(self.padding, owner), **more}, {}


@dataclass
class MaxPool2d(_Pool2d):
    """torch.nn.MaxPool2d: (C, H, W) -> (C, OH, OW); stride None is the kernel's size, padding as in Conv2d."""

    short: ClassVar[str] = "maxpool"
    op: ClassVar[str] = "MaxPool2d"
    dilation: Size = 1
    ceil_mode: bool = False
    name: str | None = None

    def node(self, shape: Shape, rng: np.random.Generator) -> Described:
        return self._node(dilation=pair_of(self.dilation, "MaxPool2d", "dilation"), ceil_mode=bool(self.ceil_mode))


@dataclass
class AvgPool2d(_Pool2d):
    """torch.nn.AvgPool2d: (C, H, W) -> (C, OH, OW); stride None is the kernel's size, padding as in Conv2d."""

    short: ClassVar[str] = "avgpool"
    op: ClassVar[str] = "AvgPool2d"
    ceil_mode: bool = False
    count_include_pad: bool = True
    name: str | None = None

    def node(self, shape: Shape, rng: np.random.Generator) -> Described:
        return self._node(ceil_mode=bool(self.ceil_mode), count_include_pad=bool(self.count_include_pad))


@dataclass
class GlobalAvgPool2d(PlainSpec):
    """The mean over height and width: (C, H, W) -> (C, 1, 1), as torch.nn.AdaptiveAvgPool2d(1)."""

    short: ClassVar[str] = "gap"
    op: ClassVar[str] = "GlobalAvgPool2d"


@dataclass
class GlobalMaxPool2d(PlainSpec):
    """The maximum over height and width: (C, H, W) -> (C, 1, 1), as torch.nn.AdaptiveMaxPool2d(1)."""

    short: ClassVar[str] = "gmp"
    op: ClassVar[str] = "GlobalMaxPool2d"


@dataclass
class _AdaptivePool2d(LayerSpec):
    """Pooling to output_size, an integer or (height, width); None keeps a size. A plain pooling where the size divides."""

    kind: ClassVar[str] = ""
    more: ClassVar[dict[str, Any]] = {}
    output_size: Any
    name: str | None = None

    def node(self, shape: Shape, rng: np.random.Generator) -> Described:
        owner = type(self).__name__
        channels_of(shape, owner)
        given = self.output_size if isinstance(self.output_size, (tuple, list)) else (self.output_size, self.output_size)
        if len(given) != 2:
            raise ModelError(f"{owner}: output_size is {self.output_size!r}; expected an integer, or two")
        size = pair_of(tuple(old if n is None else n for n, old in zip(given, shape[1:], strict=True)), owner, "output_size")
        if size == (1, 1):
            return f"Global{self.kind}Pool2d", {}, {}
        if any(old % n for n, old in zip(size, shape[1:], strict=True)):
            return f"Adaptive{self.kind}Pool2d", {"size": size}, {}
        kernel = shape[1] // size[0], shape[2] // size[1]
        return f"{self.kind}Pool2d", {"kernel": kernel, "stride": kernel, "pads": (0, 0, 0, 0), "ceil_mode": False,
                                      **self.more}, {}


@dataclass
class AdaptiveAvgPool2d(_AdaptivePool2d):
    """torch.nn.AdaptiveAvgPool2d: (C, H, W) -> (C, *output_size), the mean of each window; None keeps a size."""

    short: ClassVar[str] = "avgpool"
    kind: ClassVar[str] = "Avg"
    more: ClassVar[dict[str, Any]] = {"count_include_pad": False}


@dataclass
class AdaptiveMaxPool2d(_AdaptivePool2d):
    """torch.nn.AdaptiveMaxPool2d: (C, H, W) -> (C, *output_size), the maximum of each window; None keeps a size."""

    short: ClassVar[str] = "maxpool"
    kind: ClassVar[str] = "Max"
    more: ClassVar[dict[str, Any]] = {"dilation": (1, 1)}
