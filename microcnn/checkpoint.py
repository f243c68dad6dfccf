"""The native file, .mcnn: a graph with its weights, and the ONNX model it came from without holding them twice.

numpy and the standard library only; nothing in a file is ever executed. Layout, all numbers little-endian:

    8 bytes   the signature
    4 bytes   format version
    4 bytes   CRC-32 of the header
    8 bytes   length of the header
    8 bytes   length of the whole file
    header    JSON: the graph's structure, and for each piece of data its place, size and CRC-32
    data      weights and the original model, each at a multiple of 64 bytes
"""
from __future__ import annotations

import io
import json
import math
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from .errors import FileError, MicroCNNError, ModelError
from .files import atomic_write
from .graph import Graph, Input, Node, Source, WeightRef

SIGNATURE = b"\x89MCNN\r\n\n"
FORMAT = 1
PREFIX = struct.Struct("<8sIIQQ")
ALIGNMENT = 64
DTYPES = {name: np.dtype(name).newbyteorder("<") for name in (
    "float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool")}


def save_graph(graph: Graph, path: str | os.PathLike[str]) -> None:
    """Write a graph as a .mcnn file. The old file stays whole if anything goes wrong.

    Raises FileError where the file cannot be written, ModelError where the graph holds what a file cannot.
    """
    atomic_write(path, _chunks(graph))


def with_parameters(graph: Graph, parameters: dict[str, np.ndarray]) -> Graph:
    """The graph with new values of its weights, in each weight's own dtype.

    A weight whose value has not changed keeps its original array, which may be more precise than the network's dtype.
    Raises ModelError for a name or a shape that the graph does not have.
    """
    weights = dict(graph.weights)
    for name, value in parameters.items():
        if name not in weights:
            raise ModelError(f'the graph has no weight "{name}"; expected one of {sorted(weights)}')
        original, value = weights[name], np.asarray(value)
        if original.shape != value.shape:
            raise ModelError(f'weight "{name}" has the shape {value.shape}; the graph expects {original.shape}')
        with np.errstate(all="ignore"):
            if original.astype(value.dtype).tobytes() != value.tobytes():
                weights[name] = value.astype(original.dtype)
    return Graph(graph.inputs, graph.outputs, graph.nodes, weights, graph.source, graph.meta, graph.name)


def load_graph(source: str | os.PathLike[str] | bytes) -> Graph:
    """Read a graph from a .mcnn file, or from the bytes of one.

    Raises FileError for files that cannot be read, are damaged, incomplete, of a newer format or something else.
    """
    if isinstance(source, bytes | bytearray | memoryview):
        content = bytes(source)
        return _read(io.BytesIO(content), len(content), "the given bytes")
    path = Path(source)
    try:
        with open(path, "rb") as file:
            return _read(file, os.fstat(file.fileno()).st_size, f'"{path}"')
    except OSError as error:
        raise FileError(f'cannot read "{path}": {error.strerror or error}') from error


def _chunks(graph: Graph) -> Iterator[bytes | memoryview]:
    """The content of the file, piece by piece, so that weights are not held a second time."""
    pieces: list[tuple[dict[str, Any], np.ndarray | bytes]] = []
    for name, array in graph.weights.items():
        if array.dtype.name not in DTYPES:
            raise ModelError(f'weight "{name}" has the dtype {array.dtype}, which a .mcnn file cannot hold; expected '
                             f"one of {sorted(DTYPES)}")
        array = np.ascontiguousarray(array, dtype=DTYPES[array.dtype.name]).reshape(array.shape)
        pieces.append(({"name": name, "dtype": array.dtype.name, "shape": list(array.shape)}, array))
    described = _describe(graph)
    if graph.source is not None:
        pieces.append((described["source"]["model"], graph.source.model))
    place = 0
    for entry, content in pieces:
        raw = _raw(content)
        entry.update(place=place, size=len(raw), crc=zlib.crc32(raw))
        place = _aligned(place + len(raw))
    described["weights"] = [entry for entry, content in pieces if not isinstance(content, bytes)]
    try:
        header = json.dumps(described, default=_plain, separators=(",", ":")).encode()
    except (TypeError, ValueError) as error:
        raise ModelError(f"the graph holds something that a .mcnn file cannot: {error}; attributes and meta are made "
                         "of numbers, strings, lists and dicts") from error
    start = _aligned(PREFIX.size + len(header))
    yield PREFIX.pack(SIGNATURE, FORMAT, zlib.crc32(header), len(header), start + place)
    yield header
    yield bytes(start - PREFIX.size - len(header))
    for entry, content in pieces:
        yield _raw(content)
        yield bytes(_aligned(entry["size"]) - entry["size"])


def _raw(content: np.ndarray | bytes) -> bytes | memoryview:
    if isinstance(content, bytes):
        return content
    return content.reshape(-1).view(np.uint8).data


def _aligned(place: int) -> int:
    return -(-place // ALIGNMENT) * ALIGNMENT


def _plain(value: Any) -> Any:
    """numpy's numbers and arrays as JSON knows them."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} {value!r}")


def _describe(graph: Graph) -> dict[str, Any]:
    """Everything but the weights' and the model's bytes, as plain data."""
    source = graph.source
    return {
        "name": graph.name,
        "inputs": [{"name": i.name, "shape": list(i.shape), "dtype": i.dtype} for i in graph.inputs],
        "outputs": list(graph.outputs),
        "nodes": [{"op": node.op, "name": node.name, "inputs": list(node.inputs), "outputs": list(node.outputs),
                   "attrs": node.attrs,
                   "weights": {role: {"name": ref.name, "view": [[step, list(argument)] for step, argument in ref.view]}
                               for role, ref in node.weights.items()}} for node in graph.nodes],
        "meta": graph.meta,
        "source": None if source is None else {
            "format": source.format, "replaced": {name: list(how) for name, how in source.replaced.items()},
            "without_weights": source.without_weights, "model": {}},
    }


def _read(file: BinaryIO, size: int, shown: str) -> Graph:
    prefix = file.read(PREFIX.size)
    if not prefix.startswith(SIGNATURE[:len(prefix)]) or not prefix:
        raise FileError(f"{shown} is not a .mcnn file; write one with net.save or graph.save; "
                        "an .onnx file is for mc.load_onnx")
    if len(prefix) < PREFIX.size:
        raise FileError(f"{shown} is incomplete: it ends after {len(prefix)} bytes; copy or save it again")
    _, version, crc, length, total = PREFIX.unpack(prefix)
    if version > FORMAT:
        raise FileError(f"{shown} has format {version}; this microcnn reads up to format {FORMAT}; upgrade microcnn")
    if size < total or length > size - PREFIX.size:
        raise FileError(f"{shown} is incomplete: it has {size} of {total} bytes; copy or save it again")
    header = file.read(length)
    if len(header) != length or zlib.crc32(header) != crc or total != size or version < 1:
        raise FileError(f"{shown} is damaged: its header does not fit its checksum; copy or save it again")
    try:
        return _restore(json.loads(header), file, _aligned(PREFIX.size + length), size, shown)
    except FileError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError, MicroCNNError) as error:
        raise FileError(f"{shown} is damaged: {error}; copy or save it again") from error


def _restore(described: dict[str, Any], file: BinaryIO, start: int, size: int, shown: str) -> Graph:
    weights = {}
    for entry in described["weights"]:
        dtype, shape = DTYPES[entry["dtype"]], tuple(entry["shape"])
        if any(type(n) is not int or n < 0 for n in shape) or math.prod(shape) * dtype.itemsize != entry["size"]:
            raise FileError(f'{shown} is damaged: weight "{entry["name"]}" of shape {shape} is said to take '
                            f'{entry["size"]} bytes; copy or save it again')
        content = _piece(entry, f'weight "{entry["name"]}"', file, start, size, shown)
        array = np.frombuffer(content, dtype=dtype).reshape(shape)
        weights[entry["name"]] = array.astype(dtype.newbyteorder("="), copy=False)
    source = None
    if described["source"] is not None:
        kept = described["source"]
        model = bytes(_piece(kept["model"], "the original model", file, start, size, shown))
        source = Source(_text(kept["format"]), model,
                        {_text(name): _texts(how) for name, how in kept["replaced"].items()},
                        bool(kept["without_weights"]))
    nodes = [Node(_text(node["op"]), _text(node["name"]), _texts(node["inputs"]), _texts(node["outputs"]),
                  {_text(name): _tuples(value) for name, value in node["attrs"].items()},
                  {_text(role): WeightRef(_text(ref["name"]), tuple((_text(step), _sizes(argument))
                                                                    for step, argument in ref["view"]))
                   for role, ref in node["weights"].items()}) for node in described["nodes"]]
    inputs = [Input(_text(i["name"]), tuple(None if n is None else _sizes([n])[0] for n in i["shape"]),
                    DTYPES[i["dtype"]].name) for i in described["inputs"]]
    if not isinstance(described["meta"], dict):
        raise TypeError("meta is no table")
    return Graph(inputs, list(_texts(described["outputs"])), nodes, weights, source, described["meta"],
                 _text(described["name"]))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no name")
    return value


def _texts(values: Any) -> tuple[str, ...]:
    return tuple(_text(value) for value in values)


def _sizes(values: Any) -> tuple[int, ...]:
    if any(type(value) is not int for value in values):
        raise TypeError(f"{values!r} are no sizes")
    return tuple(values)


def _piece(entry: dict[str, Any], what: str, file: BinaryIO, start: int, size: int, shown: str) -> bytearray:
    """One checked piece of data; memory is taken only after its size was held against the file's."""
    place, length = entry["place"], entry["size"]
    if type(place) is not int or type(length) is not int or place < 0 or length < 0 or start + place + length > size:
        raise FileError(f"{shown} is damaged: {what} lies outside the file; copy or save it again")
    content = bytearray(length)
    file.seek(start + place)
    view, done = memoryview(content), 0
    while done < length:
        count = file.readinto(view[done:])                     # type: ignore[attr-defined]
        if not count:
            raise FileError(f"{shown} is incomplete: {what} ends early; copy or save it again")
        done += count
    view.release()
    if zlib.crc32(content) != entry["crc"]:
        raise FileError(f"{shown} is damaged: {what} does not fit its checksum; copy or save it again")
    return content


def _tuples(value: Any) -> Any:
    """JSON's lists as the tuples that attributes are made of."""
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
