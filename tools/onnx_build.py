"""A clean ONNX model (opset 17, open batch) from a graph that was built in Python."""
from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, helper, numpy_helper

from microcnn.errors import CompileError, ModelError
from microcnn.graph import Graph, Node, WeightRef
from microcnn.integers import INTEGERS
from microcnn.layers import LAYERS
from microcnn.layers.elementwise import Elementwise

OPSET = 17
IR_VERSION = 8
BATCH_NAME = "N"
META_KEY = "microcnn.meta"
BUILDERS: dict[str, Callable[[Build, Node], None]] = {}


def builder(*layers: str) -> Callable[[Callable[[Build, Node], None]], Callable[[Build, Node], None]]:
    """Register how a layer becomes ONNX nodes."""
    def register(function: Callable[[Build, Node], None]) -> Callable[[Build, Node], None]:
        for layer in layers:
            if layer in BUILDERS:
                raise ValueError(f"{layer} already has a builder")
            BUILDERS[layer] = function
        return function
    return register


def build_model(graph: Graph) -> ModelProto:
    """The ONNX model of a graph. Raises ModelError for what ONNX cannot say."""
    return Build(graph).model()


class Build:
    """The parts of the model while they are being put together."""

    def __init__(self, graph: Graph):
        self.graph = graph
        self.nodes: list[NodeProto] = []
        self.dtype = np.dtype(graph.inputs[0].dtype if graph.inputs else "float32")
        self.constants: dict[str, np.ndarray] = {}
        self.ranks = {entry.name: len(entry.shape) + 1 for entry in graph.inputs}
        self.shapes = _shapes(graph)
        self.names = {name for node in graph.nodes for name in (*node.inputs, *node.outputs)} | set(graph.weights)

    def model(self) -> ModelProto:
        """The whole model, checked by onnx. Raises ModelError for what ONNX cannot say."""
        for node in self.graph.nodes:
            if node.op not in BUILDERS:
                raise ModelError(f'node "{node.name}": {node.op} has no form in ONNX opset {OPSET}')
            self.ranks[node.outputs[0]] = self._rank(node)
            BUILDERS[node.op](self, node)
        inputs = [helper.make_tensor_value_info(
            entry.name, helper.np_dtype_to_tensor_dtype(np.dtype(entry.dtype)),
            [BATCH_NAME, *(f"{entry.name}_{axis}" if n is None else n for axis, n in enumerate(entry.shape, 1))])
            for entry in self.graph.inputs]
        types = self.graph.types()
        outputs = [helper.make_tensor_value_info(
            name, helper.np_dtype_to_tensor_dtype(np.dtype(types[name]) if types[name] in INTEGERS else self.dtype),
            self._output_dims(name)) for name in self.graph.outputs]
        used = {ref.name for node in self.graph.nodes for ref in node.weights.values()}
        tensors = [numpy_helper.from_array(np.ascontiguousarray(array, self.dtype).reshape(array.shape), name)
                   for name, array in self.graph.weights.items() if name in used]
        tensors += [numpy_helper.from_array(array, name) for name, array in self.constants.items()]
        model = helper.make_model(helper.make_graph(self.nodes, self.graph.name or "graph", inputs, outputs, tensors),
                                  opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION,
                                  producer_name="microcnn")
        if self.graph.meta:
            helper.set_model_props(model, {META_KEY: json.dumps(self.graph.meta, default=_as_json)})
        try:
            onnx.checker.check_model(model)
        except onnx.checker.ValidationError as error:
            raise ModelError(f"the graph has no valid form in ONNX: {error}") from error
        return model

    def _rank(self, node: Node) -> int:
        """The axes of a node's result, the batch counted."""
        if node.op == "Flatten":
            return 2
        if node.op == "Reshape":
            return 1 + len(node.attrs["shape"])
        if node.attrs.get("keepdims") is False:
            return self.ranks[node.inputs[0]] - len(node.attrs.get("axes", (0,)))
        return max(self.ranks[name] for name in node.inputs)

    def _output_dims(self, name: str) -> list[int | str]:
        """An output's dimensions, names for those that are open."""
        if self.shapes is not None:
            return [BATCH_NAME, *self.shapes[name]]
        return [BATCH_NAME, *(f"{name}_{axis}" for axis in range(1, self.ranks[name]))]

    def add(self, operator: str, node: Node, inputs: list[str], output: str = "", suffix: str = "", **attributes: Any
            ) -> str:
        """Add an ONNX node; without `output` it makes the layer's own result."""
        made = output or node.outputs[0]
        self.nodes.append(helper.make_node(operator, inputs, [made], f"{node.name}{suffix}", **attributes))
        return made

    def constant(self, wanted: str, array: np.ndarray) -> str:
        """An initializer that is no weight."""
        name = self.free(wanted)
        self.constants[name] = array
        return name

    def free(self, wanted: str) -> str:
        """A tensor name that nothing else has."""
        name, number = wanted, 1
        while name in self.names:
            number += 1
            name = f"{wanted}_{number}"
        self.names.add(name)
        return name

    def weight(self, node: Node, role: str) -> str:
        """The tensor of a weight as the node sees it, "" where it has none."""
        ref: WeightRef | None = node.weights.get(role)
        if ref is None:
            return ""
        name = ref.name
        for number, (step, argument) in enumerate(ref.view, 1):
            seen = self.free(f"{node.name}/{role}/{number}")
            suffix = f"/{role}/{number}"
            if step == "reshape":
                shape = self.constant(f"{seen}/shape", np.asarray(argument, np.int64))
                name = self.add("Reshape", node, [name, shape], seen, suffix)
            else:
                name = self.add("Transpose", node, [name], seen, suffix, perm=list(argument))
        return name


def _as_json(value: Any) -> Any:
    """numpy's numbers and arrays for JSON. Raises ModelError for anything else."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise ModelError(f"meta holds {value!r}, which is neither a number, text, a list nor a dict; take it "
                     "out of graph.meta")


def _shapes(graph: Graph) -> dict[str, tuple[int, ...]] | None:
    """The shape of every tensor, None where the graph leaves sizes open."""
    try:
        return graph.shapes()
    except CompileError:
        return None


def given(*names: str) -> list[str]:
    """Input names without the trailing ones that are left out."""
    found = list(names)
    while found and not found[-1]:
        found.pop()
    return found


@builder("Linear")
def linear(build: Build, node: Node) -> None:
    weight, bias = build.weight(node, "weight"), build.weight(node, "bias")
    transposed = bool(node.attrs["transposed"])
    if build.ranks[node.inputs[0]] == 2:
        build.add("Gemm", node, given(node.inputs[0], weight, bias), transB=int(transposed))
        return
    if transposed:
        weight = build.add("Transpose", node, [weight], build.free(f"{node.name}/matrix"), "/matrix", perm=[1, 0])
    if not bias:
        build.add("MatMul", node, [node.inputs[0], weight])
        return
    product = build.add("MatMul", node, [node.inputs[0], weight], build.free(f"{node.name}/product"), "/product")
    build.add("Add", node, [product, bias])


@builder("BatchNorm2d")
def batch_norm(build: Build, node: Node) -> None:
    roles = [build.weight(node, role) for role in ("scale", "bias", "mean", "var")]
    build.add("BatchNormalization", node, [node.inputs[0], *roles], epsilon=float(node.attrs["eps"]),
              momentum=float(node.attrs["momentum"]))


@builder("Clip")
def clip(build: Build, node: Node) -> None:
    bounds = [build.constant(f"{node.name}.{name}", np.asarray(node.attrs[key], build.dtype))
              if np.isfinite(node.attrs[key]) else "" for name, key in (("min", "low"), ("max", "high"))]
    build.add("Clip", node, given(node.inputs[0], *bounds))


@builder("Softmax", "LogSoftmax")
def softmax(build: Build, node: Node) -> None:
    rank = build.ranks[node.inputs[0]]
    axis = node.attrs["axis"] % rank
    if not node.attrs.get("flatten") or axis == rank - 1:
        build.add(node.op, node, [node.inputs[0]], axis=axis)
        return
    # All axes from `axis` on together, as before opset 13.
    if build.shapes is None:
        raise ModelError(f'node "{node.name}": a {node.op} over several axes of open sizes has no form in ONNX opset '
                         f"{OPSET}")
    sizes = build.shapes[node.inputs[0]][axis - 1:]
    merged = build.constant(f"{node.name}.merged", np.asarray([0] * axis + [-1], np.int64))
    split = build.constant(f"{node.name}.split", np.asarray([0] * axis + list(sizes), np.int64))
    flat = build.add("Reshape", node, [node.inputs[0], merged], build.free(f"{node.name}/flat"), "/flat")
    soft = build.add(node.op, node, [flat], build.free(f"{node.name}/soft"), "/soft", axis=axis)
    build.add("Reshape", node, [soft, split])


@builder(*(layer.op for layer in LAYERS.values() if issubclass(layer, Elementwise)))
def elementwise(build: Build, node: Node) -> None:
    operands, constant = list(node.inputs), build.weight(node, "other")
    if node.attrs.get("scalar") is not None:
        constant = build.constant(f"{node.name}.scalar", np.asarray(node.attrs["scalar"], build.dtype))
    if constant:
        operands.insert(0 if node.attrs.get("first") else 1, constant)
    if node.attrs.get("floor") and build.graph.types()[node.inputs[0]] not in INTEGERS:     # opset 17 has it of integers
        turns = [build.add("Div", node, operands, build.free(f"{node.name}/quotient"), "/quotient")]
        turns = [build.add("Floor", node, turns, build.free(f"{node.name}/turns"), "/turns")]
        whole = build.add("Mul", node, [*turns, operands[1]], build.free(f"{node.name}/whole"), "/whole")
        build.add("Sub", node, [operands[0], whole])
        return
    attributes: dict[str, Any] = {"fmod": int(not node.attrs.get("floor"))} if node.op == "Mod" else {}
    build.add(node.op, node, operands, **attributes)


@builder("Flatten")
def flatten(build: Build, node: Node) -> None:
    build.add("Flatten", node, [node.inputs[0]], axis=node.attrs.get("axis", 1))


@builder("Reshape")
def reshape(build: Build, node: Node) -> None:
    shape = build.constant(f"{node.name}.shape", np.asarray([0, *node.attrs["shape"]], np.int64))
    build.add("Reshape", node, [node.inputs[0], shape])


@builder("Transpose")
def transpose(build: Build, node: Node) -> None:
    build.add("Transpose", node, [node.inputs[0]], perm=list(node.attrs["perm"]))


@builder("Dropout")
def dropout(build: Build, node: Node) -> None:
    ratio = build.constant(f"{node.name}.ratio", np.asarray(node.attrs["p"], np.float32))
    build.add("Dropout", node, [node.inputs[0], ratio])


@builder("Identity")
def identity(build: Build, node: Node) -> None:
    build.add("Identity", node, [node.inputs[0]])


def _plain(operator: str, attributes: dict[str, tuple[str, Any]]) -> Callable[[Build, Node], None]:
    """The builder of a layer whose own data describes its ONNX operator in full."""
    def build_plain(build: Build, node: Node) -> None:
        build.add(operator, node, [node.inputs[0]],
                  **{written: node.attrs.get(name, default) for written, (name, default) in attributes.items()})
    return build_plain


for _layer in LAYERS.values():
    for _operator, _data in _layer.onnx.items():
        if "versions" in _data:
            builder(_layer.op)(_plain(_operator, _data.get("attributes", {})))


from . import (  # noqa: E402, F401  (they register more layers, with what is defined above)
    onnx_build_matmul,
    onnx_build_movement,
    onnx_build_normalization,
    onnx_build_reduction,
    onnx_build_windows,
)
