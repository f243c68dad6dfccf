"""The command warmup: alone, and in two processes."""
import json
import os
import re
import subprocess
import sys

from .command_line import run


def test_warmup(capsys, model):
    code, out, _ = run(capsys, "warmup", model, "--train", "--batch", "2")
    assert code == 0 and "kernels" in out


def test_warmup_in_two_processes(tmp_path, model):
    """A cold cache: both compile, and everything is stored where the next process looks."""
    code = f"""
from microcnn.entries import ENTRIES
from microcnn.tools.cli import main
assert main(["warmup", {str(model)!r}, "--processes", "2"]) == 0
print(sorted(made.cache_hits for entry in ENTRIES.values() for made in entry._compiled.values()))
"""
    first, second = (subprocess.run([sys.executable, "-c", code], env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)},
                                    capture_output=True, text=True, timeout=600) for _ in range(2))
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    own, taken = json.loads(first.stdout.splitlines()[-1]), json.loads(second.stdout.splitlines()[-1])
    assert set(own) == {0, 1} and set(taken) == {1} and len(own) == len(taken)
    counts = [int(re.match(r"(\d+) kernels are ready", made.stdout)[1]) for made in (first, second)]
    # one more where several threads are there to be woken: a kernel that measures how long that takes
    assert counts[0] == counts[1] and len(own) - counts[0] in (0, 1)
