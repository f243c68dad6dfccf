"""The networks of the benchmark: known sizes, valid ONNX, and the same outputs elsewhere."""
from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest

import microcnn as mc
from microcnn.errors import FileError, ModelError
from microcnn.tools.bench.__main__ import main
from microcnn.tools.bench.models import MODELS, folded, graph_of, macs_of, trainable

# parameters that train, multiply-adds of one sample
SIZES = {"lenet5-28": (61_706, 416_520), "digits-cnn": (9_930, 309_248), "dscnn-kws": (23_180, 2_656_768),
         "resnet8": (77_946, 12_501_632), "mbv1-vww": (213_586, 7_489_664), "mbv2-224": (3_504_872, 300_774_272),
         "resnet18-224": (11_689_512, 1_814_073_344)}
SMALL = ["lenet5-28", "digits-cnn", "dscnn-kws", "resnet8", "mbv1-vww"]


@pytest.mark.parametrize("name", MODELS)
def test_sizes(name):
    graph = MODELS[name]()
    assert (trainable(graph), sum(macs_of(graph).values())) == SIZES[name]
    assert graph.name == name


def test_sizes_are_of_all_models():
    assert set(SIZES) == set(MODELS)


def run_onnx(graph, x):
    session = onnxruntime.InferenceSession(mc_bytes(graph), providers=["CPUExecutionProvider"])
    return session.run(None, {"input": x})[0]


def mc_bytes(graph):
    from microcnn.tools.onnx_export import export_onnx
    model = export_onnx(graph)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


@pytest.mark.parametrize("name", SMALL)
def test_onnxruntime_gives_our_outputs(name, rng):
    graph = MODELS[name]()
    x = rng.standard_normal((2, *graph.inputs[0].shape)).astype(np.float32)
    ours = graph.compile(batch=2).predict(x)
    scale = np.abs(ours).max()
    assert 1e-3 < scale < 1e3        # numbers keep their size on the way through
    for which in (graph, folded(graph)):
        np.testing.assert_allclose(run_onnx(which, x), ours, rtol=0, atol=1e-4 * scale)


@pytest.mark.parametrize("name", ["mbv2-224", "resnet18-224"])
def test_large_models_are_valid_and_fold(name, rng):
    graph = MODELS[name]()
    x = rng.standard_normal((1, 3, 224, 224)).astype(np.float32)
    plain, without = run_onnx(graph, x), run_onnx(folded(graph), x)
    np.testing.assert_allclose(without, plain, rtol=0, atol=1e-3 * np.abs(plain).max())


def test_folding_leaves_no_batch_norm_and_the_graph_as_it_was():
    graph = MODELS["resnet8"]()
    before = {name: array.copy() for name, array in graph.weights.items()}
    result = folded(graph)
    assert not any(node.op == "BatchNorm2d" for node in result.nodes)
    assert sum(node.op == "BatchNorm2d" for node in graph.nodes) == 7
    assert all(np.array_equal(graph.weights[name], array) for name, array in before.items())


def test_a_batch_norm_that_is_not_alone_stays(rng):
    build = mc.GraphBuilder()
    x = build(mc.Conv2d(4, 3), build.input("input", (2, 6, 6)))
    y = build(mc.Add(), build(mc.BatchNorm2d(), x), x)
    graph = build.graph(y)
    assert [node.op for node in folded(graph).nodes] == ["Conv2d", "BatchNorm2d", "Add"]


def test_the_command_writes_them(tmp_path, capsys):
    assert main(["models", "--out", str(tmp_path / "new" / "folder"), "--models", "digits-cnn,resnet8", "--folded"]) == 0
    printed = capsys.readouterr().out
    assert "9,930" in printed and "309,248" in printed
    written = sorted(path.name for path in (tmp_path / "new" / "folder").iterdir())
    assert written == ["digits-cnn.onnx", "resnet8.onnx"]
    graph = graph_of(str(tmp_path / "new" / "folder" / "resnet8.onnx"))
    assert graph.name == "resnet8" and graph.source is None and sum(macs_of(graph).values()) == SIZES["resnet8"][1]


@pytest.mark.parametrize("arguments, told", [
    (["model"], "there is no command 'model'; expected one of models, peers, kernels"),
    (["models", "--out", "x", "--models", "vgg"], "there is no model 'vgg'; expected one of lenet5-28"),
    (["models", "--out", "x", "--models", "nowhere.onnx"], "nowhere.onnx: no such file")])
def test_bad_names(arguments, told, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert told in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made(tmp_path):
    from microcnn.tools.bench.models import main as write
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="no folder can be made there"):
        write(["--out", str(tmp_path / "file" / "below"), "--models", "digits-cnn"])
    with pytest.raises(ModelError, match="there is no model ''"):
        graph_of("")


def test_help_lists_the_commands(capsys):
    assert main([]) == 0
    printed = capsys.readouterr().out
    assert all(f"\n  {name} " in printed for name in ("models", "peers", "kernels"))
    for name in ("models", "peers", "kernels"):
        assert main([name, "--help"]) == 0
        assert f"usage: python -m microcnn.tools.bench {name}" in capsys.readouterr().out
