"""Arrays (N, numbers) in a file: written once from front to back, then read through the page cache, not held in memory.

A file without a name is gone with the process, however that ends. One with a name takes it only when it is complete, and is
used again where its digest says that it holds what is wanted. Layout, all numbers little-endian:

    8 bytes   the signature
    4 bytes   format version
    4 bytes   CRC-32 of the header
    8 bytes   length of the header
    8 bytes   length of the whole file
    header    JSON: the digest, the dtype, and for each array its name, shape, place and CRC-32
    data      the arrays, each at a multiple of 64 bytes
"""
from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import stat
import struct
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from .errors import CompileError, FileError
from .files import sync_folder

SIGNATURE = b"\x89MCFT\r\n\n"
FORMAT = 1
PREFIX = struct.Struct("<8sIIQQ")
ALIGNMENT = 64
# The name in a folder; how much is read in one go; where files go that do not fit into a memory disk.
NAME, READ_BYTES, ON_DISK = "microcnn.features", 1 << 20, "/var/tmp"

Arrays = dict[str, np.ndarray]
Shapes = dict[str, tuple[int, int]]
Write = Callable[[str, np.ndarray], None]


@dataclass(frozen=True)
class Stored:
    """The arrays, which read the file. path: None where it has no name. note: why it was made anew, or is not kept."""

    arrays: Arrays
    path: Path | None
    bytes: int
    reused: bool
    note: str = ""


class _Content:
    """What a file is to hold: shapes (N, numbers) by name, and where each array lies."""

    def __init__(self, shapes: Shapes, dtype: np.dtype, digest: str):
        self.shapes, self.dtype, self.digest = shapes, dtype, digest
        self.start = _aligned(PREFIX.size + len(self._header(dict.fromkeys(shapes, 0), dict.fromkeys(shapes, 0))))
        self.places: dict[str, int] = {}
        self.total = self.start
        for name in shapes:
            self.places[name] = self.total
            self.total = _aligned(self.total + self.size(name))

    def size(self, name: str) -> int:
        samples, numbers = self.shapes[name]
        return samples * numbers * self.dtype.itemsize

    def _header(self, places: dict[str, int], checks: dict[str, int]) -> bytes:
        """Of the same length whatever the numbers are."""
        return json.dumps({"digest": self.digest, "dtype": self.dtype.str, "arrays": [
            [name, *shape, f"{places[name]:020}", f"{checks[name]:010}"] for name, shape in self.shapes.items()]}).encode()

    def head(self, checks: dict[str, int]) -> bytes:
        """All that comes before the data. checks: the CRC-32 of each array."""
        header = self._header(self.places, checks)
        return PREFIX.pack(SIGNATURE, FORMAT, zlib.crc32(header), len(header), self.total) + header

    def mapped(self, file: BinaryIO) -> Arrays:
        whole = np.asarray(np.memmap(file, np.uint8, "r", shape=(self.total,)))
        return {name: whole[place:place + self.size(name)].view(self.dtype).reshape(self.shapes[name])
                for name, place in self.places.items()}

    def difference(self, file: BinaryIO) -> str:
        """Why a file is not this content; empty where it is."""
        prefix, size = file.read(PREFIX.size), os.fstat(file.fileno()).st_size
        if len(prefix) < PREFIX.size:
            return "it is incomplete"
        _, version, check, length, total = PREFIX.unpack(prefix)
        if version != FORMAT:
            return f"it has format {version}, not {FORMAT}"
        if total != size:
            return f"it is incomplete, {size:,} of {total:,} bytes"
        header = file.read(min(length, size))
        if len(header) != length or zlib.crc32(header) != check:
            return "it is damaged"
        try:
            found = json.loads(header)
            checks = {name: int(crc) for name, *_, crc in found["arrays"]}
            if found["digest"] != self.digest or set(checks) != set(self.shapes) or prefix + header != self.head(checks):
                return "it is of other data, other frozen weights or another form of the network"
        except (KeyError, TypeError, ValueError):
            return "it is damaged"
        for name, place in self.places.items():
            if _check_of(file, place, self.size(name)) != checks[name]:
                return "it is damaged"
        return ""


class _Writer:
    """Writes the arrays, each in pieces from its first sample on, and at last what says that the file is complete.

    Not through memory: on a full disk that ends the process, where a plain write says what is wrong.
    """

    def __init__(self, file: BinaryIO, content: _Content):
        self.file, self.content = file, content
        self.done = dict.fromkeys(content.shapes, 0)
        self.checks = dict.fromkeys(content.shapes, 0)

    def write(self, name: str, array: np.ndarray) -> None:
        """The next samples of an array."""
        raw = np.ascontiguousarray(array, self.content.dtype).reshape(-1).view(np.uint8).data
        self.file.seek(self.content.places[name] + self.done[name])
        self.file.write(raw)
        self.done[name] += len(raw)
        self.checks[name] = zlib.crc32(raw, self.checks[name])

    def finish(self, lasts: bool) -> None:
        """All is written. lasts: the file gets a name, and has to survive a power cut whole."""
        short = [name for name, done in self.done.items() if done != self.content.size(name)]
        if short:
            raise AssertionError(f"features {short} are not complete")
        self.file.truncate(self.content.total)
        self._flush(lasts)               # the data before the head: a power cut in between leaves no head
        self.file.seek(0)
        self.file.write(self.content.head(self.checks))
        self._flush(lasts)

    def _flush(self, lasts: bool) -> None:
        self.file.flush()
        if lasts:
            os.fsync(self.file.fileno())


def resolve_path(given: bool | str | os.PathLike[str]) -> Path | None:
    """The file that cache_features names: in a folder that of a fixed name, None for a file without a name.

    Raises CompileError for what is no path, FileError for a file that features may not replace.
    """
    if given is True:
        return None
    if not isinstance(given, (str, os.PathLike)) or not os.fspath(given):
        raise CompileError(f"cache_features is {given!r}; expected False, True, or the path of a file or a folder on a disk "
                           "with room")
    path = Path(os.fspath(given))
    if path.is_dir():
        path = path / NAME
    if not path.parent.is_dir():
        raise FileError(f'cache_features is "{given}", but there is no folder "{path.parent}"; make it first')
    path = Path(os.path.realpath(path))
    try:
        if path.exists():
            found = path.stat()
            if not stat.S_ISREG(found.st_mode):
                raise FileError(f'"{path}" is no regular file; give cache_features another name')
            with open(path, "rb") as file:
                begin = file.read(len(SIGNATURE))
            if not SIGNATURE.startswith(begin) and begin != SIGNATURE:
                raise FileError(f'"{path}" is something else than features, and stays; give cache_features another name')
    except OSError as error:
        raise FileError(f'cannot read "{path}": {error.strerror or error}') from error
    return path


def stored(path: Path | None, shapes: Shapes, dtype: np.dtype, digest: str, fill: Callable[[Write], None]) -> Stored:
    """The arrays of a file that holds just these, or of one that `fill` makes by calling write(name, samples) in order.

    path    as resolve_path gives it. Where another process is writing there, a file without a name in the same folder is made
    digest  of all that the arrays depend on
    Whatever happens while it is made, Ctrl-C included, leaves nothing of it behind, and of what a killed process has left the
    next one makes use. Raises FileError where there is no room, or nothing can be written.
    """
    content = _Content(shapes, dtype, digest)
    note = ""
    if path is not None:
        try:
            with open(path, "rb") as there:
                note = content.difference(there)
                if not note:
                    return Stored(content.mapped(there), path, content.total, True)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise FileError(f'cannot read "{path}": {error.strerror or error}') from error
    folder = path.parent if path is not None else _folder()
    scratch = path.with_name(f".{path.name[:100]}.part") if path is not None else None
    try:
        file = _claimed(scratch) if scratch is not None else None
        if scratch is not None and file is None:
            path, note = None, f'another process is writing "{scratch}"; these features are not kept'
        elif path is not None and note:
            note = f'"{path}" was made anew: {note}'
            path.unlink(missing_ok=True)      # its room may be needed
        with file or tempfile.TemporaryFile(dir=folder) as target:
            try:
                _require_room(folder, content.total)
                writer = _Writer(target, content)
                fill(writer.write)
                writer.finish(path is not None)
                if path is not None and scratch is not None:
                    os.replace(scratch, path)
                    sync_folder(folder)
                return Stored(content.mapped(target), path, content.total, False, note)
            except BaseException:
                if path is not None and scratch is not None:
                    with contextlib.suppress(OSError):
                        scratch.unlink()
                raise
    except OSError as error:
        raise FileError(f'cannot write the {content.total:,} bytes of features to "{folder}": {error.strerror or error}; '
                        "nothing of them is left there. Give cache_features a path on a disk with room, or leave it out"
                        ) from error


def _claimed(scratch: Path) -> BinaryIO | None:
    """The file that grows there, empty and locked; None where another process holds it. What a killed one left is taken."""
    file = os.fdopen(os.open(scratch, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), "r+b")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        held, there = os.fstat(file.fileno()), os.stat(scratch)
        if (held.st_dev, held.st_ino) == (there.st_dev, there.st_ino):     # else the other one has just given it its name
            file.truncate(0)
            return file
    except OSError:
        pass
    file.close()
    return None


def _aligned(place: int) -> int:
    return -(-place // ALIGNMENT) * ALIGNMENT


def _check_of(file: BinaryIO, place: int, size: int) -> int:
    """The CRC-32 of a part of a file, as far as there is one."""
    file.seek(place)
    check = 0
    while size:
        piece = file.read(min(size, READ_BYTES))
        if not piece:
            break
        check, size = zlib.crc32(piece, check), size - len(piece)
    return check


def _require_room(folder: Path, size: int) -> None:
    """Raises FileError where a disk has not so many bytes left."""
    free = shutil.disk_usage(folder).free
    if size > free:
        raise FileError(f'the features take {size:,} bytes, and the disk of "{folder}" has {free:,} left. Give cache_features '
                        "a path on a disk with room, or leave it out")


def _folder() -> Path:
    """Where a file without a name goes: to a disk, where the usual folder is in memory and there is another."""
    usual = Path(tempfile.gettempdir())
    if _in_memory(usual) and os.access(ON_DISK, os.W_OK | os.X_OK) and not _in_memory(Path(ON_DISK)):
        return Path(ON_DISK)
    return usual


def _in_memory(folder: Path) -> bool:
    """Whether a folder's disk is made of memory, as far as the system says."""
    try:
        device = os.stat(folder).st_dev
        wanted = f"{os.major(device)}:{os.minor(device)}"
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as file:
            mounts = [line.split() for line in file]
        return any(fields[2] == wanted and fields[fields.index("-") + 1] in ("tmpfs", "ramfs") for fields in mounts)
    except (OSError, ValueError, IndexError):
        return False
