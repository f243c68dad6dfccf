"""Where compiled kernels lie, and what happens where no one can write."""
from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import microcnn

from .processes import ORDINARY, STEP, fresh, start


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
        "os.stat(store.folder().parent).st_mode)), flush=True)\nif os.fork() == 0:\n    raise SystemExit\nos.wait()\n" \
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
