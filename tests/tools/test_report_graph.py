"""The drawing of the network on the profiler's page."""
import itertools
import re
from dataclasses import replace

import numpy as np
import pytest

from microcnn.tools import report_layout
from microcnn.tools.profile_data import (
    GraphNode,
    Profile,
    Run,
)
from microcnn.tools.report_graph import SEAM_SIZE, box_cost, edge_path, seam_label, shade
from microcnn.tools.report_text import mono_width

from .report_pages import chain, check_layout, layer, meet, read, residual_graph, section, training_run


def random_graph(rng, count):
    """Layers that read one to four of those before them, near or far; some are fused into one that they read."""
    nodes = []
    for number in range(count):
        reads = {int(rng.integers(max(0, number - reach), number)) for reach in rng.integers(1, 12, rng.integers(1, 5))} \
            if number else set()
        host = f"n{min(reads)}" if reads and rng.random() < 0.2 else None
        nodes.append(GraphNode(f"n{number}", "Op", tuple(f"n{one}" for one in sorted(reads)) or ("image",), (1,), host))
    return nodes


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
