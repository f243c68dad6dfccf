"""Normalisations as models of one node, for the table of test_onnx_import."""
from __future__ import annotations

from typing import Any

import numpy as np

from tests.onnx_models import node, numbers

X = ("N", 6, "H", "W")
FIXED = ("N", 6, 9, 7)
CHANNELS = {"s": numbers(6), "b": numbers(6, seed=1)}
LAST = {"s": numbers(7), "b": numbers(7, seed=1)}
RMS = ["Pow", "GlobalAvgPool2d", "Add", "Pow", "Mul", "Mul"]
MODELS: dict[str, tuple[Any, tuple[Any, ...], dict[str, np.ndarray], tuple[int, ...], list[str]]] = {
    "lrn": (node("LRN", ["x"], size=3), X, {}, (7, 13), ["LRN"]),
    "lrn_attributes": (node("LRN", ["x"], size=5, alpha=0.2, beta=0.5, bias=2.0), X, {}, (13,), ["LRN"]),
    "instance_norm": (node("InstanceNormalization", ["x", "s", "b"]), X, CHANNELS, (7, 22), ["InstanceNorm"]),
    "instance_norm_line": (node("InstanceNormalization", ["x", "s", "b"], epsilon=0.1), ("N", 6, 9), CHANNELS, (7,),
                           ["InstanceNorm"]),
    "group_norm": (node("GroupNormalization", ["x", "s", "b"], num_groups=2), X, CHANNELS, (21,), ["GroupNorm"]),
    "group_norm_of_groups": (node("GroupNormalization", ["x", "s", "b"], num_groups=2), FIXED,
                             {"s": numbers(2), "b": numbers(2, seed=1)}, (18,), ["Reshape", "InstanceNorm", "Reshape"]),
    "layer_norm": (node("LayerNormalization", ["x", "s", "b"]), FIXED, LAST, (17,), ["LayerNorm"]),
    "layer_norm_no_bias": (node("LayerNormalization", ["x", "s"], axis=2, epsilon=0.1), FIXED, {"s": numbers(9, 7)}, (17,),
                           ["LayerNorm"]),
    "layer_norm_view": (node("LayerNormalization", ["x", "s"], axis=-2), FIXED, {"s": numbers(9, 1)}, (17,),
                        ["LayerNorm", "Mul"]),
    "layer_norm_repeated": (node("LayerNormalization", ["x", "s", "b"], axis=1), FIXED,
                            {"s": numbers(7), "b": numbers(6, 1, 1)}, (17,), ["LayerNorm", "Mul", "Add"]),
    "rms_norm": (node("RMSNormalization", ["x", "s"], axis=-2), FIXED, {"s": numbers(9, 7)}, (23,), RMS),
    "mean_variance": (node("MeanVarianceNormalization", ["x"], axes=[2, 3]), FIXED, {}, (9, 13),
                      ["GlobalAvgPool2d", "Sub", "Pow", "GlobalAvgPool2d", "Pow", "Add", "Div"]),
}
