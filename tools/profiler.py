"""What each layer of a network costs on this device: time forward, backward and for the update, and memory by kind.

The times come from the executor that reads a clock after every row of the program, so they are of what really runs.
They are interleaved with whole calls through the plain executor. What Python does around the program in those stands as a
line of its own ("call"), and so does what neither the rows nor it account for.
"""
from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import microcnn as mc
from microcnn.errors import CompileError, DataError

from . import roofline
from .machine import conditions_of_machine
from .memory_plan import plan_of
from .profile_data import (
    GraphNode,
    LayerCost,
    MemoryPlan,
    Profile,
    RowCost,
    Run,
    Spread,
    multiplies,
)
from .samples import default_loss, example

# Calls are measured until the middle of the confidence interval of a median is known to this share of it: the whole call's,
# and that of each row that takes NOTABLE of it.
CONFIDENCE, NOTABLE = 0.03, 0.02
LEAST_CALLS, MOST_CALLS, LOOK_EVERY = 30, 2000, 10
# A slow network may take so many times as long, to be called more than a few times.
FEWEST_CALLS, OVERTIME = 5, 2
# A quiet moment that is over soon says little: measuring lasts for at least this share of the time that it may take.
LEAST_SHARE = 0.3
# What is gone through between two calls with cold caches: more than a large cache holds.
COLD_BYTES = 96 * 2**20
CLOCK_READINGS = 2000
# Which of the calls count, by the time that they took, as shares of all.
QUIET = 0.02, 0.12


def profile(model: Any, x: Any = None, t: Any = None, *, batch: int = 1, train: Any = None, loss: Any = "auto",
            optimizer: Any = None, bn: str = "frozen", dtype: str = "float32", threads: int | None = None,
            input_shapes: dict[str, tuple[int, ...]] | None = None, seconds: float = 1.0,
            repeats: int | None = None, cold: bool = False, machine: bool = False, name: str | None = None,
            tick: Any = None) -> Profile:
    """Measure what each layer of a model costs.

    model        a Net; or a Graph or the path of a model, which is compiled with batch, train, loss, optimizer, bn,
                 dtype and input_shapes as in Graph.compile (train=None measures predict, anything else train_step)
    x, t         inputs and targets; random ones where they are not given
    threads      as in mc.set_num_threads; None leaves what is set
    seconds      how long to measure at most, after warming up; less where the figures stand before
    repeats      how many pairs of calls instead
    cold         whether each call finds caches that other numbers have gone through
    machine      whether to measure what the machine can do at most, once, where it is not known yet (roofline.py)
    name         what the profile calls the model; None: the file's name, or the graph's
    tick         called with the share that is done, 0..1

    A Net that trains is measured in train_step with a learning rate of 0, and is afterwards as it was before.
    Raises CompileError, DataError and, for a path, FileError and ModelError.
    """
    from microcnn.net import Net
    compiled: dict[str, Any]
    if repeats is not None and repeats < 1:
        raise CompileError(f"repeats is {repeats}; expected at least 1")
    if not seconds > 0:
        raise CompileError(f"seconds is {seconds}; expected more than 0")
    if threads is not None:
        mc.set_num_threads(threads)
    if isinstance(model, Net):
        net = model
        loss = net.loss
        compiled = {}
    else:
        graph = model
        if not hasattr(graph, "nodes"):
            from .loading import file_name, load_model
            graph = load_model(model, list((input_shapes or {}).items()))
            name = name or file_name(model)
        if train is not None and loss == "auto":
            loss = default_loss(graph.shapes(input_shapes), graph.outputs)
        if train is not None and optimizer is None:
            optimizer = mc.SGD(lr=0.01, momentum=0.9)
        began = time.perf_counter()
        net = graph.compile(batch=batch, train=train, loss=loss if train is not None else None,
                            optimizer=optimizer if train is not None else None, bn=bn, dtype=dtype,
                            input_shapes=input_shapes)
        compiled = {"compile_seconds": time.perf_counter() - began}
    steps = bool(net.trained) and net.loss is not None and net.optimizer is not None
    if x is None:
        shapes = {i.name: net.shapes[i.name] for i in net.graph.inputs}
        x, made = example(net.graph, net.batch, net.loss if steps else None, net.dtype.name, shapes)
        t = made if t is None else t
    elif steps and t is None:
        raise DataError("a network that trains is profiled in train_step: give the targets t with x, or neither")
    run = _measure(net, x, t, steps, seconds, repeats, cold, tick, compiled)
    run.conditions["model"] = name or net.graph.name
    run.machine = roofline.kept(mc.get_num_threads(), net.dtype.name)
    if run.machine is None and machine and not run.conditions["interrupted"]:
        try:
            run.machine = roofline.measure([mc.get_num_threads()], net.dtype.name)[0]
        except KeyboardInterrupt:        # the layers were measured
            run.conditions["interrupted"] = True
    return Profile([run])


def clock_nanoseconds() -> float:
    """What one reading of the clock takes in the timed executor: the median of many."""
    from microcnn.arena import start_of
    from microcnn.program import executor
    marks = np.zeros(CLOCK_READINGS, np.int64)
    executor("clock")(start_of(marks), len(marks))
    return float(np.median(np.diff(marks)))


class _Caller:
    """Calls of a network through the plain executor and through the timed one.

    Within, the network is this thread's: another one's step would run at a rate of 0 and be undone.
    """

    def __init__(self, net: Any, x: Any, t: Any, steps: bool, cold: bool):
        self.net, self.x, self.t, self.steps = net, x, t, steps
        self.name = "train" if steps else "predict"
        self.programs = [program for program in (net._programs[self.name][0], *((net._opening, net._closing) if steps else ()))
                         if program is not None]
        self.sweep = np.zeros(COLD_BYTES // 8) if cold else None
        self._inside = 0
        self._kept: tuple[np.ndarray, int, float] | None = None
        self._held = contextlib.ExitStack()

    def __enter__(self) -> _Caller:
        self._held.enter_context(self.net._guard())
        self._execute = self.programs[0].execute       # as the last one that held the network left it
        if self.steps:          # weights and optimizer state; with a rate of 0 nothing grows, however often a batch is learned
            self._kept = self.net._arena.copy(), self.net._steps[0], self.net.lr
            self.net.lr = 0.0
        for program in self.programs:
            program.execute = self._watched
        return self

    def __exit__(self, *_: object) -> None:
        for program in self.programs:
            program.execute = self._execute
        if self._kept is not None:
            self.net._arena[:], self.net._steps[0], self.net.lr = self._kept
            self.net._prepared = None
        self._held.close()

    def _watched(self, address: int, samples: int) -> None:
        began = time.perf_counter_ns()
        self._execute(address, samples)
        self._inside += time.perf_counter_ns() - began

    def _ready(self, call: Callable[[], Any]) -> None:
        """What comes before a call: another one, which finds caches as the other kind left them; or numbers to fill them."""
        if self.sweep is None:
            call()
        else:
            self.sweep += 1.0

    def _call(self) -> None:
        _ = self.net.train_step(self.x, self.t) if self.steps else self.net.predict(self.x)

    def _timed(self) -> Any:
        return self.net.timed_step(self.x, self.t) if self.steps else self.net.timed_predict(self.x)

    def whole(self) -> tuple[int, int]:
        """Nanoseconds of a call, and of the program in it."""
        self._ready(self._call)
        self._inside = 0
        began = time.perf_counter_ns()
        self._call()
        return time.perf_counter_ns() - began, self._inside

    def timed(self) -> np.ndarray:
        """The clock before the first row and after each, in nanoseconds."""
        self._ready(self._timed)
        marks: np.ndarray = self._timed()
        return marks


def _measure(net: Any, x: Any, t: Any, steps: bool, seconds: float, repeats: int | None, cold: bool, tick: Any,
             compiled: dict[str, Any]) -> Run:
    """Whole and timed calls in turn, and what is typical of both. Ctrl-C ends it with what there is, if that is anything."""
    clock = clock_nanoseconds()
    wholes: list[tuple[int, int]] = []
    timed: list[np.ndarray] = []
    interrupted = False
    with _Caller(net, x, t, steps, cold) as calls:
        infos = net.rows(calls.name)
        calls.timed()
        calls.whole()
        begin = time.perf_counter()
        try:
            while len(timed) < (repeats or MOST_CALLS):
                wholes.append(calls.whole())
                timed.append(np.diff(calls.timed()))
                share, count = (time.perf_counter() - begin) / seconds, len(timed)
                if tick is not None:
                    tick(count / repeats if repeats else min(1.0, max(share, count / MOST_CALLS)))
                if repeats is None and (_enough(count, share) or _stands(count, share, wholes, timed)):
                    break
        except KeyboardInterrupt:
            interrupted = True
            if not timed:
                raise
            wholes = wholes[:len(timed)]
    times = np.maximum(np.asarray(timed, np.float64) - clock, 0.0)
    total, within = typical(wholes)
    rows = _rows(infos, times)
    layers = _layers(net, infos, typical(times), times)
    layers.append(LayerCost("call", "python", forward_us=float(total - within)))
    graph = _graph(net, calls.name)
    for layer in layers:
        layer.fused = tuple(node.name for node in graph if node.ran_in == layer.name)
    conditions = {**_conditions(net, steps, len(timed)), **compiled, "start": _start(infos, net.dtype.name),
                  "caches": "cold" if cold else "warm", "clock_ns": clock, "confidence": confidence(wholes, timed),
                  "interrupted": interrupted}
    return Run(conditions, float(total), layers, _spread([whole for whole, _ in wholes]), rows,
               _memory(net, calls.name, layers), graph)


def _enough(count: int, share: float) -> bool:
    """Whether the time is over, of which that share has passed; a slow network gets more, for it is called a few times only."""
    return count >= FEWEST_CALLS and share > (1 if count >= LEAST_CALLS else 1 + OVERTIME)


def _stands(count: int, share: float, wholes: Sequence[Sequence[int]], timed: Sequence[Any]) -> bool:
    """Whether the figures are known well enough before the time is over."""
    return count >= LEAST_CALLS and count % LOOK_EVERY == 0 and share > LEAST_SHARE and confidence(wholes, timed) < CONFIDENCE


def typical(calls: Any) -> Any:
    """What a call takes when little disturbs it, column by column, in microseconds, given nanoseconds by call and column.

    The mean of the calls between the 2nd and the 12th of a hundred, by their sums: slower ones tell of the machine's
    neighbours, the very quickest of luck. Medians column by column would add up to too little, because what disturbs a
    call rarely disturbs the same row. What took more than twice its column's median was held up and counts as that.
    """
    times = np.asarray(calls, dtype=np.float64)
    times = np.minimum(times, 2 * np.median(times, axis=0))
    order = times.sum(axis=1).argsort(kind="stable")
    begin, end = (round(share * len(order)) for share in QUIET)
    return times[order[begin:max(end, begin + 1)]].mean(axis=0) / 1e3


def confidence(wholes: Sequence[Sequence[int]], timed: Sequence[Any]) -> float:
    """Half the width of the 95% confidence interval of a median, as a share of it: the widest of the notable ones.

    Source   order statistics: the median lies between the values of rank n / 2 -+ 0.98 sqrt(n)
    """
    columns = np.concatenate([np.asarray(wholes, np.float64)[:, :1], np.asarray(timed, np.float64)], axis=1)
    middle = np.median(columns, axis=0)
    notable = middle >= NOTABLE * middle[0]
    ordered = np.sort(columns[:, notable], axis=0)
    count = len(ordered)
    reach = 0.98 * np.sqrt(count)
    low, high = max(0, int(count / 2 - reach)), min(count - 1, int(np.ceil(count / 2 + reach)))
    return float(((ordered[high] - ordered[low]) / 2 / np.maximum(middle[notable], 1.0)).max())


def _spread(nanoseconds: Any) -> Spread:
    found = np.asarray(nanoseconds, np.float64) / 1e3
    return Spread(float(found.min()), *(float(value) for value in np.percentile(found, (50, 90, 99))))


def _rows(infos: Sequence[Any], times: np.ndarray) -> list[RowCost]:
    """Each row of the program."""
    return [RowCost(info.layer, info.op, info.part, info.kernel, float(us), _spread(times[:, i]), info.reads, info.writes,
                    info.beside)
            for i, (info, us) in enumerate(zip(infos, typical(times), strict=True))]


def _layers(net: Any, infos: Sequence[Any], times: Any, calls: np.ndarray) -> list[LayerCost]:
    """The rows' times summed up by layer, in the order in which they first ran. calls: nanoseconds by call and row."""
    facts = net.layer_facts()
    found: dict[str, LayerCost] = {}
    columns: dict[str, list[int]] = {}
    for i, (info, microseconds) in enumerate(zip(infos, times, strict=True)):
        # a layout row of a layer is shown on its own: it is what the layer would not cost elsewhere
        moved = info.phase == "layout" and "op" in facts.get(info.layer, {})
        name = f"{info.layer} (layout)" if moved else info.layer
        cost = found.get(name)
        if cost is None:
            known = {} if moved else facts.get(name, {})
            cost = found[name] = LayerCost(
                name, "layout" if moved else known.get("op", info.op), macs=int(known.get("macs", 0)),
                parameters=int(known.get("parameters", 0)),
                shape=None if known.get("shape") is None else tuple(known["shape"]))
            cost.bytes.update({kind: int(n) for kind, n in known.get("bytes", {}).items()})
        part = "forward" if info.part == "loss" else info.part
        for target in (f"{part}_us", "backward_us") if part.startswith("backward") else (f"{part}_us",):
            setattr(cost, target, getattr(cost, target) + float(microseconds))
        cost.moved[part] += info.reads + info.writes
        if cost.macs and multiplies(info.kernel, part) and part not in (cost.passes or ()):
            cost.passes = (*(cost.passes or ()), part)
        columns.setdefault(name, []).append(i)
    for name, cost in found.items():
        cost.passes = cost.passes or ()
        cost.spread = _spread(calls[:, columns[name]].sum(axis=1))
    return list(found.values())


def _memory(net: Any, program: str, layers: Sequence[LayerCost]) -> MemoryPlan:
    """The plan of the program, and in `layers` what each of them holds at its peak."""
    plan = plan_of(net, program)
    live = plan.live(len(net.rows(program)))
    if live:
        peak = live.index(max(live))
        by_name, fused = {layer.name: layer for layer in layers}, _ran_in(net, program)
        for block in plan.blocks:
            layer = by_name.get(fused.get(block.layer, block.layer), by_name.get("layout"))     # inputs come by "layout"
            if block.first <= peak <= block.last and layer is not None:
                layer.peak_bytes += block.bytes
    return plan


def _ran_in(net: Any, program: str) -> dict[str, str]:
    """{layer: the layer whose kernel does its work}, also where that runs in a third one's."""
    fused: dict[str, str] = net.fused(program)

    def last(name: str) -> str:
        while name in fused:
            name = fused[name]
        return name
    return {name: last(name) for name in fused}


def _graph(net: Any, program: str) -> list[GraphNode]:
    """The network's layers and what each reads."""
    fused = _ran_in(net, program)
    makers = {tensor: node.name for node in net.graph.nodes for tensor in node.outputs}
    return [GraphNode(node.name, node.op, tuple(makers.get(tensor, tensor) for tensor in node.inputs),
                      tuple(net.shapes[node.outputs[0]]), fused.get(node.name)) for node in net.graph.nodes]


def _conditions(net: Any, steps: bool, measured: int) -> dict[str, Any]:
    """What was measured, and on what."""
    facts = conditions_of_machine()
    facts.update(batch=net.batch, dtype=net.dtype.name, train=bool(steps), repeats=measured)
    if steps:
        facts.update(loss=_name(net.loss), optimizer=_name(net.optimizer), bn=net.bn,
                     trained=sorted(net.trained))
    return facts


def _start(infos: Sequence[Any], dtype: str) -> str:
    """"cold" where this process had to compile a kernel that ran, "warm" where all came from the cache."""
    from microcnn.entries import code
    return "cold" if any(code(info.kernel, dtype).compiled for info in infos) else "warm"


def _name(thing: Any) -> Any:
    """A loss or an optimizer by name, in JSON's types."""
    if isinstance(thing, dict):
        return {key: _name(value) for key, value in thing.items()}
    return getattr(thing, "kind", thing)
