"""Tables, numbers for people, and bars that move only where someone watches."""
import io
import sys

import pytest

from microcnn.memory import short
from microcnn.tools.terminal import Terminal, bytes_text, clock_text, count_text, table_text, time_text


class Screen(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self):
        return True


@pytest.mark.parametrize(("function", "value", "text"), [
    (bytes_text, 0, "0 B"), (bytes_text, 1023, "1,023 B"), (bytes_text, 1536, "1.5 KB"),
    (bytes_text, 5 << 30, "5.0 GB"),
    (time_text, 3.25, "3.2 us"), (time_text, 12_500, "12.50 ms"), (time_text, 2.5e6, "2.50 s"),
    (clock_text, 65, "1:05"), (clock_text, 3665, "1:01:05"), (clock_text, -1, "0:00"),
    (count_text, 1234, "1,234"), (count_text, 12_500_000, "12.50 M"), (count_text, 3.2e9, "3.20 G"),
])
def test_numbers_for_people(function, value, text):
    assert function(value) == text


def test_long_names_keep_both_ends():
    assert short("conv1") == "conv1"
    name = "model/activation/Relu;model/conv2d/BiasAdd;model/conv2d_2/Conv2D"
    assert len(short(name)) == 36 and short(name) == "model/activ...;model/conv2d_2/Conv2D"


def test_table_text():
    assert table_text(["name", ">bytes"], [["a", 5], ["longer", 1234]], "title").splitlines() == [
        "title", "name    bytes", "------  -----", "a           5", "longer   1234"]
    assert table_text(["", ""], [["a", "b"]]) == "a  b"


def test_piped_output_is_plain():
    out, err = io.StringIO(), io.StringIO()
    terminal = Terminal(out, err)
    terminal.heading("part")
    terminal.table(["a", ">b"], [["x", 1]])
    with terminal.progress(10, "work") as bar:
        for step in range(10):
            bar.show(step + 1, "note")
        bar.say("a line")
    assert "\x1b" not in out.getvalue() and out.getvalue().endswith("a line\n")
    assert err.getvalue() == ""


def test_long_work_that_nobody_watches(monkeypatch):
    """A line now and then, on standard error."""
    monkeypatch.setattr("microcnn.tools.terminal.FIRST_REPORT", 0.0)
    err = io.StringIO()
    with Terminal(io.StringIO(), err).progress(10, "compiling kernels") as bar:
        for step in range(10):
            bar.show(step, f"{step}/10 conv2d.forward")
    assert err.getvalue() == "microcnn: compiling kernels: 0/10 conv2d.forward\n"


@pytest.mark.parametrize("rich", [True, False])
def test_someone_watches(monkeypatch, rich):
    """A bar on standard error, gone at the end; lines above it stay."""
    if rich:
        pytest.importorskip("rich")
    else:
        monkeypatch.setitem(sys.modules, "rich", None)
        monkeypatch.setitem(sys.modules, "rich.console", None)
    monkeypatch.setenv("TERM", "xterm")
    out, err = Screen(), Screen()
    terminal = Terminal(out, err)
    assert (terminal.console is not None) == rich
    terminal.heading("part [of it]")
    terminal.table(["name", ">bytes"], [["[a]", 5]])
    with terminal.progress(2, "work") as bar:
        bar.show(1, "loss [1]")
        bar.say("epoch [1]")
        bar.show(2, "loss 2")
    assert "[a]" in out.getvalue() and "part [of it]" in out.getvalue()
    assert "epoch [1]" in out.getvalue() + err.getvalue()
    assert "work" in err.getvalue()


def test_a_name_that_the_stream_cannot_spell():
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, "ascii")
    Terminal(out, io.StringIO()).say("mödel.onnx")
    assert raw.getvalue() == b"m\\xf6del.onnx\n"
