"""The measurement of start-up."""
import json

import pytest

from microcnn.errors import MicroCNNError
from microcnn.tools.bench import startup
from tests.tiny import convolutional


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "small.mcnn"
    convolutional().save(path)
    return path


def test_startup_of_a_small_model(capsys, tmp_path, model):
    assert startup.main([str(model), "--train", "--repeats", "1", "--json", str(tmp_path / "s.json")]) == 0
    assert "beyond numpy" in capsys.readouterr().out
    found = json.loads((tmp_path / "s.json").read_text())
    measured, = found["models"]
    assert measured["model"] == str(model) and "onnx_us" not in measured
    assert min(found["import_us"], found["numba_us"], measured["mcnn_us"], measured["numba_us"]) > 0
    assert measured["train_us"] > 0 and min(measured[f"{kind}_bytes"] for kind in ("mcnn", "train", "numba")) > 10_000_000
    assert measured["warmup_us"] > 0 and measured["warmup_processor_us"] > 0
    # what a batch of another size needs comes later
    assert found["cache_bytes"] >= measured["cache_bytes"] > 10_000


def test_startup_of_nothing(tmp_path):
    with pytest.raises(MicroCNNError, match="expected a file that ends in"):
        startup.main([str(tmp_path / "model.bin")])
    with pytest.raises(MicroCNNError, match="no such file"):
        startup.main([str(tmp_path / "model.onnx")])
