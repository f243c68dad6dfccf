"""Convolutions behind which a max pooling lies: dW and dX from the winners of its windows."""
import itertools

import numpy as np
import pytest

import microcnn as mc
from microcnn.kernels.simd import lanes_of
from microcnn.layers import conv2d
from tests.ops.table import Case, built, chain, table

CHOICES = {"both": (True, True), "weights": (True, False), "input": (False, True), "none": (False, False)}
ROWS = {"conv2d_winners.backward_weight": "weights", "conv2d_winners_input.backward_input": "input"}


def choose(monkeypatch, choice):
    """Let all that the kernels are made for run so, whatever it costs."""
    weights, inputs = CHOICES[choice]
    monkeypatch.setattr(conv2d, "winners_pay", lambda s, g, winners, needs_dx: (weights, inputs and needs_dx))


# Windows of up to seven rows, of one register and two; with and without bias, activation and padding.
CASES = [Case(name, build, batch) for name, build, batch in (
    ("3x3", chain((1, 8, 8), mc.Conv2d(4, 3, padding=1), mc.ReLU(), mc.MaxPool2d(2)), 2),
    ("5x5-no-bias", chain((1, 11, 10), mc.Conv2d(3, 5, bias=False), mc.ReLU6(), mc.MaxPool2d(2)), 3),
    ("two-registers", chain((3, 8, 7), mc.Conv2d(5, 5, padding=2), mc.MaxPool2d(2)), 2),
    ("7x7-strided", chain((1, 15, 14), mc.Conv2d(17, 7, stride=2, padding=3), mc.ReLU(), mc.MaxPool2d((2, 3))), 1),
    ("1x1-strided", chain((3, 9, 6), mc.Conv2d(5, 1, stride=(2, 1)), mc.ReLU(), mc.MaxPool2d(3)), 2),
    ("2x3-dilated", chain((2, 7, 8), mc.Conv2d(4, (2, 3), dilation=(3, 1), padding=(2, 0, 1, 3)), mc.MaxPool2d((1, 2))), 2),
    ("ceil", chain((2, 9, 9), mc.Conv2d(4, 3), mc.ReLU(), mc.MaxPool2d(2, ceil_mode=True)), 2),
    ("rest", chain((2, 9, 8), mc.Conv2d(4, 3), mc.ReLU(), mc.MaxPool2d(3)), 2),
    ("conv-pool-conv-pool", chain((1, 12, 12), mc.Conv2d(2, 3, padding=1), mc.ReLU(), mc.MaxPool2d(2), mc.Conv2d(5, 3),
                                  mc.ReLU(), mc.MaxPool2d(2), mc.Flatten(), mc.Linear(3)), 9),
    ("batch-norm-before", chain((2, 6, 6), mc.BatchNorm2d(), mc.Conv2d(3, 3), mc.ReLU(), mc.MaxPool2d(2)), 2))]


@pytest.mark.parametrize("choice", ["both", "weights", "input"])
@table(CASES)
def test_winners(case, check, choice, monkeypatch):
    choose(monkeypatch, choice)
    check(case)


def rows_of(graph, **options):
    """The kernels of a training step, by layer."""
    net = graph.compile(batch=4, train="all", loss="mse", optimizer=mc.SGD(lr=0.1), **options)
    program, _ = net._programs["train"]
    return {(info.layer, info.kernel) for info in program.infos}


@pytest.mark.parametrize("choice", CHOICES)
def test_which_rows_run(choice, monkeypatch):
    choose(monkeypatch, choice)
    rows = rows_of(CASES[8].graph())
    for kernel, what in ROWS.items():
        assert (("conv2", kernel) in rows) == (choice in ("both", what))
    assert (("maxpool2", "maxpool2d.backward") in rows) == (choice != "both")
    assert (("maxpool1", "maxpool2d.backward") in rows) == (choice in ("input", "none"))


@pytest.mark.parametrize("conv, pool", [
    (mc.Conv2d(4, 3, groups=2), mc.MaxPool2d(2)), (mc.Conv2d(4, 3, dilation=(1, 2)), mc.MaxPool2d(2)),
    (mc.Conv2d(4, (8, 3)), mc.MaxPool2d(2)), (mc.Conv2d(4, 3), mc.MaxPool2d(3, stride=2)),
    (mc.Conv2d(4, 3), mc.MaxPool2d(2, padding=1)), (mc.Conv2d(4, 3), mc.MaxPool2d(2, stride=2, dilation=2))])
def test_what_the_kernels_are_not_made_for(conv, pool, monkeypatch):
    choose(monkeypatch, "both")
    rows = rows_of(built((2, 14, 14), conv, mc.ReLU(), pool, mc.Flatten(), mc.Linear(2)))
    assert not {kernel for _, kernel in rows} & set(ROWS)


def test_a_pooling_that_is_not_the_only_reader(monkeypatch):
    choose(monkeypatch, "both")
    b = mc.GraphBuilder(seed=3)
    y = b(mc.Conv2d(3, 3), b.input("x", (1, 8, 8)))
    graph = b.graph(b(mc.Add(), b(mc.GlobalAvgPool2d(), y), b(mc.GlobalAvgPool2d(), b(mc.MaxPool2d(2), y))))
    assert not {kernel for _, kernel in rows_of(graph)} & set(ROWS)


@pytest.mark.skipif(lanes_of("float32") != 16, reason="what pays is said for registers of 16 numbers")
def test_the_choice_follows_the_cost():
    """A large window and few channels: from the winners. Many channels: register tiles."""
    few = {kernel for _, kernel in rows_of(built((1, 28, 28), mc.Conv2d(6, 5, padding=2), mc.ReLU(), mc.MaxPool2d(2),
                                                 mc.Flatten(), mc.Linear(3)))}
    many = {kernel for _, kernel in rows_of(built((3, 28, 28), mc.Conv2d(64, 3, padding=1), mc.ReLU(), mc.MaxPool2d(2),
                                                  mc.Flatten(), mc.Linear(3)))}
    assert "conv2d_winners.backward_weight" in few
    assert not many & set(ROWS)


def test_equal_numbers_and_frozen_weights(monkeypatch):
    """Ties go to the first; a weight that does not train gets no gradient, its input still does."""
    graph = built((1, 8, 8), mc.Conv2d(3, 3, padding=1), mc.MaxPool2d(2), mc.Conv2d(4, 3), mc.ReLU(), mc.MaxPool2d(2),
                  mc.Flatten(), mc.Linear(2))
    results = []
    x = np.round(np.random.default_rng(1).random((5, 1, 8, 8)) * 2)
    target = np.random.default_rng(2).random((5, 2))
    for choice, train in itertools.product(("both", "none"), ("all", ["conv1*", "linear*"])):
        choose(monkeypatch, choice)
        net = graph.compile(batch=5, train=train, loss="mse", optimizer=mc.SGD(lr=0.1), dtype="float64")
        net.train_step(x, target)
        results.append(net.parameters())
    for first, second in zip(results[:2], results[2:], strict=True):
        for name in first:
            np.testing.assert_allclose(first[name], second[name], rtol=1e-10, atol=1e-13)
