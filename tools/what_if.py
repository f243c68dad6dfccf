"""What training would cost if less of the network trained: for each cut and batch the memory, exact, and the time, predicted.

Times are put together from those of a step that trains everything and of a prediction, row by row: the same kernel of the same
layer takes what it took there.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import microcnn as mc
from microcnn.errors import CompileError
from microcnn.partial import layer_count, resolve_train, trainable_weights
from microcnn.planned import Planned
from microcnn.program import RowInfo, row_infos

from .profile_data import Run
from .profiler import profile
from .samples import default_loss

SCHEMA = "microcnn.what-if/1"
# What trains, beside the head and everything: so many of the last layers.
LAST = (2, 4, 8)


@dataclass
class Line:
    """One way to train. bytes: the arena beside the parameters; arena: all of it; predicted_us, measured_us: of a step.

    guessed: the share of the time that is of kernels which ran in neither measurement, estimated by the bytes they move
    """

    train: str
    batch: int
    bytes: int = 0
    arena: int = 0
    predicted_us: float = 0.0
    measured_us: float | None = None
    guessed: float = 0.0
    refused: str = ""

    @property
    def off(self) -> float | None:
        """By what share of the measured time the predicted one is off."""
        return None if not self.measured_us else self.predicted_us / self.measured_us - 1


class Costs:
    """What rows took: of a step that trains everything, and of a prediction."""

    def __init__(self, step: Run, prediction: Run):
        self._by_row: dict[tuple[str, str, str], float] = {}
        self._rates: dict[str, tuple[float, int]] = {}
        self.beside = step.total_us - sum(row.us for row in step.rows)        # Python and the executor, a call
        for run in (prediction, step):          # where both have a row, the step's counts
            times: dict[tuple[str, str, str], list[float]] = {}
            for row in run.rows:
                times.setdefault((row.layer, row.kernel, row.part), []).append(row.us)
                took, moved = self._rates.get(row.kernel, (0.0, 0))
                self._rates[row.kernel] = took + row.us, moved + row.reads + row.writes
            self._by_row.update({key: sum(each) / len(each) for key, each in times.items()})

    def of(self, info: RowInfo) -> tuple[float, bool]:
        """(microseconds of a row, whether that is a guess)."""
        found = self._by_row.get((info.layer, info.kernel, info.part))
        if found is not None:
            return found, False
        took, moved = self._rates.get(info.kernel) or [sum(column) for column in zip(*self._rates.values(), strict=True)]
        return took * (info.reads + info.writes) / max(moved, 1), True


def cuts(graph: Any) -> list[str]:
    """What may train: the head, biases, the last few layers, everything."""
    count = layer_count(graph)
    return ["head", "biases", *(f"last:{last}" for last in LAST if last < count), "all"]


def what_if(graph: Any, batches: Sequence[int] = (1, 8, 32), measure: Sequence[tuple[str, int]] = (), *, loss: Any = "auto",
            optimizer: Any = None, bn: str = "frozen", dtype: str = "float32",
            input_shapes: dict[str, tuple[int, ...]] | None = None, seconds: float = 1.0,
            tick: Callable[[float, str], None] | None = None) -> list[Line]:
    """The lines of the table.

    measure      (cut, batch) of lines whose steps are to be measured, too; other cuts than those of the table make new lines
    seconds      how long each is measured at most
    tick         called with the share that is done, 0..1, and what is being done
    Other arguments as in microcnn.tools.profiler.profile. Raises CompileError as that does.
    """
    if not trainable_weights(graph):
        raise CompileError("the model has no weight that can be trained, so there is nothing to leave out")
    for train, _ in measure:
        resolve_train(graph, [train])
    if loss == "auto":
        loss = default_loss(graph.shapes(input_shapes), graph.outputs)
    how: dict[str, Any] = {"loss": loss, "optimizer": optimizer or mc.SGD(lr=0.01, momentum=0.9), "bn": bn, "dtype": dtype,
                           "input_shapes": input_shapes}
    lines = [Line(train, batch) for batch in batches for train in cuts(graph)]
    lines += [Line(*each) for each in measure if not any((line.train, line.batch) == each for line in lines)]
    sizes = list(dict.fromkeys(line.batch for line in lines))
    done, steps = 0, 2 * len(sizes) + len(measure)

    def timed(train: str | None, batch: int, label: str) -> Run:
        nonlocal done
        given = how if train else {"bn": bn, "dtype": dtype, "input_shapes": input_shapes}
        found = profile(graph, batch=batch, train=train and [train], seconds=seconds,
                        tick=lambda share: tick and tick((done + share) / steps, label), **given)
        done += 1
        if found.conditions["interrupted"]:         # a table of figures that were cut short says nothing
            raise KeyboardInterrupt
        return found.runs[0]
    costs = {size: Costs(timed("all", size, f"all, batch {size}"), timed(None, size, f"prediction, batch {size}"))
             for size in sizes}
    # Python and the executor take as long for any batch; what is more, others had of the machine
    beside = max(0.0, min(cost.beside for cost in costs.values()))
    for cost in costs.values():
        cost.beside = beside
    for line in lines:
        try:
            _predict(line, graph, how, costs[line.batch])
        except CompileError as error:
            line.refused = str(error)
            continue
        if (line.train, line.batch) in measure:
            line.measured_us = timed(line.train, line.batch, f"{line.train}, batch {line.batch}").total_us
    return lines


def _predict(line: Line, graph: Any, how: dict[str, Any], costs: Costs) -> None:
    planned = Planned(graph, batch=line.batch, train=[line.train], **how)
    line.arena, line.bytes = planned.memory.arena, planned.memory.arena - planned.memory.parameters
    rows = [(costs.of(info)) for info in row_infos(planned._planned["train"].rows)]
    line.predicted_us = costs.beside + sum(us for us, _ in rows)
    line.guessed = sum(us for us, guess in rows if guess) / max(line.predicted_us, 1e-9)


def table(lines: Sequence[Line]) -> tuple[list[str], list[list[str]]]:
    """(columns, rows) of the table for a terminal."""
    from .terminal import bytes_text, time_text
    columns = ["train", ">batch", ">beside parameters", ">arena", ">step, predicted", ">measured", ">off"]
    rows = []
    for line in lines:
        if line.refused:
            rows.append([line.train, str(line.batch), "refused", "", "", "", ""])
            continue
        rows.append([line.train, str(line.batch), bytes_text(line.bytes), bytes_text(line.arena), time_text(line.predicted_us),
                     "-" if line.measured_us is None else time_text(line.measured_us),
                     "-" if line.off is None else f"{100 * line.off:+.0f}%"])
    return columns, rows


def as_dict(lines: Sequence[Line]) -> dict[str, Any]:
    """The table as its JSON file has it."""
    return {"schema": SCHEMA, "lines": [asdict(line) for line in lines]}
