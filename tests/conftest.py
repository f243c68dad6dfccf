"""Fixtures for all tests."""
import os
import signal
from pathlib import Path

import numpy as np
import pytest

from microcnn import waking

from . import WORK

ROOT = Path(__file__).resolve().parent.parent

# not measured: which tests run in threads may not depend on the machine
waking._least_work = WORK

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
