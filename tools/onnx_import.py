"""An ONNX model as a Graph: read, folded, converted and simplified, or refused with everything that stands in the way.

The model is walked once, in order. What is known at import (initializers, Constant nodes, everything computed from
those and from shapes) is folded; every other node goes to its converter. Nothing in a file is ever executed, and
nothing is allocated on the word of a file alone.
"""
from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto

from microcnn.errors import CompileError, ModelError, UnsupportedError
from microcnn.graph import Graph, Input, Node, Source, WeightRef
from microcnn.integers import INTEGERS

from . import (  # noqa: F401  (they register the converters)
    onnx_elementwise,
    onnx_layers,
    onnx_matmul,
    onnx_movement,
    onnx_normalization,
    onnx_quantize,
    onnx_reduction,
    onnx_resize,
    onnx_shapes,
    onnx_unary,
    onnx_windows,
)
from .onnx_fold import FOLDABLE, FoldError, constant_value, fold
from .onnx_read import check_node, live_nodes, names_read, opset_of, read_model
from .onnx_registry import FLOAT_DTYPES, Draft, Op, Refusal, Refused, Undetermined, find_converter
from .onnx_simplify import simplify
from .onnx_tensor import FLOATS, data_field, from_float, take_data, to_array
from .onnx_values import BATCH, PROBES, Constant, Dim, Tensor, constant, open_dim

NEWEST = onnx.defs.onnx_opset_version()
LARGEST_SAMPLE = 2**31 - 1
# Operators whose result has as many axes as their first input.
KEEP_RANK = frozenset({
    "Concat", "Conv", "ConvTranspose", "MaxPool", "AveragePool", "LpPool", "GlobalMaxPool", "GlobalLpPool", "Pad",
    "Slice", "Resize", "Upsample", "LRN", "InstanceNormalization", "LayerNormalization", "GroupNormalization", "Elu",
    "LeakyRelu", "PRelu", "Selu", "Celu", "HardSigmoid", "HardSwish", "Gelu", "Softplus", "Softsign", "Mish",
    "ThresholdedRelu", "LogSoftmax", "Abs", "Exp", "Log", "Neg", "Reciprocal", "Sqrt", "DequantizeLinear",
    "Swish", "Erf", "Sign", "Ceil", "Floor", "Round", "Sin", "Cos"})
META_KEY = "microcnn.meta"


def load_onnx(source: Any, input_shapes: dict[str, tuple[int, ...]] | None = None) -> Graph:
    """A Graph from an ONNX model.

    source: a path, bytes or an onnx.ModelProto. input_shapes: sizes of one sample, for models whose shapes can only be
    understood with their open sizes filled in; usually these are given to compile.

    Raises FileError for files that cannot be read or are not ONNX, ModelError for models that are not valid,
    UnsupportedError, listing every node, for what cannot be run (its attribute `refused` holds them one by one).
    """
    graph, refused, shown = examine_onnx(source, input_shapes)
    if graph is None:
        count = f"{len(refused)} node{'s' if len(refused) > 1 else ''} that this library"
        error = UnsupportedError(f"{shown} has {count} cannot run:" + "".join(f"\n  {entry}" for entry in refused))
        error.refused = tuple(refused)                         # type: ignore[attr-defined]
        raise error
    return graph


def examine_onnx(source: Any, input_shapes: dict[str, tuple[int, ...]] | None = None, whole: bool = False,
                 ) -> tuple[Graph | None, list[Refusal], str]:
    """As load_onnx, without an error for what is not supported: the graph or None, all refusals, the model's name.

    whole: the model has no batch, as a single operator may not: its tensors become one sample, of a batch in front of them.
    """
    model, shown = read_model(source)
    opset = opset_of(model)
    if opset > NEWEST:
        return None, [Refusal(model.graph.name, "model", opset, "the installed onnx package knows opsets up to "
                              f"{NEWEST}; upgrade onnx")], shown
    nodes = live_nodes(model, shown)
    if opset < 1 and any(node.domain in ("", "ai.onnx") for node in nodes):
        raise ModelError(f"{shown} uses ONNX's own operators, but does not say of which opset")
    walk = Walk(model, shown, max(opset, 1), input_shapes, whole)
    walk.run(nodes)
    walk.check_outputs()
    if walk.draft.refused:
        return None, walk.draft.refused, shown
    return walk.finish(), [], shown


@dataclass
class _Declared:
    """A real input of the model, one that no initializer gives a value."""

    entry: Input
    dims: tuple[Dim, ...]


class Walk:
    """One pass through a model, building a Draft."""

    def __init__(self, model: ModelProto, shown: str, opset: int, input_shapes: dict[str, tuple[int, ...]] | None,
                 whole: bool = False):
        self.model, self.shown, self.draft = model, shown, Draft(opset, whole)
        self.initializers = {tensor.name: tensor for tensor in model.graph.initializer}
        self.budget = sum(math.prod(tensor.dims) for tensor in model.graph.initializer)
        self.folded = 0
        self.annotations: dict[str, Any] | None = None
        self.inputs = self._declare(dict(input_shapes or {}))

    def _declare(self, given: dict[str, tuple[int, ...]]) -> list[_Declared]:
        """The inputs, with BATCH as axis 0 and a symbol for every open size."""
        declared: list[_Declared] = []
        count = 0
        for entry in self.model.graph.input:
            if entry.name in self.initializers:
                continue
            kind = entry.type.tensor_type
            if not entry.type.HasField("tensor_type") or not kind.HasField("shape") \
                    or not (self.draft.whole or len(kind.shape.dim)):
                self.draft.refused.append(Refusal(entry.name, "input", self.draft.opset, "it is no tensor with a batch "
                                                  "axis and known rank; every input needs one"))
                self.draft.values[entry.name] = Tensor(entry.name, None)
                continue
            found = [d.dim_value if d.WhichOneof("value") == "dim_value" and d.dim_value > 0 else None
                     for d in kind.shape.dim]
            sample = self._given(entry, found if self.draft.whole else found[1:], given)
            if math.prod(n or 1 for n in sample) > LARGEST_SAMPLE:
                raise ModelError(f'{self.shown}: input "{entry.name}" declares {tuple(sample)} for one sample, which '
                                 "no device can hold")
            dims: list[Dim] = [BATCH]
            for n in sample:
                dims.append(n if n is not None else open_dim(count))
                count += n is None
            if self.draft.batch is None and not self.draft.whole:
                self.draft.batch = found[0]
            if kind.elem_type == TensorProto.UNDEFINED or kind.elem_type not in TensorProto.DataType.values():
                raise ModelError(f'{self.shown}: input "{entry.name}" has no data type that ONNX knows ({kind.elem_type})')
            dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name
            if dtype not in (*FLOAT_DTYPES, *INTEGERS, "bool"):       # masks are looked at where they are used
                self.draft.refused.append(Refusal(entry.name, "input", self.draft.opset, f"it holds {dtype} values; only "
                                                  "floating-point numbers and integers of 8 to 64 bits are computed"))
                self.draft.values[entry.name] = Tensor(entry.name, None)
                continue
            self.draft.values[entry.name] = Tensor(entry.name, tuple(dims), dtype)
            shown_dtype = "float32" if dtype == "bfloat16" else dtype
            declared.append(_Declared(Input(entry.name, tuple(sample), shown_dtype), tuple(dims)))
        for name in given:
            known = [one.entry.name for one in declared]
            if name not in known:
                raise CompileError(f'input_shapes names "{name}", which is no input of the model; expected one of '
                                   f"{known}")
        return declared

    def _given(self, entry: ValueInfoProto, found: list[int | None], given: dict[str, tuple[int, ...]]
               ) -> list[int | None]:
        if entry.name not in given:
            return found
        wanted = [int(n) for n in given[entry.name]]
        if len(wanted) != len(found) or any(n < 1 or old not in (None, n) for n, old in
                                            zip(wanted, found, strict=True)):
            raise CompileError(f'input_shapes["{entry.name}"] is {tuple(wanted)}; the model says {tuple(found)} for '
                               "one sample (without the batch)")
        return list(wanted)

    def run(self, nodes: list[NodeProto]) -> None:
        """Fold or convert every node; collect what is refused."""
        self.draft.read = frozenset(name for node in nodes for name in names_read(node)) | {
            output.name for output in self.model.graph.output}
        for node in nodes:
            for name in node.input:
                if name and name not in self.draft.values and name in self.initializers:
                    self._load(name)
            try:
                self._visit(node)
            except Undetermined:
                self._unknown(node)
            except (Refused, FoldError) as error:
                self._refuse(node, str(error))

    def _load(self, name: str) -> None:
        array = from_float(to_array(self.initializers[name]))
        self.draft.stored[name] = array
        self.draft.kinds[name] = ("initializer", data_field(self.initializers[name]))
        self.draft.values[name] = Constant((array,), WeightRef(name))

    def _visit(self, node: NodeProto) -> None:
        draft, standard = self.draft, node.domain in ("", "ai.onnx")
        if node.domain == "ai.onnx":
            written, node = node, NodeProto()
            node.CopyFrom(written)
            node.domain = ""
        inputs = [draft.values.get(name) if name else None for name in node.input]
        if any(name and value is None for name, value in zip(node.input, inputs, strict=True)):
            raise Refused("it reads a sparse initializer")
        if standard and node.op_type in ("Shape", "Size") and isinstance(inputs[0], Tensor):
            self._shape(node, inputs[0])
            return
        if standard and node.op_type == "Constant":
            array, attribute = constant_value(node)
            name = node.output[0]
            self.draft.stored[name] = from_float(array)
            self.draft.kinds[name] = ("constant", name, _field(node, attribute))
            self.draft.values[name] = Constant((self.draft.stored[name],), WeightRef(name))
            return
        if standard and node.op_type in FOLDABLE and any(inputs) and not any(isinstance(v, Tensor) for v in inputs):
            self._fold(node, inputs)
            return
        found = find_converter(node, draft.opset)
        if isinstance(found, str):
            raise Refused(found)
        problem = check_node(node, draft.opset, self.model.ir_version)
        if problem is not None:
            raise ModelError(f'{self.shown}: node "{node.name or node.output[0]}" is not valid: {problem}')
        found(Op(node, draft))

    def _shape(self, node: NodeProto, x: Tensor) -> None:
        """Shape and Size of a run-time tensor: one value for each probe."""
        if x.dims is None:
            raise Undetermined
        results = []
        for probe in range(PROBES):
            dims = [dim if isinstance(dim, int) else dim[probe] for dim in x.dims[self.draft.whole:]]
            if node.op_type == "Size":
                results.append(np.asarray(math.prod(dims), np.int64))
                continue
            wanted = {entry.name: entry.i for entry in node.attribute}
            results.append(np.asarray(dims[slice(wanted.get("start"), wanted.get("end"))], np.int64))
        self.draft.values[node.output[0]] = constant(results, WeightRef(node.output[0]))

    def _fold(self, node: NodeProto, inputs: list[Any]) -> None:
        """Compute a node of constants, under every probe if one of them depends on an open size."""
        count = max(len(value.probes) for value in inputs if value is not None)
        runs = []
        for probe in range(count):
            arrays = [None if value is None else value.probes[probe % len(value.probes)] for value in inputs]
            runs.append(fold(node, self.draft.opset, arrays, self.budget))
            self.folded += sum(result.size for result in runs[-1])
        if self.folded > 4 * max(self.budget, 2**22) + 2**20:
            raise FoldError("the constants of the model grow beyond all bounds")
        for name, *results in zip([name for name in node.output if name], *runs, strict=True):
            view = _view_of(node, inputs, results[0]) if count == 1 else None
            if view is not None:
                self.draft.values[name] = Constant((results[0],), view)
                continue
            kind = "dequantize" if node.op_type == "DequantizeLinear" else "folded"
            folded = constant([from_float(result) for result in results], WeightRef(name))
            self.draft.values[name] = folded
            if folded.array is not None:
                self.draft.stored[name], self.draft.kinds[name] = folded.array, (kind, name)

    def _refuse(self, node: NodeProto, reason: str) -> None:
        name = node.name or next((name for name in node.output if name), node.op_type)
        self.draft.refused.append(Refusal(name, node.op_type, self.draft.opset, reason))
        self._unknown(node)

    def _unknown(self, node: NodeProto) -> None:
        """Results of a refused node, as well as they can be told, so that nodes after it can be judged as well.

        onnx's shape inference would know more, but it ends the whole process on some damaged models.
        """
        if not any(isinstance(self.draft.values.get(name), Tensor) for name in node.input):
            for name in node.output:
                self.draft.values[name] = Tensor(name, None)
            return
        for name in node.output:
            if name:
                self.draft.values[name] = Tensor(name, self._annotated(name) or self._guess(node))

    def _annotated(self, name: str) -> tuple[Dim, ...] | None:
        """What the file itself says of a tensor's shape."""
        if self.annotations is None:
            self.annotations = {entry.name: entry.type.tensor_type for entry in self.model.graph.value_info}
        found = self.annotations.get(name)
        if found is None or not found.shape.dim or found.elem_type not in FLOATS:
            return None
        rest = [d.dim_value if d.WhichOneof("value") == "dim_value" and d.dim_value > 0 else open_dim(10**6 + place)
                for place, d in enumerate(found.shape.dim)][1:]
        return (BATCH, *rest)

    def _guess(self, node: NodeProto) -> tuple[Dim, ...] | None:
        """As many axes as the first input has, of open sizes, for operators that keep them."""
        first = self.draft.values.get(node.input[0]) if node.input else None
        if node.op_type not in KEEP_RANK or not isinstance(first, Tensor) or first.dims is None:
            return None
        return (BATCH, *(open_dim(10**6 + axis) for axis in range(1, len(first.dims))))

    def check_outputs(self) -> None:
        """Refuse outputs that are no tensors of the graph."""
        for output in self.model.graph.output:
            found = self.draft.values.get(output.name)
            if not isinstance(found, Tensor):
                self.draft.refused.append(Refusal(output.name, "output", self.draft.opset,
                                                  "it does not depend on any input; it is a constant"))
            elif found.dtype == "bool":
                self.draft.refused.append(Refusal(output.name, "output", self.draft.opset, "it holds bool values"))

    def finish(self) -> Graph:
        """The graph of a model of which everything could be converted."""
        draft, names = self.draft, [output.name for output in self.model.graph.output]
        inner = [value.name for value in map(draft.values.get, names) if isinstance(value, Tensor)]
        simplify(draft, inner)
        self._name_outputs(names, inner)
        used = {ref.name for node in draft.nodes for ref in node.weights.values()}
        weights = {name: np.array(array, order="C") for name, array in draft.stored.items() if name in used}
        source = Source("onnx", self._without(used), {name: draft.kinds[name] for name in weights}, True)
        try:
            return Graph([one.entry for one in self.inputs], names, draft.nodes, weights, source, self._meta(),
                         self.model.graph.name or "graph")
        except ModelError as error:
            raise ModelError(f"{self.shown}: {error}") from error

    def _name_outputs(self, names: list[str], inner: list[str]) -> None:
        """Give the tensors that are outputs the outputs' names; Identity nodes may have called them otherwise."""
        nodes, renamed = self.draft.nodes, {}
        inputs = {one.entry.name for one in self.inputs}
        for name, tensor in zip(names, inner, strict=True):
            if name == tensor:
                continue
            if tensor in inputs or tensor in names or tensor in renamed:
                nodes.append(Node("Identity", self.draft.free_name(name), (tensor,), (name,)))
            else:
                renamed[tensor] = name
        for node in nodes:
            node.inputs = tuple(renamed.get(name, name) for name in node.inputs)
            node.outputs = tuple(renamed.get(name, name) for name in node.outputs)

    def _without(self, used: set[str]) -> bytes:
        """The model without the data of the weights that the graph holds."""
        stripped = ModelProto()
        stripped.CopyFrom(self.model)
        for tensor in stripped.graph.initializer:
            if tensor.name in used:
                take_data(tensor)
        for node in stripped.graph.node:
            if node.op_type == "Constant" and node.output and node.output[0] in used:
                for attribute in node.attribute:
                    if attribute.type == attribute.TENSOR:
                        take_data(attribute.t)
        return stripped.SerializeToString(deterministic=True)

    def _meta(self) -> dict[str, Any]:
        """What this library stored with a model that it exported."""
        for entry in self.model.metadata_props:
            if entry.key == META_KEY:
                try:
                    found = json.loads(entry.value)
                except ValueError:
                    return {}
                return found if isinstance(found, dict) else {}
        return {}


def _field(node: NodeProto, attribute: str) -> str:
    """Where a Constant node holds its value: an attribute of its own, or a field of its tensor."""
    if attribute != "value":
        return attribute
    return next(data_field(entry.t) for entry in node.attribute if entry.name == "value")


def _view_of(node: NodeProto, inputs: list[Any], result: np.ndarray) -> WeightRef | None:
    """How a result is a view of a weight, None if it is computed."""
    first = inputs[0]
    if first is None or not first.is_float:
        return None
    if node.op_type == "Identity":
        return first.ref
    if node.op_type in ("Reshape", "Squeeze", "Unsqueeze", "Flatten"):
        return WeightRef(first.ref.name, (*first.ref.view, ("reshape", tuple(result.shape))))
    if node.op_type == "Transpose":
        perm = next((tuple(entry.ints) for entry in node.attribute if entry.name == "perm"),
                    tuple(reversed(range(result.ndim))))
        return WeightRef(first.ref.name, (*first.ref.view, ("transpose", perm)))
    return None
