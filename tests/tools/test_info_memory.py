"""microcnn info --memory and --picture: the plan as tables, as JSON and as a file to look at."""
import json
import re
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest

import microcnn as mc
from microcnn.planned import Planned
from microcnn.tools import memory_table
from microcnn.tools.commands.info import draw_plan

from .command_line import run, small_graph


def planned(**how):
    return Planned(small_graph(), **{"batch": 16, "train": "all", "loss": "cross_entropy",
                                     "optimizer": mc.Adam(lr=0.01), **how})


def test_json_is_the_plan(capsys, model):
    code, out, err = run(capsys, "info", model, "--memory", "--batch", "16", "--json")
    assert code == 0 and not err
    plans = json.loads(out)["memory"]
    for key, expected in (("to_run", planned(train=None, loss=None, optimizer=None)), ("to_train", planned())):
        found, memory = plans[key], expected.memory
        for name in ("parameters", "gradients", "state", "activations", "scratch", "arena", "lower_bound", "peak",
                     "beside_parameters"):
            assert found[name] == getattr(memory, name)
        assert (found["batch"], found["bn"], found["dtype"]) == (16, "frozen", "float32")
        assert found["ratio"] == pytest.approx(memory.arena / memory.lower_bound, abs=1e-6)
        at, rows = found["peak_at"], expected.rows(found["peak_at"]["program"])
        assert at == {"program": memory.fullest.program, "row": memory.fullest.row, "rows": len(rows),
                      "layer": memory.peak_layer, "phase": memory.peak_phase}
        buffers = found["at_peak"]
        assert sum(buffer["bytes"] for buffer in buffers) == memory.peak
        assert [buffer["bytes"] for buffer in buffers] == sorted((b["bytes"] for b in buffers), reverse=True)
        for buffer in buffers:
            assert 0 <= buffer["offset"] <= memory.arena - buffer["bytes"]
            if buffer["first"] is None:
                assert buffer["last"] is buffer["from"] is buffer["to"] is None
                continue
            assert buffer["first"] <= at["row"] <= buffer["last"]
            for end, row in (("from", rows[buffer["first"]]), ("to", rows[buffer["last"]])):
                assert buffer[end] == {"layer": row.layer, "phase": row.part.partition("_")[0]}
        assert {b["kind"] for b in buffers if b["first"] is None} >= {"parameter"}
        assert found["layers"] == [{name: getattr(layer, name) for name in layer.__slots__} for layer in memory.layers]
    assert plans["to_train"]["peak_at"]["program"] == "train"


def test_tables(capsys, model):
    code, out, err = run(capsys, "info", model, "--memory", "--batch", "16")
    assert code == 0 and not err
    memory = planned().memory
    assert f"\n{memory.peak:,} bytes (" in out
    assert f"in row {memory.fullest.row + 1} of {memory.fullest.rows} of a training step: {memory.fullest.runs}\n" in out
    train = out[out.index("\nto train all, batch 16"):]
    shown = [block for block in memory.at_peak if block.bytes >= memory_table.NOTABLE * memory.peak]
    lines = re.findall(r"^(\S+) +(\S+(?: \S+)?) +(parameter|gradient|state|activation|scratch) +([\d,]+) ", train, re.M)
    assert [(layer, kind, int(size.replace(",", ""))) for layer, _, kind, size in lines] == [
        (block.layer, block.kind, block.bytes) for block in shown]
    rest = re.search(r"^(\d+) smaller ones +([\d,]+) ", train, re.M)
    assert int(rest[1]) == len(memory.at_peak) - len(shown)
    assert int(rest[2].replace(",", "")) + sum(block.bytes for block in shown) == memory.peak
    for layer in memory.layers:
        assert re.search(rf"^{layer.name} +{layer.op} ", train, re.M)
    assert re.search(rf"^live at the peak .* {memory.peak:,} ", out, re.M)
    assert re.search(rf"^arena without parameters: what a budget counts .* {memory.arena - memory.parameters:,} ", out, re.M)


def test_without_the_option_there_is_the_short_block(capsys, model):
    code, out, _ = run(capsys, "info", model)
    assert code == 0 and "arena: all that is allocated" in out and "at the peak" not in out
    code, out, _ = run(capsys, "info", model, "--json")
    assert set(json.loads(out)["memory"]["to_run"]) == {name for name, _ in memory_table.LINES}


def test_what_trains(capsys, model):
    code, out, _ = run(capsys, "info", model, "--memory", "--train", "none", "--json")
    assert code == 0 and set(json.loads(out)["memory"]) == {"to_run"}
    code, out, _ = run(capsys, "info", model, "--memory", "--train", "head")
    assert code == 0 and "\nto train head, batch 1\n" in out
    code, out, err = run(capsys, "info", model, "--memory", "--train", "nothing*,linear*")
    assert code == 2 and not out and '"nothing*" matches no weight' in err and err.count("\n") == 1


def test_a_model_without_weights(capsys, tmp_path):
    relu = mc.graph.Node("Relu", "relu", ("x",), ("y",))
    mc.Graph([mc.graph.Input("x", (3, 4, 4))], ["y"], [relu], {}).save(tmp_path / "m.mcnn")
    code, out, _ = run(capsys, "info", tmp_path / "m.mcnn", "--memory", "--picture", tmp_path / "p.svg")
    assert code == 0 and "no weight that can be trained" in out and "to run, batch 1" in out and "to train" not in out
    assert "prediction" in (tmp_path / "p.svg").read_text()
    code, _, err = run(capsys, "info", tmp_path / "m.mcnn", "--memory", "--train", "head")
    assert code == 2 and "no weight that can be trained" in err


def test_where_there_is_no_plan(capsys, tmp_path):
    relu = mc.graph.Node("Relu", "relu", ("x",), ("y",))
    mc.Graph([mc.graph.Input("x", (3, None, None))], ["y"], [relu], {}).save(tmp_path / "m.mcnn")
    for option in (["--memory"], ["--picture", tmp_path / "p.svg"]):
        code, out, err = run(capsys, "info", tmp_path / "m.mcnn", *option)
        assert code == 2 and not out and "--shape x=3,32,32" in err and err.count("\n") == 1
        assert not (tmp_path / "p.svg").exists()
    code, _, err = run(capsys, "info", tmp_path / "m.mcnn", "--memory", "--shape", "3,5,7", "--batch", 2**24 + 1)
    assert code == 2 and "expected an integer from 1" in err
    code, _, err = run(capsys, "info", tmp_path / "m.mcnn", "--memory", "--batch", "0")
    assert code == 2 and "expected at least 1" in err


@pytest.mark.parametrize("suffix", [".svg", ".SVG", ".html"])
def test_the_picture(capsys, tmp_path, model, suffix):
    target = tmp_path / f"plan{suffix}"
    code, out, err = run(capsys, "info", model, "--batch", "16", "--bn", "batch", "--picture", target)
    assert code == 0 and not err and out.endswith(f"\nsaved {target}\n")
    text = target.read_text()
    assert "To train all, batch 16, float32, batch norm on batch statistics: a training step" in text
    if suffix == ".html":
        assert text.startswith("<!doctype html>") and "<h1>" in text
    else:
        assert ElementTree.fromstring(text.encode()).get("viewBox").startswith("0 0 1120 ")


def test_the_picture_of_what_needs_most(tmp_path):
    """That may be prediction, where it goes by Winograd's algorithm: the picture says so."""
    graph = mc.Sequential([mc.Conv2d(64, 3, padding=1), mc.ReLU(), mc.Conv2d(64, 3, padding=1), mc.ReLU(), mc.AvgPool2d(8),
                           mc.Flatten(), mc.Linear(3)], input_shape=(3, 8, 8)).graph()
    planned = Planned(graph, train="all", loss="cross_entropy", optimizer=mc.SGD(lr=0.01, momentum=0.9), winograd=True)
    assert planned.memory.fullest.program == "predict"
    draw_plan(tmp_path / "p.svg", "to train", planned, SimpleNamespace(model="m.mcnn", train="all", batch=1))
    assert "prediction, which needs more than a training step" in (tmp_path / "p.svg").read_text()


def test_the_picture_beside_json(capsys, tmp_path, model):
    code, out, err = run(capsys, "info", model, "--json", "--picture", tmp_path / "p.svg")
    assert code == 0 and not err and json.loads(out)["picture"] == str(tmp_path / "p.svg")
    assert (tmp_path / "p.svg").stat().st_size > 1000


def test_pictures_that_cannot_be_written(capsys, tmp_path, model):
    before = model.read_bytes()
    (tmp_path / "folder.svg").mkdir()
    (tmp_path / "link.svg").symlink_to(model)
    cases = {tmp_path / "missing" / "p.svg": "does not exist; make it first", tmp_path / "folder.svg": "is a folder",
             tmp_path / "p.png": "expected a file that ends in .svg or .html", "": "expected a file that ends",
             model: "expected a file that ends in .svg", tmp_path / "link.svg": "is the model itself"}
    for target, told in cases.items():
        code, out, err = run(capsys, "info", model, "--picture", target)
        assert code == 2 and not out and told in err and err.count("\n") == 1, target
    assert model.read_bytes() == before and (tmp_path / "link.svg").is_symlink()


def test_a_model_that_is_refused_has_no_plan(capsys, tmp_path):
    onnx = pytest.importorskip("onnx")
    helper = onnx.helper
    sizes = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 4, 5]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Tan", ["x"], ["y"])], "g", sizes[:1], sizes[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), tmp_path / "m.onnx")
    code, _, err = run(capsys, "info", tmp_path / "m.onnx", "--memory")
    assert code == 2 and "Tan" in err and err.count("\n") == 1
