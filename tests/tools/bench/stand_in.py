"""A runner that is no library: what the tests of the protocol do to the benchmark. See microcnn.tools.bench.runners."""
from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np


def start(threads: int, variant: str) -> str:
    if variant == "missing":
        import no_such_library_anywhere  # noqa: F401
    if variant == "broken":
        raise RuntimeError("it does not want\nto start")
    print("what a library prints is no answer")
    return "1.0"


def infer(task: Any) -> Callable[..., Any]:
    if task.variant == "dies":
        os._exit(7)
    if task.variant == "hangs":
        time.sleep(600)
    if task.variant == "refuses":
        raise ValueError("no form for this model")
    K = task.twin().shapes[task.twin().output][0]
    return lambda x: np.full((len(x), K), np.nan if task.variant == "nan" else 0.0, np.float32)
