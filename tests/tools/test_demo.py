"""The demo and what it stands on: three disjoint sets, a stated shift, and accuracy lost and regained."""
import re

import numpy as np
import pytest

import microcnn as mc
from microcnn.tools import demo, make_digits

from .command_line import run


@pytest.fixture(scope="module")
def digits():
    return demo.load_digits()


def test_the_sets_are_disjoint(digits):
    """No row is in two sets, and no image either: what accuracy is measured on was never seen."""
    rows = {name: digits[name].tolist() for name in ("train", "tune", "test")}
    assert sorted(sum(rows.values(), [])) == list(range(len(digits["x"]))) == list(range(1797))
    images = {name: {digits["x"][row].tobytes() for row in part} for name, part in rows.items()}
    assert {name: len(part) for name, part in images.items()} == make_digits.PARTS
    assert len(set().union(*images.values())) == 1797


def test_the_digits_are_those_of_scikit_learn(digits):
    datasets = pytest.importorskip("sklearn.datasets")
    found = datasets.load_digits()
    np.testing.assert_array_equal(digits["x"], found.images)
    np.testing.assert_array_equal(digits["y"], found.target)


def test_the_other_sensor(digits):
    """Seeded, within its range, and as described: dimmer contrast on a brighter ground, one pixel further right."""
    x = digits["x"][:50]
    seen = demo.other_sensor(x, seed=1)
    assert seen.dtype == np.uint8 and seen.shape == x.shape
    np.testing.assert_array_equal(seen, demo.other_sensor(x, seed=1))
    assert (seen != demo.other_sensor(x, seed=2)).any()
    assert seen.mean() / 255 > x.mean() / 16 and seen.std() / 255 < x.std() / 16
    columns = [np.corrcoef(seen[:, :, 1 + i].ravel(), x[:, :, i].ravel())[0, 1] for i in range(2, 6)]
    assert min(columns) > 0.8


def test_the_digits_model(digits):
    pytest.importorskip("onnx")
    graph = mc.load_onnx(demo.load_digits_model())
    net = graph.compile(batch=32, loss="cross_entropy")
    test = digits["test"]
    x = (digits["x"][test, None] / 16).astype(np.float32)
    assert net.evaluate(x, digits["y"][test])["accuracy"] >= 0.97


def test_the_demo(capsys, tmp_path):
    """To its end: accuracy falls and comes back, the files can be read."""
    pytest.importorskip("onnx")
    code, out, err = run(capsys, "demo", "--keep", tmp_path / "kept")
    assert code == 0, out + err
    before, after = re.search(r"neither training saw: ([\d.]+)% -> ([\d.]+)%", out).groups()
    assert float(after) >= 93 and float(after) - float(before) >= 10
    for text in ("1. A trained model", "arena", "the same graph and names", "read again", "What each layer costs"):
        assert text in out
    assert mc.Profile.load(tmp_path / "kept" / "profile.json").total_us > 0
    mc.load_onnx(tmp_path / "kept" / "digits_tuned.onnx")


def test_nowhere_to_keep_it(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, err = run(capsys, "demo", "--keep", tmp_path / "file" / "folder")
    assert code == 2 and "cannot be made" in err and err.count("\n") == 1
