"""Fixtures for all tests."""
import importlib
import importlib.util
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest

from . import WORK

ROOT = Path(__file__).resolve().parent.parent

if importlib.util.find_spec("microcnn.tools") is None:
    # installed without -e: the source folder, which the tests see first, lacks the tools, and what is installed is tested
    for module in [name for name in sys.modules if name.partition(".")[0] == "microcnn"]:
        del sys.modules[module]
    kept = sys.path[:]
    sys.path[:] = [entry for entry in kept if Path(entry).resolve() != ROOT]
    importlib.import_module("microcnn")
    sys.path[:] = kept

from microcnn import waking  # noqa: E402

# not measured: which tests run in threads may not depend on the machine
waking.fixed = WORK

# a job in the background of a script begins with Ctrl-C ignored, and so would every process that the tests start
signal.signal(signal.SIGINT, signal.default_int_handler)


def shared():
    """The folder of data and models that lies beside the project, or where MICROCNN_SHARED says; None without one."""
    if given := os.environ.get("MICROCNN_SHARED"):
        folder = Path(given)
        assert folder.is_dir(), f"MICROCNN_SHARED names {given}, which is no folder"
        return folder
    folder = ROOT.parent / "shared"
    return folder if folder.is_dir() else None


@pytest.fixture(scope="session")
def corpus():
    """The folder with real data and models made by others; tests that need it skip where it is absent."""
    folder = shared()
    if folder is None or not (folder / "corpus").is_dir():
        pytest.skip("corpus: no folder of real data and models beside the project, and MICROCNN_SHARED names none")
    return folder / "corpus"


@pytest.fixture
def rng():
    """A random generator, the same for every test."""
    return np.random.default_rng(0)


@pytest.fixture
def planned(monkeypatch):
    """The schedules of the networks that a test compiles, by mode."""
    found = {}
    from microcnn.plan import Schedule
    finish = Schedule.finish

    def watched(self, *policy):
        finish(self, *policy)
        found[self.mode] = self
    monkeypatch.setattr(Schedule, "finish", watched)
    return found
