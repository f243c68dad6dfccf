"""The store of compiled kernels: what is warm, when it is stale, who may write it."""
from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

import microcnn

from .processes import ROOT, STEP, environment, finish, fresh, locked, only, start


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
