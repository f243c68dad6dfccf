"""Compiling a network with a bar that moves: the first time, kernels take seconds each."""
from __future__ import annotations

from typing import Any

from microcnn import entries, store

from .terminal import Terminal


def compile_shown(graph: Any, terminal: Terminal, processes: int = 1, budget: Any = None, samples: Any = None, **how: Any
                  ) -> tuple[Any, int]:
    """graph.compile(**how), and how many kernels it had to compile or to load. Raises CompileError.

    processes: how many of them compile what is in no cache yet.
    """
    from microcnn.budget import compiled
    options = {"batch": 1, "train": None, "loss": None, "optimizer": None, "bn": "frozen", "dtype": "float32",
               "input_shapes": None, "augment": None, **how}
    ahead = count = 0
    if processes > 1 and budget is None and not store.lost():       # what is lost is lost to this process too
        from microcnn.planned import Planned

        from .ahead import compile_ahead, missing
        planned = Planned(graph, **options)
        needed = {row.kernel for schedule in planned._planned.values() for row in schedule.prepared + schedule.rows}
        names = missing(sorted(needed), planned.dtype.name)
        ahead = count = compile_ahead(names, planned.dtype.name, terminal, processes)
    with terminal.progress(1, "compiling kernels") as bar:
        def progress(done: int, total: int, name: str) -> None:
            nonlocal count
            count, bar.total = ahead + total, max(1, total)
            bar.show(done, f"{done}/{total} {name}".rstrip())

        net = compiled(graph, budget, samples, progress, **options)
    if entries.compiled_here() and store.lost():
        terminal.warn(store.lost())
    return net, count
