"""What it costs to hand work to threads on this machine, and which work is worth it."""
from __future__ import annotations

import ctypes
import statistics
import threading
import time

import numpy as np

# Numbers that the measured kernel works on: eight of its chunks, which fit a second-level cache.
NUMBERS = 8 * 8192
# What the kernel asks threads_for with, for each number.
OPERATIONS = 4
RUNS = 15
# A convolution does about twice as many operations in the same time.
MARGIN = 2
# Seconds between two runs, as between two calls from Python: threads still look for work (threads.SPIN).
PAUSE = 0.5e-3

_lock = threading.Lock()
_least_work: int | None = None


def least_work(count: int) -> int:
    """Elementary operations from which on a kernel uses its threads; measured when first asked for. count: at least 2."""
    global _least_work
    if _least_work is None:
        with _lock:
            if _least_work is None:
                _least_work = measured(count)
    return _least_work


def measured(count: int) -> int:
    """Elementary operations from which on `count` threads pay: they save what it takes to hand them work and wait for them.

    With a kernel that is there anyway, alone and in threads that are awake, as they are in all rows of a step but the first
    few. Where others keep a processor busy, handing work over takes milliseconds, and the median says so: one thread is
    quicker then.
    """
    from .kernels.entry import ENTRIES, FIRST_POINTER, LEAST_WORK, THREADS, aligned_bytes, start_of, start_threads
    start_threads()
    entry = ENTRIES["activation.forward"]
    control_bytes = -(-8 * FIRST_POINTER // 64) * 64
    arena = aligned_bytes(control_bytes + 4 * NUMBERS)
    control = arena[:control_bytes].view(np.int64)
    fields = {"x": control_bytes, "y": control_bytes, "size": NUMBERS, "kind": 0, "low": 0, "high": 0}
    row = np.array([fields[name] for name in entry.fields], np.int64)
    run = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)(entry.address("float32"))

    def seconds(threads: int) -> float:
        control[THREADS], control[LEAST_WORK] = threads, 0
        times = []
        for _ in range(RUNS):
            time.sleep(PAUSE)
            begin = time.perf_counter()
            run(start_of(arena), start_of(row), 1)
            times.append(time.perf_counter() - begin)
        return statistics.median(times)
    alone = seconds(1)
    handing = max(0.0, seconds(count) - alone / count)
    saved = 1 - 1 / count
    return int(handing / saved * MARGIN * OPERATIONS * NUMBERS / alone)
