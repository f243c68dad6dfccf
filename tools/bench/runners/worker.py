"""What runs in a peer's process: reads commands from standard input, one JSON object a line, and answers each with one."""
from __future__ import annotations

import gc
import importlib
import itertools
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .twin import Twin

LOSSES = 3
# Samples that differ by a little more than rounding does, and how many of them.
NUDGE, NUDGES = 1e-6, 4
MOST_CALLS = 20_000


@dataclass
class Task:
    """What a runner is to build: which model, for which batch, with which variant of the peer.

    last: only the last layer trains, and batch norm keeps its statistics, so it is folded, as for inference.
    """

    folder: Path
    batch: int
    threads: int
    variant: str
    job: str

    @property
    def last(self) -> bool:
        return self.job == "last"

    @property
    def stem(self) -> Path:
        """The model's description, without a suffix."""
        return self.folder / ("plain" if self.job == "train" else "folded")

    def twin(self) -> Twin:
        return Twin.load(self.stem)

    @property
    def onnx(self) -> Path:
        """The model as ONNX, for this batch."""
        return self.folder / f"{self.stem.name}-{self.batch}.onnx"

    @property
    def tflite(self) -> Path:
        return self.folder / f"folded-{self.batch}.tflite"


class Session:
    """The peer, and what it has prepared."""

    def __init__(self, runner: Any, variant: str, threads: int):
        self.runner, self.variant, self.threads = runner, variant, threads
        self.call: Callable[..., Any] | None = None
        self.arguments: Iterator[tuple[np.ndarray, ...]] = iter(())
        self.losses: list[float] = []

    def prepare(self, folder: str, job: str, batch: int, outputs: str) -> dict[str, Any]:
        """Build the model and run it: its outputs go into a file, the losses of its first steps into the answer."""
        self.call = None
        gc.collect()
        task, x, t, classes = self._given(folder, job, batch)
        if job == "infer":
            self.call, self.arguments = self.runner.infer(task), itertools.repeat((x,))
            np.save(outputs, np.asarray(self.call(x), np.float32).reshape(batch, -1))
            return {}
        # the classes that are timed contradict each other: a network that has learned its batch by heart has gradients too
        # small to be normal numbers, which may take a processor many times as long
        self.call, self.arguments = self.runner.train(task), itertools.cycle([(x, t), (x, (t + 1) % classes)])
        self.losses = [float(self.call(x, t)) for _ in range(LOSSES)]
        return {"losses": self.losses, "differs": getattr(self.runner, "DIFFERS", "")}

    def spread(self, folder: str, job: str, batch: int) -> dict[str, Any]:
        """How far the losses of what is prepared move when the samples do by as little as rounding might move them."""
        task, x, t, _ = self._given(folder, job, batch)
        rng, moved = np.random.default_rng(0), []
        for _ in range(NUDGES):
            nudged = (x * (1 + NUDGE * rng.standard_normal(x.shape))).astype(x.dtype)
            step = self.runner.train(task)
            moved.append([abs(float(step(nudged, t)) - loss) for loss in self.losses])
        return {"spread": np.max(moved, axis=0).tolist()}

    def _given(self, folder: str, job: str, batch: int) -> tuple[Task, np.ndarray, np.ndarray, int]:
        """The task, samples as the peer takes them, their classes, and how many classes there are."""
        task = Task(Path(folder), batch, self.threads, self.variant, job)
        with np.load(task.folder / f"data-{batch}.npz") as data:
            x, t, classes = data["x"], data["t"], int(data["classes"])
        if self.variant in getattr(self.runner, "CHANNELS_LAST", ()) and x.ndim == 4:
            x = np.ascontiguousarray(x.transpose(0, 2, 3, 1))
        return task, x, t, classes

    def convert(self, folder: str, batch: int) -> dict[str, Any]:
        """Write the model as .tflite: TensorFlow's runner can."""
        self.runner.convert(Task(Path(folder), batch, self.threads, self.variant, "infer"))
        return {}

    def time(self, seconds: float, warm: float, least: int) -> dict[str, Any]:
        """Call for so many seconds, at least so many times, after warming up; microseconds."""
        call, arguments, now = self.call, self.arguments, time.perf_counter_ns
        if call is None:
            raise RuntimeError("nothing is prepared")
        gc.collect()
        gc.disable()
        try:
            end, calls = now() + int(warm * 1e9), 0
            while now() < end or calls < 2:
                call(*next(arguments))
                calls += 1
            took: list[int] = []
            end = now() + int(seconds * 1e9)
            while (now() < end or len(took) < least) and len(took) < MOST_CALLS:
                given = next(arguments)
                begin = now()
                call(*given)
                took.append(now() - begin)
        finally:
            gc.enable()
        low, median, high = np.percentile(took, [0, 50, 90]) / 1e3
        return {"median": float(median), "low": float(low), "p90": float(high), "calls": len(took)}


def main(module: str, variant: str, threads: str, core: str) -> None:
    """Start the peer, say which version it is, and answer until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)               # what a library prints goes to the log

    def answer(data: dict[str, Any]) -> None:
        answers.write(json.dumps(data) + "\n")
        answers.flush()

    if core and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {int(core)})
    try:
        runner = importlib.import_module(f".{module}", __package__)
        session = Session(runner, variant, int(threads))
        answer({"version": runner.start(int(threads), variant)})
    except ModuleNotFoundError as error:
        return answer({"error": f"the module {error.name} is not installed", "absent": True})
    except Exception as error:
        traceback.print_exc()
        return answer({"error": _line(error)})
    for line in sys.stdin:
        command = json.loads(line)
        try:
            answer(getattr(session, command.pop("do"))(**command))
        except Exception as error:
            traceback.print_exc()
            answer({"error": _line(error)})


def _line(error: Exception) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
