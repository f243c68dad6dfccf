"""GlobalMaxPool2d, AdaptiveAvgPool2d, AdaptiveMaxPool2d."""
import numpy as np
import pytest

import microcnn as mc
from tests import graph_oracle
from tests.ops.table import Case, built, close, graph_of, only, repeated, runtime, single_precision, table

SHAPES = [((3, 4, 5), 2), ((17, 1, 1), 1), ((33, 9, 8), 3), ((1, 3, 1), 2), ((5, 20, 17), 2)]
GLOBAL = [Case("global-" + "x".join(map(str, shape)), lambda shape=shape: graph_of("GlobalMaxPool2d", shape), batch)
          for shape, batch in SHAPES]


@table(GLOBAL)
def test_globalmaxpool2d(case, check):
    check(case)


# shape, size: windows that overlap, that all are equally large, that are fewer or more than the pixels
SIZES = [((3, 7, 5), (3, 2)), ((17, 6, 7), (4, 7)), ((5, 10, 8), (4, 4)), ((2, 3, 4), (5, 6)), ((33, 5, 9), (5, 4)),
         ((1, 1, 6), (1, 4)), ((4, 11, 3), (10, 3))]
ADAPTIVE = [Case(f"{op[8:11]}-{'x'.join(map(str, (*shape, *size)))}",
                 lambda op=op, shape=shape, size=size: graph_of(op, shape, size=size), 2)
            for op in ("AdaptiveAvgPool2d", "AdaptiveMaxPool2d") for shape, size in SIZES]


@table(ADAPTIVE)
def test_adaptive(case, check):
    check(case)


BETWEEN = [Case(f"{layer.__name__}-{name}", lambda layer=layer, more=more: built(
    (2, 7, 9), mc.Conv2d(5, 3), *more, layer((3, 4)), mc.Flatten(), mc.Linear(3)), 2)
    for layer in (mc.AdaptiveAvgPool2d, mc.AdaptiveMaxPool2d) for name, more in (("plain", ()), ("relu", (mc.ReLU(),)))]
BETWEEN += [Case("global-relu6", lambda: built((2, 7, 8), mc.Conv2d(17, 3), mc.ReLU6(), mc.GlobalMaxPool2d(),
                                                   mc.Flatten(), mc.Linear(3)))]


@table(BETWEEN)
def test_between_other_layers(case, check):
    check(case)


def test_the_first_of_equal_numbers_gets_the_gradient():
    x = np.zeros((1, 2, 5, 3))
    x[:, :, 1:, 1:] = 1
    dx = graph_of("GlobalMaxPool2d", (2, 5, 3)).compile(dtype="float64")
    dx.forward(x)
    expected = np.zeros(x.shape)
    expected[0, :, 1, 1] = (3, 4)
    np.testing.assert_array_equal(dx.backward(np.array([3.0, 4.0]).reshape(1, 2, 1, 1)), expected)


@pytest.mark.parametrize("layer, op", [
    (mc.AdaptiveAvgPool2d(1), "GlobalAvgPool2d"), (mc.AdaptiveMaxPool2d((1, 1)), "GlobalMaxPool2d"),
    (mc.AdaptiveAvgPool2d((2, 4)), "AvgPool2d"), (mc.AdaptiveMaxPool2d((3, None)), "MaxPool2d"),
    (mc.AdaptiveAvgPool2d(5), "AdaptiveAvgPool2d"), (mc.AdaptiveMaxPool2d((None, 3)), "AdaptiveMaxPool2d")])
def test_a_plain_pool_where_the_size_divides(layer, op):
    graph = built((3, 6, 8), layer)
    assert graph.nodes[0].op == op
    wanted = layer.output_size if isinstance(layer.output_size, tuple) else (layer.output_size,) * 2
    assert graph.shapes()["output"] == (3, *(old if n is None else n for n, old in zip(wanted, (6, 8), strict=True)))


@pytest.mark.parametrize("size", [0, (2, -1), (1, 2, 3), 2.5, "2"])
def test_sizes_that_are_none(size):
    with pytest.raises(mc.ModelError, match="AdaptiveAvgPool2d: output_size is"):
        built((3, 6, 8), mc.AdaptiveAvgPool2d(size))


@pytest.mark.torch
def test_as_pytorch_does():
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(2).normal(size=(2, 3, 11, 13))
    for size in ((4, 5), (11, 6), (20, 3)):
        for layer in (mc.AdaptiveAvgPool2d, mc.AdaptiveMaxPool2d):
            net = built((3, 11, 13), layer(size)).compile(batch=2, dtype="float64")
            given = torch.from_numpy(x).requires_grad_()
            expected = getattr(torch.nn, layer.__name__)(size)(given)
            np.testing.assert_allclose(net.forward(x), expected.detach().numpy(), rtol=1e-12)
            dy = np.random.default_rng(3).normal(size=expected.shape)
            expected.backward(torch.from_numpy(dy))
            np.testing.assert_allclose(net.backward(dy), given.grad.numpy(), rtol=1e-10, atol=1e-12)


def test_what_was_exported_can_be_read_again(tmp_path):
    graph = built((3, 7, 9), mc.AdaptiveAvgPool2d((3, 4)), mc.AdaptiveMaxPool2d((2, 3)))
    mc.save_onnx(graph, tmp_path / "model.onnx")
    x = np.random.default_rng(1).normal(size=(2, 3, 7, 9)).astype(np.float32)
    again = mc.load_onnx(tmp_path / "model.onnx")
    np.testing.assert_allclose(again.compile(batch=2).predict(x), graph.compile(batch=2).predict(x), rtol=1e-5, atol=1e-6)
    assert not again.weights


LARGE = [("GlobalMaxPool2d", (33, 80, 81), {}), ("AdaptiveAvgPool2d", (24, 50, 51), {"size": (7, 6)}),
         ("AdaptiveMaxPool2d", (17, 40, 41), {"size": (7, 6)})]


@pytest.mark.parametrize("op, shape, attrs", LARGE, ids=[one[0] for one in LARGE])
def test_large(op, shape, attrs):
    case = Case(op, lambda: graph_of(op, shape, **attrs), 3)
    for check in (single_precision, repeated, runtime):
        check(case)
    x = case.inputs()
    close(case.compile().predict(only(x)), graph_oracle.evaluate(case.graph(), x)["y"], 1e-12, "predict")
