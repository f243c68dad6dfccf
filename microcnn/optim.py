"""Optimizers as plain data: PyTorch's names, defaults and formulas. The update kernels read them at compile time."""
from __future__ import annotations

import math
import numbers
import sys
from dataclasses import dataclass, field
from typing import ClassVar

from .errors import CompileError


def _check(owner: str, name: str, value: object, expected: str, low: float = 0.0, high: float = math.inf) -> float:
    """value as a float within [low, high); raises CompileError."""
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not real or not low <= value <= sys.float_info.max or not value < high:   # type: ignore[operator]
        raise CompileError(f"{owner}: {name} is {value!r}; expected {expected}")
    return float(value)   # type: ignore[arg-type]


@dataclass(frozen=True)
class Optimizer:
    """The base of all optimizers. `kind` names the update kernel.

    clip_norm   where the norm of all gradients together is larger than this, each is multiplied by
                clip_norm / (norm + 1e-6), as torch.nn.utils.clip_grad_norm_ does before the optimizer's step. The norm is
                known only after the last gradient, so that every gradient is kept until then: about as many bytes as the
                trained weights take (net.memory shows them), where without it one layer's gradients at a time are enough.
                A gradient that is NaN or infinite stops the step before a weight has changed.
    """

    kind: ClassVar[str] = ""
    lr: float = 1e-3
    clip_norm: float | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        self._number("lr", "a finite number, 0 or more, such as 0.01")
        if self.clip_norm is not None:
            expected = "a finite number above 0, such as 1.0, or None"
            self._number("clip_norm", expected)
            if self.clip_norm == 0:
                raise CompileError(f"{type(self).__name__}: clip_norm is {self.clip_norm!r}; expected {expected}")

    def _number(self, name: str, expected: str = "a finite number, 0 or more", high: float = math.inf) -> None:
        value = _check(type(self).__name__, name, getattr(self, name), expected, high=high)
        object.__setattr__(self, name, value)


@dataclass(frozen=True)
class SGD(Optimizer):
    """Stochastic gradient descent, as torch.optim.SGD.

    g = gradient + weight_decay * w; buf = g at the first step, afterwards momentum * buf + (1 - dampening) * g;
    w -= lr * buf (with nesterov: lr * (g + momentum * buf); without momentum: lr * g). clip_norm: see Optimizer.

    Raises CompileError for numbers out of range, and for nesterov without momentum or with dampening.
    """

    kind: ClassVar[str] = "sgd"
    momentum: float = 0.0
    dampening: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._number("momentum", "a finite number, 0 or more, such as 0.9")
        self._number("dampening")
        self._number("weight_decay")
        if self.nesterov and (self.momentum == 0 or self.dampening != 0):
            raise CompileError(f"SGD: nesterov=True with momentum={self.momentum:g}, dampening={self.dampening:g}; "
                               "it needs a momentum above 0 and no dampening")


@dataclass(frozen=True)
class Adam(Optimizer):
    """Adam, as torch.optim.Adam: weight decay is added to the gradient.

    m = beta1 * m + (1 - beta1) * g; v = beta2 * v + (1 - beta2) * g * g, at step t (from 1)
    w -= lr * (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps). clip_norm: see Optimizer.

    Raises CompileError for numbers out of range.
    """

    kind: ClassVar[str] = "adam"
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        expected = "two numbers from 0 to below 1, such as (0.9, 0.999)"
        name = type(self).__name__
        if not isinstance(self.betas, (tuple, list)) or len(self.betas) != 2:
            raise CompileError(f"{name}: betas is {self.betas!r}; expected {expected}")
        first, second = (_check(name, f"betas[{i}]", beta, expected, high=1.0) for i, beta in enumerate(self.betas))
        object.__setattr__(self, "betas", (first, second))
        self._number("eps")
        self._number("weight_decay")


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam with decoupled weight decay, as torch.optim.AdamW: first w -= lr * weight_decay * w, then Adam's step."""

    kind: ClassVar[str] = "adamw"
    weight_decay: float = 1e-2


OPTIMIZERS: dict[str, type[Optimizer]] = {"sgd": SGD, "adam": Adam, "adamw": AdamW}


def resolve_optimizer(optimizer: object) -> Optimizer | None:
    """An optimizer object from what `compile` was given: an object, None, or (for the command line) a name.

    Raises CompileError for everything else, naming what is known.
    """
    if optimizer is None or isinstance(optimizer, Optimizer):
        return optimizer
    if isinstance(optimizer, str) and optimizer.lower() in OPTIMIZERS:
        return OPTIMIZERS[optimizer.lower()]()
    if isinstance(optimizer, type) and issubclass(optimizer, Optimizer):
        raise CompileError(f"optimizer is the class {optimizer.__name__}; make one of it: "
                           f"mc.{optimizer.__name__}(lr=0.01)")
    known = ", ".join(f"mc.{one.__name__}(...)" for one in OPTIMIZERS.values())
    raise CompileError(f"optimizer is {optimizer!r}; expected one of {known}")
