"""Tensors that backward makes again: the same bits as kept, in less memory."""
from __future__ import annotations

import numpy as np
import pytest

import microcnn as mc
from microcnn import recompute
from microcnn.memory import lower_bound
from microcnn.net import Net
from microcnn.parts import Policy
from microcnn.plan import Schedule
from microcnn.planned import Planned

from .ops.table import built, poison
from .test_memory import check_plan
from .tiny import same

HOW = {"train": "all", "loss": "cross_entropy", "optimizer": mc.SGD(lr=0.05, momentum=0.9)}


def plain() -> mc.Graph:
    return built((3, 12, 12), mc.Conv2d(8, 3, padding=1), mc.BatchNorm2d(), mc.ReLU(), mc.Conv2d(8, 3, padding=1, groups=8),
                 mc.BatchNorm2d(), mc.ReLU6(), mc.Conv2d(16, 1), mc.BatchNorm2d(), mc.Sigmoid(), mc.MaxPool2d(2),
                 mc.Dropout(0.3), mc.Conv2d(6, 3), mc.Tanh(), mc.Flatten(), mc.Linear(4))


def residual() -> mc.Graph:
    b = mc.GraphBuilder(seed=2)
    x = b(mc.ReLU(), b(mc.BatchNorm2d(), b(mc.Conv2d(8, 3, padding=1), b.input("x", (3, 12, 12)))))
    for stride in (1, 2):
        y = b(mc.ReLU(), b(mc.BatchNorm2d(), b(mc.Conv2d(8, 3, padding=1, stride=stride), x)))
        y = b(mc.BatchNorm2d(), b(mc.Conv2d(8, 3, padding=1), y))
        x = b(mc.ReLU(), b(mc.Add(), b(mc.Conv2d(8, 1, stride=stride), x), y))
    return b.graph(b(mc.Linear(4), b(mc.Flatten(), b(mc.GlobalAvgPool2d(), x))))


GRAPHS = {"plain": plain, "residual": residual}


def samples(step: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(step)
    return rng.standard_normal((6, 3, 12, 12)).astype(np.float32), rng.integers(0, 4, 6)


def trained(net: mc.Net, steps: int = 4) -> tuple[list[float], dict[str, np.ndarray]]:
    found = []
    for step in range(steps):
        poison(net)
        found.append(net.train_step(*samples(step)))
    return found, net.parameters()


@pytest.mark.parametrize("bn", ["batch", "frozen", "fold"])
@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("tier", [1, 2])
def test_the_same_bits(tier, name, bn):
    """With everything gone that may go, whatever it costs."""
    graph = GRAPHS[name]()
    kept = graph.compile(batch=6, bn=bn, **HOW)
    again = Net(graph, batch=6, bn=bn, policy=Policy(tier, 0), **HOW)
    assert again.recomputed
    one, other = trained(kept), trained(again)
    assert one[0] == other[0] and same(one[1], other[1])
    if bn != "fold":
        assert again.memory.activations < kept.memory.activations


@pytest.mark.parametrize("bn", ["batch", "frozen"])
def test_recompute_takes_less(bn):
    graph = residual()
    kept, again = (Planned(graph, batch=8, bn=bn, recompute=choice, **HOW) for choice in (False, True))
    assert again.memory.arena < kept.memory.arena
    assert again.recomputed and set(again.recomputed) <= {tensor for node in graph.nodes for tensor in node.outputs} | {"x"}


def test_the_plan_is_sound(planned):
    net = residual().compile(batch=6, bn="batch", recompute=True, **HOW)
    check_plan(net, planned)
    assert [row.kernel for row in planned["train"].rows].count("batchnorm.forward_saved") > 0


def test_threads_give_the_same_bits():
    results = []
    for threads in (1, 2):
        mc.set_num_threads(threads)
        results.append(trained(residual().compile(batch=6, bn="batch", recompute=True, **HOW)))
    assert results[0][0] == results[1][0] and same(results[0][1], results[1][1])


def stacked() -> mc.Graph:
    """Batch norms whose outputs take 2 * 64 * 64 * 8 * 4 = 2**18 bytes at batch 2, and one whose output takes a quarter. The
    first one's a depthwise convolution makes itself."""
    norm = mc.BatchNorm2d(), mc.ReLU()
    return built((3, 64, 64), mc.Conv2d(8, 3, padding=1), *norm, mc.Conv2d(8, 3, padding=1, groups=8), *norm, mc.Conv2d(8, 1),
                 *norm, mc.Conv2d(8, 3, stride=2, padding=1), *norm, mc.Conv2d(8, 3), mc.GlobalAvgPool2d(), mc.Flatten(),
                 mc.Linear(4))


def test_large_outputs_of_batch_norm_are_made_again_unless_that_is_refused():
    graph, rng = stacked(), np.random.default_rng(1)
    how = {"train": "all", "bn": "batch", "loss": "cross_entropy", "optimizer": mc.SGD(lr=0.05)}
    asked, refused = (graph.compile(batch=2, recompute=choice, **how) for choice in (None, False))
    norms = [node.outputs[0] for node in graph.nodes if node.op == "Relu"]
    assert set(asked.recomputed) - {"input"} == set(norms[1:3]) and not set(refused.recomputed) & set(norms)
    assert asked.memory.activations < refused.memory.activations and asked.memory.arena < refused.memory.arena
    fixed = [graph.compile(batch=2, recompute=choice, **{**how, "bn": "frozen"}) for choice in (None, False)]
    for one, other in ((asked, refused), fixed):
        for _ in range(3):
            x, t = rng.standard_normal((2, 3, 64, 64)).astype(np.float32), rng.integers(0, 4, 2)
            poison(one)
            assert one.train_step(x, t) == other.train_step(x, t)
        assert same(one.parameters(), other.parameters())
    assert not set(graph.compile(batch=1, **how).recomputed) & set(norms)
    fixed = graph.compile(batch=2, **{**how, "bn": "frozen"})
    assert set(fixed.recomputed) - {"input"} == set(norms[:3])
    # with gamma and beta fixed backward reads no batch norm's input, which would have to be kept instead
    weights = [node.weights["weight"].name for node in graph.nodes if node.op == "Conv2d"]
    fixed = graph.compile(batch=2, **{**how, "bn": "frozen", "train": weights})
    assert not set(fixed.recomputed) & set(norms)


def test_the_input_is_read_again_where_that_lowers_the_peak():
    """The first layer's gradient wants it last; what lies in the caller's array need not lie here, too."""
    wide = mc.Sequential([mc.Conv2d(2, 3, stride=4), mc.ReLU(), mc.Flatten(), mc.Linear(3000), mc.ReLU(), mc.Linear(4)],
                         input_shape=(8, 64, 64)).graph()
    assert Planned(wide, batch=4, **HOW).recomputed == ["input"]
    shallow = mc.Sequential([mc.Conv2d(2, 3), mc.Flatten(), mc.Linear(4)], input_shape=(3, 12, 12)).graph()
    assert Planned(shallow, batch=4, **HOW).recomputed == []


def test_a_weight_that_changed_is_noticed(monkeypatch):
    """Were weights updated before what needs their old values is made again, the rewriting would say so."""
    graph = residual()
    schedules = []
    finish = Schedule.finish

    def watched(self, *policy):
        if self.mode == "train":
            schedules.append((list(self.rows), list(self.buffers)))
        finish(self, *policy)
    monkeypatch.setattr(Schedule, "finish", watched)
    Planned(graph, batch=2, **HOW)
    rows, buffers = schedules[0]
    rewriter = recompute.Rewriter(rows, buffers)
    update = next(row for row in rows if row.kernel == "update.sgd")
    victim, weight = next((one, weight) for one in rewriter.candidates if one.tier < 2
                          and (weight := rows[one.makers[0]].fields.get("scale")) is not None)
    rows.insert(rewriter.begin + 1, recompute.replace(update, fields={**update.fields, "weight": weight}))
    rewriter = recompute.Rewriter(rows, buffers)
    victim = next(one for one in rewriter.candidates if one.buffer is victim.buffer)
    with pytest.raises(recompute.Stale):
        rewriter.rewritten({id(victim.buffer): victim})


@pytest.mark.parametrize("limit", [0.55, 0.7, 0.9])
def test_a_limit_is_kept_with_as_little_as_possible(limit):
    graph = residual()
    free = Planned(graph, batch=8, bn="batch", **HOW)
    least = Planned(graph, batch=8, bn="batch", policy=Policy(2, 0), **HOW)

    def beside(plan: Planned) -> int:
        return plan.memory.arena - plan.memory.parameters
    goal = int(limit * beside(free) + (1 - limit) * beside(least))
    found = Planned(graph, batch=8, bn="batch", policy=Policy(2, goal), **HOW)
    assert lower_bound(found._planned["train"].buffers) <= lower_bound(free._planned["train"].buffers)
    assert beside(least) <= beside(found) < beside(free) and len(found.recomputed) <= len(least.recomputed)
    # what is dropped is dropped as a whole: the limit is passed by one tensor at most
    assert beside(found) - goal < max(buffer.size for buffer in free._planned["train"].buffers)


@pytest.mark.parametrize("value", [1, "yes", 0.5])
def test_recompute_is_a_choice(value):
    with pytest.raises(mc.CompileError, match="recompute is .*; expected True, False or None"):
        residual().compile(recompute=value)
