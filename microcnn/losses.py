"""Losses as plain data: PyTorch's names, defaults and meaning. The loss kernels read them at compile time."""
from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from .errors import CompileError


@dataclass(frozen=True)
class Loss:
    """The base of all losses. `kind` is the name that `compile(loss=...)` takes."""

    kind: ClassVar[str] = ""


@dataclass(frozen=True)
class CrossEntropyLoss(Loss):
    """Cross-entropy of the softmax of logits, as torch.nn.CrossEntropyLoss with reduction "mean".

    weight           one number per class, 0 or more, or None; the mean is then weighted
    ignore_index     targets of this class take no part
    label_smoothing  from 0 to 1: how much of the target is spread evenly over the classes

    Targets are class indices (N,) or (N, H, W) of any integer type, or probabilities of the logits' shape.
    Raises CompileError for values out of range. The weight is kept as a tuple of floats; compile checks its length.
    """

    kind: ClassVar[str] = "cross_entropy"
    weight: Sequence[float] | np.ndarray | None = None
    ignore_index: int = -100
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        if self.weight is not None:
            expected = "one finite number per class, 0 or more and not all 0, such as [1.0, 2.5]"
            try:
                weight = np.asarray(self.weight, np.float64)
            except (TypeError, ValueError):
                raise CompileError(f"CrossEntropyLoss: weight is {self.weight!r}; expected {expected}") from None
            if weight.ndim != 1 or not weight.size or not np.isfinite(weight).all() or weight.min() < 0 \
                    or weight.max() == 0:
                raise CompileError(f"CrossEntropyLoss: weight is {self.weight!r}; expected {expected}")
            object.__setattr__(self, "weight", tuple(weight.tolist()))
        if not isinstance(self.ignore_index, numbers.Integral) or isinstance(self.ignore_index, bool):
            raise CompileError(f"CrossEntropyLoss: ignore_index is {self.ignore_index!r}; expected an integer, as -100")
        object.__setattr__(self, "ignore_index", int(self.ignore_index))
        smoothing = self.label_smoothing
        if not isinstance(smoothing, numbers.Real) or isinstance(smoothing, bool) or not 0 <= smoothing <= 1:
            raise CompileError(f"CrossEntropyLoss: label_smoothing is {smoothing!r}; expected a number from 0 to 1")
        object.__setattr__(self, "label_smoothing", float(smoothing))

    def target_weight(self, target: np.ndarray) -> float:
        """By how much these targets count when means over batches are averaged: what the mean divides by."""
        if target.dtype.kind not in "iu":
            return float(target.shape[0])
        counted = target[target != self.ignore_index]
        if self.weight is None:
            return float(counted.size)
        return math.fsum(np.asarray(self.weight)[counted].reshape(-1).tolist())


@dataclass(frozen=True)
class MSELoss(Loss):
    """The mean of (output - target)^2 over all numbers, as torch.nn.MSELoss. Targets have the output's shape."""

    kind: ClassVar[str] = "mse"


@dataclass(frozen=True)
class L1Loss(Loss):
    """The mean of |output - target| over all numbers, as torch.nn.L1Loss. Targets have the output's shape."""

    kind: ClassVar[str] = "l1"


def _check_bound(owner: str, name: str, value: object, zero: bool) -> float:
    """A bound that both dtypes hold; zero: whether it may be 0. Raises CompileError."""
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not real or not 0 <= value <= 1e30 or (value == 0 and not zero):   # type: ignore[operator]
        raise CompileError(f"{owner}: {name} is {value!r}; expected a number {'from' if zero else 'above'} 0, up to 1e30, such "
                           "as 1.0")
    return float(value)   # type: ignore[arg-type]


@dataclass(frozen=True)
class SmoothL1Loss(Loss):
    """The mean of d^2 / (2 beta) where |d| < beta, else of |d| - beta / 2, as torch.nn.SmoothL1Loss; d = output - target.

    With beta=0 it is L1Loss. Targets have the output's shape. Raises CompileError for a beta below 0.
    """

    kind: ClassVar[str] = "smooth_l1"
    beta: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "beta", _check_bound("SmoothL1Loss", "beta", self.beta, zero=True))


@dataclass(frozen=True)
class HuberLoss(Loss):
    """The mean of d^2 / 2 where |d| <= delta, else of delta (|d| - delta / 2), as torch.nn.HuberLoss; d = output - target.

    Targets have the output's shape. Raises CompileError for a delta that is not above 0.
    """

    kind: ClassVar[str] = "huber"
    delta: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "delta", _check_bound("HuberLoss", "delta", self.delta, zero=False))


def _nested(values: list | float) -> tuple | float:
    """Lists in lists as tuples in tuples."""
    return tuple(_nested(value) for value in values) if isinstance(values, list) else values


@dataclass(frozen=True)
class BCEWithLogitsLoss(Loss):
    """The binary cross-entropy of the sigmoid of each output, mean over all numbers, as torch.nn.BCEWithLogitsLoss.

    pos_weight  what the loss of a target of 1 is multiplied by: one number, or numbers that broadcast to the output's
                shape, such as one for each of the last axis's; None for 1

    Targets have the output's shape and lie from 0 to 1. Where the model ends in a sigmoid, the loss reads what that
    sigmoid reads, as cross-entropy does with a softmax. Raises CompileError for a pos_weight that is no finite number
    of 0 or more; compile checks its shape.
    """

    kind: ClassVar[str] = "bce_with_logits"
    pos_weight: float | Sequence[float] | np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.pos_weight is None:
            return
        try:
            weight = np.asarray(self.pos_weight, np.float64)
        except (TypeError, ValueError):
            weight = np.zeros(0)
        if not weight.size or not np.isfinite(weight).all() or weight.min() < 0 or isinstance(self.pos_weight, bool | str):
            raise CompileError(f"BCEWithLogitsLoss: pos_weight is {self.pos_weight!r}; expected finite numbers, 0 or more, "
                               "such as 3.0 or [1.0, 2.5]")
        object.__setattr__(self, "pos_weight", _nested(weight.tolist()))


LOSSES: dict[str, type[Loss]] = {loss.kind: loss for loss in (
    CrossEntropyLoss, MSELoss, L1Loss, SmoothL1Loss, HuberLoss, BCEWithLogitsLoss)}


def resolve_loss(loss: object) -> Loss | None:
    """A loss object from what `compile` was given: a name, an object or None.

    Raises CompileError for everything else, naming what is known.
    """
    if loss is None or isinstance(loss, Loss):
        return loss
    if isinstance(loss, str) and loss in LOSSES:
        return LOSSES[loss]()
    if isinstance(loss, type) and issubclass(loss, Loss):
        raise CompileError(f"loss is the class {loss.__name__}; make one of it: mc.{loss.__name__}()")
    known = ", ".join(f'"{name}"' for name in LOSSES)
    objects = ", ".join(f"mc.{one.__name__}(...)" for one in LOSSES.values())
    raise CompileError(f"loss is {loss!r}; expected one of {known}, or {objects}, or None")
