"""The script that trains networks from scratch."""
import numpy as np
import pytest

import microcnn as mc
from microcnn.tools.train_fashion import RECIPES, main


@pytest.fixture
def data(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {f"{kind}_{part}": values for part, count in (("train", 20), ("test", 8)) for kind, values in (
        ("x", rng.integers(0, 256, (count, 28, 28)).astype(np.uint8)), ("y", rng.integers(0, 10, count)))}
    np.savez(tmp_path / "data.npz", **arrays)
    return tmp_path / "data.npz"


@pytest.mark.parametrize("network", RECIPES)
def test_a_network_trains_and_is_saved(network, data, tmp_path, capsys):
    out = tmp_path / "net.onnx"
    assert main(["--data", str(data), "--network", network, "--epochs", "1", "--batch", "8", "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert "last epoch: test accuracy" in text and f"saved {out}" in text
    graph = mc.load_onnx(out)
    assert graph.parameter_count() <= 100_000
    assert graph.meta["mean"] == 0.2860


def test_data_that_does_not_fit(data, tmp_path, capsys):
    np.savez(tmp_path / "half.npz", x=np.zeros((3, 28, 28)), y=np.zeros(3, int))
    assert main(["--data", str(tmp_path / "half.npz")]) == 2
    assert "must hold x_train, y_train, x_test and y_test" in capsys.readouterr().err
