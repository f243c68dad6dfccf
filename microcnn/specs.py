"""The layers that networks are built of in Python, with PyTorch's names and keywords, without the input sizes.

Each says which node of the graph it becomes for an input of a given shape; microcnn.build puts them together. Weights are
drawn as PyTorch draws them: uniform within 1 / sqrt(fan in).
"""
from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from .errors import ModelError

Size = int | tuple[int, int]
Shape = tuple[int, ...]
# (operation, attributes, weights by PyTorch's name)
Described = tuple[str, dict[str, Any], dict[str, np.ndarray]]


def _pair(value: Any, owner: str, name: str, least: int = 1) -> tuple[int, int]:
    """An integer for both axes, or one for each. Raises ModelError."""
    both = (value, value) if isinstance(value, (int, np.integer)) and not isinstance(value, bool) else value
    if not isinstance(both, (tuple, list)) or len(both) != 2 or \
            any(isinstance(n, bool) or not isinstance(n, (int, np.integer)) or n < least for n in both):
        raise ModelError(f"{owner}: {name} is {value!r}; expected an integer of at least {least}, or two")
    return int(both[0]), int(both[1])


def _pads(value: Any, owner: str) -> str | tuple[int, int, int, int]:
    """Padding as the layers take it: an integer, (vertical, horizontal), (top, left, bottom, right), or "same"."""
    if value == "same":
        return "same_upper"
    if value == "valid":
        return 0, 0, 0, 0
    if isinstance(value, (tuple, list)) and len(value) == 4:
        first, last = _pair(value[:2], owner, "padding", 0), _pair(value[2:], owner, "padding", 0)
        return *first, *last
    both = _pair(value, owner, "padding", 0)
    return both[0], both[1], both[0], both[1]


def count_of(value: Any, owner: str, name: str) -> int:
    """An integer of at least 1. Raises ModelError that names the owner and the argument."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise ModelError(f"{owner}: {name} is {value!r}; expected an integer of at least 1")
    return int(value)


def number_of(value: Any, owner: str, name: str, otherwise: str = "") -> float:
    """A real number. Raises ModelError that names the owner, the argument and what else is expected."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise ModelError(f"{owner}: {name} is {value!r}; expected a number{otherwise}")
    return float(value)


def axis_of(value: Any, owner: str) -> int:
    """An axis, of which the batch is 0. Raises ModelError that names the owner."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise ModelError(f"{owner}: dim is {value!r}; expected the number of an axis, of which the batch is 0")
    return int(value)


@dataclass
class LayerSpec(ABC):
    """The base of all layers.

    name   what its weights' names begin with; made from `short` and a number if None
    roles  the role in the graph's node of each weight, by PyTorch's name
    """

    short: ClassVar[str] = ""
    roles: ClassVar[dict[str, str]] = {"weight": "weight", "bias": "bias"}

    @abstractmethod
    def node(self, shape: Shape, rng: np.random.Generator) -> Described:
        """(operation, attributes, weights by PyTorch's name) for an input of that shape (one sample).

        Raises ModelError for arguments that are not valid, or do not fit the input.
        """


@dataclass
class PlainSpec(LayerSpec):
    """The base of layers that take no arguments. op: the operation that it becomes."""

    op: ClassVar[str]
    name: str | None = None

    def node(self, shape: Shape, rng: np.random.Generator) -> Described:
        return self.op, {}, {}


def _channels(shape: Shape, owner: str) -> int:
    """C of (C, H, W). Raises ModelError for anything else."""
    if len(shape) != 3:
        raise ModelError(f"{owner}: the input has shape {shape} for one sample; expected (channels, height, width)")
    return shape[0]


@dataclass
class Conv2d(LayerSpec):
    """torch.nn.Conv2d without in_channels: (C, H, W) -> (out_channels, OH, OW).

    padding may also be (top, left, bottom, right), "same" or "valid". Weights: weight (K, C / groups, R, S), bias (K,).
    """

    short: ClassVar[str] = "conv"
    out_channels: int
    kernel_size: Size
    stride: Size = 1
    padding: Any = 0
    dilation: Size = 1
    groups: int = 1
    bias: bool = True
    name: str | None = None

    def node(self, shape: Shape, rng: np.random.Generator) -> Described:
        C, K, groups = _channels(shape, "Conv2d"), count_of(self.out_channels, "Conv2d", "out_channels"), self.groups
        R, S = _pair(self.kernel_size, "Conv2d", "kernel_size")
        count_of(groups, "Conv2d", "groups")
        if C % groups or K % groups:
            usable = [g for g in range(1, C + 1) if C % g == 0 and K % g == 0]
            raise ModelError(f"Conv2d: groups (={groups}) must divide the {C} input and {K} output channels; use one of "
                             f"{usable}")
        bound = 1 / math.sqrt(C // groups * R * S)
        weights = {"weight": _uniform(rng, bound, (K, C // groups, R, S))}
        if self.bias:
            weights["bias"] = _uniform(rng, bound, (K,))
        attrs = {"kernel": (R, S), "stride": _pair(self.stride, "Conv2d", "stride"), "pads": _pads(self.padding, "Conv2d"),
                 "dilation": _pair(self.dilation, "Conv2d", "dilation"), "groups": groups}
        return "Conv2d", attrs, weights


@dataclass
class Linear(LayerSpec):
    """torch.nn.Linear without in_features: (..., C) -> (..., out_features). Weights: weight (K, C), bias (K,)."""

    short: ClassVar[str] = "linear"
    out_features: int
    bias: bool = True
    name: str | None = None

    def node(self, shape: Shape, rng: np.random.Generator) -> Described:
        K = count_of(self.out_features, "Linear", "out_features")
        if not shape:
            raise ModelError("Linear: the input is one number a sample; expected at least one axis beside the batch")
        if len(shape) == 3 and shape[1:] != (1, 1):
            raise ModelError(f"Linear: the input has shape {shape} for one sample; put a Flatten before it")
        bound = 1 / math.sqrt(shape[-1])
        weights = {"weight": _uniform(rng, bound, (K, shape[-1]))}
        if self.bias:
            weights["bias"] = _uniform(rng, bound, (K,))
        return "Linear", {"transposed": True}, weights


@dataclass
class BatchNorm2d(LayerSpec):
    """torch.nn.BatchNorm2d without num_features, over (C, H, W) or (C,); momentum is the new value's share, as in PyTorch.

    Weights, each (C,): weight, bias, running_mean, running_var.
    """

    short: ClassVar[str] = "bn"
    roles: ClassVar[dict[str, str]] = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
    eps: float = 1e-5
    momentum: float = 0.1
    name: str | None = None

    def node(self, shape: Shape, rng: np.random.Generator) -> Described:
        if not shape:
            raise ModelError("BatchNorm2d: the input is one number a sample; expected (channels,) or (channels, height, width)")
        C = shape[0]
        weights = {"weight": np.ones(C, np.float32), "bias": np.zeros(C, np.float32),
                   "running_mean": np.zeros(C, np.float32), "running_var": np.ones(C, np.float32)}
        return "BatchNorm2d", {"eps": number_of(self.eps, "BatchNorm2d", "eps"),
                               "momentum": 1.0 - number_of(self.momentum, "BatchNorm2d", "momentum")}, weights


@dataclass
class MaxPool2d(LayerSpec):
    """torch.nn.MaxPool2d: (C, H, W) -> (C, OH, OW); stride None is the kernel's size, padding as in Conv2d."""

    short: ClassVar[str] = "maxpool"
    kernel_size: Size
    stride: Size | None = None
    padding: Any = 0
    dilation: Size = 1
    ceil_mode: bool = False
    name: str | None = None

    def node(self, shape: Shape, rng: np.random.Generator) -> Described:
        kernel = _pair(self.kernel_size, "MaxPool2d", "kernel_size")
        stride = kernel if self.stride is None else _pair(self.stride, "MaxPool2d", "stride")
        return "MaxPool2d", {"kernel": kernel, "stride": stride, "pads": _pads(self.padding, "MaxPool2d"),
                             "dilation": _pair(self.dilation, "MaxPool2d", "dilation"), "ceil_mode": bool(self.ceil_mode)}, {}


@dataclass
class AvgPool2d(LayerSpec):
    """torch.nn.AvgPool2d: (C, H, W) -> (C, OH, OW); stride None is the kernel's size, padding as in Conv2d."""

    short: ClassVar[str] = "avgpool"
    kernel_size: Size
    stride: Size | None = None
    padding: Any = 0
    ceil_mode: bool = False
    count_include_pad: bool = True
    name: str | None = None

    def node(self, shape: Shape, rng: np.random.Generator) -> Described:
        kernel = _pair(self.kernel_size, "AvgPool2d", "kernel_size")
        stride = kernel if self.stride is None else _pair(self.stride, "AvgPool2d", "stride")
        return "AvgPool2d", {"kernel": kernel, "stride": stride, "pads": _pads(self.padding, "AvgPool2d"),
                             "ceil_mode": bool(self.ceil_mode), "count_include_pad": bool(self.count_include_pad)}, {}


@dataclass
class GlobalAvgPool2d(PlainSpec):
    """The mean over height and width: (C, H, W) -> (C, 1, 1), as torch.nn.AdaptiveAvgPool2d(1)."""

    short: ClassVar[str] = "gap"
    op: ClassVar[str] = "GlobalAvgPool2d"


@dataclass
class Flatten(LayerSpec):
    """torch.nn.Flatten: all axes of a sample in one."""

    short: ClassVar[str] = "flatten"
    name: str | None = None

    def node(self, shape: Shape, rng: np.random.Generator) -> Described:
        return "Flatten", {"axis": 1}, {}


@dataclass
class Reshape(LayerSpec):
    """Another shape for one sample; one size may be -1."""

    short: ClassVar[str] = "reshape"
    shape: Sequence[int]
    name: str | None = None

    def node(self, shape: Shape, rng: np.random.Generator) -> Described:
        sizes = self.shape if isinstance(self.shape, (tuple, list)) else (None,)
        if any(isinstance(n, bool) or not isinstance(n, (int, np.integer)) for n in sizes):
            raise ModelError(f"Reshape: shape is {self.shape!r}; expected integers, such as (16, -1)")
        return "Reshape", {"shape": tuple(int(n) for n in sizes)}, {}


@dataclass
class Upsample(LayerSpec):
    """torch.nn.Upsample: (C, H, W) -> (C, OH, OW), to a size or by a scale_factor, each for both axes or one for each.

    mode is "nearest", "bilinear" or "bicubic"; align_corners, for the last two, keeps the corners' numbers.
    """

    short: ClassVar[str] = "upsample"
    size: Size | None = None
    scale_factor: float | tuple[float, float] | None = None
    mode: str = "nearest"
    align_corners: bool | None = None
    name: str | None = None

    def node(self, shape: Shape, rng: np.random.Generator) -> Described:
        _channels(shape, "Upsample")
        modes = {"nearest": "nearest", "bilinear": "linear", "bicubic": "cubic"}
        if self.mode not in modes:
            raise ModelError(f"Upsample: mode is {self.mode!r}; expected one of {', '.join(modes)}")
        if self.mode == "nearest" and self.align_corners is not None:
            raise ModelError(f"Upsample: align_corners is {self.align_corners!r} and mode is nearest; leave it out, or use "
                             "bilinear or bicubic")
        if (self.size is None) == (self.scale_factor is None):
            raise ModelError(f"Upsample has {'neither' if self.size is None else 'both'} size and scale_factor; give one of "
                             "them")
        scales, sizes = None, None
        if self.size is not None:
            sizes = _pair(self.size, "Upsample", "size")
        else:
            given: Any = self.scale_factor if isinstance(self.scale_factor, (tuple, list)) else (self.scale_factor,) * 2
            if len(given) != 2 or any(isinstance(n, bool) or not isinstance(n, (int, float, np.number)) or not 0 < n < math.inf
                                      for n in given):
                raise ModelError(f"Upsample: scale_factor is {self.scale_factor!r}; expected a positive number, or two")
            scales = float(given[0]), float(given[1])
            if self.align_corners:      # corners lie where the sizes say, not where the factors would put them
                sizes, scales = (max(1, int(shape[1] * scales[0])), max(1, int(shape[2] * scales[1]))), None
        coordinates = "asymmetric" if self.mode == "nearest" else "align_corners" if self.align_corners else "half_pixel"
        return "Resize", {"axes": (2, 3), "scales": scales, "sizes": sizes, "mode": modes[self.mode], "nearest_mode": "floor",
                          "coordinate_transformation_mode": coordinates}, {}


@dataclass
class Dropout(LayerSpec):
    """torch.nn.Dropout: in training each number is 0 with probability p, the others are divided by 1 - p."""

    short: ClassVar[str] = "dropout"
    p: float = 0.5
    name: str | None = None

    def node(self, shape: Shape, rng: np.random.Generator) -> Described:
        return "Dropout", {"p": number_of(self.p, "Dropout", "p")}, {}


def _uniform(rng: np.random.Generator, bound: float, shape: Shape) -> np.ndarray:
    """float32 numbers between -bound and bound."""
    return rng.uniform(-bound, bound, shape).astype(np.float32)
