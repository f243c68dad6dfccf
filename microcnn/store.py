"""The folder of compiled code: where it lies, when it is stale, what is whole in it, and who may compile into it.

A kernel is compiled once on a device and lies here as a shared library, which a later process loads without numba. The folder's
name is a hash of all that compiled code depends on but the processor, which has a folder of its own in it.
"""
from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
import importlib.util
import json
import os
import platform
import re
import shutil
import sys
import tempfile
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import CacheError

try:
    import fcntl
except ImportError:   # Windows
    fcntl = None      # type: ignore[assignment]

PACKAGE = Path(__file__).resolve().parent
# What machine code is made of and by.
SOURCES = ("kernels/*.py", "linker/*.py", "arena.py", "block.py")
KEEP = 2
# What numba lets a user say about the code that it makes.
VARIABLES = ("NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES", "NUMBA_ENABLE_AVX", "NUMBA_OPT", "NUMBA_LOOP_VECTORIZE",
             "NUMBA_SLP_VECTORIZE", "NUMBA_BOUNDSCHECK", "NUMBA_DEBUGINFO")
# The lines of /proc/cpuinfo that say what a processor understands, on x86 and on Arm.
PROCESSOR = re.compile(r"^(vendor_id|cpu family|model|model name|flags|CPU implementer|CPU part|CPU variant|Features)\s*:.*$",
                       re.M)
# What stands at the end of each file: the length and the sum of what is before it.
SEAL = "microcnn {:12} {:08x}\n"
SEAL_BYTES = len(SEAL.format(0, 0))

_lock = threading.RLock()
_folder: Path | None = None
_lost = False           # whether the folder goes with this process
_depth = 0
_lock_file: Any = None


def _after_fork() -> None:
    # a thread that was compiling does not exist in the child: nothing may wait for it, and its file lock is the parent's
    global _lock, _depth, _lock_file
    if _lock_file is not None:
        _lock_file.close()
    _lock, _depth, _lock_file = threading.RLock(), 0, None


os.register_at_fork(after_in_child=_after_fork)


def fingerprint() -> str:
    """A hash of everything that compiled code depends on but the processor: our source, numba's and llvmlite's versions."""
    digest = hashlib.sha256()
    for source in sorted(source for pattern in SOURCES for source in PACKAGE.glob(pattern)):
        digest.update(source.name.encode())
        digest.update(source.read_bytes())
    for name in ("numba", "llvmlite"):
        digest.update(_version(name))
    digest.update(f"{sys.version_info[:2]}".encode())
    return digest.hexdigest()[:16]


def _version(name: str) -> bytes:
    """What tells a package's version, without importing it."""
    found = importlib.util.find_spec(name)
    if found is None or found.origin is None:
        return b"none"
    with contextlib.suppress(OSError):
        return (Path(found.origin).parent / "_version.py").read_bytes()
    from importlib.metadata import version
    return version(name).encode()


@functools.cache
def processor() -> str:
    """A hash of the processor that code is compiled for, and of what the environment says about the code."""
    told = [platform.machine(), *(f"{name}={os.environ[name]}" for name in VARIABLES if os.environ.get(name))]
    with contextlib.suppress(OSError):
        told += sorted(set(match[0] for match in PROCESSOR.finditer(Path("/proc/cpuinfo").read_text())))
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:16]


def _roots() -> Iterator[Path]:
    """Where the cache may live, best first: inside the user's NUMBA_CACHE_DIR, the user's cache."""
    for variable in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME"):
        if given := os.environ.get(variable):
            yield Path(given).absolute() / "microcnn"
    with contextlib.suppress(RuntimeError):
        yield Path.home() / ".cache" / "microcnn"


def _writable(folder: Path) -> bool:
    """Whether files can really be made there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder) as probe:
            probe.write(b"x" * 4096)
            probe.flush()
    except OSError:
        return False
    return True


def folder() -> Path:
    """The folder of this version's compiled code; chosen when first asked for.

    The first of _roots() that can be written, or that already holds this version's code. What cannot be written
    (a device with a read-only disk) is read through links in a temporary folder, which takes what is still missing.
    Raises CacheError where nothing can be written at all.
    """
    global _folder
    with _lock:
        if _folder is None:
            name = fingerprint()
            for root in _roots():
                if _writable(root / name):
                    _folder = root / name
                    _prune(root, name)
                    break
                if _filled(root / name):
                    _folder = _temporary(name, root / name)
                    break
            else:
                _folder = _temporary(name)
        return _folder


def lost() -> str:
    """Why the next process compiles again what this one does, "" where it does not. Raises CacheError as `folder` does."""
    folder()
    tried = ", ".join(map(str, _roots()))
    return (f"compiled kernels cannot be kept, as none of {tried} can be written: every process compiles them again; "
            "set NUMBA_CACHE_DIR to a folder that can") if _lost else ""


def _files(folder: Path) -> Iterator[Path]:
    """Our files there, and numba's own where it keeps the code (kernels/compiler.py)."""
    return (path for path in folder.rglob("*") if path.suffix in (".so", ".json", ".nbi", ".nbc"))


def _filled(folder: Path) -> bool:
    """Whether there is compiled code there that can be read."""
    with contextlib.suppress(OSError):
        return any(os.access(file, os.R_OK) for file in _files(folder))
    return False


def _temporary(name: str, behind: Path | None = None) -> Path:
    """A private folder that goes when this process ends, with links to what lies in the one behind it."""
    global _lost
    _lost = True
    try:
        root = Path(tempfile.mkdtemp(prefix="microcnn-"))
        atexit.register(_discard, root, os.getpid())
        (root / name).mkdir()
        for file in _files(behind) if behind else ():
            link = root / name / file.relative_to(behind) if behind else root
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(file)
    except OSError as error:
        raise CacheError("no folder for compiled kernels can be written; set NUMBA_CACHE_DIR to one that can "
                         f"({error})") from error
    return root / name


def _discard(root: Path, owner: int) -> None:
    # not in a forked child: its parent still uses the folder
    if os.getpid() == owner:
        shutil.rmtree(root, ignore_errors=True)


def _prune(root: Path, name: str) -> None:
    """Only the newest folders stay: a device's disk is small."""
    with contextlib.suppress(OSError):
        os.utime(root / name)
        others = sorted((f for f in root.iterdir() if f.is_dir() and f.name != name and len(f.name) == 16),
                        key=lambda f: f.stat().st_mtime, reverse=True)
        for old in others[KEEP - 1:]:
            shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def compiling(name: str = "") -> Iterator[Path]:
    """Within, no other process compiles what has this name; without one, nothing at all. Gives the folder.

    Raises CacheError where compiled code cannot be stored: on a full disk, say.
    """
    try:
        with _locked(name):
            yield folder()
    except OSError as error:
        raise CacheError(f"compiled kernels cannot be stored in {_folder}: {error}; make room there, or set "
                         "NUMBA_CACHE_DIR to another folder") from error


@contextlib.contextmanager
def _locked(name: str) -> Iterator[None]:
    global _depth, _lock_file
    with _lock:
        if _depth == 0 and fcntl is not None:
            # who tidied up may have removed what this process found when it began
            folder().mkdir(parents=True, exist_ok=True)
            # a lock on one byte for each name: two processes may compile two kernels side by side
            _lock_file = open(folder() / "lock", "a")
            fcntl.lockf(_lock_file, fcntl.LOCK_EX, *((1, zlib.crc32(name.encode())) if name else ()))
        _depth += 1
        try:
            yield
        finally:
            _depth -= 1
            if _depth == 0 and _lock_file is not None:
                _lock_file.close()
                _lock_file = None


def place(name: str) -> Path:
    """Where a file of this processor's code lies, if it is there."""
    return folder() / processor() / name


def keep(name: str, content: bytes) -> None:
    """Store a file, all of it or nothing. Raises OSError."""
    target = place(name)
    target.parent.mkdir(parents=True, exist_ok=True)
    made = target.with_name(f"{target.name}.{os.getpid()}.{threading.get_ident()}.new")
    try:
        made.write_bytes(content)
        made.replace(target)
    except BaseException:
        made.unlink(missing_ok=True)
        raise


def sealed(content: bytes) -> bytes:
    """The content with its length and sum behind it, which loaders of shared libraries do not mind."""
    return content + SEAL.format(len(content), zlib.crc32(content)).encode()


def whole(name: str) -> bool:
    """Whether a sealed file of that name is there, and all of it: a loss of power may leave half of one, or zeros."""
    try:
        content = memoryview(place(name).read_bytes())
    except OSError:
        return False
    content, seal = content[:-SEAL_BYTES], bytes(content[-SEAL_BYTES:])
    return seal == SEAL.format(len(content), zlib.crc32(content)).encode()


def facts(name: str) -> Any:
    """What a file in JSON of that name says; None where none is there, or no whole one."""
    with contextlib.suppress(OSError, ValueError):
        return json.loads(place(name).read_text())
    return None
