"""The threads that take part in parallel loops: every piece is made once, nobody is waited for, and the process ends."""
from __future__ import annotations

import pytest

from .test_threads import fresh

# Loops straight through what compiled kernels call. Every piece adds 1 to a place of its own, and does some work.
LOOPS = """
import ctypes, sys, threading
import microcnn as mc
threads, loops, callers, naps = map(int, sys.argv[1:])
mc.set_num_threads(max(threads, 2))
import numba, numpy as np
from numba import cfunc, types
from numba.extending import intrinsic
from microcnn import block, team
from microcnn.entries import code
Words = types.CPointer(types.int64)

@intrinsic
def words(context, address):
    def codegen(context, builder, signature, args):
        return builder.inttoptr(args[0], context.get_value_type(Words))
    return Words(address), codegen

@cfunc(types.void(Words, Words, Words, types.int64))
def piece(arguments, sizes, steps, data):
    place = numba.carray(words(numba.carray(arguments, (1,))[0]), (1,))
    first, second = numba.carray(sizes, (2,))
    total = 0.0
    for i in range(200):
        total += np.sqrt(i + place[0])
    place[0] += 1 if first == 1 and second == 7 and total > 0 else 1000

loop = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 8)(code("team.parallel_for").address)

def work(made):
    counts, sizes, steps = np.zeros(threads * 8, np.int64), np.array([threads, 7]), np.array([64])
    arguments = np.array([counts.ctypes.data])
    for number in range(loops):
        if naps and number % naps == 0:
            team.ready(threads)
        loop(piece.address, arguments.ctypes.data, sizes.ctypes.data, steps.ctypes.data, 0, 1, 1, threads)
    made.append(counts[::8].tolist())

made = []
workers = [threading.Thread(target=work, args=(made,)) for _ in range(callers)]
[worker.start() for worker in workers]
[worker.join() for worker in workers]
print(made == [[loops] * threads] * callers)
"""


@pytest.mark.parametrize("threads, loops, callers, naps", [
    (2, 30_000, 1, 1), (4, 3_000, 1, 1), (2, 3_000, 1, 0), (2, 5_000, 3, 10), (1, 100, 1, 0), (63, 20, 1, 0)],
    ids=["two", "four", "nobody-helps", "three-callers", "alone", "many-pieces"])
def test_every_piece_is_made_once(threads, loops, callers, naps):
    assert fresh(LOOPS, str(threads), str(loops), str(callers), str(naps)) == "True"


STEPS = """
import sys, threading
import numpy as np
import microcnn as mc
from microcnn import team
mc.set_num_threads(2)
graph = mc.Sequential([mc.Conv2d(16, 3, padding=1), mc.ReLU(), mc.Flatten(), mc.Linear(10)], (16, 16, 16)).graph()
net = graph.compile(batch=64, train="all", loss="cross_entropy", optimizer=mc.SGD(lr=0.01))
rng = np.random.default_rng(0)
x, t = rng.standard_normal((64, 16, 16, 16)).astype(np.float32), rng.integers(0, 10, 64)
"""


@pytest.mark.parametrize("end", [
    "", "sys.exit()", "raise SystemExit(0)", "import os; os._exit(0)",
    "threading.Thread(target=lambda: [net.train_step(x, t) for _ in range(20)]).start()"],
    ids=["plainly", "exit", "raise", "at-once", "while-another-steps"])
def test_the_process_ends_while_the_threads_look_for_work(end):
    # printed first: what the process has to say comes before its end
    assert fresh(f"{STEPS}\nnet.train_step(x, t)\nprint(len(team._threads), flush=True)\n{end}", timeout=60) == "1"


def test_threads_sleep_and_wake():
    code = STEPS + """
import time
losses = []
for _ in range(5):
    losses.append(net.train_step(x, t))
    begin = time.monotonic()
    while not team._asleep[1] and time.monotonic() < begin + 20:
        time.sleep(0.005)
    assert team._asleep[1], "the thread looks for work for ever"
mc.set_num_threads(1)
alone = graph.compile(batch=64, train="all", loss="cross_entropy", optimizer=mc.SGD(lr=0.01))
print(losses == [alone.train_step(x, t) for _ in range(5)])
"""
    assert fresh(code) == "True"


def test_one_thread_starts_none():
    code = STEPS.replace("set_num_threads(2)", "set_num_threads(1)") + "net.train_step(x, t)\nprint(team._threads)"
    assert fresh(code) == "[]"


def test_other_parallel_code_of_the_process_is_numbas():
    code = """
import numba, numpy as np
@numba.njit(parallel=True)
def total(x):
    s = 0.0
    for i in numba.prange(x.size):
        s += x[i]
    return s
@numba.njit(parallel=True)
def double(x):
    y = np.empty_like(x)
    for i in numba.prange(x.size):
        y[i] = 2 * x[i]
    return y
before = total(np.ones(1000))
from microcnn.kernels import compiler
compiler.compiled("update.sgd", "float32")
after = total(np.arange(1000.0)), double(np.arange(4.0)).tolist()
llvm = "".join(double.inspect_llvm().values())
print(before, *after, "numba_parallel_for" in llvm, "microcnn_parallel_for" in llvm)
"""
    assert fresh(code, NUMBA_THREADING_LAYER="workqueue") == "1000.0 499500.0 [0.0, 2.0, 4.0, 6.0] True False"


def test_code_that_another_thread_compiles_meanwhile_is_numbas(tmp_path):
    code = """
import threading, numba, numpy as np
import microcnn as mc
mc.set_num_threads(2)
graph = mc.Sequential([mc.Conv2d(4, 3), mc.ReLU(), mc.Flatten(), mc.Linear(3)], (3, 8, 8)).graph()
ours = []
def theirs():
    for number in range(6):
        names = {"numba": numba}
        exec(f"def total(a):\\n s = 0.0\\n for i in numba.prange(a.size): s += a[i] * {number}\\n return s", names)
        total = numba.njit(parallel=True)(names["total"])
        assert total(np.arange(1000.0)) == 499500.0 * number
        ours.append("microcnn_parallel_for" in "".join(total.inspect_llvm().values()))
def compile():
    graph.compile(batch=2).predict(np.zeros((2, 3, 8, 8), np.float32))
workers = [threading.Thread(target=theirs), threading.Thread(target=compile)]
[worker.start() for worker in workers]
[worker.join() for worker in workers]
print(ours)
"""
    assert fresh(code, NUMBA_CACHE_DIR=str(tmp_path)) == str([False] * 6)


def test_a_thread_that_wakes_late_joins_the_loop_that_runs():
    # one long loop of many pieces; the thread is called only when it has begun
    code = LOOPS[:LOOPS.index("def work(made):")].replace("range(200)", "range(20_000_000)") + """
counts, sizes, steps = np.zeros(threads * 8, np.int64), np.array([threads, 7]), np.array([64])
arguments = np.array([counts.ctypes.data])
team.ready(2)
begin = __import__("time").monotonic()
while not team._asleep[1] and __import__("time").monotonic() < begin + 20:
    __import__("time").sleep(0.001)
timer = threading.Timer(0.01, team.ready, (2,))
timer.start()
loop(piece.address, arguments.ctypes.data, sizes.ctypes.data, steps.ctypes.data, 0, 1, 1, threads)
print(counts[::8].tolist() == [1] * threads, block.WORDS[block.SPACES + block.SPACE] != 0)
"""
    assert fresh(code, "16", "1", "1", "1") == "True True"


def test_there_may_be_no_more_threads(monkeypatch):
    code = STEPS.replace("set_num_threads(2)", "set_num_threads(3)") + """
start, starts = threading.Thread.start, []
def refused(thread):
    starts.append(thread.name)
    if thread.name == "microcnn-2":
        raise RuntimeError("can't start new thread")
    start(thread)
threading.Thread.start = refused
losses = [net.train_step(x, t) for _ in range(5)]
print(len(team._threads), starts, np.isfinite(losses).all())
"""
    assert fresh(code) == "1 ['microcnn-1', 'microcnn-2'] True"
