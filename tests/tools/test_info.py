"""microcnn info: what a model is, what it takes, what is refused and why."""
import json

import pytest

import microcnn as mc

from .command_line import run


def test_info(capsys, model):
    code, out, err = run(capsys, "info", model, "--batch", "4")
    assert code == 0 and not err
    for text in ("1 x 8 x 8", "Conv2d", "Linear", "MaxPool2d", "to run, batch 4", "to train all, batch 4", "arena"):
        assert text in out
    code, out, _ = run(capsys, "info", model, "--json", "--batch", "4")
    facts = json.loads(out)
    graph = mc.load(model)
    assert facts["parameters"] == graph.parameter_count() == 4 * 9 + 4 + 64 * 3 + 3
    assert facts["macs"] == 8 * 8 * 4 * 9 + 64 * 3
    assert facts["memory"]["to_run"]["arena"] == graph.compile(batch=4).memory.arena
    assert facts["memory"]["to_train"]["state"] >= facts["memory"]["to_run"]["parameters"]
    assert [layer["op"] for layer in facts["layers"]] == [node.op for node in graph.nodes]


def test_info_plans_what_finetune_would_take(capsys, model):
    """The command's options and the library's arguments give one plan, with or without a budget."""
    graph = mc.load(model)

    def planned(*arguments):
        code, out, err = run(capsys, "info", model, "--json", "--batch", "4", *arguments)
        assert code == 0 and not err
        return json.loads(out)

    def compiled(**how):
        return graph.compile(**{"batch": 4, "train": "all", "loss": "cross_entropy", "optimizer": mc.Adam(lr=0.1), **how})
    assert planned()["memory"]["to_train"]["arena"] == compiled().memory.arena
    assert planned("--optimizer", "sgd", "--micro-batch", "2")["memory"]["to_train"]["arena"] == \
        compiled(optimizer=mc.SGD(lr=0.1, momentum=0.9), micro_batch=2).memory.arena
    assert planned("--recompute")["memory"]["to_train"]["arena"] == compiled(recompute=True).memory.arena
    whole = compiled().memory.beside_parameters
    facts, net = planned("--budget", str(whole - 64)), compiled(budget=whole - 64)
    assert facts["memory"]["to_train"]["arena"] == net.memory.arena and net.memory.beside_parameters < whole
    assert facts["budget"]["bytes"] == net.choice.bytes and facts["budget"]["text"] == str(net.choice)
    code, out, _ = run(capsys, "info", model, "--batch", "4", "--budget", str(whole - 64))
    assert code == 0 and f"budget {whole - 64:,} bytes: the plan takes {net.choice.bytes:,}" in out
    assert f"\n--train all --optimizer adam --budget {whole - 64}: {facts['trains']:,} of " in out
    assert "to train all, batch 4" in out           # it fits, with less kept for backward
    least = graph.compile(batch=1, train=["linear1.bias"], loss="cross_entropy", optimizer=mc.Adam(), winograd=False).memory
    code, out, _ = run(capsys, "info", model, "--budget", str(least.beside_parameters))
    assert code == 0 and "not everything can train" in out and "to train what fits the budget, batch 1" in out
    code, _, err = run(capsys, "info", model, "--budget", "1KB")
    assert code == 2 and "the smallest budget that works" in err
    most = graph.compile(batch=4).memory
    facts = planned("--train", "none", "--budget", str(most.beside_parameters - 64))
    assert facts["budget"]["bytes"] <= most.beside_parameters - 64 and facts["memory"]["to_run"]["arena"] < most.arena
    code, _, err = run(capsys, "info", model, "--train", "none", "--budget", "1KB")
    assert code == 2 and "the smallest budget that works" in err
    code, _, err = run(capsys, "info", model, "--train", "none", "--recompute")
    assert code == 2 and "nothing trains" in err
    code, _, err = run(capsys, "info", model, "--batch", "4", "--micro-batch", "5")
    assert code == 2 and "micro_batch" in err


def test_info_where_sizes_are_open(capsys, tmp_path):
    graph = mc.Graph([mc.graph.Input("x", (3, None, None))], ["y"],
                     [mc.graph.Node("Relu", "relu", ("x",), ("y",))], {})
    graph.save(tmp_path / "open.mcnn")
    code, out, _ = run(capsys, "info", tmp_path / "open.mcnn")
    assert code == 0 and "3 x ? x ?" in out and "--shape x=3,32,32" in out and "arena" not in out
    assert "input_shapes" not in out
    code, _, err = run(capsys, "profile", tmp_path / "open.mcnn")
    assert code == 2 and "--shape x=3,32,32" in err and "input_shapes" not in err
    code, _, err = run(capsys, "info", tmp_path / "open.mcnn", "--shape", "x=1,5,7")
    assert code == 2 and "--shape x=1,5,7 does not fit; the model says (3, ?, ?)" in err
    code, out, _ = run(capsys, "info", tmp_path / "open.mcnn", "--shape", "3,5,7")
    assert code == 0 and "3 x 5 x 7" in out and "arena" in out


def test_info_of_a_quantized_model(capsys, tmp_path):
    nodes = [mc.graph.Node("QuantizeLinear", "round", ("x",), ("q",), {"axis": 0, "scale": (0.5,), "zero_point": (3,),
                                                                        "dtype": "uint8"}),
             mc.graph.Node("Relu", "relu", ("q",), ("y",))]
    mc.Graph([mc.graph.Input("x", (3, 4))], ["y"], nodes, {}).save(tmp_path / "q.mcnn")
    code, out, _ = run(capsys, "info", tmp_path / "q.mcnn")
    assert code == 0 and "3 x 4 uint8" in out and "to run, batch 1" in out
    code, out, _ = run(capsys, "info", tmp_path / "q.mcnn", "--json")
    assert json.loads(out)["outputs"] == [{"name": "y", "shape": [3, 4], "dtype": "uint8"}]


def test_sizes_that_import_needs(capsys, tmp_path):
    onnx = pytest.importorskip("onnx")
    helper = onnx.helper
    x, y = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", 3, size, "?"])
            for name, size in (("x", "?"), ("y", None)))
    nodes = [helper.make_node("Split", ["x"], ["a", "b"], axis=2), helper.make_node("Add", ["a", "b"], ["y"])]
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", [x], [y]), opset_imports=[helper.make_opsetid("", 13)],
                                ir_version=8), tmp_path / "m.onnx")
    code, out, _ = run(capsys, "info", tmp_path / "m.onnx")
    assert code == 0 and "whose size is open; give --shape NAME=3,32,32" in out
    code, out, _ = run(capsys, "info", tmp_path / "m.onnx", "--shape", "3,6,5")
    assert code == 0 and "3 x 3 x 5" in out and "arena" in out
    code, _, err = run(capsys, "info", tmp_path / "m.onnx", "--shape", "3,7,5")
    assert code == 0 and not err


def test_info_of_a_model_that_cannot_run(capsys, tmp_path):
    onnx = pytest.importorskip("onnx")
    helper = onnx.helper
    sizes = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 4, 5]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Tan", ["x"], ["h"], name="first"),
                               helper.make_node("Hardmax", ["h"], ["y"], name="second")], "g", sizes[:1], sizes[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), tmp_path / "m.onnx")
    code, out, _ = run(capsys, "info", tmp_path / "m.onnx")
    assert code == 0 and "cannot run" in out and "Tan" in out and "Hardmax" in out and "2 nodes of opset 18" in out
    code, out, _ = run(capsys, "info", tmp_path / "m.onnx", "--json")
    assert code == 0 and "Hardmax" in " ".join(json.loads(out)["refused"])
    code, _, err = run(capsys, "profile", tmp_path / "m.onnx")
    assert code == 2 and err.count("\n") == 1 and "Tan" in err and "Hardmax" in err
