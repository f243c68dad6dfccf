"""Which input positions, with which weights, make each position of a resized axis: ONNX Resize as tables.

Every mode of Resize works along one axis after the other, and along one axis it is a sparse matrix: a Table.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

MODES = ("nearest", "linear", "cubic")
# "simple" is what opset 10 meant before there was a choice: down where the axis grows, up where it shrinks.
NEAREST_MODES = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil", "simple")
CROP = "tf_crop_and_resize"
COORDINATES = ("half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric",
               "tf_half_pixel_for_nn", CROP)
POLICIES = ("stretch", "not_larger", "not_smaller")
# The attributes of the layer that have a default, by ONNX's names.
DEFAULTS: dict[str, Any] = {
    "scales": None, "sizes": None, "roi": None, "mode": "nearest", "nearest_mode": "round_prefer_floor",
    "coordinate_transformation_mode": "half_pixel", "cubic_coeff_a": -0.75, "exclude_outside": False,
    "extrapolation_value": 0.0, "keep_aspect_ratio_policy": "stretch", "antialias": False}


@dataclass(frozen=True)
class Axis:
    """How one axis is resized.

    length, size   before and after
    grown, shrunk  the scale as a fraction: of two sizes where sizes were given, so that no coordinate is rounded twice
    start, end     the part that is taken, as shares of the axis (tf_crop_and_resize)
    exact          whether the scale is no rounded number
    """

    length: int
    size: int
    grown: float
    shrunk: float
    exact: bool
    start: float = 0.0
    end: float = 1.0

    @property
    def scale(self) -> float:
        return self.grown / self.shrunk

    @property
    def width(self) -> float:
        """What the size was before it was rounded."""
        return self.length * self.grown / self.shrunk


@dataclass(frozen=True)
class Table:
    """Position p is the sum of weight[t] * input[index[t]] for t from begin[p] to begin[p + 1] - 1."""

    begin: np.ndarray
    index: np.ndarray
    weight: np.ndarray

    def is_identity(self, length: int) -> bool:
        """Whether it leaves an axis of that length as it is."""
        return (self.index.size == length == self.begin.size - 1 and bool((self.weight == 1).all())
                and np.array_equal(self.index, np.arange(length)) and np.array_equal(self.begin, np.arange(length + 1)))

    def transposed(self, length: int) -> Table:
        """The table that takes gradients back to the `length` positions of the input."""
        positions = np.repeat(np.arange(self.begin.size - 1, dtype=np.int32), np.diff(self.begin))
        order = np.argsort(self.index, kind="stable")
        return Table(_starts(np.bincount(self.index, minlength=length)), positions[order], self.weight[order])


def axes_of(attrs: dict[str, Any], lengths: list[int]) -> list[Axis]:
    """What becomes of axes of these lengths; attrs: all attributes, defaults included.

    Sizes come from scales as ONNX's own inference computes them, in float32.
    """
    found: list[tuple[int, float, float, bool]]
    if attrs["scales"] is not None:
        found = [(scaled(n, scale), float(np.float32(scale)), 1.0, False)
                 for n, scale in zip(lengths, attrs["scales"], strict=True)]
    elif attrs["keep_aspect_ratio_policy"] == "stretch":
        found = [(size, size, n, True) for n, size in zip(lengths, attrs["sizes"], strict=True)]
    else:
        chosen = min if attrs["keep_aspect_ratio_policy"] == "not_larger" else max
        size, length = chosen(zip(attrs["sizes"], lengths, strict=True), key=lambda pair: pair[0] / pair[1])
        found = [((2 * n * size + length) // (2 * length), size, length, True) for n in lengths]
    roi = attrs["roi"] or (0.0,) * len(lengths) + (1.0,) * len(lengths)
    return [Axis(n, *sizes, start, end) for n, sizes, start, end in
            zip(lengths, found, roi[:len(lengths)], roi[len(lengths):], strict=True)]


def scaled(length: int, scale: float) -> int:
    """The size of an axis after scaling."""
    return int(np.floor(np.float32(length) * np.float32(scale)))


def table_of(attrs: dict[str, Any], axis: Axis) -> Table:
    """The table of one axis; attrs: all attributes, defaults included."""
    nearest, crops = attrs["mode"] == "nearest", attrs["coordinate_transformation_mode"] == CROP
    # Nearest modes round: a coordinate that is whole with a float32 scale or roi in float32 has to be whole here too.
    single = nearest and (crops or not axis.exact)
    x = coordinates(attrs["coordinate_transformation_mode"], axis, np.float32 if single else np.float64)
    if nearest:
        index, weight = _nearest(attrs["nearest_mode"], axis, x)
    else:
        index, weight = _filtered(attrs, axis, x)
    keep = weight != 0
    keep[:, 0] |= ~keep.any(1)
    if crops:
        keep[(x < 0) | (x > axis.length - 1)] = False
    return Table(_starts(keep.sum(1)), np.clip(index, 0, axis.length - 1)[keep].astype(np.int32), weight[keep])


def _starts(counts: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)


def coordinates(mode: str, axis: Axis, real: Any) -> np.ndarray:
    """Where in the input each output position lies (ONNX Resize, coordinate_transformation_mode), as float64.

    real: the floating-point type to compute in.
    """
    place = np.arange(axis.size).astype(real)
    half, width, last = real(0.5), real(axis.width), real(axis.length - 1)

    def divided(x: np.ndarray) -> np.ndarray:
        return x * real(axis.shrunk) / real(axis.grown)
    if mode == "asymmetric":
        x = divided(place)
    elif mode == "tf_half_pixel_for_nn":
        x = divided(place + half)
    elif mode == "align_corners":
        x = place * last / (width - real(1)) if axis.size > 1 else np.zeros(1)
    elif mode == CROP:
        start, end = real(axis.start), real(axis.end)
        if axis.size > 1:
            x = start * last + place * (end - start) * last / (width - real(1))
        else:
            x = half * (start + end) * last * np.ones(1)
    elif mode == "pytorch_half_pixel" and axis.size == 1:
        x = np.zeros(1)
    else:
        x = divided(place + half) - half
        if mode == "half_pixel_symmetric":
            x = x + real(axis.length) / real(2) * (real(1) - real(axis.size) / width)
    return x.astype(np.float64)


def _nearest(mode: str, axis: Axis, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One position each, with weight 1."""
    if mode == "simple":
        mode = "ceil" if axis.scale < 1 else "floor"
    if mode.startswith("round"):
        rounded = np.ceil(x - 0.5) if mode == "round_prefer_floor" else np.floor(x + 0.5)
    else:
        rounded = np.floor(x) if mode == "floor" else np.ceil(x)
    return rounded.astype(np.int64)[:, None], np.ones((axis.size, 1))


def _filtered(attrs: dict[str, Any], axis: Axis, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The positions under a triangle or a cubic, which antialiasing stretches where the axis shrinks."""
    linear = attrs["mode"] == "linear"
    stretch = min(axis.scale, 1.0) if attrs["antialias"] else 1.0
    first = int(np.floor((-1 if linear else -2) / stretch)) + 1
    offsets = np.arange(first, 2 - first)
    base = np.ceil(x) - 1
    distance = np.abs(offsets - (x - base)[:, None]) * stretch
    weight = np.maximum(1 - distance, 0) if linear else cubic(distance, attrs["cubic_coeff_a"])
    index = base.astype(np.int64)[:, None] + offsets
    if attrs["exclude_outside"]:
        weight = np.where((index < 0) | (index >= axis.length), 0.0, weight)
    if attrs["antialias"] or attrs["exclude_outside"]:
        total = weight.sum(1, keepdims=True)
        weight = weight / np.where(total == 0, 1.0, total)
    return index, weight


def cubic(distance: np.ndarray, a: float) -> np.ndarray:
    """Keys' cubic convolution: its weight at a distance; a is its slope at 1."""
    near = ((a + 2) * distance - (a + 3)) * distance * distance + 1
    far = ((distance - 5) * distance + 8) * distance * a - 4 * a
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))
