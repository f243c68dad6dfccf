"""Learning rate schedules: functions of how far the training has come, giving the factor on the base rate."""
from __future__ import annotations

import math
import numbers
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

from .errors import CompileError

Schedule = Callable[[int, int], float]


def constant(step: int, steps: int) -> float:
    """The base rate throughout. step counts from 0, steps is how many there will be."""
    return 1.0


def cosine(step: int, steps: int) -> float:
    """Half a cosine from 1 at the first step down to 0 after the last: torch's CosineAnnealingLR(T_max=steps)."""
    return 0.5 * (1.0 + math.cos(math.pi * step / steps))


@dataclass(frozen=True)
class EpochSchedule(ABC):
    """The base of schedules that are told in epochs: factor(step, steps, epoch_steps), the last the steps of an epoch."""

    @abstractmethod
    def factor(self, step: int, steps: int, epoch_steps: int) -> float:
        """What the base rate is multiplied by at a step, counted from 0."""

    def _number(self, name: str, expected: str, low: float, high: float = math.inf, above: bool = False) -> None:
        value = getattr(self, name)
        real = isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
        if not real or not low <= value <= high or (above and value == low):
            raise CompileError(f"{type(self).__name__}: {name} is {value!r}; expected {expected}")


def _whole(value: Any, least: int) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool) and int(value) >= least


GAMMA = "a finite number, 0 or more, such as 0.1"


@dataclass(frozen=True)
class StepLR(EpochSchedule):
    """The rate times gamma after every step_size epochs, as torch.optim.lr_scheduler.StepLR stepped once an epoch."""

    step_size: int
    gamma: float = 0.1

    def __post_init__(self) -> None:
        if not _whole(self.step_size, 1):
            raise CompileError(f"StepLR: step_size is {self.step_size!r}; expected a number of epochs, 1 or more")
        self._number("gamma", GAMMA, 0)

    def factor(self, step: int, steps: int, epoch_steps: int) -> float:
        return float(self.gamma) ** (step // epoch_steps // self.step_size)


@dataclass(frozen=True)
class MultiStepLR(EpochSchedule):
    """The rate times gamma after each of these numbers of epochs, as torch.optim.lr_scheduler.MultiStepLR."""

    milestones: Sequence[int]
    gamma: float = 0.1

    def __post_init__(self) -> None:
        given = (self.milestones,) if isinstance(self.milestones, numbers.Integral) else self.milestones
        if not isinstance(given, Sequence) or isinstance(given, str) or not given or not all(_whole(m, 1) for m in given):
            raise CompileError(f"MultiStepLR: milestones is {self.milestones!r}; expected numbers of epochs, such as [30, 60]")
        object.__setattr__(self, "milestones", tuple(sorted(int(one) for one in given)))
        self._number("gamma", GAMMA, 0)

    def factor(self, step: int, steps: int, epoch_steps: int) -> float:
        epoch = step // epoch_steps
        return float(self.gamma) ** sum(epoch >= milestone for milestone in self.milestones)


@dataclass(frozen=True)
class ExponentialLR(EpochSchedule):
    """The rate times gamma after every epoch, as torch.optim.lr_scheduler.ExponentialLR."""

    gamma: float = 0.9

    def __post_init__(self) -> None:
        self._number("gamma", GAMMA, 0)

    def factor(self, step: int, steps: int, epoch_steps: int) -> float:
        return float(self.gamma) ** (step // epoch_steps)


@dataclass(frozen=True)
class CosineAnnealingLR(EpochSchedule):
    """Half a cosine down to `floor` of the rate after the last step, after a warm-up on a straight line.

    warmup        how many epochs the warm-up takes; 0.5 is half of one, rounded to steps
    start_factor  the share of the rate that it begins with
    floor         the share of the rate at the end

    As torch.optim.lr_scheduler.LinearLR(start_factor, total_iters), then CosineAnnealingLR(T_max, eta_min), each step.
    """

    warmup: float = 0.0
    start_factor: float = 1 / 3
    floor: float = 0.0

    def __post_init__(self) -> None:
        self._number("warmup", "a number of epochs, 0 or more, such as 1 or 0.5", 0)
        self._number("start_factor", "a number above 0, up to 1", 0, 1, above=True)
        self._number("floor", "a number from 0 to 1", 0, 1)

    def factor(self, step: int, steps: int, epoch_steps: int) -> float:
        warm = min(steps, round(self.warmup * epoch_steps))
        if step < warm:
            return self.start_factor + (1.0 - self.start_factor) * step / warm
        return self.floor + (1.0 - self.floor) * cosine(step - warm, max(steps - warm, 1))


@dataclass(frozen=True)
class OneCycleLR(EpochSchedule):
    """Up to the rate and down again within the training, as torch.optim.lr_scheduler.OneCycleLR(max_lr=the rate).

    pct_start         the share of the steps that the way up takes
    div_factor        the rate begins at 1 / div_factor of its largest
    final_div_factor  and ends at 1 / final_div_factor of that
    anneal_strategy   "cos" or "linear"

    The momentum stays as it is (cycle_momentum=False).
    """

    pct_start: float = 0.3
    anneal_strategy: str = "cos"
    div_factor: float = 25.0
    final_div_factor: float = 1e4

    def __post_init__(self) -> None:
        self._number("pct_start", "a number from 0 to 1", 0, 1)
        self._number("div_factor", "a finite number above 0", 0, above=True)
        self._number("final_div_factor", "a finite number above 0", 0, above=True)
        if self.anneal_strategy not in ("cos", "linear"):
            raise CompileError(f'OneCycleLR: anneal_strategy is {self.anneal_strategy!r}; expected "cos" or "linear"')

    def factor(self, step: int, steps: int, epoch_steps: int) -> float:
        first = 1.0 / self.div_factor
        peak, last = self.pct_start * steps - 1, steps - 1
        begin, end, start, stop = (0.0, peak, first, 1.0) if step <= peak else (peak, last, 1.0, first / self.final_div_factor)
        share = (step - begin) / (end - begin) if end > begin else 1.0
        if self.anneal_strategy == "linear":
            return start + (stop - start) * share
        return stop + (start - stop) / 2 * (1.0 + math.cos(math.pi * share))


SCHEDULES: dict[str, Any] = {"constant": constant, "cosine": cosine, "step": StepLR, "milestones": MultiStepLR,
                             "exponential": ExponentialLR, "one-cycle": OneCycleLR}


def _value(text: str) -> Any:
    """A number, several with + between them, or the text itself."""
    if "+" in text and all(part.isdigit() for part in text.split("+")):
        return [int(part) for part in text.split("+")]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def _parsed(text: str) -> Any:
    """The schedule that a text names: "cosine", "step:10", "cosine:warmup=1,floor=0.01", "milestones:30+60,gamma=0.2".

    Raises CompileError for arguments that it does not take.
    """
    name, colon, rest = text.partition(":")
    made = SCHEDULES[name]
    if made is constant and not colon or made is cosine and not colon:
        return made
    kind = CosineAnnealingLR if made is cosine else made
    if kind is constant:
        raise CompileError(f'schedule is "{text}"; constant takes no arguments')
    names = [field.name for field in fields(kind)]
    arguments: dict[str, Any] = {}
    for place, part in enumerate(rest.split(",") if rest else ()):
        key, equals, value = part.partition("=")
        key, value = (key.strip(), value) if equals else (names[place] if place < len(names) else "", part)
        if key not in names or key in arguments:
            raise CompileError(f'schedule is "{text}": "{part}"; {name} takes {", ".join(names)}, each once, as '
                               f"{name}:{names[0]}=VALUE")
        arguments[key] = _value(value.strip())
    needed = [field.name for field in fields(kind) if field.name not in arguments and field.name in ("step_size", "milestones")]
    if needed:
        example = "10" if needed[0] == "step_size" else "30+60"
        raise CompileError(f'schedule is "{text}"; {name} needs {needed[0]}, in epochs: "{name}:{example}"')
    return kind(**arguments)


def resolve_schedule(schedule: str | Schedule | EpochSchedule, epoch_steps: int = 1) -> Schedule:
    """The function (step, steps) -> factor of that name or object; functions pass. epoch_steps: the steps of an epoch.

    Raises CompileError, naming what is known.
    """
    found: Any = schedule
    if isinstance(schedule, str) and schedule.partition(":")[0] in SCHEDULES:
        found = _parsed(schedule)
    if isinstance(found, EpochSchedule):
        return lambda step, steps: found.factor(step, steps, epoch_steps)
    if isinstance(found, type) and issubclass(found, EpochSchedule):
        raise CompileError(f"schedule is the class {found.__name__}; make one of it: mc.{found.__name__}(...)")
    if callable(found):
        return found
    known = ", ".join(f'"{name}"' for name in SCHEDULES)
    raise CompileError(f"schedule is {schedule!r}; expected one of {known}, a schedule such as mc.StepLR(10), or a function "
                       "(step, steps) -> factor")
