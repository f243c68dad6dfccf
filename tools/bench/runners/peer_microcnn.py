"""microcnn, through what its users call."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import microcnn as mc

from .worker import Task


def start(threads: int, variant: str) -> str:
    mc.set_num_threads(threads)
    return mc.__version__


def infer(task: Task) -> Callable[..., Any]:
    return mc.load_onnx(task.onnx).compile(batch=task.batch).predict


def train(task: Task) -> Callable[..., Any]:
    twin = task.twin()
    net = mc.load_onnx(task.onnx).compile(
        batch=task.batch, train="head" if task.last else "all", loss="cross_entropy",
        optimizer=mc.SGD(lr=twin.lr, momentum=twin.momentum), bn="frozen" if task.last else "batch")
    return net.train_step
