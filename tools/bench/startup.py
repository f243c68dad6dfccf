"""How long a process takes from its start to its first result: python -m microcnn.tools.bench startup MODEL ...

Everything is measured in fresh processes, interleaved, and the median is told, with the most memory that the process held.
What numba itself takes, its import and a function of its own from its cache, stands beside it: on a busy or a slow machine both
grow. Of warmup the processor's time is told too, which neighbours on the machine disturb less. With --train a process that
takes a step of training, all weights, is measured as well.
"""
from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from microcnn.errors import FileError, MicroCNNError
from microcnn.files import atomic_write

from ..commands.options import whole
from ..loading import check_suffix, check_writable, load_model
from ..machine import conditions_of_machine
from ..terminal import Terminal, bytes_text, time_text

# Samples of a step of training.
BATCH = 32

# What a child runs. All but the first end with DONE.
IMPORT = """
import json, time, numpy
began = time.perf_counter()
import microcnn
print(json.dumps({"us": (time.perf_counter() - began) * 1e6}))
"""
# time.monotonic is one clock for all processes; VmHWM is the most memory that this one held.
DONE = """
done = time.monotonic()
import json
with open("/proc/self/status") as status:
    most = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))
print(json.dumps({"done": done, "bytes": most}))
"""
NUMBA = """
import sys, time
sys.path.insert(0, FOLDER)
import numpy, numba
import yardstick
yardstick.total(numpy.ones(8, numpy.float32))
""" + DONE
# In a file of its own, because numba caches no function that was typed in.
YARDSTICK = """
import numba

@numba.njit(cache=True)
def total(x):
    result = x[0]
    for i in range(1, x.size):
        result += x[i]
    return result
"""
LOAD = """
import time
import numpy
import microcnn as mc
graph = (mc.load if PATH.endswith(".mcnn") else mc.load_onnx)(PATH)
"""
PREDICT = LOAD + """
net = graph.compile()
shapes = {entry.name: net.shapes[entry.name] for entry in net.graph.inputs}
x = {name: numpy.zeros((1, *shape), numpy.float32) for name, shape in shapes.items()}
net.predict(x if len(x) > 1 else next(iter(x.values())))
""" + DONE
TRAIN = LOAD + """
from microcnn.tools.samples import default_loss, example
loss = default_loss(graph.shapes(), graph.outputs)
net = graph.compile(batch=BATCH, train="all", loss=loss, optimizer=mc.SGD(lr=1e-6, momentum=0.9))
x, t = example(net.graph, net.batch, net.loss, "float32", {entry.name: net.shapes[entry.name] for entry in net.graph.inputs})
net.train_step(x, t)
""" + DONE


def child(code: str, cache: Path) -> dict[str, float]:
    """What the code prints in a fresh process, and in place of `done` the microseconds since the process began, as `us`.

    Raises MicroCNNError.
    """
    began = time.monotonic()
    ran = subprocess.run([sys.executable, "-c", code], env={**os.environ, "NUMBA_CACHE_DIR": str(cache)}, capture_output=True,
                         text=True)
    if ran.returncode:
        raise MicroCNNError(f"a measured process ended with {ran.returncode}: {ran.stderr.strip().splitlines()[-1:]}")
    found: dict[str, float] = json.loads(ran.stdout.splitlines()[-1])
    if "done" in found:
        found["us"] = (found.pop("done") - began) * 1e6
    return found


def warm_up(model: Path, cache: Path, train: bool) -> dict[str, float]:
    """What `microcnn warmup` takes from the process's start on, its processors' time, and the bytes in its cache folder.

    Raises MicroCNNError.
    """
    command = [sys.executable, "-m", "microcnn.tools.cli", "warmup", str(model)]
    if train:
        command += ["--train", "--batch", str(BATCH)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.monotonic()
    ran = subprocess.run(command, env={**os.environ, "NUMBA_CACHE_DIR": str(cache)}, capture_output=True, text=True)
    if ran.returncode:
        raise MicroCNNError(f"microcnn warmup {model} ended with {ran.returncode}: {ran.stderr.strip().splitlines()[-1:]}")
    after, seconds = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic() - began
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"warmup_us": seconds * 1e6, "warmup_processor_us": spent * 1e6, "cache_bytes": folder_bytes(cache)}


def folder_bytes(folder: Path) -> int:
    """The sizes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def medians(repeats: int, **codes: tuple[str, Path]) -> dict[str, float]:
    """{name_us, name_bytes: median} of what (code, cache folder) of that name takes, one after the other, repeated.

    The first run of each is not counted: files are read from the disk then, and what was not warmed up is compiled.
    """
    found: dict[str, list[float]] = {}
    for repeat in range(repeats + 1):
        for name, (code, cache) in codes.items():
            for what, number in child(code, cache).items():
                if repeat:
                    found.setdefault(f"{name}_{what}", []).append(number)
    return {name: statistics.median(numbers) for name, numbers in found.items()}


def measure(models: Sequence[Path], train: bool, repeats: int, terminal: Terminal) -> dict[str, Any]:
    """All figures: `import_us`, `numba_us`, and of each model its warmup, its cache and its first results."""
    result: dict[str, Any] = {"schema": "microcnn.startup/2", "conditions": conditions_of_machine(), "models": []}
    with tempfile.TemporaryDirectory(prefix="microcnn-startup-") as name, \
            terminal.progress(2 * len(models) + 1, "measuring") as bar:
        folder = Path(name)
        (folder / "yardstick.py").write_text(YARDSTICK, encoding="utf-8")
        numba = (NUMBA.replace("FOLDER", repr(str(folder))), folder / "numba")
        bar.show(0, "imports")
        result |= medians(repeats, **{"import": (IMPORT, folder / "numba"), "numba": numba})
        whole_cache = folder / "all"
        for number, model in enumerate(models):
            bar.show(2 * number + 1, f"warmup {model.name}")
            cache = folder / str(number)
            warmed = warm_up(model, cache, train)
            native, codes = folder / f"{number}.mcnn", {"numba": numba}
            load_model(model).save(native)
            bar.show(2 * number + 2, f"first result of {model.name}")
            codes["mcnn"] = (PREDICT.replace("PATH", repr(str(native))), cache)
            if model.suffix.lower() == ".onnx":
                codes["onnx"] = (PREDICT.replace("PATH", repr(str(model))), cache)
            if train:
                codes["train"] = (TRAIN.replace("PATH", repr(str(native))).replace("BATCH", str(BATCH)), cache)
            result["models"].append({"model": str(model), "train": train, **warmed, **medians(repeats, **codes)})
            merge(cache, whole_cache)
        result["cache_bytes"] = folder_bytes(whole_cache)
        bar.show(2 * len(models) + 1)
    return result


def merge(folder: Path, into: Path) -> None:
    """What would lie in one cache folder, had all models been compiled into it."""
    for path in folder.rglob("*"):
        if path.is_file():
            target = into / path.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)


def show(result: dict[str, Any], terminal: Terminal) -> None:
    """The figures as a table."""
    terminal.say(f"import microcnn, beyond numpy: {time_text(result['import_us'])}. From the start of a process to the first "
                 f"result of a function that numba has cached: {time_text(result['numba_us'])}")

    kinds = {"mcnn": ".mcnn", "onnx": ".onnx", "train": f".mcnn, a step of {BATCH}"}
    kinds = {kind: title for kind, title in kinds.items() if any(f"{kind}_us" in model for model in result["models"])}
    rows = []
    for model in result["models"]:
        path = Path(model["model"])
        first = [f"{time_text(model[f'{kind}_us'])} ({model[f'{kind}_us'] / model['numba_us']:.2f}), "
                 f"{bytes_text(model[f'{kind}_bytes'])}" if f"{kind}_us" in model else "-" for kind in kinds]
        rows.append(("/".join(path.parts[-2:]), time_text(model["warmup_us"]), time_text(model["warmup_processor_us"]),
                     bytes_text(model["cache_bytes"]), *first,
                     f"{time_text(model['numba_us'])}, {bytes_text(model['numba_bytes'])}"))
    titles = ("warmup", "processor", "cache", *kinds.values(), "numba alone")
    terminal.table(("model", *(f">{title}" for title in titles)), rows,
                   "From the start of a process to the first result, warm: time (and how many times what numba alone takes), "
                   "and the most memory held")
    terminal.say(f"the cache of all together: {bytes_text(result['cache_bytes'])}")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code. Raises MicroCNNError."""
    parser = argparse.ArgumentParser(prog="python -m microcnn.tools.bench startup", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL", help=".onnx or .mcnn")
    parser.add_argument("--train", action="store_true", help="training too")
    parser.add_argument("--repeats", type=whole(), default=5, metavar="N", help="processes for each median (5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures as JSON")
    args = parser.parse_args(arguments)
    for model in args.models:
        check_suffix(model)
        if not model.exists():
            raise FileError(f"{model}: no such file")
    if args.json:
        check_writable(args.json)
    terminal = Terminal()
    result = measure(args.models, args.train, args.repeats, terminal)
    show(result, terminal)
    if args.json:
        atomic_write(args.json, [(json.dumps(result, indent=1) + "\n").encode()])
        terminal.say(f"saved {args.json}")
    return 0
