"""Compiling kernels in several processes at once: each into the same store, which keeps them from making one kernel twice.

A process that ends early is no harm: what is missing is compiled as always.
"""
from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Sequence

from microcnn import store
from microcnn.entries import ENTRIES, file_of

from .terminal import Terminal

# Seconds between two looks at what the other processes have done.
LOOK = 0.2


def missing(names: Sequence[str], dtype: str) -> list[str]:
    """Which of these kernels are neither in this process nor in the store, those that take longest first."""
    found = [name for name in names if not ENTRIES[name].is_compiled(dtype) and not store.whole(file_of(name, dtype))]
    return sorted(found, key=lambda name: (-weight(name), name))


def weight(name: str) -> int:
    """About how long a kernel compiles: the more it is told, the more it does."""
    return len(ENTRIES[name].fields)


def shares(names: Sequence[str], count: int) -> list[list[str]]:
    """The kernels in at most `count` parts that take about as long; the first is the largest."""
    parts: list[list[str]] = [[] for _ in range(min(count, len(names)))]
    for name in names:
        min(parts, key=lambda part: sum(map(weight, part))).append(name)
    return sorted(parts, key=lambda part: -sum(map(weight, part)))


def compile_ahead(names: Sequence[str], dtype: str, terminal: Terminal, processes: int) -> int:
    """Compile these kernels in that many processes, this one among them, and show how far they are.

    Returns how many were compiled here: the others are in the store. Raises CacheError.
    """
    parts = shares(names, processes)
    if len(parts) < 2:
        return 0
    with contextlib.ExitStack() as stack:
        others = []
        for part in parts[1:]:
            other = subprocess.Popen([sys.executable, "-m", __name__, dtype, *part], stdin=subprocess.DEVNULL,
                                     stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            stack.callback(other.wait)
            stack.callback(other.kill)
            others.append(other)
        bar = stack.enter_context(terminal.progress(len(names), "compiling kernels"))

        def show(own: int, name: str = "") -> None:
            done = own + sum(store.place(file_of(theirs, dtype)).exists() for part in parts[1:] for theirs in part)
            bar.show(min(done, len(names)), f"{done}/{len(names)} {name}".rstrip())
        for number, name in enumerate(parts[0]):
            show(number, name)
            ENTRIES[name].address(dtype)
        for other in others:
            while other.poll() is None:
                show(len(parts[0]))
                with contextlib.suppress(subprocess.TimeoutExpired):
                    other.wait(LOOK)
        show(len(parts[0]))
    return len(parts[0])


def main(arguments: Sequence[str]) -> None:
    """Compile kernels into the store: a dtype, then their names."""
    dtype, *names = arguments
    for name in names:
        ENTRIES[name].address(dtype)


if __name__ == "__main__":
    main(sys.argv[1:])
