"""The profiler: what it measures, how rows become layers, and its files."""
import json
from types import SimpleNamespace

import numpy as np
import pytest

import microcnn as mc
from microcnn.tools import profiler
from microcnn.tools.profiler import LayerCost, Profile, Run

from .command_line import small_graph

NUMBERS = ("forward_us", "backward_us", "update_us")


@pytest.fixture
def net():
    return small_graph().compile(batch=4, train="all", loss="cross_entropy", optimizer=mc.Adam(lr=0.01))


def batch():
    rng = np.random.default_rng(0)
    return rng.standard_normal((4, 1, 8, 8)).astype(np.float32), rng.integers(0, 3, 4)


def test_a_training_step(net):
    measured = mc.profile(net, *batch(), repeats=20)
    assert isinstance(measured, mc.Profile)
    layers = {layer.name: layer for layer in measured.layers}
    convolution = next(layer for layer in measured.layers if layer.op == "Conv2d")
    assert convolution.forward_us > 0 and convolution.backward_us > 0 and convolution.update_us > 0
    assert convolution.macs == 8 * 8 * 4 * 9 and convolution.parameters == 40
    assert set(profiler.KINDS) <= set(convolution.bytes)
    assert len(layers) == len(measured.layers)
    assert measured.total_us == pytest.approx(
        sum(layer.total_us for layer in measured.layers) + measured.unaccounted_us)
    conditions = measured.conditions
    assert conditions["batch"] == 4 and conditions["train"] is True and conditions["repeats"] == 20
    for key in ("cpu", "instruction_set", "threads", "numba", "numpy", "python", "microcnn", "dtype", "load_average"):
        assert key in conditions


def test_the_weights_stay(net):
    before = {name: array.copy() for name, array in net.parameters().items()}
    mc.profile(net, repeats=3)
    assert net.lr == 0.01
    for name, array in net.parameters().items():
        np.testing.assert_array_equal(array, before[name])


def test_prediction_has_no_backward():
    measured = mc.profile(small_graph(), batch=2, repeats=3)
    assert all(layer.backward_us == layer.update_us == 0 for layer in measured.layers)
    assert measured.conditions["train"] is False and "backward" not in measured.table()


def test_rows_make_up_the_whole():
    """Within 10% of the whole call, on a network that is large enough for the clock."""
    graph = mc.Sequential([mc.Conv2d(16, 3, padding=1), mc.ReLU(), mc.Conv2d(32, 3, padding=1), mc.ReLU(),
                           mc.MaxPool2d(2), mc.Flatten(), mc.Linear(10)], input_shape=(3, 32, 32)).graph()
    for _ in range(12):      # a busy neighbour may spoil some
        measured = mc.profile(graph, batch=8, train="all", threads=1, repeats=60)
        if abs(measured.unaccounted_us) < 0.1 * measured.total_us:
            break
    else:
        pytest.fail(measured.table())


def test_from_a_file(tmp_path):
    small_graph().save(tmp_path / "m.mcnn")
    assert mc.profile(tmp_path / "m.mcnn", repeats=2).total_us > 0


def test_rows_become_layers():
    """Rows of one layer are summed up by phase; loss and layout rows stand for themselves."""
    rows = [("layout", "layout", "layout", 1), ("conv", "Conv2d", "forward", 10), ("conv", "Conv2d", "layout", 2),
            ("relu", "Relu", "forward", 3), ("loss", "cross_entropy", "loss", 4), ("conv", "Conv2d", "layout", 7),
            ("relu", "Relu", "backward", 5), ("conv", "Conv2d", "backward", 20), ("conv", "Conv2d", "prepare", 8),
            ("conv", "Conv2d", "update", 6)]
    infos = [SimpleNamespace(layer=layer, op=op, phase=phase) for layer, op, phase, _ in rows]
    facts = {"conv": {"op": "Conv2d", "macs": 9, "parameters": 2, "bytes": {"state": 5}, "shape": (1, 2)},
             "relu": {"op": "Relu", "macs": 0, "parameters": 0, "bytes": {}, "shape": (1, 2)},
             "folded": {"op": "BatchNorm2d", "macs": 0, "parameters": 4, "bytes": {}, "shape": (1, 2)}}
    net = SimpleNamespace(layer_facts=lambda: facts)
    found = {layer.name: layer for layer in profiler._layers(net, infos, [us for *_, us in rows])}
    assert list(found) == ["layout", "conv", "conv (layout)", "relu", "loss"]
    assert [getattr(found["conv"], key) for key in NUMBERS] == [10, 28, 6]
    assert [getattr(found["conv (layout)"], key) for key in NUMBERS] == [2 + 7, 0, 0]
    assert [getattr(found["relu"], key) for key in NUMBERS] == [3, 5, 0]
    assert found["loss"].op == "cross_entropy" and found["loss"].macs == 0
    assert found["conv"].bytes == {**dict.fromkeys(profiler.KINDS, 0), "state": 5}


def test_typical_rows_add_up_to_a_typical_whole():
    """Each call is disturbed in another row; one is an outlier. Medians by row would give 10 for each row."""
    rows = np.full((9, 4), 10_000) + 4_000 * np.eye(9, 4, dtype=int)[np.arange(9) % 4]
    rows[8] = 1_000_000
    np.testing.assert_allclose(profiler.typical(rows.tolist()).sum(), 44, rtol=0.001)
    np.testing.assert_allclose(profiler.typical([[1000, 3000]]), [1, 3])


def test_a_neighbour_that_comes_and_goes():
    """Calls are slow for most of the time: the quiet ones count, but not the one that was too good."""
    slow = np.arange(100) % 5 > 1
    calls = np.where(slow, 20_000, 10_000)
    calls[0] = 10
    np.testing.assert_allclose(profiler.typical(calls[:, None]), [10])


def test_what_python_does_around_the_program_is_a_line():
    measured = mc.profile(small_graph(), batch=2, repeats=20)
    call = measured.layers[-1]
    assert (call.name, call.op) == ("call", "python") and 0 < call.forward_us < measured.total_us


def test_save_and_load(tmp_path):
    def made(batch):
        return Run({"batch": batch, "dtype": "float32", "train": True, "threads": 1, "instruction_set": "sse"}, 100.0,
                   [LayerCost("a", "Conv2d", 10.0, 20.0, 5.0, 100, 7, (4, 2, 2)), LayerCost("loss", "mse", 1.5)])

    for profile in (Profile([made(1)]), Profile([made(1), made(8)])):
        profile.save(tmp_path / "p.json")
        assert Profile.load(tmp_path / "p.json") == profile
    data = json.loads((tmp_path / "p.json").read_text())
    assert data["schema"] == "microcnn.profile/1" and len(data["runs"]) == 2
    first = data["runs"][0]
    assert first["total_us"] == 100 and first["unaccounted_us"] == 63.5
    assert first["layers"][0] == {"name": "a", "op": "Conv2d", "forward_us": 10, "backward_us": 20, "update_us": 5,
                                  "macs": 100, "parameters": 7, "shape": [4, 2, 2],
                                  "bytes": dict.fromkeys(profiler.KINDS, 0)}
    assert str(profile).count("whole call") == 2


@pytest.mark.parametrize(("content", "text"), [
    (None, "cannot be read"), ("{", "no valid JSON"), ("[]", "schema is None"), ('{"schema": "other/9"}', "'other/9'"),
    ('{"schema": "microcnn.profile/1"}', "missing or wrong"),
    ('{"schema": "microcnn.profile/1", "conditions": {}, "total_us": "x", "layers": []}', "missing or wrong"),
])
def test_files_that_are_no_profile(tmp_path, content, text):
    path = tmp_path / "p.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(mc.FileError, match=text):
        mc.Profile.load(path)


def test_bad_arguments(net):
    with pytest.raises(mc.CompileError, match="repeats is 0; expected at least 1"):
        mc.profile(net, repeats=0)
    with pytest.raises(mc.CompileError, match="seconds is 0"):
        mc.profile(net, seconds=0)
    with pytest.raises(mc.DataError, match="targets"):
        mc.profile(net, batch()[0])
    with pytest.raises(mc.FileError, match="no such file"):
        mc.profile("missing.mcnn")
