"""Which work is worth waking threads for."""
import numpy as np
import pytest

import microcnn as mc
from microcnn import waking

from .test_threads import fresh
from .tiny import compiled, images


def test_it_is_measured_once(monkeypatch):
    calls = []
    monkeypatch.setattr(waking, "_least_work", None)
    monkeypatch.setattr(waking, "measured", lambda count: calls.append(count) or 12_345)
    assert [waking.least_work(2), waking.least_work(3)] == [12_345, 12_345] and calls == [2]


def test_the_measure_is_a_number_of_operations():
    told = fresh("import microcnn as mc\nmc.set_num_threads(2)\nfrom microcnn import threads, waking\n"
                 "threads.prepare_environment()\nimport microcnn.layers, microcnn.kernels\n"
                 "found = waking.measured(2)\nprint(type(found).__name__, 0 <= found < 10**11)")
    assert told == "int True"


@pytest.mark.parametrize("least", [0, 2**62])
def test_it_changes_nothing_but_the_time(least, monkeypatch):
    x, t = images(4)
    wanted = compiled(batch=4)
    wanted.train_step(x, t)
    monkeypatch.setattr(waking, "_least_work", least)
    before = mc.get_num_threads()
    mc.set_num_threads(2)
    try:
        net = compiled(batch=4)
        net.train_step(x, t)
    finally:
        mc.set_num_threads(before)
    for name, array in net.parameters().items():
        np.testing.assert_array_equal(array, wanted.parameters()[name])
