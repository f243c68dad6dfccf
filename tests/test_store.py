"""The store of compiled kernels: where it lies, when it is stale, who may write it, and what happens where no one can."""
from __future__ import annotations

import contextlib
import json
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
    """Hold the lock of all that lies in a folder of compiled code, as processes do that compile it."""
    with open(folder / "lock", "a") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        yield


def test_a_warm_parallel_kernel_runs_in_a_fresh_process(warm, copied):
    code = STEP + "print(step(size=200_000, threads=2), hits(), {'numba', 'llvmlite', 'microcnn.kernels'} & set(sys.modules))"
    assert fresh(code, warm) == "0.75 1 set()"
    executor = "from microcnn.program import executor\nexecutor('plain')\n"
    fresh(executor, copied)
    assert fresh(executor + code, copied) == "0.75 1 set()"


def test_a_warm_network_compiles_nothing(tmp_path_factory):
    code = """
import sys, microcnn as mc, numpy as np
from microcnn import entries
net = mc.Sequential([mc.Flatten(), mc.Linear(3)], (2, 2, 2)).graph().compile(
    batch=2, train="all", loss="mse", optimizer=mc.SGD(lr=0.1))
x = np.ones((2, 2, 2, 2), np.float32)
print(net.train_step(x, np.zeros((2, 3))), net.predict(x).tolist(),
      any(code.compiled for code in entries._loaded.values()), "numba" in sys.modules)
"""
    folder = tmp_path_factory.mktemp("network")
    first, second = fresh(code, folder), fresh(code, folder)
    assert first.endswith("True True") and second.endswith("False False")
    assert first.removesuffix("True True") == second.removesuffix("False False")


def test_a_changed_helper_in_another_file_is_seen(tmp_path):
    # numba itself looks at the entry's own file only, and would run the old machine code
    tree = tmp_path / "tree"
    shutil.copytree(ROOT / "microcnn", tree / "microcnn", ignore=shutil.ignore_patterns("__pycache__"))
    (tree / "tests").mkdir()
    for name in ("__init__.py", "rows.py"):
        shutil.copy(ROOT / "tests" / name, tree / "tests" / name)
    code = STEP + f"assert store.__file__.startswith({str(tree)!r}), store.__file__\nprint(step(), hits())"
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
    code = STEP + "print(step('float32'), step('float64'), hits('float32'), hits('float64'))"
    fresh("from microcnn.entries import ENTRIES\nlen(ENTRIES)", tmp_path)
    with locked(only(tmp_path)):
        first, second = start(code, tmp_path), start(code, tmp_path)
        deadline = time.monotonic() + 60
        while waiting_for_lock(first.pid) + waiting_for_lock(second.pid) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert first.poll() is None and second.poll() is None
        assert not list(only(tmp_path).rglob("*.so")), "compiled without the lock"
    found = [finish(process).split() for process in (first, second)]
    assert [values[:2] for values in found] == [["0.75", "0.75"]] * 2
    # whoever comes second finds what the first has made
    assert [sum(int(values[place]) for values in found) for place in (2, 3)] == [1, 1]
    assert fresh(code, tmp_path) == "0.75 0.75 1 1"


def waiting_for_lock(pid: int) -> bool:
    """Whether a process stands still in flock."""
    try:
        return any(f" {pid} " in line for line in Path("/proc/locks").read_text().splitlines() if "->" in line)
    except OSError:
        return False


def test_what_is_warm_waits_for_nobody(warm, copied):
    with locked(only(copied)):
        assert fresh(STEP + "print(step(), hits())", copied) == "0.75 1"


def test_two_processes_compile_two_kernels_side_by_side(copied):
    # held: what the other process wants to compile, then something else
    other = STEP + "print(step('float64'), hits('float64'))"
    for held, waits in (("float64/update.sgd.so", True), ("float64/update.adam.so", False)):
        code = f"""
from microcnn import store
with store.compiling({held!r}):
    print("held", flush=True)
    input()
"""
        holder = subprocess.Popen([sys.executable, "-c", code], env=environment(copied), cwd=ROOT, stdin=subprocess.PIPE,
                                  stdout=subprocess.PIPE, text=True)
        assert holder.stdout.readline() == "held\n"
        process = start(other, copied)
        if waits:
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(4)
            holder.communicate("\n")
            assert finish(process) == "0.75 0"
            for path in copied.rglob("float64/*.so"):
                path.unlink()
        else:
            assert finish(process) == "0.75 0"
            holder.communicate("\n")


def test_everything_lies_in_our_folder(warm):
    assert fresh(STEP + "step()\nprint(store.folder().parent.parent)", warm) == str(warm)
    # what an entry calls is part of its code: nothing else is stored, but for what the threads share
    assert {path.name for path in warm.rglob("*") if path.is_file()} == {
        "update.sgd.so", "team.parallel_for.so", "entries.json", "lock"}


WHERE = "from microcnn import store; print(store.folder())"


def test_which_folder(tmp_path):
    home, user = tmp_path / "home", tmp_path / "user"
    assert Path(fresh(WHERE, tmp_path / "given")).parent == tmp_path / "given" / "microcnn"
    assert Path(fresh(WHERE, None, XDG_CACHE_HOME=str(user))).parent == user / "microcnn"
    assert Path(fresh(WHERE, None, XDG_CACHE_HOME=None, HOME=str(home))).parent == home / ".cache" / "microcnn"
    relative = fresh("import os\n" + WHERE + "\nos.chdir('/')\nprint(store.folder())", Path("here"), tmp_path).split()
    assert {Path(one).parent for one in relative} == {tmp_path / "here" / "microcnn"}


def test_no_folder_can_be_written(open_folder):
    # not even made: the temporary folder is private, works, and goes when the process ends
    open_folder.chmod(0o555)
    code = ORDINARY + STEP + "import os, stat\nprint(step(), store.folder(), oct(stat.S_IMODE(" \
        "os.stat(store.folder().parent).st_mode)))\nif os.fork() == 0:\n    raise SystemExit\nos.wait()\n" \
        "assert store.folder().is_dir(), 'a forked child took it away'"
    value, folder, mode = fresh(code, open_folder, XDG_CACHE_HOME=str(open_folder), HOME=str(open_folder)).split()
    assert value == "0.75" and mode == "0o700"
    assert Path(folder).parent.parent == Path(tempfile.gettempdir())
    assert not Path(folder).parent.exists()
    assert not list(open_folder.iterdir())


def test_what_is_not_kept_is_said(open_folder, tmp_path):
    """The command does not call ready what the next process has to compile again."""
    open_folder.chmod(0o555)
    model = tmp_path / "small.mcnn"
    microcnn.Sequential([microcnn.Flatten(), microcnn.Linear(3)], (2, 2, 2)).graph().save(model)
    code = ORDINARY + f"""
from microcnn.tools.cli import main
print(main(["warmup", {str(model)!r}, "--processes", "1"]), main(["doctor"]))
"""
    process = start(code, open_folder, XDG_CACHE_HOME=None, HOME=str(open_folder))
    out, err = process.communicate(timeout=600)
    told = f"compiled kernels cannot be kept, as none of {open_folder}/microcnn, {open_folder}/.cache/microcnn can be written"
    assert f"microcnn: note: {told}" in err and told in out and "NOT kept" in out and "ready" not in out
    assert out.endswith("1 1\n")


def test_nothing_can_be_written_at_all(open_folder):
    open_folder.chmod(0o555)
    code = ORDINARY + """
import tempfile
tempfile.tempdir = "/proc"
import microcnn as mc
try:
    mc.Sequential([mc.Flatten(), mc.Linear(3)], (2, 2, 2)).graph().compile()
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
    code = ORDINARY + STEP + "print(step(), hits(), step('float64'), hits('float64'), store.folder())"
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
    # files may not grow beyond 4 KB: the code is larger
    code = STEP + """
len(entries.ENTRIES)
import resource, signal
import microcnn as mc
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
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
    assert not list(tmp_path.rglob("*.new"))


@pytest.mark.parametrize("suffix, content", [
    (".so", b""), (".so", None), (".so", b"\0" * 5000), (".json", None), (".json", b"[]"), (".json", b"{\"target\": {}}")])
def test_a_damaged_file_is_compiled_anew(copied, suffix, content):
    # what a loss of power leaves: an empty file, half of one, zeros
    for path in copied.rglob(f"*{suffix}"):
        path.write_bytes(path.read_bytes()[:path.stat().st_size // 2] if content is None else content)
    assert fresh(STEP + "print(step())", copied) == "0.75"
    assert fresh(STEP + "print(step(), hits())", copied) == "0.75 1"


def test_the_fingerprint_is_of_all_that_is_compiled(monkeypatch, tmp_path):
    from microcnn import store
    kept = store.fingerprint()
    tree = tmp_path / "microcnn"
    shutil.copytree(Path(microcnn.__file__).parent, tree, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(store, "PACKAGE", tree)
    assert store.fingerprint() == kept
    for name in ("arena.py", "block.py", "kernels/simd.py", "linker/relocations.py"):
        original = (tree / name).read_bytes()
        (tree / name).write_bytes(original + b"\n")
        assert store.fingerprint() != kept
        (tree / name).write_bytes(original)
    import numba
    assert json.dumps(numba.__version__).encode() in store._version("numba")
    version = store._version
    for changed in ("numba", "llvmlite"):
        with monkeypatch.context() as patch:
            patch.setattr(store, "_version", lambda name, changed=changed: b"9.9" if name == changed else version(name))
            assert store.fingerprint() != kept


def test_another_processor_has_code_of_its_own(warm, copied):
    step = STEP + "print(step(), hits())"
    assert fresh(step, copied, NUMBA_OPT="1") == "0.75 0"
    assert fresh(step, copied, NUMBA_OPT="1") == fresh(step, copied) == "0.75 1"
    assert len(list(only(copied).rglob("update.sgd.so"))) == 2


def test_ctrl_c_while_a_kernel_compiles(tmp_path):
    # LLVM calls back into Python, where a KeyboardInterrupt would be printed and forgotten
    assert fresh('''
import signal
from microcnn.kernels import compiler
finished = []
def made(name, dtype):
    signal.raise_signal(signal.SIGINT)
    finished.append(1)
    raise ValueError
compiler.linked = made
try:
    compiler.compiled("update.sgd", "float32")
except KeyboardInterrupt:
    print(len(finished), signal.getsignal(signal.SIGINT) is signal.default_int_handler)
''', tmp_path) == "1 True"


def test_a_disk_from_which_no_programs_may_be_run(copied):
    # from memory come as many libraries as there are: the loader knows them apart by their paths
    assert fresh(STEP + f"""
import ctypes
class Refusing(ctypes.CDLL):
    def __init__(self, path, *how):
        if path and path.startswith({str(copied)!r}):
            raise OSError("failed to map segment from shared object")
        super().__init__(path, *how)
ctypes.CDLL = Refusing
print(step(), hits(), len(set(code.address for code in entries._loaded.values())) == len(entries._loaded) > 1)
""", copied) == "0.75 1 True"


def test_a_folder_that_is_removed_while_it_is_used(copied):
    assert fresh(STEP + f"""
import shutil
from microcnn.kernels import compiler
assert hits()
shutil.rmtree({str(copied)!r})
print(step(), step("float64"), hits("float64"))
""", copied) == "0.75 0.75 0"
    assert fresh(STEP + "print(hits('float64'))", copied) == "1"


def test_where_numba_may_not_compile(copied):
    assert fresh(STEP + """
from microcnn.errors import CacheError
print(step())
try:
    step("float64")
except CacheError as error:
    print(error)
""", copied, NUMBA_DISABLE_JIT="1").splitlines() == [
        "0.75", "float64/update.sgd.so has to be compiled, which NUMBA_DISABLE_JIT forbids; take it from the environment"]
