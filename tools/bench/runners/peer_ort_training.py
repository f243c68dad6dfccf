"""ONNX Runtime Training's API for devices: artifacts made from the ONNX file, then modules and an optimizer over them.

Its SGD has no momentum, so it does a little less than the others.
"""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
from onnxruntime.training import api, artifacts

from .worker import Task

DIFFERS = "SGD without momentum"


def start(threads: int, variant: str) -> str:
    return onnxruntime.__version__


def _artifacts(task: Task) -> Path:
    """The folder with the training graph, the optimizer and the weights of this model, made where it is missing."""
    folder = task.folder / f"ort-{task.job}-{task.batch}"
    if (folder / "training_model.onnx").exists():
        return folder
    model = onnx.load(str(task.onnx))
    running: set[str] = set()
    for node in model.graph.node:
        if node.op_type == "BatchNormalization" and not task.last:
            running.update(node.input[3:5])
            node.output.extend(f"{name}.next" for name in node.input[3:5])
            node.attribute.append(onnx.helper.make_attribute("training_mode", 1))
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    with_weights = [[name for name in node.input if name in tensors and name not in running
                     and tensors[name].data_type == onnx.TensorProto.FLOAT and tensors[name].dims] for node in model.graph.node]
    names = [name for found in with_weights for name in found]
    trained = next(found for found in reversed(with_weights) if found) if task.last else names
    folder.mkdir(exist_ok=True)
    artifacts.generate_artifacts(model, requires_grad=trained, frozen_params=[name for name in tensors if name not in trained],
                                 loss=artifacts.LossType.CrossEntropyLoss, optimizer=artifacts.OptimType.SGD,
                                 artifact_directory=str(folder))
    return folder


def train(task: Task) -> Callable[..., Any]:
    folder = _artifacts(task)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = task.threads, 1
    state = api.CheckpointState.load_checkpoint(str(folder / "checkpoint"))
    module = api.Module(str(folder / "training_model.onnx"), state, None, device="cpu", session_options=options)
    optimizer = api.Optimizer(str(folder / "optimizer_model.onnx"), module)
    optimizer.set_learning_rate(task.twin().lr)
    module.train()

    def step(x: Any, t: Any) -> float:
        loss = module(x, t)
        optimizer.step()
        module.lazy_reset_grad()
        return float(loss)
    return step
