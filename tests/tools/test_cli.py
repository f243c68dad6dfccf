"""The command: what it prints, what it writes, and one clear line for everything that is wrong."""
import json
import signal

import numpy as np
import pytest

import microcnn as mc
from microcnn.tools import cli

from .command_line import run, small_graph, start, stripes


@pytest.fixture
def odd_files(tmp_path, model, data):
    """Files that something is wrong with."""
    x, y = stripes(20)
    np.savez(tmp_path / "labels.npz", x=x, y=y + 3)
    np.savez(tmp_path / "large.npz", x=np.zeros((5, 9, 9)), y=np.zeros(5, np.int64))
    np.savez(tmp_path / "nan.npz", x=np.full((5, 8, 8), np.nan), y=np.zeros(5, np.int64))
    np.savez(tmp_path / "none.npz", x=x[:0], y=y[:0])
    np.savez(tmp_path / "no_y.npz", x=x)
    np.savez(tmp_path / "other.npz", images=x)
    np.savez(tmp_path / "floats.npz", x=x, y=y.astype(np.float64))
    (tmp_path / "text.npz").write_text("not a zip file")
    (tmp_path / "cut.npz").write_bytes(data.read_bytes()[:300])
    (tmp_path / "cut.mcnn").write_bytes(model.read_bytes()[:300])
    (tmp_path / "text.onnx").write_text("not a model")
    (tmp_path / "folder.mcnn").mkdir()
    return tmp_path


BAD = [
    ("info", "missing.onnx", "missing.onnx: no such file"),
    ("info", "data.npz", "expected a file that ends in .onnx or .mcnn"),
    ("info", "folder.mcnn", "is a folder"),
    ("info", "cut.mcnn", "incomplete"),
    ("info", "text.onnx", "text.onnx"),
    ("info", "small.mcnn --batch 0", "--batch: 0 is too small"),
    ("info", "small.mcnn --batch many", "'many' is not a whole number"),
    ("info", "small.mcnn --shape 3,x", "expected NAME=3,32,32"),
    ("info", "small.mcnn --shape nobody=1,8,8", '--shape names "nobody", which is no input'),
    ("info", "small.mcnn --train nobody.*", "nobody.*"),
    ("info", "small.mcnn --dtype float16", "invalid choice: 'float16'"),
    ("profile", "missing.mcnn", "no such file"),
    ("profile", "small.mcnn --train nobody", "nobody"),
    ("profile", "small.mcnn --batch 1,0", "0 is too small"),
    ("profile", "small.mcnn --json nowhere/p.json", "does not exist"),
    ("profile", "small.mcnn --seconds 0", "expected more than 0"),
    ("profile", "small.mcnn --train --loss hinge", "hinge"),
    ("evaluate", "small.mcnn", "arguments are required: --data"),
    ("evaluate", "small.mcnn --data missing.npz", "no such file"),
    ("evaluate", "small.mcnn --data text.npz", "is no .npz file"),
    ("evaluate", "small.mcnn --data cut.npz", "truncated or damaged"),
    ("evaluate", "small.mcnn --data other.npz", "expected x and y"),
    ("evaluate", "small.mcnn --data no_y.npz", "add the targets"),
    ("evaluate", "small.mcnn --data none.npz", "is empty"),
    ("evaluate", "small.mcnn --data nan.npz", "NaN"),
    ("evaluate", "small.mcnn --data large.npz", "samples have shape (9, 9)"),
    ("evaluate", "small.mcnn --data labels.npz", "labels run from 0 to 2"),
    ("evaluate", "small.mcnn --data floats.npz", "class numbers are integers"),
    ("evaluate", "small.mcnn --data data.npz --scale big", "'big' is no number"),
    ("evaluate", "small.mcnn --data data.npz --scale 0", "scale"),
    ("evaluate", "small.mcnn --data data.npz --mean 1,2,3", "3 numbers per channel"),
    ("predict", "small.mcnn --data large.npz", "samples have shape (9, 9)"),
    ("predict", "small.mcnn --data data.npz --out y.csv", "ends in .npz"),
    ("predict", "small.mcnn --data data.npz --out nowhere/y.npz", "does not exist"),
    ("finetune", "small.mcnn --data labels.npz", "labels run from 0 to 2"),
    ("finetune", "small.mcnn --data data.npz --train nobody.*", "nobody.*"),
    ("finetune", "small.mcnn --data data.npz --out nowhere/t.mcnn", "the folder nowhere does not exist"),
    ("finetune", "small.mcnn --data data.npz --out tuned.h5", "ends in .onnx or .mcnn"),
    ("finetune", "small.mcnn --data data.npz --out small.mcnn", "is the model itself"),
    ("finetune", "small.mcnn --data data.npz --out folder.mcnn", "is a folder"),
    ("finetune", "small.mcnn --data data.npz --epochs 0", "--epochs: 0 is too small"),
    ("finetune", "small.mcnn --data data.npz --lr -1", "expected more than 0"),
    ("finetune", "small.mcnn --data data.npz --lr nan", "not finite"),
    ("finetune", "small.mcnn --data data.npz --momentum 0.9", "--momentum belongs to sgd"),
    ("finetune", "small.mcnn --data data.npz --loss hinge", "hinge"),
    ("finetune", "small.mcnn --data data.npz --test large.npz", "samples have shape (9, 9)"),
    ("warmup", "small.mcnn --train --batch 16000000 --dtype float64", "Use a smaller batch"),
    ("warmup", "small.mcnn --batch 99999999", "batch is 99999999"),
    ("convert", "small.mcnn small.txt", "ends in .onnx or .mcnn"),
    ("convert", "small.mcnn small.mcnn", "is the model itself"),
    ("convert", "small.mcnn scaled.mcnn --mean 1,2,3", "3 numbers per channel"),
    ("convert", "small.mcnn scaled.mcnn --scale 0", "scale is 0.0"),
    ("convert", "missing.onnx small.mcnn", "no such file"),
    ("warmup", "missing.onnx", "no such file"),
    ("doctor", "--threads 0", "0 is too small"),
    ("paint", "", "invalid choice: 'paint'"),
]


@pytest.mark.parametrize(("command", "rest", "text"), BAD, ids=[f"{c} {r}" for c, r, _ in BAD])
def test_bad_input_is_one_line(capsys, monkeypatch, odd_files, command, rest, text):
    """Exit code 2, one line on standard error, nothing else, and no file made or changed."""
    monkeypatch.chdir(odd_files)
    before = {path.name: path.read_bytes() for path in odd_files.iterdir() if path.is_file()}
    code, out, err = run(capsys, command, *rest.split())
    assert (code, out) == (2, "")
    assert err.startswith("microcnn: error: ") and err.count("\n") == 1 and "Traceback" not in err
    assert text in err
    assert {path.name: path.read_bytes() for path in odd_files.iterdir() if path.is_file()} == before


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_has_help(capsys, command):
    code, out, err = run(capsys, command, "--help")
    assert code == 0 and out.startswith(f"usage: microcnn {command}") and not err


def test_help_and_version(capsys):
    code, out, _ = run(capsys)
    assert code == 0 and all(command in out for command in cli.COMMANDS)
    assert run(capsys, "--version") == (0, f"microcnn {mc.__version__}\n", "")


def test_a_bug_is_named_as_one(capsys, monkeypatch, model):
    def broken(*_):
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("microcnn.tools.commands.info.load_model", broken)
    code, _, err = run(capsys, "info", model)
    assert code == 3 and err.count("\n") == 1
    assert "ZeroDivisionError: division by zero; this is a bug in microcnn" in err and "--traceback" in err
    code, _, err = run(capsys, "info", model, "--traceback")
    assert code == 3 and "Traceback (most recent call last)" in err


def test_interrupt(capsys, monkeypatch, model):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("microcnn.tools.commands.info.load_model", interrupted)
    assert run(capsys, "info", model) == (130, "", "microcnn: interrupted\n")


def test_broken_pipe_is_quiet(model):
    process = start("info", model, "--json")
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait() in (0, 141)


def test_convert_both_ways(capsys, tmp_path):
    onnx = pytest.importorskip("onnx")
    graph = small_graph()
    mc.save_onnx(graph, tmp_path / "a.onnx")
    assert run(capsys, "convert", tmp_path / "a.onnx", tmp_path / "b.mcnn")[0] == 0
    assert run(capsys, "convert", tmp_path / "b.mcnn", tmp_path / "c.onnx")[0] == 0
    first, last = onnx.load(tmp_path / "a.onnx"), onnx.load(tmp_path / "c.onnx")
    onnx.checker.check_model(last)
    assert [n.name for n in first.graph.node] == [n.name for n in last.graph.node]
    weights = [{t.name: onnx.numpy_helper.to_array(t) for t in m.graph.initializer} for m in (first, last)]
    assert weights[0].keys() == weights[1].keys()
    for name, array in weights[0].items():
        np.testing.assert_array_equal(array, weights[1][name])


@pytest.mark.parametrize("suffix", [".mcnn", ".onnx"])
def test_finetune_evaluate_predict(capsys, tmp_path, data, suffix):
    """The whole way: tune, keep the best, measure, predict; the normalisation stays with a .mcnn file."""
    path = tmp_path / f"small{suffix}"
    if suffix == ".onnx":
        pytest.importorskip("onnx")
        mc.save_onnx(small_graph(), path)
    else:
        small_graph().save(path)
    out = tmp_path / f"small-tuned{suffix}"
    code, text, err = run(capsys, "finetune", path, "--data", data, "--epochs", "12", "--batch", "8", "--lr", "0.01",
                          "--scale", "1/255")
    assert code == 0 and out.exists()
    for expected in ("arena", "before", "epoch 12/12", "samples/s", "kept epoch", f"saved {out}"):
        assert expected in text
    assert ("does not hold this normalisation" in err) == (suffix == ".onnx")
    again = [] if suffix == ".mcnn" else ["--scale", "1/255"]
    code, text, _ = run(capsys, "evaluate", out, "--data", data, *again)
    assert code == 0 and text.startswith("60 samples: loss ")
    assert float(text.split("accuracy ")[1].rstrip("%\n")) > 90
    code, text, _ = run(capsys, "predict", out, "--data", data, "--out", tmp_path / "y.npz", *again)
    assert code == 0 and "sample" in text and "classes:" in text and "label" in text
    with np.load(tmp_path / "y.npz") as stored:
        assert stored["y"].shape == (60, 3)
        assert (stored["y"].argmax(1) == stripes(60)[1]).mean() > 0.9


def test_normalisation_goes_where_a_file_can_hold_it(capsys, tmp_path, model, data):
    """A model built in Python keeps it through .onnx and back; the metadata of an .onnx file stays as it was."""
    pytest.importorskip("onnx")
    code, _, err = run(capsys, "finetune", model, "--data", data, "--scale", "1/255", "--mean", "0.5", "--epochs", "1",
                       "--out", tmp_path / "a.onnx")
    assert code == 0 and not err
    code, _, err = run(capsys, "convert", tmp_path / "a.onnx", tmp_path / "b.mcnn")
    assert code == 0 and not err
    assert mc.load(tmp_path / "b.mcnn").meta == {"scale": pytest.approx(1 / 255), "mean": 0.5}
    code, _, err = run(capsys, "finetune", tmp_path / "b.mcnn", "--data", data, "--std", "0.25", "--epochs", "1",
                       "--out", tmp_path / "c.onnx")
    assert code == 0 and "does not hold this normalisation" in err
    graph = mc.load(tmp_path / "b.mcnn")
    graph.meta["labels"] = ["lying", "standing", "none"]
    graph.save(tmp_path / "d.mcnn")
    code, out, err = run(capsys, "predict", tmp_path / "d.mcnn", "--data", data)
    assert code == 0 and "standing: " in out
    code, _, err = run(capsys, "convert", tmp_path / "d.mcnn", tmp_path / "d.onnx")
    assert code == 0 and "does not hold labels" in err


def test_convert_stores_a_normalisation(capsys, tmp_path, model, data):
    code, _, err = run(capsys, "convert", model, tmp_path / "a.mcnn", "--scale", "1/255", "--mean", "0.25")
    assert code == 0 and not err
    assert mc.load(tmp_path / "a.mcnn").meta == {"scale": pytest.approx(1 / 255), "mean": 0.25}
    code, given, _ = run(capsys, "evaluate", model, "--data", data, "--scale", "1/255", "--mean", "0.25")
    code, stored, err = run(capsys, "evaluate", tmp_path / "a.mcnn", "--data", data)
    assert code == 0 and stored == given and not err
    # what is given wins over what is stored, which else stays
    assert run(capsys, "convert", tmp_path / "a.mcnn", tmp_path / "b.mcnn", "--mean", "0.5")[0] == 0
    assert mc.load(tmp_path / "b.mcnn").meta == {"scale": pytest.approx(1 / 255), "mean": 0.5}


def test_the_metadata_of_an_imported_file_stays(capsys, tmp_path, model):
    pytest.importorskip("onnx")
    assert run(capsys, "convert", model, tmp_path / "a.onnx")[0] == 0
    assert run(capsys, "convert", tmp_path / "a.onnx", tmp_path / "b.mcnn", "--std", "0.5")[0] == 0
    assert mc.load(tmp_path / "b.mcnn").meta == {"std": 0.5}
    code, _, err = run(capsys, "convert", tmp_path / "b.mcnn", tmp_path / "c.onnx")
    assert code == 0 and "does not hold this normalisation" in err and err.count("\n") == 1


def test_regression(capsys, tmp_path):
    """One output that is no class: mean squared error, no accuracy, the loss decides."""
    x, _ = stripes(80)
    y = (x[:, :, 0].mean(axis=1) / 255).astype(np.float64)
    np.savez(tmp_path / "d.npz", x_train=x[:60], y_train=y[:60], x_test=x[60:], y_test=y[60:])
    mc.Sequential([mc.Conv2d(4, 3, padding=1), mc.ReLU(), mc.Flatten(), mc.Linear(1)],
                  input_shape=(1, 8, 8)).graph().save(tmp_path / "r.mcnn")
    code, out, err = run(capsys, "finetune", tmp_path / "r.mcnn", "--data", tmp_path / "d.npz", "--scale", "1/255",
                         "--epochs", "8", "--batch", "8", "--lr", "0.01", "--optimizer", "adamw")
    assert code == 0, err
    assert "on 60 samples, validating on 20" in out and "the best in validation: loss " in out and "accuracy" not in out
    code, out, _ = run(capsys, "evaluate", tmp_path / "r-tuned.mcnn", "--data", tmp_path / "d.npz")
    assert code == 0 and out.startswith("20 samples: loss 0.0") and "accuracy" not in out
    code, out, _ = run(capsys, "predict", tmp_path / "r-tuned.mcnn", "--data", tmp_path / "d.npz")
    assert code == 0 and out.startswith("output: 20 x 1, from ")


def test_several_inputs_and_outputs(capsys, tmp_path, data):
    """Data files hold one array of samples: what does not fit that is said, the rest works."""
    build = mc.GraphBuilder()
    x = build.input("image", (1, 8, 8))
    features = build(mc.Flatten(), x)
    build.graph(build(mc.Linear(3), features), build(mc.Linear(2), features)).save(tmp_path / "two.mcnn")
    code, out, _ = run(capsys, "predict", tmp_path / "two.mcnn", "--data", data, "--out", tmp_path / "y.npz")
    assert code == 0
    with np.load(tmp_path / "y.npz") as stored:
        assert sorted(array.shape for array in stored.values()) == [(60, 2), (60, 3)]
    for command in ("finetune", "evaluate"):
        code, _, err = run(capsys, command, tmp_path / "two.mcnn", "--data", data)
        assert code == 2 and "the model has 2 outputs" in err and "use the Python interface" in err
    build = mc.GraphBuilder()
    a, b = build.input("a", (1, 8, 8)), build.input("b", (1, 8, 8))
    build.graph(build(mc.Linear(3), build(mc.Flatten(), build(mc.Add(), a, b)))).save(tmp_path / "in.mcnn")
    for command in ("finetune", "evaluate", "predict"):
        code, _, err = run(capsys, command, tmp_path / "in.mcnn", "--data", data)
        assert code == 2 and "the model has 2 inputs, a, b" in err
    code, out, _ = run(capsys, "profile", tmp_path / "in.mcnn", "--train", "--repeats", "2")
    assert code == 0 and "Linear" in out
    code, _, err = run(capsys, "info", tmp_path / "in.mcnn", "--shape", "1,8,8")
    assert code == 2 and "--shape 1,8,8 names no input" in err


def test_sizes_come_from_the_data(capsys, tmp_path, data):
    graph = small_graph()
    graph.inputs[0] = mc.graph.Input("input", (1, None, None))
    graph.save(tmp_path / "open.mcnn")
    code, out, err = run(capsys, "evaluate", tmp_path / "open.mcnn", "--data", data)
    assert code == 0 and out.startswith("60 samples"), err


def test_only_the_head_trains(capsys, tmp_path, model, data):
    assert run(capsys, "finetune", model, "--data", data, "--train", "head", "--out", tmp_path / "t.mcnn", "--epochs",
               "10", "--optimizer", "sgd", "--lr", "0.1", "--scale", "1/255")[0] == 0
    before, after = mc.load(model), mc.load(tmp_path / "t.mcnn")
    changed = {name for name in before.weights if not np.array_equal(before.weights[name], after.weights[name])}
    assert changed <= before.head() and changed


def test_numbers_as_stored_are_noted(capsys, model, data):
    code, _, err = run(capsys, "evaluate", model, "--data", data)
    assert code == 0 and "the samples are uint8" in err and "--scale" in err
    assert run(capsys, "evaluate", model, "--data", data, "--scale", "1/255")[2] == ""


def test_the_model_where_what_trains_is_expected(capsys, model):
    code, _, err = run(capsys, "profile", "--train", model)
    assert code == 2 and "looks like the model" in err and "--train all" in err


def test_a_failure_leaves_the_output_alone(capsys, tmp_path, model, data):
    out = tmp_path / "tuned.mcnn"
    out.write_bytes(b"what was there before")
    code, _, err = run(capsys, "finetune", model, "--data", data, "--out", out, "--optimizer", "sgd", "--lr", "1e30",
                       "--epochs", "3")
    assert code == 2 and "the loss is" in err and err.count("\n") == 1
    assert out.read_bytes() == b"what was there before"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_ctrl_c_keeps_what_was_reached(tmp_path, model, data):
    out = tmp_path / "tuned.mcnn"
    process = start("finetune", model, "--data", data, "--out", out, "--epochs", "1000000", "--lr", "0.01", "--scale",
                    "1/255", "--batch", "8")
    with process:
        seen = ""
        for line in process.stdout:
            seen += line
            if "epoch 20/" in line:
                process.send_signal(signal.SIGINT)
                break
        rest, err = process.stdout.read(), process.stderr.read()
        assert process.wait(60) == 130, seen + rest + err
    assert "interrupted: what was reached is kept" in rest and f"saved {out}" in rest
    assert "Traceback" not in err
    tuned = mc.load(out)
    assert tuned.meta["scale"] == pytest.approx(1 / 255)
    assert any(not np.array_equal(tuned.weights[name], array) for name, array in mc.load(model).weights.items())


def test_mcnn_needs_numba_and_numpy_only(tmp_path, model, data):
    """Everything but convert works where neither onnx nor rich can be imported."""
    before = ("class Refuse:\n"
              "    def find_spec(self, name, path=None, target=None):\n"
              "        if name.partition('.')[0] in ('onnx', 'rich', 'onnxruntime', 'sklearn', 'matplotlib'):\n"
              "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
              "sys.meta_path.insert(0, Refuse())\n"
              "from microcnn.tools.cli import main\n"
              "for line in sys.argv.pop().split(';'):\n"
              "    code = main(line.split())\n"
              "    assert code == 0, (line, code)\n")
    commands = (f"info {model} --memory --picture plan.svg;info {model} --picture plan.html;profile {model} --repeats 2;"
                f"finetune {model} --data {data} --epochs 1;evaluate {model} --data {data};predict {model} --data {data};"
                f"warmup {model};doctor")
    process = start("--version", commands, before=before, cwd=tmp_path)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, out + err
    assert (tmp_path / "small-tuned.mcnn").exists()


def test_onnx_is_asked_for_where_it_is_missing(tmp_path, model):
    before = "sys.modules['onnx'] = None"
    process = start("convert", model, tmp_path / "m.onnx", before=before)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 2 and err.count("\n") == 1 and "onnx" in err and "install" in err


def test_profile(capsys, tmp_path, model):
    code, out, _ = run(capsys, "profile", model, "--train", "--batch", "2", "--repeats", "5", "--json",
                       tmp_path / "p.json")
    assert code == 0 and "train_step, batch 2" in out and "not accounted for" in out and "backward" in out
    facts = json.loads((tmp_path / "p.json").read_text())
    assert facts["schema"] == "microcnn.profile/1" and facts["conditions"]["batch"] == 2
    code, out, _ = run(capsys, "profile", model, "--batch", "1,2", "--threads", "1", "--repeats", "3", "--json",
                       tmp_path / "q.json")
    assert code == 0 and out.count("predict, batch") == 2
    facts = json.loads((tmp_path / "q.json").read_text())
    assert [run["conditions"]["batch"] for run in facts["runs"]] == [1, 2]


def test_doctor(capsys):
    code, out, _ = run(capsys, "doctor", "--json")
    report = json.loads(out)
    assert code == 0 and report["problems"] == []
    assert report["self_test"]["passed"] and report["self_test"]["error"] < 1e-5
    assert report["cache"]["writable"] and report["versions"]["microcnn"] == mc.__version__
    code, out, _ = run(capsys, "doctor")
    assert code == 0
    for text in ("numba compiles for", "tiles", "GOMP_SPINCOUNT", "self test", "passed", "everything is in order"):
        assert text in out
