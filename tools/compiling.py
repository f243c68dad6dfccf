"""Compiling a network with a bar that moves: the first time, kernels take seconds each."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from microcnn import entries, store

from .terminal import Terminal


def compile_shown(graph: Any, terminal: Terminal, processes: int = 1, budget: Any = None, samples: Any = None,
                  batches: Sequence[int] = (), **how: Any) -> tuple[Any, int]:
    """graph.compile(**how), and how many kernels it had to compile or to load. Raises CompileError.

    processes: how many of them compile what is in no cache yet. batches: other batches whose kernels are compiled, too.
    """
    from microcnn.budget import compiled
    from microcnn.planned import Planned
    from microcnn.program import compile_kernels
    options = {"batch": 1, "train": None, "loss": None, "optimizer": None, "bn": "frozen", "dtype": "float32",
               "input_shapes": None, "augment": None, **how}
    ahead = count = 0
    several = processes > 1 and budget is None and not store.lost()     # what is lost is lost to this process too
    sizes = (options["batch"], *batches) if several or batches else ()
    plans = [Planned(graph, **{**options, "batch": size}) for size in sizes]
    rows = [row for plan in plans for schedule in plan._planned.values() for row in schedule.prepared + schedule.rows]
    if several:
        from .ahead import compile_ahead, missing
        names = missing(sorted({row.kernel for row in rows}), options["dtype"])
        ahead = count = compile_ahead(names, options["dtype"], terminal, processes)
    with terminal.progress(1, "compiling kernels") as bar:
        def progress(done: int, total: int, name: str) -> None:
            nonlocal count
            count, bar.total = ahead + total, max(1, total)
            bar.show(done, f"{done}/{total} {name}".rstrip())

        if rows:
            compile_kernels(rows, options["dtype"], progress)
            ahead = count
        net = compiled(graph, budget, samples, progress, **options)
    if entries.compiled_here() and store.lost():
        terminal.warn(store.lost())
    return net, count
