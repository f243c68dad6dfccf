"""The command warmup: alone, and in two processes."""
import json
import os
import re
import subprocess
import sys

import microcnn as mc
from microcnn import entries
from microcnn.planned import Planned
from microcnn.tools.ahead import missing
from tests.ops.table import built

from .command_line import run


def test_warmup(capsys, model):
    code, out, _ = run(capsys, "warmup", model, "--train", "--batch", "2")
    assert code == 0 and "kernels" in out


def test_kernels_of_larger_batches_are_compiled_for_training_too(capsys, tmp_path, monkeypatch):
    """With small tensors and large ones other rows run: a batch norm's output is kept, made again, or made on the way."""
    graph = built((3, 40, 40), mc.Conv2d(16, 3, padding=1), mc.BatchNorm2d(), mc.ReLU(), mc.Conv2d(16, 3, padding=1, groups=16),
                  mc.BatchNorm2d(), mc.ReLU(), mc.Conv2d(8, 1), mc.GlobalAvgPool2d(), mc.Flatten(), mc.Linear(3))
    graph.save(tmp_path / "net.mcnn")
    how = dict(train="all", bn="batch", loss="cross_entropy", optimizer=mc.SGD(lr=0.1))
    small, large = ({info.kernel for info in Planned(graph, batch=batch, **how).rows("train")} for batch in (1, 32))
    assert {"normalised3x3.forward", "batchnorm.forward_saved"} <= large - small
    for processes, options in (("1", ()), ("2", ()), ("1", ("--batch", "1"))):
        monkeypatch.setattr(entries, "_loaded", {})
        code, _, err = run(capsys, "warmup", tmp_path / "net.mcnn", "--train", "--bn", "batch", "--optimizer", "sgd",
                           "--processes", processes, *options)
        assert code == 0, err
        loaded = {name for name, dtype in entries._loaded if dtype == "float32"}
        if options:
            assert small <= loaded and not (large - small) & loaded
        elif processes == "1":
            assert small | large <= loaded
        else:
            assert small <= loaded and not missing(sorted(small | large), "float32")


def test_warmup_in_two_processes(tmp_path, model):
    """A cold cache: both compile, and everything is stored where the next process looks."""
    code = f"""
from microcnn import entries
from microcnn.tools.cli import main
assert main(["warmup", {str(model)!r}, "--processes", "2"]) == 0
print(sorted(int(not made.compiled) for (_, dtype), made in entries._loaded.items() if dtype))
"""
    first, second = (subprocess.run([sys.executable, "-c", code], env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)},
                                    capture_output=True, text=True, timeout=600) for _ in range(2))
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    own, taken = json.loads(first.stdout.splitlines()[-1]), json.loads(second.stdout.splitlines()[-1])
    assert set(own) == {0, 1} and set(taken) == {1} and len(own) == len(taken)
    counts = [int(re.match(r"(\d+) kernels are ready", made.stdout)[1]) for made in (first, second)]
    assert counts[0] == counts[1] == len(own)
