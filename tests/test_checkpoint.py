"""The native file: everything comes back, nothing is held twice, damage is found."""
from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import time
import tracemalloc
import zlib

import numpy as np
import pytest

from microcnn.checkpoint import PREFIX, SIGNATURE, load_graph, save_graph, with_parameters
from microcnn.errors import FileError, ModelError
from microcnn.graph import Graph, Input, Node, Source, WeightRef


def small(source: Source | None = None) -> Graph:
    """A graph with every kind of thing that a file has to hold."""
    rng = np.random.default_rng(0)
    weights = {"w": rng.normal(size=(4, 3, 3, 3)).astype(np.float32), "k": rng.normal(size=(1, 4, 1, 1)),
               "half": rng.normal(size=(5, 4)).astype(np.float16), "scalar": np.float32(3).reshape(())}
    nodes = [Node("Conv2d", "conv", ("x",), ("a",), {"kernel": (3, 3), "stride": (1, 1), "pads": "same_upper",
                                                     "dilation": (1, 1), "groups": 1},
                  {"weight": WeightRef("w"), "bias": WeightRef("k", (("transpose", (0, 2, 3, 1)), ("reshape", (4,))))}),
             Node("Clip", "clip", ("a",), ("b",), {"low": float("-inf"), "high": np.float32(6)}),
             Node("GlobalAvgPool2d", "pool", ("b",), ("c",)), Node("Flatten", "flat", ("c",), ("d",), {"axis": 1}),
             Node("Linear", "fc", ("d",), ("e",), {"transposed": True}, {"weight": WeightRef("half")}),
             Node("Add", "add", ("e",), ("y",), {}, {"other": WeightRef("scalar")})]
    meta = {"scale": 255.0, "mean": np.array([0.1, 0.2]), "labels": ["ä", "b"]}
    return Graph([Input("x", (3, None, 7))], ["y"], nodes, weights, source, meta, "small")


SOURCE = Source("onnx", b"the original model" * 10, 
                {"w": ("initializer", "raw_data"), "k": ("constant", "k", "value")}, True)


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "g.mcnn"
    save_graph(small(SOURCE), path)
    return path


def test_everything_comes_back(saved):
    graph = small(SOURCE)
    for again in (load_graph(saved), load_graph(str(saved)), load_graph(saved.read_bytes())):
        assert again.nodes == graph.nodes and again.inputs == graph.inputs and again.outputs == graph.outputs
        assert again.source == SOURCE and again.name == "small"
        assert again.meta == {"scale": 255.0, "mean": [0.1, 0.2], "labels": ["ä", "b"]}
        assert again.nodes[0].attrs["kernel"] == (3, 3) and isinstance(again.nodes[0].attrs["kernel"], tuple)
        for name, array in graph.weights.items():
            assert again.weights[name].dtype == array.dtype and again.weights[name].flags.writeable
            np.testing.assert_array_equal(again.weights[name], array)


def test_saving_again_gives_the_same_bytes(saved, tmp_path):
    save_graph(load_graph(saved), tmp_path / "again.mcnn")
    assert (tmp_path / "again.mcnn").read_bytes() == saved.read_bytes()


def test_a_graph_without_source(tmp_path):
    save_graph(small(), tmp_path / "g.mcnn")
    assert load_graph(tmp_path / "g.mcnn").source is None


def test_arrays_of_any_order(tmp_path):
    graph = small()
    graph.weights["w"] = np.asfortranarray(graph.weights["w"])
    graph.weights["half"] = graph.weights["half"].astype(">f2")
    save_graph(graph, tmp_path / "g.mcnn")
    again = load_graph(tmp_path / "g.mcnn")
    np.testing.assert_array_equal(again.weights["w"], graph.weights["w"])
    np.testing.assert_array_equal(again.weights["half"], graph.weights["half"])


def test_weights_are_held_once(tmp_path):
    graph = small()
    graph.weights["half"] = np.zeros((5, 4000), np.float16)
    save_graph(graph, tmp_path / "g.mcnn")
    assert os.path.getsize(tmp_path / "g.mcnn") < sum(array.nbytes for array in graph.weights.values()) + 4096


def test_no_onnx_is_needed(saved):
    code = ("import sys\nfrom microcnn.checkpoint import load_graph, save_graph\n"
            f"save_graph(load_graph({str(saved)!r}), {str(saved)!r})\n"
            "assert not [name for name in sys.modules if name.split('.')[0] in ('onnx', 'google')]")
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_truncation_is_found(saved):
    content = saved.read_bytes()
    for length in [*range(0, 200), *range(200, len(content), 97), len(content) - 1]:
        with pytest.raises(FileError, match="is incomplete|is not a .mcnn file|is damaged"):
            load_graph(content[:length])
    with pytest.raises(FileError, match=f'{saved}" is incomplete'):
        saved.write_bytes(content[:-5])
        load_graph(saved)


def test_every_damage_is_found(saved):
    content = saved.read_bytes()
    whole = load_graph(content)
    for place in range(0, len(content), 3):
        damaged = bytearray(content)
        damaged[place] ^= 0x10
        try:
            again = load_graph(bytes(damaged))
        except FileError:
            continue
        # only the filling between two pieces may change unseen
        assert again.nodes == whole.nodes and again.source == whole.source
        for name, array in whole.weights.items():
            np.testing.assert_array_equal(again.weights[name], array)


def test_something_added_at_the_end_is_found(saved):
    with pytest.raises(FileError, match="is damaged"):
        load_graph(saved.read_bytes() + b"more")


def test_foreign_and_newer_files(saved, tmp_path):
    for content in (b"", b"hello", b"PK\x03\x04" + bytes(100), bytes(1000)):
        with pytest.raises(FileError, match="is not a .mcnn file"):
            load_graph(content)
    content = bytearray(saved.read_bytes())
    content[8:12] = struct.pack("<I", 2)
    with pytest.raises(FileError, match="has format 2; this microcnn reads up to format 1; upgrade microcnn"):
        load_graph(bytes(content))
    with pytest.raises(FileError, match="No such file"):
        load_graph(tmp_path / "absent.mcnn")
    with pytest.raises(FileError, match="cannot read"):
        load_graph(tmp_path)


def forged(saved, change) -> bytes:
    """A file with a changed header and a checksum that fits it."""
    content = saved.read_bytes()
    length = PREFIX.unpack(content[:PREFIX.size])[3]
    header = json.loads(content[PREFIX.size:PREFIX.size + length])
    data = content[-(-(PREFIX.size + length) // 64) * 64:]
    change(header)
    new = json.dumps(header).encode()
    start = -(-(PREFIX.size + len(new)) // 64) * 64
    prefix = PREFIX.pack(SIGNATURE, 1, zlib.crc32(new), len(new), start + len(data))
    return prefix + new.ljust(start - PREFIX.size, b"\0") + data


def _huge(header):
    header["weights"][0].update(shape=[2**40], size=2**42)


FORGERIES = {
    "a huge weight": (_huge, "lies outside the file"),
    "a size that does not fit": (lambda h: h["weights"][0].update(shape=[2**40]), "is said to take"),
    "a negative size": (lambda h: h["weights"][0].update(shape=[-1, -108]), "is said to take"),
    "a place outside": (lambda h: h["weights"][0].update(place=10**9), "lies outside the file"),
    "an unknown dtype": (lambda h: h["weights"][0].update(dtype="object"), "is damaged"),
    "no nodes": (lambda h: h.pop("nodes"), "is damaged"),
    "nodes of another kind": (lambda h: h.update(nodes=3), "is damaged"),
    "an unknown op": (lambda h: h["nodes"][0].update(op="Launch"), "unknown op 'Launch'"),
    "a name that is no text": (lambda h: h["nodes"][0].update(name=3), "3 is no name"),
    "a shape that is none": (lambda h: h["inputs"][0].update(shape=["wide"]), "are no sizes"),
    "a weight that is missing": (lambda h: h["weights"].pop(), "is damaged"),
    "no object": (lambda h: h.clear(), "is damaged"),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_forged_headers(saved, name):
    change, message = FORGERIES[name]
    content = forged(saved, change)
    tracemalloc.start()
    begin = time.perf_counter()
    try:
        with pytest.raises(FileError, match=message):
            load_graph(content)
        assert tracemalloc.get_traced_memory()[1] < 5e6
    finally:
        tracemalloc.stop()
    assert time.perf_counter() - begin < 1


def test_what_a_file_cannot_hold(tmp_path):
    graph = small()
    graph.meta["function"] = len
    with pytest.raises(ModelError, match="a .mcnn file cannot"):
        save_graph(graph, tmp_path / "g.mcnn")
    graph = small()
    graph.weights["w"] = graph.weights["w"].astype(np.complex64)
    with pytest.raises(ModelError, match='weight "w" has the dtype complex64'):
        save_graph(graph, tmp_path / "g.mcnn")
    assert os.listdir(tmp_path) == []


def test_parameters_of_a_network_keep_the_precision_of_what_did_not_change():
    graph = small()
    parameters = {name: array.astype(np.float32) for name, array in graph.weights.items()}
    assert with_parameters(graph, parameters).weights["k"] is graph.weights["k"]
    parameters["k"] += 1
    changed = with_parameters(graph, parameters)
    assert changed.weights["k"].dtype == np.float64
    np.testing.assert_allclose(changed.weights["k"], graph.weights["k"] + 1, rtol=1e-6)
    with pytest.raises(ModelError, match='no weight "other"'):
        with_parameters(graph, {"other": np.zeros(3)})
    with pytest.raises(ModelError, match=r'weight "k" has the shape \(4,\); the graph expects \(1, 4, 1, 1\)'):
        with_parameters(graph, {"k": np.zeros(4)})
