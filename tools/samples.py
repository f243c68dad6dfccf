"""Inputs, targets and a loss for a graph of which nothing more is known."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from microcnn.integers import INTEGERS

Shapes = dict[str, tuple[int, ...]]


def default_loss(shapes: Shapes, outputs: Sequence[str]) -> str:
    """The name of a loss: cross_entropy for one output that can be class scores (K,), else mse. shapes: of one sample."""
    first = shapes[outputs[0]]
    return "cross_entropy" if len(outputs) == 1 and len(first) == 1 and first[0] > 1 else "mse"


def example(graph: Any, batch: int, loss: Any = None, dtype: str = "float32", input_shapes: Shapes | None = None
            ) -> tuple[Any, Any]:
    """Random, seeded inputs (batch, ...) and, with a loss, targets that fit a graph: arrays, or dicts where there are several.

    loss: a name or loss object, or a dict of them by output. dtype: of the inputs, and of targets that are no classes.
    """
    rng = np.random.default_rng(0)
    shapes = graph.shapes(input_shapes)
    x = {entry.name: rng.integers(0, 100, (batch, *shapes[entry.name])).astype(entry.dtype) if entry.dtype in INTEGERS
         else rng.standard_normal((batch, *shapes[entry.name])).astype(dtype) for entry in graph.inputs}
    t: dict[str, Any] = {}
    for name in graph.outputs:
        kind = loss.get(name) if isinstance(loss, dict) else loss
        if kind is None:
            continue
        shape = shapes[name]
        if kind == "cross_entropy" or getattr(kind, "kind", None) == "cross_entropy":
            t[name] = rng.integers(0, shape[0], (batch, *shape[1:]))
        else:
            t[name] = rng.random((batch, *shape)).astype(dtype)
    return _only(x), _only(t) if t else None


def _only(arrays: dict[str, Any]) -> Any:
    return next(iter(arrays.values())) if len(arrays) == 1 else arrays
