"""Which rows are worth handing to threads."""
import numpy as np
import pytest

import microcnn as mc
from microcnn import waking

from .tiny import compiled, images


@pytest.fixture
def pace(monkeypatch):
    """A pace that makes trials, which other tests do without."""
    monkeypatch.setattr(waking, "fixed", None)
    return waking.Pace()


def run(pace, cost, runs):
    """So many runs, which take cost[least work] nanoseconds; the least work of each."""
    used = []
    for _ in range(runs):
        used.append(pace.least_work)
        if pace.quiet:
            pace.quiet -= 1
        else:
            pace.note(cost[used[-1]])
    return used


@pytest.mark.parametrize("quickest", waking.LEVELS)
def test_the_quickest_way_is_found_and_kept(quickest, pace):
    cost = {level: 1000 if level == quickest else 1500 for level in waking.LEVELS}
    trial = len(waking.LEVELS) * waking.RUNS
    used = run(pace, cost, trial + 100)
    assert [used[i] for i in range(0, trial, waking.RUNS)] == list(waking.LEVELS)
    assert set(used[trial:]) == {quickest}


def test_it_is_tried_anew(pace):
    first, *others = waking.LEVELS
    run(pace, {first: 1000, **dict.fromkeys(others, 1500)}, 100)
    assert pace.least_work == first
    # now somebody keeps the other processor busy
    used = run(pace, {first: 9000, others[0]: 5000, others[1]: 2000}, 3000)
    assert used[-1] == others[1]
    assert used.count(first) < 300


def test_a_winners_runs_are_timed_now_and_then(pace):
    run(pace, dict.fromkeys(waking.LEVELS, 1000), len(waking.LEVELS) * waking.RUNS)
    assert pace.settled and not pace.quiet
    timed = 0
    for _ in range(20 * waking.TIMED):
        timed += not pace.quiet
        run(pace, dict.fromkeys(waking.LEVELS, 1000), 1)
    assert timed == 20 and pace.settled


def test_one_slow_run_says_nothing(pace):
    first = waking.LEVELS[0]
    for number in range(len(waking.LEVELS) * waking.RUNS):
        pace.note(500_000 if number == 2 else 1000 if pace.least_work == first else 1100)
    assert pace.least_work == first


def test_what_takes_long_is_not_tried(pace):
    used = run(pace, dict.fromkeys(waking.LEVELS, 2 * waking.LONG), 100)
    assert set(used) == {waking.LEVELS[0]}


@pytest.mark.parametrize("least", [0, 2**62])
def test_it_changes_nothing_but_the_time(least, monkeypatch):
    x, t = images(4)
    wanted = compiled(batch=4)
    wanted.train_step(x, t)
    monkeypatch.setattr(waking, "fixed", least)
    before = mc.get_num_threads()
    mc.set_num_threads(2)
    try:
        net = compiled(batch=4)
        net.train_step(x, t)
    finally:
        mc.set_num_threads(before)
    for name, array in net.parameters().items():
        np.testing.assert_array_equal(array, wanted.parameters()[name])


def test_steps_find_out_in_threads(monkeypatch):
    monkeypatch.setattr(waking, "fixed", None)
    x, t = images(4)
    before = mc.get_num_threads()
    mc.set_num_threads(2)
    try:
        net = compiled(batch=4)
        for _ in range(len(waking.LEVELS) * waking.RUNS + 1):
            net.train_step(x, t)
    finally:
        mc.set_num_threads(before)
    assert net._programs["train"][0].pace(4).settled


def test_a_processor_that_others_take_at_times(pace):
    # threads are quick mostly, and wait for their processor for long at times
    first, *others = waking.LEVELS
    rng, used = np.random.default_rng(0), []
    for _ in range(4000):
        used.append(pace.least_work)
        slow = used[-1] == first and rng.random() < 0.6
        pace.note(2 * waking.LONG if slow else 500_000 if used[-1] == first else 900_000)
    assert used.count(first) < 1500


def test_a_pause_within_a_trial_does_not_last(pace):
    took = [1000] * 100
    took[5] = 600 * 10**9
    for one in took:
        pace.note(one)
    spent = 0
    while pace.settled:
        pace.note(10**8)
        spent += 10**8
    assert spent <= waking.MOST_STAY
