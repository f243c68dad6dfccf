"""Import of what is not supported, not valid, not whole or not ONNX: one clear error each, fast, in little memory."""
from __future__ import annotations

import contextlib
import time
import tracemalloc

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from microcnn.errors import FileError, MicroCNNError, ModelError, UnsupportedError
from microcnn.tools.onnx_import import examine_onnx, load_onnx
from tests.onnx_models import model_of, node, numbers

X = ("N", 3, 9, 7)
W = {"w": numbers(4, 3, 3, 3), "b": numbers(4)}
BN = {"scale": numbers(3), "bias": numbers(3), "mean": numbers(3), "var": np.abs(numbers(3)) + 0.5}


REFUSED = {
    "an operator without a layer": (node("Det", ["x"]), X, {}, 13, "no layer does this yet"),
    "another domain": (node("Gelu", ["x"], domain="com.microsoft"), X, {}, 13,
                       'operators of the domain "com.microsoft" are not supported'),
    "an old form": (node("Add", ["x", "b"], broadcast=1), X, {"b": numbers(7)}, 6,
                    "its form of opset 6 is not supported, only those of 7, 13, 14"),
    "volume": (node("Conv", ["x", "w"]), ("N", 3, 5, 6, 7), {"w": numbers(4, 3, 2, 2, 2)}, 13,
               '"x" has 5 axes; only (N, C, L) and (N, C, H, W) are supported, no volumes'),
    "a weight at run time": (node("Conv", ["x", "x"]), X, {}, 13, 'its weight ("x") is computed at run time'),
    "training": (node("BatchNormalization", ["x", *BN], training_mode=1), X, BN, 15, "training_mode is 1"),
    "batch softmax": (node("Softmax", ["x"], axis=0), X, {}, 13, "axis 0 is the batch"),
    "batch transposed": (node("Transpose", ["x"]), X, {}, 13, "moves the batch away from axis 0"),
    "batch mixed": (node("Reshape", ["x", "s"]), X, {"s": np.array([-1, 7])}, 13, "mixes the batch with other axes"),
    "-1 twice": (node("Reshape", ["x", "s"]), X, {"s": np.array([-1, -1])}, 13,
                 "its shape (-1, -1) has -1 more than once; ONNX allows one"),
    "batch fixed": (node("Reshape", ["x", "s"]), X, {"s": np.array([4, -1])}, 13, "fixes the batch to 4"),
    "batch flattened": (node("Flatten", ["x"], axis=2), X, {}, 13, "only axis 1, which keeps the batch"),
    "batch reduced": (node("ReduceMean", ["x"], axes=[0, 1]), X, {}, 13, "axis 0 is the batch"),
    "transA": (node("Gemm", ["x", "m"], transA=1), ("N", 5), {"m": numbers(5, 4)}, 13, "the product would run along the batch"),
    "alien width": (node("MatMul", ["x", "m"]), ("N", 5), {"m": numbers(6, 4)}, 13, "the matrix expects 6"),
    "constant along the batch": (node("Add", ["x", "c"]), ("N", 3), {"c": numbers(2, 3)}, 13, "runs along the batch"),
    "window too large": (node("MaxPool", ["x"], kernel_shape=[20, 2]), X, {}, 13, "is larger than its input"),
    "random dropout": (node("Dropout", ["x", "r", "t"]), X, {"r": np.float32(0.5).reshape(()), "t": np.array(True)}, 13,
                       "training_mode is true"),
    "batch resized": (node("Resize", ["x", "", "scales"]), X, {"scales": np.float32([2, 1, 1, 1])}, 13,
                      "it resizes the batch (scales 2.0"),
    "resized to nothing": (node("Resize", ["x", "", "scales"]), X, {"scales": np.float32([1, 1, 0.1, 1])}, 13,
                           "an axis would have no position left: (3, 0, 7)"),
    "resized by nothing": (node("Resize", ["x", "", ""]), X, {}, 13, "it has neither scales and sizes"),
    "resized at run time": (node("Resize", ["x", "", "x"]), X, {}, 13, 'its scales ("x") is computed at run time'),
    "scales of other axes": (node("Resize", ["x", "", "scales"]), X, {"scales": np.float32([1, 2])}, 13,
                             "it has 2 scales and 8 numbers of roi; expected 4 and 8"),
    "negative scales": (node("Resize", ["x", "", "scales"]), X, {"scales": np.float32([1, 1, -1, 1])}, 13, "positive numbers"),
    "unknown interpolation": (node("Resize", ["x", "", "scales"], mode="area"), X, {"scales": np.float32([1, 1, 2, 2])}, 13,
                              "mode is 'area'; expected one of nearest, linear, cubic"),
    "antialiased nearest": (node("Resize", ["x", "", "scales"], antialias=1), X, {"scales": np.float32([1, 1, 2, 2])}, 18,
                            "only linear and cubic have an antialiasing filter"),
    "crop without a roi": (node("Resize", ["x", "", "scales"], coordinate_transformation_mode="tf_crop_and_resize"), X,
                           {"scales": np.float32([1, 1, 2, 2])}, 13, "and there is no roi"),
    "ratio of open sizes": (node("Resize", ["x", "", "", "sizes"], axes=[2, 3], keep_aspect_ratio_policy="not_larger"),
                            ("N", 3, "H", 7), {"sizes": np.array([8, 9])}, 18, "the size of its input is open"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_and_why(name):
    made, shape, weights, opset, reason = REFUSED[name]
    with pytest.raises(UnsupportedError) as caught:
        load_onnx(model_of([made], shape, weights, opset))
    assert reason in str(caught.value) and f'"{made.name}" (opset {opset})' in str(caught.value)


@pytest.mark.parametrize("annotated", [True, False])
def test_one_error_lists_every_node(annotated, monkeypatch):
    nodes = [node("Resize", ["x", "", "scales"], ["a"], name="bigger"), node("Conv", ["a", "w"], ["b"], name="fine"),
             node("Det", ["b"], ["c"]), node("MaxPool", ["b"], ["d", "e"], kernel_shape=[2, 2], name="indexed"),
             node("Softmax", ["d"], axis=0, name="across")]
    model = model_of(nodes, X, {"w": W["w"], "scales": np.array([2, 1, 1, 1], np.float32)}, 13)
    for name, kind in (("c", TensorProto.FLOAT), ("e", TensorProto.INT64)):
        model.graph.output.append(helper.make_tensor_value_info(name, kind, None))
    if annotated:
        model.graph.value_info.append(helper.make_tensor_value_info("a", TensorProto.FLOAT, ["N", 3, 9, 7]))
    # its compiled code ends the process on some damaged models
    monkeypatch.setattr(onnx.shape_inference, "infer_shapes", None)
    with pytest.raises(UnsupportedError) as caught:
        load_onnx(model)
    lines = str(caught.value).splitlines()
    assert lines[0] == "the model has 4 nodes that this library cannot run:"
    assert [line.split('"')[1] for line in lines[1:]] == ["bigger", "the_Det", "indexed", "across"]
    assert [entry.op for entry in caught.value.refused] == ["Resize", "Det", "MaxPool", "Softmax"]
    graph, refused, _ = examine_onnx(model)
    assert graph is None and len(refused) == 4


def test_what_is_unknown_after_a_refused_node_is_not_blamed():
    nodes = [node("Unique", ["x"], ["a"]), node("Conv", ["a", "w"], ["c"]), node("Softmax", ["c"], axis=0)]
    with pytest.raises(UnsupportedError) as caught:
        load_onnx(model_of(nodes, X, W, 13))
    assert [entry.op for entry in caught.value.refused] == ["Unique"]


def test_models_that_no_node_can_be_blamed_for():
    model = model_of([node("Relu", ["x"], ["a"]), node("Shape", ["a"], ["y"])], X)
    with pytest.raises(UnsupportedError, match=r'output "y" \(opset 17\): it does not depend on any input'):
        load_onnx(model)
    model = model_of([node("Relu", ["x"])], X)
    model.opset_import[0].version = 999
    with pytest.raises(UnsupportedError, match="opset 999.*upgrade onnx"):
        load_onnx(model)
    assert examine_onnx(model)[0] is None
    model.opset_import[0].domain = "somebody.else"
    with pytest.raises(ModelError, match="does not say of which opset"):
        load_onnx(model)
    model.graph.node[0].domain = "somebody.else"
    with pytest.raises(UnsupportedError, match='operators of the domain "somebody.else"'):
        load_onnx(model)
    integers = model_of([node("Sigmoid", ["x"])], X, dtype=TensorProto.INT32, opset=14)
    with pytest.raises(UnsupportedError, match='computes with the int32 tensor "x"'):
        load_onnx(integers)
    for kind, reason in ((TensorProto.INT4, "it holds int4 values"), (TensorProto.STRING, "it holds object values"),
                         (TensorProto.BOOL, 'computes with the bool tensor "x"')):
        with pytest.raises(UnsupportedError, match=reason):
            load_onnx(model_of([node("Identity", ["x"])], X, dtype=kind, opset=21))
    bare = model_of([node("Relu", ["x"])], X)
    bare.graph.input[0].type.tensor_type.elem_type = 77
    with pytest.raises(ModelError, match=r"no data type that ONNX knows \(77\)"):
        load_onnx(bare)


def test_an_initializer_given_twice():
    """ONNX's checker refuses it, and of two values either may be meant."""
    model = model_of([node("Conv", ["x", "w", "b"])], X, W)
    model.graph.initializer.append(onnx.numpy_helper.from_array(W["b"] + 1, "b"))
    with pytest.raises(onnx.checker.ValidationError):
        onnx.checker.check_model(model)
    with pytest.raises(ModelError, match='more than one initializer called "b".*give each its own name'):
        load_onnx(model)


# Files that are no models

def whole() -> bytes:
    return model_of([node("Conv", ["x", "w", "b"])], X, W).SerializeToString()


def test_paths_bytes_and_messages(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(whole())
    for source in (path, str(path), whole(), onnx.load(path)):
        assert load_onnx(source).outputs == ["y"]


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89PNG\r\n\x1a\n" + bytes(100), b"\x08", bytes(5000)])
def test_not_onnx(content, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(FileError, match="is not an ONNX file, or only a part of one"):
        load_onnx(path)


def test_truncated_anywhere():
    content = whole()
    for length in range(0, len(content), 7):
        with pytest.raises((FileError, ModelError)):
            load_onnx(content[:length])


def test_damaged_anywhere_gives_our_own_errors():
    content = bytearray(whole())
    rng = np.random.default_rng(0)
    for place in rng.integers(0, len(content), 300):
        damaged = bytearray(content)
        damaged[place] ^= int(rng.integers(1, 256))
        try:
            load_onnx(bytes(damaged))
        except (FileError, ModelError):
            pass


def damaged(content, rng):
    """A file cut short, or with some bytes changed, mostly where its structure stands."""
    if rng.random() < 0.3:
        return content[:rng.integers(len(content))]
    changed = bytearray(content)
    for _ in range(rng.choice([1, 1, 3])):
        near = min(len(changed), 4000)
        place = rng.choice([rng.integers(len(changed)), rng.integers(near), -rng.integers(1, near)])
        changed[place] ^= int(rng.integers(1, 256))
    return bytes(changed)


def test_damaged_models_of_the_corpus_give_our_own_errors_soon(corpus):
    rng = np.random.default_rng(1)
    for path in sorted(corpus.glob("models/*/model.onnx")):
        content = path.read_bytes()
        for _ in range(40):
            begin = time.perf_counter()
            with contextlib.suppress(MicroCNNError):
                load_onnx(damaged(content, rng)).shapes()
            assert time.perf_counter() - begin < 5, path


STRANGE = [0, 1, -1, 2, -7, 100, 2**31, 2**62, -2**63, 2**63 - 1, 10**12]


def mutated(model, rng):
    """A model whose structure says something strange at one place."""
    graph, one = model.graph, lambda items: items[rng.integers(len(items))]
    kind = rng.integers(7)
    made = [name for node in graph.node for name in node.output] + [tensor.name for tensor in graph.initializer] + [""]
    node = one(graph.node)
    if kind == 0 and node.attribute:
        attribute = one(node.attribute)
        if attribute.ints:
            attribute.ints[rng.integers(len(attribute.ints))] = one(STRANGE)
        else:
            attribute.i = one(STRANGE)
    elif kind == 1 and graph.initializer:
        tensor = one(graph.initializer)
        tensor.dims[:] = [one(STRANGE) if rng.random() < 0.5 else n for n in tensor.dims]
    elif kind == 2 and graph.initializer:
        one(graph.initializer).data_type = int(rng.integers(26))
    elif kind == 3:
        for dim in one(graph.input).type.tensor_type.shape.dim:
            dim.dim_value = one(STRANGE)
    elif kind == 4 and node.input:
        node.input[rng.integers(len(node.input))] = one(made)
    elif kind == 5:
        node.op_type = one(graph.node).op_type
    else:
        model.opset_import[0].version = int(rng.integers(-1, 30))
    return model


def test_strange_models_of_the_corpus_give_our_own_errors_soon(corpus):
    rng = np.random.default_rng(2)
    for path in sorted(corpus.glob("models/*/model.onnx")) + sorted(corpus.glob("ops/onnx_node/*/model.onnx"))[::6]:
        for _ in range(5):
            model = mutated(onnx.load(path), rng)
            begin = time.perf_counter()
            with contextlib.suppress(MicroCNNError):
                load_onnx(model).shapes()
            assert time.perf_counter() - begin < 5, path


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(FileError, match="No such file"):
        load_onnx(tmp_path / "absent.onnx")
    with pytest.raises(FileError, match="it is not a file"):
        load_onnx(tmp_path)
    with pytest.raises(FileError, match="not as int"):
        load_onnx(3)


def changed(change) -> onnx.ModelProto:
    model = model_of([node("Conv", ["x", "w", "b"])], X, W)
    change(model.graph)
    return model


def _circle(graph):
    graph.node[0].input[0] = "z"
    graph.node.append(node("Relu", ["y"], ["z"]))


INVALID = {
    "a circle": (_circle, "is part of a circle"),
    "an unknown tensor": (lambda graph: graph.node[0].input.__setitem__(0, "nowhere"), 'reads "nowhere"'),
    "made twice": (lambda graph: graph.node.append(node("Relu", ["x"], ["y"])), 'tensor "y" is made twice'),
    "an output from nothing": (lambda graph: graph.output.append(helper.make_tensor_value_info("q", 1, None)),
                               'output "q" is made by no node'),
    "no output": (lambda graph: graph.ClearField("output"), "has no output"),
    "a short tensor": (lambda graph: setattr(graph.initializer[0], "raw_data", bytes(8)),
                       r"needs 432 bytes of data; the model holds 8"),
    "a huge tensor": (lambda graph: graph.initializer[0].dims.__setitem__(0, 2**50), "needs .* bytes of data"),
    "a negative size": (lambda graph: graph.initializer[0].dims.__setitem__(0, -4), "negative dimensions"),
    "a huge input": (lambda graph: [setattr(d, "dim_value", 2**40) for d in graph.input[0].type.tensor_type.shape.dim],
                     "no device can hold"),
    "a wrong attribute": (lambda graph: graph.node[0].attribute.append(helper.make_attribute("strides", "two")),
                          'node "the_Conv" is not valid'),
}


@pytest.mark.parametrize("name", INVALID)
def test_invalid_models(name):
    change, message = INVALID[name]
    with pytest.raises(ModelError, match=message):
        load_onnx(changed(change))


BOMBS = {
    "ConstantOfShape": ([node("ConstantOfShape", ["s"], ["c"])], {"s": np.array([2**40, 2**20])}),
    "Expand": ([node("Expand", ["k", "s"], ["c"])], {"k": numbers(1), "s": np.array([2**30, 2**10])}),
    "Tile": ([node("Tile", ["k", "s"], ["c"])], {"k": numbers(1), "s": np.array([2**40])}),
    "Range": ([node("Range", ["k", "e", "d"], ["c"])],
              {"k": np.array(0), "e": np.array(2**40), "d": np.array(1)}),
    "Pad": ([node("Pad", ["k", "s"], ["c"])], {"k": numbers(1), "s": np.array([2**40, 0])}),
    "doubling": ([node("Concat", [f"k{n or ''}"] * 2, [f"k{n + 1}" if n < 40 else "c"], axis=0, name=f"n{n}")
                  for n in range(41)], {"k": numbers(1)}),
}


@pytest.mark.parametrize("name", BOMBS)
def test_constants_that_would_fill_the_memory(name):
    nodes, weights = BOMBS[name]
    model = model_of([*nodes, node("Add", ["x", "c"])], ("N", 3), weights, 13)
    tracemalloc.start()
    begin = time.perf_counter()
    try:
        with pytest.raises(UnsupportedError, match="would hold|beyond all bounds"):
            load_onnx(model)
        assert tracemalloc.get_traced_memory()[1] < 300e6
    finally:
        tracemalloc.stop()
    assert time.perf_counter() - begin < 5


def external(tmp_path, location: str, **more: str):
    model = model_of([node("Conv", ["x", "w", "b"])], X, W)
    tensor = model.graph.initializer[0]
    data = tensor.raw_data
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **more}.items():
        tensor.external_data.add(key=key, value=value)
    path = tmp_path / "inside" / "model.onnx"
    path.parent.mkdir()
    path.write_bytes(model.SerializeToString())
    return path, data


def test_external_data_beside_the_model(tmp_path):
    path, data = external(tmp_path, "weights.bin", offset="16")
    with pytest.raises(FileError, match="which is missing"):
        load_onnx(path)
    (path.parent / "weights.bin").write_bytes(bytes(16) + data)
    np.testing.assert_array_equal(load_onnx(path).weights["w"], W["w"])
    (path.parent / "weights.bin").write_bytes(bytes(16) + data[:-1])
    with pytest.raises(FileError, match="needs 432 bytes"):
        load_onnx(path)
    with pytest.raises(FileError, match="give the model's path"):
        load_onnx(path.read_bytes())


@pytest.mark.parametrize("location", ["../outside.bin", "/etc/passwd", "link.bin", ""])
def test_external_data_outside_the_folder(tmp_path, location):
    path, data = external(tmp_path, location)
    (tmp_path / "outside.bin").write_bytes(data)
    (path.parent / "link.bin").symlink_to(tmp_path / "outside.bin")
    with pytest.raises(FileError, match="outside the model's folder"):
        load_onnx(path)


@pytest.mark.parametrize("weight, attributes, message", [
    ("w", {"pads": [2**40] * 4}, "which no device can hold; use less"), ("none", {}, r"weight has shape \(0, 3, 3, 3\)")])
def test_convolutions_that_nothing_can_hold(weight, attributes, message):
    with pytest.raises(ModelError, match=message):
        load_onnx(model_of([node("Conv", ["x", weight], **attributes)], X, {**W, "none": numbers(0, 3, 3, 3)})).compile()


def test_a_place_that_is_no_file_name(tmp_path):
    model = model_of([node("Conv", ["x", "w"])], X, W)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "w")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "a\0b"
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(FileError, match="which is no file's name"):
        load_onnx(tmp_path / "model.onnx")
