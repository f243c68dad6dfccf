"""The activations that networks are built of in Python, with PyTorch's names and keywords; see specs.py."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from .errors import ModelError
from .specs import LayerSpec, Shape, count_of

Parts = tuple[str, dict[str, Any], dict[str, np.ndarray]]


@dataclass
class PReLU(LayerSpec):
    """torch.nn.PReLU: x where it is positive, else x times a trained slope: one, or num_parameters = one per channel.

    Weights: weight (1,), or (C, 1, 1) for images.
    """

    short: ClassVar[str] = "prelu"
    roles: ClassVar[dict[str, str]] = {"weight": "slope"}
    num_parameters: int = 1
    init: float = 0.25
    name: str | None = None

    def node(self, shape: Shape, rng: np.random.Generator) -> Parts:
        count = count_of(self.num_parameters, "PReLU", "num_parameters")
        if count != 1 and (not shape or shape[0] != count):
            raise ModelError(f"PReLU: num_parameters (={count}) does not fit an input of shape {shape} for one sample; use 1 "
                             "or its first axis")
        stored = (count, *(1,) * (len(shape) - 1)) if count != 1 else (1,)
        return "PRelu", {}, {"weight": np.full(stored, self.init, np.float32)}


@dataclass
class GELU(LayerSpec):
    """torch.nn.GELU: x times the normal distribution function; approximate may be "tanh"."""

    short: ClassVar[str] = "gelu"
    approximate: str = "none"
    name: str | None = None

    def node(self, shape: Shape, rng: np.random.Generator) -> Parts:
        if self.approximate not in ("none", "tanh"):
            raise ModelError(f'GELU: approximate is {self.approximate!r}; expected "none" or "tanh"')
        return "Gelu", {"approximate": self.approximate}, {}


@dataclass
class LeakyReLU(LayerSpec):
    """torch.nn.LeakyReLU: x where it is positive, else negative_slope x."""

    short: ClassVar[str] = "leakyrelu"
    negative_slope: float = 0.01
    name: str | None = None

    def node(self, shape: Shape, rng: np.random.Generator) -> Parts:
        return "LeakyRelu", {"alpha": float(self.negative_slope)}, {}


@dataclass
class ELU(LayerSpec):
    """torch.nn.ELU: x where it is positive, else alpha (exp(x) - 1)."""

    short: ClassVar[str] = "elu"
    alpha: float = 1.0
    name: str | None = None

    def node(self, shape: Shape, rng: np.random.Generator) -> Parts:
        return "Elu", {"alpha": float(self.alpha)}, {}


@dataclass
class SELU(LayerSpec):
    """torch.nn.SELU: ELU with the slopes that keep mean 0 and variance 1."""

    short: ClassVar[str] = "selu"
    name: str | None = None

    def node(self, shape: Shape, rng: np.random.Generator) -> Parts:
        return "Selu", {"alpha": 1.6732632423543772, "gamma": 1.0507009873554805}, {}


@dataclass
class CELU(LayerSpec):
    """torch.nn.CELU: x where it is positive, else alpha (exp(x / alpha) - 1)."""

    short: ClassVar[str] = "celu"
    alpha: float = 1.0
    name: str | None = None

    def node(self, shape: Shape, rng: np.random.Generator) -> Parts:
        return "Celu", {"alpha": float(self.alpha)}, {}


@dataclass
class Hardsigmoid(LayerSpec):
    """torch.nn.Hardsigmoid: x / 6 + 1/2 between 0 and 1."""

    short: ClassVar[str] = "hardsigmoid"
    name: str | None = None

    def node(self, shape: Shape, rng: np.random.Generator) -> Parts:
        return "HardSigmoid", {"alpha": 1 / 6, "beta": 0.5}, {}


@dataclass
class Hardswish(LayerSpec):
    """torch.nn.Hardswish: x times Hardsigmoid."""

    short: ClassVar[str] = "hardswish"
    name: str | None = None

    def node(self, shape: Shape, rng: np.random.Generator) -> Parts:
        return "HardSwish", {}, {}


@dataclass
class SiLU(LayerSpec):
    """torch.nn.SiLU: x sigmoid(x)."""

    short: ClassVar[str] = "silu"
    name: str | None = None

    def node(self, shape: Shape, rng: np.random.Generator) -> Parts:
        return "Swish", {"alpha": 1.0}, {}


@dataclass
class Softplus(LayerSpec):
    """torch.nn.Softplus: log(1 + exp(x)), with beta 1 and without a threshold."""

    short: ClassVar[str] = "softplus"
    name: str | None = None

    def node(self, shape: Shape, rng: np.random.Generator) -> Parts:
        return "Softplus", {}, {}


@dataclass
class Softsign(LayerSpec):
    """torch.nn.Softsign: x / (1 + |x|)."""

    short: ClassVar[str] = "softsign"
    name: str | None = None

    def node(self, shape: Shape, rng: np.random.Generator) -> Parts:
        return "Softsign", {}, {}


@dataclass
class Mish(LayerSpec):
    """torch.nn.Mish: x tanh(softplus(x))."""

    short: ClassVar[str] = "mish"
    name: str | None = None

    def node(self, shape: Shape, rng: np.random.Generator) -> Parts:
        return "Mish", {}, {}


@dataclass
class LogSoftmax(LayerSpec):
    """torch.nn.LogSoftmax; dim counts the batch as 0."""

    short: ClassVar[str] = "logsoftmax"
    dim: int = 1
    name: str | None = None

    def node(self, shape: Shape, rng: np.random.Generator) -> Parts:
        return "LogSoftmax", {"axis": int(self.dim), "flatten": False}, {}
