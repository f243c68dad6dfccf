"""forward, backward, gradients, update: a second program over a network's parameters, with an arena of its own."""
from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from . import team, threads
from .arena import FLAGS, LEAST_WORK, RATE, SEED, STEP, THREADS, start_of
from .errors import DataError, TrainingError
from .feeding import require_finite, several
from .layout import Layout, pad5, strides_between
from .memory import Buffer, place

if TYPE_CHECKING:
    from .net import Net
    from .plan import Schedule

Arrays = dict[str, np.ndarray]


class Manual:
    """Keeps every trainable gradient from backward to the next one, and returns dX. bytes: its arena."""

    def __init__(self, net: Net):
        self.net = net
        schedule = net.schedule("manual")
        schedule.run_forward()
        schedule.run_outputs()
        after_forward = len(schedule.rows)
        self._dy_outputs = self._dy_in(schedule)
        schedule.run_backward()
        self._dx_inputs = self._dx_out(schedule)
        after_backward = len(schedule.rows)
        if net.optimizer is not None:
            for name, buffer in schedule.weight_gradients.items():
                schedule.updates.ready(schedule.store.parameters[name], buffer)
            schedule.updates.finish()
        schedule.finish()
        at = net._control_bytes
        own_constants = list(net._store.constants.values())[net._constants_placed:]
        for buffer, _ in own_constants:     # those that only this program needs
            buffer.offset = at
            at += buffer.size
        self._transient = at     # where what lasts ends
        self.bytes = place(schedule.buffers, at)
        self._arena = net._allocate(self.bytes)
        for buffer, array in own_constants:
            buffer.fill(self._arena, array)
        self._own = {id(buffer) for buffer in schedule.buffers} | {id(buffer) for buffer, _ in own_constants}
        self._gradients = dict(schedule.weight_gradients)
        self._build(schedule, after_forward, after_backward)
        self._samples = 0
        self._forwards = 0
        self._has_gradients = False

    def _dy_in(self, schedule: Schedule) -> list[str]:
        """Rows that read the caller's dY; the outputs that take one."""
        schedule.phase, schedule.node = "layout", None
        found = []
        for name in schedule.graph.outputs:
            if schedule.needs_gradient(name):
                value = schedule.value(name)
                buffer, _ = schedule.dx(name)
                schedule.row("layout.input", y=buffer, slot=schedule.slots[f"dy:{name}"],
                             **pad5(*strides_between(Layout.plain(value.layout.shape), value.layout)))
                found.append(name)
        return found

    def _dx_out(self, schedule: Schedule) -> list[str]:
        """Rows that write the caller's dX; the inputs that have one."""
        schedule.phase, schedule.node = "layout", None
        found = []
        for entry in schedule.graph.inputs:
            gradient = schedule.gradient(entry.name)
            if gradient is not None:
                value = schedule.value(entry.name)
                schedule.row("layout.output", x=gradient.buffer, slot=schedule.slots[f"dx:{entry.name}"],
                             **pad5(*strides_between(value.layout, Layout.plain(value.layout.shape))))
                found.append(entry.name)
        return found

    def _build(self, schedule: Schedule, after_forward: int, after_backward: int) -> None:
        """Programs whose offsets count from whichever arena lies lower, so that none is negative."""
        from .program import Program, compile_kernels
        net = self.net
        here, there = start_of(self._arena), net._base
        base = min(here, there)

        def offset_of(buffer: Buffer) -> int:
            return buffer.offset + (here if id(buffer) in self._own else there) - base
        arena = self._arena if base == here else net._arena
        self._control = arena[:net._control_bytes].view(np.int64)
        self._control_numbers = arena[:net._control_bytes].view(np.float64)
        compile_kernels(schedule.prepared + schedule.rows, net.dtype.name)
        parts = (schedule.prepared, schedule.rows[:after_forward], schedule.rows[after_forward:after_backward],
                 schedule.rows[after_backward:])
        self._prepare, self._forward, self._backward, self._update = (
            Program(part, net.dtype.name, base, offset_of) for part in parts)

    def _run(self, program: Any, samples: int, step: int) -> None:
        net = self.net
        self._control[THREADS] = count = threads.apply()
        pace = None
        if count > 1:
            pace = program.pace(samples)
            self._control[LEAST_WORK] = pace.least_work
            if pace.wants_threads:
                team.ready(count)
        self._control[FLAGS] = 0
        self._control[SEED] = net._seed
        self._control[STEP] = step
        self._control_numbers[RATE] = net.lr
        if net.debug:
            net._run_debug(program, samples)
        elif pace is None:
            program.run(samples)
        else:
            program.run_paced(samples, pace)

    def forward(self, inputs: Arrays) -> Any:
        net = self.net
        samples = next(iter(inputs.values())).shape[0]
        if samples > net.batch:
            raise DataError(f"x holds {samples} samples; this network was compiled for up to {net.batch}. Give fewer, or "
                            f"compile(batch={samples})")
        for name, array in inputs.items():
            require_finite(array, f'input "{name}"')
        results = net._written(net._results(None, samples))
        for kind, arrays in (("input", inputs), ("output", results)):
            for name, array in arrays.items():
                self._control[net._slots[f"{kind}:{name}"]] = start_of(array)
        self._forwards += 1
        self._samples = 0
        if self._prepare.infos:
            self._run(self._prepare, samples, self._forwards)
        self._run(self._forward, samples, self._forwards)
        self._samples = samples
        self._has_gradients = False
        results = {name: net._in_type(name, array) for name, array in results.items()}
        return results if len(results) > 1 else results[net.graph.outputs[0]]

    def backward(self, dy: Any) -> Any:
        net = self.net
        if not self._samples:
            raise TrainingError("backward needs a forward before it, one for each")
        outputs = net.graph.outputs
        given = several(dy, outputs, "dy", complete=False)
        arrays = {}
        for name in outputs:
            shape = (self._samples, *net.shapes[name])
            try:
                array = np.asarray(given.get(name, np.zeros(shape, net.dtype)))
            except (ValueError, TypeError) as error:
                raise DataError(f'dy of output "{name}" is no array of numbers: {error}') from None
            if array.shape != shape or array.dtype.kind not in "fiu":
                raise DataError(f'dy of output "{name}" is {array.dtype} of shape {array.shape}; expected numbers of shape '
                                f"{shape}, as forward returned")
            arrays[name] = np.ascontiguousarray(array, net.dtype)
            require_finite(arrays[name], f'dy of output "{name}"')
        for name in self._dy_outputs:
            self._control[net._slots[f"dy:{name}"]] = start_of(arrays[name])
        results = {entry.name: np.zeros((self._samples, *net.shapes[entry.name]), net.dtype) for entry in net.graph.inputs}
        for name in self._dx_inputs:
            self._control[net._slots[f"dx:{name}"]] = start_of(results[name])
        samples, self._samples = self._samples, 0
        self._run(self._backward, samples, self._forwards)
        self._has_gradients = True
        return results if len(results) > 1 else results[net.graph.inputs[0].name]

    def _need_gradients(self, what: str) -> None:
        if not self._has_gradients:
            raise TrainingError(f"{what} needs a backward before it")

    def gradients(self) -> Arrays:
        self._need_gradients("gradients")
        found = {}
        for name in self.net._factors:
            found[name] = self.net._gradient(name, self._gradients.get(name), self._arena)
        return found

    def update(self) -> None:
        self._need_gradients("update")
        net = self.net
        net._steps[0] += 1
        self._run(self._update, net.batch, net._steps[0])
        if self._control[FLAGS]:
            net._steps[0] -= 1
            raise TrainingError("a gradient holds NaN or infinite numbers; no weight was changed. Use a smaller learning rate "
                                f"than {net.lr:g}, or look at debug = True")
        net._prepared = None
