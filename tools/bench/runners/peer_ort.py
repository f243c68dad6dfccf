"""ONNX Runtime on the CPU, with all its graph optimisations."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnxruntime

from .worker import Task


def start(threads: int, variant: str) -> str:
    return onnxruntime.__version__


def options(task: Task) -> Any:
    """Session options with that many threads."""
    made = onnxruntime.SessionOptions()
    made.intra_op_num_threads, made.inter_op_num_threads = task.threads, 1
    made.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    return made


def infer(task: Task) -> Callable[..., Any]:
    session = onnxruntime.InferenceSession(str(task.onnx), options(task), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def call(x: Any) -> Any:
        return session.run(None, {name: x})[0]
    return call
