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


LOSSES: dict[str, type[Loss]] = {loss.kind: loss for loss in (CrossEntropyLoss, MSELoss)}


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
