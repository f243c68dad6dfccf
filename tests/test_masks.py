"""Bits in place of a clamp's output: the same gradients, in less memory, and only where nothing else wants the output."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import microcnn as mc
from microcnn import plan
from microcnn.masks import Masked

from .ops.table import built, poison
from .test_recompute import GRAPHS, samples
from .tiny import same


def clamps_only() -> mc.Graph:
    """Without batch norm: clamps inside convolutions, behind a sum, alone, and twice in a row."""
    b = mc.GraphBuilder(seed=3)
    x = b(mc.ReLU6(), b(mc.Conv2d(8, 3, padding=1), b.input("x", (3, 12, 12))))
    y = b(mc.ReLU(), b(mc.Conv2d(8, 3, padding=1), x))
    x = b(mc.ReLU(), b(mc.Add(), b(mc.Conv2d(8, 3, padding=1), y), x))
    x = b(mc.Clip(-0.2, 0.4), b(mc.AvgPool2d(2), x))
    x = b(mc.ReLU(), b(mc.Clip(-0.1, 5.0), x))
    return b.graph(b(mc.Linear(4), b(mc.Flatten(), b(mc.MaxPool2d(2), b(mc.ReLU(), b(mc.Conv2d(5, 3), x))))))


ALL: dict[str, Any] = {**GRAPHS, "clamps": clamps_only}


def compiled(graph: mc.Graph, monkeypatch: pytest.MonkeyPatch, masked: bool, **how: Any) -> mc.Net:
    with monkeypatch.context() as patch:
        if not masked:
            patch.setattr(plan, "mask_clamps", lambda rows, buffers, batch: Masked(list(rows)))
        return graph.compile(**{"batch": 6, "loss": "cross_entropy", "optimizer": mc.SGD(lr=0.05, momentum=0.9), **how})


@pytest.mark.parametrize("bn", ["frozen", "batch", "fold"])
@pytest.mark.parametrize("train", ["all", "biases", "last:1", ["*.bias"], ["*1.weight", "*1.bias"]])
@pytest.mark.parametrize("name", ALL)
def test_the_same_bits(name, train, bn, monkeypatch):
    graph = ALL[name]()
    if bn == "fold" and name != "clamps" and not isinstance(train, str):
        train = "biases"
    nets = [compiled(graph, monkeypatch, masked, train=train, bn=bn) for masked in (True, False)]
    assert nets[0].memory.peak <= nets[1].memory.peak
    for step in range(4):
        found = []
        for net in nets:
            poison(net)
            found.append(net.train_step(*samples(step)))
        assert found[0] == found[1]
    assert same(*(net.parameters() for net in nets))
    x, t = samples(9)
    assert nets[0].train_step(x[:5], t[:5]) == nets[1].train_step(x[:5], t[:5])     # not all of the planned samples


@pytest.mark.parametrize("how", [{"micro_batch": 2}, {"micro_batch": 4, "recompute": True}, {"recompute": True},
                                 {"dtype": "float64"}], ids=str)
def test_with_other_ways_to_save_memory(how, monkeypatch):
    nets = [compiled(clamps_only(), monkeypatch, masked, train="biases", **how) for masked in (True, False)]
    for step in range(3):
        x, t = samples(step)
        assert nets[0].train_step(x, t) == nets[1].train_step(x, t)
    assert same(*(net.parameters() for net in nets))


def test_recompute_takes_no_more(monkeypatch):
    """A clamp behind a clamp is made again of the first one, which bits would not let go."""
    graph = built((3, 12, 12), mc.Conv2d(5, 3, padding=1), mc.BatchNorm2d(), mc.Clip(-0.4, 0.8), mc.ReLU(), mc.BatchNorm2d(),
                  mc.Clip(-0.4, 0.8), mc.ReLU(), mc.Conv2d(5, 3, padding=1), mc.ReLU(), mc.Flatten(), mc.Linear(4))
    nets = [compiled(graph, monkeypatch, masked, train="all", recompute=True) for masked in (True, False)]
    assert nets[0].memory.peak <= nets[1].memory.peak
    for step in range(2):
        for net in nets:
            poison(net)
        assert nets[0].train_step(*samples(step)) == nets[1].train_step(*samples(step))
    assert same(*(net.parameters() for net in nets))


@pytest.mark.parametrize("name", ["residual", "clamps"])
def test_biases_take_less(name, monkeypatch):
    """What is kept for the biases of a network are bits: with many channels hardly more than running it takes."""
    graph = ALL[name]()
    kept, less = (compiled(graph, monkeypatch, masked, train="biases", batch=32, winograd=False).memory.beside_parameters
                  for masked in (False, True))
    assert less < 0.8 * kept


def test_what_something_else_reads_is_kept(planned, monkeypatch):
    """Where weights train their gradients need the clamps' outputs: bits would come on top."""
    graph = built((3, 12, 12), mc.Conv2d(8, 3), mc.ReLU(), mc.Conv2d(8, 3), mc.ReLU(), mc.Flatten(), mc.Linear(4))
    compiled(graph, monkeypatch, True, train="all")
    assert not [row for row in planned["train"].rows if row.kernel.startswith("masks.")]
    compiled(graph, monkeypatch, True, train="biases")
    rows = planned["train"].rows
    # of the first clamp only bits are wanted, and of the second one, whose reader's weight does not train either
    assert [row.kernel for row in rows if row.kernel.startswith("masks.")] == ["masks.pack"] * 2 + ["masks.backward"] * 2
    assert not [row for row in rows if row.kernel == "activation.backward"]
    assert {row.phase for row in rows if row.kernel == "masks.pack"} == {"forward"}


def test_gradients_by_hand_keep_outputs(monkeypatch):
    """forward and backward of one's own are two programs: dX agrees with that of a step."""
    graph = clamps_only()
    net = compiled(graph, monkeypatch, True, train="biases")
    x, t = samples(0)
    expected = compiled(graph, monkeypatch, True, train="biases", micro_batch=3).loss_gradients(x, t)
    y = net.forward(x)
    soft = np.exp(y - y.max(1, keepdims=True))
    soft /= soft.sum(1, keepdims=True)
    soft[np.arange(6), t] -= 1
    net.backward((soft / 6).astype(np.float32))
    for name, gradient in net.gradients().items():
        np.testing.assert_allclose(gradient, expected[name], rtol=1e-4, atol=1e-6)
