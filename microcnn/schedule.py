"""Learning rate schedules: functions of how far the training has come, giving the factor on the base rate."""
from __future__ import annotations

import math
from collections.abc import Callable

from .errors import CompileError

Schedule = Callable[[int, int], float]


def constant(step: int, steps: int) -> float:
    """The base rate throughout. step counts from 0, steps is how many there will be."""
    return 1.0


def cosine(step: int, steps: int) -> float:
    """Half a cosine from 1 at the first step down to 0 after the last: torch's CosineAnnealingLR(T_max=steps)."""
    return 0.5 * (1.0 + math.cos(math.pi * step / steps))


SCHEDULES: dict[str, Schedule] = {"constant": constant, "cosine": cosine}


def resolve_schedule(schedule: str | Schedule) -> Schedule:
    """The function of that name; functions (step, steps) -> factor pass. Raises CompileError, naming what is known."""
    if isinstance(schedule, str) and schedule in SCHEDULES:
        return SCHEDULES[schedule]
    if callable(schedule):
        return schedule
    known = ", ".join(f'"{name}"' for name in SCHEDULES)
    raise CompileError(f"schedule is {schedule!r}; expected one of {known}, or a function (step, steps) -> factor")
