"""A budget is kept to the byte; what is left out is what carries least, measured on samples; or the smallest one is named."""
from __future__ import annotations

import re

import numpy as np
import pytest

import microcnn as mc
from microcnn.budget import Item, Search, choose, size_of_plan
from microcnn.fisher import fisher_information
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


def test_fisher_information_is_that_of_each_sample():
    """Against the manual programs, one sample at a time."""
    graph = residual()
    x, t = samples(5)
    how = {**HOW, "dtype": "float64"}
    found, measured = fisher_information(graph, how, (x, t))
    assert measured == "5 samples"
    net = graph.compile(batch=1, **how)
    expected = {name: np.zeros(len(array)) for name, array in found.items()}
    for i in range(5):
        logits = net.forward(x[i:i + 1])
        power = np.exp(logits - logits.max())
        net.backward(power / power.sum() - np.eye(4)[t[i:i + 1]])
        for name, gradient in net.gradients().items():
            expected[name] += (gradient ** 2).reshape(len(gradient), -1).sum(1)
    for name, each in expected.items():
        np.testing.assert_allclose(found[name], each, rtol=1e-8, atol=1e-12)


def test_what_contributes_most_trains():
    """Of two weights of one size, one of which the loss hardly feels, the other is chosen."""
    b = mc.GraphBuilder(seed=1)
    x = b.input("x", (3, 12, 12))
    x = b(mc.GlobalAvgPool2d(), x)
    x = b(mc.Flatten(), x)
    y = b(mc.Add(), b(mc.Linear(64, name="loud"), x), b(mc.Linear(64, name="faint"), x))
    graph = b.graph(b(mc.Linear(4, name="head"), b(mc.ReLU(), y)))
    for role, ref in next(node for node in graph.nodes if node.name == "loud").weights.items():
        if role == "weight":
            loud = ref.name
    faint = loud.replace("loud", "faint")
    information = {name: np.ones(graph.weights[name].shape[0]) for name in resolve_train(graph, "all")[0]}
    information[loud] *= 1000
    search = Search(graph, size_of_plan(Planned(graph, batch=1, winograd=False, train=[loud], **{
        name: value for name, value in HOW.items() if name != "train"})), {**HOW, "batch": 1})
    train = search.best(search.items(information))
    assert train and any(selector.startswith(loud) for selector in train)
    assert not any(selector == faint for selector in train)


def test_shares_of_channels():
    item = Item("w", 0.5, 8, np.arange(9.0), 100)
    assert [item.part(share) for share in (1.0, 0.5, 0.125)] == [("w", 0.5, 8.0), ("w[:4]", 0.5, 4.0), ("w[:1]", 0.5, 1.0)]
    whole = Item("w", 1.0, 0, np.array([0.0, 7.0]), 100)
    assert whole.part(0.25) == ("w", 1.0, 7.0)


def test_without_samples_it_is_measured_on_noise():
    graph = residual()
    limit = tight(graph, batch=1, **HOW)
    results = [graph.compile(batch=1, budget=limit, **HOW) for _ in range(2)]
    assert results[0].choice == results[1].choice
    assert "noise" in results[0].choice.measured and 0 < results[0].choice.contribution < 1
    text = str(results[0].choice)
    assert "not everything can train" in text and all(selector in text for selector in results[0].choice.train)


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
