"""Profiles as objects and as files."""
import json
import os

import pytest

import microcnn as mc
from microcnn.memory import Block
from microcnn.tools.profile_data import (
    KINDS,
    GraphNode,
    LayerCost,
    Machine,
    MemoryPlan,
    Profile,
    RowCost,
    Run,
    Spread,
)

CONDITIONS = {"batch": 2, "dtype": "float32", "train": True, "threads": 1, "instruction_set": "sse"}


def layer(**changed):
    """A convolution of 1000 multiply-adds a sample: 10, 12 and 8 us for 4, 5 and 3 KB."""
    return LayerCost(**{"name": "a", "op": "Conv2d", "forward_us": 10.0, "backward_us": 20.0, "update_us": 5.0, "macs": 1000,
                        "parameters": 7, "shape": (4, 2, 2), "backward_input_us": 12.0, "backward_weight_us": 8.0,
                        "moved": {"forward": 4000, "backward_input": 5000, "backward_weight": 3000, "update": 600}, **changed})


def full_run():
    rows = [RowCost("a", "Conv2d", "forward", "conv2d.forward", 10.0, Spread(9, 10, 11, 12), 3, 4)]
    first = layer(fused=("relu",), passes=("forward",), spread=Spread(30, 35, 40, 50))
    return Run({**CONDITIONS}, 100.0, [first, LayerCost("loss", "mse", 1.5)],
               Spread(90, 100, 120, 150), rows,
               MemoryPlan(2000, 1900, 500, 100, 700, [Block("a", "x", "activation", 128, 704, 0, 0)]),
               [GraphNode("a", "Conv2d", ("input",), (4, 2, 2)), GraphNode("relu", "Relu", ("a",), (4, 2, 2), "a")],
               Machine(100.0, 20.0, 1, "float32"))


def test_save_and_load(tmp_path):
    for profile in (Profile([full_run()]), Profile([full_run(), Run({"batch": 8}, 5.0, [LayerCost("b", "Relu")])])):
        profile.save(tmp_path / "p.json")
        assert Profile.load(tmp_path / "p.json") == profile
    data = json.loads((tmp_path / "p.json").read_text())
    assert data["schema"] == "microcnn.profile/1" and len(data["runs"]) == 2
    first = data["runs"][0]
    assert first["total_us"] == 100 and first["unaccounted_us"] == 63.5
    written = first["layers"][0]
    assert {key: written[key] for key in ("name", "op", "forward_us", "backward_us", "update_us", "macs", "parameters", "shape",
                                          "bytes")} == {
        "name": "a", "op": "Conv2d", "forward_us": 10, "backward_us": 20, "update_us": 5, "macs": 1000, "parameters": 7,
        "shape": [4, 2, 2], "bytes": dict.fromkeys(KINDS, 0)}


def test_a_file_of_the_first_version(tmp_path):
    """It had layers alone; what later ones add is empty, and what a later one may add is passed over."""
    (tmp_path / "p.json").write_text(json.dumps({
        "schema": "microcnn.profile/1", "conditions": CONDITIONS, "total_us": 9, "unaccounted_us": 1, "of_tomorrow": 3,
        "layers": [{"name": "a", "op": "Conv2d", "forward_us": 8, "backward_us": 0, "update_us": 0, "macs": 9, "parameters": 2,
                    "shape": None, "bytes": {"state": 5}, "of_tomorrow": 4}]}))
    run = Profile.load(tmp_path / "p.json").runs[0]
    assert run.layers[0].forward_us == 8 and run.layers[0].bytes == {"state": 5} and run.unaccounted_us == 1
    assert (run.rows, run.memory, run.graph, run.machine) == ([], None, [], None)
    assert run.bound_by(run.layers[0]) == "" and run.of_roof(run.layers[0]) == 0


@pytest.mark.parametrize(("content", "text"), [
    (None, "cannot be read"), ("{", "no valid JSON"), ("[]", "schema is None"), ('{"schema": "other/9"}', "'other/9'"),
    ('{"schema": "microcnn.profile/1"}', "missing or wrong"),
    ('{"schema": "microcnn.profile/1", "runs": []}', "without a run"),
    ('{"schema": "microcnn.profile/1", "runs": 3}', "missing or wrong"),
    ('{"schema": "microcnn.profile/1", "conditions": {}, "total_us": "x", "layers": []}', "missing or wrong"),
    ('{"schema": "microcnn.profile/1", "conditions": {}, "total_us": 1, "layers": [3]}', "missing or wrong"),
    ('{"schema": "microcnn.profile/1", "conditions": {"batch": "8"}, "total_us": 1, "layers": []}', "batch is '8'"),
    ("[" * 100_000, "no valid JSON"),
    ('{"schema": "microcnn.profile/1", "conditions": {}, "total_us": 1' + "0" * 400 + ', "layers": []}', "expected a number"),
    ('{"schema": "microcnn.profile/1", "conditions": {}, "total_us": 1, "layers": [{"name": "a", "op": "b", "forward_us": "x",'
     ' "backward_us": 0, "update_us": 0, "macs": 0, "parameters": 0, "bytes": {}}]}', "forward_us is 'x', no number"),
])
def test_files_that_are_no_profile(tmp_path, content, text):
    path = tmp_path / "p.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(mc.FileError, match=text):
        mc.Profile.load(path)


BROKEN = [
    (("layers", 0, "forward_us"), -1), (("layers", 0, "forward_us"), float("nan")), (("layers", 0, "macs"), float("inf")),
    (("layers", 0, "macs"), 1.5), (("layers", 0, "name"), 5), (("layers", 0, "op"), None),
    (("layers", 0, "bytes"), {"state": "x"}),
    (("layers", 0, "moved"), [1]), (("layers", 0, "fused"), "relu"), (("layers", 0, "fused"), [3]),
    (("layers", 0, "passes"), ["sideways"]), (("layers", 0, "shape"), ["x"]), (("layers", 0, "spread"), {"p50": True}),
    (("rows", 0, "reads"), 10**400), (("rows", 0, "kernel"), {}), (("memory", "blocks", 0, "last"), 10**9),
    (("memory", "blocks", 0, "first"), 5), (("memory", "blocks", 0, "kind"), 1), (("memory", "arena"), "big"),
    (("graph", 0, "inputs"), 3), (("machine", "bandwidth_gbs"), 0), (("machine", "peak_gflops"), -5),
    (("conditions", "clock_ns"), "x"), (("conditions", "batch"), 0), (("conditions", "threads"), True), (("total_us",), None),
    (("layers", 0, "name"), chr(0xD800))]


@pytest.mark.parametrize(("path", "value"), BROKEN)
def test_everything_in_a_file_is_checked(tmp_path, path, value):
    run = full_run()
    data = json.loads(json.dumps(run.as_dict()))
    (tmp_path / "p.json").write_text(json.dumps(data))
    assert Profile.load(tmp_path / "p.json").layers[0].name == "a"
    place = data
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    (tmp_path / "p.json").write_text(json.dumps(data))
    with pytest.raises(mc.FileError, match="missing or wrong"):
        Profile.load(tmp_path / "p.json")


def test_names_that_would_move_the_cursor(tmp_path):
    data = full_run().as_dict()
    data["memory"], data["layers"][0]["name"], data["conditions"]["cpu"] = None, "a\x1b[2Jb", "x\x07"
    (tmp_path / "p.json").write_text(json.dumps(data))
    run = Profile.load(tmp_path / "p.json").runs[0]
    assert run.layers[0].name == "a?[2Jb" and run.conditions["cpu"] == "x?"


def test_a_pipe_is_no_profile(tmp_path):
    os.mkfifo(tmp_path / "p.json")
    with pytest.raises(mc.FileError, match="regular file"):
        Profile.load(tmp_path / "p.json")


def test_speeds():
    """2 samples, 1000 multiply-adds: 4000 operations in each of three parts, 30 us."""
    cost = layer()
    assert cost.total_us == 35 and cost.flops(2) == 12_000
    assert cost.gflops(2) == pytest.approx(12_000 / 30e3) and cost.gbs == pytest.approx(12_000 / 30e3)
    assert cost.intensity(2) == 1 and cost.bytes_moved == 12_600
    nothing = LayerCost("n", "Relu")
    assert (nothing.gflops(2), nothing.gbs, nothing.intensity(2)) == (0, 0, 0)
    assert layer(backward_input_us=0.0).flops(2) == 8000 and layer(passes=("forward",)).gflops(2) == pytest.approx(0.4)


def test_the_nearer_roof():
    run = full_run()
    assert run.machine.ridge == 5 and run.machine.roof(1) == 20 and run.machine.roof(50) == 100
    cases = [(1000, 4, ""),            # 0.4 GFLOP/s and 0.4 GB/s: neither
             (100_000, 4, "compute"),   # 40 GFLOP/s, with 100 operations a byte
             (10_000, 40, "bandwidth"), # 4 GFLOP/s, 4 GB/s
             (10_000, 400, ""),         # 40 GB/s come from a cache
             (200_000, 400, "compute")] # as many, but the units are busy
    for macs, thousands, kind in cases:
        moved = {**dict.fromkeys(("forward", "backward_input", "backward_weight"), 1000 * thousands), "update": 0}
        one = layer(macs=macs, moved=moved, forward_us=10.0, backward_us=20.0, backward_input_us=10.0, backward_weight_us=10.0)
        assert run.bound_by(one) == kind, (macs, thousands)
        assert run.of_roof(one) == pytest.approx({"": 0, "compute": macs * 4e-6, "bandwidth": thousands / 200}[kind])
    with pytest.raises(KeyError):
        run.layer("nobody")


def test_live_bytes():
    blocks = [Block("a", "x", "activation", 10, 0, 0, 2), Block("a", "y", "scratch", 5, 10, 1, 1)]
    plan = MemoryPlan(0, 0, 0, 0, 0, blocks)
    assert plan.live(4) == [10, 15, 10, 0]
