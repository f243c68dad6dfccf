"""Linear: Gemm and MatMul, both orders of the weight, any number of axes in front."""
import numpy as np
import pytest

import microcnn as mc
from microcnn.graph import Graph, Input, Node, WeightRef
from microcnn.kernels.simd import lanes_of
from tests.ops.table import LARGE_CHECKS, Case, built, close, drawn, graph_of, poison, table


def linear(shape, K, transposed=True, bias=True, batch=2):
    C = shape[-1]
    weights = {"weight": (K, C) if transposed else (C, K), **({"bias": (K,)} if bias else {})}
    name = f"{'x'.join(map(str, shape))}-to-{K}{'-as-stored' * (not transposed)}{'-no-bias' * (not bias)}"
    return Case(f"{name}-batch{batch}", lambda: graph_of("Linear", shape, weights=weights, transposed=transposed), batch)


CASES = [
    linear((1,), 1, batch=1), linear((3,), 5), linear((17,), 33, batch=1), linear((33,), 17, False, batch=3),
    linear((5,), 3, False, False), linear((17,), 1, bias=False, batch=3), linear((1,), 17, batch=3),
    linear((70,), 10, batch=3),
    # every number of registers of a single row, whole and not
    *(linear((7,), K, batch=1) for K in (16, 20, 31, 40, 63, 64, 65, 100, 112, 113, 128, 129)),
    # enough rows for the transposed weights
    linear((5,), 7, batch=9), linear((4, 5), 3), linear((3, 4, 17), 5, False), linear((2, 3, 2, 5), 33, batch=1),
    linear((9, 6), 4, True, False, 3),
]


@table(CASES)
def test_linear(case, check):
    check(case)


def network(*layers, shape=(6,)):
    return lambda: built(shape, *layers)


def residual():
    b = mc.GraphBuilder(seed=2)
    x = b.input("x", (7,))
    y = b(mc.Linear(7), x)
    y = b(mc.ReLU(), b(mc.Add(), b(mc.Linear(7), y), y))
    z = b(mc.Clip(-0.3, 0.3), b(mc.Add(), b(mc.Linear(7), y), b(mc.Linear(7), x)))
    return b.graph(b(mc.Linear(3), b(mc.Add(), z, y)), z)


def shared():
    """One weight read by two layers: its gradients add up, and it is updated once."""
    rng = np.random.default_rng(2)
    weights = {"w": drawn(rng, "weight", (6, 6)), "b": drawn(rng, "bias", (6,)), "c": drawn(rng, "bias", (6,))}
    first, last = ({"weight": WeightRef("w"), "bias": WeightRef(bias)} for bias in "bc")
    nodes = [Node("Linear", "first", ("x",), ("h",), {"transposed": True}, first), Node("Tanh", "middle", ("h",), ("a",)),
             Node("Linear", "last", ("a",), ("y",), {"transposed": True}, last)]
    return Graph([Input("x", (6,))], ["y"], nodes, weights)


def viewed():
    """A weight that is stored transposed and flat."""
    rng = np.random.default_rng(2)
    view = (("reshape", (5, 6)), ("transpose", (1, 0)))
    node = Node("Linear", "fc", ("x",), ("y",), {"transposed": False}, {"weight": WeightRef("w", view)})
    return Graph([Input("x", (6,))], ["y"], [node], {"w": drawn(rng, "weight", (30,))})


CHAINS = [
    Case("three-layers", network(mc.Linear(17), mc.ReLU(), mc.Linear(9), mc.Tanh(), mc.Linear(3)), 3),
    Case("clipped", network(mc.Linear(17), mc.Clip(-0.3, 0.4), mc.Linear(3))),
    Case("residual", residual, 3),
    Case("residual-many-rows", residual, 9),
    Case("shared-weight", shared, 3),
    Case("stored-otherwise", viewed, 3),
    Case("only-the-first-trains", network(mc.Linear(5), mc.ReLU(), mc.Linear(3)), options={"train": ["linear1.*"]}),
    Case("only-the-last-trains", network(mc.Linear(5), mc.ReLU(), mc.Linear(3)), options={"train": "head"}),
    Case("only-biases-train", network(mc.Linear(5), mc.ReLU(), mc.Linear(3)), options={"train": ["*.bias"]}),
]


@table(CHAINS)
def test_chains(case, check):
    check(case)


LARGE = [linear((400,), 300, batch=16), linear((17, 150), 65, False, batch=3), linear((2000, 9), 33, batch=2),
         linear((2000,), 130, batch=1), linear((40, 600), 147, False, batch=2), linear((25, 256), 70, batch=1),
         linear((300,), 1000, batch=3)]


@table(LARGE, LARGE_CHECKS)
def test_large(case, check):
    check(case)


def test_what_does_not_fit_is_refused():
    with pytest.raises(mc.MicroCNNError, match=r'Linear "node": the input has 4 features, the weight \(3, 5\) ex'):
        graph_of("Linear", (4,), weights={"weight": (3, 5)}, transposed=True).shapes()
    with pytest.raises(mc.MicroCNNError, match="put a Flatten before it"):
        graph_of("Linear", (2, 2), weights={"weight": (3, 4)}, transposed=True).shapes()
    with pytest.raises(mc.MicroCNNError, match=r"bias has shape \(4,\); expected \(3,\)"):
        graph_of("Linear", (4,), weights={"weight": (3, 4), "bias": (4,)}, transposed=True).shapes()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("C, K", [(63, 10), (64, 10), (101, 7), (200, 16), (70, 17), (70, 33), (70, 100)])
def test_a_row_does_not_depend_on_how_many_there_are(C, K, dtype, rng):
    net = mc.Sequential([mc.Linear(K), mc.ReLU()], (C,)).graph().compile(batch=30, dtype=dtype)
    x = rng.normal(size=(30, C)).astype(dtype)
    y = net.predict(x)
    for rows in (1, 2, 3, 4, 5, 7, 9, 11, 19, 25):
        np.testing.assert_array_equal(net.predict(x[:rows]), y[:rows])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("C, K, turned", [(40, 5, True), (144, 24, True), (64, 64, False), (5, 40, False), (33, 1, True)])
def test_a_gradient_that_is_made_the_other_way_around(C, K, turned, dtype):
    """Where dY^T x fills more of the registers than x^T dY, here those of 16 numbers: dW is that, turned."""
    graph = built((C, 9, 8), mc.Conv2d(K, 1, bias=False))
    net = graph.compile(batch=3, train="all", loss="mse", optimizer=mc.SGD(lr=1.0), dtype=dtype)
    found = [info.kernel for info in net.rows("train")]
    if (lanes_of("float32"), dtype) == (16, "float32"):
        assert ("linear.transpose" in found) == turned
    rng = np.random.default_rng(4)
    x, t = rng.standard_normal((3, C, 9, 8)).astype(dtype), rng.standard_normal((3, K, 9, 8)).astype(dtype)
    (name, weight), = graph.weights.items()
    poison(net)
    net.train_step(x, t)
    y = np.einsum("nchw,kc->nkhw", x.astype(np.float64), weight[:, :, 0, 0].astype(np.float64))
    gradient = np.einsum("nkhw,nchw->kc", 2 * (y - t) / y.size, x)
    close((weight - net.parameters()[name])[:, :, 0, 0], gradient, 1e-12 if dtype == "float64" else 2e-5, "dW")
