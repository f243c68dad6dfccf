"""Cache folders."""
from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from .processes import STEP, fresh


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder that holds the compiled step. Tests must not change it."""
    folder = tmp_path_factory.mktemp("warm")
    assert fresh(STEP + "print(step(), hits())", folder) == "0.75 0"
    return folder


@pytest.fixture
def copied(warm: Path, tmp_path: Path) -> Path:
    """A warm cache folder of the test's own."""
    return Path(shutil.copytree(warm, tmp_path / "copied"))


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter."""
    folder = Path(tempfile.mkdtemp(prefix="cache-test-"))
    folder.chmod(0o755)
    yield folder
    for path in [folder, *folder.rglob("*")]:
        if path.is_dir():
            path.chmod(0o755)
    shutil.rmtree(folder)
