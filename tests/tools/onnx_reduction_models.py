"""Reductions and places as models of one node, one for each form that the opsets give them."""
from __future__ import annotations

import numpy as np

from microcnn.tools.onnx_reduction import VERSIONS
from tests.onnx_models import node

X = ("N", 3, "H", "W")
INPUTS = {"ReduceSum": 13}       # from which opset on the axes are an input


def models():
    """{name: (node, shape, weights, opsets, layers)} as in test_onnx_import."""
    for op, versions in VERSIONS.items():
        older = [max(7, n) for n in versions if n < INPUTS.get(op, 18)]
        newer = [n for n in versions if INPUTS.get(op, 18) <= n < 25]
        yield op, (node(op, ["x"], axes=[1, 3], keepdims=0), X, {}, older, [op])
        yield f"{op}_input", (node(op, ["x", "axes"]), X, {"axes": np.array([-1, 1])}, newer, [op])
    for op in ("ArgMax", "ArgMin"):
        yield op, (node(op, ["x"], axis=1, keepdims=0), X, {}, [7, 11, 12, 13], [op])
        yield f"{op}_last", (node(op, ["x"], axis=-1, select_last_index=1), X, {}, [12, 13], [op])


MODELS = dict(models())
