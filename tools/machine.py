"""Facts about the machine, the versions and the settings that every measurement depends on."""
from __future__ import annotations

import importlib.metadata
import os
import platform
import time
from pathlib import Path
from typing import Any

import microcnn as mc
from microcnn import threads
from microcnn.entries import ENTRIES
from microcnn.threads import usable_cpus


def cpu_name() -> str:
    """The processor as the system calls it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    found = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    for key in ("model name", "Model", "Hardware", "cpu"):
        if found.get(key):
            return found[key]
    return platform.processor() or platform.machine()


def load_average() -> float | None:
    """The system's load over the last minute, where it has one."""
    try:
        return round(os.getloadavg()[0], 2)
    except (AttributeError, OSError):
        return None


def memory_bytes() -> dict[str, int]:
    """Total and available memory of the machine, and what this process holds; empty where /proc is not."""
    facts = {}
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            key, _, value = line.partition(":")
            if key in ("MemTotal", "MemAvailable"):
                facts[{"MemTotal": "total", "MemAvailable": "available"}[key]] = int(value.split()[0]) * 1024
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmRSS:"):
                facts["process"] = int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return facts


def processor_state() -> dict[str, Any]:
    """What the kernel tells of the processors' speed and heat: frequency_mhz (now; the highest of all), max_frequency_mhz,
    governor, temperature_c (the hottest zone), throttled (how often, or a Raspberry Pi's flags); None where it does not."""
    cpus = Path("/sys/devices/system/cpu")
    now = [float(text) / 1e3 for text in _texts(cpus, "cpu[0-9]*/cpufreq/scaling_cur_freq")]
    if not now:
        now = [float(line.partition(":")[2]) for text in _texts(Path("/proc"), "cpuinfo") for line in text.splitlines()
               if line.startswith("cpu MHz")]
    most = [float(text) / 1e3 for text in _texts(cpus, "cpu[0-9]*/cpufreq/cpuinfo_max_freq")]
    heat = [float(text) / 1e3 for text in _texts(Path("/sys/class/thermal"), "thermal_zone*/temp")]
    counts = [int(text) for text in _texts(cpus, "cpu[0-9]*/thermal_throttle/core_throttle_count")]
    flags = _texts(Path("/sys/devices/platform"), "soc*/soc:firmware/get_throttled")
    return {"frequency_mhz": max(now, default=None), "max_frequency_mhz": max(most, default=None),
            "governor": ", ".join(sorted(set(_texts(cpus, "cpu[0-9]*/cpufreq/scaling_governor")))) or None,
            "temperature_c": max(heat, default=None),
            "throttled": sum(counts) if counts else int(flags[0], 16) if flags else None}


def _texts(folder: Path, pattern: str) -> list[str]:
    """The texts of all files of that pattern that can be read and are not empty."""
    found = []
    for path in sorted(folder.glob(pattern)):
        try:
            text = path.read_text(encoding="utf-8", errors="replace").strip()
        except OSError:
            continue
        found += [text] if text else []
    return found


def cache_bytes() -> int | None:
    """The size of the largest cache, where the kernel tells it."""
    units = {"K": 2**10, "M": 2**20, "G": 2**30}
    sizes = [int(text[:-1]) * units[text[-1]] for text in _texts(Path("/sys/devices/system/cpu/cpu0/cache"), "index*/size")
             if text[-1] in units and text[:-1].isdigit()]
    return max(sizes, default=None)


def threading_layer() -> str:
    """Whose threads run parallel loops: "microcnn", or numba's layer once something parallel has run in this process."""
    if not threads.numbas:
        return "microcnn"
    import numba
    try:
        return str(numba.threading_layer())
    except ValueError:
        return "not started"


def code_target() -> dict[str, Any]:
    """What numba compiles for: CPU, instruction set, vector width and tile shapes (rows x vectors)."""
    target = ENTRIES.target
    tiles = {vectors: target.get(f"MR{vectors}", 0) for vectors in (4, 3, 2, 1)}
    return {"target_cpu": target["CPU"], "instruction_set": target["INSTRUCTION_SET"], "vector_bytes": target["VECTOR_BYTES"],
            "registers": target["REGISTERS"], "tiles": [[rows, vectors] for vectors, rows in tiles.items() if rows]}


def versions() -> dict[str, str]:
    """The versions of everything that compiled code and its speed depend on."""
    return {"microcnn": mc.__version__, "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in ("numba", "llvmlite", "numpy")}}


def conditions_of_machine() -> dict[str, Any]:
    """What a measurement has to say about where it was made."""
    target = code_target()
    return {"cpu": cpu_name(), "cpus": usable_cpus(), "machine": platform.machine(), "system": platform.platform(),
            "instruction_set": target["instruction_set"], "vector_bytes": target["vector_bytes"],
            "tiles": target["tiles"], "threads": mc.get_num_threads(), "threading_layer": threading_layer(),
            "gomp_spincount": os.environ.get("GOMP_SPINCOUNT"), "load_average": load_average(),
            **processor_state(), "process_bytes": memory_bytes().get("process"), **versions(),
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
