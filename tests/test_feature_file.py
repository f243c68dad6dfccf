"""The file of features: complete or not there, used again where it fits, and no trace of it where something goes wrong."""
from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from microcnn import feature_file
from microcnn.errors import CompileError, FileError
from microcnn.feature_file import NAME, resolve_path, stored

SHAPES = {"train 0": (5, 7), "train 1": (5, 2), "evaluate 0": (3, 7)}
FLOATS = np.dtype(np.float32)


def arrays(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}


def filling(given: dict[str, np.ndarray], calls: list | None = None):
    """What writes these, in pieces of two samples, one array after the other within a piece."""
    def fill(write):
        if calls is not None:
            calls.append(1)
        for begin in range(0, 5, 2):
            for name, array in given.items():
                write(name, array[begin:begin + 2])
    return fill


def never(write):
    raise AssertionError("made once more")


def check(found, given=None):
    for name, array in (given or arrays()).items():
        assert found.arrays[name].dtype == np.float32 and (found.arrays[name] == array).all(), name
    assert set(found.arrays) == set(SHAPES)


def empty(folder: Path) -> bool:
    return not list(folder.iterdir())


def test_a_file_without_a_name(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    found = stored(None, SHAPES, FLOATS, "", filling(arrays()))
    check(found)
    assert found.path is None and not found.reused and empty(tmp_path)
    base = found.arrays["train 0"]
    while isinstance(base.base, np.ndarray):
        base = base.base
    assert isinstance(base, np.memmap) and not base.flags.writeable


def test_it_is_used_again_where_it_fits(tmp_path):
    path, calls = tmp_path / "f", []
    first = stored(path, SHAPES, FLOATS, "d", filling(arrays(), calls))
    again = stored(path, SHAPES, FLOATS, "d", never)
    check(first)
    check(again)
    assert calls == [1] and (first.reused, again.reused) == (False, True) and again.path == path
    assert again.bytes == path.stat().st_size == first.bytes and again.note == first.note == ""
    assert [one.name for one in tmp_path.iterdir()] == ["f"]


@pytest.mark.parametrize("shapes, dtype, digest", [(SHAPES, FLOATS, "e"), (SHAPES, np.dtype(np.float64), "d"),
                                                   ({**SHAPES, "train 1": (5, 3)}, FLOATS, "d"),
                                                   ({name: SHAPES[name] for name in list(SHAPES)[:2]}, FLOATS, "d")])
def test_what_does_not_fit_is_made_anew(tmp_path, shapes, dtype, digest):
    path = tmp_path / "f"
    old = stored(path, SHAPES, FLOATS, "d", filling(arrays()))
    wanted = {name: np.ones(shape, dtype) for name, shape in shapes.items()}
    found = stored(path, shapes, dtype, digest, filling(wanted))
    assert not found.reused and "was made anew: it is of other data" in found.note and str(path) in found.note
    assert all((found.arrays[name] == 1).all() and found.arrays[name].dtype == dtype for name in shapes)
    check(old)          # who reads the old one goes on reading it
    assert stored(path, shapes, dtype, digest, never).reused


def damage(path: Path, how: str) -> str:
    """Do something to a complete file; what is said of it then."""
    content = bytearray(path.read_bytes())
    if how == "short":
        del content[-1]
    elif how == "no data":
        del content[64:]
    elif how == "prefix only":
        del content[10:]
    elif how == "nothing":
        content.clear()
    elif how == "a bit of the data":
        content[-70] ^= 1
    elif how == "a bit of the header":
        content[40] ^= 1
    else:
        content[8] += 1
    path.write_bytes(content)
    return {"a newer format": "it has format 2"}.get(how, "damaged" if "bit" in how else "incomplete")


@pytest.mark.parametrize("how", ["short", "no data", "prefix only", "nothing", "a bit of the data", "a bit of the header",
                                 "a newer format"])
def test_half_a_file_is_never_taken_for_a_whole_one(tmp_path, how):
    path = tmp_path / "f"
    stored(path, SHAPES, FLOATS, "d", filling(arrays()))
    told, calls = damage(path, how), []
    assert resolve_path(path) == path
    found = stored(path, SHAPES, FLOATS, "d", filling(arrays(), calls))
    check(found)
    assert calls == [1] and told in found.note
    assert stored(path, SHAPES, FLOATS, "d", never).reused


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("in the middle")], ids=["ctrl-c", "error"])
@pytest.mark.parametrize("named", [True, False])
def test_nothing_is_left_where_it_is_not_finished(tmp_path, monkeypatch, error, named):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    seen = []

    def fill(write):
        write("train 0", np.ones((2, 7)))
        seen.extend(path.name for path in tmp_path.iterdir())
        raise error
    with pytest.raises(type(error)):
        stored(tmp_path / "f" if named else None, SHAPES, FLOATS, "d", fill)
    assert empty(tmp_path) and seen == ([".f.part"] if named else [])


@pytest.mark.parametrize("named", [True, False])
def test_no_room(tmp_path, monkeypatch, named):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=600))
    with pytest.raises(FileError) as caught:
        stored(tmp_path / "f" if named else None, SHAPES, FLOATS, "d", never)
    assert "the features take 640 bytes" in str(caught.value) and "has 600 left" in str(caught.value)
    assert str(tmp_path) in str(caught.value) and empty(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=640))
    assert stored(tmp_path / "f", SHAPES, FLOATS, "d", filling(arrays())).bytes == 640


def test_the_room_of_what_is_replaced_counts(tmp_path, monkeypatch):
    path = tmp_path / "f"
    stored(path, SHAPES, FLOATS, "d", filling(arrays()))
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=0 if path.exists() else 1000))
    check(stored(path, SHAPES, FLOATS, "e", filling(arrays())))


@pytest.mark.parametrize("named", [True, False])
def test_a_disk_that_is_full_in_the_middle(tmp_path, monkeypatch, named):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    class Full(feature_file._Writer):
        def write(self, name, array):
            if self.done[name]:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            super().write(name, array)
    monkeypatch.setattr(feature_file, "_Writer", Full)
    with pytest.raises(FileError, match="cannot write the 640 bytes of features to .*: No space left on device; nothing of"):
        stored(tmp_path / "f" if named else None, SHAPES, FLOATS, "d", filling(arrays()))
    assert empty(tmp_path)


WRITES = """
import sys, time
from pathlib import Path
import numpy as np
from microcnn.feature_file import stored

def fill(write):
    write("train 0", np.ones((2, 7)))
    print("writing", flush=True)
    sys.stdin.readline()
    write("train 0", np.ones((3, 7)))

stored(Path(sys.argv[1]), {"train 0": (5, 7)}, np.dtype(np.float32), "other", fill)
print("done", flush=True)
"""


def writer(path: Path) -> subprocess.Popen[str]:
    """Another process, which is in the middle of writing there."""
    process = subprocess.Popen([sys.executable, "-c", WRITES, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               text=True)
    assert process.stdout is not None and process.stdout.readline() == "writing\n"
    return process


def test_two_processes_with_one_path(tmp_path):
    path = tmp_path / "f"
    with writer(path) as process:
        found = stored(path, SHAPES, FLOATS, "d", filling(arrays()))
        check(found)
        assert found.path is None and "another process is writing" in found.note
        assert [one.name for one in tmp_path.iterdir()] == [".f.part"]
        assert process.communicate("\n", timeout=60)[0] == "done\n"
    assert [one.name for one in tmp_path.iterdir()] == ["f"]
    assert (stored(path, {"train 0": (5, 7)}, FLOATS, "other", never).arrays["train 0"] == 1).all()


def test_a_killed_process_leaves_what_the_next_one_takes(tmp_path):
    path = tmp_path / "f"
    with writer(path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait(60)
    assert [one.name for one in tmp_path.iterdir()] == [".f.part"]
    found = stored(path, SHAPES, FLOATS, "d", filling(arrays()))
    check(found)
    assert found.path == path and [one.name for one in tmp_path.iterdir()] == ["f"]


def test_the_other_process_was_ready_between_opening_and_locking(tmp_path, monkeypatch):
    """What was opened has the file's name by then: it is complete, and may not be emptied."""
    path = tmp_path / "f"
    flock = feature_file.fcntl.flock

    def late(file, how):
        os.replace(tmp_path / ".f.part", path)
        path.write_bytes(b"complete")
        (tmp_path / ".f.part").write_bytes(b"a third process begins")
        flock(file, how)
    monkeypatch.setattr(feature_file.fcntl, "flock", late)
    check(stored(path, SHAPES, FLOATS, "d", filling(arrays())))
    assert path.read_bytes() == b"complete" and (tmp_path / ".f.part").read_bytes() == b"a third process begins"


def test_paths(tmp_path):
    assert resolve_path(True) is None
    assert resolve_path(tmp_path) == tmp_path / NAME and resolve_path(str(tmp_path / "f")) == tmp_path / "f"
    for wrong in (1, None, "", [tmp_path]):
        with pytest.raises(CompileError, match="cache_features is .*expected False, True, or the path of a file or a folder"):
            resolve_path(wrong)
    with pytest.raises(FileError, match="there is no folder"):
        resolve_path(tmp_path / "no" / "f")
    mine = tmp_path / "data.npz"
    mine.write_bytes(b"PK and more")
    with pytest.raises(FileError, match="is something else than features, and stays"):
        resolve_path(mine)
    assert mine.read_bytes() == b"PK and more"
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileError, match="is no regular file"):
        resolve_path(tmp_path / "pipe")


def test_a_link_is_followed(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "f")
    path = resolve_path(tmp_path / "link")
    stored(path, SHAPES, FLOATS, "d", filling(arrays()))
    assert (tmp_path / "link").is_symlink() and (tmp_path / "disk" / "f").is_file()


@pytest.mark.parametrize("memory, expected", [((), "usual"), (("usual",), "disk"), (("usual", "disk"), "usual")])
def test_a_file_without_a_name_goes_to_a_disk(tmp_path, monkeypatch, memory, expected):
    for name in ("usual", "disk"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "usual"))
    monkeypatch.setattr(feature_file, "ON_DISK", str(tmp_path / "disk"))
    monkeypatch.setattr(feature_file, "_in_memory", lambda folder: folder.name in memory)
    assert feature_file._folder() == tmp_path / expected


def test_memory_disks_are_known():
    assert not feature_file._in_memory(Path("/proc"))
    if Path("/dev/shm").is_dir() and os.path.ismount("/dev/shm"):
        assert feature_file._in_memory(Path("/dev/shm"))
