"""A model and data that it can learn, for the tests of the command."""
from __future__ import annotations

import math

import pytest

from microcnn.tools import terminal

from .command_line import small_graph, write_data


@pytest.fixture(autouse=True)
def no_reports(monkeypatch):
    """Whether a kernel has to be compiled first may not change what a command prints."""
    monkeypatch.setattr(terminal, "FIRST_REPORT", math.inf)


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "small.mcnn"
    small_graph().save(path)
    return path


@pytest.fixture
def data(tmp_path):
    return write_data(tmp_path / "data.npz")
