"""Peers: the protocol with their processes, what is compared, what is reported, and what happens when one dies."""
from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

import microcnn as mc
from microcnn.errors import DataError, FileError, MicroCNNError, ModelError
from microcnn.tools.bench import catalog, peers, process, table, timing
from microcnn.tools.bench.__main__ import main
from microcnn.tools.bench.catalog import Peer
from microcnn.tools.bench.models import MODELS
from microcnn.tools.bench.process import Worker, Workers
from microcnn.tools.bench.recipe import Recipe
from microcnn.tools.bench.runners.twin import Twin
from microcnn.tools.bench.table import MARKERS, Report, write_readme
from microcnn.tools.bench.timing import Cell, Measured, Result, Turns, disagreement, measure

QUICK = ["--rounds", "2", "--seconds", "0.001", "--threads", "1"]


@pytest.fixture
def stand_ins(tmp_path, monkeypatch):
    """Peers that misbehave, each by its name, beside the runners."""
    folder = tmp_path / "runners"
    folder.mkdir()
    for path in process.RUNNERS.glob("*.py"):
        (folder / path.name).write_text(path.read_text())
    (folder / "stand_in.py").write_text((Path(__file__).parent / "stand_in.py").read_text())
    monkeypatch.setattr(process, "RUNNERS", folder)
    made = {name: Peer(name, "stand_in", name, ("infer",))
            for name in ("missing", "broken", "dies", "refuses", "nan", "zero", "hangs")}
    for where in (catalog, peers, table, timing):
        monkeypatch.setattr(where, "PEERS", {**catalog.PEERS, **made})
    return made


def test_microcnn_and_onnxruntime_on_the_smallest_network(tmp_path, capsys):
    written = tmp_path / "bench.json"
    code = main(["peers", "--models", "digits-cnn", "--peers", "microcnn,ort", "--batches", "2", "--json", str(written),
                 *QUICK])
    printed = capsys.readouterr().out
    assert code == 0, printed
    assert "geometric mean of 1" in printed and "a step that trains the last layer" in printed
    data = json.loads(written.read_text())
    assert data["schema"] == table.SCHEMA and set(data["versions"]) == {"microcnn", "ort"} and data["absent"] == {}
    found = {cell["job"]: cell for cell in data["cells"]}
    assert {job: set(cell["results"]) for job, cell in found.items()} == {
        "infer": {"microcnn", "ort"}, "train": {"microcnn"}, "last": {"microcnn"}}
    assert all((cell["macs"], cell["batch"], cell["threads"], cell["failed"]) == (309_248, 2, 1, {}) for cell in found.values())
    theirs = found["infer"]["results"]["ort"]
    assert theirs["agrees"] and len(theirs["rounds"]) == 2 and theirs["us"] == min(theirs["rounds"]) > 0
    again = Report.load(written)
    assert again.markdown().count("| digits-cnn | 2 | 1 |") == 3
    assert main(["peers", "--from", str(written)]) == 0
    assert "ort" in capsys.readouterr().out


def test_an_onnx_file_of_somebody_elses(tmp_path, capsys):
    path = tmp_path / "other.onnx"
    mc.save_onnx(mc.Sequential([mc.Conv2d(3, 3, stride=2, padding="same"), mc.BatchNorm2d(), mc.Tanh(), mc.AvgPool2d(2)],
                               input_shape=(2, 9, 9), name="inner").graph(), path)
    code = main(["peers", "--models", str(path), "--peers", "microcnn,ort", "--batches", "3", *QUICK])
    printed = capsys.readouterr().out
    assert code == 0 and "\nother " in printed
    assert "other does not train here: its output (3, 2, 2) is no scores of classes" in printed


def test_peers_that_misbehave_end_nothing(stand_ins, tmp_path, capsys):
    written = tmp_path / "bench.json"
    code = main(["peers", "--models", "digits-cnn", "--peers", "microcnn,missing,broken,dies,refuses,nan,zero",
                 "--jobs", "infer", "--batches", "1,2", "--json", str(written), *QUICK])
    printed = capsys.readouterr().out
    assert code == 1        # some do not agree
    assert "missing is left out: the module no_such_library_anywhere is not installed" in printed
    assert "broken is left out: does not start: RuntimeError: it does not want to start" in printed
    for batch in (1, 2):
        where = f"infer digits-cnn, batch {batch}, 1 thread"
        assert f"{where}: dies failed: its process died (exit code 7): what a library prints is no answer" in printed
        assert f"{where}: refuses failed: ValueError: no form for this model" in printed
        assert f"! {where}: zero does not compute what microcnn does" in printed
    cells = json.loads(written.read_text())["cells"]
    assert [set(cell["results"]) for cell in cells] == [{"microcnn", "nan", "zero"}] * 2
    assert all(cell["results"]["microcnn"]["agrees"] and not cell["results"]["nan"]["agrees"] for cell in cells)
    assert Report.load(written).measured[0].fastest() is None


def test_rounding_moves_losses_a_little(tmp_path):
    recipe = Recipe(MODELS["digits-cnn"](), tmp_path / "model")
    recipe.prepare(2)
    peer = catalog.PEERS["microcnn"]
    with Workers({}, 1, None, tmp_path) as workers:
        what = {"folder": str(recipe.folder), "job": "train", "batch": 2}
        losses = workers.get(peer).ask(600, do="prepare", outputs="", **what)["losses"]
        spread = workers.get(peer).ask(600, do="spread", **what)["spread"]
    assert losses[2] < losses[0] and len(spread) == 3 and 0 < max(spread) < 1e-4


def test_without_any_peer_nothing_is_written(stand_ins, tmp_path, capsys):
    written = tmp_path / "bench.json"
    assert main(["peers", "--models", "digits-cnn", "--peers", "missing", "--json", str(written), *QUICK]) == 1
    assert "nothing was measured" in capsys.readouterr().out and not written.exists()


def test_a_peer_that_does_not_answer_is_ended(stand_ins, tmp_path):
    recipe = Recipe(MODELS["digits-cnn"](), tmp_path / "model")
    recipe.prepare(1)
    worker = Worker(stand_ins["hangs"], sys.executable, 1, None, tmp_path)
    assert worker.version == "1.0"
    ask = {"do": "prepare", "folder": str(recipe.folder), "job": "infer", "batch": 1, "outputs": str(tmp_path / "y.npy")}
    assert worker.ask(0.2, **ask) == {"error": "no answer within 0.2 s, and was ended"}
    assert worker.process.poll() is not None
    assert "was ended" in worker.ask(1, do="time")["error"]
    worker.close()


def test_workers_end_with_the_block_and_come_back_after_death(stand_ins, tmp_path):
    recipe = Recipe(MODELS["digits-cnn"](), tmp_path / "model")
    peers = [stand_ins["dies"], stand_ins["zero"]]
    with Workers({}, 1, None, tmp_path) as workers:
        first = workers.get(stand_ins["dies"])
        found = measure(Cell("infer", "digits-cnn", 1, 1), recipe, peers, workers, Turns(1, 0.001), lambda text: None)
        assert set(found.failed) == {"dies"} and set(found.results) == {"zero"} and found.reference == "zero"
        second = workers.get(stand_ins["dies"])
        assert second is not first and second.process.poll() is None
        zero = workers.get(stand_ins["zero"])
    assert second.process.poll() is not None and zero.process.poll() is not None


@pytest.mark.parametrize("arguments, told", [
    (["--models", "vgg"], "there is no model 'vgg'"),
    (["--peers", "theano"], "there is no peer 'theano'; expected one of microcnn, torch"),
    (["--jobs", "sleep"], "there is no job 'sleep'; expected one of infer, train, last"),
    (["--python", "tf"], "--python tf: expected PEER=PATH"),
    (["--python", "tf=/no/such/python"], "/no/such/python is no program that can be run"),
    (["--core", "9999"], "--core 9999: this process may run on"),
    (["--json", "/no/such/folder/x.json"], "/no/such/folder/x.json: the folder /no/such/folder does not exist"),
    (["--chart", "figures.gif"], "figures.gif: expected a file that ends in .svg or .png"),
    (["--from", "/no/such.json"], "/no/such.json: cannot be read")])
def test_bad_arguments(arguments, told, capsys):
    assert main(["peers", *arguments]) == 2
    assert told in capsys.readouterr().err


def test_models_that_cannot_be_compared(tmp_path):
    build = mc.GraphBuilder("two")
    a = build(mc.ReLU(), build.input("a", (3,)))
    b = build(mc.Tanh(), build.input("b", (3,)))
    with pytest.raises(ModelError, match="two has 2 inputs and 1 outputs"):
        Recipe(build.graph(build(mc.Add(), a, b)), tmp_path)
    open_size = mc.Sequential([mc.ReLU()], input_shape=(3, 4, 4)).graph()
    open_size.inputs[0].shape = (3, None, 4)
    with pytest.raises(ModelError, match="leaves sizes of its input open"):
        Recipe(open_size, tmp_path)


def test_how_far_apart():
    wanted = np.array([[1.0, -2.0]])
    assert disagreement(wanted, wanted) == 0
    assert disagreement(wanted + 0.001, wanted) == pytest.approx(0.5)
    assert disagreement(wanted + 0.01, wanted) > 1
    assert disagreement(wanted * np.nan, wanted) == disagreement(wanted[:, :1], wanted) == float("inf")
    losses = [2.0, 1.9, 1.7]
    assert disagreement([2.0005, 1.9, 1.7], losses) < 1
    assert disagreement([2.01, 1.91, 1.71], losses) > 1
    assert disagreement([2.0, 2.0, 2.0], losses) > 1        # nothing is trained
    assert disagreement([2.0, 1.9, 1.8], losses) > 1        # no momentum
    assert disagreement([2.0, 1.9, 1.8], losses, first_step_only=True) == 0
    assert disagreement([2.0, float("nan"), 1.7], losses) == float("inf")
    assert disagreement([2.0, 1.9, 1.8], losses, spread=[0.0, 0.0, 0.05]) < 1
    assert disagreement([2.0, 1.8, 1.7], losses, spread=[0.0, 0.01, 0.05]) > 1


def some_report():
    cells = []
    for job in ("infer", "train"):
        for threads in (1, 2):
            measured = Measured(Cell(job, "resnet8", 8, threads), 12_501_632, [0.0, 0.02, 0.01], reference="microcnn")
            for name, us in (("microcnn", 100.0), ("torch", 400.0), ("ort", 200.0), ("jax", 50.0)):
                measured.results[name] = Result(us, [us], us, 9, name != "jax", 0.0 if name != "jax" else 7.0)
            cells.append(measured)
    return Report({"cpu": "a processor"}, cells, {"microcnn": "0.1.0", "torch": "2"}, {"tf": "not installed"})


def test_what_does_not_agree_does_not_count(tmp_path):
    report = some_report()
    assert [cell.fastest() for cell in report.measured] == ["ort"] * 4
    assert report.measured[0].lead() == 2.0
    assert report.summary("infer").startswith("microcnn is 2.00 times as fast as the fastest peer (geometric mean of 2")
    assert len(report.remarks()) == 8 and "they are 7.0 times as far apart" in report.remarks()[1]
    assert "rounding alone moves its losses by up to 0.02" in report.remarks()[0]
    report.save(tmp_path / "x.json")
    assert Report.load(tmp_path / "x.json").markdown() == report.markdown()
    (tmp_path / "x.json").write_text('{"schema": "microcnn.bench/1", "cells": [{}]}')
    with pytest.raises(FileError, match="no figures of this benchmark"):
        Report.load(tmp_path / "x.json")


def test_a_readme_without_a_place_is_refused_before_anything_is_measured(tmp_path):
    (tmp_path / "README.md").write_text("no place")
    for path, error in ((tmp_path / "README.md", DataError), (tmp_path / "nothing" / "README.md", FileError)):
        with pytest.raises(error):
            peers.main(["--peers", "microcnn", "--readme", str(path)])


def test_the_table_goes_between_the_markers(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{MARKERS[0]}\nold\n{MARKERS[1]}\nafter\n")
    write_readme(readme, some_report().markdown())
    text = readme.read_text()
    assert text.startswith("before\n<!-- bench -->\na processor") and text.endswith("\n<!-- end of bench -->\nafter\n")
    assert "| resnet8 | 8 | 1 | 100.0 us | ONNX Runtime | 200.0 us | 2.00 |" in text and "old" not in text
    readme.write_text("no place")
    with pytest.raises(DataError, match="has no place for the table"):
        write_readme(readme, "x")
    with pytest.raises(FileError, match="cannot be read"):
        write_readme(tmp_path / "nothing", "x")


def test_readme_has_a_place_for_the_table():
    text = (Path(__file__).resolve().parents[3] / "README.md").read_text()
    assert 0 < text.index(MARKERS[0]) < text.index(MARKERS[1])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")      # matplotlib's own
def test_the_chart(tmp_path):
    pytest.importorskip("matplotlib")
    from microcnn.tools.bench.chart import draw
    draw(some_report(), tmp_path / "a.svg")
    draw(some_report(), tmp_path / "b.svg")
    text = (tmp_path / "a.svg").read_text()
    assert text == (tmp_path / "b.svg").read_text()      # nothing in it but the figures
    assert "prefers-color-scheme: dark" in text and "currentColor" in text and "#010203" not in text
    assert all(word in text for word in ("Inference, 1 thread", "A whole training step, 2 threads", "ONNX Runtime", "resnet8"))
    assert "JAX" not in text        # it does not agree
    draw(some_report(), tmp_path / "c.png")
    assert (tmp_path / "c.png").read_bytes()[:4] == b"\x89PNG"


def test_without_matplotlib_the_remedy_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    from microcnn.tools.bench.chart import check_chart
    with pytest.raises(MicroCNNError, match=r"python -m pip install 'microcnn\[bench\]'"):
        check_chart(tmp_path / "x.svg")


def test_the_description_is_the_graph_in_numbers(tmp_path):
    graph = MODELS["lenet5-28"]()
    Recipe(graph, tmp_path)
    twin = Twin.load(tmp_path / "plain")
    assert [node.op for node in twin.nodes] == [node.op for node in graph.nodes]
    assert [node.op for node in twin.nodes if node.head] == ["Linear"]
    assert twin.trained(last=True) == [(twin.nodes[-1].name, "weight"), (twin.nodes[-1].name, "bias")]
    assert twin.nodes[0].attrs["pads"] == [2, 2, 2, 2]
    turned = twin.channels_last()
    assert turned.nodes[0].weights["weight"].shape == (5, 5, 1, 6)
    # the first linear layer reads (16, 5, 5) flattened: feature (c, h, w) stands at (h, w, c) now
    place = next(number for number, node in enumerate(twin.nodes) if node.op == "Linear")
    before, after = twin.nodes[place].weights["weight"], turned.nodes[place].weights["weight"]
    assert after.shape == (400, 120)
    np.testing.assert_array_equal(after[(3 * 5 + 4) * 16 + 7], before[:, (7 * 5 + 3) * 5 + 4])
