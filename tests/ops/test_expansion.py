"""Backward of pointwise convolution, batch norm, clamp and depthwise convolution at once, by the moments of what comes in."""
import numpy as np
import pytest

import microcnn as mc
from microcnn import plan
from microcnn.parts import Rewritten
from tests.ops.batch_steps import against_the_layers_apart, compiled, samples
from tests.ops.table import built, close, poison, threads
from tests.tiny import same

RELU6 = mc.ReLU6()
BEHIND = mc.BatchNorm2d(), RELU6, mc.Conv2d(16, 3, groups=16, padding=1)
JOINED = ["moments.statistics_batch", "expansion.backward_weight", "expansion.backward_input"]


def expansion(C, K, shape=(24, 24), act=RELU6, stride=1, padding=1, dilation=1, **options):
    """A pointwise convolution from C channels to K, batch norm, a clamp and a depthwise convolution, between two others."""
    return lambda: built((3, *shape), mc.Conv2d(C, 1), mc.ReLU(), mc.Conv2d(K, 1, bias=False), mc.BatchNorm2d(momentum=0.7),
                         act, mc.Conv2d(K, 3, groups=K, padding=padding, stride=stride, dilation=dilation, **options),
                         mc.Conv2d(4, 1), mc.Tanh())


CASES = {"plain": expansion(4, 16), "relu": expansion(5, 32, act=mc.ReLU()),
         "clip": expansion(12, 48, act=mc.Clip(-0.2, 0.3)), "a-register-and-a-half": expansion(24, 144, (26, 24)),
         "stride-2": expansion(16, 96, (48, 48), stride=2),
         "stride-2-odd": expansion(3, 16, (47, 43), stride=2),
         "stride-2-no-padding": expansion(7, 32, (44, 45), stride=2, padding=0),
         "stride-2-below": expansion(5, 48, (48, 40), stride=2, padding=(0, 0, 1, 1)),
         "no-padding": expansion(6, 32, padding=0),
         "padding-of-one-side": expansion(4, 16, padding=(2, 0, 0, 1)),
         "dilated-down": expansion(9, 64, (40, 24), dilation=(2, 1)), "narrow": expansion(2, 16, (80, 5), bias=False),
         "one-channel": expansion(1, 16, (30, 31))}


def kernels(net):
    return [info.kernel for info in net.rows("train") if info.kernel in JOINED]


def apart(monkeypatch):
    monkeypatch.setattr(plan, "join_expansions", lambda rows, *sizes: Rewritten(list(rows)))


@pytest.mark.parametrize("name", CASES)
def test_a_step_is_what_the_layers_apart_give(name):
    net = compiled(CASES[name](), "float64")
    assert kernels(net) == JOINED
    against_the_layers_apart(net)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", CASES)
def test_the_same_numbers_as_kept(name, dtype, monkeypatch):
    graph = CASES[name]()
    together = compiled(graph, dtype)
    apart(monkeypatch)
    kept = compiled(graph, dtype)
    assert kernels(together) and not kernels(kept)
    x, t = samples(together)
    poison(together)
    tolerance = 1e-10 if dtype == "float64" else 5e-5
    assert together.train_step(x, t) == pytest.approx(kept.train_step(x, t), rel=tolerance)
    for weight, array in kept.parameters().items():
        close(together.parameters()[weight], array, tolerance, weight)


@pytest.mark.parametrize("name", ["a-register-and-a-half", "stride-2"])
def test_threads_give_the_same_bits(name):
    found = []
    for count in (1, 2):
        with threads(count):
            net = compiled(CASES[name](), "float32")
            for seed in range(3):
                poison(net)
                net.train_step(*samples(net, seed=seed))
            found.append(net.parameters())
    assert same(*found)


@pytest.mark.parametrize("frozen", ["scale", "bias", "weight"])
def test_a_part_trains(frozen):
    """The widening convolution or one of the batch norm's weights frozen: dX is wanted all the same."""
    graph = CASES["plain"]()
    norm = next(node for node in graph.nodes if node.op == "BatchNorm2d")
    name = ([node for node in graph.nodes if node.op == "Conv2d"][1] if frozen == "weight" else norm).weights[frozen].name
    train = [ref.name for node in graph.nodes for role, ref in node.weights.items()
             if role not in ("mean", "var") and ref.name != name]
    net = compiled(graph, "float64", train=train)
    assert kernels(net) == ([] if frozen == "weight" else JOINED)
    before = net.parameters()[name].copy()
    against_the_layers_apart(net)
    assert np.array_equal(net.parameters()[name], before)


def test_the_gradient_is_added_to_another():
    """An inverted residual block: what the widening convolution reads is added behind it, too."""
    b = mc.GraphBuilder(seed=1)
    x = b(mc.ReLU(), b(mc.Conv2d(8, 1), b.input("x", (3, 24, 24))))
    y = b(RELU6, b(mc.BatchNorm2d(), b(mc.Conv2d(48, 1, bias=False), x)))
    y = b(mc.Conv2d(8, 1), b(mc.Conv2d(48, 3, groups=48, padding=1), y))
    net = compiled(b.graph(b(mc.Conv2d(4, 1), b(mc.Add(), x, y))), "float64")
    assert kernels(net) == JOINED
    against_the_layers_apart(net)


def test_a_weight_of_two_expansions():
    """Whose gradients are added up."""
    block = mc.ReLU(), mc.Conv2d(16, 1, bias=False), *BEHIND, mc.Conv2d(4, 1)
    graph = built((3, 24, 24), mc.Conv2d(4, 1), *block, *block)
    first, second = [node for node in graph.nodes if node.op == "Conv2d" and graph.weights[node.weights["weight"].name].shape
                     == (16, 4, 1, 1)]
    second.weights["weight"] = first.weights["weight"]
    net = compiled(graph, "float64")
    assert kernels(net) == [*2 * JOINED[:1], *2 * JOINED[1:]]
    against_the_layers_apart(net)


@pytest.mark.parametrize("graph", [
    lambda: built((3, 24, 24), mc.Conv2d(16, 1, bias=False), *BEHIND), expansion(4, 24), expansion(16, 48), expansion(40, 160),
    lambda: built((3, 24, 24), mc.Conv2d(4, 1), mc.Conv2d(16, 1), *BEHIND)],
    ids=["no-gradient-of-the-input", "half-a-word-of-bits", "not-much-wider", "many-channels", "a-bias-before-batch-norm"])
def test_what_stays_apart(graph):
    assert not kernels(compiled(graph(), "float64"))


@pytest.mark.parametrize("offset, dtype", [(3000.0, "float32"), (0.0, "float32"), (1e7, "float64")])
def test_variances_have_digits_where_terms_cancel(offset, dtype):
    """Inputs that are far from zero, and outputs that are small differences of large terms: against numpy in float64."""
    graph = CASES["plain"]()
    convolutions = [node for node in graph.nodes if node.op == "Conv2d"]
    norm = next(node for node in graph.nodes if node.op == "BatchNorm2d")
    first, wide = (graph.weights[node.weights["weight"].name] for node in convolutions[:2])
    rng = np.random.default_rng(5)
    first[1] = first[0] * (1 + 1e-4 * rng.standard_normal(first[0].shape))      # two channels that are almost the same
    graph.weights[convolutions[0].weights["bias"].name][:] = offset + 2
    wide[:4, 0], wide[:4, 1], wide[:4, 2:] = 1, -1, 0
    net = compiled(graph, dtype)
    assert kernels(net) == JOINED
    x, t = samples(net)
    variance = net.parameters()[norm.weights["var"].name].astype(np.float64)
    net.train_step(x, t)
    kept = norm.attrs["momentum"]
    found = (net.parameters()[norm.weights["var"].name] - kept * variance) / (1 - kept)
    # what float32 makes of the first layer is taken as it is: its rounding is part of the differences
    inner = np.maximum(np.einsum("nchw,kc->nkhw", x, first[:, :, 0, 0]) + np.asarray(offset + 2, net.dtype), 0)
    wanted = np.einsum("nchw,kc->nkhw", inner.astype(np.float64), wide[:, :, 0, 0].astype(np.float64)).var(axis=(0, 2, 3))
    np.testing.assert_allclose(found[4:], wanted[4:], rtol=2e-3 if dtype == "float32" else 1e-6)
    assert np.all(found[:4] >= 0) and np.all(found[:4] <= 2 * wanted[:4] + 1e-6 * (1 + offset) ** 2)


def test_it_takes_hardly_more_memory(monkeypatch):
    graph = CASES["stride-2"]()
    together = compiled(graph, "float32").memory
    least = compiled(graph, "float32", recompute=True).memory
    apart(monkeypatch)
    assert together.lower_bound <= compiled(graph, "float32").memory.lower_bound * (1 + plan.SLACK)
    assert least.lower_bound <= compiled(graph, "float32", recompute=True).memory.lower_bound


def test_debug_names_all_its_layers():
    graph = CASES["plain"]()
    depthwise, norm = [node for node in graph.nodes if node.op == "Conv2d"][2], next(
        node for node in graph.nodes if node.op == "BatchNorm2d")
    graph.weights[norm.weights["scale"].name][3] = 3e38
    net = compiled(graph, "float32")
    net.debug = True
    assert kernels(net) == JOINED
    with pytest.raises(mc.TrainingError, match=f'or "{depthwise.name}", or "{norm.name}" before it in the same kernel'):
        net.train_step(*samples(net))
