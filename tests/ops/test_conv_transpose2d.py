"""ConvTranspose2d: dense, grouped and depthwise; and what is fused into its store."""
import numpy as np
import pytest

import microcnn as mc
from microcnn.layers import LAYERS
from tests.ops.table import LARGE_CHECKS, Case, built, graph_of, lively, table


def convt(name, shape, K, kernel, stride=(1, 1), pads=(0, 0, 0, 0), more=(0, 0), dilation=(1, 1), groups=1, bias=True,
          batch=2, skip=()):
    weights = {"weight": (shape[0], K // groups, *kernel)}
    if bias:
        weights["bias"] = (K,)
    if groups > 1:
        skip += ("reference",)          # onnx 1.23.2's cannot take the weight of groups apart
    return Case(name, lambda: graph_of("ConvTranspose2d", shape, weights=weights, kernel=kernel, stride=stride, pads=pads,
                                       output_padding=more, dilation=dilation, groups=groups), batch, skip=skip)


CASES = [
    convt("plain", (3, 4, 5), 5, (3, 3)),
    convt("1-to-1", (1, 5, 4), 1, (3, 2)),
    convt("tall", (3, 5, 4), 17, (4, 1), batch=3),
    convt("wide", (5, 4, 5), 3, (1, 4), pads=(0, 2, 0, 1)),
    convt("17-to-33", (17, 4, 3), 33, (2, 3), (2, 2), (1, 1, 0, 1), batch=1),
    convt("33-to-17", (33, 3, 4), 17, (3, 2), pads=(1, 0, 1, 1)),
    convt("no-bias", (3, 4, 3), 5, (3, 3), (2, 1), bias=False, batch=3),
    convt("doubled", (9, 4, 3), 8, (2, 2), (2, 2)),
    convt("doubled-by-3x3", (8, 4, 3), 5, (3, 3), (2, 2), (1, 1, 1, 1), (1, 1)),
    convt("doubled-by-4x4", (5, 3, 4), 17, (4, 4), (2, 2), (1, 1, 1, 1)),
    # few outputs: every input pixel adds its window
    convt("few-outputs", (9, 6, 5), 1, (4, 4), (2, 2), (1, 1, 1, 1), batch=3),
    convt("few-outputs-no-bias", (17, 5, 6), 3, (3, 5), (1, 1), (1, 2, 1, 2), bias=False),
    convt("few-outputs-more", (5, 4, 6), 2, (3, 3), (3, 2), (0, 1, 1, 0), (2, 1)),
    convt("few-outputs-dilated-down", (6, 4, 7), 3, (2, 3), dilation=(3, 1), pads=(0, 1, 1, 1)),
    # strides that leave gaps, which hold the bias alone
    convt("stride-above-kernel", (3, 3, 4), 4, (2, 1), (3, 4)),
    convt("stride-above-kernel-no-bias", (3, 3, 2), 17, (1, 2), (3, 3), (0, 0, 0, 1), (2, 2), bias=False),
    convt("many-gaps-of-groups", (4, 2, 3), 6, (2, 1), (4, 5), groups=2),
    convt("many-gaps-depthwise", (3, 2, 2), 3, (1, 2), (4, 4), more=(3, 1), groups=3, batch=3),
    convt("stride-uneven", (5, 4, 3), 3, (3, 5), (2, 3), (0, 2, 1, 3), (1, 2), batch=3),
    convt("more-than-the-windows-reach", (2, 3, 2), 3, (2, 2), (1, 1), more=(3, 2), skip=("runtime", "reference")),
    convt("much-padding", (2, 6, 7), 3, (2, 3), (2, 1), (3, 2, 4, 5)),
    convt("padding-at-one-corner", (2, 4, 4), 3, (3, 3), (2, 1), (2, 0, 0, 0)),
    convt("padding-above-the-kernel", (2, 5, 6), 3, (2, 1), pads=(2, 1, 2, 3)),
    # dilation
    convt("dilated", (3, 5, 4), 5, (3, 2), dilation=(2, 3), pads=(2, 1, 1, 2)),
    convt("dilated-and-strided", (3, 4, 3), 4, (3, 3), (2, 2), (2, 2, 2, 2), (1, 1), (2, 2)),
    convt("dilation-and-stride-share-no-factor", (2, 4, 3), 3, (3, 2), (3, 2), (2, 3, 1, 0), (2, 1), (2, 3)),
    convt("dilation-and-stride-share-a-factor", (2, 3, 2), 3, (2, 3), (4, 6), (1, 3, 2, 0), (3, 0), (6, 4)),
    # one pixel
    convt("one-pixel", (5, 1, 1), 3, (1, 1)),
    convt("one-pixel-to-an-image", (17, 1, 1), 5, (4, 3), (2, 2)),
    convt("one-pixel-to-an-image-of-a-batch", (17, 1, 1), 5, (4, 3), batch=9),
    convt("one-pixel-to-an-image-cut", (6, 1, 1), 3, (4, 4), pads=(1, 0, 1, 1), batch=3),
    convt("pointwise", (17, 3, 5), 33, (1, 1), batch=3),
    convt("pointwise-3-to-1", (3, 4, 4), 1, (1, 1), bias=False),
    convt("pointwise-strided", (5, 3, 4), 9, (1, 1), (2, 3), more=(1, 2)),
    # groups
    convt("groups-2", (6, 4, 3), 10, (3, 3), (2, 2), (1, 1, 1, 1), groups=2),
    convt("groups-3-strided", (9, 3, 4), 6, (3, 2), (2, 2), (1, 0, 0, 1), groups=3, batch=3),
    convt("groups-of-17", (34, 3, 3), 34, (2, 2), (1, 1), (1, 1, 0, 0), groups=2, batch=1),
    convt("groups-pointwise", (8, 3, 4), 12, (1, 1), groups=4),
    convt("depthwise", (5, 4, 3), 5, (3, 3), (2, 2), (1, 1, 1, 1), (1, 1), groups=5),
    convt("depthwise-17-bilinear", (17, 3, 4), 17, (4, 4), (2, 2), (1, 1, 1, 1), groups=17, batch=3),
    convt("depthwise-33-dilated", (33, 4, 3), 33, (3, 2), dilation=(2, 2), pads=(1, 1, 2, 1), groups=33, batch=1),
    convt("depthwise-gaps", (3, 3, 2), 3, (2, 1), (3, 2), groups=3, bias=False),
    convt("depth-multiplier", (3, 4, 3), 6, (3, 3), (2, 1), (1, 1, 1, 1), groups=3),
]


@table(CASES)
def test_conv_transpose2d(case, check):
    check(case)


# Fusion.

def fused(*, bn=False, add=False, activation=None, conv):
    def build():
        b = mc.GraphBuilder(seed=4)
        x = b.input("x", (5, 3, 4))
        y = b(conv, b(mc.Conv2d(6, 1), x))
        if bn:
            y = b(mc.BatchNorm2d(), y)
        if add:
            y = b(mc.Add(), y, b(mc.ConvTranspose2d(conv.out_channels, 2, stride=2), x))
        if activation:
            y = b(activation, y)
        return lively(b.graph(b(mc.ConvTranspose2d(3, 3), y)))
    return build


def with_gaps(groups):
    """Two images with gaps added: neither may take the other's place before all of it is read."""
    b = mc.GraphBuilder(seed=6)
    x = b.input("x", (4, 2, 3))
    parts = [b(mc.ConvTranspose2d(6, 2, stride=5, groups=groups), x) for _ in range(2)]
    return b.graph(b(mc.ReLU(), b(mc.Add(), *parts)))


UP = {"stride": 2, "padding": 1}
FUSED = [
    Case("relu", fused(activation=mc.ReLU(), conv=mc.ConvTranspose2d(6, 4, **UP))),
    Case("clip-few", fused(activation=mc.Clip(-0.2, 0.3), conv=mc.ConvTranspose2d(1, 4, **UP))),
    Case("residual-relu", fused(add=True, activation=mc.ReLU(), conv=mc.ConvTranspose2d(6, 4, **UP)), 3),
    Case("residual-clip-few", fused(add=True, activation=mc.Clip(-0.3, 0.4), conv=mc.ConvTranspose2d(2, 4, **UP)), 3),
    *(Case(f"{mode}-bn", fused(bn=True, activation=mc.ReLU(), conv=mc.ConvTranspose2d(6, 4, **UP, bias=mode != "batch")), batch,
           mode) for mode, batch in (("frozen", 2), ("batch", 3), ("fold", 2))),
    *(Case(f"{mode}-bn-groups-{groups}", fused(bn=True, add=True, conv=mc.ConvTranspose2d(
        6, 4, **UP, groups=groups, bias=False)), 2, mode, skip=("reference",))
      for mode in ("frozen", "fold") for groups in (2, 6)),
    Case("bn-few", fused(bn=True, activation=mc.ReLU6(), conv=mc.ConvTranspose2d(2, 4, **UP)), 2, "fold"),
    *(Case(f"from-one-pixel-{mode}", lambda: built((7, 1, 1), mc.ConvTranspose2d(6, 4), mc.BatchNorm2d(), mc.ReLU(),
                                                   mc.ConvTranspose2d(3, 4, **UP)), batch, mode)
      for mode, batch in (("frozen", 2), ("fold", 9))),
    *(Case(f"residual-with-gaps-{groups}", lambda groups=groups: with_gaps(groups), skip=("reference",) * (groups > 1))
      for groups in (1, 2)),
    # only the last layer trains: what is before it runs folded, its weights turned once
    Case("frozen-front", fused(bn=True, add=True, activation=mc.ReLU(), conv=mc.ConvTranspose2d(6, 4, **UP)),
         options={"train": ["convt3.*"]}),
    Case("decoder", lambda: built((5,), mc.Linear(24), mc.ReLU(), mc.Reshape((6, 2, 2)), mc.ConvTranspose2d(
        8, 3, stride=2, padding=1, output_padding=1), mc.ReLU(), mc.ConvTranspose2d(1, 4, stride=2, padding=1), mc.Sigmoid())),
]


@table(FUSED)
def test_fused(case, check):
    check(case)


def kernels(graph, mode="predict", **options):
    """Names of the kernels that run each time, and of those that run once."""
    schedule = graph.compile(**options).schedule(mode)
    schedule.run_forward()
    return [row.kernel for row in schedule.rows], [row.kernel for row in schedule.prepared]


def test_weights_are_turned_once_where_they_do_not_train():
    graph = built((8, 4, 4), mc.ConvTranspose2d(32, 4, stride=2, padding=1), mc.ReLU(), mc.ConvTranspose2d(1, 4, stride=2))
    each_time, once = kernels(graph)
    assert [one for one in each_time if "layout" not in one] == [*["conv2d.forward"] * 4, "conv2d_scatter.backward_input"]
    assert once == [*["conv2d.flip"] * 4, "conv2d_scatter.turn"]
    each_time, once = kernels(graph, "manual", train=["convt2.*"])
    assert once == ["conv2d.flip"] * 4 and "conv2d_scatter.turn" in each_time


def test_gaps_cost_one_row():
    each_time, _ = kernels(built((4, 2, 2), mc.ConvTranspose2d(4, 2, stride=100, groups=2)))
    assert [one for one in each_time if "layout" not in one] == ["conv2d.forward"] * 5


def test_one_pixel_becomes_an_image_by_a_matrix_product():
    each_time, once = kernels(built((7, 1, 1), mc.ConvTranspose2d(6, 4)))
    assert [one for one in each_time if "layout" not in one] == ["linear.forward"]
    assert once == ["linear.transpose", "widen.widen"]


def test_new_weights_are_turned_again(rng):
    graph = built((4, 3, 3), mc.ConvTranspose2d(5, 2, stride=2))
    net, x = graph.compile(), rng.normal(size=(1, 4, 3, 3)).astype(np.float32)
    before = net.predict(x)
    net.set_parameters({name: 2 * array for name, array in net.parameters().items()})
    np.testing.assert_allclose(net.predict(x), 2 * before, rtol=1e-6)


def test_macs_count_what_each_input_pixel_adds():
    graph = built((4, 3, 5), mc.ConvTranspose2d(6, (3, 2), stride=2, groups=2))
    node, shapes = graph.nodes[0], graph.shapes()
    seen = {role: graph.weights[ref.name].shape for role, ref in node.weights.items()}
    assert LAYERS[node.op].macs(node, [shapes["input"]], [shapes["output"]], seen) == 4 * 3 * 5 * 3 * 6


def test_a_new_head():
    graph = built((4, 3, 5), mc.Conv2d(6, 1), mc.ConvTranspose2d(3, 2, stride=2)).with_head(7)
    assert graph.shapes()["output"] == (7, 6, 10)


@pytest.mark.parametrize("layer, message", [
    (mc.ConvTranspose2d(4, 3, output_padding=1), r"output_padding is 1; it must be smaller than the stride \(1, 1\) or the"),
    (mc.ConvTranspose2d(4, 3, groups=3), r"groups \(=3\) must divide the 4 input and 4 output channels; use one of"),
    (mc.ConvTranspose2d(4, 3, padding="same"), "padding is 'same'; expected an integer"),
    (mc.ConvTranspose2d(4, 3, stride=10**6), r'"convt1": stride .* makes 4000003x4000003 of 5x5, which no device can hold'),
    (mc.ConvTranspose2d(4, 1, padding=3), r'"convt1": padding \(3, 3, 3, 3\) leaves nothing of the image of 5x5'),
])
def test_what_does_not_fit_is_refused(layer, message):
    with pytest.raises(mc.ModelError, match=message):
        built((4, 5, 5), layer)


@pytest.mark.torch
@pytest.mark.parametrize("options", [{}, {"stride": 2, "padding": 1, "output_padding": 1}, {"stride": (3, 2), "groups": 2},
                                     {"dilation": 2, "padding": (1, 0), "bias": False}, {"stride": 2, "groups": 4}])
def test_as_pytorch_does(options, rng):
    torch = pytest.importorskip("torch")
    graph = built((4, 5, 6), mc.ConvTranspose2d(8, 3, **options))
    net = graph.compile(batch=2, train="all", dtype="float64")
    theirs = torch.nn.ConvTranspose2d(4, 8, 3, **options).double()
    theirs.load_state_dict({name.removeprefix("convt1."): torch.from_numpy(array.astype(np.float64))
                            for name, array in graph.weights.items()})
    x = rng.normal(size=(2, 4, 5, 6))
    given = torch.from_numpy(x).requires_grad_()
    expected = theirs(given)
    np.testing.assert_allclose(net.forward(x), expected.detach().numpy(), rtol=1e-10, atol=1e-12)
    dy = rng.normal(size=expected.shape)
    expected.backward(torch.from_numpy(dy))
    np.testing.assert_allclose(net.backward(dy), given.grad.numpy(), rtol=1e-10, atol=1e-12)
    for name, parameter in theirs.named_parameters():
        np.testing.assert_allclose(net.gradients()[f"convt1.{name}"], parameter.grad.numpy(), rtol=1e-10, atol=1e-12)


LARGE = [
    convt("dense", (24, 9, 11), 20, (3, 3), (2, 2), (1, 1, 1, 1), (1, 1), batch=3),
    convt("few-outputs", (16, 20, 21), 3, (4, 4), (2, 2), (1, 1, 1, 1), batch=9),
    convt("many-channels", (100, 4, 5), 112, (3, 3), (2, 1), (1, 1, 1, 1), batch=3),
    convt("grouped", (24, 10, 11), 48, (3, 3), (2, 2), (1, 1, 1, 1), groups=3, batch=3),
    convt("depthwise", (33, 20, 21), 33, (4, 4), (2, 2), (1, 1, 1, 1), groups=33, batch=3),
    convt("one-long-row", (32, 1, 1100), 18, (1, 4), (1, 2), (0, 1, 0, 1), batch=2),
    convt("one-long-row-dilated", (24, 1, 1300), 30, (1, 3), pads=(0, 0, 0, 3), dilation=(1, 2), groups=2, batch=1),
    convt("large-stride", (16, 8, 9), 4, (16, 16), (8, 8), (4, 4, 4, 4), batch=2),
]


@table(LARGE, LARGE_CHECKS)
def test_large(case, check):
    check(case)
