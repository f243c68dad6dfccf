"""A network in memory: the arena, the weights that lie in it, and the compiled programs that run over it."""
from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import numpy as np

from . import team, threads
from .arena import FLAGS, LEAST_WORK, RATE, SEED, THREADS, aligned_bytes, start_of
from .errors import CompileError, DataError, TrainingError
from .feeding import describe
from .graph import Graph, size_of
from .memory import Buffer
from .planned import Planned

if TYPE_CHECKING:
    from .parts import Parameter
    from .plan import Schedule
    from .program import Program

Arrays = dict[str, np.ndarray]


class Bound(Planned):
    """A planned network whose arena is allocated, whose weights are loaded and whose programs are compiled.

    lr      the learning rate; may be set between steps
    debug   with True every run goes row by row, and the first layer that makes a NaN or an infinity is named
    Raises CompileError as Planned does, and where the machine cannot hold the arena.
    """

    def __init__(self, graph: Graph, *, seed: int = 0, progress: Callable[[int, int, str], None] | None = None, **how: Any):
        super().__init__(graph, seed=seed, **how)
        self._lock = threading.RLock()
        threads.locked.add(self)
        self.debug = False
        # how many steps the optimizer has made; not an int, which takes memory of its own as it grows
        self._steps: Any = np.zeros(1, np.int64).data
        self._marks: list[np.ndarray] | None = None  # where runs are timed, what the clock said
        self._prepared: str | None = None            # the program whose prepared rows still hold
        self._arena = self._allocate(self.memory.arena)
        self._base = start_of(self._arena)
        # as memoryviews, whose items are Python's own numbers and quicker to come by than numpy's
        self._control: Any = self._arena[:self._control_bytes].view(np.int64).data
        self._control_numbers: Any = self._arena[:self._control_bytes].view(np.float64).data
        self._control[SEED] = seed
        self.lr = self.optimizer.lr if self.optimizer else 0.0
        self._load_parameters()
        self._build_programs(self._planned, progress)
        del self._planned            # the rows are tables now

    def _guard(self) -> AbstractContextManager[Any]:
        """What a step holds: the network's lock, and where two threads in numba's pool abort the process that of the pool."""
        return self._lock if self._team else threads.Both(self._lock)

    def _allocate(self, size: int) -> np.ndarray:
        """The arena. Raises CompileError where the machine cannot hold it."""
        total = physical_memory()
        if total and size > total:
            raise CompileError(f"batch {self.batch} needs an arena of {size:,} bytes; this machine has {total:,}. Use a "
                               "smaller batch")
        try:
            return aligned_bytes(size)
        except MemoryError:
            raise CompileError(f"batch {self.batch} needs an arena of {size:,} bytes, which cannot be had; use a smaller "
                               "batch") from None

    def _build_programs(self, schedules: dict[str, Schedule], progress: Callable[[int, int, str], None] | None) -> None:
        """Compile or load the kernels, then the tables."""
        from .program import compile_kernels
        rows = [row for schedule in schedules.values() for row in schedule.prepared + schedule.rows]
        compile_kernels(rows, self.dtype.name, progress)
        self._team = not threads.numbas
        self._programs: dict[str, tuple[Program, Program | None]] = {}
        # what a step in parts runs once: before its parts, and behind them
        self._opening: Program | None = None
        self._closing: Program | None = None
        self._gradients: dict[str, Buffer] = {}      # of the parts, added up
        for name, schedule in schedules.items():
            rows, opening, behind = schedule.rows, schedule.opening, len(schedule.rows) - schedule.closing
            self._add_program(name, rows[opening:behind], schedule.prepared)
            if schedule.accumulates:
                self._gradients = dict(schedule.weight_gradients)
                self._opening, self._closing = self._program(rows[:opening]), self._program(rows[behind:])

    def _add_program(self, name: str, rows: list, prepared: list) -> None:
        """A program that _run knows by that name; prepared: the rows to run once after the weights have changed."""
        self._programs[name] = self._program(rows), self._program(prepared) if prepared else None

    def _program(self, rows: list) -> Program:
        from .program import Program
        return Program(rows, self.dtype.name, self._base, lambda buffer: buffer.offset)

    def _load_parameters(self) -> None:
        for parameter in self._store.parameters.values():
            self._write(parameter, self.graph.weights[parameter.name])
        for buffer, array in self._store.constants.values():
            buffer.fill(self._arena, array)

    def _numbers(self, buffer: Buffer) -> np.ndarray:
        """A lasting buffer of the arena as a flat array of the network's dtype."""
        return self._arena[buffer.offset:buffer.offset + buffer.bytes].view(self.dtype)

    def _read(self, parameter: Parameter) -> np.ndarray:
        """A weight as it is now, in ONNX's layout."""
        shape = parameter.shape
        return np.array(parameter.chain.undo(self._numbers(parameter.buffer), shape).reshape(shape))

    def _write(self, parameter: Parameter, array: np.ndarray) -> None:
        """Set a weight, given in ONNX's layout."""
        self._numbers(parameter.buffer)[:] = parameter.chain.apply(np.asarray(array)).reshape(-1)

    def _gradient(self, name: str, buffer: Buffer | None, arena: np.ndarray) -> np.ndarray:
        """A weight's gradient from its buffer in an arena, in ONNX's layout; zeros where it does not train, or has none."""
        parameter = self._store.parameters[name]
        flat, part = np.zeros(size_of(parameter.shape), self.dtype), parameter.part
        if buffer is not None:
            numbers = arena[buffer.offset:buffer.offset + buffer.bytes].view(self.dtype)
            flat.reshape(part.rows, part.length)[:, :part.columns] = numbers[:part.numbers].reshape(part.rows, -1)
        return np.array(parameter.chain.undo(flat, parameter.shape).reshape(parameter.shape))

    @contextlib.contextmanager
    def _timing(self) -> Iterator[list[np.ndarray]]:
        """Within, programs run through the timed executor, and the marks of each run come into the list."""
        marks: list[np.ndarray] = []
        self._marks = marks
        try:
            yield marks
        finally:
            self._marks = None

    def _run(self, name: str, samples: int, part: Program | None = None) -> None:
        """Run a program on samples whose addresses stand in the control block. The caller holds the lock.

        part: what to run instead, of a step whose program that is.
        """
        program, prepared = self._programs[name]
        if part is not None:
            program = part
        control, count, pace = self._control, threads.apply(), None
        control[THREADS] = count
        control[FLAGS] = 0
        if count > 1:
            pace = program.paces.get(samples) or program.pace(samples)
            control[LEAST_WORK] = pace.least_work
            if pace.wants_threads:
                team.ready(count)
        if self._prepared != name:
            if prepared is not None:
                prepared.run(samples)
                self._prepared = name
            else:
                self._prepared = None        # what was prepared is overwritten now
        if self._marks is not None:
            self._marks.append(program.run_timed(samples))
        elif self.debug:
            self._run_debug(program, samples)
        elif pace is None:
            program.execute(program.address, samples)
        elif pace.quiet:
            pace.quiet -= 1
            program.execute(program.address, samples)
        else:
            program.run_paced(samples, pace)

    def _run_debug(self, program: Program, samples: int) -> None:
        """Run row by row. Raises TrainingError that names the first layer that makes a NaN or an infinity."""
        bad = program.run_debug(samples, self.micro_batch, self.dtype.name)
        if bad is not None:
            before = "".join(f', or "{name}"' for name in bad.beside) + (" before it in the same kernel," if bad.beside else "")
            raise TrainingError(f'"{bad.layer}" ({bad.op}, {bad.phase}){before} is the first layer that makes a NaN or an '
                                "infinity")

    def parameters(self) -> Arrays:
        """{weight name: a copy in ONNX's layout}, trained or not."""
        with self._lock:
            return {name: self._read(parameter) for name, parameter in self._store.parameters.items()}

    def set_parameters(self, arrays: Arrays) -> None:
        """Set weights by name, in ONNX's layout; all are checked before any is set.

        Raises DataError for unknown names, wrong shapes, dtypes, and numbers that are not finite.
        """
        if not isinstance(arrays, dict):
            raise DataError(f"set_parameters takes a dict of arrays by weight name; it was given {type(arrays).__name__}")
        checked = []
        for name, value in arrays.items():
            parameter = self._store.parameters.get(name)
            if parameter is None:
                raise DataError(f'"{name}" is no weight of this network; it has {list(self._store.parameters)[:8]}')
            array = np.asarray(value)
            if array.dtype.kind not in "fiub" or array.shape != parameter.shape:
                raise DataError(f'weight "{name}" must be numbers of shape {parameter.shape}; it is {describe(array)}')
            with np.errstate(over="ignore"):
                array = array.astype(self.dtype)
            if not np.isfinite(array).all():
                raise DataError(f'weight "{name}" holds NaN or infinite numbers, or ones that {self.dtype.name} cannot '
                                "hold")
            checked.append((parameter, array))
        with self._lock:
            for parameter, array in checked:
                self._write(parameter, array)
            self._prepared = None

    @property
    def lr(self) -> float:
        return self._control_numbers[RATE]

    @lr.setter
    def lr(self, value: float) -> None:
        if isinstance(value, bool) or not isinstance(value, (int, float, np.floating, np.integer)) \
                or not 0 <= value <= sys.float_info.max:
            raise CompileError(f"lr is {value!r}; expected a finite number, 0 or more")
        self._control_numbers[RATE] = value

    def to_graph(self) -> Graph:
        """The graph with the weights as they are now."""
        from .checkpoint import with_parameters
        return with_parameters(self.graph, self.parameters())

    def save(self, path: Any) -> None:
        """Write the network as a .mcnn file, atomically, without the optimizer's state. Raises FileError."""
        self.to_graph().save(path)


def physical_memory() -> int:
    """Bytes of main memory, 0 where that cannot be told."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return 0


