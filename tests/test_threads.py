"""Threads and processes: the same bits with any number of threads, forked children, several Python threads at once."""
from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable

import numpy as np
import pytest

import microcnn as mc
from microcnn import block, threads

from . import WORK
from .conftest import ROOT
from .tiny import compiled, images

# 64 samples and wide enough that every kind of kernel takes its parallel branch.
TRAIN = """
import hashlib, sys
import numpy as np
import microcnn as mc
threads = int(sys.argv[1])
mc.set_num_threads(threads)
graph = mc.Sequential([mc.Conv2d(16, 3, padding=1), mc.BatchNorm2d(), mc.ReLU(), mc.MaxPool2d(2), mc.Flatten(),
                       mc.Linear(10)], (16, 16, 16)).graph()
net = graph.compile(batch=64, train="all", loss="cross_entropy", optimizer=mc.SGD(lr=0.01, momentum=0.9), bn="batch")
rng = np.random.default_rng(0)
x, t = rng.standard_normal((64, 16, 16, 16)).astype(np.float32), rng.integers(0, 10, 64)
losses = [net.train_step(x, t) for _ in range(50)]
from microcnn import block
assert block.WORDS[block.SPLIT] == mc.get_num_threads() == threads
assert losses[-1] < losses[0] / 2, losses
digest = hashlib.sha256(b"".join(array.tobytes() for array in net.parameters().values()))
digest.update(net.predict(x).tobytes())
print(digest.hexdigest(), losses)
"""


def fresh(code: str, *arguments: str, timeout: int = 300, **others: str) -> str:
    """What code prints in a fresh process."""
    code = f"import microcnn.waking\nmicrocnn.waking.fixed = {WORK}\n{code}"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True,
                          env={**os.environ, **others}, timeout=timeout)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def net():
    """A network that is compiled once; tests that train it do not mind where they start."""
    net = compiled(batch=4)
    x, t = images(4)
    net.train_step(x, t)
    return net


def digest(net: mc.Net) -> str:
    return hashlib.sha256(b"".join(array.tobytes() for array in net.parameters().values())).hexdigest()


def test_the_same_bits_with_1_2_and_4_threads_and_from_run_to_run():
    results = [fresh(TRAIN, threads) for threads in ("1", "2", "4", "4")]
    assert len(set(results)) == 1, results


def test_a_second_net_gives_the_same_bits():
    x, t = images(4)
    one, two = compiled(), compiled()
    for _ in range(5):
        assert one.train_step(x, t) == two.train_step(x, t)
    assert digest(one) == digest(two)


@pytest.mark.parametrize("count", [0, -1, 1.0, "2", True, None])
def test_a_count_that_is_none(count):
    with pytest.raises(mc.CompileError, match="set_num_threads: count is .*; expected an integer of at least 1"):
        mc.set_num_threads(count)


def test_more_threads_than_numba_has(monkeypatch):
    import numba
    monkeypatch.setattr(threads, "numbas", True)
    most = numba.config.NUMBA_NUM_THREADS
    with pytest.raises(mc.CompileError, match=rf"set_num_threads: count is {most + 1}, but numba was started with {most} "
                                              rf"threads; call it before .* NUMBA_NUM_THREADS={most + 1}"):
        mc.set_num_threads(most + 1)


def test_threads_are_asked_for_before_numba_is_loaded():
    code = """
import os, sys
import microcnn as mc
mc.set_num_threads(7)
assert mc.get_num_threads() == 7
assert "numba" not in sys.modules
import numba
assert numba.config.NUMBA_NUM_THREADS == 7
mc.set_num_threads(3)
assert mc.get_num_threads() == 3
"""
    fresh(code)


def test_more_threads_than_there_can_be(net):
    x, before = images(4)[0], mc.get_num_threads()
    expected = net.predict(x)
    try:
        mc.set_num_threads(10**30)
        assert net.predict(x).tobytes() == expected.tobytes()
        assert block.WORDS[block.SPLIT] == block.MOST
    finally:
        mc.set_num_threads(before)


def test_a_wish_holds_in_every_python_thread(net):
    x, t = images(4)
    before = mc.get_num_threads()
    seen = []

    def work():
        net.train_step(x, t)
        seen.append(block.WORDS[block.SPLIT])
    try:
        for count in (2, 3):
            mc.set_num_threads(count)
            run_all(work)
        assert seen == [2, 3]
    finally:
        mc.set_num_threads(before)


def run_all(*functions: Callable[[], object]) -> None:
    """Each function in a Python thread of its own; raises what one of them raised."""
    errors = []

    def guarded(function):
        try:
            function()
        except BaseException as error:
            errors.append(error)
    workers = [threading.Thread(target=guarded, args=(function,)) for function in functions]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
        assert not worker.is_alive()
    if errors:
        raise errors[0]


def test_two_python_threads_and_one_net(net):
    x, t = images(4)
    expected = net.predict(x)

    def predict():
        for _ in range(200):
            assert (net.predict(x) == expected).all()
    run_all(predict, predict)

    def train():
        for _ in range(100):
            assert np.isfinite(net.train_step(x, t))
    run_all(train, train, lambda: [net.evaluate(x, t) for _ in range(50)], lambda: [net.parameters() for _ in range(50)])


TOGETHER = """
import sys, threading
import numpy as np
import microcnn as mc
mc.set_num_threads(2)
def make():
    graph = mc.Sequential([mc.Conv2d(16, 3, padding=1), mc.ReLU(), mc.Flatten(), mc.Linear(10)], (16, 16, 16)).graph()
    return graph.compile(batch=64, train="all", loss="cross_entropy", optimizer=mc.SGD(lr=0.01))
rng = np.random.default_rng(0)
x, t = rng.standard_normal((64, 16, 16, 16)).astype(np.float32), rng.integers(0, 10, 64)
alone = make()
expected = [alone.train_step(x, t) for _ in range(20)]
found = {}
def work(name):
    net = make()
    found[name] = [net.train_step(x, t) for _ in range(20)]
workers = [threading.Thread(target=work, args=(name,)) for name in range(3)]
[worker.start() for worker in workers]
[worker.join() for worker in workers]
assert len(found) == 3 and all(losses == expected for losses in found.values()), (expected, found)
"""


def test_several_nets_in_several_python_threads():
    fresh(TOGETHER)


def test_several_nets_where_numbas_own_threads_run_the_loops(tmp_path):
    # as with a numba whose internals are not what we know; two Python threads in workqueue abort the process, but for a lock
    code = "from microcnn.kernels import compiler\ncompiler.OWN = False\nmicrocnn.threads.numbas = True\n" + TOGETHER.replace(
        "16, 3", "4, 3") + """
from microcnn import team
import numba
y = alone.predict(x)
mc.set_num_threads(1)
print(numba.threading_layer(), team._threads, alone.predict(x).tobytes() == y.tobytes())
"""
    assert fresh(code, timeout=600, NUMBA_THREADING_LAYER="workqueue", NUMBA_CACHE_DIR=str(tmp_path)) == "workqueue [] True"


def test_a_step_lets_other_python_threads_run():
    # a step so long that a thread which had to wait for it would count nothing
    code = """
import threading
import numpy as np
import microcnn as mc
graph = mc.Sequential([mc.Conv2d(16, 3, padding=1), mc.ReLU(), mc.Flatten(), mc.Linear(10)], (16, 64, 64)).graph()
net = graph.compile(batch=64)
x = np.zeros((512, 16, 64, 64), np.float32)
out = np.empty((512, 10), np.float32)
net.predict(x[:64])
running, count, during = True, 0, []
import sys
sys.setswitchinterval(10)       # no thread is interrupted: the other runs only where the GIL is let go
def tick():
    global count
    event = threading.Event()
    while running:
        count += 1
        event.wait(0.001)
ticker = threading.Thread(target=tick)
ticker.start()
program = net._programs["predict"][0]
execute = program.execute
def watched(address, batch):
    before = count
    execute(address, batch)
    during.append(count - before)
program.execute = watched
net.predict(x, out=out)
running = False
ticker.join()
print(sum(during), len(during))
"""
    ticks, steps = map(int, fresh(code).split())
    assert steps == 8
    assert ticks > 0


def in_child(work: Callable[[], object]) -> None:
    """Run in a forked child; raises AssertionError unless it ends well, and soon."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException:
            import traceback
            traceback.print_exc()
        finally:
            os._exit(status)
    timer = threading.Timer(60, os.kill, (pid, 9))
    timer.start()
    _, status = os.waitpid(pid, 0)
    timer.cancel()
    assert status == 0, f"the child ended with {status}: it failed, died or hung"


FORK = """
import os, threading
import numpy as np
import microcnn as mc
from tests.test_threads import in_child
mc.set_num_threads(2)
def make(train="all"):
    graph = mc.Sequential([mc.Conv2d(16, 3, padding=1), mc.ReLU(), mc.Flatten(), mc.Linear(10)], (16, 16, 16)).graph()
    return graph.compile(batch=64, train=train, loss="cross_entropy", optimizer=mc.SGD(lr=0.01))
rng = np.random.default_rng(0)
x, t = rng.standard_normal((64, 16, 16, 16)).astype(np.float32), rng.integers(0, 10, 64)
net, other = make(), make()
assert mc.get_num_threads() == 2
net.train_step(x, t), other.train_step(x, t)       # the parent's threads run now
y = net.predict(x)
loss = net.train_step(x, t)
def work():
    assert mc.get_num_threads() == 1
    assert other.predict(x).tobytes() == y.tobytes()
    assert other.train_step(x, t) == loss
    fresh = make("head")                           # compiling goes on too
    fresh.train_step(x, t)
    y2 = fresh.forward(x)
    fresh.backward(y2)
"""


def test_a_forked_child_goes_on_serially():
    code = FORK + "in_child(work)\nassert other.train_step(x, t) == loss\nprint(mc.get_num_threads())"
    assert fresh(code) == "2"


def test_a_fork_while_other_threads_step_and_compile():
    # a lock that another thread holds at the fork is held for ever in the child: it has to be a new one there
    code = FORK + """
from microcnn import store
go, done = threading.Event(), threading.Event()
def hold():
    with other._lock, store._lock:
        go.set()
        done.wait()
holder = threading.Thread(target=hold, daemon=True)
holder.start()
go.wait()
in_child(work)
done.set()
holder.join()
"""
    fresh(code)


def test_a_pool_of_forked_processes():
    code = FORK.replace("import os, threading", "import os, threading, multiprocessing") + """
def predict(part):
    return other.predict(part)
with multiprocessing.get_context("fork").Pool(2) as pool:
    parts = pool.map_async(predict, [x[:32], x[32:]]).get(60)
assert np.concatenate(parts).tobytes() == y.tobytes()
"""
    fresh(code)


def test_spinning_is_bounded_and_the_users_choice_stays():
    code = """
import os
import microcnn as mc
mc.Sequential([mc.Flatten(), mc.Linear(3)], (2, 2, 2)).graph().compile()
print(os.environ["GOMP_SPINCOUNT"])
"""
    before = os.environ.pop("GOMP_SPINCOUNT", None)
    try:
        assert fresh(code) == str(threads.LOOKS)
        assert fresh(code, GOMP_SPINCOUNT="7") == "7"
    finally:
        if before is not None:
            os.environ["GOMP_SPINCOUNT"] = before
