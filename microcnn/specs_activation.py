"""The activations that networks are built of in Python, with PyTorch's names and keywords; see specs.py."""
from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from .errors import ModelError
from .specs import Described, LayerSpec, PlainSpec, Shape, axis_of, count_of, number_of


@dataclass
class ReLU(PlainSpec):
    """torch.nn.ReLU: max(x, 0)."""

    short: ClassVar[str] = "relu"
    op: ClassVar[str] = "Relu"


@dataclass
class Clip(LayerSpec):
    """min(max(x, low), high); torch.nn.Hardtanh with other defaults."""

    short: ClassVar[str] = "clip"
    low: float = -math.inf
    high: float = math.inf
    name: str | None = None

    def node(self, shape: Shape, rng: np.random.Generator) -> Described:
        return "Clip", {"low": number_of(self.low, "Clip", "low"), "high": number_of(self.high, "Clip", "high")}, {}


@dataclass
class ReLU6(Clip):
    """torch.nn.ReLU6: min(max(x, 0), 6)."""

    short: ClassVar[str] = "relu6"
    low: float = 0.0
    high: float = 6.0


@dataclass
class Sigmoid(PlainSpec):
    """torch.nn.Sigmoid: 1 / (1 + exp(-x))."""

    short: ClassVar[str] = "sigmoid"
    op: ClassVar[str] = "Sigmoid"


@dataclass
class Tanh(PlainSpec):
    """torch.nn.Tanh."""

    short: ClassVar[str] = "tanh"
    op: ClassVar[str] = "Tanh"


@dataclass
class Softmax(LayerSpec):
    """torch.nn.Softmax; dim counts the batch as 0."""

    short: ClassVar[str] = "softmax"
    dim: int = 1
    name: str | None = None

    def node(self, shape: Shape, rng: np.random.Generator) -> Described:
        return "Softmax", {"axis": axis_of(self.dim, "Softmax"), "flatten": False}, {}


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

    def node(self, shape: Shape, rng: np.random.Generator) -> Described:
        count = count_of(self.num_parameters, "PReLU", "num_parameters")
        if count != 1 and (not shape or shape[0] != count):
            raise ModelError(f"PReLU: num_parameters (={count}) does not fit an input of shape {shape} for one sample; use 1 "
                             "or its first axis")
        stored = (count, *(1,) * (len(shape) - 1)) if count != 1 else (1,)
        return "PRelu", {}, {"weight": np.full(stored, number_of(self.init, "PReLU", "init"), np.float32)}


@dataclass
class GELU(LayerSpec):
    """torch.nn.GELU: x times the normal distribution function; approximate may be "tanh"."""

    short: ClassVar[str] = "gelu"
    approximate: str = "none"
    name: str | None = None

    def node(self, shape: Shape, rng: np.random.Generator) -> Described:
        if self.approximate not in ("none", "tanh"):
            raise ModelError(f'GELU: approximate is {self.approximate!r}; expected "none" or "tanh"')
        return "Gelu", {"approximate": self.approximate}, {}


@dataclass
class LeakyReLU(LayerSpec):
    """torch.nn.LeakyReLU: x where it is positive, else negative_slope x."""

    short: ClassVar[str] = "leakyrelu"
    negative_slope: float = 0.01
    name: str | None = None

    def node(self, shape: Shape, rng: np.random.Generator) -> Described:
        return "LeakyRelu", {"alpha": number_of(self.negative_slope, "LeakyReLU", "negative_slope")}, {}


@dataclass
class ELU(LayerSpec):
    """torch.nn.ELU: x where it is positive, else alpha (exp(x) - 1)."""

    short: ClassVar[str] = "elu"
    alpha: float = 1.0
    name: str | None = None

    def node(self, shape: Shape, rng: np.random.Generator) -> Described:
        return "Elu", {"alpha": number_of(self.alpha, "ELU", "alpha")}, {}


@dataclass
class SELU(LayerSpec):
    """torch.nn.SELU: ELU with the slopes that keep mean 0 and variance 1."""

    short: ClassVar[str] = "selu"
    name: str | None = None

    def node(self, shape: Shape, rng: np.random.Generator) -> Described:
        return "Selu", {"alpha": 1.6732632423543772, "gamma": 1.0507009873554805}, {}


@dataclass
class CELU(LayerSpec):
    """torch.nn.CELU: x where it is positive, else alpha (exp(x / alpha) - 1)."""

    short: ClassVar[str] = "celu"
    alpha: float = 1.0
    name: str | None = None

    def node(self, shape: Shape, rng: np.random.Generator) -> Described:
        return "Celu", {"alpha": number_of(self.alpha, "CELU", "alpha")}, {}


@dataclass
class Hardsigmoid(LayerSpec):
    """torch.nn.Hardsigmoid: x / 6 + 1/2 between 0 and 1."""

    short: ClassVar[str] = "hardsigmoid"
    name: str | None = None

    def node(self, shape: Shape, rng: np.random.Generator) -> Described:
        return "HardSigmoid", {"alpha": 1 / 6, "beta": 0.5}, {}


@dataclass
class Hardswish(PlainSpec):
    """torch.nn.Hardswish: x times Hardsigmoid."""

    short: ClassVar[str] = "hardswish"
    op: ClassVar[str] = "HardSwish"


@dataclass
class SiLU(LayerSpec):
    """torch.nn.SiLU: x sigmoid(x)."""

    short: ClassVar[str] = "silu"
    name: str | None = None

    def node(self, shape: Shape, rng: np.random.Generator) -> Described:
        return "Swish", {"alpha": 1.0}, {}


@dataclass
class Softplus(PlainSpec):
    """torch.nn.Softplus: log(1 + exp(x)), with beta 1 and without a threshold."""

    short: ClassVar[str] = "softplus"
    op: ClassVar[str] = "Softplus"


@dataclass
class Softsign(PlainSpec):
    """torch.nn.Softsign: x / (1 + |x|)."""

    short: ClassVar[str] = "softsign"
    op: ClassVar[str] = "Softsign"


@dataclass
class Mish(PlainSpec):
    """torch.nn.Mish: x tanh(softplus(x))."""

    short: ClassVar[str] = "mish"
    op: ClassVar[str] = "Mish"


@dataclass
class LogSoftmax(LayerSpec):
    """torch.nn.LogSoftmax; dim counts the batch as 0."""

    short: ClassVar[str] = "logsoftmax"
    dim: int = 1
    name: str | None = None

    def node(self, shape: Shape, rng: np.random.Generator) -> Described:
        return "LogSoftmax", {"axis": axis_of(self.dim, "LogSoftmax"), "flatten": False}, {}
