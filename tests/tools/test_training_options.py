"""Options of the command for training and evaluation: schedules, patience, clipping, metrics."""
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest

import microcnn as mc
from microcnn.tools.commands.evaluate import show_confusion

from .command_line import run


def test_a_schedule_patience_and_clipping(capsys, tmp_path, model, data):
    code, text, err = run(capsys, "finetune", model, "--data", data, "--scale", "1/255", "--epochs", "8", "--schedule",
                          "step:2,gamma=0.5", "--patience", "2", "--min-delta", "5", "--clip-norm", "1.0", "--out",
                          tmp_path / "tuned.mcnn")
    assert code == 0, err
    assert "step:2,gamma=0.5" in text and "epoch  2/8" in text and "epoch  3/8" not in text
    assert "stopped after epoch 2: no more progress in validation" in text


@pytest.mark.parametrize("options, text", [
    ("--schedule linear", "expected one of"), ("--schedule step", "step needs step_size"), ("--patience 0", "0 is too small"),
    ("--schedule step:2,gama=1", "gama=1"), ("--min-delta -1", "expected at least 0"), ("--clip-norm 0", "more than 0")])
def test_options_that_make_no_sense(capsys, model, data, options, text):
    code, _, err = run(capsys, "finetune", model, "--data", data, *options.split())
    assert code == 2 and text in err


def test_a_batch_is_no_larger_than_the_data(capsys, tmp_path, model, data):
    code, text, err = run(capsys, "finetune", model, "--data", data, "--batch", "16000000", "--epochs", "1", "--out",
                          tmp_path / "tuned.mcnn")
    assert code == 0, err
    assert "1 epochs, batch 48, adam" in text


def test_cached_features(capsys, tmp_path, model, data):
    """The same tuned model, and the file that a path names is read by the next run."""
    def tuned(name, *options):
        code, text, err = run(capsys, "finetune", model, "--data", data, "--scale", "1/255", "--train", "head", "--epochs", "3",
                              "--out", tmp_path / name, *options)
        assert code == 0, err
        return (tmp_path / name).read_bytes(), text, err
    plain, text, _ = tuned("plain.mcnn")
    assert "features: " not in text and "on the disk" not in text
    cached, text, _ = tuned("cached.mcnn", "--cache-features")
    assert cached == plain and "on the disk: 15.0 KB of features of 60 samples" in text
    assert "in a file that is gone now" in text
    kept = tmp_path / "kept"
    first, text, err = tuned("first.mcnn", "--cache-features", kept)
    assert first == plain and f"features: kept in {kept} (15." in text and "made anew" not in err
    second, text, err = tuned("second.mcnn", "--cache-features", kept)
    assert second == plain and f"features: read from {kept} (15." in text
    _, text, err = tuned("third.mcnn", "--cache-features", kept, "--mean", "0.5")
    assert f"features: kept in {kept}" in text and f'"{kept}" was made anew: it is of other data' in err
    _, text, _ = tuned("fourth.mcnn", "--cache-features", tmp_path)
    assert f"features: kept in {tmp_path / 'microcnn.features'}" in text


@pytest.mark.parametrize("options, text", [
    ("--cache-features", "no frozen layer comes before what trains"),
    ("--train head --augment flip --cache-features", "leave out augment"),
    ("--train head --cache-features nowhere/f", "there is no folder"),
    ("--train head --cache-features other.onnx", "put MODEL first")])
def test_features_that_cannot_be_cached(capsys, tmp_path, model, data, options, text):
    code, _, err = run(capsys, "finetune", model, "--data", data, "--out", tmp_path / "t.mcnn", *options.split())
    assert code == 2 and text in err and "Traceback" not in err and not (tmp_path / "t.mcnn").exists()


def test_features_do_not_replace_other_files(capsys, tmp_path, model, data):
    code, _, err = run(capsys, "finetune", model, "--data", data, "--train", "head", "--cache-features", data)
    assert code == 2 and "is something else than features, and stays" in err
    assert np.load(data)["x"].shape == (60, 8, 8)


def test_metrics(capsys, model, data):
    code, text, err = run(capsys, "evaluate", model, "--data", data, "--scale", "1/255", "--top-k", "2", "--confusion")
    assert code == 0, err
    assert "accuracy " in text and ", top 2 " in text
    lines = text.splitlines()
    at = next(i for i, line in enumerate(lines) if line.split() == ["true", "0", "1", "2", "found"])
    counts = [[0 if cell == "." else int(cell) for cell in line.split()[1:4]] for line in lines[at + 2:at + 5]]
    assert np.sum(counts) == 60
    code, _, err = run(capsys, "evaluate", model, "--data", data, "--top-k", "4")
    assert code != 0 and "top_k is 4; expected an integer from 1 to 3" in err


def test_many_classes_show_the_mistakes():
    said = []
    terminal = SimpleNamespace(table=lambda columns, rows, title="": said.append((columns, rows)), say=said.append)
    matrix = np.diag(np.full(30, 8))
    show_confusion(matrix, None, terminal)
    assert said == ["no mistakes"]
    matrix[3, 7], matrix[5, 2] = 2, 8
    show_confusion(matrix, ["zero", "one", "two"], terminal)
    assert said[1][1] == [["5", "two", "8", "50.0%"], ["3", "7", "2", "20.0%"]]


def test_training_in_part(capsys, tmp_path, model, data):
    graph = mc.load(model)
    for what, trained in ("biases", {"conv1.bias", "linear1.bias"}), ("last:1", {"linear1.weight", "linear1.bias"}), \
            ("conv1.weight[:25%],linear1.bias", {"conv1.weight", "linear1.bias"}):
        code, out, _ = run(capsys, "finetune", model, "--data", data, "--train", what, "--out", tmp_path / "tuned.mcnn",
                           "--epochs", "8", "--batch", "8", "--lr", "0.1", "--scale", "1/255", "--test", data)
        assert code == 0 and f"training {what.replace(',', ', ')} on" in out
        tuned = mc.load(tmp_path / "tuned.mcnn").weights
        assert {name for name in tuned if (tuned[name] != graph.weights[name]).any()} == trained, what
    assert (tuned["conv1.weight"][1:] == graph.weights["conv1.weight"][1:]).all()


def test_info_of_training_in_part(capsys, model):
    found = {}
    for what in "all", "biases", "conv1.weight[:2]":
        code, out, _ = run(capsys, "info", model, "--train", what, "--json", "--batch", "8")
        found[what] = json.loads(out)
        assert code == 0
    assert {what: facts["trains"] for what, facts in found.items()} == {"all": 235, "biases": 7, "conv1.weight[:2]": 18}
    arenas = {what: facts["memory"]["to_train"]["arena"] for what, facts in found.items()}
    assert arenas["biases"] < arenas["all"] > arenas["conv1.weight[:2]"]
    code, out, _ = run(capsys, "info", model, "--train", "biases")
    assert code == 0 and "--train biases --optimizer adam: 7 of 235 parameters train" in out
    assert "to train biases, batch 1" in out


@pytest.mark.parametrize("command", ["finetune", "info", "profile"])
def test_help_says_what_can_train(capsys, command):
    code, out, _ = run(capsys, command, "--help")
    text = " ".join(out.split())
    assert code == 0 and "biases, last:3 (the last three layers)" in text and "[:25%]" in text


@pytest.mark.parametrize("what, text", [("last:0", "counted from the last"), ("bias", "close to it: "),
                                        ("conv1.weight[3:8]", "from its first output channel on")])
def test_what_cannot_train(capsys, model, what, text):
    code, _, err = run(capsys, "info", model, "--train", what)
    assert code == 2 and text in err and "Traceback" not in err


def test_a_budget(capsys, tmp_path, model, data):
    """What fits is said; what does not is refused with the smallest that would; parts and recomputation by hand."""
    common = ("finetune", model, "--data", data, "--scale", "1/255", "--epochs", "1", "--batch", "8", "--out",
              tmp_path / "tuned.mcnn")
    code, text, err = run(capsys, *common, "--budget", "8MB")
    assert code == 0 and "everything fits as it is" in text, err
    code, text, err = run(capsys, *common, "--budget", "1KB")
    assert code == 2 and "the smallest budget that works" in err
    least = int(re.search(r"needs ([\d,]+) beside", err)[1].replace(",", ""))
    code, text, err = run(capsys, *common, "--budget", str(least))
    assert code == 0 and "samples, does:" in text, err
    code, text, err = run(capsys, *common, "--micro-batch", "2", "--recompute")
    assert code == 0, err
    code, text, err = run(capsys, *common, "--micro-batch", "9")
    assert code == 2 and "micro_batch is 9; expected an integer from 1 to the batch, 8" in err
    code, text, err = run(capsys, *common, "--budget", "little")
    assert code == 2 and "budget is 'little'" in err
