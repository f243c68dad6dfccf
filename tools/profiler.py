"""What each layer of a network costs on this device: time forward, backward and for the update, and memory by kind.

The times come from the executor that reads a clock after every row of the program, so they are of what really runs.
They are interleaved with whole calls through the plain executor. What Python does around the program in those stands as a
line of its own ("call"), and so does what neither the rows nor it account for.
"""
from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import microcnn as mc
from microcnn.errors import CompileError, DataError, FileError
from microcnn.files import atomic_write

from .machine import conditions_of_machine
from .samples import default_loss, example
from .terminal import bytes_text, count_text, short, table_text, time_text

SCHEMA = "microcnn.profile/1"
KINDS = ("activations", "gradients", "state", "scratch")
# Which column a row's time is shown in. Layout rows and packed weights count where they happen, forward or backward.
COLUMN = {"forward": "forward_us", "loss": "forward_us", "backward": "backward_us"}


@dataclass
class LayerCost:
    """One layer, loss, layout change or update that ran. Times in microseconds per call, bytes as the plan has them."""

    name: str
    op: str
    forward_us: float = 0.0
    backward_us: float = 0.0
    update_us: float = 0.0
    macs: int = 0
    parameters: int = 0
    shape: tuple[int, ...] | None = None
    bytes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))

    @property
    def total_us(self) -> float:
        """Forward, backward and update together."""
        return self.forward_us + self.backward_us + self.update_us


@dataclass
class Run:
    """One measurement: its conditions, the whole call, and what each layer took of it.

    total_us is what a whole train_step or predict takes, called from Python, when the machine is as quiet as in the quietest
    third of the calls; unaccounted_us is what the layers' times leave of it.
    """

    conditions: dict[str, Any]
    total_us: float
    layers: list[LayerCost]

    @property
    def unaccounted_us(self) -> float:
        """The whole call less the sum of the layers."""
        return self.total_us - sum(layer.total_us for layer in self.layers)

    def as_dict(self) -> dict[str, Any]:
        """The run as the JSON file has it."""
        layers = [{**asdict(layer), **{key: round(getattr(layer, key), 3) for key in
                                       ("forward_us", "backward_us", "update_us")},
                   "shape": list(layer.shape) if layer.shape is not None else None} for layer in self.layers]
        return {"schema": SCHEMA, "conditions": self.conditions, "total_us": round(self.total_us, 3),
                "unaccounted_us": round(self.unaccounted_us, 3), "layers": layers}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Run:
        """A run from what as_dict made; KeyError or TypeError where something is missing."""
        layers = []
        for entry in data["layers"]:
            shape = entry.get("shape")
            layers.append(LayerCost(entry["name"], entry["op"], entry["forward_us"], entry["backward_us"],
                                    entry["update_us"], entry["macs"], entry["parameters"],
                                    None if shape is None else tuple(shape), dict(entry["bytes"])))
        return cls(dict(data["conditions"]), float(data["total_us"]), layers)

    def table(self) -> str:
        """The run as text: one line per layer, in the order in which they ran, with its share of the whole call."""
        training = bool(self.conditions.get("train"))
        columns = ["layer", "op", ">forward"]
        columns += [">backward", ">update"] if training else []
        columns += [">share", ">MACs", ">parameters", ">activations"]
        columns += [">gradients", ">state"] if training else []
        rows: list[list[str]] = []

        def line(name: str, op: str, times: Sequence[float], whole: float, rest: Sequence[str]) -> list[str]:
            share = f"{100 * whole / self.total_us:.1f}%" if self.total_us else ""
            return [short(name), op, *(time_text(took) if took else "-" for took in times), share, *rest]

        for layer in self.layers:
            times = [layer.forward_us, layer.backward_us, layer.update_us][:3 if training else 1]
            kinds = ["activations", "gradients", "state"][:3 if training else 1]
            rows.append(line(layer.name, layer.op, times, layer.total_us,
                             [count_text(layer.macs) if layer.macs else "-",
                              count_text(layer.parameters) if layer.parameters else "-",
                              *(bytes_text(layer.bytes[kind]) if layer.bytes.get(kind) else "-" for kind in kinds)]))
        empty = [""] * (len(columns) - 4 - (2 if training else 0))
        pad = ["", ""] if training else []
        rows.append(["not accounted for", "", time_text(self.unaccounted_us), *pad,
                     f"{100 * self.unaccounted_us / self.total_us:.1f}%" if self.total_us else "", *empty])
        rows.append(["whole call", "", time_text(self.total_us), *pad, "100.0%", *empty])
        batch, dtype, threads, target = (self.conditions.get(key) for key in ("batch", "dtype", "threads", "instruction_set"))
        title = (f"{'train_step' if training else 'predict'}, batch {batch}, {dtype}, {threads} "
                 f"thread{'s' if threads != 1 else ''}, {target}: {time_text(self.total_us)} a call")
        return table_text(columns, rows, title)


@dataclass
class Profile:
    """One or more runs. `layers`, `total_us`, `unaccounted_us` and `conditions` are those of the first."""

    runs: list[Run]

    @property
    def layers(self) -> list[LayerCost]:
        """What ran, in order."""
        return self.runs[0].layers

    @property
    def total_us(self) -> float:
        """The median of whole calls, in microseconds."""
        return self.runs[0].total_us

    @property
    def unaccounted_us(self) -> float:
        """The whole call less the sum of the layers."""
        return self.runs[0].unaccounted_us

    @property
    def conditions(self) -> dict[str, Any]:
        """What was measured, on what."""
        return self.runs[0].conditions

    def as_dict(self) -> dict[str, Any]:
        """What `save` writes: one run's object, or an object with a list `runs` of them."""
        if len(self.runs) == 1:
            return self.runs[0].as_dict()
        return {"schema": SCHEMA, "runs": [run.as_dict() for run in self.runs]}

    def save(self, path: Any) -> None:
        """Write the profile as JSON, atomically. Raises FileError."""
        atomic_write(path, [(json.dumps(self.as_dict(), indent=1) + "\n").encode()])

    @classmethod
    def load(cls, path: Any) -> Profile:
        """Read what `save` wrote. Raises FileError."""
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise FileError(f"{path}: cannot be read ({error.strerror or error})") from error
        except ValueError as error:
            raise FileError(f"{path}: not a profile: no valid JSON ({error})") from error
        schema = data.get("schema") if isinstance(data, dict) else None
        if schema != SCHEMA:
            raise FileError(f"{path}: not a profile that this version reads: its schema is {schema!r}, expected "
                            f"{SCHEMA!r}")
        try:
            return cls([Run.from_dict(run) for run in data.get("runs", [data])])
        except (KeyError, TypeError, ValueError) as error:
            raise FileError(f"{path}: a profile with something missing or wrong: {error}") from error

    def table(self) -> str:
        """All runs as text."""
        return "\n\n".join(run.table() for run in self.runs)

    def __str__(self) -> str:
        return self.table()


def profile(model: Any, x: Any = None, t: Any = None, *, batch: int = 1, train: Any = None, loss: Any = "auto",
            optimizer: Any = None, bn: str = "frozen", dtype: str = "float32", threads: int | None = None,
            input_shapes: dict[str, tuple[int, ...]] | None = None, seconds: float = 1.0,
            repeats: int | None = None, tick: Any = None) -> Profile:
    """Measure what each layer of a model costs.

    model        a Net; or a Graph or the path of a model, which is compiled with batch, train, loss, optimizer, bn,
                 dtype and input_shapes as in Graph.compile (train=None measures predict, anything else train_step)
    x, t         inputs and targets; random ones where they are not given
    threads      as in mc.set_num_threads; None leaves what is set
    seconds      how long to measure, after warming up
    repeats      how many pairs of calls instead
    tick         called with the share that is done, 0..1

    A Net that trains is measured in train_step with a learning rate of 0, and is afterwards as it was before.
    Raises CompileError, DataError and, for a path, FileError and ModelError.
    """
    from microcnn.net import Net
    if repeats is not None and repeats < 1:
        raise CompileError(f"repeats is {repeats}; expected at least 1")
    if not seconds > 0:
        raise CompileError(f"seconds is {seconds}; expected more than 0")
    if threads is not None:
        mc.set_num_threads(threads)
    if isinstance(model, Net):
        net = model
        loss = net.loss
    else:
        graph = model
        if not hasattr(graph, "nodes"):
            from .loading import load_model
            graph = load_model(model, list((input_shapes or {}).items()))
        if train is not None and loss == "auto":
            loss = default_loss(graph.shapes(input_shapes), graph.outputs)
        if train is not None and optimizer is None:
            optimizer = mc.SGD(lr=0.01, momentum=0.9)
        net = graph.compile(batch=batch, train=train, loss=loss if train is not None else None,
                            optimizer=optimizer if train is not None else None, bn=bn, dtype=dtype,
                            input_shapes=input_shapes)
    steps = bool(net.trained) and net.loss is not None and net.optimizer is not None
    if x is None:
        shapes = {i.name: net.shapes[i.name] for i in net.graph.inputs}
        x, made = example(net.graph, net.batch, net.loss if steps else None, net.dtype.name, shapes)
        t = made if t is None else t
    elif steps and t is None:
        raise DataError("a network that trains is profiled in train_step: give the targets t with x, or neither")
    return Profile([_measure(net, x, t, steps, seconds, repeats, tick)])


def _measure(net: Any, x: Any, t: Any, steps: bool, seconds: float, repeats: int | None, tick: Any) -> Run:
    """Whole and timed calls in turn, and what is typical of both."""
    if steps:
        kept = net._arena.copy(), net._steps[0]   # weights, optimizer state, learning rate
        net.lr = 0.0   # with which nothing grows, however often one batch is learned
    program = net._programs["train" if steps else "predict"][0]
    execute, inside = program._run, 0

    def watched(address: int, samples: int) -> None:
        nonlocal inside
        began = time.perf_counter_ns()
        execute(address, samples)
        inside = time.perf_counter_ns() - began

    def whole() -> tuple[int, int]:
        """Nanoseconds of a call, and of the program in it."""
        began = time.perf_counter_ns()
        _ = net.train_step(x, t) if steps else net.predict(x)
        return time.perf_counter_ns() - began, inside

    def timed() -> Any:
        return net.timed_step(x, t) if steps else net.timed_predict(x)

    try:
        program._run = watched
        infos = [info for info, _ in timed()]
        whole()
        began = time.perf_counter()
        for call in (whole, whole, timed, timed):
            call()
        round_seconds = max(time.perf_counter() - began, 1e-7)
        count = repeats if repeats is not None else int(min(1000, max(5, seconds / round_seconds)))
        deadline = None if repeats is not None else time.perf_counter() + 3 * seconds
        wholes: list[tuple[int, int]] = []
        rows: list[list[int]] = []
        for i in range(count):
            # the first of each finds the caches as the other kind left them, the second as it would among its own
            whole()
            wholes.append(whole())
            timed()
            rows.append([nanoseconds for _, nanoseconds in timed()])
            if tick is not None:
                tick((i + 1) / count)
            if deadline is not None and i >= 4 and time.perf_counter() > deadline:
                break
    finally:
        program._run = execute
        if steps:
            net._arena[:], net._steps[0] = kept
            net._prepared = None
    total, within = typical(wholes)
    layers = _layers(net, infos, typical(rows))
    layers.append(LayerCost("call", "python", forward_us=float(total - within)))
    return Run(_conditions(net, steps, len(rows)), float(total), layers)


def typical(calls: Sequence[Sequence[int]]) -> Any:
    """What a call takes when little disturbs it, column by column, in microseconds, given nanoseconds by call and column.

    The mean of the calls between the 5th and the 35th of a hundred, by their sums: the slowest ones tell of the machine's
    neighbours, the very quickest of luck. Medians column by column would add up to too little, because what disturbs a call
    rarely disturbs the same row.
    """
    times = np.asarray(calls, dtype=np.float64)
    order = times.sum(axis=1).argsort(kind="stable")
    begin, end = int(0.05 * len(order)), max(1, round(0.35 * len(order)))
    return times[order[begin:max(end, begin + 1)]].mean(axis=0) / 1e3


def _layers(net: Any, infos: Sequence[Any], times: Any) -> list[LayerCost]:
    """The rows' times summed up by layer, in the order in which they first ran."""
    facts = net.layer_facts()
    found: dict[str, LayerCost] = {}
    column = "forward_us"
    for info, microseconds in zip(infos, times, strict=True):
        # a layout row of a layer is shown on its own: it is what the layer would not cost elsewhere
        moved = info.phase == "layout" and info.layer in facts
        name = f"{info.layer} (layout)" if moved else info.layer
        cost = found.get(name)
        if cost is None:
            known = {} if moved else facts.get(name, {})
            cost = found[name] = LayerCost(
                name, "layout" if moved else known.get("op", info.op), macs=int(known.get("macs", 0)),
                parameters=int(known.get("parameters", 0)),
                shape=None if known.get("shape") is None else tuple(known["shape"]))
            cost.bytes.update({kind: int(n) for kind, n in known.get("bytes", {}).items()})
        if info.phase != "update":   # what is neither forward nor backward counts where it happens
            column = COLUMN.get(info.phase, column)
        target = "update_us" if info.phase == "update" else column
        setattr(cost, target, getattr(cost, target) + float(microseconds))
    return list(found.values())


def _conditions(net: Any, steps: bool, measured: int) -> dict[str, Any]:
    """What was measured, and on what."""
    facts = conditions_of_machine()
    facts.update(model=net.graph.name, batch=net.batch, dtype=net.dtype.name, train=bool(steps), repeats=measured)
    if steps:
        facts.update(loss=_name(net.loss), optimizer=_name(net.optimizer), bn=net.bn,
                     trained=sorted(net.trained))
    return facts


def _name(thing: Any) -> Any:
    """A loss or an optimizer by name, in JSON's types."""
    if isinstance(thing, dict):
        return {key: _name(value) for key, value in thing.items()}
    return getattr(thing, "kind", thing)
