"""Which ONNX operators can be imported, by operator and by the opset that last changed them, and what was refused.

A converter is a function of one Op. It is registered for the exact versions of the operator that it was written for
("since" in ONNX's terms: Conv 11 is what opsets 11 to 21 mean by Conv), so that an opset with a newer meaning is
refused rather than misread. It reads attributes and inputs through the Op, and emits nodes of the graph; what it cannot
express it refuses with a reason, and the walk goes on, so that one report names every node.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np
import onnx
from onnx import NodeProto

from microcnn.graph import Node
from microcnn.integers import INTEGERS

from .onnx_integers import TAKE_INTEGERS, WRAPPED
from .onnx_tensor import attribute_value, from_float
from .onnx_values import BATCH, Constant, Dim, Tensor, Value, show

Converter = Callable[["Op"], None]
CONVERTERS: dict[tuple[str, int], Converter] = {}
FLOAT_DTYPES = ("float16", "bfloat16", "float32", "float64")


def converter(operator: str, *since: int) -> Callable[[Converter], Converter]:
    """Register a converter for these versions of an ONNX operator. Registering one twice raises ValueError."""
    def register(function: Converter) -> Converter:
        for version in since:
            if (operator, version) in CONVERTERS:
                raise ValueError(f"{operator}-{version} already has a converter")
            CONVERTERS[operator, version] = function
        return function
    return register


def operators() -> dict[str, list[int]]:
    """Every operator that has a converter, with its versions."""
    found: dict[str, list[int]] = {}
    for operator, version in sorted(CONVERTERS):
        found.setdefault(operator, []).append(version)
    return found


def find_converter(node: NodeProto, opset: int) -> Converter | str:
    """The converter for a node, or why there is none."""
    if node.domain not in ("", "ai.onnx"):
        return f'operators of the domain "{node.domain}" are not supported'
    try:
        since = onnx.defs.get_schema(node.op_type, max_inclusive_version=opset, domain="").since_version
    except onnx.defs.SchemaError:
        return f"ONNX opset {opset} has no such operator"
    found = CONVERTERS.get((node.op_type, since))
    if found is not None:
        return found
    versions = operators().get(node.op_type)
    if versions is None:
        return "no layer does this yet"
    return f"its form of opset {since} is not supported, only those of {', '.join(map(str, versions))}"


@dataclass(frozen=True)
class Refusal:
    """A node (or an input, with op "input") that cannot be run, and why."""

    name: str
    op: str
    opset: int
    reason: str

    def __str__(self) -> str:
        return f'{self.op} "{self.name}" (opset {self.opset}): {self.reason}'


class Refused(Exception):
    """Raised by a converter: the node cannot be expressed; the text says why."""


class Undetermined(Exception):
    """Raised where a converter needs to know a tensor that a refused node would have made."""


@dataclass
class Draft:
    """The graph while it is being built.

    values    what is known of each tensor of the model
    nodes     the graph's nodes so far
    stored    arrays that may become weights, by name
    kinds     how each of them is written back: see microcnn.graph.Source
    whole     the model has no batch of its own: all of it is one sample, and every tensor has one axis more than there
    batch     what the file fixes the batch to, None if it leaves it open
    read      names that a node or an output of the model reads
    names     of the nodes so far
    refused   what cannot be run, and why
    """

    opset: int
    whole: bool = False
    batch: int | None = None
    read: frozenset[str] = frozenset()
    values: dict[str, Value] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)
    stored: dict[str, np.ndarray] = field(default_factory=dict)
    kinds: dict[str, tuple[str, ...]] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)
    refused: list[Refusal] = field(default_factory=list)

    def free_name(self, wanted: str) -> str:
        """A node name that no other node has."""
        name, number = wanted, 1
        while name in self.names:
            number += 1
            name = f"{wanted}_{number}"
        self.names.add(name)
        return name


class Op:
    """One ONNX node, as its converter sees it."""

    def __init__(self, node: NodeProto, draft: Draft):
        self.draft, self.node = draft, node
        self.type, self.opset = node.op_type, draft.opset
        self.attributes = {entry.name: attribute_value(entry) for entry in node.attribute}
        self.inputs = [name or None for name in node.input]
        self.outputs = list(node.output)
        while self.inputs and self.inputs[-1] is None:
            self.inputs.pop()

    def refuse(self, reason: str) -> NoReturn:
        """Give the node up; the report names it with this reason."""
        raise Refused(reason)

    def attribute(self, name: str, default: Any = None) -> Any:
        """An attribute's value, as attribute_value gives it."""
        return self.attributes.get(name, default)

    def allow(self, name: str, only: Any, reason: str = "") -> None:
        """Refuse the node unless the attribute is absent or has the one value that is supported."""
        value = self.attributes.get(name, only)
        if value != only:
            self.refuse(f"{name} is {value}; {reason or f'only {only} is supported'}")

    def single_output(self) -> None:
        """Refuse the node if it has further results that are read."""
        extra = [name for name in self.outputs[1:] if name in self.draft.read]
        if extra:
            self.refuse(f'its further result "{extra[0]}" is not supported')

    def value(self, index: int) -> Value | None:
        """What is known of an input, None where it is left out."""
        name = self.inputs[index] if index < len(self.inputs) else None
        return None if name is None else self.draft.values[name]

    def tensor(self, index: int = 0, rank: int | tuple[int, ...] | None = None) -> Tensor:
        """An input that is computed at run time, of one of the ranks, the batch counted."""
        found = self.value(index)
        if found is None:
            self.refuse(f"input {index} is missing")
        if isinstance(found, Constant):
            self.refuse(f'input {index} ("{self.inputs[index]}") is a constant; expected a tensor')
        if found.dims is None:
            raise Undetermined
        if found.dtype not in FLOAT_DTYPES and not (self.type in TAKE_INTEGERS and found.dtype in INTEGERS):
            self.refuse(f'it computes with the {found.dtype} tensor "{self.inputs[index]}"; only floating point is '
                        "supported")
        if found.dtype in INTEGERS and not self._takes(index, found.dtype):
            self.refuse(f'it reads the {found.dtype} tensor "{self.inputs[index]}", which ONNX\'s {self.type} of this opset '
                        "does not take")
        wanted = (rank,) if isinstance(rank, int) else rank
        if wanted is not None and len(found.dims) not in wanted:
            self.refuse(f'"{self.inputs[index]}" has {len(found.dims)} axes; only '
                        f"{' or '.join(map(str, wanted))} are supported")
        if not found.dims or found.dims[0] != BATCH:
            self.refuse(f'axis 0 of "{self.inputs[index]}" is not the batch')
        return found

    def _takes(self, index: int, dtype: str) -> bool:
        """Whether ONNX lets an input of this operator have this type."""
        formal = onnx.defs.get_schema(self.type, max_inclusive_version=self.opset, domain="").inputs
        return f"tensor({dtype})" in formal[min(index, len(formal) - 1)].types

    def dims(self, index: int = 0) -> tuple[Dim, ...]:
        """The dimensions of an input that is computed at run time, the batch first."""
        found = self.tensor(index).dims
        assert found is not None
        return found

    def axis(self, given: int, rank: int | None = None) -> int:
        """An axis as the graph counts it, the batch being axis 0. given: as the model counts it, from the end if negative.

        rank: of the model's tensor, if it is not the first input. Refuses the batch, and axes that are not there.
        """
        shift = int(self.draft.whole)
        rank = len(self.dims()) - shift if rank is None else rank
        if not -rank <= given < rank:
            self.refuse(f"axis {given} is none of a tensor with {rank} axes")
        axis = given % rank + shift
        if axis == 0:
            self.refuse(f"axis {given} is the batch")
        return axis

    def aligned(self, *tensors: Tensor) -> list[Tensor]:
        """Operands with equally many axes: ones are put behind the batch where the model is one sample."""
        rank = max(len(tensor.dims or ()) for tensor in tensors)
        found = []
        for number, tensor in enumerate(tensors):
            dims = tensor.dims or ()
            if len(dims) == rank:
                found.append(tensor)
                continue
            if not self.draft.whole:
                self.refuse(f"its operands have {' and '.join(str(len(t.dims or ())) for t in tensors)} axes: not all have "
                            "the batch at the same axis")
            wide = (dims[0], *(1,) * (rank - len(dims)), *dims[1:])
            found.append(self.emit("Reshape", tensor, wide, {"shape": self.sample(wide)},
                                   output=f"{self.outputs[0]}/operand{number}", suffix=f"operand{number}"))
        return found

    def sample(self, dims: tuple[Dim, ...]) -> tuple[int, ...]:
        """The shape of one sample, -1 for its only open size. Refuses more than one."""
        shape = tuple(n if isinstance(n, int) else -1 for n in dims[1:])
        if shape.count(-1) > 1:
            self.refuse(f"{show(dims)} leaves more than one size open; give input_shapes to load_onnx")
        return shape

    def known(self, index: int, what: str) -> Constant | None:
        """An input that has to be known at import, None where it is left out."""
        found = self.value(index)
        if isinstance(found, Tensor):
            if found.dims is None:
                raise Undetermined
            self.refuse(f'its {what} ("{self.inputs[index]}") is computed at run time; only constants are supported')
        return found

    def weight(self, index: int, what: str, shape: tuple[int | None, ...] | None = None) -> Constant | None:
        """A floating-point constant that a node keeps as a weight (or one of integers, for operators that take these).

        shape: None for sizes of any value.
        """
        found = self.known(index, what)
        if found is None:
            return None
        integers = found.array is not None and found.array.dtype.name in INTEGERS
        if found.array is None or not (found.is_float or (integers and self.type in TAKE_INTEGERS)):
            self.refuse(f'its {what} ("{self.inputs[index]}") is not a floating-point constant')
        if integers and found.array.size and max(-int(found.array.min()), int(found.array.max())) > 2**53:
            self.refuse(f'its {what} ("{self.inputs[index]}") holds integers beyond 2**53; no floating-point number holds '
                        "these exactly")
        fits = shape is None or (len(shape) == len(found.shape) and all(
            want in (None, have) for want, have in zip(shape, found.shape, strict=True)))
        if not fits:
            self.refuse(f'its {what} ("{self.inputs[index]}") has the shape {found.shape}; expected '
                        f"({', '.join('any' if n is None else str(n) for n in shape or ())})")
        return found

    def required(self, index: int, what: str, shape: tuple[int | None, ...] | None = None) -> Constant:
        """As weight, of a node that cannot do without."""
        found = self.weight(index, what, shape)
        if found is None:
            self.refuse(f"its {what} is missing")
        return found

    def integers(self, index: int, what: str) -> tuple[int, ...] | None:
        """An input of integers that do not depend on an open size."""
        found = self.known(index, what)
        if found is None:
            return None
        if found.array is None or found.is_float:
            self.refuse(f"its {what} depends on an open size")
        return tuple(int(n) for n in found.array.reshape(-1))

    def scalar(self, index: int, what: str, default: float) -> float:
        """The one number that an input holds, the default where it is left out."""
        found = self.weight(index, what)
        if found is None:
            return default
        array = from_float(found.array)                                       # type: ignore[arg-type]
        if array.size != 1:
            self.refuse(f"its {what} has {array.size} numbers; expected one")
        return float(array.reshape(-1)[0])

    @property
    def name(self) -> str:
        """The node's name, or one made from its first output."""
        return self.node.name or next((name for name in self.outputs if name), self.type)

    def emit(self, layer: str, x: Tensor | list[Tensor], dims: tuple[Dim, ...], attrs: dict[str, Any] | None = None,
             weights: dict[str, Constant | None] | None = None, output: str | None = None,
             suffix: str = "", dtype: str | None = None) -> Tensor:
        """Add a node to the graph. Without `output` it makes the operator's own first result.

        dtype: of the result, if that is not the first input's. What computes with integers gets a Cast behind it, which wraps
        its result around.
        """
        inputs = x if isinstance(x, list) else [x]
        made, kind = output or self.outputs[0], inputs[0].dtype
        if dtype is None and made == self.outputs[0] and self.type in WRAPPED and kind in INTEGERS:
            raw = self.emit(layer, inputs, dims, attrs, weights, f"{made}/unwrapped", suffix)
            return self.emit("Cast", raw, dims, {}, None, made, "wrap", kind)
        if dtype is not None:
            attrs = {**(attrs or {}), "dtype": dtype}
        result = Tensor(made, dims, dtype or kind)
        kept = {role: found.ref for role, found in (weights or {}).items() if found is not None}
        name = self.draft.free_name(f"{self.name}_{suffix}" if suffix else self.name)
        self.draft.nodes.append(Node(layer, name, tuple(tensor.name for tensor in inputs), (result.name,), attrs or {}, kept))
        self.draft.values[result.name] = result
        return result
