"""One-node models of the elementwise functions: for the table of test_onnx_import."""
from __future__ import annotations

from typing import Any

import numpy as np

from tests.onnx_models import node, numbers

X = ("N", 3, 9, 7)
# The operator, its attributes, the opsets to try; each becomes the layer of its name.
FUNCTIONS: list[tuple[str, dict[str, Any], tuple[int, ...]]] = [
    ("LeakyRelu", {}, (7, 16)), ("LeakyRelu", {"alpha": 0.3}, (7, 16)),
    ("ThresholdedRelu", {"alpha": 0.2}, (10, 22)), ("Elu", {"alpha": 1.5}, (7, 22)), ("Selu", {}, (7, 22)),
    ("Celu", {"alpha": 0.5}, (12,)), ("HardSigmoid", {}, (7, 22)), ("HardSigmoid", {"alpha": 0.4, "beta": 0.6}, (7, 22)),
    ("HardSwish", {}, (14, 22)), ("Gelu", {}, (20,)), ("Gelu", {"approximate": "tanh"}, (20,)), ("Softplus", {}, (7, 22)),
    ("Softsign", {}, (7, 22)), ("Mish", {}, (18, 22)), ("Neg", {}, (7, 13)), ("Abs", {}, (7, 13)), ("Sqrt", {}, (7, 13)),
    ("Exp", {}, (7, 13)), ("Log", {}, (7, 13)), ("Reciprocal", {}, (7, 13)), ("Erf", {}, (9, 13)), ("Sign", {}, (9, 13)),
    ("Ceil", {}, (7, 13)), ("Floor", {}, (7, 13)), ("Round", {}, (11, 22)), ("Sin", {}, (7, 22)), ("Cos", {}, (7, 22))]
MODELS: dict[str, tuple[Any, tuple[Any, ...], dict[str, np.ndarray], tuple[int, ...], list[str]]] = {
    **{f"{operator}{attributes or ''}": (node(operator, ["x"], **attributes), X, {}, opsets, [operator])
       for operator, attributes, opsets in FUNCTIONS},
    "prelu": (node("PRelu", ["x", "s"]), X, {"s": numbers(3, 1, 1)}, (7, 9, 16), ["PRelu"]),
    "prelu_one": (node("PRelu", ["x", "s"]), X, {"s": numbers(1)}, (16,), ["PRelu"]),
    "prelu_last": (node("PRelu", ["x", "s"]), ("N", 9), {"s": numbers(1, 9)}, (9,), ["PRelu"]),
    "log_softmax_default": (node("LogSoftmax", ["x"]), X, {}, (7, 11, 13), ["LogSoftmax"]),
    "log_softmax_axis": (node("LogSoftmax", ["x"], axis=2), X, {}, (11, 13), ["LogSoftmax"]),
}
