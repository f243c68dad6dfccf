"""A peer in a process of its own: it is asked in lines of JSON, and answers so. Nothing that it does can end the benchmark."""
from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from .catalog import Peer, interpreter_of

RUNNERS = Path(__file__).resolve().parent / "runners"
# The runners' folder as a package that shadows nothing, in an interpreter that may not have microcnn.
BOOT = """
import importlib.util, pathlib, sys
folder = pathlib.Path(sys.argv[1])
spec = importlib.util.spec_from_file_location("bench_runners", folder / "__init__.py", submodule_search_locations=[str(folder)])
package = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(package)
from bench_runners.worker import main
main(*sys.argv[2:])
"""
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
START_SECONDS = 180.0


class Worker:
    """A running peer.

    version   what it said when it started; None where it did not start
    absent    whether its library is not installed
    problem   why it cannot be used, "" as long as it can
    """

    def __init__(self, peer: Peer, python: str, threads: int, core: int | None, folder: Path):
        self.peer, self.log = peer, folder / f"log-{peer.name}-{threads}.txt"
        self.version: str | None = None
        self.absent, self.problem = False, ""
        pinned = "" if threads > 1 or core is None else str(core)
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [python, "-c", BOOT, str(RUNNERS), peer.module, peer.name, str(threads), pinned], stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, stderr=log, cwd=folder, env=environment(python, threads), text=True)
        self._answers: queue.Queue[str | None] = queue.Queue()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        hello = self._answer(START_SECONDS)
        self.version, self.absent = hello.get("version"), bool(hello.get("absent"))
        if self.version is None:
            self.problem = hello["error"]
            self.close()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._answers.put(line)
        self._answers.put(None)

    def ask(self, patience: float, /, **command: Any) -> dict[str, Any]:
        """Send a command; what comes back, or {"error": why} where nothing does within so many seconds."""
        if self.problem:
            return {"error": self.problem}
        try:
            assert self.process.stdin is not None
            self.process.stdin.write(json.dumps(command) + "\n")
            self.process.stdin.flush()
        except OSError:     # it has died; why, _answer finds out
            pass
        return self._answer(patience)

    def _answer(self, patience: float) -> dict[str, Any]:
        try:
            line = self._answers.get(timeout=patience)
        except queue.Empty:
            self.problem = f"no answer within {patience:g} s, and was ended"
            self.process.kill()
            self.process.wait()
            return {"error": self.problem}
        if line is None:
            code = self.process.wait()
            self.problem = f"its process died ({_manner(code)}): {self._last_words()}"
            return {"error": self.problem}
        return json.loads(line)

    def _last_words(self) -> str:
        """The end of what it wrote to standard error."""
        lines = [line for line in self.log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        return lines[-1].strip()[:200] if lines else "it said nothing"

    def close(self) -> None:
        """End the process: asked first, then forced. May be called again."""
        assert self.process.stdin is not None and self.process.stdout is not None
        with contextlib.suppress(OSError):      # what was not sent cannot be sent any more
            self.process.stdin.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._listener.join(5)
        if not self._listener.is_alive():       # else a child of the peer's own still holds the pipe
            self.process.stdout.close()


def _manner(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def environment(python: str, threads: int) -> dict[str, str]:
    """What a peer finds in its environment: so many threads, nothing of this interpreter's in another."""
    found = {**os.environ, **dict.fromkeys(THREAD_VARIABLES, str(threads)), "TF_CPP_MIN_LOG_LEVEL": "2",
             "CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu", "TORCHINDUCTOR_COMPILE_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    found.pop("PYTHONPATH", None)
    if python == sys.executable:    # the same microcnn as here, wherever this process found it
        found["PYTHONPATH"] = os.pathsep.join(os.path.abspath(path) for path in sys.path if path)
    if threads == 1:
        found["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false".strip()
    return found


class Workers:
    """The processes of the peers for one number of threads, started when first needed."""

    def __init__(self, given: dict[str, str], threads: int, core: int | None, folder: Path):
        self.given, self.threads, self.core, self.folder = given, threads, core, folder
        self.running: dict[str, Worker] = {}

    def get(self, peer: Peer) -> Worker:
        """The peer's worker. One that died while it worked on something is started again for the next thing."""
        worker = self.running.get(peer.name)
        if worker is not None and worker.problem and worker.version is not None:
            worker.close()
            worker = None
        if worker is None:
            python = interpreter_of(peer, self.given)
            worker = self.running[peer.name] = Worker(peer, python, self.threads, self.core, self.folder)
        return worker

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.running.values():
            worker.close()
