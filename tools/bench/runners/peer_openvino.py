"""OpenVINO on the CPU, in float32: on some processors it would compute in bfloat16 by default."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import openvino

from .worker import Task


def start(threads: int, variant: str) -> str:
    return openvino.__version__


def infer(task: Task) -> Callable[..., Any]:
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": task.threads, "NUM_STREAMS": 1,
                "PERFORMANCE_HINT": "LATENCY"}
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(task.onnx), "CPU", settings)
    request, output = compiled.create_infer_request(), compiled.output(0)

    def call(x: Any) -> Any:
        return request.infer([x], share_inputs=True)[output]
    return call
