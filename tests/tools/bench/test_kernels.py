"""The per-kernel bench: its lines are the program's rows, their multiply-adds the model's."""
from __future__ import annotations

import json

import numpy as np
import pytest

import microcnn as mc
from microcnn.tools.bench import kernels
from microcnn.tools.bench.__main__ import main
from microcnn.tools.bench.models import MODELS, folded, macs_of
from microcnn.tools.peak import Peak

TRAIN = {"train": "all", "loss": "cross_entropy", "optimizer": mc.SGD(lr=1e-3, momentum=0.9), "bn": "batch"}


def total(lines, direction):
    return sum(line.macs for line in lines if line.direction == direction)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("batch", [1, 32])
def test_multiply_adds_are_the_models(name, batch):
    graph = MODELS[name]()
    macs = macs_of(graph)
    lines, owner = kernels.lines_of(folded(graph), {"batch": batch})
    assert total(lines, "forward") == sum(macs.values()) * batch == sum(line.macs for line in lines)
    assert set(owner) == set(range(len(lines)))
    first = graph.nodes[0].name
    lines, _ = kernels.lines_of(graph, {"batch": batch, **TRAIN})
    assert total(lines, "forward") == total(lines, "backward_weight") == sum(macs.values()) * batch
    assert total(lines, "backward_input") == (sum(macs.values()) - macs[first]) * batch       # nothing before it trains
    assert sum(line.macs for line in lines) == (3 * sum(macs.values()) - macs[first]) * batch


def test_lines_of_a_step():
    graph = MODELS["resnet8"]()
    lines, _ = kernels.lines_of(graph, {"batch": 2, **TRAIN})
    found = {(line.layers[0], line.direction): line for line in lines}
    step = found["conv4", "backward_input"]
    assert step.shape == "16x32x32 -> 32x16x16 3x3 s2" and step.kernels == ["conv2d.flip", "conv2d.forward"]
    # dy and the weights are read, dx of the shortcut is added to, each once although a stride makes four phases of it
    assert step.bytes == 4 * (2 * 32 * 16 * 16 + 32 * 16 * 9 + 2 * 2 * 16 * 32 * 32)
    update = found["conv4", "update"]
    assert update.bytes == 4 * 5 * 32 * 16 * 9        # weight and velocity both ways, the gradient one way
    dense = {line.layers[0] for line in lines if line.dense}
    assert dense == {node.name for node in graph.nodes if node.op == "Conv2d"} - {"conv1"}


def test_depthwise_convolutions_are_not_in_the_summary():
    lines, _ = kernels.lines_of(MODELS["dscnn-kws"](), {"batch": 1})
    convolutions = [line for line in lines if line.op == "Conv2d" and line.direction == "forward"]
    assert [line.dense for line in convolutions] == [False] + [True] * 4         # a row of two, and of both one's work
    assert convolutions[1].shape == "64x25x5 -> 64x25x5 3x3 g64 + 64x25x5 -> 64x25x5 1x1"
    assert convolutions[1].macs == 64 * 125 * (9 + 64) and convolutions[1].kernels == ["separable.forward"]
    lines, _ = kernels.lines_of(MODELS["dscnn-kws"](), {"batch": 1, **TRAIN})
    convolutions = [line for line in lines if line.op == "Conv2d" and line.direction == "forward"]
    assert [line.dense for line in convolutions] == [False] + [False, True] * 4


def test_the_same_shape_is_one_line():
    def line(layer, direction="forward"):
        return kernels.Line("Conv2d", "16x8x8 -> 16x8x8 3x3", direction, ["conv2d.forward"], [layer], True, macs=1_000_000)
    times = np.array([[10.0, 30.0, 5.0], [20.0, 20.0, 5.0], [40.0, 60.0, 5.0]])
    found = kernels.merged([line("a"), line("b"), line("a", "backward_input")], times, np.array([200.0, 200.0, 400.0]))
    assert [(one.layers, one.us) for one in found] == [(["a", "b"], 20.0), (["a"], 5.0)]
    assert found[0].share == pytest.approx(0.5) and found[0].gflops == pytest.approx(100.0)
    run = kernels.KernelRun("net", 1, 1, True, 200.0, 10.0, found)
    assert run.summary() == {"forward": (found[0].share, found[0].share, 2), "backward_input": (found[1].share,) * 2 + (1,)}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_peak_adds_up(dtype):
    peak = Peak(2, dtype)
    assert peak.gflops() > 0
    data, lanes = peak._data[0], peak.lanes
    # x / 2 + 1 again and again: 2
    np.testing.assert_allclose(data[2 * lanes:], 2.0, rtol=1e-6)


def test_the_command(tmp_path, capsys):
    written = tmp_path / "kernels.json"
    assert main(["kernels", "digits-cnn", "--batch", "1", "--seconds", "0.01", "--json", str(written)]) == 0
    printed = capsys.readouterr().out
    assert "digits-cnn, batch 1, 1 thread, inference; peak " in printed and "training step; peak " in printed
    assert "on both sides, backward_weight: median " in printed
    data = json.loads(written.read_text())
    assert data["schema"] == kernels.SCHEMA and [run["training"] for run in data["runs"]] == [False, True]
    for run in data["runs"]:
        assert sum(line["macs"] for line in run["lines"] if line["direction"] == "forward") == 309_248
        assert all(line["us"] > 0 and line["share"] >= 0 for line in run["lines"]) and run["peak"] > 0
    assert data["runs"][1]["summary"]["forward"]["count"] == 1


@pytest.mark.parametrize("arguments, told", [(["vgg"], "there is no model 'vgg'"),
                                             (["digits-cnn", "--jobs", "last"], "there is no job 'last' here"),
                                             (["digits-cnn", "--threads", "9999"], "--threads is 9999; there are")])
def test_bad_arguments(arguments, told, capsys):
    assert main(["kernels", *arguments]) == 2
    assert told in capsys.readouterr().err
