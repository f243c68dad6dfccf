"""microcnn profile, its files, and microcnn doctor --measure."""
import csv
import json
from html.parser import HTMLParser

import pytest

import microcnn as mc
from microcnn.tools import roofline
from microcnn.tools.commands import profiling
from microcnn.tools.profile_data import Machine

from .command_line import run, small_graph, start


@pytest.fixture
def model(tmp_path):
    small_graph().save(tmp_path / "small.mcnn")
    return tmp_path / "small.mcnn"


@pytest.fixture(autouse=True)
def known_machine(monkeypatch, tmp_path):
    """A machine whose figures are known, so that no test measures it."""
    monkeypatch.setattr(roofline, "kept_file", lambda: tmp_path / "machine.json")
    monkeypatch.setattr(roofline, "kept", lambda threads, dtype: Machine(100.0, 10.0, threads, dtype))


def test_every_file_of_one_measurement(capsys, tmp_path, model):
    files = {name: tmp_path / f"p.{name}" for name in ("json", "csv", "trace", "html")}
    options = [part for name, path in files.items() for part in (f"--{name}", path)]
    code, out, err = run(capsys, "profile", model, "--train", "--batch", "2", "--repeats", "3", *options)
    assert code == 0, err
    assert [line for line in out.splitlines() if line.startswith("saved")] == [f"saved {path}" for path in files.values()]
    profile = mc.Profile.load(files["json"])
    assert profile.conditions["batch"] == 2 and profile.runs[0].machine == Machine(100.0, 10.0, profile.conditions["threads"])
    names = {layer.name for layer in profile.layers}
    with open(files["csv"], newline="") as file:
        assert names <= {value for line in csv.DictReader(file) for value in line.values()}
    events = json.loads(files["trace"].read_text())["traceEvents"]
    assert names - {"call"} <= {event["name"] for event in events}
    seen = []

    class Reader(HTMLParser):
        def handle_data(self, data):
            seen.append(data)
    Reader().feed(files["html"].read_text())
    assert all(any(name in text for text in seen) for name in names)


@pytest.mark.parametrize(("options", "text"), [
    ("--sort colour", "sort is 'colour'; expected one of"), ("--html nowhere/r.html", "does not exist"),
    ("--json a --html a", "--json and --html are both a"), ("--csv small.mcnn", "what is read and --csv"),
    ("--csv link.mcnn", "what is read and --csv"), ("--json /dev/full", "not a regular file"), ("--batch 0", "0 is too small"),
    ("--shape 0,8,8", "is not a shape"),
    ("--shape 5,8,8", "input"), ("--repeats x", "not a whole number"), ("--compare a.json", "expected 2 arguments"),
    ("--compare missing.json missing.json", "takes no"),
])
def test_bad_options(capsys, model, options, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link.mcnn").symlink_to(model)
    code, out, err = run(capsys, "profile", model, *options.split())
    assert code == 2 and text in err and err.count("\n") == 1, err


def test_without_a_model(capsys):
    code, _, err = run(capsys, "profile")
    assert code == 2 and "needs MODEL, or --compare" in err


def test_sorted(capsys, model):
    code, out, _ = run(capsys, "profile", model, "--train", "--batch", "4", "--repeats", "3", "--sort", "name")
    names = [line.split()[0] for line in out.splitlines() if line[:1].islower()]
    layers = [name for name in names if name in ("conv1", "linear1", "maxpool1")]
    assert code == 0 and layers == sorted(layers) and len(layers) == 3
    lines = [line.strip() for line in out.splitlines()]
    last = [i for i, line in enumerate(lines) if line.startswith(("not accounted for", "whole call"))]
    assert len(last) == 2 and last[0] > max(i for i, line in enumerate(lines) if line.startswith(tuple(layers)))


def test_compare(capsys, tmp_path, model):
    for name, batch in (("a.json", 2), ("b.json", 8)):
        assert run(capsys, "profile", model, "--batch", batch, "--repeats", "3", "--json", tmp_path / name)[0] == 0
    files = tmp_path / "a.json", tmp_path / "b.json"
    code, out, err = run(capsys, "profile", "--compare", *files, "--json", tmp_path / "c.json")
    assert code == 0, err
    assert "linear1" in out and "batch" in out
    assert json.loads((tmp_path / "c.json").read_text())["schema"] == "microcnn.comparison/1"
    code, _, err = run(capsys, "profile", "--compare", tmp_path / "a.json", tmp_path / "missing.json")
    assert code == 2 and "cannot be read" in err and err.count("\n") == 1
    code, _, err = run(capsys, "profile", "--compare", tmp_path / "a.json", tmp_path / "b.json", "--html", "x.html")
    assert code == 2 and "takes no --html" in err
    for options in (["--batch", "4"], ["--cold"], ["--shape", "1,8,8"]):
        code, _, err = run(capsys, "profile", "--compare", *files, *options)
        assert code == 2 and f"takes no {options[0]}" in err
    code, _, err = run(capsys, "profile", "--compare", *files, "--json", files[0])
    assert code == 2 and "what is read and --json" in err
    assert mc.Profile.load(files[0]).conditions["batch"] == 2


def test_one_file_that_cannot_be_written_keeps_no_other(capsys, tmp_path, model, monkeypatch):
    def refuse(path, chunks):
        if str(path).endswith(".json"):
            raise mc.FileError(f"{path}: no space left")
        return write(path, chunks)
    write = profiling.atomic_write
    monkeypatch.setattr(profiling, "atomic_write", refuse)
    code, out, err = run(capsys, "profile", model, "--repeats", "2", "--json", tmp_path / "a.json", "--csv", tmp_path / "a.csv")
    assert code == 2 and "no space left" in err and (tmp_path / "a.csv").exists() and "a.csv" in out


def test_more_threads_than_processors(tmp_path, model):
    """In a process of its own: numba is told how many it may have before it is loaded."""
    before = "from microcnn.tools import roofline\nroofline.measure = lambda *a: [None]"
    process = start("profile", model, "--repeats", "2", "--threads", "3", before=before)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0 and "3 threads" in out, err


def test_ctrl_c_prints_what_was_measured(tmp_path, model):
    """In a process of its own: interrupted in the second of its two runs."""
    before = ("import signal, os\nfrom microcnn.tools import profiler\nmeasure = profiler._measure\ncount = []\n"
              "def measured(*a):\n"
              "    count.append(1)\n"
              "    if len(count) == 2:\n"
              "        os.kill(os.getpid(), signal.SIGINT)\n"
              "    return measure(*a)\n"
              "profiler._measure = measured")
    process = start("profile", model, "--batch", "1,2", "--repeats", "5", "--json", tmp_path / "p.json", before=before)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130 and "Traceback" not in err, err
    assert "predict, batch 1" in out and "interrupted; 1 of 2 runs were measured" in err
    assert mc.Profile.load(tmp_path / "p.json").conditions["batch"] == 1


def test_doctor_measures_and_keeps(capsys, monkeypatch, tmp_path):
    monkeypatch.undo()
    monkeypatch.setattr(roofline, "kept_file", lambda: tmp_path / "machine.json")
    monkeypatch.setattr(roofline, "LEAST_COPIED", 2**20)
    monkeypatch.setattr(roofline, "cache_bytes", lambda: None)
    assert roofline.kept(1) is None
    code, out, _ = run(capsys, "doctor", "--measure", "--threads", "1")
    assert code == 0 and "GFLOP/s of multiply-adds" in out
    found = roofline.kept(1)
    assert found.peak_gflops > 0 and found.bandwidth_gbs > 0 and roofline.kept(7) is None
    roofline.measure([2])
    assert roofline.kept(1) == found and roofline.kept(2).threads == 2
    assert roofline.kept(2).peak_gflops >= found.peak_gflops and roofline.kept(2).bandwidth_gbs >= found.bandwidth_gbs
    monkeypatch.setattr(roofline, "cpu_name", lambda: "another one")
    assert roofline.kept(1) is None


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"schema": "microcnn.machine/1", "roofs": 3}', "[" * 100_000,
                                     '{"schema": "microcnn.machine/1", "roofs": [3]}'])
def test_a_file_of_figures_that_is_none(content, monkeypatch, tmp_path):
    monkeypatch.undo()
    monkeypatch.setattr(roofline, "kept_file", lambda: tmp_path / "machine.json")
    (tmp_path / "machine.json").write_text(content)
    assert roofline.kept(1) is None


@pytest.mark.parametrize(("key", "value"), [("bandwidth_gbs", 0.0), ("bandwidth_gbs", float("nan")), ("peak_gflops", -1.0),
                                            ("peak_gflops", float("inf")), ("peak_gflops", "x"), ("threads", float("inf"))])
def test_figures_that_cannot_be(key, value, monkeypatch, tmp_path):
    monkeypatch.undo()
    monkeypatch.setattr(roofline, "kept_file", lambda: tmp_path / "machine.json")
    roof = {**roofline._identity(), "peak_gflops": 100.0, "bandwidth_gbs": 10.0, "threads": 1, "dtype": "float32"}
    (tmp_path / "machine.json").write_text(json.dumps({"schema": "microcnn.machine/1", "roofs": [roof]}))
    assert roofline.kept(1) == Machine(100.0, 10.0)
    (tmp_path / "machine.json").write_text(json.dumps({"schema": "microcnn.machine/1", "roofs": [{**roof, key: value}]}))
    assert roofline.kept(1) is None


def test_a_disk_that_cannot_be_written(monkeypatch, tmp_path):
    monkeypatch.undo()
    monkeypatch.setattr(roofline, "kept_file", lambda: tmp_path / "no" / "machine.json")
    monkeypatch.setattr(roofline, "LEAST_COPIED", 2**20)
    monkeypatch.setattr(roofline, "cache_bytes", lambda: None)
    assert roofline.measure([1])[0].peak_gflops > 0
    assert roofline.kept(1) is None
