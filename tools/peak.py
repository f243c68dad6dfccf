"""What this machine can do: multiply-adds in registers, and copying. """
from __future__ import annotations

import ctypes
import functools
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from microcnn.arena import aligned_bytes, start_of
from microcnn.entries import ENTRIES, lanes_of

# The chains of multiply-adds in kernels/peak.py.
CHAINS = 12
COPY_BYTES = 64 * 2**20


class Peak:
    """Measures multiply-adds a second on so many threads at once, in float32 or float64. dtype: a name."""

    def __init__(self, threads: int, dtype: str = "float32"):
        address = ENTRIES["peak.multiply_add"].address(dtype)
        self._call = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)(address)
        self.threads, self.lanes = threads, lanes_of(dtype)
        self._data = [self._operands(dtype, number) for number in range(threads)]
        self._count = 1
        while min(self._timed() for _ in range(5)) < 1e-3:      # one that a neighbour held up says nothing
            self._count *= 2

    def _operands(self, dtype: str, number: int) -> np.ndarray:
        """Two factors that keep numbers where they are, and vectors that differ."""
        data = aligned_bytes((2 + CHAINS) * self.lanes * np.dtype(dtype).itemsize).view(dtype)
        data[:self.lanes], data[self.lanes:2 * self.lanes] = 0.5, 1.0
        data[2 * self.lanes:] = np.linspace(1, 2, CHAINS * self.lanes) + number
        return data

    def _timed(self) -> float:
        """Seconds that all threads take for their steps. ctypes lets go of the interpreter: they run side by side."""
        row = np.array([0, self._count])
        return _at_once([functools.partial(self._call, start_of(data), start_of(row), 1) for data in self._data])

    def gflops(self) -> float:
        """GFLOP/s, a multiply-add as two, over about a millisecond."""
        return 2 * CHAINS * self.lanes * self._count * self.threads / self._timed() / 1e9


def copy_speed(threads: int = 1, size: int = COPY_BYTES, best: bool = False) -> float:
    """GB/s, read and written together, of so many threads that copy more bytes than caches hold: the median of seven, or the
    best."""
    parts = [(np.ones(size // 8 // threads), np.zeros(size // 8 // threads)) for _ in range(threads)]
    moved = sum(source.nbytes for source, _ in parts)
    copies = [functools.partial(np.copyto, target, source) for source, target in parts]
    took = [_at_once(copies) for _ in range(7)]
    return 2 * moved / float(min(took) if best else np.median(took)) / 1e9


def _at_once(tasks: Sequence[Callable[[], Any]]) -> float:
    """Seconds from the first begin to the last end of tasks that let go of the interpreter, each in a thread of its own."""
    if len(tasks) == 1:
        begin = time.perf_counter()
        tasks[0]()
        return time.perf_counter() - begin
    spans: list[tuple[float, float]] = []
    ready = threading.Barrier(len(tasks))

    def work(task: Callable[[], Any]) -> None:
        ready.wait()
        begin = time.perf_counter()
        task()
        spans.append((begin, time.perf_counter()))
    workers = [threading.Thread(target=work, args=(task,)) for task in tasks]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return max(end for _, end in spans) - min(begin for begin, _ in spans)

