"""Softmax over each axis, and over several at once."""
import numpy as np
import pytest

import microcnn as mc
from tests.ops.table import LARGE_CHECKS, Case, drawn, graph_of, lively, table


def softmax(shape, axis, flatten=False, batch=2):
    return Case(f"{'x'.join(map(str, shape))}-axis{axis}{'-flatten' * flatten}",
                lambda: graph_of("Softmax", shape, axis=axis, flatten=flatten), batch)


CASES = [
    softmax((1,), 1), softmax((5,), 1, batch=3), softmax((17,), -1, batch=3), softmax((33,), 1, batch=1),
    softmax((3, 4, 5), 1), softmax((3, 4, 5), 2), softmax((3, 4, 5), 3, batch=3), softmax((3, 4, 5), -3),
    softmax((17, 2, 3), 1, batch=3), softmax((4, 17), 1), softmax((4, 33), 2), softmax((5, 1, 1), 1),
    softmax((1, 3, 1), 1), softmax((3, 4, 5), 1, True), softmax((3, 4, 5), 2, True, 3), softmax((3, 4, 5), -1, True),
    softmax((2, 3, 2, 2), 3, True),
]


@table(CASES)
def test_softmax(case, check):
    check(case)


@table([Case(f"{'x'.join(map(str, shape))}-axis{axis}{'-flatten' * flatten}",
             lambda shape=shape, axis=axis, flatten=flatten: graph_of("LogSoftmax", shape, axis=axis, flatten=flatten), batch)
        for shape, axis, flatten, batch in (((1,), 1, False, 1), ((17,), -1, False, 3), ((3, 4, 5), 1, False, 2),
                                            ((3, 4, 5), 2, False, 3), ((3, 4, 5), 3, False, 2), ((3, 4, 5), 2, True, 2))])
def test_log_softmax(case, check):
    check(case)


def test_log_softmax_far_from_zero():
    x = np.array([[1e4, 1e4 - 1, -1e4]], np.float32)
    net = graph_of("LogSoftmax", (3,), axis=1, flatten=False).compile()
    below = -np.log1p(np.exp(-1.0))
    np.testing.assert_allclose(net.forward(x), [[below, below - 1, below - 2e4]], rtol=1e-6)
    assert np.isfinite(net.backward(np.ones_like(x))).all()


def between(axis, flatten=False):
    """On an image that lies channels last, read again behind it. A bias would be the same in all of a group."""
    def build():
        graph = graph_of("Softmax", (6, 4, 5), axis=axis, flatten=flatten)
        first = mc.Sequential([mc.Conv2d(6, 3, padding=1, bias=False)], input_shape=(3, 4, 5), seed=2).graph()
        last = graph_of("Conv2d", (6, 4, 5), weights={"weight": (2, 6, 2, 2)}, kernel=(2, 2), stride=(1, 1),
                        pads=(0, 0, 0, 0), dilation=(1, 1), groups=1)
        soft, conv = graph.nodes[0], last.nodes[0]
        soft.name, soft.inputs, soft.outputs = "soft", ("output",), ("s",)
        conv.inputs = ("s",)
        weights = {**first.weights, "weight": drawn(np.random.default_rng(1), "weight", (2, 6, 2, 2))}
        return lively(type(graph)(first.inputs, ["y"], [*first.nodes, soft, conv], weights))
    return build


@table([Case(f"axis{axis}{'-flatten' * flatten}", between(axis, flatten))
        for axis, flatten in ((1, False), (2, False), (3, False), (1, True), (2, True))])
def test_on_images(case, check):
    check(case)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_large_logits_do_not_overflow(dtype):
    x = np.array([[1e4, 1e4 - 1, -1e4], [-1e30, -1e30, -1e30], [3e38, 0, -3e38]], dtype)
    y = graph_of("Softmax", (3,), axis=1, flatten=False).compile(batch=3, dtype=dtype).predict(x)
    e = np.exp(-1.0)
    np.testing.assert_allclose(y, [[1 / (1 + e), e / (1 + e), 0], [1 / 3] * 3, [1, 0, 0]], rtol=1e-6)


@table([softmax((40, 41, 42), axis, flatten, 3) for axis, flatten in ((1, False), (2, False), (3, False), (2, True))]
       + [softmax((2, 200, 201), 1), softmax((100000,), 1)], LARGE_CHECKS)
def test_large(case, check):
    check(case)


@pytest.mark.parametrize("axis", [0, -4, 4])
def test_the_batch_is_no_axis(axis):
    with pytest.raises(mc.MicroCNNError, match=r'Softmax "node": axis \(=-?\d\) must be an axis of the sample, 1 to 3 or'):
        graph_of("Softmax", (3, 4, 5), axis=axis, flatten=False).shapes()
