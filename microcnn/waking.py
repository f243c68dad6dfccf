"""Which rows of a program are worth handing to threads: found out by running it, and anew from time to time.

What it costs to hand work over changes under a program: a virtual machine's processors come to lie far apart, somebody else
keeps one busy. The results are the same bits either way, so a program simply tries what is quicker.
"""
from __future__ import annotations

from typing import Any

import numpy as np

# Elementary operations from which on a row uses threads: almost all rows do, the large ones do, none does.
LEVELS = (50_000, 400_000, 1 << 62)
# How often each level is run in a trial: once to bring the data into the right cache, and five times that count.
RUNS = 6
# How long the winner stays, in times that the trial took, and at most: nanoseconds.
STAY, MOST_STAY = 40, 5_000_000_000
# Of the winner's runs every so many-th is timed: a clock takes a twentieth of what the smallest networks do.
TIMED = 16
# A program that takes longer than this has rows so large that handing them over is a trifle: nanoseconds.
LONG = 4_000_000

# Where a pace keeps its numbers, behind those of the runs.
LEFT, TRIAL, TRIED = range(len(LEVELS) * RUNS, len(LEVELS) * RUNS + 3)

# A threshold for all programs, without trials: for tests, whose branches may not depend on the machine.
fixed: int | None = None


class Pace:
    """What one program with one number of samples has found out."""

    # least_work: elementary operations from which on a row uses threads in the next run; wants_threads: whether any row may;
    # quiet: how many runs need no timing
    __slots__ = ("least_work", "wants_threads", "quiet", "_level", "_best", "_numbers")

    def __init__(self) -> None:
        self._best = self.quiet = 0
        # nanoseconds of the runs of each level, what is left of the winner's time, what the trial took, and runs of the
        # level that is tried; not Python's integers, which take memory of their own
        self._numbers: Any = np.zeros(len(LEVELS) * RUNS + 3, np.int64).data
        self._use(0)

    def _use(self, level: int) -> None:
        self._level = level
        self.least_work = LEVELS[level] if fixed is None else fixed
        self.wants_threads = self.least_work < LEVELS[-1]

    @property
    def settled(self) -> bool:
        """Whether a trial has found a winner, which has its time."""
        return self._numbers[LEFT] > 0

    def note(self, took: int) -> None:
        """The nanoseconds that the run took. Those that `quiet` allows to pass unnoted count as this one."""
        numbers = self._numbers
        if numbers[LEFT] > 0:
            numbers[LEFT] -= TIMED * took
            self.quiet = TIMED - 1
            if numbers[LEFT] <= 0:
                self.quiet = 0
                numbers[TRIAL] = numbers[TRIED] = 0
                self._use(0)
            return
        numbers[self._level * RUNS + numbers[TRIED]] = took
        numbers[TRIED] += 1
        numbers[TRIAL] += took
        if numbers[TRIED] == 3 and took > LONG and numbers[self._level * RUNS + 1] > LONG:
            self._settle(self._best)
        elif numbers[TRIED] == RUNS:
            if self._level + 1 < len(LEVELS):
                numbers[TRIED] = 0
                self._use(self._level + 1)
            else:
                self._settle(self._quickest())

    def _quickest(self) -> int:
        """The level with the lowest median."""
        medians = [sorted(self._numbers[level * RUNS + 1:(level + 1) * RUNS])[RUNS // 2 - 1] for level in range(len(LEVELS))]
        return medians.index(min(medians))

    def _settle(self, level: int) -> None:
        self._best = level
        self._use(level)
        self._numbers[LEFT] = min(STAY * self._numbers[TRIAL], MOST_STAY)
