"""Memory: what the plan says is what is allocated, to the byte; nothing overlaps; a step allocates nothing."""
from __future__ import annotations

import gc
import re
import tracemalloc
from collections.abc import Callable
from itertools import repeat
from pathlib import Path

import numpy as np
import pytest

import microcnn as mc
from microcnn.entries import ENTRIES
from microcnn.memory import ALIGNMENT, most_live
from microcnn.plan import Schedule
from microcnn.planned import Planned

from .tiny import compiled, convolutional, images


@pytest.fixture(scope="module")
def net():
    """A network with every kind of memory, trained for a step so that all code is loaded."""
    net = compiled(bn="batch")
    net.train_step(*images(4))
    return net


def residual(train="all", **arguments):
    """Two branches that meet, a gradient that two layers need, a frozen or trained trunk."""
    b = mc.GraphBuilder()
    x = b.input("input", (2, 6, 6))
    first = b(mc.Conv2d(4, 3, padding=1, name="first"), x)
    y = b(mc.ReLU(), b(mc.Conv2d(4, 3, padding=1, name="second"), first))
    y = b(mc.Linear(3, name="head"), b(mc.Flatten(), b(mc.Add(), first, y)))
    return compiled(b.graph(y), train=train, **arguments)


def intervals(schedule: Schedule) -> dict[object, tuple[int, int]]:
    """Each buffer's life from the rows themselves: the first that writes it to the last that touches it."""
    found: dict[object, tuple[int, int]] = {}
    lasting = {id(p.buffer) for p in schedule.store.parameters.values()}
    lasting |= {id(buffer) for states in schedule.store.states.values() for buffer in states}
    lasting |= {id(buffer) for buffer, _ in schedule.store.constants.values()}
    for number, row in enumerate(schedule.rows):
        for field, mode in ENTRIES[row.kernel].modes.items():
            buffer = row.fields[field]
            if buffer is None or id(buffer) in lasting:
                continue
            if buffer not in found and not buffer.held:
                assert mode in ">=", f"row {number}, {row.kernel}: reads {buffer.name}, which nothing has written"
            found[buffer] = found.get(buffer, (number, number))[0], number
    prepared = {buffer for row in schedule.prepared for field in ENTRIES[row.kernel].modes
                if (buffer := row.fields[field]) is not None and id(buffer) not in lasting}
    for buffer in {*found, *prepared}:
        if buffer.held or buffer in prepared:
            found[buffer] = 0, len(schedule.rows)
    return found


def rounded(size: int) -> int:
    return (size + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT


CASES = [dict(), dict(bn="batch"), dict(bn="fold"), dict(train="head"), dict(train=None, loss=None, optimizer=None),
         dict(train=["conv1.*"]), dict(batch=7, optimizer=mc.SGD(lr=0.1))]


@pytest.mark.parametrize("arguments", CASES, ids=str)
def test_lower_bound_and_no_overlap(planned, arguments):
    net = compiled(**arguments)
    check_plan(net, planned)


@pytest.mark.parametrize("train", ["all", "head", ["first.*"]])
def test_lower_bound_and_no_overlap_with_branches(planned, train):
    check_plan(residual(train), planned)


def check_plan(net: mc.Net, planned: dict[str, Schedule]) -> None:
    store = net._store
    lasting = [p.buffer for p in store.parameters.values()]
    lasting += [buffer for buffers in store.states.values() for buffer in buffers]
    lasting += [buffer for buffer, _ in store.constants.values()]
    fixed = net._control_bytes + sum(rounded(buffer.bytes) for buffer in lasting)
    bound, peaks = 0, {}
    assert set(planned) == set(net._programs)
    for program, schedule in planned.items():
        lives = intervals(schedule)
        assert set(lives) == set(schedule.buffers)
        for number in range(len(schedule.rows) + 1):
            live = [buffer for buffer, (first, last) in lives.items() if first <= number <= last]
            peaks[program, number] = sorted((buffer.layer, buffer.name, buffer.kind, buffer.bytes, buffer.offset)
                                            for buffer in lasting + live)
            bound = max(bound, sum(rounded(buffer.bytes) for buffer in live))
            places = sorted((buffer.offset, buffer.offset + buffer.bytes, buffer.name) for buffer in lasting + live)
            assert places[0][0] >= net._control_bytes
            assert places[-1][1] <= net.memory.arena
            for (_, end, one), (begin, _, other) in zip(places, places[1:], strict=False):
                assert end <= begin, f"row {number}: {one} and {other} overlap"
            assert all(begin % ALIGNMENT == 0 for begin, _, _ in places)
    assert net.memory.lower_bound == fixed + bound
    assert net.memory.lower_bound <= net.memory.arena <= 1.1 * net.memory.lower_bound
    check_peak(net, planned, peaks)


def check_peak(net: mc.Net, planned: dict[str, Schedule], live: dict[tuple[str, int], list[tuple]]) -> None:
    """live: by program and row, layer, name, kind, bytes and offset of what lives; the control block is not among it."""
    sums = {moment: net._control_bytes + sum(entry[3] for entry in held) for moment, held in live.items()}
    memory, peak = net.memory, net.memory.fullest
    assert memory.peak == max(sums.values()) == sums[peak.program, peak.row] <= memory.lower_bound
    most = {program: max(size for (name, _), size in sums.items() if name == program) for program in planned}
    assert peak.program == next(name for name in ("train", "predict", "evaluate") if most.get(name) == memory.peak)
    assert peak.row == min(row for (name, row), size in sums.items() if (name, size) == (peak.program, memory.peak))
    row = planned[peak.program].rows[peak.row]
    assert (memory.peak_layer, peak.rows) == (row.layer, len(planned[peak.program].rows))
    assert memory.peak_phase == row.phase or row.phase == "layout"
    held = [(b.layer, b.name, b.kind, b.bytes, b.offset) for b in memory.at_peak]
    control = ("control", "control block", "scratch", net._control_bytes, 0)
    assert sorted(held) == sorted([*live[peak.program, peak.row], control])
    assert [entry[3] for entry in held] == sorted((entry[3] for entry in held), reverse=True)
    assert memory.beside_parameters == memory.arena - memory.parameters


def test_the_arena_is_what_is_allocated(net):
    assert net._arena.nbytes == net.memory.arena
    assert net._arena.ctypes.data % 64 == 0
    assert net.memory.manual == 0
    x, _ = images(4)
    net.forward(x)
    assert net.memory.manual == net._manual._arena.nbytes > 0


def test_tables_beside_the_arena_are_small():
    x, t = images(4)
    graph = convolutional()
    compiled(graph).train_step(x, t)       # loads all code
    gc.collect()
    tracemalloc.start()
    try:
        net = compiled(graph)
        net.train_step(x, t)
        net.predict(x)
        gc.collect()
        allocated, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 0 < allocated - net.memory.arena <= 64 * 1024


# In 1,000 steps, for each of them: a thread that looks for work holds a few objects, one that sleeps does not.
LESS_THAN_AN_OBJECT = 1000


def rss() -> int:
    return int(re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024


def grown(step: Callable[[], object]) -> int:
    """By how many bytes Python's memory grows in 1,000 steps."""
    traced = np.zeros(2, np.int64)      # an int of Python's would count too
    gc.collect()
    tracemalloc.start()
    try:
        for place in range(2):
            # a hundred first: Python keeps small objects that were freed for later ones
            for _ in repeat(None, 1000 if place else 100):
                step()
            traced[place] = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    return int(traced[1] - traced[0])


def test_a_step_allocates_nothing(net):
    x, t = images(4)
    assert grown(lambda: net.train_step(x, t)) < LESS_THAN_AN_OBJECT
    before = rss()
    for _ in range(1000):
        net.train_step(x, t)
    assert rss() - before <= 64 * 1024


def test_predict_allocates_nothing_but_what_it_returns(net):
    x, _ = images(4)
    out = np.empty((4, 3), np.float32)
    net.predict(x, out=out)
    assert grown(lambda: net.predict(x, out=out)) < LESS_THAN_AN_OBJECT


@pytest.mark.parametrize("dtype, size", [("float32", 4), ("float64", 8)])
def test_parameters_are_the_bytes_of_the_weights(dtype, size):
    graph = convolutional()
    for arguments in dict(), dict(train=None, loss=None, optimizer=None), dict(train="head"):
        net = compiled(graph, dtype=dtype, **arguments)
        assert net.memory.parameters == sum(array.size for array in graph.weights.values()) * size


def test_layers_add_up(net):
    memory = net.memory
    assert [layer.name for layer in memory.layers][:6] == [node.name for node in net.graph.nodes]
    assert sum(layer.parameters for layer in memory.layers) == memory.parameters
    assert sum(layer.state for layer in memory.layers) == memory.state
    # these share memory over time: all together are no less than the most at one time
    for kind in ("gradients", "activations"):
        assert sum(getattr(layer, kind) for layer in memory.layers) >= getattr(memory, kind) - 64 * len(memory.layers) * 4
    by_name = {layer.name: layer for layer in memory.layers}
    assert by_name["conv1"].parameters == 4 * (4 * 2 * 9 + 4)
    assert by_name["conv1"].state == by_name["conv1"].gradients == by_name["conv1"].parameters
    assert by_name["bn1"].parameters == 4 * 4 * 4 and by_name["bn1"].state == 2 * 4 * 4
    assert by_name["input"].activations == x_bytes(net)
    # the pool keeps its output and one byte of index for each number of it, not its input
    outputs = 4 * 4 * 3 * 3
    assert by_name["maxpool1"].activations == outputs * 4 + outputs


def x_bytes(net: mc.Net) -> int:
    return net.batch * 2 * 6 * 6 * 4


def test_state_by_optimizer():
    trained = 4 * sum(array.size for name, array in convolutional().weights.items() if "running" not in name)
    for optimizer, copies in (mc.SGD(lr=0.1), 0), (mc.SGD(lr=0.1, momentum=0.9), 1), (mc.Adam(), 2):
        assert compiled(optimizer=optimizer).memory.state == copies * trained
    assert compiled(train="head", optimizer=mc.Adam()).memory.state == 2 * 4 * (3 * 36 + 3)


def test_memory_prints_as_a_table(net):
    text = str(net.memory)
    assert re.search(rf"^arena +{net.memory.arena:,} ", text, re.M)
    assert re.search(rf"^peak +{net.memory.peak:,} ", text, re.M)
    assert f"peak: {net.memory.peak_phase} of {net.memory.peak_layer}, row {net.memory.fullest.row + 1} of " in text
    largest = net.memory.at_peak[0]
    assert re.search(rf"^ +{largest.bytes:,} {largest.kind} +{largest.layer}: {re.escape(largest.name)}$", text, re.M)
    assert re.search(rf"^conv1 +Conv2d +{net.memory.layers[0].parameters:,} ", text, re.M)


def test_long_names_leave_the_table_readable():
    name = ";".join(f"model/batch_normalization_{i}/FusedBatchNormV3" for i in range(5))
    text = str(mc.Sequential([mc.Flatten(), mc.Linear(3, name=name)], (2, 2, 2)).graph().compile(batch=2).memory)
    assert re.search(r"^model/batch\.\.\..*FusedBatchNormV3 +Linear ", text, re.M)
    assert max(map(len, text.splitlines())) < 140


@pytest.mark.parametrize("lives, expected", [
    ([], (0, 0)), ([(5, 3, 3)], (5, 3)), ([(5, 0, 2), (7, 2, 4)], (12, 2)), ([(5, 0, 2), (5, 3, 4)], (5, 0)),
    ([(4, 0, 9), (3, 1, 1), (3, 5, 6)], (7, 1)), ([(4, 0, 1), (4, 2, 3), (1, 3, 3)], (5, 3))])
def test_the_first_row_with_the_most_bytes(lives, expected):
    assert most_live(lives) == expected


def test_the_peak_of_whichever_program_needs_most():
    """Trained alone, a head needs little: with Winograd's algorithm prediction needs more."""
    graph = mc.Sequential([mc.Conv2d(48, 3, padding=1), mc.ReLU(), mc.Conv2d(48, 3, padding=1), mc.ReLU(),
                           mc.AvgPool2d(16), mc.Flatten(), mc.Linear(3)], input_shape=(3, 16, 16)).graph()
    how = dict(batch=1, loss="cross_entropy", optimizer=mc.SGD(lr=0.1), winograd=True)
    everything, predicting = Planned(graph, train="all", **how), Planned(graph, **{**how, "optimizer": None})
    for planned in everything, predicting:
        found = {name: max(sum(block.bytes for block in planned.blocks(name)[1] if block.first <= row <= block.last)
                           for row in range(len(planned.rows(name)))) for name in planned._blocks}
        assert found[planned.memory.fullest.program] == max(found.values())
    assert everything.memory.fullest.program == predicting.memory.fullest.program == "predict"
    assert everything.memory.peak_phase == "forward" and everything.rows("train")[-1].part == "update"
    assert Planned(graph, train="all", **{**how, "batch": 16, "winograd": False}).memory.fullest.program == "train"


def test_frozen_layers_keep_nothing():
    arenas = [compiled(train=train, loss=loss, optimizer=optimizer, batch=16).memory for train, loss, optimizer in (
        (None, None, None), ("head", "cross_entropy", mc.SGD(lr=0.1)), ("all", "cross_entropy", mc.SGD(lr=0.1)))]
    inference, head, everything = arenas
    assert inference.arena <= head.arena < everything.arena
    assert inference.gradients == inference.state == 0
    layers = {layer.name: layer for layer in head.layers}
    assert layers["conv1"].gradients == layers["bn1"].gradients == layers["maxpool1"].gradients == 0
    assert layers["maxpool1"].activations == 16 * 36 * 4      # no indices


def test_a_factor_of_0_freezes():
    """No gradient, no state, no backward: to the byte what naming only the others gives."""
    frozen, head = (compiled(train=train, optimizer=mc.Adam(lr=0.1))
                    for train in ({"*": 1, "conv1.*": 0, "bn1.*": 0.0}, ["linear1.*"]))
    assert (frozen.memory.arena, frozen.memory.gradients, frozen.memory.state) == (
        head.memory.arena, head.memory.gradients, head.memory.state)
    assert frozen.memory.arena < compiled(optimizer=mc.Adam(lr=0.1)).memory.arena
    layers = {layer.name: layer for layer in frozen.memory.layers}
    assert layers["conv1"].gradients == layers["conv1"].state == 0 < layers["linear1"].state
    everything = compiled(train={"*": 0}).memory
    assert everything.gradients == everything.state == 0


def test_backward_stops_at_the_first_trainable_layer(planned):
    compiled(train="head")
    backward = [row.layer for row in planned["train"].rows if row.phase == "backward"]
    assert set(backward) == {"linear1"}
    compiled(train=["bn1.*"])
    backward = [row.layer for row in planned["train"].rows if row.phase == "backward"]
    assert set(backward) == {"linear1", "maxpool1", "bn1"}


@pytest.mark.parametrize("batch", [2**24, 2**22])
def test_absurd_batches_are_refused_before_anything_is_allocated(batch):
    compiled()
    graph = mc.Sequential([mc.Conv2d(64, 3, padding=1), mc.Flatten(), mc.Linear(3)], (2, 64, 64)).graph()
    tracemalloc.start()
    try:
        with pytest.raises(mc.CompileError, match=rf"batch {batch} needs an arena of [\d,]+ bytes; this machine has [\d,]+\. "
                                                  "Use a smaller batch"):
            graph.compile(batch=batch)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2 * 1024**2
