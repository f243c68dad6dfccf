"""Entries: what a row of a program calls, by name, and where the machine code comes from: the store, or a compiler.

A warm cache is all that a process needs: the table of entries lies in it beside the code, and neither the kernels' modules nor
numba are imported before something has to be compiled.
"""
from __future__ import annotations

import contextlib
import ctypes
import functools
import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from . import block, store
from .errors import CacheError

TABLE = "entries.json"


@dataclass(frozen=True, slots=True)
class Code:
    """Loaded machine code. compiled: whether this process made it. keeps: what has to live as long as it is called."""

    address: int
    compiled: bool
    keeps: Any


class Entry:
    """A kernel as the executor calls it: its fields, and its machine code once a program needed it.

    Fields are byte offsets into the arena, marked by what the kernel does with the buffer, `<` read, `>` written,
    `=` both, `?` read at need, which hardly ever is; or plain integers. A float travels as the bits of a float64.
    """

    def __init__(self, name: str, fields: str):
        self.name = name
        self.fields = [field.rstrip("<>=?") for field in fields.split()]
        self.modes = {field.rstrip("<>=?"): field[-1] for field in fields.split() if field[-1] in "<>=?"}

    def address(self, dtype: str) -> int:
        """The address of the code for a dtype, compiled or loaded on first use and kept for the process. Raises CacheError."""
        return code(self.name, dtype).address

    def is_compiled(self, dtype: str) -> bool:
        """Whether this process has the code for a dtype."""
        return (self.name, dtype) in _loaded


class Entries(Mapping[str, Entry]):
    """All entries by name; read when first asked for."""

    @functools.cached_property
    def _table(self) -> dict[str, Any]:
        found = store.facts(TABLE)
        if not isinstance(found, dict) or not (found.get("target") and found.get("entries")):
            from .kernels import compiler, simd
            found = {"target": {name: value for name, value in vars(simd).items()
                                if name.isupper() and isinstance(value, (int, str))},
                     "entries": compiler.entries()}
            with store.compiling():
                store.keep(TABLE, json.dumps(found, indent=1).encode())
        return found

    @functools.cached_property
    def _entries(self) -> dict[str, Entry]:
        return {name: Entry(name, fields) for name, fields in self._table["entries"].items()}

    @property
    def target(self) -> dict[str, Any]:
        """What code is compiled for: the constants of kernels/simd.py by name."""
        return self._table["target"]

    def __getitem__(self, name: str) -> Entry:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


ENTRIES = Entries()


def lanes_of(dtype: Any) -> int:
    """How many numbers of a dtype a register of this processor holds."""
    return int(ENTRIES.target["VECTOR_BYTES"]) // np.dtype(dtype).itemsize


_loaded: dict[tuple[str, str], Code] = {}


def code(name: str, dtype: str = "") -> Code:
    """An entry's code for a dtype, or that of a function that is none (kernels/compiler.py). Raises CacheError."""
    found = _loaded.get((name, dtype))
    if found is None:
        with store._lock:       # another thread may have been first: its code is in use and has to stay
            found = _loaded.get((name, dtype))
            if found is None:
                found = _loaded[name, dtype] = _load(name, dtype) or _compile(name, dtype)
    return found


def file_of(name: str, dtype: str = "") -> str:
    """The file in the store that code lies in."""
    return f"{dtype}/{name}.so" if dtype else f"{name}.so"


def _compile(name: str, dtype: str) -> Code:
    file = file_of(name, dtype)
    from .kernels import compiler
    with store.compiling(file):
        # while this process waited for the lock another one may have compiled it
        found = _load(name, dtype)
        if found is not None:
            return found
        if compiler.numba.config.DISABLE_JIT:
            raise CacheError(f"{file} has to be compiled, which NUMBA_DISABLE_JIT forbids; take it from the environment")
        made = compiler.compiled(name, dtype)
        if isinstance(made, bytes):
            store.keep(file, store.sealed(made))
            kept = _load(name, dtype)
            if kept is None:
                raise CacheError(f"{store.place(file)} is gone as soon as it is written; set NUMBA_CACHE_DIR elsewhere")
            return Code(kept.address, True, kept.keeps)
    return Code(made.address, not made.cache_hits, made)


def compiled_here() -> bool:
    """Whether this process had to compile something."""
    return any(code.compiled for code in _loaded.values())


def _load(name: str, dtype: str) -> Code | None:
    """Code that lies in the store; None where none does."""
    file = file_of(name, dtype)
    if not store.whole(file):
        return None
    library = _opened(store.place(file))
    names = ctypes.string_at(_symbol(library, "imports")).decode()
    if names:
        wanted = names.split(",")
        table = (ctypes.c_uint64 * len(wanted)).in_dll(library, "import_table")
        for place, imported in enumerate(wanted):
            table[place] = address_of(imported)
    return Code(_symbol(library, "entry"), False, library)


_in_memory = itertools.count(1)


def _opened(path: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        # a disk from which no programs may be run: a file in memory is none
        with contextlib.suppress(OSError, AttributeError):
            held = os.memfd_create(path.name)
            try:
                os.write(held, path.read_bytes())
                # the loader takes one path for one library, and the number of a closed file is used again
                return ctypes.CDLL(f"/proc/self/fd{'/' * next(_in_memory)}{held}")
            finally:
                os.close(held)
        raise CacheError(f"compiled code cannot be loaded: {error}; set NUMBA_CACHE_DIR to a folder from which programs may be "
                         "run") from error


def _symbol(library: ctypes.CDLL, name: str) -> int:
    return ctypes.addressof(ctypes.c_char.in_dll(library, name))


@functools.cache
def address_of(name: str) -> int:
    """The address of what compiled code calls outside itself: ours, the C library's or its mathematics'."""
    if name == block.TEAM:
        return block.ADDRESS
    if name == block.PARALLEL_FOR:
        return code("team.parallel_for").address
    for library in (None, "libm.so.6", "libm.so"):
        with contextlib.suppress(OSError, AttributeError):
            return ctypes.cast(getattr(ctypes.CDLL(library), name), ctypes.c_void_p).value or 0
    raise CacheError(f"compiled code calls {name}, which this system's C library does not have; remove {store.folder()}")


@functools.cache
def function(name: str, words: int) -> Callable[..., None]:
    """A compiled function that takes so many integers, callable from Python; it lets go of the GIL while it runs."""
    return ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * words)(code(name).address)
