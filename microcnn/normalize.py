"""What is done to samples before a network sees them."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from .errors import DataError

Numbers = float | tuple[float, ...]


@dataclass(frozen=True)
class Normalization:
    """What is done to samples before the network sees them: (x * scale - mean) / std.

    Each is None (left out), a number, or one number per channel. Raises DataError for numbers that make no sense.
    """

    scale: Numbers | None = None
    mean: Numbers | None = None
    std: Numbers | None = None

    def __post_init__(self) -> None:
        for name in ("scale", "mean", "std"):
            object.__setattr__(self, name, _numbers(name, getattr(self, name), nonzero=name != "mean"))
        lengths = {name: len(value) for name, value in self.to_meta().items() if isinstance(value, list)}
        if len(set(lengths.values())) > 1:
            raise DataError(f"normalisation: the numbers per channel differ in length: {lengths}; give each one "
                            "number, or one per channel")

    @classmethod
    def from_meta(cls, meta: Mapping[str, Any]) -> Normalization:
        """What a graph's meta says; the identity where it says nothing."""
        return cls(meta.get("scale"), meta.get("mean"), meta.get("std"))

    def to_meta(self) -> dict[str, Any]:
        """For Graph.meta: only what is set, as JSON can hold it."""
        values = {"scale": self.scale, "mean": self.mean, "std": self.std}
        return {name: list(value) if isinstance(value, tuple) else value
                for name, value in values.items() if value is not None}

    def factors(self, shape: tuple[int, ...], channel_axis: int | None = None) -> tuple[np.ndarray, np.ndarray] | None:
        """(a, b), so that a * x + b is normalised, broadcasting against samples of this shape; None: nothing is done.

        channel_axis: of one sample; by default the first axis whose size is the number of values, so C of (C, H, W)
        before C of (H, W, C). Raises DataError where no axis has that size.
        """
        if not self.to_meta():
            return None
        scale, mean, std = (np.asarray(other if value is None else value, np.float64)
                            for value, other in ((self.scale, 1.0), (self.mean, 0.0), (self.std, 1.0)))
        a, b = np.broadcast_arrays(scale / std, -mean / std)
        if a.ndim:
            candidates = [0, len(shape) - 1] if channel_axis is None else [channel_axis]
            axes = [axis for axis in candidates if shape and shape[axis] == a.size]
            if not axes:
                raise DataError(f"normalisation has {a.size} numbers per channel, but samples of shape {shape} have no "
                                "such channel axis; give one number, or one per channel")
            spread = [1] * len(shape)
            spread[axes[0]] = a.size
            a, b = a.reshape(spread), b.reshape(spread)
        return a, b


def _numbers(name: str, value: Any, nonzero: bool) -> Numbers | None:
    """A number, a tuple of numbers, or None; raises DataError."""
    if value is None:
        return None
    try:
        array = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        array = np.asarray(np.nan)
    if array.ndim > 1 or not array.size or not np.isfinite(array).all() or (nonzero and not array.all()):
        raise DataError(f"normalisation: {name} is {value!r}; expected a finite number{' other than 0' * nonzero}, or "
                        "one per channel")
    return float(array) if array.ndim == 0 else tuple(array.tolist())


def parse_numbers(text: str) -> Numbers:
    """Numbers as people type them: "0.5", "1/255", "0.485,0.456,0.406". Raises DataError."""
    try:
        values = tuple(float(Fraction(part.strip())) for part in text.split(","))
    except (ValueError, ZeroDivisionError):
        raise DataError(f"{text!r} is no number; expected one such as 0.5 or 1/255, or several with commas between "
                        "them, one per channel") from None
    return values[0] if len(values) == 1 else values
