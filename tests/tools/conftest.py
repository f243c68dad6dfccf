"""A model and data that it can learn, for the tests of the command."""
from __future__ import annotations

import pytest

from .command_line import small_graph, write_data


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "small.mcnn"
    small_graph().save(path)
    return path


@pytest.fixture
def data(tmp_path):
    return write_data(tmp_path / "data.npz")
