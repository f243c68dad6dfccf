"""A new head: other classes, the same network before it, and a file in which only the head differs."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import microcnn as mc
from microcnn.errors import ModelError
from microcnn.tools.onnx_export import export_onnx
from microcnn.tools.onnx_import import load_onnx
from tests.onnx_models import check, model_of, node, numbers, onnxruntime_outputs

MODELS = ["mlperf_ic_resnet8", "mlperf_kws_dscnn", "mnist8_cntk"]


def dense(transposed=False, opset=17):
    matrix = ["f", "w", "b"]
    nodes = [node("Conv", ["x", "k"], ["c"]), node("Relu", ["c"], ["r"]), node("GlobalAveragePool", ["r"], ["g"]),
             node("Flatten", ["g"], ["f"]), node("Gemm", matrix, ["z"], name="head", transB=int(transposed)),
             node("Softmax", ["z"], ["y"])]
    weights = {"k": numbers(4, 2, 3, 3), "w": numbers(*((6, 4) if transposed else (4, 6))), "b": numbers(6)}
    return model_of(nodes, ("N", 2, 5, 5), weights, opset)


def convolutional():
    nodes = [node("Conv", ["x", "k"], ["c"]), node("Relu", ["c"], ["r"]), node("Conv", ["r", "w"], ["d"], name="head"),
             node("GlobalAveragePool", ["d"], ["g"]), node("Flatten", ["g"], ["y"])]
    return model_of(nodes, ("N", 2, 5, 5), {"k": numbers(4, 2, 3, 3), "w": numbers(6, 4, 1, 1)})


@pytest.mark.parametrize("model", [dense(), dense(True), dense(opset=9), convolutional()])
@pytest.mark.parametrize("count", [1, 3, 6, 20])
def test_the_exported_file_differs_in_the_head_only(model, count):
    graph = load_onnx(model).with_head(count, seed=1)
    written = export_onnx(graph)
    check(written)
    assert [one.SerializeToString() for one in written.graph.node] == [one.SerializeToString() for one in model.graph.node]
    before = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    after = {tensor.name: numpy_helper.to_array(tensor) for tensor in written.graph.initializer}
    assert list(after) == list(before)
    np.testing.assert_array_equal(after["k"], before["k"])
    assert count in after["w"].shape and after["w"].size == count * 4 and np.abs(after["w"]).max() <= 0.5
    x = np.random.default_rng(0).standard_normal((3, 2, 5, 5)).astype(np.float32)
    y = graph.compile(batch=3).predict(x)
    assert y.shape == (3, count)
    np.testing.assert_allclose(onnxruntime_outputs(written, {"x": x})["y"], y, atol=1e-5)


def test_it_trains_and_comes_back_from_a_file(tmp_path):
    graph = load_onnx(dense()).with_head(3)
    net = graph.compile(batch=8, train="head", loss="cross_entropy", optimizer=mc.SGD(lr=0.5))
    rng = np.random.default_rng(0)
    x, t = rng.standard_normal((8, 2, 5, 5)).astype(np.float32), rng.integers(0, 3, 8)
    losses = [net.train_step(x, t) for _ in range(30)]
    assert losses[-1] < losses[0]
    net.save(tmp_path / "new.mcnn")
    again = mc.load(tmp_path / "new.mcnn")
    assert export_onnx(again).SerializeToString() == export_onnx(net).SerializeToString()
    assert load_onnx(export_onnx(net)).compile().predict(x[:1]).shape == (1, 3)


@pytest.mark.parametrize("name", MODELS)
def test_real_models_get_a_new_head(name, corpus):
    path, = Path(corpus / "models" / name).glob("*.onnx")
    graph = mc.load_onnx(path).with_head(7)
    written = export_onnx(graph)
    onnx.checker.check_model(written, full_check=True)
    original = onnx.load(path)
    assert [one.name for one in written.graph.node] == [one.name for one in original.graph.node]
    entry = graph.inputs[0]
    x = np.random.default_rng(0).random((1, *entry.shape)).astype(np.float32)
    y = graph.compile().predict(x)
    assert y.shape == (1, 7)
    found, = onnxruntime_outputs(written, {entry.name: x}).values()
    np.testing.assert_allclose(found, y, atol=1e-5)


@pytest.mark.parametrize("count", [0, -1, 2.5, True, "ten", None])
def test_no_class_count(count):
    with pytest.raises(ModelError, match="class count is .* expected an integer of at least 1"):
        load_onnx(dense()).with_head(count)


def test_heads_that_cannot_be_replaced():
    two = mc.GraphBuilder()
    x = two.input("x", (2, 4, 4))
    with pytest.raises(ModelError, match="2 outputs, .*only be replaced where there is one"):
        two.graph(two(mc.Conv2d(3, 3), x), two(mc.Conv2d(2, 3), x)).with_head(3)
    with pytest.raises(ModelError, match='comes from the input "x"'):
        load_onnx(model_of([node("Relu", ["x"], ["y"])], ("N", 4))).with_head(3)
    with pytest.raises(ModelError, match='BatchNorm2d ".*only the head of a convolution'):
        mc.Sequential([mc.Conv2d(3, 3), mc.BatchNorm2d()], (2, 5, 5)).graph().with_head(3)
    shared = model_of([node("MatMul", ["x", "w"], ["a"]), node("MatMul", ["a", "w"], ["y"])], ("N", 4), {"w": numbers(4, 4)})
    with pytest.raises(ModelError, match='shares its weight "w" with another layer'):
        load_onnx(shared).with_head(3)
    fixed = model_of([node("MatMul", ["x", "w"], ["a"]), node("Reshape", ["a", "s"], ["y"])], ("N", 4),
                     {"w": numbers(4, 6), "s": np.array([-1, 2, 3])})
    with pytest.raises(ModelError, match="cannot get 5 outputs"):
        load_onnx(fixed).with_head(5)
