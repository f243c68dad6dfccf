"""The profiler's page: what it says and draws, and that nothing in a profile can break it."""
import base64
import hashlib
import itertools
import re
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser

import numpy as np
import pytest

import microcnn as mc
from microcnn.memory import Block
from microcnn.tools import report_layout, report_memory, report_roofline, report_style
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
from microcnn.tools.report import report_html
from microcnn.tools.report_graph import SEAM_SIZE, box_cost, edge_path, seam_label, shade
from microcnn.tools.report_layers import parts_of
from microcnn.tools.report_text import escaped, fitted, mono_width, named, peak_of, plain, share_of

from .command_line import small_graph

VOID = {"meta", "link", "input", "br", "wbr", "hr", "img"}
ODD = ['<script>alert("x")</script>', "a & b", "\"quoted\" 'name'", "__proto__", "constructor",
       "k\u00e4se/\u7573\u307f/\U0001f600", "", "long/" * 400,
       "\x00\x1b[31m\ud800\u202egnp.exe", "</title></style></svg>", "{braces} %s {0}", "a\nb\tc"]


@dataclass
class Element:
    """An element of a page, with what stands in it."""

    tag: str
    attributes: dict
    above: "Element | None"
    content: list = field(default_factory=list)

    @property
    def inside(self):
        return [one for one in self.content if isinstance(one, Element)]

    @property
    def text(self):
        return "".join(one if isinstance(one, str) else one.text for one in self.content)

    def all(self, tag, css=None):
        """Elements in it, at any depth."""
        found = []
        for one in self.inside:
            if one.tag == tag and (css is None or css in (one.attributes.get("class") or "").split()):
                found.append(one)
            found += one.all(tag, css)
        return found

    def number(self, name):
        return float(self.attributes[name].rstrip("%"))


class Reader(HTMLParser):
    """Builds elements; every tag has to be closed where it was opened."""

    def __init__(self):
        super().__init__()
        self.root = self.at = Element("root", {}, None)

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs), (tag, attrs)
        element = Element(tag, dict(attrs), self.at)
        self.at.content.append(element)
        if tag not in VOID:
            self.at = element

    def handle_startendtag(self, tag, attrs):
        self.at.content.append(Element(tag, dict(attrs), self.at))

    def handle_endtag(self, tag):
        assert tag == self.at.tag, f"</{tag}> closes <{self.at.tag}>"
        self.at = self.at.above

    def handle_data(self, data):
        self.at.content.append(data)


def read(profile):
    """The page as an element."""
    reader = Reader()
    reader.feed(report_html(profile))
    reader.close()
    assert reader.at is reader.root
    return reader.root


def section(page, key, run=1):
    return next(one for one in page.all("section") if one.attributes["id"] == f"r{run}-{key}")


def area(element):
    """The picture of a section, without its axis."""
    return element.all("svg", "area")[0]


def layer(name, op="Conv2d", forward=10.0, dx=0.0, dw=0.0, update=0.0, moved=1000, **more):
    return LayerCost(name, op, forward, dx + dw, update, backward_input_us=dx, backward_weight_us=dw,
                     moved={"forward": moved, "backward_input": moved if dx else 0, "backward_weight": moved if dw else 0,
                            "update": 0}, **more)


def rows_of(parts):
    return [RowCost(name, "Conv2d", part, "kernel", 1.0) for name, part in parts]


def residual_graph():
    """conv1 with its relu; conv2, to which conv1's output is added; a flatten that does nothing; fc."""
    return [GraphNode("conv1", "Conv2d", ("image",), (4, 8, 8)), GraphNode("relu1", "Relu", ("conv1",), (4, 8, 8), "conv1"),
            GraphNode("mid", "Conv2d", ("relu1",), (4, 8, 8)), GraphNode("conv2", "Conv2d", ("mid",), (4, 8, 8)),
            GraphNode("add", "Add", ("conv2", "relu1"), (4, 8, 8), "conv2"), GraphNode("flat", "Flatten", ("add",), (256,)),
            GraphNode("fc", "Linear", ("flat",), (10,))]


def training_run():
    """A training step by hand. mid is slowest; the memory is fullest when row 3 runs, backward of fc; fc waits for memory."""
    layers = [layer("layout", "layout", 2, moved=20_000), layer("conv1", forward=20, dw=15, update=1, macs=100_000),
              layer("mid", forward=30, dx=40, dw=25, update=2, macs=200_000, moved=2000, fused=("bn",)),
              layer("conv2", forward=20, dx=20, dw=20, macs=200_000, moved=2000),
              layer("fc", "Linear", 5, 5, 5, macs=2560, moved=50_000, peak_bytes=4096, spread=Spread(1, 15, 16, 17)),
              layer("loss", "cross_entropy", 1), layer("call", "python", 60, moved=0)]
    rows = rows_of([("conv1", "forward"), ("mid", "forward"), ("loss", "loss"), ("fc", "backward_input"),
                    ("mid", "backward_weight"), ("mid", "update")])
    blocks = [Block("conv1", "y", "activation", 1024, 4096, 0, 4), Block("mid", "y", "activation", 2048, 5120, 1, 3),
              Block("fc", "dx", "gradient", 4096, 7168, 3, 4), Block("mid", "work", "scratch", 512, 5120, 4, 5)]
    memory = MemoryPlan(11264, 11264, 3000, 1000, 4096, blocks)
    conditions = {"model": "hand-made", "batch": 8, "threads": 2, "train": True, "dtype": "float32", "cpu": "A & B",
                  "tiles": [[6, 4], [8, 2]], "trained": [f"weight{number}" for number in range(80)], "governor": None,
                  "confidence": 0.034}
    return Run(conditions, 300.0, layers, Spread(280, 310, 330, 400), rows, memory, residual_graph(),
               Machine(200.0, 20.0, 2))


def prediction_run():
    return Run({"model": "p", "batch": 1, "train": False, "threads": 1}, 40.0,
               [layer("conv1", macs=5000), layer("fc", "Linear", 25.0, macs=100)], graph=residual_graph())


def chain(count, name="layer{}"):
    """A run of so many layers one after the other."""
    names = [name.format(number) for number in range(count)]
    nodes = [GraphNode(one, "Conv2d", (before,), (1, 2, 3)) for before, one in itertools.pairwise(["input", *names])]
    blocks = [Block(one, "y", "activation", 64, 64 * (number % 2), number, number + 1) for number, one in enumerate(names)]
    return Run({"batch": 2}, 10.0 * count, [layer(one, macs=100 + number) for number, one in enumerate(names)],
               rows=rows_of((one, "forward") for one in names), memory=MemoryPlan(128, 128, 0, 0, 0, blocks), graph=nodes,
               machine=Machine(100.0, 10.0))


def odd_run():
    """Names that try to break out of the page, in every place where a name can stand."""
    layers = [layer(name, name, macs=1000, shape=(1,), fused=(name, "x")) for name in ODD]
    nodes = [GraphNode(name, name, ("<blink>", name), (1, 2)) for name in ODD]
    blocks = [Block(name, name, name, 999, 1000 * number, 0, 3) for number, name in enumerate(ODD)]
    conditions = {"model": ODD[0], "cpu": ODD[9], "dtype": ODD[1], "time": ODD[8], "threads": ODD[0], "microcnn": ODD[0],
                  ODD[0]: ODD[0], "trained": ODD, "optimizer": {"kind": ODD[0], "<marquee>": 1}, "batch": 1}
    return Run(conditions, 100.0, layers, rows=rows_of((name, "forward") for name in ODD),
               memory=MemoryPlan(10**6, 0, 0, 0, 0, blocks), graph=nodes, machine=Machine(1.0, 1.0, 1, ODD[0]))


def bare(run):
    """What a file from before there were rows, plans and graphs holds."""
    layers = [LayerCost(one.name, one.op, one.forward_us, one.backward_us, one.update_us, one.macs) for one in run.layers]
    return Run(run.conditions, run.total_us, layers)


ZERO = Run({}, 0.0, [LayerCost("a", "Conv2d"), LayerCost("b", "Relu")], rows=rows_of([("a", "forward")]),
           memory=MemoryPlan(0, 0, 0, 0, 0, [Block("a", "y", "activation", 0, 0, 0, 0)]),
           graph=[GraphNode("a", "Conv2d"), GraphNode("b", "Relu", ("a",))], machine=Machine(10.0, 5.0))
STRANGE = Run({"batch": 3}, float("nan"), [layer("nan", forward=float("nan"), macs=5), layer("minus", forward=-5.0),
                                           layer("inf", forward=float("inf"), macs=3)], machine=Machine(10.0, 5.0))
PROFILES = {
    "training": [training_run()], "prediction": [prediction_run()], "odd": [odd_run()], "bare": [bare(training_run())],
    "zero": [ZERO], "strange": [STRANGE], "empty": [Run({}, 0.0, [])], "one": [chain(1)], "many": [chain(500)],
    "long": [chain(12, "stage{0}/" * 300)], "several": [training_run(), prediction_run(), odd_run()],
    "no plan to share": [replace(training_run(), memory=MemoryPlan(10, 10, 5, 0, 10))],
    "no machine": [replace(training_run(), machine=Machine(0.0, 0.0))],
}


@pytest.fixture(params=PROFILES)
def profile(request):
    return Profile(PROFILES[request.param])


def test_the_page_stands_alone(profile):
    page, text = read(profile), report_html(profile)
    assert text.startswith("<!doctype html>") and text == report_html(profile)
    assert not re.search(r"https?:|@import|url\(", text.replace("&#x27;", ""))
    ids = [one.attributes["id"] for one in everything(page) if "id" in one.attributes]
    assert len(set(ids)) == len(ids)
    for one in everything(page):
        assert not any(name.startswith("on") for name in one.attributes), one
        assert "src" not in one.attributes and one.tag not in ("img", "iframe", "object", "foreignobject")
        link = one.attributes.get("href", "data:,")
        assert link == "data:," or link[1:] in ids
        if "for" in one.attributes:
            assert one.attributes["for"] in ids
        assert one.tag != "svg" or "aria-hidden" in one.attributes or one.attributes["role"] == "img" and \
            one.attributes["aria-label"]
        assert one.tag != "th" or one.attributes["scope"] in ("row", "col")
    (script,) = page.all("script")
    digest = base64.b64encode(hashlib.sha256(script.text.encode()).digest()).decode()
    policy = next(one.attributes["content"] for one in page.all("meta") if "http-equiv" in one.attributes)
    assert f"script-src 'sha256-{digest}'" in policy and "default-src 'none'" in policy
    text.encode("utf-8")


def everything(page):
    for one in page.inside:
        yield one
        yield from everything(one)


def test_coordinates_are_numbers(profile):
    page = read(profile)
    for one in everything(page):
        for name in ("x", "y", "x1", "y1", "x2", "y2", "width", "height", "cx", "cy", "r"):
            if name in one.attributes and one.tag in ("rect", "line", "circle", "text", "svg"):
                assert re.fullmatch(r"-?[\d.]+(e-?\d+)?%?", one.attributes[name]), one
        if one.tag in ("rect", "circle"):
            assert all(one.number(name) >= 0 for name in ("width", "height", "r") if name in one.attributes)
        if one.tag == "path":
            assert re.fullmatch(r"[MLVC\d. -]+", one.attributes["d"]), one


def test_headings_go_down_step_by_step(profile):
    levels = [int(one.tag[1]) for one in everything(read(profile)) if re.fullmatch(r"h\d", one.tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def test_the_three_answers():
    slowest, peak, bandwidth = read(Profile([training_run()])).all("div", "answers")[0].inside
    assert slowest.all("p", "big")[0].text == "mid"
    assert "97.0\u00a0\u00b5s, 32.3% of the call, 41.2% of it dX" in slowest.text
    assert [one.text for one in slowest.all("li")] == ["conv220.0%", "conv112.0%", "fc5.0%"]
    assert peak.all("p", "big")[0].text == "fc" and "7.0\u00a0KB are live at once while fc runs backward" in peak.text
    assert [one.all("span", "name")[0].text for one in peak.all("li")] == ["fc", "mid", "conv1"]
    # 10 of 20 GB/s. What multiplies nothing may wait for memory too
    assert bandwidth.all("p", "big")[0].text == "2\u00a0layers, 5.7% of the time"
    assert bandwidth.all("li")[0].text == "fc5.0%"


def test_layers_take_no_more_than_everything():
    """Not even where the layers' sum exceeds the whole call."""
    run = Run({}, 10.0, [layer("a", macs=1, moved=20_000), layer("b", macs=1, moved=20_000)], machine=Machine(10.0, 5.0))
    assert "2\u00a0layers, 100.0% of the time" in read(Profile([run])).all("div", "answers")[0].text


def test_the_main_numbers():
    page = read(Profile([training_run()]))
    told = {one.all("dt")[0].text: one.all("dd")[0].text for one in page.all("dl", "numbers")[0].all("div")}
    assert told["Whole call"].startswith("300.0\u00a0\u00b5s") and told["A sample"].startswith("37.5\u00a0\u00b5s")
    assert told["Not accounted for"] == "9.7%" and told["Batch"] == "8" and told["Threads"] == "2"
    assert told["Arena"].startswith("11.0\u00a0KB")
    whole = page.all("div", "whole")[0].all("rect")
    assert [one.attributes["class"] for one in whole] == ["p-forward", "p-dx", "p-dw", "p-update", "p-around", "p-rest"]
    assert sum(one.number("width") for one in whole) == pytest.approx(1000, abs=0.1)


@pytest.mark.parametrize(("change", "text"), [
    ({"machine": None}, "not knownRun microcnn doctor --measure"), ({"memory": None}, "not knownThis profile holds no memory"),
    ({"layers": []}, "none"), ({"layers": training_run().layers[1:4]}, "no layerNone moves its numbers about as fast"),
])
def test_answers_that_are_not_known(change, text):
    answers = read(Profile([replace(training_run(), **change)])).all("div", "answers")[0]
    assert text in answers.text


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
    peak = peak_of(run)
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
     [("forward", 0, 2), ("backward", 2, 4), ("update", 4, 5)]),
    (["forward", "backward_weight", "update", "backward_weight", "update"],
     [("forward", 0, 1), ("backward and update", 1, 5)]),
    (["forward", "forward"], [("forward", 0, 2)]), (["update"], [("update", 0, 1)]), (["?"], [("forward", 0, 1)]), ([], []),
])
def test_phases(parts, expected):
    run = Run({}, 1.0, [], rows=rows_of(("a", part) for part in parts))
    assert report_memory.phases(run) == expected
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


def meet(one, other):
    """Whether two boxes (left, right, top, bottom) have more than a border in common."""
    return one[0] < other[1] - 1e-6 and other[0] < one[1] - 1e-6 and one[2] < other[3] - 1e-6 and other[2] < one[3] - 1e-6


def random_graph(rng, count):
    """Layers that read one to four of those before them, near or far; some are fused into one that they read."""
    nodes = []
    for number in range(count):
        reads = {int(rng.integers(max(0, number - reach), number)) for reach in rng.integers(1, 12, rng.integers(1, 5))} \
            if number else set()
        host = f"n{min(reads)}" if reads and rng.random() < 0.2 else None
        nodes.append(GraphNode(f"n{number}", "Op", tuple(f"n{one}" for one in sorted(reads)) or ("image",), (1,), host))
    return nodes


def check_layout(layout):
    """No two boxes meet; edges begin below one box, end above another and run across none."""
    outlines = [(box.x, box.x + box.width, box.y, box.y + box.height) for box in layout.boxes]
    assert not any(meet(one, other) for one, other in itertools.combinations(outlines, 2))
    assert all(0 <= left and right <= report_layout.WIDTH for left, right, *_ in outlines)
    for edge in layout.edges:
        (x, y), (to_x, to_y) = edge.points[0], edge.points[-1]
        left, right, _, bottom = outlines[edge.source]
        assert left < x < right and y == bottom
        left, right, top, _ = outlines[edge.target]
        assert left < to_x < right and to_y == top
        for begin, end in itertools.pairwise(edge.points):
            low, high = sorted((begin[1], end[1]))
            reach = (min(begin[0], end[0]), max(begin[0], end[0]) + 1e-3, low, high)
            assert not any(meet(reach, outline) for outline in outlines), edge
            assert 0 <= reach[0] and reach[1] <= report_layout.WIDTH
    for top, bottom in itertools.pairwise(layout.cuts):
        assert top < bottom
        for box in layout.boxes:
            assert not box.y < top < box.y + box.height and not box.y < bottom < box.y + box.height
    assert layout.cuts[0] == 0 and all(layout.cuts[-1] >= bottom for *_, bottom in outlines)


@pytest.mark.parametrize("seed", range(12))
def test_layout_of_random_graphs(seed):
    rng = np.random.default_rng(seed)
    nodes = random_graph(rng, int(rng.integers(2, 60)))
    layout = report_layout.lay_out(nodes)
    check_layout(layout)
    assert sorted(node.name for box in layout.boxes for node in box.members) == sorted(node.name for node in nodes)
    holder = {node.name: number for number, box in enumerate(layout.boxes) for node in box.members}
    holder["image"] = 0
    wanted = {(holder[source], holder[node.name]) for node in nodes for source in node.inputs}
    assert {(edge.source, edge.target) for edge in layout.edges} == {pair for pair in wanted if pair[0] != pair[1]}


def test_layout_of_a_residual_network():
    layout = report_layout.lay_out(residual_graph())
    check_layout(layout)
    names = [box.name for box in layout.boxes]
    assert names == ["image", "conv1", "mid", "conv2", "flat", "fc"]
    assert [node.name for node in layout.boxes[3].fused] == ["add"]
    edges = {(names[edge.source], names[edge.target]): edge for edge in layout.edges}
    assert set(edges) == {("image", "conv1"), ("conv1", "mid"), ("mid", "conv2"), ("conv1", "conv2"), ("conv2", "flat"),
                          ("flat", "fc")}
    past = edges["conv1", "conv2"].points
    assert all(x > layout.boxes[2].x + layout.boxes[2].width for x, _ in past[2:4])        # beside mid
    straight = [edge.points for pair, edge in edges.items() if pair != ("conv1", "conv2")]
    assert all(len({x for x, _ in points}) == 1 for points in straight)


@pytest.mark.parametrize("nodes", [
    [GraphNode("a", "Op", ("b",)), GraphNode("b", "Op", ("a",))], [GraphNode("a", "Op", ("a",))],
    [GraphNode("a", "Op", (), (), "b"), GraphNode("b", "Op", ("a",), (), "a")],
    [GraphNode("a", "Op", ("", "x"), (), "missing")], [GraphNode("a", "Op"), GraphNode("a", "Op", ("a",))], [],
    [GraphNode("a", "Op", ("c",)), GraphNode("b", "Op", ("a",)), GraphNode("c", "Op", ("b",)),
     GraphNode("d", "Op", ("a", "c"))],
])
def test_graphs_that_cannot_be(nodes):
    layout = report_layout.lay_out(nodes)
    assert {node.name for box in layout.boxes for node in box.members} == {node.name for node in nodes}
    outlines = [(box.x, box.x + box.width, box.y, box.y + box.height) for box in layout.boxes]
    assert not any(meet(one, other) for one, other in itertools.combinations(outlines, 2))
    read(Profile([replace(training_run(), graph=nodes)]))


def test_the_graph_in_bands():
    """Every box is drawn once, every edge whole: its pieces add up to its height."""
    layout = report_layout.lay_out(random_graph(np.random.default_rng(5), 50))
    assert len(layout.cuts) > 3
    for edge in layout.edges:
        drawn = 0.0
        for top, bottom in itertools.pairwise(layout.cuts):
            at = None
            for piece in re.findall(r"[MVC][^MVCL]*", edge_path(edge, top, bottom).partition("L")[0]):
                numbers = [float(number) for number in piece[1:].split()]
                drawn += 0 if piece[0] == "M" else abs(numbers[-1] - at)
                at = numbers[-1]
        heights = [y for _, y in edge.points]
        assert drawn == pytest.approx(sum(abs(after - before) for before, after in itertools.pairwise(heights)), abs=0.5)


def test_bands_say_where_they_go_on():
    """Beside the edges that are cut, and in the picture; the script shows it where the next band stands in another column."""
    layout = report_layout.lay_out(random_graph(np.random.default_rng(5), 50))
    for height in layout.cuts[1:-1]:
        cut = [begin[0] for edge in layout.edges for begin, end in itertools.pairwise(edge.points)
               if begin[0] == end[0] and min(begin[1], end[1]) < height < max(begin[1], end[1])]
        assert cut
        left = seam_label(layout, height)
        if left is not None:
            right = left + mono_width("continues", SEAM_SIZE)
            assert left >= 0 and right <= report_layout.WIDTH and not any(left - 4 < x < right + 4 for x in cut)
    bands = section(read(Profile([chain(40)])), "graph").all("svg", "band")
    assert [len(one.all("text", "onward")) for one in bands] == [1] * (len(bands) - 1) + [0]
    assert [len(one.all("text", "back")) for one in bands] == [0] + [1] * (len(bands) - 1)
    for one, other in itertools.pairwise(bands):
        assert one.all("text", "onward")[0].attributes["x"] == other.all("text", "back")[0].attributes["x"]


def test_the_graph_shows_costs():
    run = training_run()
    drawn = {}
    found = section(read(Profile([run])), "graph")
    for group in found.all("g", "box"):
        drawn[group.all("text", "title")[0].text] = group
        outline, = group.all("rect")
        left, right = outline.number("x"), outline.number("x") + outline.number("width")
        for text in group.all("text"):
            width = mono_width(text.text, 11 if text.attributes["class"] == "title" else 10)
            begin = text.number("x") - (width if text.attributes["class"] == "share" else 0)
            assert left < begin and begin + width < right
            assert outline.number("y") < text.number("y") < outline.number("y") + outline.number("height")
    assert {name: group.attributes["class"] for name, group in drawn.items()} == {
        "image": "box input", "conv1": "box h2", "mid": "box h5", "conv2": "box h4", "flat": "box off", "fc": "box h1"}
    assert drawn["conv2"].text.endswith("20.0%+ Add add") and "no work" in drawn["flat"].text
    assert "Beside the graph: layout\u00a00.7%, loss\u00a00.3%, call\u00a020.0%" in found.text


def test_a_box_costs_what_its_layers_cost():
    names = ("a", "a (layout)", "relu", "b")
    run = Run({}, 10.0, [layer(name, forward=2.0 ** number) for number, name in enumerate(names)])
    box = report_layout.Box("a", [GraphNode("a", "Op"), GraphNode("relu", "Relu", ("a",), (), "a")])
    assert box_cost(run, box) == 7 and box_cost(run, report_layout.Box("c", [GraphNode("c", "Op")])) is None
    assert [shade(cost, 10.0) for cost in (None, 0.0, 0.1, 2.0, 9.9, 10.0)] == ["off", "h0", "h1", "h2", "h5", "h5"]
    assert shade(0.0, 0.0) == "h0"


def test_names_cannot_break_out():
    text = report_html(Profile([odd_run(), odd_run()]))
    page = read(Profile([odd_run(), odd_run()]))
    assert text.count("<script") == 1 and not re.search("<(blink|marquee)", text) and "&lt;blink&gt;" in text
    assert not re.search("[\x00-\x08\x0b-\x1f\ud800-\udfff\u202e]", text)
    assert page.all("h1")[0].text == ODD[0]
    names = [one.all("span", "name")[0] for one in section(page, "layers").all("ol", "bars")[0].all("li")]
    for one, name in zip(names, ODD, strict=True):
        assert one.text == plain(name) or one.attributes["title"] == plain(name)
    assert all(len(one.text) < 200 for one in page.all("text"))


def test_what_is_missing_is_said():
    page = read(Profile([bare(training_run())]))
    assert "does not hold the network\u2019s graph" in section(page, "graph").text
    assert "does not hold the memory plan" in section(page, "memory").text
    assert "holds no layers" in section(read(Profile([Run({}, 0.0, [])])), "layers").text


def test_several_runs_have_a_table_of_contents():
    page = read(Profile([training_run(), prediction_run()]))
    contents = page.all("nav")[0]
    assert [one.attributes["href"] for one in contents.all("a")] == ["#r1", "#r2"]
    cells = [[cell.text for cell in row.inside] for row in contents.all("tbody")[0].all("tr")]
    assert cells == [["Training step, batch 8, 2 threads", "300.0\u00a0\u00b5s", "37.5\u00a0\u00b5s", "mid"],
                     ["Prediction, batch 1, 1 thread", "40.0\u00a0\u00b5s", "40.0\u00a0\u00b5s", "fc"]]
    assert [one.text for one in page.all("h2")] == [row[0] for row in cells]
    assert {one.attributes["name"] for one in page.all("input")} == {"r1-order", "r2-order"}


def test_the_table_has_all_figures():
    table = section(read(Profile([training_run()])), "table").all("table")[0]
    heads = [one.text for one in table.all("thead")[0].all("th")]
    rows = {row.inside[0].all("span", "name")[0].text: dict(zip(heads, row.inside, strict=True))
            for row in table.all("tbody")[0].all("tr")}
    mid = {head: cell.text.replace("\u00a0\u00b5s", "") for head, cell in rows["mid"].items()}
    assert [mid[head] for head in ("Layer", "Operation", "forward", "dX", "dW", "update", "total", "share")] == [
        "mid", "Conv2d", "30.0", "40.0", "25.0", "2.0", "97.0", "32.3%"]
    assert mid["multiply-adds a sample"] == "200,000" and mid["bound by"] == "compute"
    assert rows["fc"]["bound by"].text == "bandwidth" and rows["loss"]["bound by"].text == "\u2013"
    assert rows["mid"]["fused"].all("span")[0].attributes["title"] == "bn" and mid["fused"] == "1"
    assert rows["fc"]["99% below"].text == "17.0\u00a0\u00b5s" and rows["fc"]["dX"].attributes["data-v"] == "5"
    rest, whole = (dict(zip(heads, (cell.text for cell in row.inside), strict=True))
                   for row in table.all("tfoot")[0].all("tr"))
    assert {head: text for head, text in rest.items() if text} == {
        "Layer": "not accounted for", "total": "29.0\u00a0\u00b5s", "share": "9.7%"}
    flops = 16 * (2 * 100_000 + 6 * 200_000 + 3 * 2560)
    assert {head: text for head, text in whole.items() if text} == {
        "Layer": "whole call", "total": "300.0\u00a0\u00b5s", "share": "100.0%", "median": "310.0\u00a0\u00b5s",
        "99% below": "400.0\u00a0\u00b5s", "multiply-adds a sample": "502,560", "GFLOP/s": f"{flops / 300e3:.1f}",
        "at the peak": "7.0\u00a0KB"}
    assert table.above.attributes["class"] == "scroll" and table.above.attributes["tabindex"] == "0"


def test_the_whole_call_of_a_prediction():
    table = section(read(Profile([prediction_run()])), "table").all("table")[0]
    heads = [one.text for one in table.all("thead")[0].all("th")]
    rest, whole = ([cell.text for cell in row.inside] for row in table.all("tfoot")[0].all("tr"))
    assert "total" not in heads and whole[heads.index("forward")] == "40.0\u00a0\u00b5s"
    assert rest[heads.index("share")] == "12.5%"
    longer = replace(prediction_run(), total_us=30.0)
    rest = section(read(Profile([longer])), "table").all("tfoot")[0].all("tr")[0]
    assert "\u22125.0\u00a0\u00b5s" in rest.text


@pytest.mark.parametrize(("count", "chosen"), [(40, "r1-program"), (41, "r1-cost")])
def test_the_slowest_of_many_stand_first(count, chosen):
    picks = section(read(Profile([chain(count)])), "layers").all("input")
    assert [one.attributes["id"] for one in picks if "checked" in one.attributes] == [chosen]


@pytest.mark.parametrize(("confidence", "told"), [
    (0.34, "known to within 34%"), (0.1, None), (None, None), ("?", None), (float("nan"), None)])
def test_a_busy_machine_is_warned_of(confidence, told):
    run = training_run()
    run.conditions["confidence"] = confidence
    page = read(Profile([training_run(), run]))
    warnings = page.all("p", "warning")
    assert len(warnings) == bool(told)
    if told:
        assert told in warnings[0].text and warnings[0].above.attributes["id"] == "r2"
        assert "measure again, for longer" in warnings[0].text.lower()


@pytest.mark.parametrize(("more", "told"), [(0, ""), (63, ""), (64, "64\u00a0B"), (4096, "4.0\u00a0KB")])
def test_what_other_programs_need(more, told):
    run = training_run()
    run.memory.arena += more
    text = section(read(Profile([run])), "memory").text
    assert ("only other programs of this network use" in text) == bool(told)
    assert not told or f"{told} of the arena only other programs" in text


def test_conditions():
    listed = section(read(Profile([training_run()])), "conditions").all("dl", "conditions")[0]
    told = {one.all("dt")[0].text: one.all("dd")[0] for one in listed.all("div")}
    assert told["training step"].text == "yes" and told["processor"].text == "A & B" and told["governor"].text == "not known"
    assert told["tiles (rows \u00d7 vectors)"].text == "6 \u00d7 4, 8 \u00d7 2"
    assert told["medians are known to"].text == "\u00b13.4%"
    assert told["trained"].all("summary")[0].text == "80 names" and "weight79" in told["trained"].text
    assert told["roofs"].text == "200 GFLOP/s, 20 GB/s"


def test_a_large_network_stays_small():
    assert len(report_html(Profile([chain(500)]))) < 1_500_000


def test_of_a_file(tmp_path):
    """What is saved and read again gives the same page, but for digits behind the third."""
    Profile([training_run(), prediction_run()]).save(tmp_path / "p.json")
    once = Profile.load(tmp_path / "p.json")
    once.save(tmp_path / "q.json")
    assert report_html(Profile.load(tmp_path / "q.json")) == report_html(once)


def test_of_a_measured_network():
    graph = small_graph()
    measured = mc.profile(graph.compile(batch=4, train="all", loss="cross_entropy", optimizer=mc.SGD(lr=0.01)), repeats=3)
    page, run = read(measured), measured.runs[0]
    assert len(section(page, "layers").all("ol", "bars")[0].all("li")) == len(run.layers)
    drawn = area(section(page, "memory")).all("rect")
    assert len(drawn) == len(run.memory.blocks)
    assert {one.attributes["class"] for one in drawn} <= {"k-activation", "k-gradient", "k-scratch"}
    layout = report_layout.lay_out(run.graph)
    check_layout(layout)
    assert {node.name for box in layout.boxes for node in box.members} == {node.name for node in graph.nodes}


@pytest.mark.parametrize(("text", "width", "expected"), [
    ("conv1", 100, "conv1"), ("", 100, ""), ("/layer1/conv2/Conv", 73, "/la...2/Conv"), ("abcdef", 30, "...f"),
    ("abcdef", 20, ""), ("\u7573\u307f\u8fbc\u307f", 30, ""), ("\u7573\u307f", 30, "\u7573\u307f"),
])
def test_texts_are_fitted(text, width, expected):
    found = fitted(text, width, 10)
    assert found == expected and mono_width(found, 10) <= width


def test_words():
    assert plain("a\x00b\u202ec\ud800\nd") == "a\ufffdb\ufffdc\ufffd d" and escaped("<'\"&>") == "&lt;&#x27;&quot;&amp;&gt;"
    assert share_of(1, 0) == share_of(float("nan"), 1) == "\u2013" and share_of(-1, 8) == "\u221212.5%"
    assert named("a/b") == '<span class="name">a/<wbr>b</span>' and 'title="' + "x" * 99 in named("x" * 99)


def luminance(colour):
    parts = [int(colour[at:at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("colours", [report_style.LIGHT, report_style.DARK], ids=["light", "dark"])
def test_contrast(colours):
    """WCAG AA: 4.5 for text, 3 for what has to be seen in a picture."""
    for ink, ground in itertools.product(("ink", "soft", "link", "peak", "bandwidth", "compute"), ("page", "panel")):
        assert contrast(colours[ink], colours[ground]) >= 4.5, (ink, ground)
    for step in range(6):
        assert contrast(colours[f"h{step}-ink"], colours[f"h{step}"]) >= 4.5, step
    for kind in ("activation", "gradient", "scratch", "state", "parameter", "other"):
        assert contrast(colours["k-ink"], colours[f"k-{kind}"]) >= 4.5, kind
    for line in ("edge", "peak", "bandwidth", "compute", "p-forward", "p-dw", "p-update"):
        assert contrast(colours[line], colours["page"]) >= 3, line
    # neighbours in a bar are told apart by lightness alone
    for one, other in itertools.pairwise(("p-forward", "p-dx", "p-dw")):
        assert contrast(colours[one], colours[other]) >= 1.5, (one, other)


def test_both_themes_have_the_same_colours():
    assert report_style.LIGHT.keys() == report_style.DARK.keys()
    sheet = report_style.style_sheet()
    assert set(re.findall(r"var\(--([\w-]+)\)", sheet)) <= {*report_style.LIGHT, "rank", "mono", "sans"}
    assert sheet.count("{") == sheet.count("}")
