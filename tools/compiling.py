"""Compiling a network with a bar that moves: the first time, kernels take seconds each."""
from __future__ import annotations

from typing import Any

from .terminal import Terminal


def compile_shown(graph: Any, terminal: Terminal, **how: Any) -> tuple[Any, int]:
    """graph.compile(**how), and how many kernels it had to compile or to load. Raises CompileError."""
    from microcnn.net import Net
    options = {"batch": 1, "train": None, "loss": None, "optimizer": None, "bn": "frozen", "dtype": "float32",
               "budget": None, "input_shapes": None, "augment": None, **how}
    count = 0
    with terminal.progress(1, "compiling kernels") as bar:
        def progress(done: int, total: int, name: str) -> None:
            nonlocal count
            count, bar.total = total, max(1, total)
            bar.show(done, f"{done}/{total} {name}".rstrip())

        net = Net(graph, progress=progress, **options)
    return net, count
