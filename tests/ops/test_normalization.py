"""LayerNorm, GroupNorm, InstanceNorm and LRN: alone, among convolutions, and as PyTorch's layers."""
import numpy as np
import pytest

import microcnn as mc
from microcnn.graph import Graph, Node, WeightRef
from tests.ops.table import LARGE_CHECKS, Case, drawn, graph_of, table

BOTH, NEITHER = ("scale", "bias"), ()


def norm(op, size, roles=BOTH, batch=2, eps=1e-5, **attrs):
    shape = size[attrs["axis"] % (len(size) + 1) - 1:] if op == "LayerNorm" else size[:1]
    label = f"{op}-{'x'.join(map(str, size))}-{'-'.join(roles)}-{'-'.join(map(str, attrs.values()))}"
    return Case(label.lower(), lambda: graph_of(op, size, weights=dict.fromkeys(roles, shape), eps=eps, **attrs), batch)


def response(size, window, alpha=1e-4, beta=0.75, bias=1.0, batch=2):
    """onnx's evaluator runs LRN over as many channels as there are samples; onnxruntime on images with odd windows only."""
    attrs = {"size": window, "alpha": alpha, "beta": beta, "bias": bias}
    skip = ("reference",) if len(size) == 3 and window % 2 else ("reference", "runtime")
    return Case(f"lrn-{'x'.join(map(str, size))}-{window}-{beta}", lambda: graph_of("LRN", size, **attrs), batch, skip=skip)


@table([norm("LayerNorm", (17,), axis=1, batch=3), norm("LayerNorm", (5, 33), axis=-1), norm("LayerNorm", (3, 4, 5), axis=1),
        norm("LayerNorm", (3, 4, 5), ("scale",), axis=2), norm("LayerNorm", (2, 3, 2, 5), NEITHER, axis=-2, eps=0.1),
        norm("LayerNorm", (4, 1), ("bias",), axis=2, batch=1), norm("LayerNorm", (3, 40), axis=-1, batch=1)])
def test_layer_norm(case, check):
    check(case)


@table([norm("GroupNorm", (6, 3, 4), groups=2), norm("GroupNorm", (6, 3, 4), ("scale",), 3, groups=1),
        norm("GroupNorm", (4, 5), groups=4), norm("GroupNorm", (34, 2, 2), ("bias",), 1, groups=2),
        norm("GroupNorm", (12,), NEITHER, 3, groups=3), norm("GroupNorm", (4, 2, 3, 2), groups=2, eps=0.1),
        norm("InstanceNorm", (3, 4, 5)), norm("InstanceNorm", (17, 2, 2), NEITHER, 1), norm("InstanceNorm", (1, 7), batch=3)])
def test_channel_norms(case, check):
    check(case)


@table([response((17, 2, 3), 5, 0.5), response((5, 2, 2), 3, 1.0, 0.5, 2.0, 3), response((3, 4), 4, 1.0, 1.5),
        response((3, 2, 2), 9, 2.0), response((1, 3, 3), 1, 1.0), response((7,), 2, 1.0, 0.3),
        response((33, 1, 2), 5, 1.0, batch=1)])
def test_local_response(case, check):
    check(case)


def among_convolutions():
    """No bias and no normalisation stands where the next one takes away what it does: such gradients are but roundings."""
    layers = [mc.Conv2d(6, 3, padding=1), mc.GroupNorm(3), mc.ReLU(), mc.Conv2d(4, 3, bias=False),
              mc.InstanceNorm2d(affine=True), mc.LocalResponseNorm(3, alpha=0.1), mc.Conv2d(3, 2, bias=False),
              mc.InstanceNorm2d(), mc.Conv2d(4, 1, bias=False), mc.LayerNorm((2, 3)), mc.Flatten(),
              mc.LayerNorm(24, bias=False), mc.Linear(5), mc.LayerNorm(5, elementwise_affine=False)]
    graph = mc.Sequential(layers, input_shape=(2, 5, 6), seed=1).graph()
    rng = np.random.default_rng(5)
    for node in graph.nodes:
        if node.op.endswith("Norm"):
            for role, ref in node.weights.items():
                graph.weights[ref.name] = drawn(rng, role, graph.weights[ref.name].shape)
    return graph


def channels_as_tokens():
    """What ConvNeXt does: the channels last, normalised there, a matrix product, and back."""
    b = mc.GraphBuilder(seed=3)
    first = b.graph(b(mc.Conv2d(8, 3, padding=1), b.input("x", (3, 4, 5))))
    rng = np.random.default_rng(0)
    weights = {"scale": drawn(rng, "scale", (8,)), "bias": drawn(rng, "bias", (8,)), "w": drawn(rng, "weight", (6, 8))}
    nodes = [Node("Transpose", "last", ("output",), ("l",), {"perm": (0, 2, 3, 1)}),
             Node("LayerNorm", "norm", ("l",), ("n",), {"axis": -1, "eps": 1e-6},
                  {"scale": WeightRef("scale"), "bias": WeightRef("bias")}),
             Node("Linear", "linear", ("n",), ("m",), {"transposed": True}, {"weight": WeightRef("w")}),
             Node("Transpose", "first", ("m",), ("y",), {"perm": (0, 3, 1, 2)})]
    return Graph(first.inputs, ["y"], [*first.nodes, *nodes], {**first.weights, **weights})


@table([Case("chain", among_convolutions, skip=("reference",)), Case("tokens", channels_as_tokens)])
def test_within_networks(case, check):
    check(case)


@table([norm("LayerNorm", (200, 70), axis=-1, batch=3), norm("GroupNorm", (36, 40, 41), groups=4, batch=3),
        norm("InstanceNorm", (33, 60, 61), batch=1), response((33, 40, 41), 5, 0.1, batch=3)], LARGE_CHECKS)
def test_large(case, check):
    check(case)


def test_a_large_mean_costs_no_digits():
    x = (1000 + np.random.default_rng(0).normal(size=(2, 6, 20, 20))).astype(np.float32)
    expected = (x - x.mean((2, 3), np.float64, keepdims=True)) / x.std((2, 3), np.float64, keepdims=True)
    y = graph_of("InstanceNorm", (6, 20, 20), eps=0.0).compile(batch=2).predict(x)
    np.testing.assert_allclose(y, expected, atol=2e-4)


@pytest.mark.parametrize("op, size, weights, attrs, text", [
    ("LayerNorm", (3, 4), {}, {"axis": 0, "eps": 0.0}, r"axis \(=0\) must be an axis of \(3, 4\) beside the batch: 1 to 2"),
    ("LayerNorm", (3, 4), {"scale": (3,)}, {"axis": 2, "eps": 0.0}, r"scale has shape \(3,\); expected \(4,\)"),
    ("GroupNorm", (6, 4), {}, {"groups": 4, "eps": 0.0}, r"groups \(=4\) must divide the 6 channels"),
    ("InstanceNorm", (6, 4), {"bias": (4,)}, {"eps": 0.0}, r"bias has shape \(4,\); expected \(6,\)"),
    ("LRN", (6, 4), {}, {"size": 0, "alpha": 1.0, "beta": 1.0, "bias": 1.0}, "a size of at least 1"),
])
def test_what_does_not_fit_is_refused(op, size, weights, attrs, text):
    with pytest.raises(mc.ModelError, match=text):
        graph_of(op, size, weights=weights, **attrs).shapes()


@pytest.mark.parametrize("layer, shape, text", [
    (mc.LayerNorm(5), (3, 4), r"normalized_shape is 5; expected the last sizes of the input's shape \(3, 4\)"),
    (mc.GroupNorm(4), (6, 2, 2), r"num_groups \(=4\) must divide the 6 channels"),
    (mc.InstanceNorm2d(), (6, 2), r"expected \(channels, height, width\)"), (mc.LocalResponseNorm(4), (6, 2, 2), "an odd one"),
])
def test_what_a_layer_does_not_take(layer, shape, text):
    with pytest.raises(mc.ModelError, match=text):
        mc.Sequential([layer], input_shape=shape).graph()


@pytest.mark.torch
def test_as_pytorch():
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).normal(size=(2, 6, 4, 5)).astype(np.float32)
    for ours, theirs in ((mc.LayerNorm((4, 5)), torch.nn.LayerNorm((4, 5))), (mc.GroupNorm(3), torch.nn.GroupNorm(3, 6)),
                         (mc.InstanceNorm2d(), torch.nn.InstanceNorm2d(6)),
                         (mc.LocalResponseNorm(3, 0.1), torch.nn.LocalResponseNorm(3, 0.1))):
        net = mc.Sequential([ours], input_shape=(6, 4, 5)).graph().compile(batch=2)
        np.testing.assert_allclose(net.predict(x), theirs(torch.from_numpy(x)).detach().numpy(), atol=2e-6)
