"""Fresh processes that compile a step of SGD into a cache folder, or take it from there."""
from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..conftest import ROOT

fcntl = pytest.importorskip("fcntl")

# One step of SGD through its entry: a parallel kernel, helpers in other files, the smallest that has both.
STEP = """
import numpy as np
import sys
from microcnn import arena, entries, store
from tests.rows import run
def step(dtype="float32", size=1000, threads=1):
    w, g = np.ones(size, dtype), np.ones(size, dtype)
    run("update.sgd", 1, threads, dtype, {arena.RATE: 0.25, arena.STEP: 1}, weight=w, gradient=g, velocity=None, size=size,
        momentum=0.0, dampening=0.0, weight_decay=0.0, nesterov=0, factor=1.0, clip=None)
    assert (w == w[0]).all()
    return float(w[0])
def hits(dtype="float32"):
    return int(not entries.code("update.sgd", dtype).compiled)
"""

# Root may write everywhere; without its capabilities it obeys the permission bits like everyone.
ORDINARY = """
import ctypes, os
if os.geteuid() == 0:
    header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert ctypes.CDLL(None, use_errno=True).capset(header, none) == 0, os.strerror(ctypes.get_errno())
"""


def environment(folder: Path | None, **others: str | None) -> dict[str, str]:
    """The environment of a fresh process whose cache is that folder; None takes a variable away."""
    changed = {**os.environ, "PYTHONPATH": str(ROOT), "NUMBA_CACHE_DIR": str(folder) if folder else None, **others}
    return {name: value for name, value in changed.items() if value is not None}


def start(code: str, folder: Path | None, cwd: Path = ROOT, **others: str | None) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-W", "error", "-c", code], env=environment(folder, **others), cwd=cwd,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out.strip()


def fresh(code: str, folder: Path | None, cwd: Path = ROOT, **others: str | None) -> str:
    """What code prints in a fresh process."""
    return finish(start(code, folder, cwd, **others))


def only(folder: Path) -> Path:
    """The one folder of compiled code in a cache."""
    found, = (folder / "microcnn").iterdir()
    return found


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of all that lies in a folder of compiled code, as processes do that compile it."""
    with open(folder / "lock", "a") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        yield
