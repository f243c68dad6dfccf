"""Layers that put parts of tensors elsewhere, with PyTorch's names and keywords: padding, PixelShuffle, Concat."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from .errors import ModelError
from .specs import Described, LayerSpec, Shape, axis_of, count_of, number_of


def _frame(value: Any, owner: str, shape: Shape) -> tuple[int, ...]:
    """The pads of (C, H, W), from an integer or PyTorch's (left, right, top, bottom). Raises ModelError."""
    sides = (value,) * 4 if isinstance(value, (int, np.integer)) and not isinstance(value, bool) else value
    if not isinstance(sides, (tuple, list)) or len(sides) != 4 or \
            any(isinstance(n, bool) or not isinstance(n, (int, np.integer)) for n in sides):
        raise ModelError(f"{owner}: padding is {value!r}; expected an integer, or (left, right, top, bottom)")
    if len(shape) != 3:
        raise ModelError(f"{owner}: the input has shape {shape} for one sample; expected (channels, height, width)")
    left, right, top, bottom = (int(n) for n in sides)
    return 0, top, left, 0, bottom, right


@dataclass
class ConstantPad2d(LayerSpec):
    """torch.nn.ConstantPad2d: a frame of one number; padding is an integer or (left, right, top, bottom), negative to crop."""

    short: ClassVar[str] = "pad"
    mode: ClassVar[str] = "constant"
    padding: Any
    value: float = 0.0
    name: str | None = None

    def node(self, shape: Shape, rng: np.random.Generator) -> Described:
        pads = _frame(self.padding, type(self).__name__, shape)
        return "Pad", {"pads": pads, "mode": self.mode, "value": number_of(self.value, type(self).__name__, "value")}, {}


@dataclass
class ZeroPad2d(ConstantPad2d):
    """torch.nn.ZeroPad2d: a frame of zeros."""


@dataclass
class _MovedPad2d(LayerSpec):
    """A frame of the image's own numbers; padding is an integer or (left, right, top, bottom)."""

    short: ClassVar[str] = "pad"
    mode: ClassVar[str] = ""
    padding: Any
    name: str | None = None

    def node(self, shape: Shape, rng: np.random.Generator) -> Described:
        pads = _frame(self.padding, type(self).__name__, shape)
        return "Pad", {"pads": pads, "mode": self.mode, "value": 0.0}, {}


@dataclass
class ReflectionPad2d(_MovedPad2d):
    """torch.nn.ReflectionPad2d: mirrored at the edge, which is not repeated."""

    mode: ClassVar[str] = "reflect"


@dataclass
class ReplicationPad2d(_MovedPad2d):
    """torch.nn.ReplicationPad2d: the edge repeated."""

    mode: ClassVar[str] = "edge"


@dataclass
class CircularPad2d(_MovedPad2d):
    """torch.nn.CircularPad2d: the other side of the image."""

    mode: ClassVar[str] = "wrap"


@dataclass
class PixelShuffle(LayerSpec):
    """torch.nn.PixelShuffle: (C * r * r, H, W) -> (C, H * r, W * r), r being upscale_factor."""

    short: ClassVar[str] = "shuffle"
    upscale_factor: int
    name: str | None = None

    def node(self, shape: Shape, rng: np.random.Generator) -> Described:
        return "DepthToSpace", {"block": count_of(self.upscale_factor, "PixelShuffle", "upscale_factor"), "mode": "CRD"}, {}


@dataclass
class PixelUnshuffle(LayerSpec):
    """torch.nn.PixelUnshuffle: (C, H * r, W * r) -> (C * r * r, H, W), r being downscale_factor."""

    short: ClassVar[str] = "unshuffle"
    downscale_factor: int
    name: str | None = None

    def node(self, shape: Shape, rng: np.random.Generator) -> Described:
        block = count_of(self.downscale_factor, "PixelUnshuffle", "downscale_factor")
        return "SpaceToDepth", {"block": block, "mode": "CRD"}, {}


@dataclass
class Concat(LayerSpec):
    """torch.cat of any number of tensors; dim counts the batch as 0."""

    short: ClassVar[str] = "concat"
    dim: int = 1
    name: str | None = None

    def node(self, shape: Shape, rng: np.random.Generator) -> Described:
        return "Concat", {"axis": axis_of(self.dim, "Concat")}, {}
