"""What the importer knows of each tensor while it walks through a model: its dimensions, or its value.

A dimension is an int, or, where the model leaves it open, a tuple of what it would be under three probes: three
different batches and sizes. What shape arithmetic makes of a dimension is computed for each probe, so a result that
does not depend on an open size is recognised by being equal under all of them, and the batch by being BATCH again.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from microcnn.graph import WeightRef

PROBES = 3
Dim = int | tuple[int, ...]
BATCH: Dim = (7, 11, 13)


def open_dim(number: int) -> Dim:
    """The probes of the number-th open size of a model: large, and far from each other and from all others."""
    return (4099 + 128 * number, 8209 + 384 * number, 16411 + 640 * number)


def each(function: Callable[..., int], *dims: Dim) -> Dim:
    """A function of dimensions, under every probe; an int where all of them agree."""
    results = tuple(function(*(dim if isinstance(dim, int) else dim[probe] for dim in dims)) for probe in range(PROBES))
    return results[0] if len(set(results)) == 1 else results


def product(dims: tuple[Dim, ...]) -> Dim:
    """How many numbers a tensor of these dimensions holds."""
    total: Dim = 1
    for dim in dims:
        total = each(lambda a, b: a * b, total, dim)
    return total


def show(dims: tuple[Dim, ...]) -> str:
    """Dimensions in messages."""
    return "(" + ", ".join("N" if dim == BATCH else str(dim) if isinstance(dim, int) else "?" for dim in dims) + ")"


@dataclass(frozen=True)
class Tensor:
    """A tensor of the graph: computed at run time. dims is None after a node that was refused."""

    name: str
    dims: tuple[Dim, ...] | None
    dtype: str = "float32"


@dataclass(frozen=True)
class Constant:
    """A value that is known at import: one array, or one for each probe. ref says which weight of the model it is."""

    probes: tuple[np.ndarray, ...]
    ref: WeightRef

    @property
    def array(self) -> np.ndarray | None:
        """The value, None if it depends on an open size."""
        return self.probes[0] if len(self.probes) == 1 else None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.probes[0].shape

    @property
    def is_float(self) -> bool:
        return self.probes[0].dtype.kind == "f" or self.probes[0].dtype.name == "bfloat16"

    def elements(self) -> list[Dim]:
        """A value of integers (a shape, axes, pads), flat, as dimensions."""
        flat = [np.asarray(probe).reshape(-1).tolist() for probe in self.probes]
        return [_dim(tuple(int(value) for value in values)) for values in zip(*flat, strict=True)]


def constant(probes: list[np.ndarray], ref: WeightRef) -> Constant:
    """A Constant with one array if all are equal."""
    first = probes[0]
    if all(probe.dtype == first.dtype and probe.shape == first.shape and probe.tobytes() == first.tobytes()
           for probe in probes):
        return Constant((first,), ref)
    return Constant(tuple(probes), ref)


def _dim(values: tuple[int, ...]) -> Dim:
    return values[0] if len(set(values)) == 1 else values


Value = Tensor | Constant
