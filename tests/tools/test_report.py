"""The profiler's page: what it says, and that nothing in a profile can break it."""
import base64
import hashlib
import itertools
import re
from dataclasses import replace

import pytest

import microcnn as mc
from microcnn.tools import report_layout, report_style
from microcnn.tools.profile_data import (
    Machine,
    Profile,
    Run,
)
from microcnn.tools.report import report_html
from microcnn.tools.report_text import escaped, fitted, mono_width, named, plain, share_of

from .command_line import small_graph
from .report_pages import (
    ODD,
    PROFILES,
    area,
    bare,
    chain,
    check_layout,
    layer,
    odd_run,
    prediction_run,
    read,
    section,
    training_run,
)


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
