"""A schedule made executable: a table of integers, the addresses of kernels, and what walks them."""
from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter_ns

import numpy as np

from .arena import ARENA, COUNT, FLAGS, KERNELS, MARKS, ROWS, start_of
from .entries import ENTRIES, function
from .memory import Buffer
from .parts import Row
from .waking import Pace


def executor(name: str) -> Callable[..., None]:
    """The compiled loop, "plain" or "timed", called with the address of a program's header and the number of samples;
    or "clock", with the address of so many numbers to which it writes one reading of the clock after the other.

    It lets go of the GIL: other Python threads go on while a step runs.
    """
    return function(f"executor.{name}", 2)


@dataclass(frozen=True, slots=True)
class RowInfo:
    """What a row of the program is: for the profiler, and for naming a layer in an error.

    part    "forward", "loss", "backward_input" (dX), "backward_weight" (dW, dB), "update"; a row that moves or packs what
            another one reads belongs to that one's part
    reads, writes   bytes of the buffers that it reads and writes, for a full batch
    beside  other layers that it does, too, without keeping what is between
    """

    layer: str
    op: str
    phase: str
    kernel: str
    part: str = "forward"
    reads: int = 0
    writes: int = 0
    beside: tuple[str, ...] = ()


def row_infos(rows: Sequence[Row]) -> list[RowInfo]:
    """What the profiler says of each row."""
    infos: list[RowInfo] = []
    part = "forward"
    for row in reversed(rows):          # what only prepares something is named after what follows
        modes = ENTRIES[row.kernel].modes
        held = {name: row.fields[name] for name in modes if row.fields[name] is not None}
        written = [buffer for name, buffer in held.items() if modes[name] in ">="]
        part = _part(row.phase, written) or part
        reads = sum(buffer.bytes for name, buffer in held.items() if modes[name] in "<=")
        writes = sum(buffer.bytes for buffer in written)
        if row.kernel == "layout.input":
            reads = writes              # the caller's array, which is no buffer
        infos.append(RowInfo(row.layer, row.op, row.phase, row.kernel, part, reads, writes, row.beside))
    return infos[::-1]


def _goes_on(rows: Sequence[Row], number: int, buffer: Buffer) -> bool:
    """Whether the next row makes more of a buffer for the same layer, which is whole only then."""
    row, following = rows[number], rows[number + 1] if number + 1 < len(rows) else None
    return following is not None and (following.layer, following.phase) == (row.layer, row.phase) and \
        any(following.fields[name] is buffer for name, mode in ENTRIES[following.kernel].modes.items() if mode in ">=")


def _part(phase: str, written: Sequence[Buffer]) -> str | None:
    """A row's part by what it writes; None where that is nothing that lasts."""
    if phase in ("forward", "loss", "update"):
        return phase
    gradients = [buffer for buffer in written if buffer.kind == "gradient"]
    if phase == "backward" and gradients:
        return "backward_input" if any(buffer.per_sample for buffer in gradients) else "backward_weight"
    return None


def compile_kernels(rows: Sequence[Row], dtype: str, progress: Callable[[int, int, str], None] | None = None) -> None:
    """Compile, or load from the cache, every kernel that these rows call. progress(done, all, name) is told of each."""
    names = sorted({row.kernel for row in rows})
    missing = [name for name in names if not ENTRIES[name].is_compiled(dtype)]
    for number, name in enumerate(missing):
        if progress is not None:
            progress(number, len(missing), name)
        ENTRIES[name].address(dtype)
    if progress is not None and missing:
        progress(len(missing), len(missing), "")


class Program:
    """Rows over an arena. base: the address that offsets count from; offset_of gives a buffer's.

    execute, address: what `run` calls, and with what, for who cannot wait for one more call in Python
    """

    def __init__(self, rows: Sequence[Row], dtype: str, base: int, offset_of: Callable[[Buffer], int]):
        self.infos = row_infos(rows)
        entries = [ENTRIES[row.kernel] for row in rows]
        table: list[int] = []
        starts: list[int] = []
        outputs: list[tuple[int, int, int, int]] = []
        for number, (row, entry) in enumerate(zip(rows, entries, strict=True)):
            starts.append(len(table))
            for name in entry.fields:
                value = row.fields[name]
                if isinstance(value, Buffer):
                    offset = offset_of(value)
                    table.append(offset)
                    if entry.modes[name] in ">=" and value.checked and not _goes_on(rows, number, value):
                        outputs.append((number, offset, value.bytes, int(value.per_sample)))
                elif value is None:
                    table.append(-1)
                elif isinstance(value, float):
                    table.append(int(np.float64(value).view(np.int64)))
                else:
                    table.append(int(value))
        self._table = np.array(table or [0], np.int64)
        self._starts = np.array(starts, np.int32)
        # a row's address keeps meaning the table: both live as long as the program
        self._rows = start_of(self._table) + 8 * self._starts.astype(np.int64)
        self._kernels = np.array([entry.address(dtype) for entry in entries], np.int64)
        self._outputs = np.array(outputs, np.int64).reshape(-1, 4)
        self._marks: np.ndarray | None = None
        self._header = np.array([base, start_of(self._kernels), start_of(self._rows), len(rows), 0], np.int64)
        self.address = start_of(self._header)
        self.execute = executor("plain")
        self.paces: dict[int, Pace] = {}

    def run(self, batch: int) -> None:
        """Run all rows on that many samples."""
        self.execute(self.address, batch)

    def pace(self, batch: int) -> Pace:
        """What runs with that many samples have found out of threads."""
        pace = self.paces.get(batch)
        if pace is None:
            pace = self.paces[batch] = Pace()
        return pace

    def run_paced(self, batch: int, pace: Pace) -> None:
        """run, of which `pace` is told how long it took."""
        begin = perf_counter_ns()
        self.run(batch)
        pace.note(perf_counter_ns() - begin)

    def run_timed(self, batch: int) -> np.ndarray:
        """Run all rows; the clock in nanoseconds before the first and after each."""
        if self._marks is None:
            self._marks = np.zeros(len(self.infos) + 1, np.int64)
            self._header[MARKS] = start_of(self._marks)
        executor("timed")(self.address, batch)
        return self._marks.copy()

    def run_debug(self, batch: int, planned: int, dtype: str) -> RowInfo | None:
        """Run row by row; the first one that wrote a NaN or an infinity, None if none did."""
        header = self._header.copy()
        header[COUNT] = 1
        base = int(header[ARENA])
        flags = (ctypes.c_int64 * (FLAGS + 1)).from_address(base)
        for number, info in enumerate(self.infos):
            header[KERNELS] = self._header[KERNELS] + 8 * number
            header[ROWS] = self._header[ROWS] + 8 * number
            self.execute(start_of(header), batch)
            if flags[FLAGS]:
                break
            for _, offset, size, per_sample in self._outputs[self._outputs[:, 0] == number]:
                if per_sample:
                    size = size // planned * batch
                raw = (ctypes.c_uint8 * int(size)).from_address(base + int(offset))
                if not np.isfinite(np.frombuffer(memoryview(raw), np.dtype(dtype))).all():
                    return info
        return None

    def set_field(self, kernel: str, field: str, value: int, where: tuple[str, int]) -> None:
        """Change a field in the rows of a kernel in which another field has a certain value."""
        fields = ENTRIES[kernel].fields
        place, test = fields.index(field), fields.index(where[0])
        for start, info in zip(self._starts, self.infos, strict=True):
            if info.kernel == kernel and self._table[start + test] == where[1]:
                self._table[start + place] = value
