"""What a schedule is made of: tensors and their gradients, weights, rows; and the store of weights that programs share."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .augment import Augment
from .errors import CompileError
from .graph import Graph, WeightRef
from .layout import Layout
from .memory import Buffer

Field = Any   # Buffer | int | float | None


@dataclass(eq=False)
class Value:
    """A tensor in memory: its layout for one sample, and its buffer. shared: others read it too, or it is an output."""

    name: str
    layout: Layout
    buffer: Buffer
    shared: bool = False

    @property
    def numbers(self) -> int:
        """How many numbers a sample holds."""
        return self.layout.size


@dataclass(eq=False)
class Gradient:
    """A buffer that holds a gradient. users: how many tensors' gradients it is, or still reads it."""

    buffer: Buffer
    users: int = 1


@dataclass(eq=False)
class Winners:
    """The gradient of what a max pooling reads, not yet put where it belongs: dy at the winner of each window.

    fields: of the pooling's rows. clamped: the maxima, where they were clamped to low..high. spread: adds the rows that make
    it a gradient like any other.
    """

    dy: Gradient
    indices: Buffer
    clamped: Buffer | None
    fields: dict[str, int]
    low: float
    high: float
    spread: Callable[[], None]


@dataclass(frozen=True)
class Part:
    """What of a weight can train, as it lies in memory: the first `columns` of each of `rows` that are `length` long.

    Its gradient and the optimizer's state hold these numbers alone, row by row. Of a weight that trains as a whole it is one
    row with all its numbers.
    """

    rows: int
    columns: int
    length: int

    @property
    def numbers(self) -> int:
        return self.rows * self.columns

    @property
    def gradient_numbers(self) -> int:
        """Numbers of its gradient: of a weight of one row the whole row is made, which takes less than to pick from it."""
        return self.numbers if self.rows > 1 else self.length


@dataclass(eq=False)
class Parameter:
    """A weight in the arena. chain leads from the stored array to how it lies in memory; part: what of it can train."""

    name: str
    chain: WeightRef
    shape: tuple[int, ...]
    buffer: Buffer
    layer: str
    part: Part


@dataclass(eq=False)
class Row:
    """One kernel call. fields: buffers, integers, floats by the entry's names; beside: other layers that it does, too."""

    kernel: str
    fields: dict[str, Field]
    layer: str
    op: str
    phase: str
    beside: tuple[str, ...] = ()


@dataclass
class Rewritten:
    """The rows of a program, some of them new. made: the buffers that only these use."""

    rows: list[Row]
    made: list[Buffer] = field(default_factory=list)


@dataclass(frozen=True)
class Policy:
    """How memory is saved. Backward may make tensors again instead of keeping them (recompute.py).

    tier     0 the inputs, 1 what takes one pass over memory, 2 anything
    limit    the bytes of buffers alive at one time that are few enough, None: as few as can be reached
    inputs   whether the caller's arrays are still at hand
    lean     whether room for two threads is enough, and whether weights in another form are made anew each time
    quick    whether to make again what takes no longer that way, whatever memory there is
    """

    tier: int = 0
    limit: int | None = None
    inputs: bool = True
    lean: bool = False
    quick: bool = False


@dataclass
class Training:
    """What trains and how: the rates by weight name, the loss per output, the optimizer, what happens to the images."""

    factors: dict[str, float] = field(default_factory=dict)
    losses: dict[str, Any] = field(default_factory=dict)
    optimizer: Any = None
    augment: Augment | None = None
    recompute: Policy = Policy()


class Store:
    """The parameters that all programs of a network share. channels: how many output channels of a weight train, if not all."""

    def __init__(self, graph: Graph, itemsize: int, channels: dict[str, int]):
        self.graph, self.itemsize, self.channels = graph, itemsize, channels
        self.parameters: dict[str, Parameter] = {}
        self.states: dict[str, list[Buffer]] = {}
        self.constants: dict[str, tuple[Buffer, np.ndarray]] = {}

    def parameter(self, ref: WeightRef, layer: str) -> Parameter:
        """The parameter of a weight in the form that chain gives it; one form for all its users.

        Raises CompileError where two layers want the same weight in different forms.
        """
        found = self.parameters.get(ref.name)
        if found is None:
            array = self.graph.weights[ref.name]
            buffer = Buffer(ref.name, array.size * self.itemsize, "parameter", layer)
            length = array.shape[0] if ref.name in self.channels else array.size
            part = Part(array.size // max(length, 1), self.channels.get(ref.name, length), length)
            found = self.parameters[ref.name] = Parameter(ref.name, ref, array.shape, buffer, layer, part)
        elif found.chain != ref:
            raise CompileError(f'weight "{ref.name}" is shared by "{found.layer}" and "{layer}", which use it in different '
                               "forms; give each layer a weight of its own")
        return found

    def constant(self, name: str, array: np.ndarray) -> Buffer:
        """Numbers that rows read and nothing writes."""
        if name not in self.constants:
            self.constants[name] = Buffer(name, array.nbytes, "scratch", name), array
        return self.constants[name][0]

    def state(self, parameter: Parameter, count: int) -> list[Buffer]:
        """The optimizer's buffers for a parameter: as large as what of it trains, zero before the first step."""
        if parameter.name not in self.states:
            self.states[parameter.name] = [
                Buffer(f"{parameter.name}.state{i}", parameter.part.numbers * self.itemsize, "state", parameter.layer)
                for i in range(count)]
        return self.states[parameter.name]
