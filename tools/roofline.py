"""What this machine can do at most, multiply-adds and memory, measured once and kept beside the compiled kernels."""
from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from microcnn.errors import FileError
from microcnn.files import atomic_write

from .machine import cache_bytes, code_target, cpu_name, memory_bytes
from .peak import COPY_BYTES, Peak, copy_speed
from .profile_data import Machine

SCHEMA = "microcnn.machine/1"
TRIALS = 7


def kept_file() -> Path:
    """Where the figures are kept: beside the folders of compiled kernels. Raises CacheError."""
    from microcnn.kernels import cache
    return Path(cache.folder()).parent / "machine.json"


def kept(threads: int, dtype: str = "float32") -> Machine | None:
    """What was measured on this machine before with so many threads; None where nothing was."""
    return next((found for found in _read() if (found.threads, found.dtype) == (threads, dtype)), None)


def measure(threads: Iterable[int], dtype: str = "float32", tick: Any = None) -> list[Machine]:
    """Measure with each number of threads and keep what was found; tick(done, all) is told.

    Raises CacheError where kernels cannot be kept anywhere; where only the figures cannot, they are returned all the same.
    """
    counts = list(threads)
    found = []
    for number, count in enumerate(counts):
        if tick is not None:
            tick(number, len(counts))
        peak = Peak(count, dtype)
        found.append(Machine(max(peak.gflops() for _ in range(TRIALS)), copy_speed(count, _copied_bytes()), count, dtype))
    others = [one for one in _read() if (one.threads, one.dtype) not in {(new.threads, new.dtype) for new in found}]
    facts = {"schema": SCHEMA, **_identity(), "roofs": [asdict(one) for one in [*others, *found]]}
    try:
        atomic_write(kept_file(), [(json.dumps(facts, indent=1) + "\n").encode()])
    except (OSError, FileError):
        pass        # a disk that cannot be written
    return found


def _copied_bytes() -> int:
    """What is copied: several times the largest cache, and no more than an eighth of the memory that is free."""
    wanted = max(COPY_BYTES, 3 * (cache_bytes() or 0))
    free = memory_bytes().get("available")
    return wanted if free is None else max(2**20, min(wanted, free // 8))


def _identity() -> dict[str, str]:
    """What the figures hold for."""
    return {"cpu": cpu_name(), "instruction_set": code_target()["instruction_set"]}


def _read() -> list[Machine]:
    """What is kept, if it was measured on this processor."""
    try:
        facts = json.loads(kept_file().read_text(encoding="utf-8"))
        if facts["schema"] != SCHEMA or {key: facts.get(key) for key in _identity()} != _identity():
            return []
        return [Machine(float(one["peak_gflops"]), float(one["bandwidth_gbs"]), int(one["threads"]), str(one["dtype"]))
                for one in facts["roofs"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []
