"""Conv2d: dense, pointwise, grouped, depthwise; and what is fused into its store."""
import numpy as np
import pytest

import microcnn as mc
from microcnn.layers.convolution import Geometry
from tests import graph_oracle
from tests.ops.table import LARGE_CHECKS, Case, built, graph_of, lively, table


def conv(name, shape, K, kernel, stride=(1, 1), pads=(0, 0, 0, 0), dilation=(1, 1), groups=1, bias=True, batch=2):
    weights = {"weight": (K, shape[0] // groups, *kernel)}
    if bias:
        weights["bias"] = (K,)
    return Case(name, lambda: graph_of("Conv2d", shape, weights=weights, kernel=kernel, stride=stride, pads=pads,
                                       dilation=dilation, groups=groups), batch)


CASES = [
    # dense: H != W, R != S, every remainder of the channels
    conv("plain", (3, 6, 8), 5, (3, 3), pads=(1, 1, 1, 1)),
    conv("1-to-1", (1, 5, 4), 1, (3, 2)),
    conv("tall", (3, 7, 4), 17, (4, 1), batch=3),
    conv("wide", (5, 4, 7), 3, (1, 4), pads=(0, 2, 0, 1)),
    conv("17-to-33", (17, 4, 3), 33, (2, 3), pads=(1, 1, 0, 1), batch=1),
    conv("33-to-17", (33, 3, 4), 17, (3, 2), pads=(1, 0, 1, 1)),
    conv("no-bias", (3, 5, 6), 5, (3, 3), bias=False, batch=3),
    conv("valid", (9, 5, 6), 8, (3, 3)),
    # few outputs: several pixels of a row are computed as one
    conv("few-outputs", (1, 9, 12), 3, (3, 5), pads=(1, 2, 1, 2)),
    conv("few-outputs-strided", (3, 8, 16), 2, (3, 3), (2, 2), (1, 1, 1, 1), bias=False, batch=3),
    conv("few-outputs-dilated-down", (2, 9, 8), 2, (2, 3), dilation=(3, 1), pads=(0, 1, 1, 1)),
    conv("few-outputs-same", (2, 5, 6), 1, (2, 4), pads="same_lower"),
    # strides, phases that see no tap, padding larger than the window
    conv("stride-2", (3, 7, 8), 5, (3, 3), (2, 2), (1, 1, 1, 1)),
    conv("stride-above-kernel", (3, 8, 9), 4, (2, 1), (3, 4)),
    conv("many-gaps", (3, 11, 9), 4, (2, 1), (5, 4)),
    conv("stride-above-image", (2, 4, 5), 3, (2, 2), (7, 6)),
    conv("stride-uneven", (5, 9, 6), 3, (3, 5), (2, 3), (0, 2, 1, 3), batch=3),
    conv("much-padding", (2, 3, 4), 3, (2, 2), pads=(3, 2, 4, 5)),
    conv("padding-at-one-corner", (2, 4, 4), 3, (3, 3), (2, 1), (2, 0, 0, 0)),
    conv("rows-left-over", (3, 8, 8), 4, (3, 3), (3, 3)),
    # dilation
    conv("dilated", (3, 8, 9), 5, (3, 2), dilation=(2, 3), pads=(2, 1, 1, 2)),
    conv("dilated-and-strided", (3, 9, 8), 4, (3, 3), (2, 2), (2, 2, 2, 2), (2, 2)),
    conv("dilation-and-stride-share-no-factor", (2, 10, 9), 3, (3, 2), (3, 2), (2, 3, 1, 0), (2, 3)),
    conv("dilation-and-stride-share-a-factor", (2, 11, 9), 3, (2, 3), (4, 6), (1, 3, 2, 0), (6, 4)),
    # one pixel
    conv("one-pixel", (5, 1, 1), 3, (1, 1)),
    conv("one-pixel-in-padding", (17, 1, 1), 5, (3, 3), pads=(1, 1, 1, 1)),
    conv("one-output", (3, 4, 5), 17, (4, 5)),
    conv("one-output-of-a-batch", (3, 4, 5), 5, (4, 5), (2, 3), batch=9),
    # pointwise, by the matrix product
    conv("pointwise", (17, 3, 5), 33, (1, 1), batch=3),
    conv("pointwise-3-to-1", (3, 4, 4), 1, (1, 1), bias=False),
    conv("pointwise-strided", (5, 5, 6), 9, (1, 1), (2, 3)),
    conv("pointwise-padded", (5, 2, 3), 4, (1, 1), pads=(1, 0, 2, 1)),
    # groups
    conv("groups-2", (6, 5, 6), 10, (3, 3), pads=(1, 1, 1, 1), groups=2),
    conv("groups-3-strided", (9, 7, 5), 6, (3, 2), (2, 2), (1, 0, 0, 1), groups=3, batch=3),
    conv("groups-of-17", (34, 3, 3), 34, (2, 2), pads=(1, 1, 0, 0), groups=2, batch=1),
    conv("groups-pointwise", (8, 3, 4), 12, (1, 1), groups=4),
    conv("groups-dilated", (4, 7, 6), 6, (2, 3), dilation=(3, 2), pads=(1, 2, 2, 1), groups=2),
    # depthwise, and with more outputs than inputs
    conv("depthwise", (5, 6, 7), 5, (3, 3), pads=(1, 1, 1, 1), groups=5),
    conv("depthwise-17-strided", (17, 7, 6), 17, (3, 3), (2, 2), (0, 0, 1, 1), groups=17, batch=3),
    conv("depthwise-33-dilated", (33, 6, 5), 33, (3, 2), dilation=(2, 2), pads=(1, 1, 2, 1), groups=33, batch=1),
    conv("depthwise-phases", (3, 9, 8), 3, (2, 3), (3, 2), (1, 0, 0, 2), (2, 3), groups=3, bias=False),
    conv("depthwise-one-pixel", (3, 1, 1), 3, (3, 3), pads=(1, 1, 1, 1), groups=3),
    # 3 x 3 windows that slide: every way in which columns and rows of the image begin and end
    *(conv(f"depthwise-{H}x{W}-stride-{stride}-pads-{'-'.join(map(str, pads))}", (3, H, W), 3, (3, 3), stride, pads, groups=3)
      for H, W, stride, pads in (
        (5, 3, (1, 1), (0, 0, 0, 0)), (1, 1, (1, 1), (1, 1, 1, 1)), (2, 1, (1, 1), (1, 2, 0, 3)), (3, 2, (1, 1), (0, 3, 1, 1)),
        (4, 2, (1, 1), (3, 0, 2, 2)), (5, 4, (2, 1), (1, 1, 1, 1)), (4, 5, (1, 2), (1, 0, 1, 0)), (6, 6, (2, 2), (0, 0, 1, 1)),
        (6, 7, (2, 2), (1, 1, 1, 1)), (5, 2, (2, 2), (2, 3, 1, 2)), (3, 1, (1, 2), (1, 1, 1, 1)), (7, 6, (4, 2), (1, 2, 0, 0)),
        (7, 8, (1, 3), (1, 1, 1, 1)))),
    conv("depthwise-dilated-down", (5, 9, 6), 5, (3, 3), (2, 1), (2, 1, 1, 1), (3, 1), groups=5, bias=False, batch=3),
    conv("depthwise-5x5", (3, 7, 10), 3, (5, 5), pads=(2, 2, 2, 2), groups=3),
    conv("depthwise-1x1", (5, 3, 4), 5, (1, 1), groups=5),
    conv("depth-multiplier", (3, 5, 6), 6, (3, 3), pads=(1, 1, 1, 1), groups=3),
    conv("depth-multiplier-17", (2, 5, 4), 34, (2, 3), (2, 1), (1, 1, 0, 1), groups=2),
    # ONNX's auto_pad
    conv("same-upper", (3, 5, 6), 4, (3, 2), (2, 2), "same_upper"),
    conv("same-lower", (3, 5, 6), 4, (2, 4), (1, 3), "same_lower"),
    conv("same-upper-dilated", (3, 5, 6), 4, (3, 2), (2, 1), "same_upper", (1, 2)),
    conv("same-upper-gaps", (3, 5, 6), 4, (1, 2), (2, 3), "same_upper"),
]


@table(CASES)
def test_conv2d(case, check):
    check(case)


@pytest.mark.parametrize("lanes, K, S, stride, OW, expected", [
    (16, 6, 5, 1, 28, 2), (16, 6, 5, 1, 27, 1), (16, 1, 3, 1, 32, 16), (16, 8, 3, 2, 48, 2), (16, 16, 3, 1, 32, 1),
    (16, 6, 1, 1, 28, 1), (8, 6, 5, 1, 28, 1), (4, 6, 5, 1, 28, 1), (4, 2, 5, 1, 28, 2)])
def test_pixels_go_together_where_that_fills_the_registers(lanes, K, S, stride, OW, expected):
    W = (OW - 1) * stride + S
    node = graph_of("Conv2d", (1, 5, W), weights={"weight": (K, 1, 3, S)}, kernel=(3, S), stride=(1, stride),
                    pads=(0, 0, 0, 0), dilation=(1, 1), groups=1).nodes[0]
    assert Geometry.of(node, (1, 5, W), (K, 1, 3, S)).pixels_together(lanes) == expected


# Fusion. Each makes one step of several nodes; "clip" cuts on both sides.

def fused(*, bn=False, add=None, activation=None, conv=None, twice=False):
    """conv (+ bn) (+ residual from before, or a shortcut made after it) (+ activation), between two other layers."""
    def build():
        b = mc.GraphBuilder(seed=4)
        x = b.input("x", (5, 4, 5))
        before = b(mc.Conv2d(5, 1), x)
        y = b(conv or mc.Conv2d(5, 3, padding=1), before)
        if bn:
            y = b(mc.BatchNorm2d(), y)
        if add == "before":
            y = b(mc.Add(), y, before)
        elif add == "swapped":
            y = b(mc.Add(), x, y)
        elif add == "later":
            y = b(mc.Add(), y, b(mc.Conv2d(5, 1), x))
        elif add == "itself":
            y = b(mc.Add(), y, y)
        elif add == "another layout":
            z = b(mc.Reshape((5, 4, 5)), b(mc.Flatten(), x))
            y = b(mc.Add(), y, z)
        if activation:
            y = b(activation, y)
        z = b(mc.Conv2d(3, 2), y)
        return lively(b.graph(*((z, y) if twice else (z,))))
    return build


FUSED = [
    Case("relu", fused(activation=mc.ReLU())),
    Case("clip", fused(activation=mc.Clip(-0.2, 0.3))),
    Case("relu6", fused(activation=mc.ReLU6())),
    Case("residual", fused(add="before")),
    Case("residual-relu", fused(add="before", activation=mc.ReLU())),
    Case("residual-is-the-input", fused(add="swapped", activation=mc.ReLU())),
    Case("shortcut-made-later", fused(add="later", activation=mc.ReLU())),
    Case("added-to-itself", fused(add="itself", activation=mc.ReLU())),
    Case("residual-in-another-layout", fused(add="another layout", activation=mc.ReLU())),
    Case("output-is-read-outside", fused(add="before", activation=mc.ReLU(), twice=True)),
    Case("depthwise-residual-relu", fused(add="before", activation=mc.ReLU(),
                                          conv=mc.Conv2d(5, 3, padding=1, groups=5))),
    Case("grouped-relu", fused(activation=mc.ReLU(), conv=mc.Conv2d(10, 3, padding=1, groups=5))),
    Case("pointwise-residual-clip", fused(add="before", activation=mc.Clip(-0.2, 0.3), conv=mc.Conv2d(5, 1))),
    Case("strided-relu", fused(activation=mc.ReLU(), conv=mc.Conv2d(7, 3, stride=2, padding=1))),
    # batch statistics take away what a bias adds: its gradient is 0 but for roundings, so there is none here
    *(Case(f"{mode}-bn-{add or 'no-add'}-relu", fused(bn=True, add=add, activation=mc.ReLU(), conv=mc.Conv2d(
        5, 3, padding=1, bias=mode != "batch")), batch, mode)
      for mode, batch in (("frozen", 2), ("batch", 3), ("fold", 2)) for add in (None, "before", "later")),
    Case("bn-without-conv-bias", fused(bn=True, activation=mc.ReLU(), conv=mc.Conv2d(4, 3, bias=False)), 2, "fold"),
    Case("bn-depthwise", fused(bn=True, activation=mc.ReLU6(), conv=mc.Conv2d(5, 3, groups=5, bias=False))),
    # only the last layer trains: what is before it runs folded, also in training
    Case("frozen-front", fused(bn=True, add="before", activation=mc.ReLU()), options={"train": ["conv3.*"]}),
]


@table(FUSED)
def test_fused(case, check):
    check(case)


def test_the_gradient_of_a_bias_before_batch_statistics_is_zero(rng):
    net = built((2, 5, 4), mc.Conv2d(3, 3), mc.BatchNorm2d()).compile(batch=3, train="all", bn="batch", dtype="float64")
    net.forward(rng.normal(size=(3, 2, 5, 4)))
    net.backward(rng.normal(size=(3, 3, 3, 2)))
    assert np.abs(net.gradients()["conv1.bias"]).max() < 1e-14


def test_a_residual_is_overwritten_only_where_no_one_else_reads_it():
    b = mc.GraphBuilder(seed=4)
    x = b.input("x", (4, 5, 5))
    shortcut = b(mc.Conv2d(4, 1), x)
    y = b(mc.ReLU(), b(mc.Add(), b(mc.Conv2d(4, 3, padding=1), x), shortcut))
    net = b.graph(y).compile(batch=1, dtype="float64")
    rows = {info.layer for info in net._programs["predict"][0].infos if info.phase == "forward"}
    assert len(rows) == 2, "conv, add and relu run as one step"
    assert net.memory.activations <= 3 * 4 * 25 * 8 + 3 * 64, "input, shortcut (which the sum takes over), nothing else"


LARGE = [
    conv("dense", (16, 20, 22), 24, (3, 3), pads=(1, 1, 1, 1), batch=3),
    conv("few-channels", (3, 33, 31), 16, (3, 3), (2, 2), (1, 1, 1, 1), batch=3),
    conv("strided-dilated", (12, 31, 30), 20, (3, 3), (2, 2), (2, 1, 2, 1), (2, 2), batch=3),
    conv("pointwise", (32, 17, 16), 40, (1, 1), batch=3),
    conv("grouped", (24, 20, 21), 48, (3, 3), pads=(1, 1, 1, 1), groups=3, batch=3),
    conv("depthwise", (33, 40, 41), 33, (3, 3), pads=(1, 1, 1, 1), groups=33, batch=3),
    conv("depthwise-strided", (48, 41, 40), 48, (3, 3), (2, 2), (0, 0, 1, 1), groups=48, batch=3),
    conv("many-channels", (100, 4, 5), 112, (3, 3), (2, 1), (1, 1, 1, 1), batch=3),
    # images of some megabytes, which are read in order before they are gone through
    conv("depthwise-megabytes", (40, 121, 116), 40, (3, 3), pads=(1, 1, 1, 1), groups=40, batch=2),
    conv("depthwise-megabytes-strided", (40, 121, 116), 40, (3, 3), (2, 2), (1, 1, 0, 0), groups=40, batch=2),
    conv("pointwise-megabytes", (6, 121, 116), 40, (1, 1), batch=2),
    # windows of so many numbers that the weights are read in parts: in panels, and where they lie together as they are
    conv("deep", (90, 5, 6), 70, (3, 3), pads=(1, 1, 1, 1), batch=2),
    conv("deep-whole-rows", (30, 6, 5), 147, (6, 5), pads=(3, 2, 2, 2), bias=False, batch=1),
    conv("deep-one-register", (100, 5, 5), 12, (3, 3), pads=(1, 1, 1, 1), batch=2),
    conv("deep-strided", (96, 9, 8), 130, (3, 3), (2, 2), (1, 1, 1, 1), batch=3),
    conv("deep-dilated", (90, 7, 7), 70, (3, 3), pads=(2, 2, 2, 2), dilation=(2, 2), batch=1),
    conv("deep-groups", (180, 5, 5), 160, (3, 3), pads=(1, 1, 1, 1), groups=2, batch=1),
    conv("deep-few-pixels", (200, 2, 2), 70, (2, 2), pads=(1, 1, 0, 0), batch=2),
    conv("deep-pointwise", (600, 5, 5), 147, (1, 1), batch=2),
    conv("one-long-row", (32, 1, 1501), 20, (1, 5), pads=(0, 2, 0, 1), batch=2),
    conv("one-long-row-strided", (32, 1, 1600), 34, (1, 4), (1, 3), (0, 0, 0, 3), (1, 2), 2, batch=1),
    conv("one-long-row-few-outputs", (40, 1, 1500), 2, (1, 3), pads=(0, 1, 0, 1), batch=2),
    conv("long-rows", (4, 3, 1500), 8, (3, 5), pads=(1, 2, 1, 2), batch=2),
]


@table(LARGE, LARGE_CHECKS)
def test_large(case, check):
    check(case)


@pytest.mark.parametrize("dtype, tolerance", [("float32", 2e-5), ("float64", 1e-12)])
def test_deep_sums_wait_in_the_output(dtype, tolerance, rng):
    """Residual, bias and clamp belong to the first and the last part of the weights only; fewer samples than planned."""
    b = mc.GraphBuilder(seed=4)
    x = b.input("x", (96, 5, 6))
    y = b(mc.Conv2d(96, 3, padding=1), x)
    y = b(mc.ReLU(), b(mc.Add(), b(mc.Conv2d(96, 3, padding=1), y), y))
    z = b(mc.Conv2d(300, 1), y)
    graph = b.graph(b(mc.Clip(-0.2, 0.3), b(mc.Add(), b(mc.Conv2d(300, 1), z), z)))
    image = rng.normal(size=(3, 96, 5, 6))
    net = graph.compile(batch=3, dtype=dtype, winograd=False)
    deep = [info for info in net._programs["predict"][0].infos if info.kernel in ("conv2d.forward", "linear.forward")]
    assert len(deep) == 4
    expected = graph_oracle.evaluate(graph, {"x": image})[graph.outputs[0]]
    for samples in (3, 1):
        np.testing.assert_allclose(net.predict(image[:samples].astype(dtype)), expected[:samples], rtol=0, atol=tolerance)


def test_fewer_samples_leave_the_rest_of_the_gradients_out(rng):
    case = conv("plain", (3, 6, 8), 5, (3, 3), batch=4)
    net = case.compile()
    x, dy = rng.normal(size=(4, 3, 6, 8)), rng.normal(size=(4, 5, 4, 6))
    parts = []
    for samples in (slice(0, 3), slice(3, 4)):
        net.forward(x[samples])
        net.backward(dy[samples])
        parts.append(net.gradients())
    net.forward(x)
    net.backward(dy)
    for name, whole in net.gradients().items():
        np.testing.assert_allclose(parts[0][name] + parts[1][name], whole, rtol=1e-12, atol=1e-13)
