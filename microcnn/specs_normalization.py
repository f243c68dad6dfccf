"""Normalisation by a sample's own statistics, with PyTorch's names and keywords."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from .errors import ModelError
from .specs import Described, LayerSpec, Shape, count_of

ROLES = {"weight": "scale", "bias": "bias"}


def _affine(shape: Shape, wanted: bool = True, bias: bool = True) -> dict[str, np.ndarray]:
    """Ones and zeros to begin with, as PyTorch has them."""
    weights = {"weight": np.ones(shape, np.float32), "bias": np.zeros(shape, np.float32)}
    return {name: array for name, array in weights.items() if wanted and (bias or name == "weight")}


def _channels(shape: Shape, owner: str) -> int:
    if not shape:
        raise ModelError(f"{owner}: the input is one number a sample; expected (channels, ...)")
    return shape[0]


@dataclass
class LayerNorm(LayerSpec):
    """torch.nn.LayerNorm: over the last axes, whose sizes are normalized_shape. Weights of that shape: weight, bias."""

    short: ClassVar[str] = "ln"
    roles: ClassVar[dict[str, str]] = ROLES
    normalized_shape: int | tuple[int, ...]
    eps: float = 1e-5
    elementwise_affine: bool = True
    bias: bool = True
    name: str | None = None

    def node(self, shape: Shape, rng: np.random.Generator) -> Described:
        given: Any = self.normalized_shape if isinstance(self.normalized_shape, (tuple, list)) else (self.normalized_shape,)
        sizes = tuple(count_of(n, "LayerNorm", "normalized_shape") for n in given)
        if not sizes or shape[-len(sizes):] != sizes:
            raise ModelError(f"LayerNorm: normalized_shape is {self.normalized_shape!r}; expected the last sizes of the "
                             f"input's shape {shape}")
        return "LayerNorm", {"axis": -len(sizes), "eps": float(self.eps)}, _affine(sizes, self.elementwise_affine, self.bias)


@dataclass
class GroupNorm(LayerSpec):
    """torch.nn.GroupNorm without num_channels, of (C, ...). Weights (C,): weight, bias."""

    short: ClassVar[str] = "gn"
    roles: ClassVar[dict[str, str]] = ROLES
    num_groups: int
    eps: float = 1e-5
    affine: bool = True
    name: str | None = None

    def node(self, shape: Shape, rng: np.random.Generator) -> Described:
        C, G = _channels(shape, "GroupNorm"), count_of(self.num_groups, "GroupNorm", "num_groups")
        if C % G:
            raise ModelError(f"GroupNorm: num_groups (={G}) must divide the {C} channels")
        return "GroupNorm", {"groups": G, "eps": float(self.eps)}, _affine((C,), self.affine)


@dataclass
class InstanceNorm2d(LayerSpec):
    """torch.nn.InstanceNorm2d without num_features, of (C, H, W), always by the sample's statistics. Affine: weight, bias."""

    short: ClassVar[str] = "in"
    roles: ClassVar[dict[str, str]] = ROLES
    eps: float = 1e-5
    affine: bool = False
    name: str | None = None

    def node(self, shape: Shape, rng: np.random.Generator) -> Described:
        if len(shape) != 3:
            raise ModelError(f"InstanceNorm2d: the input has shape {shape} for one sample; expected (channels, height, width)")
        return "InstanceNorm", {"eps": float(self.eps)}, _affine(shape[:1], self.affine)


@dataclass
class LocalResponseNorm(LayerSpec):
    """torch.nn.LocalResponseNorm of (C, ...), for an odd size."""

    short: ClassVar[str] = "lrn"
    size: int
    alpha: float = 1e-4
    beta: float = 0.75
    k: float = 1.0
    name: str | None = None

    def node(self, shape: Shape, rng: np.random.Generator) -> Described:
        _channels(shape, "LocalResponseNorm")
        if count_of(self.size, "LocalResponseNorm", "size") % 2 == 0:
            raise ModelError(f"LocalResponseNorm: size is {self.size}; PyTorch and ONNX place even windows differently, so "
                             "give an odd one")
        return "LRN", {"size": int(self.size), "alpha": float(self.alpha), "beta": float(self.beta), "bias": float(self.k)}, {}
