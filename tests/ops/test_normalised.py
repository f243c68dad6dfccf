"""Depthwise 3 x 3 convolutions that make the output of the batch norm before them themselves."""
import pytest

import microcnn as mc
from microcnn import plan
from microcnn.parts import Rewritten
from tests.ops.batch_steps import RATE, against_the_layers_apart, compiled, samples
from tests.ops.table import built, close, poison, threads
from tests.tiny import same

RELU6 = mc.ReLU6()


def stack(C, shape=(24, 24), act=(RELU6,), stride=1, padding=1, dilation=1, **options):
    """A batch norm over C channels, read by a depthwise convolution, between two that mix them."""
    return lambda: built((3, *shape), mc.Conv2d(C, 1, bias=False), mc.BatchNorm2d(momentum=0.7), *act,
                         mc.Conv2d(C, 3, groups=C, padding=padding, stride=stride, dilation=dilation, **options),
                         mc.Conv2d(4, 1), mc.Tanh())


CASES = {"plain": stack(5, act=()), "whole-registers": stack(16, act=(mc.ReLU(),)), "half-registers": stack(24, (31, 26)),
         "three-registers-and-a-rest": stack(33, (17, 40), bias=False), "stride-2": stack(8, (47, 40), stride=2),
         "stride-2-down": stack(16, (60, 20), stride=(2, 1)), "no-padding": stack(7, (26, 24), padding=0),
         "padding-of-one-side": stack(16, (24, 24), padding=(2, 0, 0, 1)), "dilated-down": stack(8, (40, 24), dilation=(2, 1)),
         "narrow": stack(40, (80, 5)), "clip": stack(12, act=(mc.Clip(-0.2, 0.3),))}


def kernels(net):
    return [info.kernel for info in net.rows("train") if info.kernel.startswith("normalised3x3.")]


def apart(monkeypatch):
    monkeypatch.setattr(plan, "normalise_on_the_way", lambda rows, *sizes: Rewritten(list(rows)))


@pytest.mark.parametrize("name", CASES)
def test_a_step_is_what_the_layers_apart_give(name):
    """Against the gradients of forward and backward one by one, which know of no such rows; also of a part of a batch."""
    net = compiled(CASES[name](), "float64")
    assert kernels(net) == ["normalised3x3.forward", "normalised3x3.backward_weight"]
    against_the_layers_apart(net)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", CASES)
def test_the_same_numbers_as_kept(name, dtype, monkeypatch):
    """The forward pass to the last bit; sums of the gradient are cut in other places."""
    graph = CASES[name]()
    together = compiled(graph, dtype)
    apart(monkeypatch)
    kept = compiled(graph, dtype)
    assert kernels(together) and not kernels(kept)
    assert together.memory.activations < kept.memory.activations
    x, t = samples(together)
    poison(together)
    assert together.train_step(x, t) == kept.train_step(x, t)
    for weight, array in kept.parameters().items():
        close(together.parameters()[weight], array, 1e-11 if dtype == "float64" else 2e-5, weight)


def test_threads_give_the_same_bits():
    found = []
    for count in (1, 2):
        with threads(count):
            net = compiled(CASES["half-registers"](), "float32")
            for seed in range(3):
                poison(net)
                net.train_step(*samples(net, seed=seed))
            found.append(net.parameters())
    assert same(*found)


def test_another_reader_wants_the_whole_output():
    b = mc.GraphBuilder(seed=1)
    x = b(mc.ReLU(), b(mc.BatchNorm2d(), b(mc.Conv2d(8, 1, bias=False), b.input("x", (3, 24, 24)))))
    y = b(mc.Conv2d(8, 3, groups=8, padding=1), x)
    assert not kernels(compiled(b.graph(b(mc.Add(), x, y)), "float32"))


@pytest.mark.parametrize("how", [dict(bn="frozen"), dict(bn="fold"), dict(batch=1)])
def test_what_stays_apart(how):
    """Fixed statistics; and an image that is no larger than the lines that would be kept of it."""
    graph = stack(8, (8, 8))() if "batch" in how else CASES["whole-registers"]()
    assert not kernels(compiled(graph, "float32", **how))


def test_a_frozen_weight_has_no_gradient():
    """Where the batch norm trains, whose statistics are the batch's, and the convolution behind it does not."""
    graph = CASES["whole-registers"]()
    scale = next(node.weights["scale"].name for node in graph.nodes if node.op == "BatchNorm2d")
    last = [node.weights["weight"].name for node in graph.nodes if node.op == "Conv2d"][-1]
    net = compiled(graph, "float64", train=[scale, last])
    assert kernels(net) == ["normalised3x3.forward"]
    x, t = samples(net)
    y, before = net.forward(x), net.parameters()[scale].copy()
    net.backward(2 * (y - t) / y.size)
    wanted = net.gradients()[scale]
    net.train_step(x, t)
    close((before - net.parameters()[scale]) / RATE, wanted, 1e-9, scale)


@pytest.mark.parametrize("how", [{}, dict(train="last:1"), dict(recompute=True), dict(train="biases")])
@pytest.mark.parametrize("layers", [
    (mc.BatchNorm2d(), mc.ReLU6(), mc.Conv2d(16, 3, groups=16, padding=1, stride=(2, 1))),
    (mc.Conv2d(16, 1, bias=False), mc.BatchNorm2d(), mc.Conv2d(16, 3, groups=16, padding=1), mc.BatchNorm2d(), mc.Conv2d(4, 1),
     mc.Tanh())], ids=["first", "between"])
def test_it_takes_no_more_memory(layers, how, monkeypatch):
    graph = built((16, 32, 32), *layers)
    together = compiled(graph, "float64", **how).memory
    apart(monkeypatch)
    kept = compiled(graph, "float64", **how).memory
    assert together.lower_bound <= kept.lower_bound and together.arena <= kept.arena


def test_statistics_are_not_made_again():
    """A whole pass for a few numbers."""
    pair = mc.Conv2d(16, 1, bias=False), mc.BatchNorm2d(), RELU6, mc.Conv2d(16, 3, groups=16, padding=1), mc.BatchNorm2d()
    graph = built((3, 24, 24), *pair, RELU6, *pair, mc.AvgPool2d(4), mc.Flatten(), mc.Linear(3))
    net = compiled(graph, "float32", recompute=True)
    assert kernels(net) and net.recomputed
    assert not any("statistics" in name for name in net.recomputed)


def test_debug_names_the_batch_norm_too():
    graph = CASES["whole-registers"]()
    norm = next(node for node in graph.nodes if node.op == "BatchNorm2d")
    graph.weights[norm.weights["scale"].name][3] = 3e38
    net = compiled(graph, "float32")
    net.debug = True
    assert kernels(net)
    with pytest.raises(mc.TrainingError, match=f'or "{norm.name}" before it in the same kernel'):
        net.train_step(*samples(net))
