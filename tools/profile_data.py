"""What a profile holds, and its JSON file (the schema is described in README, "Profile")."""
from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from microcnn.files import atomic_write
from microcnn.memory import Block

SCHEMA = "microcnn.profile/1"
KINDS = ("activations", "gradients", "state", "scratch")
PARTS = ("forward", "backward_input", "backward_weight", "update")
# The parts that do a layer's multiply-adds once each, and the kernels in them that only prepare or finish that: by the part of
# their names before the point, and by that behind it.
MULTIPLIES = ("forward", "backward_input", "backward_weight")
BESIDE = ("layout", "movement", "widen", "activation", "elementwise", "batchnorm_fold", "quantize")
BESIDE_ALL = ("flip", "turn", "transpose", "weight", "backward_bias")

# Shares of a roof: with half of its multiply-add units busy a layer is bound by them whatever it moves; with less than a fifth
# of either roof by neither; and what moves more than memory can, within what is measured, has it from a cache.
BUSY, IDLE, FROM_MEMORY = 0.5, 0.2, 1.15


def multiplies(kernel: str, part: str) -> bool:
    """Whether a row may do its layer's multiply-adds: not one that moves numbers or changes them one by one."""
    family, _, function = kernel.partition(".")
    return part in MULTIPLIES and family not in BESIDE and function not in BESIDE_ALL


@dataclass
class Spread:
    """How a time varied over the calls, in microseconds."""

    min: float = 0.0
    p50: float = 0.0
    p90: float = 0.0
    p99: float = 0.0


@dataclass
class RowCost:
    """One row of the program: a kernel call. us: microseconds when the machine is quiet; reads and writes: bytes of buffers;
    beside: other layers that it does, too."""

    layer: str
    op: str
    part: str
    kernel: str
    us: float = 0.0
    spread: Spread = field(default_factory=Spread)
    reads: int = 0
    writes: int = 0
    beside: tuple[str, ...] = ()


@dataclass
class LayerCost:
    """One layer, loss, layout change or update that ran. Times in microseconds per call, bytes as the plan has them.

    backward_us   backward_input_us (dX) and backward_weight_us (dW, dB) together
    macs          multiply-adds forward for one sample; parameters: how many numbers; shape: of the output, one sample
    bytes         by kind: parameters, gradients, state, activations (what is saved included), scratch
    peak_bytes    what it holds when the arena's shared part is fullest
    moved         bytes of the buffers that its rows read and write, by part
    fused         layers that run in this one's kernel
    passes        the parts that do the multiply-adds, each once; None in a file of the first version: all that took time
    """

    name: str
    op: str
    forward_us: float = 0.0
    backward_us: float = 0.0
    update_us: float = 0.0
    macs: int = 0
    parameters: int = 0
    shape: tuple[int, ...] | None = None
    bytes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    backward_input_us: float = 0.0
    backward_weight_us: float = 0.0
    peak_bytes: int = 0
    moved: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PARTS, 0))
    fused: tuple[str, ...] = ()
    passes: tuple[str, ...] | None = None
    spread: Spread = field(default_factory=Spread)

    @property
    def total_us(self) -> float:
        """Forward, backward and update together."""
        return self.forward_us + self.backward_us + self.update_us

    def part_us(self, part: str) -> float:
        """Microseconds of "forward", "backward_input", "backward_weight" or "update"."""
        return float(getattr(self, f"{part}_us"))

    @property
    def multiplying(self) -> tuple[str, ...]:
        """The parts that do the multiply-adds."""
        return self.passes if self.passes is not None else tuple(part for part in MULTIPLIES if self.part_us(part) > 0)

    def flops(self, batch: int) -> int:
        """Operations of a call, two for a multiply-add, in all parts that do them."""
        return 2 * self.macs * batch * len(self.multiplying)

    def gflops(self, batch: int) -> float:
        """Operations a second, in thousands of millions, over the parts that do them."""
        took = sum(self.part_us(part) for part in self.multiplying)
        return self.flops(batch) / took / 1e3 if took > 0 else 0.0

    @property
    def bytes_moved(self) -> int:
        """Bytes of buffers that all its rows read and write."""
        return sum(self.moved.values())

    @property
    def gbs(self) -> float:
        """Bytes moved a second, in thousands of millions, over the parts that multiply, or all parts where none does."""
        parts = self.multiplying if self.macs and self.multiplying else PARTS
        took = sum(self.part_us(part) for part in parts)
        return sum(self.moved.get(part, 0) for part in parts) / took / 1e3 if took > 0 else 0.0

    def intensity(self, batch: int) -> float:
        """Operations for each byte moved."""
        moved = sum(self.moved.get(part, 0) for part in self.multiplying)
        return self.flops(batch) / moved if moved else 0.0


@dataclass
class MemoryPlan:
    """The plan of the program that was measured, in bytes. begin: where the part begins that its buffers share over time."""

    arena: int
    lower_bound: int
    parameters: int
    state: int
    begin: int
    blocks: list[Block] = field(default_factory=list)

    def live(self, rows: int) -> list[int]:
        """Bytes of the shared part that are live at each of so many rows."""
        sums = [0] * rows
        for block in self.blocks:
            for row in range(max(block.first, 0), min(block.last + 1, rows)):
                sums[row] += block.bytes
        return sums


@dataclass
class GraphNode:
    """A layer in the network's graph. inputs: the layers or inputs of the network that it reads; ran_in: where it is fused."""

    name: str
    op: str
    inputs: tuple[str, ...] = ()
    shape: tuple[int, ...] = ()
    ran_in: str | None = None


@dataclass
class Machine:
    """What this machine can do with so many threads: GFLOP/s of multiply-adds, GB/s from memory."""

    peak_gflops: float
    bandwidth_gbs: float
    threads: int = 1
    dtype: str = "float32"

    @property
    def ridge(self) -> float:
        """The operations for each byte from which on the multiply-add units are the limit."""
        return self.peak_gflops / self.bandwidth_gbs

    def roof(self, intensity: float) -> float:
        """The GFLOP/s that are possible with so many operations for each byte."""
        return min(self.peak_gflops, intensity * self.bandwidth_gbs)


@dataclass
class Run:
    """One measurement: its conditions, the whole call, and what each layer took of it.

    total_us is what a whole train_step or predict takes, called from Python, when the machine is as quiet as in the quietest
    tenth of the calls; unaccounted_us is what the layers' times leave of it.
    """

    conditions: dict[str, Any]
    total_us: float
    layers: list[LayerCost]
    spread: Spread = field(default_factory=Spread)
    rows: list[RowCost] = field(default_factory=list)
    memory: MemoryPlan | None = None
    graph: list[GraphNode] = field(default_factory=list)
    machine: Machine | None = None

    @property
    def unaccounted_us(self) -> float:
        """The whole call less the sum of the layers."""
        return self.total_us - sum(layer.total_us for layer in self.layers)

    @property
    def batch(self) -> int:
        """Samples in a call."""
        return int(self.conditions.get("batch", 1))

    def layer(self, name: str) -> LayerCost:
        """The layer of that name. Raises KeyError."""
        return {layer.name: layer for layer in self.layers}[name]

    def bound_by(self, layer: LayerCost) -> str:
        """"compute" or "bandwidth": the roof that holds the layer down, where the machine was measured.

        "" where none does: far below both overhead counts, and what is quicker than memory has its numbers in a cache.
        """
        if self.machine is None or layer.total_us <= 0 or not layer.bytes_moved:
            return ""
        compute, memory = layer.gflops(self.batch) / self.machine.peak_gflops, layer.gbs / self.machine.bandwidth_gbs
        if compute >= BUSY or (compute >= IDLE and layer.intensity(self.batch) >= self.machine.ridge):
            return "compute"
        return "bandwidth" if IDLE <= memory <= FROM_MEMORY else ""

    def of_roof(self, layer: LayerCost) -> float:
        """The share of the roof that holds the layer down which it reaches; 0 where none does."""
        kind = self.bound_by(layer)
        if self.machine is None or not kind:
            return 0.0
        return layer.gflops(self.batch) / self.machine.peak_gflops if kind == "compute" \
            else layer.gbs / self.machine.bandwidth_gbs

    def as_dict(self) -> dict[str, Any]:
        """The run as the JSON file has it."""
        layers = [{**asdict(layer), "shape": None if layer.shape is None else list(layer.shape), "fused": list(layer.fused),
                   "passes": None if layer.passes is None else list(layer.passes)}
                  for layer in self.layers]
        return _rounded({
            "schema": SCHEMA, "conditions": self.conditions, "total_us": self.total_us, "spread": asdict(self.spread),
            "unaccounted_us": self.unaccounted_us, "layers": layers,
            "rows": [{**asdict(row), "beside": list(row.beside)} for row in self.rows],
            "memory": None if self.memory is None else asdict(self.memory),
            "graph": [asdict(node) for node in self.graph],
            "machine": None if self.machine is None else asdict(self.machine)})

    def table(self) -> str:
        """The run as text: one line per layer, in the order in which they ran, with its share of the whole call."""
        from .profile_table import run_table
        return run_table(self)


def _rounded(value: Any) -> Any:
    """Times and speeds with three digits behind the point."""
    if isinstance(value, float):
        return round(value, 3)
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    return [_rounded(one) for one in value] if isinstance(value, (list, tuple)) else value


@dataclass
class Profile:
    """One or more runs. `layers`, `rows`, `total_us`, `unaccounted_us` and `conditions` are those of the first."""

    runs: list[Run]

    @property
    def layers(self) -> list[LayerCost]:
        """What ran, in order."""
        return self.runs[0].layers

    @property
    def rows(self) -> list[RowCost]:
        """Every kernel call, in order."""
        return self.runs[0].rows

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
        from .profile_file import read_runs
        return cls(read_runs(path))

    def frame(self) -> Any:
        """The layers of all runs as a pandas.DataFrame, a line each. Raises CompileError where pandas is not installed."""
        from .profile_forms import frame
        return frame(self)

    def table(self) -> str:
        """All runs as text."""
        return "\n\n".join(run.table() for run in self.runs)

    def __str__(self) -> str:
        return self.table()
