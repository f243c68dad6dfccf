"""What each kernel of a model reaches on this device: time, GFLOP/s, GB/s, and its share of the machine's peak.

The times come from the executor that the profiler uses, which reads a clock after every row of the program that really runs.
The peak is a loop of multiply-adds in registers, measured between the runs, so that what slows the machine slows both. A line
is a shape that the model contains, in one direction (forward, backward_input, backward_weight, ...), with every row of the
program that this takes. Bytes are those of the tensors and weights that are read and written; scratch does not count.
"""
from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

import microcnn as mc
from microcnn.errors import DataError
from microcnn.files import atomic_write
from microcnn.graph import Graph, Node
from microcnn.memory import Buffer, short
from microcnn.net import Net
from microcnn.planned import Planned
from microcnn.threads import usable_cpus

from ..commands import options
from ..compiling import compile_shown
from ..loading import check_writable
from ..machine import conditions_of_machine
from ..peak import Peak, copy_speed
from ..samples import default_loss, example
from ..terminal import Terminal, count_text, time_text
from .models import MODELS, folded, graph_of, macs_of
from .recipe import LR, MOMENTUM

SCHEMA = "microcnn.bench.kernels/1"
DIRECTIONS = ("forward", "backward_input", "backward_weight")
# What the closing summary is about: convolutions whose channels fill registers.
CHANNELS = 16
LEAST_RUNS = 7


@dataclass
class Line:
    """A shape in one direction: what one layer of that shape takes for a whole batch.

    us, macs, bytes   microseconds, multiply-adds, bytes read and written; share: of the machine's peak
    dense             whether the summary counts it
    """

    op: str
    shape: str
    direction: str
    kernels: list[str]
    layers: list[str]
    dense: bool
    us: float = 0.0
    macs: int = 0
    bytes: int = 0
    share: float = 0.0

    @property
    def gflops(self) -> float:
        return 2 * self.macs / self.us / 1e3 if self.us else 0.0

    @property
    def gbytes(self) -> float:
        return self.bytes / self.us / 1e3 if self.us else 0.0

    def as_dict(self) -> dict[str, Any]:
        """The line as the JSON file has it."""
        return {**asdict(self), "gflops": round(self.gflops, 3), "gbytes": round(self.gbytes, 3)}


@dataclass
class KernelRun:
    """One model, batch and job: its lines, and what the machine reached meanwhile (GFLOP/s, GB/s)."""

    model: str
    batch: int
    threads: int
    training: bool
    peak: float
    copy: float
    lines: list[Line] = field(default_factory=list)

    def summary(self) -> dict[str, tuple[float, float, int]]:
        """{direction: (median share, lowest share, how many)} of dense convolutions with 16 channels or more on both sides."""
        found = {}
        for direction in DIRECTIONS:
            shares = [line.share for line in self.lines if line.dense and line.direction == direction for _ in line.layers]
            if shares:
                found[direction] = float(np.median(shares)), min(shares), len(shares)
        return found

    def show(self, terminal: Terminal) -> None:
        """Print the table and the summary."""
        total = sum(line.us * len(line.layers) for line in self.lines) or 1.0
        columns = ["op", "shape", "direction", "kernels", ">layers", ">each", ">of all", ">MACs", ">GFLOP/s", ">GB/s",
                   ">of peak"]
        title = (f"{self.model}, batch {self.batch}, {self.threads} thread{'s' if self.threads > 1 else ''}, "
                 f"{'training step' if self.training else 'inference'}; peak {self.peak:.0f} GFLOP/s, "
                 f"copy {self.copy:.1f} GB/s")
        rows = [[line.op, line.shape or "-", line.direction, "+".join(line.kernels), len(line.layers), time_text(line.us),
                 f"{100 * line.us * len(line.layers) / total:.1f}%", count_text(line.macs) if line.macs else "-",
                 f"{line.gflops:.1f}" if line.macs else "-", f"{line.gbytes:.1f}" if line.bytes else "-",
                 f"{100 * line.share:.0f}%" if line.macs else "-"] for line in self.lines]
        terminal.table(columns, rows, title)
        for direction, (median, lowest, count) in self.summary().items():
            terminal.say(f"convolutions with {CHANNELS} channels or more on both sides, {direction}: "
                         f"median {100 * median:.0f}%, lowest {100 * lowest:.0f}% of the peak ({count} of them)")

    def as_dict(self) -> dict[str, Any]:
        """The run as the JSON file has it."""
        return {"model": self.model, "batch": self.batch, "threads": self.threads, "training": self.training, "peak": self.peak,
                "copy": self.copy, "lines": [line.as_dict() for line in self.lines],
                "summary": {name: dict(zip(("median", "lowest", "count"), facts, strict=True))
                            for name, facts in self.summary().items()}}


def lines_of(graph: Graph, how: dict[str, Any]) -> tuple[list[Line], list[int]]:
    """The lines of a compiled graph without times, and for each row of its program the line that it belongs to.

    how: as Net takes it. A line is one layer's; `merged` brings those of the same shape together.
    """
    from microcnn.entries import ENTRIES
    planned, program = Planned(graph, **how), "train" if how.get("optimizer") else "predict"
    nodes, shapes, macs = {node.name: node for node in graph.nodes}, graph.shapes(), macs_of(graph)
    lines: dict[tuple[str, str], Line] = {}
    numbers: dict[tuple[str, str], int] = {}
    moved: dict[tuple[str, str], dict[tuple[str, int], int]] = {}
    owner: list[int] = []
    direction = "forward"
    inside: dict[str, list[str]] = {}       # what runs in the same row as a layer
    for layer, host in planned.fused(program).items():
        inside.setdefault(host, []).append(layer)
    for row in planned._planned[program].rows:
        entry = ENTRIES[row.kernel]
        node = nodes.get(row.layer)
        direction = direction_of(row.phase, row.kernel, entry.modes, direction)
        key = row.layer, direction
        if key not in lines:
            numbers[key], moved[key] = len(lines), {}
            beside = [name for name in row.beside if macs.get(name)] if direction == "backward_input" else []
            ran = [*(inside.get(row.layer, ()) if direction == "forward" else ()), *beside, row.layer]
            shape = " + ".join(shape_text(nodes[name], shapes, graph) for name in ran if name == row.layer or macs.get(name)) \
                if node else ""
            # what makes a depthwise convolution's gradient as well is no measure of a dense one
            dense = node is not None and is_dense(node, graph) and not beside
            lines[key] = Line(row.op, shape, direction, [], [row.layer], dense)
            if direction in DIRECTIONS:
                lines[key].macs = sum(macs.get(name, 0) for name in ran) * planned.batch
        line = lines[key]
        if row.kernel not in line.kernels:
            line.kernels.append(row.kernel)
        for name, mode in entry.modes.items():
            buffer = row.fields[name]
            if isinstance(buffer, Buffer) and buffer.kind != "scratch" and mode != "?":
                # what several rows of a line read counts once; an update reads what it writes
                ways = "<>" if mode == "=" and line.direction == "update" else mode.replace("=", ">")
                moved[key].update({(way, id(buffer)): buffer.bytes for way in ways})
        owner.append(numbers[key])
    for key, line in lines.items():
        line.bytes = sum(moved[key].values())
    return list(lines.values()), owner


def direction_of(phase: str, kernel: str, fields: dict[str, str], before: str) -> str:
    """Which way a row goes. before: that of the row before it, to which what only rearranges a gradient belongs."""
    if phase != "backward":
        return phase
    if kernel == "widen.narrow":
        return before
    if kernel.startswith("activation."):
        return "activation"
    if "dweight" in fields:
        return "backward_weight"
    return "backward_bias" if "dbias" in fields and "dx" not in fields else "backward_input"


def is_dense(node: Node, graph: Graph) -> bool:
    """Whether a node is a convolution with at least 16 channels on both sides that is not depthwise."""
    if node.op != "Conv2d":
        return False
    ref = node.weights["weight"]
    K, CG = ref.apply(graph.weights[ref.name]).shape[:2]
    return min(K, CG * node.attrs["groups"]) >= CHANNELS and (CG > 1 or node.attrs["groups"] == 1)


def shape_text(node: Node, shapes: dict[str, tuple[int, ...]], graph: Graph) -> str:
    """What comes in and goes out, and a window's size, stride, dilation and groups where these say something."""
    def text(name: str) -> str:
        return "x".join(map(str, shapes[name]))
    parts = [f"{text(node.inputs[0])} -> {text(node.outputs[0])}"]
    attrs = node.attrs
    if "kernel" in attrs:
        parts.append("x".join(map(str, attrs["kernel"])))
        for name, letter in (("stride", "s"), ("dilation", "d")):
            if set(attrs.get(name, (1,))) != {1}:
                parts.append(letter + "x".join(map(str, dict.fromkeys(attrs[name]))))
        if attrs.get("groups", 1) > 1:
            parts.append(f"g{attrs['groups']}")
    return " ".join(parts)


def merged(lines: Sequence[Line], times: np.ndarray, peaks: np.ndarray) -> list[Line]:
    """Lines of the same shape, direction and kernels as one, with times.

    times: microseconds, a row for each run and a column for each line; peaks: GFLOP/s, for each run. A share is the median of
    what each run reached of the peak that was measured beside it.
    """
    together: dict[tuple[Any, ...], list[int]] = {}
    for number, line in enumerate(lines):
        key = (line.op, line.shape, line.direction, tuple(line.kernels)) if line.shape else (number,)
        together.setdefault(key, []).append(number)
    found = []
    for numbers in together.values():
        first = lines[numbers[0]]
        each = times[:, numbers].mean(axis=1)
        line = replace(first, layers=[lines[number].layers[0] for number in numbers], us=float(np.median(each)))
        line.share = float(np.median(2 * line.macs / np.maximum(each, 1e-3) / 1e3 / peaks))
        found.append(line)
    return found


def measure(net: Net, lines: Sequence[Line], owner: Sequence[int], peak: Peak, seconds: float,
            tick: Callable[[float], None]) -> tuple[list[Line], float]:
    """Run the program and the peak's loop in turn for so many seconds; the lines, and the median peak.

    A net that trains is run with a learning rate of 0, so that nothing grows.
    """
    training = net.optimizer is not None
    x, t = example(net.graph, net.batch, net.loss if training else None)
    if training:
        net.lr = 0.0

    def run() -> list[int]:
        return np.diff(net.timed_step(x, t) if training else net.timed_predict(x)).tolist()
    runs: list[list[int]] = []
    peaks: list[float] = []
    run()
    begin = time.perf_counter()
    while (elapsed := time.perf_counter() - begin) < seconds or len(runs) < LEAST_RUNS:
        tick(min(1.0, elapsed / seconds))
        before = peak.gflops()
        run()                   # finds the caches as the loop left them
        runs.append(run())
        peaks.append((before + peak.gflops()) / 2)
    taken = np.asarray(runs, np.float64) / 1e3
    assert taken.shape[1] == len(owner), "the program has other rows than its plan"
    times = np.zeros((len(taken), len(lines)))
    for row, number in enumerate(owner):
        times[:, number] += taken[:, row]
    return merged(lines, times, np.asarray(peaks)), float(np.median(peaks))


def build_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(prog="python -m microcnn.tools.bench kernels", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", metavar="MODEL", nargs="+", help=f"an .onnx or .mcnn file, or one of {', '.join(MODELS)}")
    parser.add_argument("--batch", metavar="N,...", type=options.several(options.whole()), default=[1, 32],
                        help="samples at a time (1,32)")
    parser.add_argument("--threads", metavar="N", type=options.whole(), default=1, help="how many threads compute (1)")
    parser.add_argument("--jobs", metavar="A,B", type=options.several(str), default=["infer", "train"],
                        help="infer (batch norm folded), train, or both (both)")
    parser.add_argument("--seconds", metavar="S", type=options.real(above=0), default=1.0, help="how long to measure each (1)")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the figures as JSON")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure each model at each batch, inference and training."""
    args, terminal = build_parser().parse_args(arguments), Terminal()
    if args.json:
        check_writable(args.json)
    for job in args.jobs:
        if job not in ("infer", "train"):
            raise DataError(f"there is no job {job!r} here; expected infer or train")
    if args.threads > usable_cpus():
        raise DataError(f"--threads is {args.threads}; there are {usable_cpus()} processors here, and shares of a peak mean "
                        "nothing where threads take turns")
    mc.set_num_threads(args.threads)
    graphs = [graph_of(name) for name in args.models]
    peak, copy = Peak(args.threads), copy_speed()
    runs = []
    for graph in graphs:
        for job in args.jobs:
            for batch in args.batch:
                runs.append(one(graph, job, batch, args.threads, peak, copy, args.seconds, terminal))
                runs[-1].show(terminal)
                terminal.say()
    if args.json:
        data = {"schema": SCHEMA, "conditions": conditions_of_machine(), "runs": [run.as_dict() for run in runs]}
        atomic_write(args.json, [(json.dumps(data, indent=1) + "\n").encode()])
        terminal.say(f"saved {args.json}")
    return 0


def one(graph: Graph, job: str, batch: int, threads: int, peak: Peak, copy: float, seconds: float,
        terminal: Terminal) -> KernelRun:
    """Compile a model for a job and measure it."""
    how: dict[str, Any] = {"batch": batch}
    if job == "train":
        how.update(train="all", loss=default_loss(graph.shapes(), graph.outputs), optimizer=mc.SGD(lr=LR, momentum=MOMENTUM),
                   bn="batch")
    else:
        graph = folded(graph)
    lines, owner = lines_of(graph, how)
    net, _ = compile_shown(graph, terminal, **how)
    with terminal.progress(100, short(graph.name)) as bar:
        found, reached = measure(net, lines, owner, peak, seconds, lambda share: bar.show(round(100 * share), "measuring"))
    return KernelRun(graph.name, batch, threads, job == "train", reached, copy, found)
