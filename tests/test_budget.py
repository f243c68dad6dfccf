"""A budget is kept to the byte; what is left out is what contributes least; or the smallest budget is named."""
from __future__ import annotations

import re

import numpy as np
import pytest

import microcnn as mc
from microcnn.budget import Item, Search, by_layer, choose, size_of_plan
from microcnn.partial import resolve_train
from microcnn.planned import Planned

from .test_recompute import residual
from .tiny import compiled, same

HOW = {"train": "all", "loss": "cross_entropy", "optimizer": mc.SGD(lr=0.05, momentum=0.9)}


def samples(count: int = 8, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((count, 3, 12, 12)).astype(np.float32), rng.integers(0, 4, count)


def beside(net: mc.Net) -> int:
    return net.memory.arena - net.memory.parameters


def tight(graph: mc.Graph, **how) -> int:
    """A little more than the smallest budget."""
    with pytest.raises(mc.CompileError) as caught:
        graph.compile(budget=64, samples=samples(), **how)
    return int(1.15 * smallest(caught.value))


def smallest(error: Exception) -> int:
    found = re.search(r"needs ([\d,]+) beside its parameters: the smallest budget that works", str(error))
    assert found, error
    return int(found[1].replace(",", ""))


def test_what_fits_stays_as_it_is():
    net = compiled()
    again = compiled(budget=beside(net))
    assert again.memory.arena == net.memory.arena and again.recomputed == net.recomputed
    assert again.micro_batch == 4 and again.choice.contribution == 1.0 and net.choice is None
    assert "everything fits as it is" in str(again.choice)
    assert compiled(budget=f"{-(-beside(net) // 1024)}KB").memory.arena == compiled(budget="1MB").memory.arena


@pytest.mark.parametrize("bn", ["batch", "frozen", "fold"])
@pytest.mark.parametrize("share", [0.9, 0.6, 0.4, 0.25])
@pytest.mark.parametrize("batch", [1, 6])
def test_the_promise_is_kept(batch, share, bn):
    """By measurement: what is allocated is what is planned, and it trains."""
    graph = residual()
    limit = int(share * size_of_plan(Planned(graph, batch=batch, bn=bn, winograd=False, **HOW)))
    try:
        net = graph.compile(batch=batch, bn=bn, budget=limit, samples=samples(), **HOW)
    except mc.CompileError as error:
        assert smallest(error) > limit
        limit = smallest(error)
        net = graph.compile(batch=batch, bn=bn, budget=limit, samples=samples(), **HOW)
    assert net._arena.nbytes == net.memory.arena and beside(net) <= limit == net.choice.limit
    assert net.choice.bytes == beside(net)
    before = net.parameters()
    for step in range(3):
        net.train_step(*samples(batch, step))
    changed = {name for name, array in net.parameters().items() if array.tobytes() != before[name].tobytes()}
    assert changed and changed <= net.trained


def test_recomputation_and_parts_come_first_and_change_nothing():
    graph = residual()
    how = {**HOW, "dtype": "float64"}
    plain = graph.compile(batch=6, **how)
    for share, parts in ((0.8, False), (0.6, True)):
        net = graph.compile(batch=6, budget=int(share * beside(plain)), **how)
        assert net.choice.contribution == 1.0 and net.choice.measured == ""
        assert net.recomputed or net.micro_batch < 6
        assert not parts or net.micro_batch < 6
        twin = graph.compile(batch=6, **how)
        for step in range(3):
            x, t = samples(6, step)
            assert net.train_step(x, t) == pytest.approx(twin.train_step(x, t), rel=1e-9)
        for name, array in twin.parameters().items():
            np.testing.assert_allclose(net.parameters()[name], array, rtol=1e-8, atol=1e-10)


def test_the_smallest_budget_is_true():
    """It works, and one byte less is refused with the same answer."""
    graph = residual()
    with pytest.raises(mc.CompileError) as caught:
        graph.compile(batch=2, budget=100, samples=samples(), **HOW)
    least = smallest(caught.value)
    assert graph.compile(batch=2, budget=least, samples=samples(), **HOW).choice.bytes <= least
    with pytest.raises(mc.CompileError) as caught:
        graph.compile(batch=2, budget=least - 1, samples=samples(), **HOW)
    assert smallest(caught.value) == least


def test_a_budget_for_prediction():
    graph = residual()
    net = graph.compile(batch=8, winograd=False)
    small = graph.compile(batch=8, budget=int(0.6 * beside(net)))
    assert small.micro_batch < 8 and beside(small) <= 0.6 * beside(net)
    x, _ = samples()
    np.testing.assert_allclose(small.predict(x), net.predict(x), rtol=1e-5, atol=1e-6)
    with pytest.raises(mc.CompileError, match="the smallest budget that works. Use it, or a smaller batch"):
        graph.compile(batch=8, budget=64)


@pytest.mark.parametrize("given, what", [(dict(micro_batch=6), "micro_batch"), (dict(recompute=False), "recomputed")])
def test_what_is_asked_for_stays(given, what):
    graph = residual()
    limit = int(0.7 * beside(graph.compile(batch=6, **HOW)))
    try:
        net = graph.compile(batch=6, budget=limit, samples=samples(), **given, **HOW)
    except mc.CompileError as error:
        assert smallest(error) > limit
        return
    assert net.micro_batch == 6 if what == "micro_batch" else not net.recomputed


def test_batch_statistics_allow_no_parts():
    graph = residual()
    limit = int(0.5 * beside(graph.compile(batch=6, bn="batch", **HOW)))
    net = graph.compile(batch=6, bn="batch", budget=limit, samples=samples(), **HOW)
    assert net.micro_batch == 6


def two_sides() -> mc.Graph:
    """A loud and a faint layer of one size beside each other, and a head."""
    b = mc.GraphBuilder(seed=1)
    x = b.input("x", (3, 12, 12))
    x = b(mc.GlobalAvgPool2d(), x)
    x = b(mc.Flatten(), x)
    y = b(mc.Add(), b(mc.Linear(64, name="loud"), x), b(mc.Linear(64, name="faint"), x))
    return b.graph(b(mc.Linear(4, name="head"), b(mc.ReLU(), y)))


def search_of(graph: mc.Graph, room: list[str], **contributing: float) -> tuple[Search, list[Item]]:
    """A search within what `room` takes to train; and its items, whose channels contribute 1 but in the layers named."""
    each = {name: np.full(graph.weights[name].shape[0], contributing.get(name.partition(".")[0], 1.0))
            for name in resolve_train(graph, "all")[0]}
    limit = size_of_plan(Planned(graph, **{**HOW, "train": room}, batch=1, winograd=False))
    search = Search(graph, limit, {**HOW, "batch": 1})
    return search, search.items(each)


def test_what_contributes_most_trains():
    """Of two weights of one size, one of which contributes next to nothing, the other is chosen."""
    search, items = search_of(two_sides(), ["head.*", "loud.*"], loud=1000.0)
    total, train = search.best(items)
    assert "loud.weight" in train and not any(selector.startswith("faint.weight") for selector in train)
    whole = {item.name: item.contribution[-1] for item in items}
    assert total == sum(whole[name] for name in train)      # of whole weights


def test_a_head_comes_first():
    """Whatever else there is: what lies before it is of little use to a task that it does not know."""
    search, items = search_of(two_sides(), ["head.*", "loud.bias"], head=1e-9)
    _, train = search.best(items)
    assert {"head.weight", "head.bias"} <= set(train) and len(train) > 2


def test_parts_of_channels():
    item = Item("w", "w", 0.5, 16, np.arange(17.0), 100)
    assert [item.part(count) for count in (8, 4, 3, 1)] == [("w", 0.5, 16.0), ("w[:8]", 0.5, 8.0), ("w[:6]", 0.5, 6.0),
                                                            ("w[:2]", 0.5, 2.0)]
    few = Item("w", "w[:3]", 0.5, 3, np.arange(4.0), 100)
    assert [few.part(count)[0] for count in (8, 4, 1)] == ["w[:3]", "w[:2]", "w[:1]"]
    whole = Item("w", "w", 1.0, 0, np.array([0.0, 7.0]), 100)
    assert whole.parts == 1 and whole.part(1) == ("w", 1.0, 7.0)


def test_no_more_channels_train_than_were_asked_for():
    graph = two_sides()
    how = {**HOW, "train": ["loud.weight[:24]", "faint.weight", "head.*"]}
    limit = size_of_plan(Planned(graph, **{**how, "train": ["head.*", "loud.weight[:24]", "faint.weight[:8]"]}, batch=1,
                                 winograd=False))
    net = graph.compile(batch=1, budget=limit, samples=samples(), **how)
    counts = {name: resolve_train(graph, net.choice.train)[1].get(name, 64) for name in net.trained}
    assert net.choice.measured and counts.get("loud.weight", 0) <= 24 and sum(counts.values()) > 8


def test_layers_are_named_once():
    graph = two_sides()
    assert by_layer(graph, {"head.weight": 1.0, "loud.weight[:8]": 1.0, "head.bias": 0.5}) == \
        ["loud (weight[:8])", "head (weight, bias)"]
    graph.nodes[-1].name = "model/relu;model/dense/MatMul"
    assert by_layer(graph, {"head.bias": 1.0}) == ["model/dense/MatMul (bias)"]


def test_without_samples_it_is_measured_on_noise():
    graph = residual()
    limit = tight(graph, batch=1, **HOW)
    results = [graph.compile(batch=1, budget=limit, **HOW) for _ in range(2)]
    assert results[0].choice == results[1].choice
    assert "noise" in results[0].choice.measured and 0 < results[0].choice.contribution < 1
    text = str(results[0].choice)
    assert "not everything can train" in text and all(layer in text for layer in results[0].choice.layers)


def test_weights_stay_where_only_a_part_trains():
    graph = residual()
    limit = tight(graph, batch=1, **HOW)
    net = graph.compile(batch=1, budget=limit, samples=samples(), **HOW)
    before = net.parameters()
    net.train_step(*samples(1))
    after = net.parameters()
    for name in set(before) - net.trained:
        assert before[name].tobytes() == after[name].tobytes()
    assert not same(before, after)


def test_choose_gives_arguments_of_a_plan():
    graph = residual()
    plan = Planned(graph, batch=6, winograd=False, **HOW)
    how, choice = choose(graph, size_of_plan(plan) // 2, {**HOW, "batch": 6}, samples())
    assert size_of_plan(Planned(graph, **how)) == choice.bytes <= size_of_plan(plan) // 2


@pytest.mark.parametrize("given", [5, (samples()[0],), (samples()[0], None), (samples()[0], 3), ("a", "b"), ({}, {}),
                                   (samples()[0][:0], samples()[1][:0]), (samples()[0], samples()[1][:3])])
def test_samples_that_are_none(given):
    """Said at once, also where the budget is so large that they are not looked at."""
    with pytest.raises(mc.CompileError, match=r"samples .*; expected a pair \(x, t\)"):
        residual().compile(batch=1, budget="1GB", samples=given, **HOW)


def test_integer_inputs_are_measured_on_integers():
    graph = residual()
    graph.inputs[0].dtype = "uint8"
    net = graph.compile(batch=1, budget=tight(residual(), batch=1, **HOW), **HOW)
    assert "noise" in net.choice.measured


def test_without_a_loss_it_is_refused():
    with pytest.raises(mc.CompileError, match="the smallest budget that works"):
        residual().compile(batch=4, train="all", budget=64, samples=samples())
