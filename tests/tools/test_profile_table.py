"""The table of a profile: its columns, the order of its lines, and what of it is shown where there is little room."""
import io
import re

import pytest

import microcnn as mc
from microcnn.memory import Block, short
from microcnn.tools import profile_table
from microcnn.tools.profile_data import LayerCost, Machine, MemoryPlan, RowCost, Run, Spread
from microcnn.tools.profile_table import columns_and_rows, left_out, run_table, shortened, text_width, wrapped
from microcnn.tools.terminal import Terminal, table_text

TRAINING = ["layer", "op", "forward", "backward", "dX", "dW", "update", "total", "share", "GFLOP/s", "GB/s", "MACs",
            "parameters", "activations", "gradients", "state", "peak bytes", "spread", "bound by", "output shape"]
PREDICTION = [name for name in TRAINING if name not in ("backward", "dX", "dW", "update", "total", "gradients", "state")]
WIDTHS = (60, 80, 100, 140, 200)


def cost(name, op, forward, dx=0.0, dw=0.0, update=0.0, **more):
    return LayerCost(name, op, forward, dx + dw, update, backward_input_us=dx, backward_weight_us=dw, **more)


def made(train=True, names=("conv1", "fc", "relu2"), **changed):
    """A run with everything that the profiler finds out."""
    first, second, third = names
    kinds = {"activations": 65536, "gradients": 4096, "state": 448, "scratch": 0}
    moved = {"forward": 131072, "backward_input": 131072, "backward_weight": 131072, "update": 896}
    if train:
        layers = [cost(first, "Conv2d", 100.0, 0.0, 150.0, 5.0, macs=442368, parameters=448, shape=(16, 32, 32), bytes=kinds,
                       moved=moved, peak_bytes=65536, fused=("bn1", "relu1"), spread=Spread(240, 250, 300, 400)),
                  cost(second, "Linear", 10.0, 20.0, 30.0, 40.0, macs=640, parameters=650, shape=(10,), moved=moved),
                  cost(third, "Relu", 3.0, 4.0, shape=(16, 32, 32), peak_bytes=128)]
    else:
        layers = [cost(first, "Conv2d", 100.0, macs=442368, parameters=448, shape=(16, 32, 32), peak_bytes=65536, bytes=kinds,
                       moved={"forward": 131072}, fused=("bn1", "relu1"), spread=Spread(240, 250, 300, 400)),
                  cost(second, "Linear", 10.0, macs=640, parameters=650, shape=(10,)), cost(third, "Relu", 3.0)]
    layers.append(LayerCost("call", "python", 8.0))
    blocks = [Block(first, "y", "activation", 65536, 0, 0, 2), Block(second, "y", "activation", 640, 65536, 1, 1)]
    conditions = {"model": "tiny", "batch": 8, "dtype": "float32", "threads": 2, "train": train, "instruction_set": "avx512",
                  "repeats": 120, "confidence": 0.0213, "caches": "warm", "interrupted": False}
    return Run(conditions | changed, 400.0, layers, Spread(390, 410, 440, 900), memory=MemoryPlan(99999, 99, 9, 9, 0, blocks),
               machine=Machine(100.0, 10.0))


def old(train=True):
    """A run as files had it before there were rows, spreads, memory and machines."""
    conditions = {"batch": 1, "dtype": "float32", "threads": 1, "train": train, "instruction_set": "sse"}
    return Run(conditions, 100.0, [LayerCost("a", "Conv2d", 10.0, 20.0 * train, 5.0 * train, 100, 7),
                                   LayerCost("loss", "mse", 1.5)])


def names_of(columns):
    return [column.lstrip(">") for column in columns]


def widest(text):
    return max(text_width(line) for line in text.splitlines())


@pytest.mark.parametrize(("train", "expected"), [(True, TRAINING), (False, PREDICTION)])
def test_all_columns(train, expected):
    columns, rows, title = columns_and_rows(made(train))
    assert names_of(columns) == expected
    assert all(len(row) == len(columns) for row in rows)
    assert [row[0] for row in rows] == ["conv1 + bn1 + relu1", "fc", "relu2", "call", "not accounted for", "whole call"]
    assert left_out(made(train)) == "" and "left out" not in run_table(made(train))
    assert ("backward" in run_table(made(train))) == train


def test_figures():
    columns, rows, title = columns_and_rows(made())
    found = {row[0]: dict(zip(names_of(columns), row, strict=True)) for row in rows}
    assert found["conv1 + bn1 + relu1"] == {
        "layer": "conv1 + bn1 + relu1", "op": "Conv2d", "forward": "100.0 us", "backward": "150.0 us", "dX": "-",
        "dW": "150.0 us", "update": "5.0 us", "total": "255.0 us", "share": "63.8%", "GFLOP/s": "56.6", "GB/s": "1.05",
        "MACs": "442,368", "parameters": "448", "activations": "64.0 KB", "gradients": "4.0 KB", "state": "448 B",
        "peak bytes": "64.0 KB", "spread": "1.20", "bound by": "compute", "output shape": "16x32x32"}
    assert found["fc"]["output shape"] == "10" and found["fc"]["bound by"] == "bandwidth" and found["fc"]["spread"] == "-"
    assert found["relu2"]["bound by"] == "-"
    assert found["not accounted for"]["total"] == "30.0 us" and found["not accounted for"]["share"] == "7.5%"
    whole = found["whole call"]
    assert (whole["total"], whole["share"], whole["MACs"], whole["spread"]) == ("400.0 us", "100.0%", "443,008", "1.07")
    assert whole["peak bytes"] == "64.6 KB" and whole["GFLOP/s"] == "35.5"
    assert whole["forward"] == found["not accounted for"]["forward"] == ""
    columns, rows, title = columns_and_rows(made(False))
    assert [row[names_of(columns).index("forward")] for row in rows[-2:]] == ["279.0 us", "400.0 us"]


def test_title():
    _, _, title = columns_and_rows(made())
    assert title.splitlines() == ["tiny, train_step, batch 8, float32, 2 threads, avx512: 400.0 us a call",
                                  "p50 410.0 us, p90 440.0 us, p99 900.0 us over 120 calls; medians are known to 2.1%"]
    _, _, title = columns_and_rows(made(False, threads=1, caches="cold", interrupted=True))
    assert title.startswith("tiny, predict, batch 8, float32, 1 thread, avx512: ")
    assert title.endswith("; cold caches; interrupted")
    assert run_table(made(model="a\nb" + "c" * 99)).startswith("a?bccc") and "ccc...ccc" in run_table(made(model="c" * 99))
    assert columns_and_rows(old())[2] == "train_step, batch 1, float32, 1 thread, sse: 100.0 us a call"


@pytest.mark.parametrize(("confidence", "told"), [(0.1, False), (0.101, True), (0.5, True), (None, False)])
def test_medians_that_are_hardly_known(confidence, told):
    title = columns_and_rows(made(confidence=confidence))[2].splitlines()[1]
    assert ("the machine was too busy for these figures: measure again, for longer" in title) == told


@pytest.mark.parametrize(("sort", "order"), [
    (None, ["conv", "fc", "relu", "call"]), ("time", ["conv", "fc", "call", "relu"]),
    ("forward", ["conv", "fc", "call", "relu"]), ("backward", ["conv", "fc", "relu", "call"]),
    ("update", ["fc", "conv", "relu", "call"]), ("macs", ["conv", "fc", "relu", "call"]),
    ("memory", ["conv", "relu", "fc", "call"]), ("name", ["call", "conv", "fc", "relu"]),
])
def test_order_of_the_lines(sort, order):
    _, rows, _ = columns_and_rows(made(names=("conv", "fc", "relu")), sort)
    assert [row[0].split()[0] for row in rows[:-2]] == order
    assert [row[0] for row in rows[-2:]] == ["not accounted for", "whole call"]


def test_every_order_is_tested():
    assert set(profile_table.SORTS) == {"time", "forward", "backward", "update", "macs", "memory", "name"}


@pytest.mark.parametrize("function", [columns_and_rows, run_table, left_out, lambda _, sort: profile_table.check_sort(sort)])
def test_an_order_that_is_not_known(function):
    known = "time, forward, backward, update, macs, memory, name"
    with pytest.raises(mc.CompileError, match=f"sort is 'size'; expected one of {known}"):
        function(made(), "size")


LONG = ("model/activation/Relu;model/conv2d/BiasAdd;model/conv2d_2/Conv2D",
        "model/quant_dense/MatMul;model/quant_dense/BiasAdd", "StatefulPartitionedCall/sequential/re_lu/Relu")
WIDE = ("畳み込み層の一番目の長い名前です", "Schicht-für-Übergänge", "слой\tс\nочень-длинным-именем")


@pytest.mark.parametrize("names", [("conv1", "fc", "relu2"), LONG, WIDE])
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("width", WIDTHS)
def test_no_line_is_wider_than_the_terminal(width, train, names):
    run = made(train, names)
    texts = [run_table(run, width=width), table_text(*columns_and_rows(run, width=width))]
    for text in texts[:1 if names is WIDE else 2]:        # table_text takes all letters to be of one width
        assert widest(text) <= width
        assert "not accounted for" in text and "whole call" in text
        heading = next(line for line in text.splitlines() if line.startswith("layer"))
        assert {"total" if train else "forward", "share", "peak bytes"} <= set(re.split(" {2,}", heading.strip()))
        assert width < 80 or "bound by" in heading
    assert ("update" in texts[0]) == train
    missing = set(names_of(columns_and_rows(run)[0])) - set(names_of(columns_and_rows(run, width=width)[0])) - {"backward"}
    told = left_out(run, width=width).replace("\n", " ").removeprefix("left out: ").split(", ")
    assert set(told) - {"", "backward"} == missing
    table, _, below = texts[0].partition("\nwhole call")
    assert ("output shape" in table) != ("\nleft out: " in below)


@pytest.mark.parametrize("train", [True, False])
def test_wider_terminals_show_more(train):
    run = made(train)
    counts = [len(columns_and_rows(run, width=width)[0]) for width in (40, *WIDTHS, 400)]
    assert counts == sorted(counts) and counts[0] >= 2 and counts[-1] == len(TRAINING if train else PREDICTION)


def test_what_a_narrow_terminal_shows():
    shown = {width: names_of(columns_and_rows(made(names=LONG), width=width)[0]) for width in (60, 80)}
    assert shown[60] == ["layer", "total", "share", "peak bytes"]
    assert shown[80] == ["layer", "backward", "total", "share", "peak bytes", "bound by"]
    assert run_table(made(names=LONG), width=60).endswith(
        "\nleft out: op, forward, backward, dX, dW, update, GFLOP/s,"
        "\nGB/s, MACs, parameters, activations, gradients, state,\nspread, output shape")
    shown = {width: names_of(columns_and_rows(made(False, LONG), width=width)[0]) for width in (60, 80)}
    assert shown[60] == ["layer", "forward", "share", "peak bytes"]
    assert shown[80] == ["layer", "forward", "share", "GFLOP/s", "peak bytes", "bound by"]


@pytest.mark.parametrize("width", [1, 5, 12, 20, 30, 40])
def test_less_than_any_terminal_has(width):
    columns, rows, title = columns_and_rows(made(names=WIDE), width=width)
    assert names_of(columns)[1] == "total" and names_of(columns_and_rows(made(False), width=width)[0])[1] == "forward"
    assert widest(title) <= max(width, 2)
    if width >= 20:
        assert widest(run_table(made(names=WIDE), width=width)) <= width


def test_names_are_shortened_before_columns_go():
    columns, rows, _ = columns_and_rows(made(False, LONG), width=110)
    fewer = made(False)
    assert names_of(columns) == names_of(columns_and_rows(fewer, width=110)[0])
    assert all(len(row[0]) < len(name) and "..." in row[0] for row, name in zip(rows, LONG, strict=False))


def test_names_take_the_room_that_is_left():
    _, rows, _ = columns_and_rows(made(False, LONG), width=60)
    assert len(rows[1][0]) > profile_table.LEAST_NAME


def test_the_column_that_is_sorted_by_stays():
    assert "MACs" not in names_of(columns_and_rows(made(), "time", 60)[0])
    assert "MACs" in names_of(columns_and_rows(made(), "macs", 60)[0])
    assert "peak bytes" in names_of(columns_and_rows(made(), "memory", 40)[0])
    for column in ("forward", "backward", "update"):
        assert column not in names_of(columns_and_rows(made(), "time", 60)[0])
        assert column in names_of(columns_and_rows(made(), column, 60)[0])


def test_names_are_cut_where_nothing_limits_them():
    _, rows, _ = columns_and_rows(made(names=("x" * 200, "y" * 60, "z")))
    assert [len(row[0]) for row in rows[:2]] == [60, 60] and rows[0][0].endswith("xxx +2") and rows[1][0] == "y" * 60


def test_backward_stands_where_its_parts_do_not():
    names = names_of(columns_and_rows(made(), width=140)[0])
    assert "dX" in names and "dW" in names and "backward" not in names
    names = names_of(columns_and_rows(made(), width=80)[0])
    assert "dX" not in names and "dW" not in names and "backward" in names
    assert "backward" in names_of(columns_and_rows(old(), width=80)[0])


@pytest.mark.parametrize("train", [True, False])
def test_old_files(train):
    columns, rows, title = columns_and_rows(old(train))
    assert names_of(columns) == ["layer", "op", "forward", *(["backward", "update", "total"] if train else []), "share",
                                 "GFLOP/s", "MACs", "parameters"]
    assert rows[-2][0] == "not accounted for" and rows[1][names_of(columns).index("MACs")] == "-"
    assert ("backward" in old(train).table()) == train


def test_nothing_took_any_time():
    for train in (True, False):
        run = Run({"train": train}, 0.0, [LayerCost("a", "Conv2d", macs=5), LayerCost("b", "Relu")])
        for width in (None, 60):
            assert "whole call" in run_table(run, width=width)
    assert run_table(Run({}, 0.0, []), "time", 60).splitlines()[-1].startswith("whole call")


def test_layers_that_took_longer_than_the_whole():
    run = Run({}, 100.0, [LayerCost("a", "Conv2d", 2600.0)])
    assert "-2.50 ms  -2500.0%" in run_table(run)


def test_fused_layers():
    assert profile_table.label("conv1", ("relu1",), None) == "conv1 + relu1"
    assert profile_table.label("conv1", ("relu1",), 12) == "conv1 +1"
    assert profile_table.label("conv1", ("a" * 20, "b" * 20), None) == "conv1 +2"
    assert profile_table.label("convolution_of_the_first_block", ("bn", "relu"), 17) == "con...st_block +2"
    run = made()
    run.layers[1].fused = ("softmax",)
    assert columns_and_rows(run)[1][1][0] == "fc + softmax"


@pytest.mark.parametrize(("names", "most", "expected"), [
    (["model/conv2d_5/BiasAdd;model/resource1", "model/conv2d_8/BiasAdd;model/resource1"], 20,
     ["...d_5/.../resource1", "...d_8/.../resource1"]),
    (["the/same/start/of/0/and/end", "the/same/start/of/1/and/end"], 12, ["...0/and/end", "...1/and/end"]),
    (["functional_1/activation_1/Relu;long/resource1", "functional_1/activation_2/Relu;long/resource1"], 14,
     ["..._1...ource1", "..._2...ource1"]),
    (["abc1_the_end_of_both", "abc2_the_end_of_both"], 8, ["abc1_...", "abc2_..."]),
    (["a_layer", "a_layer"], 6, ["a...er", "a...er"]),
    (["a/b", "a/c"], 20, ["a/b", "a/c"]),
])
def test_names_that_would_look_the_same(names, most, expected):
    assert profile_table.labels(names, [()] * 2, most) == expected
    assert profile_table.labels(names, [()] * 2, None) == names
    suffixed = profile_table.labels(names, [("x" * 40, "y")] * 2, most + 3)
    assert suffixed == [name + " +2" for name in expected]
    for width in range(1, 30):
        assert all(text_width(label) <= max(width, 1) for label in profile_table.labels(names, [()] * 2, width))


def test_names_that_differ_in_several_places():
    names = [f"model/block_{block}/a_long_name_in_between_{kind}/{place}" for block in "12" for kind in ("conv", "norm")
             for place in ("first", "second")]
    for most in (20, 24, 30):
        assert len({short(name, most) for name in names}) == 4
        assert len(set(profile_table.labels(names, [()] * 8, most))) == 8


def test_names_in_so_many_columns():
    assert shortened("conv1", 5) == "conv1" and shortened("a\nb\tc", None) == "a?b?c"
    assert text_width("畳み込み") == 8 and text_width("e\u0301") == 1
    for most in range(4, 40):
        for name in (*LONG, *WIDE):
            assert text_width(shortened(name, most)) <= most
            assert text_width(shortened(name, most, " +2")) <= most
    assert shortened("abcdefgh", 2) == "ab"


def test_lines_are_broken_at_blanks():
    assert wrapped("one two three", None) == "one two three"
    assert wrapped("one two three\nfour", 8) == "one two\nthree\nfour"
    assert wrapped("abcdefghij k", 4) == "abcd\nefgh\nij k"
    assert wrapped("畳み込み", 4) == "畳み\n込み"


class Screen(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("width", WIDTHS)
def test_rich_has_room(monkeypatch, width):
    """rich leaves more room between columns; it may not cut anything off."""
    pytest.importorskip("rich")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("NO_COLOR", "1")
    out = Screen()
    terminal = Terminal(out, io.StringIO())
    assert terminal.console is not None
    terminal.table(*columns_and_rows(made(names=LONG), width=width)[:2])
    assert "…" not in out.getvalue() and widest(out.getvalue()) <= width + out.getvalue().count("\x1b") * 8
    assert "not accounted for" in out.getvalue()


def test_gradients_that_another_kernel_makes_are_told():
    """A layer without a time in backward may run with another one."""
    run = made()
    assert "in one kernel" not in run_table(run)
    run.rows = [RowCost("relu2", "Conv2d", "backward_weight", "expansion.backward_weight", beside=("fc", "conv1")),
                RowCost("relu2", "Conv2d", "backward_input", "expansion.backward_input", beside=("fc", "conv1"))]
    assert run_table(run).splitlines()[-1] == left_out(run) == "dX in one kernel: relu2 + fc + conv1"
    assert run.as_dict()["rows"][0]["beside"] == ["fc", "conv1"]
