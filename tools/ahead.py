"""Compiling kernels in several processes at once.

Whoever compiles holds the lock of the cache folder, so a second process compiles into a folder of its own; the first takes over
what it finds there when the other is done. A process that ends early is no harm: what is missing is compiled as always.
"""
from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from .terminal import Terminal

# Seconds between two looks at what the other processes have done.
LOOK = 0.2


def missing(names: Sequence[str], dtype: str) -> list[str]:
    """Which of these kernels are neither in this process nor in the cache, those that take longest first."""
    from microcnn.kernels import cache
    from microcnn.kernels.entry import ENTRIES
    found = [name for name in names if not ENTRIES[name].is_compiled(dtype) and not cache.stored(ENTRIES[name].function, dtype)]
    return sorted(found, key=lambda name: (-weight(name), name))


def weight(name: str) -> int:
    """About how long a kernel compiles: the more it is told, the more it does."""
    from microcnn.kernels.entry import ENTRIES
    return len(ENTRIES[name].fields)


def shares(names: Sequence[str], count: int) -> list[list[str]]:
    """The kernels in at most `count` parts that take about as long; the first is the largest."""
    parts: list[list[str]] = [[] for _ in range(min(count, len(names)))]
    for name in names:
        min(parts, key=lambda part: sum(map(weight, part))).append(name)
    return sorted(parts, key=lambda part: -sum(map(weight, part)))


def compile_ahead(names: Sequence[str], dtype: str, terminal: Terminal, processes: int) -> int:
    """Compile these kernels in that many processes, this one among them, and show how far they are.

    Returns how many were compiled here: the others are in the cache. Raises CacheError.
    """
    from microcnn.kernels import cache
    from microcnn.kernels.entry import ENTRIES
    from microcnn.kernels.team import start_threads
    parts = shares(names, processes)
    if len(parts) < 2:
        return 0
    with contextlib.ExitStack() as stack:
        folders = [Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="microcnn-ahead-", ignore_cleanup_errors=True)))
                   for _ in parts[1:]]
        others = []
        for part, folder in zip(parts[1:], folders, strict=True):
            other = subprocess.Popen([sys.executable, "-m", __name__, dtype, *part], stdin=subprocess.DEVNULL,
                                     stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                                     env={**os.environ, "NUMBA_CACHE_DIR": str(folder)})
            stack.callback(other.wait)
            stack.callback(other.kill)
            others.append(other)
        bar = stack.enter_context(terminal.progress(len(names), "compiling kernels"))

        def show(own: int, name: str = "") -> None:
            done = own + sum(1 for folder in folders for _ in folder.rglob("*.nbc"))
            bar.show(min(done, len(names)), f"{done}/{len(names)} {name}".rstrip())
        start_threads()
        for number, name in enumerate(parts[0]):
            show(number, name)
            ENTRIES[name].address(dtype)
        for other in others:
            while other.poll() is None:
                show(len(parts[0]))
                with contextlib.suppress(subprocess.TimeoutExpired):
                    other.wait(LOOK)
        show(len(parts[0]))
        for folder in folders:
            cache.adopt(folder)
    return len(parts[0])


def main(arguments: Sequence[str]) -> None:
    """Compile kernels into the cache that NUMBA_CACHE_DIR names."""
    from microcnn.kernels.entry import ENTRIES
    from microcnn.kernels.team import start_threads
    start_threads()
    dtype, *names = arguments
    for name in names:
        ENTRIES[name].address(dtype)


if __name__ == "__main__":
    main(sys.argv[1:])
