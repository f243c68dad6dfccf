"""The threads that take part in parallel loops: started when first wanted, asleep while there is nothing to do.

How a loop is handed over stands in kernels/team.py.
"""
from __future__ import annotations

import atexit
import os
import threading
from typing import Any

from . import block, threads
from .entries import function
from .threads import LOOKS, MOST

# Seconds that the end of the process waits for a thread to notice.
PATIENCE = 1.0

# a signal's handler may run a step of its own
_lock = threading.RLock()
_threads: list[threading.Thread] = []
# a locked gate for each thread, at which it sleeps
_gates: list[Any] = []
# 1 at the places of threads that sleep, or are about to
_asleep = bytearray(MOST)
_look: Any = None
# how many threads there can be at most, the caller among them
_most = MOST


def ready(count: int) -> None:
    """See to it that `count` threads, the caller among them, look for work; who does not yet is passed over, not waited for."""
    count = min(count, _most)
    if len(_threads) < count - 1:
        _start(count)
    if 1 in _asleep:
        with _lock:         # another Python thread may be about to open the same gates
            for place in range(1, count):
                if _asleep[place]:
                    _asleep[place] = 0
                    _gates[place - 1].release()


def _start(count: int) -> None:
    """Start what is missing of the threads; if the system has no more of them, there are fewer."""
    global _look, _most
    if threads.numbas:
        return
    with _lock:
        if _look is None:
            _look = function("team.look", 3)
            atexit.register(_end)
        while len(_threads) < count - 1:
            place, gate = len(_threads) + 1, threading.Lock()
            gate.acquire()
            thread = threading.Thread(target=_work, args=(place, gate), name=f"microcnn-{place}", daemon=True)
            # first, for Ctrl-C may come while it starts: a place has one thread or none
            _gates.append(gate)
            _threads.append(thread)
            try:
                thread.start()
            except RuntimeError:
                _gates.pop()
                _threads.pop()
                _most = place
                return


def _work(place: int, gate: Any) -> None:
    """What one of the threads does."""
    while not block.WORDS[block.STOP]:
        _look(block.ADDRESS, place, LOOKS)
        _asleep[place] = 1
        if not block.WORDS[block.STOP]:
            gate.acquire()


def _end() -> None:
    """The threads leave compiled code before the process takes its memory away."""
    block.WORDS[block.STOP] = 1
    ready(len(_threads) + 1)
    for thread in _threads:
        if thread.ident is not None:
            thread.join(PATIENCE)


def _after_fork() -> None:
    # the parent's threads do not exist here, and a child starts none
    global _lock
    _lock = threading.RLock()
    _threads.clear()
    _gates.clear()
    _asleep[:] = bytes(MOST)
    atexit.unregister(_end)


os.register_at_fork(after_in_child=_after_fork)
