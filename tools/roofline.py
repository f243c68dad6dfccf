"""What this machine can do at most, multiply-adds and memory, measured once and kept beside the compiled kernels."""
from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from microcnn.errors import FileError
from microcnn.files import atomic_write
from microcnn.threads import usable_cpus

from .machine import cache_bytes, code_target, cpu_name, memory_bytes
from .profile_data import Machine

SCHEMA = "microcnn.machine/1"
# How often multiply-adds are measured, of which the best counts: threads that begin together are rare on a busy machine.
TRIALS = 40
# The least that is copied to measure the memory, in bytes.
LEAST_COPIED = 64 * 2**20
# How many figures are kept: of other processors, instruction sets and numbers of processors too.
MOST = 32


def kept_file() -> Path:
    """Where the figures are kept: beside the folders of compiled kernels. Raises CacheError."""
    from microcnn import store
    return Path(store.folder()).parent / "machine.json"


def kept(threads: int, dtype: str = "float32") -> Machine | None:
    """What was measured on this machine before with so many threads; None where nothing was."""
    return next((found for found in _read() if (found.threads, found.dtype) == (threads, dtype)), None)


def measure(threads: Iterable[int], dtype: str = "float32", tick: Any = None) -> list[Machine]:
    """Measure with each number of threads and keep what was found; tick(done, all) is told.

    Raises CacheError where kernels cannot be kept anywhere; where only the figures cannot, they are returned all the same.
    """
    from .peak import Peak, copy_speed
    counts = list(threads)
    found: list[Machine] = []
    for number, count in enumerate(counts):
        if tick is not None:
            tick(number, len(counts))
        peak = Peak(count, dtype)
        best = Machine(max(peak.gflops() for _ in range(TRIALS)), copy_speed(count, _copied_bytes(), best=True), count, dtype)
        for fewer in [*_read(), *found]:        # more threads can do what fewer have done
            if fewer.threads < count and fewer.dtype == dtype:
                best.peak_gflops = max(best.peak_gflops, fewer.peak_gflops)
                best.bandwidth_gbs = max(best.bandwidth_gbs, fewer.bandwidth_gbs)
        found.append(best)
    made = [{**_identity(), **asdict(one)} for one in found]
    keys = [key for key in made[0] if key not in ("peak_gflops", "bandwidth_gbs")] if made else []
    fresh = [[one[key] for key in keys] for one in made]
    others = [entry for entry in _entries() if [entry.get(key) for key in keys] not in fresh]
    facts = {"schema": SCHEMA, "roofs": [*others, *made][-MOST:]}
    try:
        atomic_write(kept_file(), [(json.dumps(facts, indent=1) + "\n").encode()])
    except (OSError, FileError):
        pass        # a disk that cannot be written
    return found


def _copied_bytes() -> int:
    """What is copied: several times the largest cache, and no more than an eighth of the memory that is free."""
    wanted = max(LEAST_COPIED, 3 * (cache_bytes() or 0))
    free = memory_bytes().get("available")
    return wanted if free is None else max(2**20, min(wanted, free // 8))


def _identity() -> dict[str, Any]:
    """What figures hold for."""
    return {"cpu": cpu_name(), "cpus": usable_cpus(), "instruction_set": code_target()["instruction_set"]}


def _entries() -> list[dict[str, Any]]:
    """What the file holds, whatever it was measured on; nothing where it is damaged."""
    try:
        path = kept_file()
        facts = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        roofs = facts["roofs"] if facts["schema"] == SCHEMA else []
        return [entry for entry in roofs if isinstance(entry, dict)]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []


def _read() -> list[Machine]:
    """What is kept of this processor."""
    identity, found = _identity(), []
    for entry in _entries():
        speeds = [entry.get(key) for key in ("peak_gflops", "bandwidth_gbs")]
        whole = isinstance(entry.get("threads"), int) and isinstance(entry.get("dtype"), str)
        if whole and {key: entry.get(key) for key in identity} == identity and all(
                isinstance(speed, float) and 0 < speed < math.inf for speed in speeds):
            found.append(Machine(entry["peak_gflops"], entry["bandwidth_gbs"], entry["threads"], entry["dtype"]))
    return found
