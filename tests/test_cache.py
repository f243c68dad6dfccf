"""The cache of compiled kernels: where it lies, when it is stale, who may write it, and what happens where no one can."""
from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import microcnn

from .conftest import ROOT

fcntl = pytest.importorskip("fcntl")

# One step of SGD through its entry: a parallel kernel, helpers in other files, the smallest that has both.
STEP = """
import numpy as np
from microcnn.kernels import cache, entry, update
from tests.rows import run
def step(dtype="float32", size=1000, threads=1):
    w, g = np.ones(size, dtype), np.ones(size, dtype)
    run("update.sgd", 1, threads, dtype, {entry.RATE: 0.25, entry.STEP: 1}, weight=w, gradient=g, velocity=None, size=size,
        momentum=0.0, dampening=0.0, weight_decay=0.0, nesterov=0, factor=1.0, clip=None)
    assert (w == w[0]).all()
    return float(w[0])
def hits(dtype="float32"):
    return entry.ENTRIES["update.sgd"]._compiled[dtype].cache_hits
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


def only(folder: Path) -> Path:
    """The one folder of compiled code in a cache."""
    found, = (folder / "microcnn").iterdir()
    return found


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder of compiled code, as a process does that compiles."""
    with open(folder / "lock", "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def test_a_warm_parallel_kernel_runs_in_a_fresh_process(warm):
    # without numba's threads started first this dies: Symbol not found: allocate_sched
    code = STEP + "print(step(size=200_000, threads=2), hits())"
    assert fresh(code, warm) == "0.75 1"
    assert fresh("from microcnn.program import executor\nexecutor('plain')\n" + code, warm) == "0.75 1"


def test_a_warm_network_compiles_nothing(tmp_path_factory):
    code = """
import microcnn as mc, numpy as np
from microcnn.entries import ENTRIES
net = mc.Sequential([mc.Flatten(), mc.Linear(3)], (2, 2, 2)).graph().compile(
    batch=2, train="all", loss="mse", optimizer=mc.SGD(lr=0.1))
x = np.ones((2, 2, 2, 2), np.float32)
print(net.train_step(x, np.zeros((2, 3))), net.predict(x).tolist(),
      all(c.cache_hits for e in ENTRIES.values() for c in e._compiled.values()))
"""
    folder = tmp_path_factory.mktemp("network")
    first, second = fresh(code, folder), fresh(code, folder)
    assert first.endswith("False") and second.endswith("True")
    assert first.rpartition(" ")[0] == second.rpartition(" ")[0]


def test_a_changed_helper_in_another_file_is_seen(tmp_path):
    # numba itself looks at the entry's own file only, and would run the old machine code
    tree = tmp_path / "tree"
    shutil.copytree(ROOT / "microcnn", tree / "microcnn", ignore=shutil.ignore_patterns("__pycache__"))
    (tree / "tests").mkdir()
    for name in ("__init__.py", "rows.py"):
        shutil.copy(ROOT / "tests" / name, tree / "tests" / name)
    code = STEP + f"assert cache.__file__.startswith({str(tree)!r}), cache.__file__\nprint(step(), hits())"
    others = {"PYTHONPATH": str(tree)}
    cache = tmp_path / "cache"
    assert fresh(code, cache, tree, **others) == "0.75 0"
    assert fresh(code, cache, tree, **others) == "0.75 1"
    helper = tree / "microcnn" / "kernels" / "entry.py"
    text = helper.read_text()
    old = "return view_as(arena, 0, index + 1, np.float64)[index]"
    assert text.count(old) == 1
    helper.write_text(text.replace(old, old + " * 2.0"))
    assert fresh(code, cache, tree, **others) == "0.5 0"
    assert len(list((cache / "microcnn").iterdir())) == 2


def test_two_cold_processes_at_once(tmp_path):
    # numba writes the index first, the code later: a pause between them lets the other process in, were there no lock
    code = """
import time
from numba.core.caching import IndexDataCacheFile
save = IndexDataCacheFile._save_index
def slowly(self, overloads):
    save(self, overloads)
    time.sleep(0.3)
IndexDataCacheFile._save_index = slowly
""" + STEP
    fresh("import microcnn.kernels", tmp_path)
    with locked(only(tmp_path)):
        single = start(code + "print(step('float32'), step('float64'))", tmp_path)
        double = start(code + "print(step('float64'), step('float32'))", tmp_path)
        deadline = time.monotonic() + 60
        while waiting_for_lock(single.pid) + waiting_for_lock(double.pid) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert single.poll() is None and double.poll() is None
        assert not list(only(tmp_path).rglob("*.nbi")), "compiled without the lock"
    assert finish(single) == finish(double) == "0.75 0.75"
    third = fresh(STEP + "print(step('float32'), step('float64'), hits('float32'), hits('float64'))", tmp_path)
    assert third == "0.75 0.75 1 1"


def waiting_for_lock(pid: int) -> bool:
    """Whether a process stands still in flock."""
    try:
        return any(f" {pid} " in line for line in Path("/proc/locks").read_text().splitlines() if "->" in line)
    except OSError:
        return False


def test_a_process_waits_until_the_other_has_compiled(copied):
    with locked(only(copied)):
        waiting = start(STEP + "print(step())", copied)
        with pytest.raises(subprocess.TimeoutExpired):
            waiting.wait(4)
    assert finish(waiting) == "0.75"


def test_every_cache_path_lies_in_our_folder(warm):
    code = STEP + """
step()
inside = cache.folder()
paths = [c._cache.cache_path for e in entry.ENTRIES.values() for c in e._compiled.values()]
assert paths
assert all(inside in __import__("pathlib").Path(path).parents for path in paths), paths
import numba
print(inside.parent.parent, numba.config.CACHE_DIR)
"""
    assert fresh(code, warm) == f"{warm} {warm}"
    assert {path.suffix for path in warm.rglob("*") if path.is_file()} == {".nbi", ".nbc", ""}
    # what an entry calls is part of its code: nothing else is stored, but for what the threads share
    assert {path.name.partition("-")[0] for path in warm.rglob("*.nb[ic]")} <= {
        "update.sgd", "program._execute", "team._parallel_for", "team._look"}
    assert [path.name for path in warm.rglob("*") if path.is_file() and not path.suffix] == ["lock"]


WHERE = "from microcnn.kernels import cache; print(cache.folder())"


def test_which_folder(tmp_path):
    home, user = tmp_path / "home", tmp_path / "user"
    assert Path(fresh(WHERE, tmp_path / "given")).parent == tmp_path / "given" / "microcnn"
    assert Path(fresh(WHERE, None, XDG_CACHE_HOME=str(user))).parent == user / "microcnn"
    assert Path(fresh(WHERE, None, XDG_CACHE_HOME=None, HOME=str(home))).parent == home / ".cache" / "microcnn"
    relative = fresh("import os\n" + WHERE + "\nos.chdir('/')\nprint(cache.folder())", Path("here"), tmp_path).split()
    assert {Path(one).parent for one in relative} == {tmp_path / "here" / "microcnn"}


def test_no_folder_can_be_written(open_folder):
    # not even made: the temporary folder is private, works, and goes when the process ends
    open_folder.chmod(0o555)
    code = ORDINARY + STEP + "import os, stat\nprint(step(), cache.folder(), oct(stat.S_IMODE(" \
        "os.stat(cache.folder().parent).st_mode)))\nif os.fork() == 0:\n    raise SystemExit\nos.wait()\n" \
        "assert cache.folder().is_dir(), 'a forked child took it away'"
    value, folder, mode = fresh(code, open_folder, XDG_CACHE_HOME=str(open_folder), HOME=str(open_folder)).split()
    assert value == "0.75" and mode == "0o700"
    assert Path(folder).parent.parent == Path(tempfile.gettempdir())
    assert not Path(folder).parent.exists()
    assert not list(open_folder.iterdir())


def test_nothing_can_be_written_at_all(open_folder):
    open_folder.chmod(0o555)
    code = ORDINARY + """
import tempfile
tempfile.tempdir = "/proc"
import microcnn as mc
try:
    import microcnn.kernels
except mc.CacheError as error:
    print(error)
"""
    message = fresh(code, open_folder, XDG_CACHE_HOME=str(open_folder), HOME=str(open_folder))
    assert message.startswith("no folder for compiled kernels can be written; set NUMBA_CACHE_DIR to one that can (")


def test_a_read_only_folder_that_is_warm_is_used(warm, open_folder):
    shutil.copytree(warm, open_folder / "disk")
    before = sorted(path for path in (open_folder / "disk").rglob("*"))
    for path in [open_folder / "disk", *before]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    code = ORDINARY + STEP + "print(step(), hits(), step('float64'), hits('float64'), cache.folder())"
    # no home either: the step is there, what is missing (float64) is compiled beside it
    value, hit, other, missed, folder = fresh(code, open_folder / "disk", HOME="/nonexistent").split()
    assert (value, hit, other, missed) == ("0.75", "1", "0.75", "0")
    assert not Path(folder).parent.exists()
    assert sorted((open_folder / "disk").rglob("*")) == before


def test_a_cold_read_only_folder_is_passed_over(open_folder, tmp_path):
    open_folder.chmod(0o555)
    assert Path(fresh(ORDINARY + WHERE, open_folder, XDG_CACHE_HOME=str(tmp_path))).parent == tmp_path / "microcnn"


def test_the_two_newest_folders_stay(tmp_path):
    home = tmp_path / "microcnn"
    for age, name in enumerate(["a" * 16, "b" * 16, "c" * 16, "somebodys"]):
        (home / name / "float32").mkdir(parents=True)
        os.utime(home / name, (1_000_000 - age, 1_000_000 - age))
    own = Path(fresh(WHERE, tmp_path)).name
    assert {path.name for path in home.iterdir()} == {own, "a" * 16, "somebodys"}
    # one that is used counts as new
    os.utime(home / own, (1, 1))
    fresh(WHERE, tmp_path)
    assert (home / own).stat().st_mtime > 1_000_000


def test_a_full_disk(tmp_path):
    # files may not grow beyond 8 KB: numba stores the index, but not the code
    code = STEP + """
import resource, signal
import microcnn as mc
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (8192, resource.RLIM_INFINITY))
try:
    step()
except mc.CacheError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(step())
"""
    message, value = fresh(code, tmp_path).splitlines()
    assert message == (f"compiled kernels cannot be stored in {only(tmp_path)}: [Errno 27] File too large; make room there, "
                       "or set NUMBA_CACHE_DIR to another folder")
    assert value == "0.75"
    assert fresh(STEP + "print(step(), hits())", tmp_path) == "0.75 1"
    assert not list(tmp_path.rglob("*.tmp.*"))


@pytest.mark.parametrize("suffix, content", [(".nbc", b""), (".nbc", None), (".nbi", b"\0" * 500)])
def test_a_damaged_file_is_compiled_anew(copied, suffix, content):
    # what a loss of power leaves: an empty file, half of one, zeros
    for path in copied.rglob(f"*{suffix}"):
        path.write_bytes(path.read_bytes()[:path.stat().st_size // 2] if content is None else content)
    assert fresh(STEP + "print(step())", copied) == "0.75"
    assert fresh(STEP + "print(step(), hits())", copied) == "0.75 1"


def test_what_another_process_compiled_is_taken_over(copied, tmp_path):
    code = STEP + f"cache.adopt({str(copied)!r})\nprint(step(), hits(), step('float64'), hits('float64'))"
    assert fresh(code, tmp_path / "own") == "0.75 1 0.75 0"
    assert not list(copied.rglob("*.nbi")) and not list((tmp_path / "own").rglob("*.moving"))
    # what is here stays: the copy knows nothing of float64
    shutil.copytree(tmp_path / "own", tmp_path / "second")
    offered = sorted((tmp_path / "second").rglob("*.nbi"))
    assert fresh(STEP + f"cache.adopt({str(tmp_path / 'second')!r})\nprint(step(), hits())", tmp_path / "own") == "0.75 1"
    assert len(offered) >= 2 and sorted((tmp_path / "second").rglob("*.nbi")) == offered


def test_the_fingerprint_is_of_all_that_is_compiled(monkeypatch, tmp_path):
    from microcnn.kernels import cache
    kept = cache.fingerprint()
    tree = tmp_path / "microcnn"
    shutil.copytree(Path(microcnn.__file__).parent, tree, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(cache, "PACKAGE", tree)
    assert cache.fingerprint() == kept
    for name in ("program.py", "kernels/simd.py"):
        original = (tree / name).read_bytes()
        (tree / name).write_bytes(original + b"\n")
        assert cache.fingerprint() != kept
        (tree / name).write_bytes(original)
    monkeypatch.setattr("numba.__version__", "9.9")
    assert cache.fingerprint() != kept


def test_ctrl_c_while_a_kernel_compiles(tmp_path):
    # LLVM calls back into Python, where a KeyboardInterrupt would be printed and forgotten
    assert fresh('''
import signal
from microcnn.kernels import cache
finished = []
def make():
    signal.raise_signal(signal.SIGINT)
    finished.append(1)
    raise EOFError if len(finished) == 1 else ValueError
try:
    cache.compiled(make)
except KeyboardInterrupt:
    print(len(finished), signal.getsignal(signal.SIGINT) is signal.default_int_handler)
''', tmp_path) == "2 True"
