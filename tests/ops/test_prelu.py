"""PRelu with one slope, one per channel, per row, per number."""
import numpy as np
import pytest

import microcnn as mc
from tests.ops.table import LARGE_CHECKS, Case, built, drawn, graph_of, table


def prelu(shape, slope, batch=2):
    return Case(f"{'x'.join(map(str, shape))}-slope{'x'.join(map(str, slope))}",
                lambda: graph_of("PRelu", shape, weights={"slope": slope}), batch)


@table([prelu((3, 4, 5), (1,)), prelu((3, 4, 5), ()), prelu((3, 4, 5), (3, 1, 1), 3), prelu((3, 4, 5), (5,)),
        prelu((3, 4, 5), (4, 1)), prelu((3, 4, 5), (4, 5)), prelu((17, 2, 3), (1, 17, 2, 3)), prelu((33,), (33,), 3),
        prelu((3, 1, 5), (3, 1, 5)), prelu((1,), (1,), 1)])
def test_prelu(case, check):
    check(case)


def on_images(slope):
    """On an image that lies channels last, between convolutions."""
    def build():
        graph = built((3, 4, 5), mc.Conv2d(6, 3, padding=1), mc.PReLU(), mc.Conv2d(2, 2))
        node = next(node for node in graph.nodes if node.op == "PRelu")
        graph.weights[node.weights["slope"].name] = drawn(np.random.default_rng(8), "slope", slope)
        return graph
    return build


@table([Case("x".join(map(str, slope)), on_images(slope))
        for slope in ((1,), (6, 1, 1), (4, 1), (5,), (6, 4, 5), (4, 5), (6, 4, 1))])
def test_on_images(case, check):
    check(case)


@table([prelu((17, 60, 61), (17, 1, 1), 2), prelu((9000,), (9000,), 3)], LARGE_CHECKS)
def test_large(case, check):
    check(case)


@pytest.mark.parametrize("count, shape", [(1, (1,)), (3, (3, 1, 1))])
def test_as_in_pytorch(count, shape):
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(1).normal(size=(2, 3, 4, 5)).astype(np.float32)
    x[0, :, 0] = 0
    theirs, seen = torch.nn.PReLU(count), torch.tensor(x, requires_grad=True)
    y = theirs(seen)
    (y ** 2).sum().backward()
    net = mc.Sequential([mc.PReLU(count)], input_shape=(3, 4, 5)).graph().compile(batch=2, train="all")
    (name, weight), = net.parameters().items()
    assert weight.shape == shape and (weight == 0.25).all()
    np.testing.assert_allclose(net.forward(x), y.detach().numpy(), rtol=1e-6)
    np.testing.assert_allclose(net.backward(2 * y.detach().numpy()), seen.grad.numpy(), rtol=1e-6)
    np.testing.assert_allclose(net.gradients()[name].reshape(-1), theirs.weight.grad.numpy(), rtol=1e-5)


def test_what_does_not_fit_is_refused():
    with pytest.raises(mc.MicroCNNError, match=r'PRelu "node": the slope has shape \(4, 1, 1\), which does not broadcast to'):
        graph_of("PRelu", (3, 4, 5), weights={"slope": (4, 1, 1)}).shapes()
    with pytest.raises(mc.MicroCNNError, match=r"the slope has shape \(3, 1, 5\); expected its axes larger than one to be ne"):
        graph_of("PRelu", (3, 4, 5), weights={"slope": (3, 1, 5)}).shapes()
    with pytest.raises(mc.MicroCNNError, match=r"PReLU: num_parameters \(=4\) does not fit an input of shape \(3, 4, 5\)"):
        mc.Sequential([mc.PReLU(4)], input_shape=(3, 4, 5)).graph()
