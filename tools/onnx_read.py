"""From a path, bytes or a message to a whole ONNX model: read, checked and put into order. Executes nothing."""
from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto

from microcnn.errors import FileError, ModelError

from .onnx_tensor import check_tensor, load_external

LARGEST_FILE = 2**31 - 1


def read_model(source: Any) -> tuple[ModelProto, str]:
    """A checked model, self-contained, and how to call it in messages.

    source: a path, bytes or a ModelProto (which is copied). Raises FileError for what is no whole ONNX file, ModelError
    for a model that is not valid.
    """
    model, folder, shown = ModelProto(), None, "the model"
    if isinstance(source, ModelProto):
        model.CopyFrom(source)
    else:
        if isinstance(source, bytes | bytearray | memoryview):
            content = bytes(source)
        elif isinstance(source, str | os.PathLike):
            shown, folder = f'"{os.fspath(source)}"', Path(source).parent
            content = _content(Path(source), shown)
        else:
            raise FileError(f"a model is given as a path, bytes or an onnx.ModelProto, not as {type(source).__name__}")
        try:
            model.ParseFromString(content)
        except DecodeError as error:
            raise FileError(f"{shown} is not an ONNX file, or only a part of one; download or export it again"
                            ) from error
    if not model.ir_version or not model.HasField("graph") or not model.opset_import:
        raise FileError(f"{shown} is not an ONNX file, or only a part of one: it has no "
                        f"{_missing(model)}; download or export it again")
    if not model.graph.output:
        raise ModelError(f"{shown} has no output")
    if any(not isinstance(name, str) for name in _texts(model.graph)):
        raise FileError(f"{shown} is damaged: it holds names that are no text; download or export it again")
    held = [*(tensor.name for tensor in model.graph.initializer),
            *(tensor.values.name for tensor in model.graph.sparse_initializer)]
    if twice := [name for name, count in Counter(held).items() if count > 1]:
        raise ModelError(f'{shown} has more than one initializer called "{twice[0]}", so that its value cannot be told; give '
                         "each its own name")
    for tensor, what in tensors_of(model.graph):
        if tensor.data_location == TensorProto.EXTERNAL:
            load_external(tensor, folder, what)
        check_tensor(tensor, what)
    return model, shown


def _texts(graph: GraphProto) -> Iterator[Any]:
    """Every name in a graph; protobuf gives bytes where one is not valid text."""
    for entry in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        yield entry.name
    for node in graph.node:
        yield from (node.name, node.op_type, node.domain, *node.input, *node.output)
        for attribute in node.attribute:
            yield attribute.name
            for subgraph in ([attribute.g] if attribute.HasField("g") else list(attribute.graphs)):
                yield from _texts(subgraph)


def opset_of(model: ModelProto) -> int:
    """The version of the standard operators; the last entry counts where there are several, as in ONNX Runtime."""
    version = 0
    for entry in model.opset_import:
        if entry.domain in ("", "ai.onnx"):
            version = entry.version
    return version


def input_names(model: ModelProto) -> list[str]:
    """The model's real inputs: old files list initializers among them, too."""
    held = {tensor.name for tensor in model.graph.initializer}
    return [entry.name for entry in model.graph.input if entry.name not in held]


def tensors_of(graph: GraphProto) -> Iterator[tuple[TensorProto, str]]:
    """Every tensor that a graph holds, with a name for messages."""
    for tensor in graph.initializer:
        yield tensor, f'initializer "{tensor.name}"'
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.TENSOR:
                yield attribute.t, f'attribute "{attribute.name}" of node {show_node(node)}'
            for subgraph in ([attribute.g] if attribute.HasField("g") else list(attribute.graphs)):
                yield from tensors_of(subgraph)


def show_node(node: NodeProto) -> str:
    """A node in messages: its name, or its first output where it has none."""
    named = node.name or next((f"-> {name}" for name in node.output if name), "?")
    return f'"{named}" ({node.op_type})'


def names_read(node: NodeProto) -> set[str]:
    """Every tensor that a node reads, those that its subgraphs read included."""
    names = {name for name in node.input if name}
    for attribute in node.attribute:
        for subgraph in ([attribute.g] if attribute.HasField("g") else list(attribute.graphs)):
            for inner in subgraph.node:
                names |= names_read(inner)
            names |= {output.name for output in subgraph.output}
    return names


def live_nodes(model: ModelProto, shown: str) -> list[NodeProto]:
    """The nodes that the outputs depend on, each after those whose results it reads.

    Raises ModelError where a tensor is made twice or by nothing, or nodes wait for each other in a circle.
    """
    graph = model.graph
    given = {entry.name for entry in graph.input} | {tensor.name for tensor in graph.initializer}
    given |= {tensor.values.name for tensor in graph.sparse_initializer}
    makers: dict[str, int] = {}
    for number, node in enumerate(graph.node):
        for name in node.output:
            if name and (name in makers or name in given):
                raise ModelError(f'{shown}: tensor "{name}" is made twice, the second time by node {show_node(node)}')
            if name:
                makers[name] = number
    for output in graph.output:
        if output.name not in makers and output.name not in given:
            raise ModelError(f'{shown}: output "{output.name}" is made by no node')
    order: list[int] = []
    state = [0] * len(graph.node)                              # 0 not seen, 1 waiting for its inputs, 2 done
    for output in graph.output:
        waiting = [makers[output.name]] if output.name in makers else []
        while waiting:
            number = waiting[-1]
            if state[number]:
                waiting.pop()
                if state[number] == 1:
                    state[number] = 2
                    order.append(number)
                continue
            state[number] = 1
            node = graph.node[number]
            inside = _made_inside(node)
            for name in sorted(names_read(node) - inside, reverse=True):
                if name in makers:
                    if state[makers[name]] == 1:
                        raise ModelError(f"{shown}: node {show_node(node)} is part of a circle: it reads "
                                         f'"{name}", which depends on its own result')
                    if state[makers[name]] == 0:
                        waiting.append(makers[name])
                elif name not in given:
                    raise ModelError(f'{shown}: node {show_node(node)} reads "{name}", which nothing makes')
    return [graph.node[number] for number in _stable(order, graph, makers)]


def _stable(order: list[int], graph: GraphProto, makers: dict[str, int]) -> list[int]:
    """The model's own order where that is a valid one."""
    plain = sorted(order)
    for number in plain:
        if any(makers.get(name, -1) > number for name in graph.node[number].input):
            return order
    return plain


def _made_inside(node: NodeProto) -> set[str]:
    """What the subgraphs of a node make for themselves."""
    names: set[str] = set()
    for attribute in node.attribute:
        for subgraph in ([attribute.g] if attribute.HasField("g") else list(attribute.graphs)):
            names |= {entry.name for entry in subgraph.input} | {tensor.name for tensor in subgraph.initializer}
            for inner in subgraph.node:
                names |= set(inner.output) | _made_inside(inner)
    return names


def _content(path: Path, shown: str) -> bytes:
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise FileError(f"cannot read {shown}: it is not a file")
        if found.st_size > LARGEST_FILE:
            raise FileError(f"cannot read {shown}: it has {found.st_size} bytes; an ONNX file has less than 2 GB")
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise FileError(f"cannot read {shown}: {getattr(error, 'strerror', None) or error}") from error


def _missing(model: ModelProto) -> str:
    if not model.HasField("graph"):
        return "graph"
    return "version" if not model.ir_version else "opset"


def check_node(node: NodeProto, opset: int, ir_version: int) -> str | None:
    """What onnx's checker has against a node, None if nothing; it says nothing but that of an operator that was withdrawn."""
    if onnx.defs.get_schema(node.op_type, max_inclusive_version=opset, domain="").deprecated:
        return None
    context = onnx.checker.C.CheckerContext()
    context.ir_version = ir_version
    context.opset_imports = {"": opset}
    try:
        onnx.checker.check_node(node, context)
    except onnx.checker.ValidationError as error:
        return str(error).strip().splitlines()[0]
    return None
