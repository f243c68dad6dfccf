"""Other forms of a profile: CSV, a DataFrame, and a trace whose slices lie inside each other."""
import csv
import io
import json
import sys
from types import SimpleNamespace

import pytest

import microcnn as mc
from microcnn.memory import Block
from microcnn.tools.profile_data import (
    GraphNode,
    LayerCost,
    Machine,
    MemoryPlan,
    Profile,
    RowCost,
    Run,
    Spread,
)
from microcnn.tools.profile_forms import COLUMNS, GAP, csv_text, frame, records, trace_dict, trace_text

from .command_line import small_graph

NAME = 'conv, "the first"\nпервый'
ROWS = [("layout", "layout", "forward", "layout.input", 1.0), (NAME, "Conv2d", "forward", "conv2d.forward", 10.0),
        ("fc", "Linear", "forward", "linear.forward", 2.5), ("loss", "loss", "loss", "loss.reset", 0.0),
        ("loss", "loss", "loss", "loss.cross_entropy", 0.75), ("fc", "Linear", "backward_weight", "linear.dw", 3.0),
        ("fc", "Linear", "update", "sgd.step", 0.5), ("fc", "Linear", "backward_input", "layout.copy", 0.25),
        ("fc", "Linear", "backward_input", "linear.dx", 4.0), (NAME, "Conv2d", "backward_weight", "conv2d.dw.main", 20.0),
        (NAME, "Conv2d", "backward_weight", "conv2d.dw.rest", 5.0), (NAME, "Conv2d", "update", "sgd.step", 0.125)]


def rows_of(train):
    return [RowCost(layer, op, part, kernel, us, reads=1000, writes=500) for layer, op, part, kernel, us in ROWS
            if train or part == "forward"]


def made(total=60.0, train=True, batch=4, **changed):
    """A run with everything that the profiler finds out."""
    layers = [LayerCost("layout", "layout", 1.0),
              LayerCost(NAME, "Conv2d", 10.0, 25.0, 0.125, 1000, 40, (4, 8, 8), {"activations": 4096, "parameters": 160},
                        backward_weight_us=25.0, peak_bytes=4096, moved={"forward": 1500, "backward_weight": 3000},
                        fused=("bn", "relu"), spread=Spread(30, 35, 40, 50)),
              LayerCost("fc", "Linear", 2.5, 7.25, 0.5, 640, 650, (10,), backward_input_us=4.25, backward_weight_us=3.0),
              LayerCost("loss", "loss", 0.75), LayerCost("call", "python", 8.0)]
    blocks = [Block(NAME, "y", "activation", 4096, 0, 1, 9), Block("fc", "dx", "gradient", 512, 4096, 8, 10),
              Block("fc", "w", "scratch", 64, 8192, 0, 12)]
    conditions = {"model": "tiny", "batch": batch, "dtype": "float32", "threads": 2, "train": train, "cpu": "cpu"} | changed
    return Run(conditions, total, layers, Spread(58, 61, 66, 90), rows_of(train), MemoryPlan(9000, 4672, 800, 0, 0, blocks),
               [GraphNode(NAME, "Conv2d")], Machine(2.0, 0.2))


def old():
    """A run as files had it before there were rows, parts, spreads, memory and machines."""
    return Run({"batch": 2, "train": True}, 100.0,
               [LayerCost("a", "Conv2d", 10.0, 20.0, 5.0, 100, 7, (4, 2, 2)), LayerCost("b", "Relu", 1.0, 2.0),
                LayerCost("loss", "mse", 1.5), LayerCost("call", "python", 3.0)])


def slices(trace, process=1):
    return [event for event in trace["traceEvents"] if event["ph"] == "X" and event["pid"] == process]


def tree(events):
    """Each slice with those directly inside it, found as a viewer does: by their times alone."""
    stack, found = [], []
    for event in events:
        begin, end = round(1000 * event["ts"]), round(1000 * (event["ts"] + event["dur"]))
        while stack and stack[-1]["end"] <= begin:
            stack.pop()
        node = {"event": event, "begin": begin, "end": end, "inside": []}
        if stack:
            assert stack[-1]["begin"] < begin and end < stack[-1]["end"], event
            stack[-1]["inside"].append(node)
        else:
            found.append(node)
        stack.append(node)
    return found


def names(nodes):
    return [node["event"]["name"] for node in nodes]


def walk(nodes):
    for node in nodes:
        yield node
        yield from walk(node["inside"])


PROFILES = {
    "training": lambda: Profile([made()]), "prediction": lambda: Profile([made(train=False)]),
    "rows longer than the call": lambda: Profile([made(total=20.0)]), "no time": lambda: Profile([made(total=0.0)]),
    "exactly the rows": lambda: Profile([made(total=55.125)]), "old": lambda: Profile([old()]),
    "two runs": lambda: Profile([made(), old()]), "nothing": lambda: Profile([Run({}, 0.0, [])]),
    "zero layers": lambda: Profile([Run({}, 5.0, [LayerCost("a", "Conv2d")])]),
    "no memory": lambda: Profile([Run({"train": True}, 60.0, made().layers, rows=rows_of(True))]),
}


@pytest.mark.parametrize("name", PROFILES)
def test_slices_lie_inside_each_other(name):
    profile = PROFILES[name]()
    trace = json.loads(trace_text(profile))
    times = [event["ts"] for event in trace["traceEvents"]]
    assert times == sorted(times) and all(event["ph"] in "XMC" for event in trace["traceEvents"])
    for number in range(1, len(profile.runs) + 1):
        whole, = tree(slices(trace, number))
        for node in walk([whole]):
            assert node["end"] >= node["begin"]
            assert sum(inner["end"] - inner["begin"] for inner in node["inside"]) <= node["end"] - node["begin"]
            for one, other in zip(node["inside"], node["inside"][1:], strict=False):
                assert one["end"] + GAP <= other["begin"]
        kinds = [{"call"}, {"python", "phase", "call"}, {"layer"}, {row.part for row in made().rows}]
        for level, allowed in zip(levels(whole), kinds, strict=False):
            assert {node["event"]["cat"] for node in level} <= allowed
        assert len(list(levels(whole))) <= len(kinds)


def levels(whole):
    level = [whole]
    while level:
        yield level
        level = [inner for node in level for inner in node["inside"]]


def test_training_step():
    whole, = tree(slices(trace_dict(Profile([made()]))))
    assert names([whole]) == ["train_step"]
    assert names(whole["inside"]) == ["call", "forward", "loss", "backward", "update", "backward", "update",
                                      "not accounted for"]
    forward, loss = whole["inside"][1:3]
    assert names(forward["inside"]) == ["layout", NAME, "fc"]
    assert names(loss["inside"][0]["inside"]) == ["loss.reset", "loss.cross_entropy"]
    backward = whole["inside"][5]
    assert [(names([layer]), names(layer["inside"])) for layer in backward["inside"]] == [
        (["fc"], ["layout.copy", "linear.dx"]), ([NAME], ["conv2d.dw.main", "conv2d.dw.rest"])]
    assert whole["end"] - whole["begin"] == 60_000
    rows = [node["event"] for node in walk([whole]) if "reads" in node["event"]["args"]]
    assert [(row["name"], row["dur"]) for row in rows] == [(kernel, us) for *_, kernel, us in ROWS]
    assert sum(node["end"] - node["begin"] for node in whole["inside"]) <= 60_000


def test_arguments():
    whole, = tree(slices(trace_dict(Profile([made()]))))
    first, second = whole["inside"][1]["inside"][1], whole["inside"][5]["inside"][1]
    assert whole["event"]["args"] == {"us": 60.0, "model": "tiny", "batch": 4, "threads": 2, "dtype": "float32", "cpu": "cpu"}
    assert first["event"]["args"] == {"op": "Conv2d", "kernel": "conv2d.forward", "fused": "bn + relu", "us": 10.0,
                                      "bytes": 1500, "macs": 4000, "GFLOP/s": 0.8, "GB/s": 0.15}
    row = first["inside"][0]["event"]
    assert row["args"] == {"kernel": "conv2d.forward", "us": 10.0, "bytes": 1500, "macs": 4000, "GFLOP/s": 0.8, "GB/s": 0.15,
                           "reads": 1000, "writes": 500}
    assert row["cat"] == "forward"
    # two rows share the multiply-adds: only the layer can say how fast they were done
    assert second["event"]["args"]["macs"] == 4000 and second["event"]["args"]["GFLOP/s"] == 0.32
    assert all("macs" not in inner["event"]["args"] for inner in second["inside"])
    # a row that only moves numbers does not
    inputs = whole["inside"][5]["inside"][0]["inside"]
    assert ["macs" in inner["event"]["args"] for inner in inputs] == [False, True]
    assert "GB/s" not in whole["inside"][2]["inside"][0]["inside"][0]["event"]["args"]     # took no time
    assert whole["inside"][5]["event"]["args"] == {"us": 29.25}
    assert whole["inside"][-1]["event"]["args"] == {"us": pytest.approx(60 - 55.125)}


@pytest.mark.parametrize(("kernel", "told"), [
    ("conv2d.forward", True), ("winograd.forward", True), ("linear.backward_input_few", True), ("conv2d_weight.backward", True),
    ("activation.backward", False), ("winograd.weight", False), ("conv2d.flip", False), ("layout.permute", False),
])
def test_whose_multiply_adds_they_are(kernel, told):
    run = Run({"train": True}, 10.0, [LayerCost("a", "Conv2d", macs=100, backward_us=5.0, backward_input_us=5.0)],
              rows=[RowCost("a", "Conv2d", "backward_input", kernel, 5.0)])
    events = slices(trace_dict(Profile([run])))
    found = [event["args"].get("macs") for event in events if event["cat"] in ("layer", "backward_input")]
    assert found == [100 if told else None] * 2


def test_rows_longer_than_the_call():
    whole, = tree(slices(trace_dict(Profile([made(total=20.0)]))))
    assert whole["event"]["args"]["us"] == 20.0 and whole["event"]["dur"] > 55.125
    assert "not accounted for" not in names(whole["inside"])


def test_runs_without_rows():
    """Layers in order, backward in reverse; what is known of parts is inside."""
    whole, = tree(slices(trace_dict(Profile([old()]))))
    phases = {node["event"]["name"]: names(node["inside"]) for node in whole["inside"]}
    assert phases == {"call": [], "forward": ["a", "b"], "loss": ["loss"], "backward": ["b", "a"], "update": ["a"],
                      "not accounted for": []}
    assert whole["inside"][1]["inside"][0]["event"]["args"] == {"op": "Conv2d", "us": 10.0, "macs": 200, "GFLOP/s": 0.04}
    run = made()
    run.rows = []
    trace = trace_dict(Profile([run]))
    backward = next(node for node in tree(slices(trace))[0]["inside"] if node["event"]["name"] == "backward")
    assert [names(layer["inside"]) for layer in backward["inside"]] == [["backward_input", "backward_weight"],
                                                                       ["backward_weight"]]
    assert backward["inside"][1]["event"]["args"]["GB/s"] == 0.12
    assert not [event for event in trace["traceEvents"] if event["ph"] == "C"]


def test_live_bytes():
    trace = trace_dict(Profile([made()]))
    starts = {event["ts"]: event["name"] for event in slices(trace) if "reads" in event["args"]}
    last = max(event["ts"] + event["dur"] for event in slices(trace) if "reads" in event["args"])
    counted = [(starts.get(event["ts"]), event["args"]) for event in trace["traceEvents"] if event["ph"] == "C"]
    assert counted == [
        ("layout.input", {"activation": 0, "gradient": 0, "scratch": 64}),
        ("conv2d.forward", {"activation": 4096, "gradient": 0, "scratch": 64}),
        ("linear.dx", {"activation": 4096, "gradient": 512, "scratch": 64}),
        ("conv2d.dw.rest", {"activation": 0, "gradient": 512, "scratch": 64}),
        ("sgd.step", {"activation": 0, "gradient": 0, "scratch": 64}),
        (None, {"activation": 0, "gradient": 0, "scratch": 0})]
    end = [event["ts"] for event in trace["traceEvents"] if event["ph"] == "C"][-1]
    assert end == pytest.approx(last)


def test_processes():
    trace = trace_dict(Profile([made(), made(threads=1, train=False)]))
    told = {(event["pid"], event["name"]): event["args"] for event in trace["traceEvents"] if event["ph"] == "M"}
    assert told == {
        (1, "process_name"): {"name": "tiny, train_step, batch 4, 2 threads, cpu"},
        (1, "process_sort_index"): {"sort_index": 1}, (1, "thread_name"): {"name": "program"},
        (2, "process_name"): {"name": "tiny, predict, batch 4, 1 thread, cpu"},
        (2, "process_sort_index"): {"sort_index": 2}, (2, "thread_name"): {"name": "program"}}
    assert [event["ph"] for event in trace["traceEvents"][:6]] == ["M"] * 6
    assert {event["pid"] for event in trace["traceEvents"]} == {1, 2}


def test_csv_read_back():
    text = csv_text(Profile([made(), old()]))
    assert text.endswith("\r\n") and text.startswith(",".join(COLUMNS) + "\r\n")
    lines = list(csv.DictReader(io.StringIO(text, newline="")))
    assert all(None not in line and None not in line.values() for line in lines)
    assert [(line["run"], line["kind"], line["layer"]) for line in lines] == [
        *(("0", "layer", name) for name in ("layout", NAME, "fc", "loss", "call")), ("0", "not_accounted_for", ""),
        ("0", "whole_call", ""), *(("1", "layer", name) for name in ("a", "b", "loss", "call")),
        ("1", "not_accounted_for", ""), ("1", "whole_call", "")]
    known = {key: value for key, value in lines[1].items() if value}
    assert known == {
        "kind": "layer", "run": "0", "model": "tiny", "train": "true", "batch": "4", "threads": "2", "dtype": "float32",
        "layer": NAME, "op": "Conv2d", "fused": "bn + relu", "output_shape": "4x8x8", "forward_us": "10.0",
        "backward_us": "25.0", "backward_input_us": "0.0", "backward_weight_us": "25.0", "update_us": "0.125",
        "total_us": "35.125", "share_percent": "58.542", "min_us": "30", "p50_us": "35", "p90_us": "40", "p99_us": "50",
        "macs_per_sample": "1000", "parameters": "40", "gflop_per_s": "0.457", "gbyte_per_s": "0.129", "flop_per_byte": "3.556",
        "bound_by": "bandwidth", "roof_percent": "64.3", "moved_bytes": "4500", "parameters_bytes": "160",
        "activations_bytes": "4096", "gradients_bytes": "0", "state_bytes": "0", "scratch_bytes": "0", "peak_bytes": "4096"}
    for number in (0, 3, 4, 8):         # what multiplies nothing has no speed of it
        assert lines[number]["macs_per_sample"] == "0"
        assert lines[number]["gflop_per_s"] == lines[number]["flop_per_byte"] == lines[number]["roof_percent"] == ""
    assert lines[2]["gflop_per_s"] == "1.575" and lines[2]["flop_per_byte"] == ""      # nobody knows what it moves
    whole, unaccounted = lines[6], lines[5]
    assert (whole["total_us"], whole["share_percent"], whole["p50_us"], whole["forward_us"]) == ("60.0", "100.0", "61", "")
    assert float(unaccounted["total_us"]) == pytest.approx(60 - 55.125)
    assert lines[7]["threads"] == lines[7]["p50_us"] == lines[7]["model"] == lines[7]["bound_by"] == ""


def test_csv_without_any_time():
    lines = list(csv.DictReader(io.StringIO(csv_text(PROFILES["no time"]()))))
    assert lines[-1]["share_percent"] == "" and lines[-1]["total_us"] == "0.0"
    assert len(csv_text(PROFILES["nothing"]()).splitlines()) == 3


def test_every_record_has_every_column():
    for line in records(Profile([made(), old()])):
        assert tuple(line) == COLUMNS


def test_frame(monkeypatch):
    """With a stand-in, so that it is tested wherever pandas is not installed."""
    def data_frame(lines, columns):
        return SimpleNamespace(lines=lines, columns=columns)

    monkeypatch.setitem(sys.modules, "pandas", SimpleNamespace(DataFrame=data_frame))
    found = frame(Profile([made(), old()]))
    assert found.columns == list(COLUMNS[1:])
    assert [(line["run"], line["layer"]) for line in found.lines] == [
        *((0, name) for name in ("layout", NAME, "fc", "loss", "call")), *((1, name) for name in ("a", "b", "loss", "call"))]
    assert all(list(line) == found.columns for line in found.lines)
    assert found.lines[1]["train"] is True and found.lines[1]["forward_us"] == 10.0 and found.lines[-1]["p50_us"] is None
    assert Profile([old()]).frame().lines[0]["layer"] == "a"


def test_frame_of_pandas():
    pytest.importorskip("pandas")
    found = frame(Profile([made(), old()]))
    assert found.shape == (9, len(COLUMNS) - 1)
    assert found.groupby("run")["total_us"].sum().tolist() == pytest.approx([55.125, 42.5])
    assert frame(Profile([Run({}, 0.0, [])])).shape == (0, len(COLUMNS) - 1)


def test_without_pandas(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(mc.CompileError, match="needs the package pandas, which is not installed; install it: python -m pip"):
        frame(Profile([made()]))


def test_what_was_measured():
    """Names of layers are the model's, and every row has its slice."""
    graph = small_graph()
    measured = mc.profile(graph, batch=2, train="all", repeats=3)
    trace = json.loads(trace_text(measured))
    whole, = tree(slices(trace))
    levels_found = list(levels(whole))
    assert {node["event"]["name"] for node in levels_found[1]} <= {"call", "forward", "loss", "backward", "update",
                                                                  "not accounted for"}
    inside = {node["event"]["name"] for node in levels_found[2]}
    assert {node.name for node in graph.nodes if node.op in ("Conv2d", "Linear")} <= inside
    assert names(levels_found[3]) == [row.kernel for row in measured.rows]
    counted = [event for event in trace["traceEvents"] if event["ph"] == "C"]
    plan = measured.runs[0].memory
    assert max(sum(event["args"].values()) for event in counted) == max(plan.live(len(measured.rows)))
    assert not any(counted[-1]["args"].values())
    lines = list(csv.DictReader(io.StringIO(csv_text(measured))))
    assert sum(float(line["total_us"]) for line in lines[:-1]) == pytest.approx(float(lines[-1]["total_us"]), abs=0.1)
