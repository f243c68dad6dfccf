"""The table of what training less would cost."""
import json

import numpy as np
import pytest

import microcnn as mc
from microcnn.planned import Planned
from microcnn.program import RowInfo
from microcnn.tools import what_if
from microcnn.tools.profile_data import Profile, RowCost, Run

from ..tiny import convolutional
from .command_line import run

HOW = dict(loss="cross_entropy", optimizer=mc.SGD(lr=0.01, momentum=0.9))


def deep():
    return mc.Sequential([mc.Conv2d(4, 3, padding=1), mc.BatchNorm2d(), mc.ReLU(), mc.Conv2d(6, 3, padding=1), mc.ReLU(),
                          mc.Conv2d(6, 3, stride=2), mc.ReLU(), mc.Flatten(), mc.Linear(3)], input_shape=(2, 10, 10)).graph()


def test_memory_is_that_of_the_plan():
    graph = deep()
    lines = what_if.what_if(graph, (1, 4), [("conv2.*", 4)], seconds=0.02)
    assert [(line.train, line.batch) for line in lines] == [(train, batch) for batch in (1, 4) for train in (
        "head", "biases", "last:2", "all")] + [("conv2.*", 4)]
    for line in lines:
        memory = Planned(graph, batch=line.batch, train=[line.train], **HOW).memory
        assert (line.arena, line.bytes) == (memory.arena, memory.beside_parameters)
        assert line.predicted_us > 0 and (line.measured_us is not None) == (line.train == "conv2.*")
        assert line.off is None or line.off == line.predicted_us / line.measured_us - 1
    by_cut = {line.train: line.predicted_us for line in lines if line.batch == 4}
    assert by_cut["head"] < by_cut["last:2"] < by_cut["all"] and by_cut["biases"] < by_cut["all"]


def test_a_time_is_that_of_the_rows():
    """What ran in the step counts as it did there; what ran in neither is estimated by the bytes that it moves."""
    def costs(*rows):
        return Run({}, sum(row.us for row in rows), [], rows=list(rows))
    step = costs(RowCost("a", "Conv2d", "forward", "conv2d.forward", 10.0, reads=100, writes=100),
                 RowCost("a", "Conv2d", "update", "update.sgd", 2.0, reads=50, writes=50))
    step.total_us += 3.0
    prediction = costs(RowCost("a", "Conv2d", "forward", "conv2d.forward", 8.0, reads=100, writes=100),
                       RowCost("b", "Conv2d", "forward", "separable.forward", 5.0, reads=10, writes=10))
    found = what_if.Costs(step, prediction)
    assert found.beside == pytest.approx(3.0)
    assert found.of(RowInfo("a", "Conv2d", "forward", "conv2d.forward")) == (10.0, False)
    assert found.of(RowInfo("b", "Conv2d", "forward", "separable.forward")) == (5.0, False)
    assert found.of(RowInfo("c", "Conv2d", "forward", "separable.forward", reads=30, writes=10)) == (10.0, True)
    time, guessed = found.of(RowInfo("c", "Conv2d", "forward", "other.forward", reads=26, writes=0))
    assert time == pytest.approx(25 * 26 / 520) and guessed


def test_a_cut_that_the_model_does_not_have_is_said():
    with pytest.raises(mc.CompileError, match="matches no weight"):
        what_if.what_if(convolutional(), (1,), [("fc.*", 1)], seconds=0.02)
    still = mc.Sequential([mc.ReLU(), mc.Flatten()], input_shape=(1, 4, 4)).graph()
    with pytest.raises(mc.CompileError, match="no weight that can be trained"):
        what_if.what_if(still)


def test_an_interrupted_measurement_ends_it(monkeypatch):
    def cut_short(*_, **__):
        return Profile([Run({"interrupted": True}, 1.0, [])])
    monkeypatch.setattr(what_if, "profile", cut_short)
    with pytest.raises(KeyboardInterrupt):
        what_if.what_if(convolutional(), (1,))


def test_the_command(capsys, tmp_path, model):
    file = tmp_path / "table.json"
    code, text, err = run(capsys, "profile", model, "--what-if", "--batch", "1,3", "--measure", "head:3", "--seconds", "0.02",
                          "--json", file)
    assert code == 0, err
    assert "small, cross_entropy, float32, bn frozen, SGD with momentum" in text
    assert "beside parameters" in text and "biases" in text and "saved" in text
    held = json.loads(file.read_text())
    assert held["schema"] == "microcnn.what-if/1"
    measured = [line for line in held["lines"] if line["measured_us"]]
    assert [(line["train"], line["batch"]) for line in measured] == [("head", 3)]
    assert all(line["bytes"] > 0 and np.isfinite(line["predicted_us"]) for line in held["lines"])


@pytest.mark.parametrize("options, message", [
    ("--what-if --html r.html", "--what-if makes a table of its own: it takes no --html"),
    ("--what-if --cold", "it takes no --cold"), ("--measure head:8", "--measure names lines of --what-if"),
    ("--what-if --measure head", "head is no line of the table; expected what trains and a batch, such as head:8"),
    ("--what-if --measure head:0", "head:0 is no line of the table"), ("--what-if --threads 1,2", "one number of --threads")])
def test_options_that_make_no_sense(capsys, model, options, message):
    code, _, err = run(capsys, "profile", model, *options.split())
    assert code == 2 and message in err
