"""Runs for the tests of the profiler's page, and a page taken apart."""
import itertools
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser

from microcnn.memory import Block
from microcnn.tools import report_layout
from microcnn.tools.profile_data import (
    GraphNode,
    LayerCost,
    Machine,
    MemoryPlan,
    RowCost,
    Run,
    Spread,
)
from microcnn.tools.report import report_html

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


def meet(one, other):
    """Whether two boxes (left, right, top, bottom) have more than a border in common."""
    return one[0] < other[1] - 1e-6 and other[0] < one[1] - 1e-6 and one[2] < other[3] - 1e-6 and other[2] < one[3] - 1e-6


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
