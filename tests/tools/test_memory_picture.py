"""The picture of a memory plan: what it shows is the plan, in any viewer, and nothing in it is cut or covered."""
import itertools
import re
from xml.etree import ElementTree

import pytest

import microcnn as mc
from microcnn.planned import Planned
from microcnn.tools import memory_svg
from microcnn.tools.memory_drawing import Frame, time_drawn
from microcnn.tools.memory_plan import Picture, extent_of, phase_of, plan_of, updates_between
from microcnn.tools.report_memory import memory_page
from microcnn.tools.report_text import MONO_ADVANCE

from .report_pages import ODD, Reader, meet, rows_of

SPACE = "{http://www.w3.org/2000/svg}"
# The widest of common sans-serif fonts, as a share of the font's size: a letter on average, in words and in long prose.
WIDEST, PROSE = 0.66, 0.58
SIZES = {"title": 19.0, "name": 11.0, "inside": 10.0, "tick": 11.0, "middle": 11.0, "strong": 11.0}


def deep(layers):
    b = mc.GraphBuilder()
    x = b.input("input", (2, 6, 6))
    for number in range(layers):
        x = b(mc.ReLU(), b(mc.Conv2d(4, 3, padding=1, name=f"/stage{number // 10}/block{number % 10}/conv"), x))
    return b.graph(b(mc.Linear(3, name="head"), b(mc.Flatten(), x)))


def normalised():
    return mc.Sequential([mc.Conv2d(8, 3, padding=1), mc.BatchNorm2d(), mc.ReLU(), mc.Conv2d(8, 3, padding=1), mc.BatchNorm2d(),
                          mc.ReLU(), mc.Flatten(), mc.Linear(3)], input_shape=(2, 8, 8)).graph()


def odd():
    """Layers whose names try to break out."""
    b = mc.GraphBuilder()
    x = b.input("input", (2, 6, 6))
    for number, name in enumerate(filter(None, ODD)):
        x = b(mc.Conv2d(4, 3, padding=1, name=f"{name}{number}"), x)
    return b.graph(b(mc.Linear(3, name="head"), b(mc.Flatten(), x)))


def picture(graph, title="model", told="To train all, batch 8", **how):
    planned = Planned(graph, **{"batch": 8, "train": "all", "loss": "cross_entropy",
                                "optimizer": mc.SGD(lr=0.1, momentum=0.9), **how})
    program = planned.memory.fullest.program
    return Picture(title, told, planned.memory, plan_of(planned, program), planned.rows(program))


CASES = {
    "frozen": lambda: picture(normalised()), "batch norm": lambda: picture(normalised(), bn="batch"),
    "two layers": lambda: picture(mc.Sequential([mc.Conv2d(4, 3), mc.Flatten(), mc.Linear(3)], (1, 8, 8)).graph()),
    "deep": lambda: picture(deep(120)), "odd": lambda: picture(odd(), title=ODD[7], told=ODD[0] * 20),
    "prediction": lambda: picture(deep(12), train=None, loss=None, optimizer=None),
    "clipped": lambda: picture(deep(12), optimizer=mc.Adam(clip_norm=1.0)),
    "huge": lambda: picture(deep(3), batch=2**24),
}


@pytest.fixture(params=CASES)
def drawn(request):
    found = CASES[request.param]()
    return found, ElementTree.fromstring(memory_svg.svg_of(found).encode())


def of_class(root, tag, name):
    return [one for one in root.iter(SPACE + tag) if name in (one.get("class") or "").split()]


def in_plot(root, count):
    """The rectangles of the buffers: those that tell their rows."""
    found = [one for one in root.iter(SPACE + "rect") if one.find(SPACE + "title") is not None
             and re.search(r", rows \d+ to \d+$", one.find(SPACE + "title").text)]
    assert len(found) == count
    return found


def test_every_buffer_is_a_rectangle(drawn):
    found, root = drawn
    plan, rows, extent = found.plan, len(found.rows), extent_of(found.plan)
    (base,), (peak,) = of_class(root, "line", "base"), of_class(root, "line", "peak")
    left, right, foot = (float(base.get(name)) for name in ("x1", "x2", "y1"))
    for one, block in zip(in_plot(root, len(plan.blocks)), plan.blocks, strict=True):
        x, y, width, height = (float(one.get(name)) for name in ("x", "y", "width", "height"))
        last = min(block.last + 1, rows)
        assert [x, x + width] == pytest.approx([left + (right - left) * at / rows for at in (block.first, last)], abs=1e-2)
        assert height == pytest.approx(memory_svg.PLOT_HEIGHT * block.bytes / extent, abs=1e-2)
        bottom = foot - memory_svg.PLOT_HEIGHT * (block.offset - plan.begin) / extent
        assert y + height == pytest.approx(bottom, abs=1e-2)
        assert one.get("class") == f"k-{block.kind}"
    assert float(peak.get("x1")) == pytest.approx(left + (right - left) * (found.memory.fullest.row + 0.5) / rows, abs=1e-2)


def test_the_bar_is_the_arena(drawn):
    found, root = drawn
    pieces = [one for one in root.iter(SPACE + "rect") if float(one.get("height")) == memory_svg.BAR]
    widths = {one.get("class"): float(one.get("width")) for one in pieces}
    whole = memory_svg.WIDTH - 2 * memory_svg.MARGIN
    assert sum(widths.values()) == pytest.approx(whole, abs=0.01)
    memory = found.memory
    for css, size in (("k-parameter", memory.parameters), ("k-state", memory.state),
                      ("k-activation", sum(b.bytes for b in memory.at_peak if b.kind == "activation")),
                      ("k-free", memory.arena - memory.peak)):
        assert widths.get(css, 0.0) == pytest.approx(whole * size / memory.arena, abs=0.01)


def test_who_makes_the_peak_is_named(drawn):
    """Beside the plot stand the peak's row and layer, and shares that make up the whole."""
    found, root = drawn
    texts = ["".join(one.itertext()) for one in root.iter(SPACE + "text")]
    fullest = found.memory.fullest
    assert any(text.startswith(f"row {fullest.row + 1} of {fullest.rows}, {fullest.phase}") for text in texts)
    shares = [float(text[:-1]) for text in texts if re.fullmatch(r"[\d.]+%", text)]
    assert sum(shares) == pytest.approx(100, abs=0.05 * len(shares))
    assert found.summary + ". At the peak it holds:" in texts


def boxes(root):
    """(left, right, top, bottom) of each text, as wide as it may be, and the text; marks on top of buffers are left out."""
    found = []
    for one in root.iter(SPACE + "text"):
        css = one.get("class").split()
        text = "".join(one.itertext())
        if "inside" in css or not text:
            continue
        size = next((SIZES[name] for name in css if name in SIZES), 12.5)
        told = one.get("textLength")
        advance = MONO_ADVANCE if "name" in css else WIDEST if len(text) < 60 else PROSE
        width = float(told) if told else len(text) * size * advance
        x = float(one.get("x")) + float(one.get("dx", 0)) - width * ({"end": 1.0, "middle": 0.5}.get(
            next((name for name in css if name in ("end", "middle")), ""), 0.0))
        found.append((x, x + width, float(one.get("y")) - 0.75 * size, float(one.get("y")) + 0.2 * size, text))
    return found


def test_no_words_are_cut_or_covered(drawn):
    _, root = drawn
    _, _, width, height = map(float, root.get("viewBox").split())
    found = boxes(root)
    for left, right, top, bottom, text in found:
        assert left >= 0 and right <= width and top >= 0 and bottom <= height, text
    for one, other in itertools.combinations(found, 2):
        assert not meet(one[:4], other[:4]), (one[4], other[4])


def test_names_fit_their_buffers(drawn):
    found, root = drawn
    buffers = [tuple(float(one.get(name)) for name in ("x", "y", "width", "height"))
               for one in in_plot(root, len(found.plan.blocks))]
    for label in of_class(root, "text", "inside"):
        x, y, text = float(label.get("x")), float(label.get("y")), label.text
        width = float(label.get("textLength", len(text) * 10 * MONO_ADVANCE)) + 5
        assert any(left - 0.01 <= x and x + width <= left + wide + 0.01 and top < y < top + high
                   for left, top, wide, high in buffers)


def test_the_file_stands_alone(drawn):
    text = memory_svg.svg_of(drawn[0])
    assert text == memory_svg.svg_of(drawn[0])
    style = text[text.index("<style>"):text.index("</style>")]
    assert "var(" not in style and "@import" not in style and "prefers-color-scheme:dark" in style and "sans-serif" in style
    assert re.findall(r"https?://[^\"]+", text) == ["http://www.w3.org/2000/svg"]
    assert not re.search(r"<(script|image|foreignObject|use)|\son\w+=|href|url\(", text)
    used = {name for one in drawn[1].iter() for name in (one.get("class") or "").split()}
    assert {name for name in used if not re.search(rf"\.{name}\b", style)} <= {"soft"}


def test_the_stripes_are_what_runs(drawn):
    found, root = drawn
    legend = ["".join(one.itertext()) for one in of_class(root, "text", "told")]
    runs = {phase_of(row.part) for row in found.rows}
    assert [name for name in legend if name in ("forward", "loss", "backward", "update")] == [
        name for name in ("forward", "loss", "backward", "update") if name in runs]
    assert len(of_class(root, "line", "lot")) == len(updates_between(found.rows))


def test_updates_between_rows_of_backward():
    parts = ["forward", "loss", "backward_weight", "update", "update", "backward_input", "update", "backward_weight"]
    assert updates_between(rows_of(("a", part) for part in parts)) == [(3, 5), (6, 7)]
    assert updates_between(rows_of(("a", part) for part in ("forward", "backward_weight", "update"))) == []


def test_a_phase_too_short_for_its_name_has_one_where_there_is_room():
    rows = rows_of([("a", "forward")] * 100 + [("loss", "loss")] + [("a", "backward_input")] * 100)
    plan = picture(normalised()).plan
    for pixels, named in ((600.0, ["forward", "backward", "loss"]), (140.0, ["forward", "backward"])):
        told = time_drawn(Frame(plan, len(rows), 0, 100, 0, pixels), rows, {"": pixels})
        assert sorted(re.findall(r'class="middle"[^>]*>(\w+)<', told)) == sorted(named)


@pytest.mark.parametrize("key", CASES)
def test_the_page(key):
    found = CASES[key]()
    reader = Reader()
    reader.feed(memory_page(found))
    reader.close()
    assert reader.at is reader.root
    (area,) = reader.root.all("svg", "area")
    assert len(area.all("rect")) == len(found.plan.blocks)
    assert found.summary.replace("\u00a0", " ") in reader.root.text.replace("\u00a0", " ")
    assert reader.root.all("h1")[0].text
