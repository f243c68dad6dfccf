"""Resize in plain loops: a matrix for every axis, filled number by number, with exact fractions for coordinates."""
from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

DEFAULTS = {"scales": None, "sizes": None, "roi": None, "mode": "nearest", "nearest_mode": "round_prefer_floor",
            "coordinate_transformation_mode": "half_pixel", "cubic_coeff_a": -0.75, "exclude_outside": False,
            "extrapolation_value": 0.0, "keep_aspect_ratio_policy": "stretch", "antialias": False}


def scales_of(attrs, lengths):
    """[(output size, scale)]; 0.6 means three fifths where that is rounded, and else what float32 makes of it."""
    if attrs["scales"] is not None:
        meant = [Fraction(scale).limit_denominator(100) for scale in attrs["scales"]]
        scales = meant if attrs["mode"] == "nearest" else [Fraction(float(np.float32(scale))) for scale in attrs["scales"]]
        return [(math.floor(n * size), scale) for n, size, scale in zip(lengths, meant, scales, strict=True)]
    scales = [Fraction(size, n) for size, n in zip(attrs["sizes"], lengths, strict=True)]
    if attrs["keep_aspect_ratio_policy"] == "stretch":
        return list(zip(attrs["sizes"], scales, strict=True))
    scale = min(scales) if attrs["keep_aspect_ratio_policy"] == "not_larger" else max(scales)
    return [(math.floor(scale * n + Fraction(1, 2)), scale) for n in lengths]


def source(mode, place, length, size, scale, start, end):
    half = Fraction(1, 2)
    if mode == "half_pixel" or (mode == "pytorch_half_pixel" and size > 1):
        return (place + half) / scale - half
    if mode == "half_pixel_symmetric":
        return Fraction(length, 2) * (1 - size / (scale * length)) + (place + half) / scale - half
    if mode == "pytorch_half_pixel":
        return Fraction(0)
    if mode == "asymmetric":
        return place / scale
    if mode == "tf_half_pixel_for_nn":
        return (place + half) / scale
    if mode == "align_corners":
        return place * Fraction(length - 1) / (scale * length - 1) if size > 1 else Fraction(0)
    if size == 1:
        return half * (start + end) * (length - 1)
    return start * (length - 1) + place * (end - start) * (length - 1) / (scale * length - 1)


def nearest(mode, x, scale):
    if mode == "simple":
        mode = "ceil" if scale < 1 else "floor"
    if mode in ("floor", "ceil"):
        return math.floor(x) if mode == "floor" else math.ceil(x)
    below = math.floor(x)
    if x - below == Fraction(1, 2):
        return below if mode == "round_prefer_floor" else below + 1
    return below if x - below < Fraction(1, 2) else below + 1


def filter_at(mode, distance, a):
    distance = abs(distance)
    if mode == "linear":
        return max(0.0, 1 - distance)
    if distance < 1:
        return (a + 2) * distance ** 3 - (a + 3) * distance ** 2 + 1
    return a * distance ** 3 - 5 * a * distance ** 2 + 8 * a * distance - 4 * a if distance < 2 else 0.0


def matrix(attrs, length, size, scale, start, end):
    """(size, length) weights, and what is added: the extrapolation value where a position lies outside."""
    weights, added = np.zeros((size, length)), np.zeros(size)
    for place in range(size):
        x = source(attrs["coordinate_transformation_mode"], place, length, size, scale, start, end)
        if attrs["coordinate_transformation_mode"] == "tf_crop_and_resize" and not 0 <= x <= length - 1:
            added[place] = attrs["extrapolation_value"]
            continue
        if attrs["mode"] == "nearest":
            weights[place, min(max(nearest(attrs["nearest_mode"], x, scale), 0), length - 1)] = 1
            continue
        stretch = float(min(scale, 1)) if attrs["antialias"] else 1.0
        reach = math.ceil((1 if attrs["mode"] == "linear" else 2) / stretch) + 1
        row, total = np.zeros(length), 0.0
        for i in range(math.floor(x) - reach, math.floor(x) + reach + 1):
            weight = filter_at(attrs["mode"], float(i - x) * stretch, attrs["cubic_coeff_a"])
            if not (attrs["exclude_outside"] and not 0 <= i < length):
                row[min(max(i, 0), length - 1)] += weight
                total += weight
        weights[place] = row / total if attrs["antialias"] or attrs["exclude_outside"] else row
    return weights, added


def parts(node, shape):
    """[(axis, matrix, added)]"""
    attrs = {**DEFAULTS, **node.attrs}
    axes = attrs["axes"]
    count = len(axes)
    roi = [Fraction(n).limit_denominator(100) for n in attrs["roi"] or (0,) * count + (1,) * count]
    return [(axis, *matrix(attrs, shape[axis], size, scale, roi[i], roi[count + i]))
            for i, (axis, (size, scale)) in enumerate(zip(axes, scales_of(attrs, [shape[axis] for axis in axes]), strict=True))]


def along(matrix, x, axis):
    return np.moveaxis(np.moveaxis(x, axis, -1) @ matrix.T, -1, axis)


def resize(node, inputs, *_):
    x = inputs[0]
    for axis, weights, added in parts(node, x.shape):
        x = along(weights, x, axis) + added.reshape(-1, *(1,) * (x.ndim - axis - 1))
    return x


def resize_backward(node, inputs, weights, dy, _):
    for axis, matrix, _ in reversed(parts(node, inputs[0].shape)):
        dy = along(matrix.T, dy, axis)
    return [dy], {}


OPS = {"Resize": (resize, resize_backward)}
OPERATIONS = {"Resize": resize}
