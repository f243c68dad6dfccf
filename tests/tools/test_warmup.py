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
