"""The profiler: what it measures, how rows become layers, and its files."""
import threading
from types import SimpleNamespace

import numpy as np
import pytest

import microcnn as mc
from microcnn.entries import Code
from microcnn.layers import conv2d
from microcnn.program import executor
from microcnn.tools import loading, profiler
from microcnn.tools.profile_data import KINDS

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
    assert set(KINDS) <= set(convolution.bytes)
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
    measured = mc.profile(tmp_path / "m.mcnn", repeats=2)
    assert measured.total_us > 0 and measured.conditions["model"] == "m"
    assert mc.profile(small_graph(), repeats=2).conditions["model"] == small_graph().name
    assert loading.file_name("nets/resnet8/model.onnx") == "resnet8"


def info(layer, op, part, reads=0, writes=0, phase=None):
    return SimpleNamespace(layer=layer, op=op, phase=phase or part.partition("_")[0], part=part, kernel="file.kernel",
                           reads=reads, writes=writes)


def test_rows_become_layers():
    """Rows of one layer are summed up by part; loss and layout rows stand for themselves."""
    rows = [(info("layout", "layout", "forward", phase="layout"), 1), (info("conv", "Conv2d", "forward", 40, 10), 10),
            (info("conv", "Conv2d", "forward", 7, 7, phase="layout"), 2), (info("relu", "Relu", "forward"), 3),
            (info("loss", "cross_entropy", "loss"), 4), (info("conv", "Conv2d", "backward_weight", phase="layout"), 7),
            (info("relu", "Relu", "backward_input"), 5), (info("conv", "Conv2d", "backward_input", 1, 2), 20),
            (info("conv", "Conv2d", "backward_weight", 3, 4), 8), (info("conv", "Conv2d", "update", 5, 5), 6)]
    facts = {"conv": {"op": "Conv2d", "macs": 9, "parameters": 2, "bytes": {"state": 5}, "shape": (1, 2)},
             "relu": {"op": "Relu", "macs": 0, "parameters": 0, "bytes": {}, "shape": (1, 2)},
             "folded": {"op": "BatchNorm2d", "macs": 0, "parameters": 4, "bytes": {}, "shape": (1, 2)}}
    net = SimpleNamespace(layer_facts=lambda: facts)
    times = [us for _, us in rows]
    calls = np.array([times, times, [2 * us for us in times]]) * 1e3
    found = {layer.name: layer for layer in profiler._layers(net, [one for one, _ in rows], times, calls)}
    assert list(found) == ["layout", "conv", "conv (layout)", "relu", "loss"]
    conv = found["conv"]
    assert [getattr(conv, key) for key in NUMBERS] == [10, 28, 6]
    assert (conv.backward_input_us, conv.backward_weight_us) == (20, 8)
    assert conv.moved == {"forward": 50, "backward_input": 3, "backward_weight": 7, "update": 10}
    assert (conv.spread.min, conv.spread.p50) == (44, 44) and 44 < conv.spread.p90 < 88
    assert [getattr(found["conv (layout)"], key) for key in NUMBERS] == [2, 7, 0]
    assert [getattr(found["relu"], key) for key in NUMBERS] == [3, 5, 0]
    assert found["loss"].op == "cross_entropy" and found["loss"].macs == 0 and found["loss"].forward_us == 4
    assert conv.bytes == {**dict.fromkeys(KINDS, 0), "state": 5}


def test_parts_of_a_step(net):
    """Every trained layer has both gradients apart, but the first needs none of its input."""
    measured = mc.profile(net, *batch(), repeats=3)
    parts = {(row.layer, row.part) for row in measured.rows}
    first, last = measured.layers[1].name, "linear1"
    assert {(first, "forward"), (first, "backward_weight"), (last, "backward_input"), (last, "backward_weight")} <= parts
    assert (first, "backward_input") not in parts and ("loss", "loss") in parts
    assert any(part == "update" for _, part in parts)
    linear = next(layer for layer in measured.layers if layer.name == last)
    assert linear.backward_us == pytest.approx(linear.backward_input_us + linear.backward_weight_us)
    assert linear.flops(4) == 3 * 2 * 4 * linear.macs and linear.gflops(4) > 0


def test_what_rows_move(net):
    """A copy of the input is read and written once; the linear layer reads its weights."""
    measured = mc.profile(net, *batch(), repeats=3)
    rows = {row.kernel: row for row in measured.rows}
    assert rows["layout.input"].reads == rows["layout.input"].writes == 4 * 64 * 4
    forward = next(row for row in measured.rows if row.layer == "linear1" and row.part == "forward")
    assert forward.reads >= 4 * (3 * 64 + 3 + 4 * 64) and forward.writes == 4 * 4 * 3


def test_the_plan_comes_along(net):
    measured = mc.profile(net, *batch(), repeats=3)
    run = measured.runs[0]
    assert (run.memory.arena, run.memory.lower_bound) == (net.memory.arena, net.memory.lower_bound)
    live = run.memory.live(len(run.rows))
    assert run.memory.begin + max(live) <= run.memory.arena
    assert all(0 <= block.first <= block.last < len(run.rows) for block in run.memory.blocks)
    at_once = [(one, other) for one in run.memory.blocks for other in run.memory.blocks
               if one is not other and one.first <= other.last and other.first <= one.last]
    assert at_once and all(one.offset + one.bytes <= other.offset or other.offset + other.bytes <= one.offset
                           for one, other in at_once)
    assert sum(layer.peak_bytes for layer in run.layers) == max(live) > 0
    for layer in net.memory.layers:
        for row in (row for row in run.layers if row.name == layer.name):
            assert (row.bytes["activations"], row.bytes["gradients"]) == (layer.activations, layer.gradients)


def test_the_graph_comes_along(net):
    nodes = {node.op: node for node in mc.profile(net, *batch(), repeats=2).runs[0].graph}
    assert nodes["Relu"].ran_in is not None and nodes["Conv2d"].ran_in is None
    assert nodes["Conv2d"].inputs == ("input",) and nodes["Conv2d"].shape == (4, 8, 8)
    assert nodes["Linear"].inputs == (nodes["Flatten"].name,)


def test_confidence():
    """The rank rule for a median of 100 calls: 40.2 and 59.8, that is values 40 and 60."""
    calls = np.arange(100.0)[:, None] + 1000
    assert profiler.confidence(calls, calls) == pytest.approx(10 / 1049.5)
    still = np.full((50, 1), 1000.0)
    assert profiler.confidence(still, still) == 0
    # a row of 1% of the whole does not count, however it varies
    small = np.where(np.arange(50) % 2, 1.0, 10.0)[:, None]
    assert profiler.confidence(still, np.concatenate([still, small], axis=1)) == 0


def test_measuring_ends_when_the_figures_stand(monkeypatch, net):
    monkeypatch.setattr(profiler, "confidence", lambda wholes, timed: 0.01)
    monkeypatch.setattr(profiler, "LEAST_SHARE", 0)
    assert mc.profile(net, *batch(), seconds=1000).conditions["repeats"] == profiler.LEAST_CALLS


def test_the_clock_is_measured_and_taken_off(monkeypatch, net):
    assert 1 < profiler.clock_nanoseconds() < 10_000
    monkeypatch.setattr(profiler, "clock_nanoseconds", lambda: 1e12)
    measured = mc.profile(net, *batch(), repeats=3)
    assert all(row.us == 0 for row in measured.rows) and measured.conditions["clock_ns"] == 1e12


def test_cold_caches(net, monkeypatch):
    monkeypatch.setattr(profiler, "COLD_BYTES", 4096)
    measured = mc.profile(net, *batch(), repeats=2, cold=True)
    assert measured.conditions["caches"] == "cold"
    assert mc.profile(net, *batch(), repeats=2).conditions["caches"] == "warm"


def test_ctrl_c_keeps_what_was_measured(net):
    def tick(share):
        if share >= 0.3:
            raise KeyboardInterrupt
    before = net.parameters()
    measured = mc.profile(net, *batch(), repeats=10, tick=tick)
    assert measured.conditions["repeats"] == 3 and measured.conditions["interrupted"]
    assert net.lr == 0.01
    for name, array in net.parameters().items():
        np.testing.assert_array_equal(array, before[name])


def test_whether_kernels_were_compiled(net):
    """In this process the first of a test's kernels may come from either; one that says it was compiled decides."""
    rows = net.rows("train")
    code = {(row.kernel, "float32"): Code(1, False, None) for row in rows}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("microcnn.entries._loaded", code)
        assert profiler._start(rows, "float32") == "warm"
        code[rows[-1].kernel, "float32"] = Code(1, True, None)
        assert profiler._start(rows, "float32") == "cold"
    assert mc.profile(net, *batch(), repeats=2).conditions["start"] in ("cold", "warm")


def test_another_thread_waits(net):
    """Two profiles and a training thread at once: none sees another's rate of 0, and no step is lost."""
    x, t = batch()
    steps, stop = [], threading.Event()

    def train():
        while not stop.is_set() or not steps:
            before = net.parameters()["linear1.weight"]
            net.train_step(x, t)
            steps.append(bool((net.parameters()["linear1.weight"] != before).any()))
    started = net._steps[0]
    workers = [threading.Thread(target=lambda: net.profile(x, t, repeats=20)) for _ in range(2)]
    trainer = threading.Thread(target=train)
    for worker in [trainer, *workers]:
        worker.start()
    for worker in workers:
        worker.join()
    stop.set()
    trainer.join()
    assert net.lr == 0.01 and all(steps) and net._steps[0] == started + len(steps)
    assert net._programs["train"][0].execute == executor("plain")


def test_ctrl_c_while_the_machine_is_measured(net, monkeypatch):
    def measure(*_):
        raise KeyboardInterrupt
    monkeypatch.setattr(profiler.roofline, "kept", lambda *_: None)
    monkeypatch.setattr(profiler.roofline, "measure", measure)
    measured = mc.profile(net, *batch(), repeats=3, machine=True)
    assert measured.conditions["interrupted"] and measured.conditions["repeats"] == 3 and measured.runs[0].machine is None


def test_a_pooling_in_the_convolutions_kernel(monkeypatch):
    monkeypatch.setattr(conv2d, "pooled_pays", lambda s, g, pool: True)
    graph = mc.Sequential([mc.Conv2d(4, 3), mc.ReLU(), mc.MaxPool2d(2), mc.Flatten(), mc.Linear(3)],
                          input_shape=(1, 14, 14)).graph()
    run = mc.profile(graph, batch=2, repeats=2).runs[0]
    assert any(row.kernel == "conv2d_pooled.forward" for row in run.rows)
    convolution = next(layer for layer in run.layers if layer.op == "Conv2d")
    assert len(convolution.fused) == 2 and {node.ran_in for node in run.graph if node.name in convolution.fused} == {
        convolution.name}
    assert sum(layer.peak_bytes for layer in run.layers) == max(run.memory.live(len(run.rows)))


def test_a_network_profiles_itself(net):
    measured = net.profile(*batch(), repeats=2)
    assert isinstance(measured, mc.Profile) and measured.conditions["train"] is True


def test_typical_rows_add_up_to_a_typical_whole():
    """Each call is disturbed in another row; one is an outlier. Medians by row would give 10 for each row."""
    rows = np.full((9, 4), 10_000) + 4_000 * np.eye(9, 4, dtype=int)[np.arange(9) % 4]
    rows[8] = 1_000_000
    np.testing.assert_allclose(profiler.typical(rows.tolist()).sum(), 44, rtol=0.001)
    np.testing.assert_allclose(profiler.typical([[1000, 3000]]), [1, 3])


def test_a_row_that_was_held_up_once():
    """Of three calls the one that is kept has a row that waited 900 us for the processor: it counts as twice its median."""
    np.testing.assert_allclose(profiler.typical([[100e3, 900e3], [2000e3, 20e3], [2000e3, 20e3]]), [100, 40])


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


def test_bad_arguments(net):
    with pytest.raises(mc.CompileError, match="repeats is 0; expected at least 1"):
        mc.profile(net, repeats=0)
    with pytest.raises(mc.CompileError, match="seconds is 0"):
        mc.profile(net, seconds=0)
    with pytest.raises(mc.DataError, match="targets"):
        mc.profile(net, batch()[0])
    with pytest.raises(mc.FileError, match="no such file"):
        mc.profile("missing.mcnn")
