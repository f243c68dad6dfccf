"""A graph or a network as an ONNX model.

A graph that came from ONNX goes out as the model it came from, with only the weights replaced that have changed; one
that was built in Python goes out as a clean model (onnx_build).
"""
from __future__ import annotations

import os
from typing import Any

import numpy as np
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from microcnn.checkpoint import with_parameters
from microcnn.errors import FileError, ModelError
from microcnn.files import atomic_write
from microcnn.graph import Graph, WeightRef
from microcnn.heads import is_resized

from . import onnx_quantize, onnx_resize, onnx_unary  # noqa: F401  (they register how layers are written)
from .onnx_build import build_model
from .onnx_fold import FoldError, constant_value, fold
from .onnx_import import load_onnx
from .onnx_read import names_read, opset_of
from .onnx_tensor import from_float, put_data, to_array

LARGEST_FILE = 2**31 - 1


def export_onnx(graph_or_net: Any, path: str | os.PathLike[str] | None = None) -> ModelProto:
    """The ONNX model of a Graph or of a Net with its present weights; with a path it is written there as well.

    Raises ModelError where the weights do not fit the original model, FileError where the file cannot be written.
    """
    graph = graph_of(graph_or_net)
    if graph.source is not None and graph.source.format == "onnx":
        model = _original(graph)
    else:
        model = build_model(graph)
    if path is not None:
        content = model.SerializeToString(deterministic=True) if model.ByteSize() <= LARGEST_FILE else None
        if content is None:
            raise FileError(f'cannot write "{path}": the model has more than 2 GB, which no ONNX file can hold')
        atomic_write(path, [content])
    return model


def save_onnx(graph_or_net: Any, path: str | os.PathLike[str]) -> None:
    """Write a Graph or a Net as an ONNX file. The old file stays whole if anything goes wrong. Raises FileError."""
    export_onnx(graph_or_net, path)


def graph_of(graph_or_net: Any) -> Graph:
    """The Graph itself, or that of a Net with the Net's weights."""
    if isinstance(graph_or_net, Graph):
        return graph_or_net
    return with_parameters(graph_or_net.graph, graph_or_net.parameters())


def _original(graph: Graph) -> ModelProto:
    """The model that a graph came from, with the graph's weights."""
    assert graph.source is not None
    model = ModelProto()
    model.ParseFromString(graph.source.model)
    initializers = {tensor.name: tensor for tensor in model.graph.initializer}
    makers = {name: node for node in model.graph.node for name in node.output if name}
    computed = {}
    for node in graph.nodes:
        for ref in node.weights.values():
            if ref.name not in graph.source.replaced:
                raise ModelError(f'node "{node.name}" uses weight "{ref.name}", which the original model does not '
                                 "have; a graph that was changed after import cannot go out as the original")
    for name, how in graph.source.replaced.items():
        if name not in graph.weights:
            raise ModelError(f'the graph has lost weight "{name}" of the model that it came from')
        array = graph.weights[name]
        resized = is_resized(graph.source, name)
        if how[0] == "initializer":
            _fill(initializers.get(name), array, how[1], name, resized)
        elif how[0] == "constant":
            _fill_constant(makers.get(how[1]), array, how[2], name, resized)
        else:
            computed[name] = array
    for name, array in computed.items():
        found = _computed(name, model, makers, initializers)
        before = from_float(found)
        if before.shape != array.shape and not is_resized(graph.source, name):
            raise ModelError(f'weight "{name}" has the shape {array.shape}; the original model expects {before.shape}')
        if before.dtype != array.dtype or before.tobytes() != array.tobytes():
            _replace(name, array.astype(found.dtype), model, makers)
    if any(is_resized(graph.source, name) for name in graph.source.replaced):
        _resize_outputs(graph, model)
    return model


def _resize_outputs(graph: Graph, model: ModelProto) -> None:
    """What the file says about sizes, where a new head has changed them."""
    sizes = graph.shapes({entry.name: tuple(n or 32 for n in entry.shape) for entry in graph.inputs if None in entry.shape})
    for output in model.graph.output:
        dims = output.type.tensor_type.shape.dim
        if len(dims) == len(sizes[output.name]) + 1:
            for dim, size in zip(list(dims)[1:], sizes[output.name], strict=True):
                if dim.WhichOneof("value") == "dim_value":
                    dim.dim_value = size
    stored = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    for entry in model.graph.input:               # old files list initializers as inputs, too
        dims = entry.type.tensor_type.shape.dim
        for dim, size in zip(dims, stored.get(entry.name, ()), strict=False):
            dim.dim_value = size
    for node in graph.nodes:
        for ref in node.weights.values():
            if graph.source is not None and is_resized(graph.source, ref.name):
                _resize_reshape(ref, model)
    # what is told about the tensors between may be wrong now, and is told for convenience only
    del model.graph.value_info[:]


def _resize_reshape(ref: WeightRef, model: ModelProto) -> None:
    """The constant shape of a Reshape that stands between a resized weight and its layer."""
    wanted = [argument for step, argument in ref.view if step == "reshape"]
    reshapes = [node for node in model.graph.node if node.op_type == "Reshape" and node.input[0] == ref.name]
    if not reshapes:          # a view that import alone made
        return
    shapes = [tensor for node in reshapes for tensor in model.graph.initializer if tensor.name == node.input[1]]
    readers = sum(list(node.input).count(shapes[0].name) for node in model.graph.node) if shapes else 0
    if len(wanted) != 1 or len(reshapes) != 1 or readers != 1:
        raise ModelError(f'weight "{ref.name}" of the new head is reshaped in the original file in a way that cannot be '
                         "changed; save the model as .mcnn")
    shapes[0].CopyFrom(numpy_helper.from_array(np.asarray(wanted[0], np.int64), shapes[0].name))


def _fill(tensor: TensorProto | None, array: np.ndarray, field: str, name: str, resized: bool) -> None:
    if tensor is not None and resized:
        tensor.dims[:] = array.shape
    if tensor is None or tuple(tensor.dims) != array.shape:
        expected = "it there" if tensor is None else f"the shape {tuple(tensor.dims)}"
        raise ModelError(f'weight "{name}" has the shape {array.shape}; the original model expects {expected}')
    put_data(tensor, array, field)


def _fill_constant(node: NodeProto | None, array: np.ndarray, field: str, name: str, resized: bool) -> None:
    if node is None:
        raise ModelError(f'weight "{name}" is not in the original model')
    for attribute in node.attribute:
        if attribute.name == "value" and attribute.type == AttributeProto.TENSOR:
            _fill(attribute.t, array, field, name, resized)
        elif attribute.name == "value_float":
            attribute.f = float(array)
        elif attribute.name == "value_floats":
            del attribute.floats[:]
            attribute.floats.extend(array.reshape(-1).tolist())


def _computed(name: str, model: ModelProto, makers: dict[str, NodeProto],
              initializers: dict[str, TensorProto]) -> np.ndarray:
    """The value of a tensor that the model computes from constants alone, as import did."""
    limit = sum(int(np.prod(tensor.dims)) for tensor in model.graph.initializer)
    values: dict[str, np.ndarray] = {}
    waiting = [name]
    try:
        while waiting:
            wanted = waiting[-1]
            if wanted in values:
                waiting.pop()
            elif wanted in initializers:
                values[wanted] = to_array(initializers[wanted])
            elif makers[wanted].op_type == "Constant":
                values[wanted] = constant_value(makers[wanted])[0]
            else:
                node = makers[wanted]
                missing = [read for read in node.input if read and read not in values]
                if missing:
                    waiting.extend(missing)
                    continue
                results = fold(node, opset_of(model), [values[read] if read else None for read in node.input], limit)
                values.update(zip([made for made in node.output if made], results, strict=True))
    except (KeyError, FoldError) as error:
        found = load_onnx(model).weights.get(name)         # it may depend on the shape of an input, too
        if found is None:
            raise ModelError(f'weight "{name}" cannot be found again in the original model: {error}') from error
        return found
    return values[name]


def _replace(name: str, array: np.ndarray, model: ModelProto, makers: dict[str, NodeProto]) -> None:
    """Put an initializer in the place of the node that computed a weight; what only that node used goes as well."""
    graph, node = model.graph, makers[name]
    tensor = numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name)
    leftovers = set(node.input)
    if sum(1 for output in node.output if output) == 1:
        graph.node.remove(node)
    else:
        for place, output in enumerate(node.output):
            if output == name:
                node.output[place] = f"{name}/original"
        leftovers = set()
    graph.initializer.append(tensor)
    if model.ir_version < 4:
        graph.input.append(helper.make_tensor_value_info(name, tensor.data_type, array.shape))
    _remove_unused(graph, leftovers)


def _remove_unused(graph: GraphProto, candidates: set[str]) -> None:
    """Remove those constants among the candidates, and the nodes that made them, that nothing uses any more."""
    waiting = sorted(name for name in candidates if name)
    while waiting:
        name = waiting.pop()
        if name in {output.name for output in graph.output} or any(name in names_read(node) for node in graph.node):
            continue
        for entry in [entry for entry in graph.initializer if entry.name == name]:
            graph.initializer.remove(entry)
            for given in [given for given in graph.input if given.name == name]:
                graph.input.remove(given)
        for node in [node for node in graph.node if name in node.output]:
            if not any(output and (output != name) for output in node.output):
                waiting.extend(read for read in node.input if read)
                graph.node.remove(node)
