"""microcnn doctor: is everything in order on this machine, and what does numba make of it?"""
from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import time
from dataclasses import asdict
from typing import Any

from microcnn.threads import usable_cpus

from ..machine import code_target, cpu_name, load_average, memory_bytes, threading_layer, versions
from ..terminal import Terminal, bytes_text
from . import options


def add_doctor(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    options.add_threads(parser)
    parser.add_argument("--measure", action="store_true", help="measure what the processor and the memory can do at most, and "
                        "keep it for profiles on this device (a few seconds)")
    options.add_json(parser)


def run_doctor(args: argparse.Namespace, terminal: Terminal) -> int:
    """Show versions, CPU, compiler target, threads, cache and a self test; 1 where something is wrong."""
    options.set_threads(args.threads)
    report = examine()
    if args.measure:
        report["roofs"] = _guarded(lambda: {"measured": _measure(terminal)}, report["problems"])
    if args.json:
        terminal.say(json.dumps(report, indent=1))
    else:
        terminal.table(["", ""], list(_lines(report)))
        for problem in report["problems"]:
            terminal.say(f"problem: {problem}")
        terminal.say("everything is in order" if not report["problems"] else "")
    return 1 if report["problems"] else 0


def _measure(terminal: Terminal) -> list[dict[str, Any]]:
    """The roofs of one thread and of as many as are set."""
    import microcnn as mc

    from ..roofline import measure
    with terminal.progress(100, "measuring") as bar:
        found = measure(sorted({1, mc.get_num_threads()}), tick=lambda done, count: bar.show(100 * done // count))
    return [asdict(one) for one in found]


def examine() -> dict[str, Any]:
    """All that doctor knows, as plain data."""
    import microcnn as mc
    problems: list[str] = []
    report: dict[str, Any] = {"versions": versions(), "optional": _optional(), "cpu": cpu_name(),
                              "cpus": usable_cpus(), "code": code_target(), "load_average": load_average()}
    # the self test starts the threads, so that the threading layer is known afterwards
    report["self_test"] = _guarded(_self_test, problems)
    report["threads"] = {"number": mc.get_num_threads(), "layer": threading_layer(),
                         "GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT"),
                         "NUMBA_NUM_THREADS": os.environ.get("NUMBA_NUM_THREADS")}
    report["cache"] = _guarded(_cache, problems)
    report["memory"] = memory_bytes()
    report["problems"] = problems
    return report


def _guarded(check: Any, problems: list[str]) -> dict[str, Any]:
    """What a check found; what goes wrong in it is a finding too."""
    from microcnn.errors import MicroCNNError
    try:
        found: dict[str, Any] = check()
    except (MicroCNNError, OSError) as error:
        found = {"problem": str(error)}
    if found.get("problem"):
        problems.append(found["problem"])
    return found


def _optional() -> dict[str, str | None]:
    """The versions of the packages that only the workbench uses; None where one is not installed."""
    found: dict[str, str | None] = {}
    for name in ("onnx", "onnxruntime", "rich"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def _cache() -> dict[str, Any]:
    """The folder of compiled kernels."""
    from microcnn import store
    folder = store.folder()
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    probe = folder / f"probe-{os.getpid()}"
    try:
        probe.write_bytes(b"x")
        probe.unlink()
    except OSError as error:
        return {"folder": str(folder), "bytes": size, "writable": False,
                "problem": f"the cache folder {folder} cannot be written ({error.strerror}); set NUMBA_CACHE_DIR"}
    # links lead to what a disk that is read only holds ready
    if store.lost() and not any(file.is_symlink() for file in folder.rglob("*")):
        return {"folder": str(folder), "bytes": size, "writable": True, "state": "NOT kept", "problem": store.lost()}
    return {"folder": str(folder), "bytes": size, "writable": True}


def _self_test() -> dict[str, Any]:
    """One convolution forward and backward, compiled, against plain numpy."""
    import numpy as np

    import microcnn as mc
    began = time.perf_counter()
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 3, 6, 7)).astype(np.float32)
    net = mc.Sequential([mc.Conv2d(5, 3, padding=1)], input_shape=(3, 6, 7)).graph().compile(batch=2, train="all")
    y = net.forward(x)
    dy = rng.standard_normal(y.shape).astype(np.float32)
    dx = net.backward(dy)
    gradients = net.gradients()
    weights = net.parameters()
    weight = next(array for array in weights.values() if array.ndim == 4)
    bias = next(array for array in weights.values() if array.ndim == 1)
    # every window of the padded input (N, C, H, W, R, S), against the definition
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1))), (3, 3), (2, 3))
    expected_y = np.einsum("nchwrs,kcrs->nkhw", windows, weight, dtype=np.float64) + bias[:, None, None]
    expected_dweight = np.einsum("nchwrs,nkhw->kcrs", windows, dy, dtype=np.float64)
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(dy, ((0, 0), (0, 0), (1, 1), (1, 1))), (3, 3), (2, 3))
    expected_dx = np.einsum("nkhwrs,kcrs->nchw", windows, weight[:, :, ::-1, ::-1], dtype=np.float64)
    dweight = next(array for array in gradients.values() if array.ndim == 4)
    errors = [float(np.abs(got - expected).max() / np.abs(expected).max()) for got, expected in
              ((y, expected_y), (dweight, expected_dweight), (dx, expected_dx))]
    worst = max(errors) if all(map(np.isfinite, errors)) else float("inf")
    passed = worst < 1e-5
    return {"passed": passed, "error": worst, "seconds": round(time.perf_counter() - began, 2),
            **({} if passed else {"problem": f"the self test failed: compiled code differs from numpy by {worst:.1e} "
                                  "of the largest value"})}


def _lines(report: dict[str, Any]) -> Any:
    """The report as lines of a table."""
    for name, version in report["versions"].items():
        yield name, version
    for name, version in report["optional"].items():
        yield name, version or "not installed (optional)"
    yield "CPU", f"{report['cpu']}, {report['cpus']} usable"
    code = report["code"]
    yield "numba compiles for", f"{code['target_cpu']}: {code['instruction_set']}, vectors of {code['vector_bytes']} " \
        f"bytes, {code['registers']} registers"
    yield "tiles", ", ".join(f"{rows} x {vectors}" for rows, vectors in code["tiles"]) + " (rows x vectors)"
    threads = report["threads"]
    yield "threads", f"{threads['number']}, layer {threads['layer']}"
    for name in ("GOMP_SPINCOUNT", "NUMBA_NUM_THREADS"):
        yield name, threads[name] or "not set"
    cached = report["cache"]
    if "folder" in cached:
        yield "cache", f"{cached['folder']} ({bytes_text(cached['bytes'])}, " \
            f"{cached.get('state') or ('writable' if cached['writable'] else 'NOT writable')})"
    if report["memory"]:
        memory = report["memory"]
        yield "memory", ", ".join(f"{bytes_text(memory[key])} {text}" for key, text in (
            ("total", "in all"), ("available", "available"), ("process", "this process")) if key in memory)
    if report["load_average"] is not None:
        yield "load average", report["load_average"]
    for roof in report.get("roofs", {}).get("measured", ()):
        yield f"at most, {roof['threads']} thread{'s' if roof['threads'] > 1 else ''}", \
            f"{roof['peak_gflops']:.0f} GFLOP/s of multiply-adds, {roof['bandwidth_gbs']:.1f} GB/s from memory"
    test = report["self_test"]
    if "error" in test:
        yield "self test", f"{'passed' if test['passed'] else 'FAILED'}: error {test['error']:.1e}, {test['seconds']} s"
    else:
        yield "self test", "FAILED"
