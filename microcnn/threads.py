"""How many threads kernels use: a wish, which a step makes hold before it runs."""
from __future__ import annotations

import functools
import os
import platform
import sys
import threading
import weakref
from typing import Any, TypeAlias

from .block import MOST, SPLIT, WORDS
from .errors import CompileError

# How often idle threads look for work before they sleep, ours (team.py) and GNU OpenMP's: a few milliseconds' worth, for one
# look takes a nanosecond or two on Arm and up to fifty on x86.
LOOKS = 300_000 if platform.machine() in ("x86_64", "AMD64", "i686") else 1_000_000

Lock: TypeAlias = Any     # threading.RLock, which is a function to type checkers

# Whether numba's own threads run parallel loops: where its internals are not what we know, which kernels/compiler.py finds out.
numbas = False

_wish: int | None = None
_applied = 0                    # what holds: in the block of our threads, or, for numba's, in each Python thread
_applied_here = threading.local()
_forked = False
_layer: str | None = None       # numba's threading layer, once it has started
_process_lock = threading.RLock()
# everything with a _lock of its own: a thread that holds it does not exist in a forked child
locked: weakref.WeakSet[Any] = weakref.WeakSet()


def _after_fork() -> None:
    # a child that starts OpenMP after its parent did dies or hangs, and our threads do not exist there: it runs the serial
    # branches only, unless nothing has run yet
    global _forked, _process_lock
    _forked = _forked or "numba" in sys.modules or f"{__package__}.program" in sys.modules
    _process_lock = threading.RLock()
    for holder in locked:
        holder._lock = threading.RLock()


os.register_at_fork(after_in_child=_after_fork)


def set_num_threads(count: int) -> None:
    """Use that many threads from now on, in every network of this process.

    Where numba's own threads run the loops there are at most as many as it was started with.
    Raises CompileError for anything else.
    """
    global _wish
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise CompileError(f"set_num_threads: count is {count!r}; expected an integer of at least 1")
    if "numba" not in sys.modules:
        most = _given_threads() or 0
        if max(most, usable_cpus()) < count:
            os.environ["NUMBA_NUM_THREADS"] = str(min(count, MOST))
    elif numbas:
        import numba
        if count > numba.config.NUMBA_NUM_THREADS:
            raise CompileError(f"set_num_threads: count is {count}, but numba was started with "
                               f"{numba.config.NUMBA_NUM_THREADS} threads; call it before the first network is compiled, or "
                               f"set NUMBA_NUM_THREADS={count} in the environment")
    _wish = count


def _given_threads() -> int | None:
    """NUMBA_NUM_THREADS, None where it is not set. Raises CompileError where it is no number of threads."""
    given = os.environ.get("NUMBA_NUM_THREADS", "").strip()
    if not given:
        return None
    if not given.isdecimal() or int(given) < 1:
        raise CompileError(f"NUMBA_NUM_THREADS is {given!r}; expected an integer of at least 1, or nothing")
    return int(given)


def get_num_threads() -> int:
    """How many threads kernels may use."""
    if _forked:
        return 1
    return _usual() if _wish is None else _wish


@functools.cache
def _usual() -> int:
    """How many, where nobody asked for a number: what NUMBA_NUM_THREADS says, or one for each processor."""
    return _given_threads() or usable_cpus()


def usable_cpus() -> int:
    """How many processors this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def prepare_environment() -> None:
    """What has to stand in the environment before numba's pool starts; what the user set stays.

    Raises CompileError where the user set NUMBA_NUM_THREADS to what is no number of threads.
    """
    _given_threads()
    os.environ.setdefault("GOMP_SPINCOUNT", str(LOOKS))


def apply() -> int:
    """Make the wish hold; returns the number of threads that kernels use."""
    global _applied
    count = min(get_num_threads(), MOST)
    if numbas:
        if getattr(_applied_here, "count", None) != count:
            import numba
            numba.set_num_threads(min(count, numba.config.NUMBA_NUM_THREADS))
            _applied_here.count = count
    elif count != _applied:
        WORDS[SPLIT] = count
        _applied = count
    return count


def pool_lock(own: Lock) -> Lock:
    """What a step holds beside its network's own lock, where two threads in numba's pool abort the process (workqueue).

    Elsewhere that is the network's lock once more, which costs next to nothing.
    """
    global _layer
    if not numbas or get_num_threads() == 1:
        return own
    if _layer is None:
        import numba
        try:
            _layer = numba.threading_layer()
        except ValueError:      # not started yet: the first step decides
            return _process_lock
    return _process_lock if _layer == "workqueue" else own


class Both:
    """A network's lock and pool_lock, held together."""

    def __init__(self, own: Lock):
        self._own, self._pool = own, pool_lock(own)

    def __enter__(self) -> None:
        self._own.acquire()
        try:
            self._pool.acquire()
        except BaseException:       # Ctrl-C
            self._own.release()
            raise

    def __exit__(self, *error: object) -> None:
        self._pool.release()
        self._own.release()
