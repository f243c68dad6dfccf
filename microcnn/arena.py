"""What Python and compiled code share: the arena, the numbers that it begins with, and where a program's table lies."""
from __future__ import annotations

import ctypes

import numpy as np

# The control block at the head of every arena: 64-bit slots that change from step to step, without touching the rows.
THREADS, LEAST_WORK, SEED, STEP, RATE, LOSS, FLAGS, FIRST, FIRST_POINTER = range(9)

# What the header of a program holds, which the executor walks (kernels/executor.py).
ARENA, KERNELS, ROWS, COUNT, MARKS = range(5)

# Why a program stopped before a weight was touched, in slot FLAGS, beside the reasons of loss.py: a gradient is not finite.
BAD_GRADIENT = 3

_word_at = ctypes.c_size_t.from_address


def _begins(array: np.ndarray) -> int:
    # a fifth of the time that array.ctypes.data or __array_interface__ take, and no dict made on the way
    return _word_at(id(array) + object.__basicsize__).value


def _begins_surely(array: np.ndarray) -> int:
    return array.ctypes.data


_probe = np.zeros(1)
# another Python or numpy may have arrays that begin with something else
start_of = _begins if _begins(_probe) == _probe.ctypes.data else _begins_surely
"""The address of a numpy array's first byte."""


def aligned_bytes(size: int, alignment: int = 64) -> np.ndarray:
    """A zeroed uint8 array whose first byte is aligned; numpy alone aligns to 16."""
    raw = np.zeros(size + alignment, np.uint8)
    begin = -start_of(raw) % alignment
    return raw[begin:begin + size]
