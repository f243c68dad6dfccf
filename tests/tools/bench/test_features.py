"""The measurement of cached features."""
from __future__ import annotations

import json

import pytest

import microcnn as mc
from microcnn.errors import MicroCNNError, ModelError
from microcnn.tools.bench import features
from microcnn.tools.bench.__main__ import main
from tests.tiny import convolutional


def test_the_command(tmp_path, capsys):
    convolutional().save(tmp_path / "small.mcnn")
    written = tmp_path / "f.json"
    assert main(["features", str(tmp_path / "small.mcnn"), "digits-cnn", "--epochs", "2", "--samples", "20", "--rounds", "1",
                 "--threads", str(mc.get_num_threads()), "--json", str(written), "--folder", str(tmp_path)]) == 0
    assert "2 epochs of the last layer, batch 32" in capsys.readouterr().out
    small, digits = json.loads(written.read_text())["models"]
    assert small["samples"] == [16, 4] and small["file_bytes"] > 20 * 4 * 3 * 3 * 4
    assert digits["samples"] == [1438, 359] and digits["ratio"] == digits["plain_us"] / digits["cached_us"]
    assert (tmp_path / "microcnn.features").stat().st_size == digits["file_bytes"]


def test_other_results_are_no_measurement(monkeypatch):
    """Where training from features ended elsewhere its time would mean nothing."""
    fitted = features.fitted

    def moved(graph, data, epochs, batch, cache):
        net, history = fitted(graph, data, epochs, batch, cache)
        if cache:
            net.set_parameters({name: array + 1e-3 for name, array in net.parameters().items()})
        return net, history
    monkeypatch.setattr(features, "fitted", moved)
    with pytest.raises(MicroCNNError, match="does not end where it ends without"):
        features.measure("digits-cnn", 1, 32, 10, 1, True)


def test_a_folder_that_is_none(tmp_path, capsys):
    assert main(["features", "digits-cnn", "--folder", str(tmp_path / "nowhere")]) == 2
    assert "make it first" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_models_that_are_no_classifiers():
    b = mc.GraphBuilder()
    graph = b.graph(b(mc.Conv2d(4, 3), b.input("input", (2, 6, 6))))
    with pytest.raises(ModelError, match="give a classifier"):
        features.data_for(graph, 10)
