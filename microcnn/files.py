"""Writing files so that a full disk, a crash or Ctrl-C never leaves half of one."""
from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Iterable
from pathlib import Path

from .errors import FileError


def atomic_write(path: str | os.PathLike[str], chunks: Iterable[bytes | memoryview]) -> None:
    """Write the chunks, one after the other, as the whole content of a file.

    They go to a new file in the same folder, which takes the name only once everything is on the disk. Whatever happens
    before, Ctrl-C included, leaves the old file whole and no other file behind.

    Raises FileError where the file cannot be written.
    """
    target = Path(os.path.realpath(os.fspath(path)))
    scratch = target.with_name(f".{target.name[:100]}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        mode = None
        if target.exists():
            found = target.stat()
            if not stat.S_ISREG(found.st_mode):
                raise FileError(f'cannot write "{path}": it is not a regular file; give the name of a file')
            mode = stat.S_IMODE(found.st_mode)
        with open(scratch, "xb") as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        if mode is not None:
            os.chmod(scratch, mode)
        os.replace(scratch, target)
    except OSError as error:
        _remove(scratch)
        reason = error.strerror or str(error)
        raise FileError(f'cannot write "{path}": {reason}; what was there before is unchanged') from error
    except BaseException:
        _remove(scratch)
        raise
    sync_folder(target.parent)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


def sync_folder(folder: Path) -> None:
    """Make the new name itself survive a power cut, where the system can do that."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
