"""Bars, roofline and memory on the profiler's page."""
import itertools
import re
from dataclasses import replace

import numpy as np
import pytest

from microcnn.memory import Block
from microcnn.tools import memory_plan, report_memory, report_roofline
from microcnn.tools.profile_data import (
    Machine,
    MemoryPlan,
    Profile,
    Run,
)
from microcnn.tools.report_layers import parts_of

from .report_pages import PROFILES, area, bare, chain, layer, meet, prediction_run, read, rows_of, section, training_run


def test_each_layer_has_a_bar():
    run = training_run()
    rows = section(read(Profile([run])), "layers").all("ol", "bars")[0].all("li")
    assert [one.all("span", "name")[0].text for one in rows] == [one.name for one in run.layers]
    longest = max(one.total_us for one in run.layers)
    css = ("p-forward", "p-dx", "p-dw", "p-update")
    for row, cost in zip(rows[:-1], run.layers[:-1], strict=True):
        found = {one.attributes["class"]: one.number("width") for one in row.all("rect")}
        times = [cost.forward_us, cost.backward_input_us, cost.backward_weight_us, cost.update_us]
        assert found == pytest.approx({name: 1000 * us / longest for name, us in zip(css, times, strict=True) if us}, rel=1e-4)
        assert row.all("span", "time")[0].text == f"{cost.total_us:.1f}\u00a0\u00b5s"
        assert row.all("svg", "bar")[0].attributes["aria-label"].startswith(f"{cost.name}: forward")
    assert [one.attributes["class"] for one in rows[-1].all("rect")] == ["p-around"]
    ranks = [int(one.attributes["style"].removeprefix("--rank:")) for one in rows]
    assert sorted(ranks) == list(range(len(ranks))) and ranks[2] == 0
    assert [one.all("span", "bound")[0].text if one.all("span", "bound") else "" for one in rows] == [
        "bandwidth", "compute", "compute", "compute", "bandwidth", "", ""]


@pytest.mark.parametrize("key", PROFILES)
def test_no_layer_is_left_out(key):
    page = read(Profile(PROFILES[key]))
    for number, run in enumerate(PROFILES[key], 1):
        assert len(section(page, "layers", number).all("li")) >= len(run.layers)
        assert sum(len(one.all("li")) for one in section(page, "layers", number).all("ol", "bars")) == len(run.layers)
        assert len(section(page, "table", number).all("tbody")[0].all("tr")) == len(run.layers)


def test_backward_of_old_files():
    """They do not tell dX from dW."""
    run = bare(training_run())
    page = section(read(Profile([run])), "layers")
    assert {one.attributes["class"] for one in page.all("ol", "bars")[0].all("rect")} == {"p-forward", "p-dw", "p-update",
                                                                                       "p-around"}
    assert parts_of(run.layers[2])["backward"] == 65 and parts_of(training_run().layers[2])["backward"] == 0
    assert "dX" not in section(read(Profile([run])), "table").text


def test_prediction_speaks_of_no_backward():
    page = read(Profile([prediction_run()]))
    assert not re.search("backward|dX|dW|update", page.all("main")[0].text)
    assert page.all("p", "under")[0].text == "Prediction, batch 1, 1 thread"


def test_memory_rectangles_are_the_plan():
    run = training_run()
    picture = area(section(read(Profile([run])), "memory"))
    drawn = picture.all("rect")
    assert len(drawn) == len(run.memory.blocks)
    top = max(block.offset + block.bytes for block in run.memory.blocks)
    scale = report_memory.HEIGHT / (top - run.memory.begin)
    floor = report_memory.ABOVE + report_memory.HEIGHT
    for one, block in zip(drawn, run.memory.blocks, strict=True):
        assert one.number("x") / 100 * 6 == pytest.approx(block.first, abs=1e-3)
        assert one.number("width") / 100 * 6 == pytest.approx(block.last + 1 - block.first, abs=1e-3)
        assert one.number("height") == pytest.approx(block.bytes * scale, rel=1e-4)
        assert floor - one.number("y") - one.number("height") == pytest.approx((block.offset - 4096) * scale, abs=0.01)
        assert one.attributes["class"] == f"k-{block.kind}"
        assert one.all("title")[0].text.startswith(f"{block.layer}: {block.name}")
    (line,) = picture.all("line", "peak")
    assert line.number("x1") == pytest.approx(100 * 3.5 / 6, rel=1e-4)
    assert any(one.text == "peak 7.0\u00a0KB, fc" for one in picture.all("text"))
    assert {one.text for one in picture.all("text", "inside")} == {"conv1", "mid", "fc"}


def test_who_makes_the_peak():
    run = training_run()
    peak = memory_plan.shared_peak(run.memory, run.rows)
    assert (peak.row, peak.rows, peak.bytes, peak.layer) == (3, 6, 7168, "fc")
    assert peak.holders == [("fc", 4096), ("mid", 2048), ("conv1", 1024)]
    memory = section(read(Profile([run])), "memory")
    rows = [[cell.text for cell in (*row.all("th"), *row.all("td"))] for row in memory.all("tbody")[0].all("tr")]
    assert rows == [["fc", "gradients", "4.0\u00a0KB", "57.1%"], ["mid", "activations", "2.0\u00a0KB", "28.6%"],
                    ["conv1", "activations", "1.0\u00a0KB", "14.3%"]]
    many = [Block(f"l{number}", "y", "state", 100, 100 * number, 0, 0) for number in range(20)]
    crowd = Run({}, 1.0, [], memory=MemoryPlan(2000, 2000, 0, 0, 0, many))
    rows = section(read(Profile([crowd])), "memory").all("tbody")[0].all("tr")
    assert len(rows) == report_memory.HOLDERS + 1 and rows[-1].text == "12\u00a0others1.2\u00a0KB60.0%"


@pytest.mark.parametrize(("parts", "expected"), [
    (["forward", "loss", "backward_weight", "backward_input", "update"],
     [("forward", 0, 1), ("loss", 1, 2), ("backward", 2, 4), ("update", 4, 5)]),
    (["forward", "backward_weight", "update", "backward_weight", "update"],
     [("forward", 0, 1), ("backward and update", 1, 5)]),
    (["forward", "forward"], [("forward", 0, 2)]), (["update"], [("update", 0, 1)]), (["?"], [("forward", 0, 1)]), ([], []),
])
def test_phases(parts, expected):
    run = Run({}, 1.0, [], rows=rows_of(("a", part) for part in parts))
    assert memory_plan.phases(run.rows) == expected
    if len(parts) > 1:
        run.memory = MemoryPlan(9, 9, 0, 0, 0, [Block("a", "y", "activation", 9, 0, 0, 1)])
        picture = area(section(read(Profile([run])), "memory"))
        assert len(picture.all("line", "phase")) == len(expected)
        assert {one.text for one in picture.all("text", "middle")} <= {name for name, _, _ in expected}


def test_the_roofline():
    run = training_run()
    found = section(read(Profile([run])), "roofline")
    picture = area(found)
    assert len(picture.all("line", "roof")) == 2 and len(picture.all("line", "ridge")) == 1
    assert {one.text for one in picture.all("text", "halo")} >= {"200 GFLOP/s", "20.0 GB/s"}
    drawn = {one.all("title")[0].text.partition(":")[0]: one for one in picture.all("circle")}
    assert set(drawn) == {"conv1", "mid", "conv2", "fc"}
    assert drawn["fc"].attributes["class"] == "bandwidth" and drawn["mid"].attributes["class"] == "compute"
    ridge = picture.all("line", "ridge")[0].number("x1")
    for one in run.layers[1:5]:
        assert (drawn[one.name].number("cx") >= ridge) == (one.intensity(8) >= 10)
    assert drawn["mid"].number("r") > drawn["fc"].number("r")
    slope, flat = picture.all("line", "roof")
    assert slope.number("y2") == flat.number("y1") == flat.number("y2") and slope.number("x2") == ridge
    assert "operations a byte" in picture.text and "Bound by bandwidth: 2\u00a0layers, 5.7% of the time" in found.text
    assert "Bound by compute: 3\u00a0layers, 64.3% of the time (mid, conv2, conv1)" in found.text
    assert "Held down by neither: 1\u00a0layer, 0.3% of the time (loss)" in found.text
    assert "Not in the picture, as nothing is multiplied: 2\u00a0layers." in found.text
    assert "held down by neither" not in found.all("ul", "legend")[0].text
    ranks = [one.text for one in found.all("ol", "ranks")[0].all("li")]
    assert ranks[0] == "mid 101\u00a0GFLOP/s, 50.5% of the flat roof" and ranks[-1].endswith("GFLOP/s, 50.0% of the left roof")


def test_layers_that_neither_roof_holds_down():
    """One is overhead, one has its numbers from a cache, one runs by Winograd's algorithm: more than is possible."""
    layers = [layer("idle", macs=100), layer("cached", forward=1.0, macs=10, moved=100_000), layer("winograd", macs=2_000_000)]
    run = Run({"batch": 1}, 30.0, layers, machine=Machine(200.0, 20.0))
    found = section(read(Profile([run])), "roofline")
    drawn = {one.all("title")[0].text.partition(":")[0]: one for one in area(found).all("circle")}
    assert {name: one.attributes["class"] for name, one in drawn.items()} == {
        "idle": "neither", "cached": "neither", "winograd": "compute"}
    assert "held down by neither" in drawn["idle"].text and "200.0% of the flat roof" in drawn["winograd"].text
    assert "held down by neither" in found.all("ul", "legend")[0].text
    assert drawn["winograd"].number("cy") < area(found).all("line", "roof")[1].number("y1")
    assert "Held down by neither: 2\u00a0layers, 36.7% of the time (idle, cached)" in found.text


def test_a_machine_that_was_not_measured():
    text = section(read(Profile([replace(training_run(), machine=None)])), "roofline")
    assert "microcnn doctor --measure" in text.text and not text.all("svg")


def test_labels_of_the_roofline_do_not_meet():
    rng = np.random.default_rng(3)
    for _ in range(20):
        points = [report_roofline.Point(layer(f"/layer{number}/conv/Conv2d"), "compute", x, 22 + 300 * y, r)
                  for number, (x, y, r) in enumerate(rng.random((30, 3)) * (1, 1, 9))]
        for kind, span in report_roofline.SPANS.items():
            labels = report_roofline.labels_of(points, [], kind)
            assert labels and len(labels) <= report_roofline.LABELS
            for width in np.linspace(*span, 7):
                boxes = [(*label.ends(width), label.top, label.bottom) for label in labels]
                assert all(left >= 0 and right <= width for left, right, *_ in boxes)
                assert not any(meet(one, other) for one, other in itertools.combinations(boxes, 2))


@pytest.mark.parametrize(("count", "chosen"), [(40, "r1-program"), (41, "r1-cost")])
def test_the_slowest_of_many_stand_first(count, chosen):
    picks = section(read(Profile([chain(count)])), "layers").all("input")
    assert [one.attributes["id"] for one in picks if "checked" in one.attributes] == [chosen]


@pytest.mark.parametrize(("more", "told"), [(0, ""), (63, ""), (64, "64\u00a0B"), (4096, "4.0\u00a0KB")])
def test_what_other_programs_need(more, told):
    run = training_run()
    run.memory.arena += more
    text = section(read(Profile([run])), "memory").text
    assert ("only other programs of this network use" in text) == bool(told)
    assert not told or f"{told} of the arena only other programs" in text
