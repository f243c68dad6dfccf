"""LiteRT with its XNNPACK delegate, on the .tflite file that TensorFlow's runner converts."""
from __future__ import annotations

from collections.abc import Callable
from importlib import metadata
from typing import Any

from ai_edge_litert.interpreter import Interpreter

from .worker import Task

CHANNELS_LAST = ("litert",)


def start(threads: int, variant: str) -> str:
    return metadata.version("ai-edge-litert")


def infer(task: Task) -> Callable[..., Any]:
    interpreter = Interpreter(str(task.tflite), num_threads=task.threads)
    interpreter.allocate_tensors()
    source, target = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]

    def call(x: Any) -> Any:
        interpreter.set_tensor(source, x)
        interpreter.invoke()
        return interpreter.get_tensor(target)
    return call
