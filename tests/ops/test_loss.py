"""Losses through a whole training step: the loss, and every weight after it, against plain loops."""
import numpy as np
import pytest

import microcnn as mc
from microcnn.graph import Graph, Input, Node, WeightRef
from tests import oracles
from tests.ops import walk
from tests.ops.table import SINGLE, Case, built, close, only, poison, same_bits, spread, steps, threads

TOLERANCE = {"float32": SINGLE, "float64": 1e-12}
DTYPES = pytest.mark.parametrize("dtype", ["float32", "float64"])


def held(graph, loss, x, t, logits, expected, *, dtype, batch=3, sample_weight=None):
    """One step with lr 1 must return the oracle's loss and change each weight by the oracle's gradient.

    logits: the tensor that the loss reads; expected: (loss, gradient of logits) from what that tensor holds.
    """
    net = graph.compile(batch=batch, train="all", loss=loss, optimizer=mc.SGD(lr=1.0), dtype=dtype)
    values = walk.forward(graph, {"input": x})
    wanted, dx = expected(values[logits])
    gradients = walk.backward(graph, values, {logits: dx})[1]
    poison(net)
    evaluated = net.evaluate(x, t)["loss"]
    poison(net)
    found = net.train_step(x.astype(dtype), t, sample_weight)
    assert found == pytest.approx(wanted, rel=TOLERANCE[dtype])
    if sample_weight is None:
        assert evaluated == pytest.approx(wanted, rel=TOLERANCE[dtype])
    for name, array in net.parameters().items():
        close(graph.weights[name] - array.astype(np.float64), gradients[name], 5 * TOLERANCE[dtype], name)


def features(*last):
    return built((4,), mc.Linear(6), mc.Tanh(), mc.Linear(5), *last)


def image(*last):
    return built((2, 4, 3), mc.Conv2d(5, 3, padding=1), *last)


GRAPHS = {
    # name: (graph, the tensor that the loss reads, shape of the labels of one sample)
    "features": (features, (), "output", ()),
    "image": (image, (), "output", (4, 3)),
    "softmax": (features, (mc.Softmax(),), "linear2.out", ()),
    "softmax-on-image": (image, (mc.Softmax(),), "conv1.out", (4, 3)),
    "image-in-another-order": (lambda: built((4,), mc.Linear(60), mc.Reshape((5, 4, 3))), (), "output", (4, 3)),
    "pooled-image": (image, (mc.GlobalAvgPool2d(),), "output", (1, 1)),
    "flattened": (image, (mc.GlobalAvgPool2d(), mc.Flatten()), "output", ()),
}


def network(name):
    build, last, logits, labels = GRAPHS[name]
    graph = build(*last)
    rng = np.random.default_rng(2)
    return graph, logits, spread(rng, (3, *graph.inputs[0].shape)), rng.integers(0, 5, (3, *labels)), rng


@DTYPES
@pytest.mark.parametrize("name", GRAPHS)
def test_cross_entropy_of_labels(name, dtype):
    graph, logits, x, t, _ = network(name)
    held(graph, "cross_entropy", x, t, logits, lambda z: oracles.cross_entropy(z, t), dtype=dtype)


@DTYPES
@pytest.mark.parametrize("name", GRAPHS)
def test_cross_entropy_of_probabilities(name, dtype):
    graph, logits, x, labels, rng = network(name)
    t = rng.uniform(0.1, 1, (3, 5, *labels.shape[1:])).astype(np.float32)
    t = (t / t.sum(1, keepdims=True)).astype(np.float32)
    held(graph, "cross_entropy", x, t, logits, lambda z: oracles.cross_entropy(z, t.astype(np.float64)), dtype=dtype)


CLASS_WEIGHT = [0.5, 2.0, 1.0, 0.25, 4.0]
OPTIONS = {"class-weight": {"weight": CLASS_WEIGHT}, "smoothing": {"label_smoothing": 0.125},
           "ignored": {"ignore_index": 2}, "all": {"weight": CLASS_WEIGHT, "label_smoothing": 0.25, "ignore_index": 2}}


@DTYPES
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("name", ["features", "image", "softmax", "image-in-another-order"])
def test_options_of_cross_entropy(name, options, dtype):
    graph, logits, x, t, _ = network(name)
    t.reshape(-1)[:2] = 1, 2     # one of them is ignored, one is not
    held(graph, mc.CrossEntropyLoss(**options), x, t, logits, lambda z: oracles.cross_entropy(
        z, t, options.get("weight"), options.get("ignore_index", -100), options.get("label_smoothing", 0.0)),
         dtype=dtype)


@DTYPES
@pytest.mark.parametrize("name", ["features", "image", "softmax-on-image"])
def test_sample_weights_of_cross_entropy(name, dtype):
    graph, logits, x, t, _ = network(name)
    w = np.array([0.5, 0.0, 3.0])
    held(graph, "cross_entropy", x, t, logits, lambda z: oracles.cross_entropy(z, t, sample_weight=w), dtype=dtype,
         sample_weight=w)


@DTYPES
@pytest.mark.parametrize("name", ["features", "image", "softmax", "image-in-another-order", "flattened"])
@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
def test_mean_squared_error(name, weighted, dtype):
    graph, _, x, _, rng = network(name)
    t = rng.normal(size=(3, *graph.shapes()["output"])).astype(np.float32)
    w = np.array([0.5, 0.0, 3.0]) if weighted else None
    held(graph, "mse", x, t, "output", lambda z: oracles.mean_squared_error(z, t.astype(np.float64), w), dtype=dtype,
         sample_weight=w)


@DTYPES
@pytest.mark.parametrize("shape, first", [((4,), mc.Linear(5)), ((2, 4, 3), mc.Conv2d(5, 3, padding=1))],
                         ids=["features", "image"])
def test_losses_of_two_outputs_that_read_one_tensor(shape, first, dtype, rng):
    """The logits and their softmax are both outputs: both losses read the logits, and their gradients add up."""
    b = mc.GraphBuilder()
    logits = b(first, b.input("input", shape))
    graph = b.graph(logits, b(mc.Softmax(), logits))
    x, t = spread(rng, (3, *shape)), {name: rng.integers(0, 5, (3, *shape[1:])) for name in graph.outputs}

    def both(z):
        parts = [oracles.cross_entropy(z, labels) for labels in t.values()]
        return sum(loss for loss, _ in parts), sum(dx for _, dx in parts)
    held(graph, "cross_entropy", x, t, logits, both, dtype=dtype)


@pytest.mark.parametrize("kind", ["int8", "uint8", "int16", "int32", "uint32", "int64", "uint64"])
def test_labels_of_any_integer_type(kind):
    graph, logits, x, t, _ = network("features")
    held(graph, "cross_entropy", x, t.astype(kind), logits, lambda z: oracles.cross_entropy(z, t), dtype="float64")


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
def test_fewer_samples_than_planned(loss):
    graph, logits, x, labels, rng = network("image")
    t = labels if loss == "cross_entropy" else rng.normal(size=(3, 5, 4, 3))
    oracle = oracles.cross_entropy if loss == "cross_entropy" else oracles.mean_squared_error
    held(graph, loss, x, t, logits, lambda z: oracle(z, t), dtype="float64", batch=8)


@pytest.mark.parametrize("name", ["features", "softmax", "image"])
def test_evaluate_in_parts(name):
    graph, logits, x, t, _ = network(name)
    net = graph.compile(batch=2, loss="cross_entropy", dtype="float64")
    z = walk.forward(graph, {"input": x})[logits]
    result = net.evaluate(x, t)
    assert result["loss"] == pytest.approx(oracles.cross_entropy(z, t)[0], rel=1e-12)
    assert result["accuracy"] == pytest.approx((z.argmax(1) == t).mean())


def heads():
    """A trunk and three outputs: one per kind of loss, and one without."""
    b = mc.GraphBuilder(seed=3)
    x = b(mc.Conv2d(4, 3, padding=1), b.input("input", (2, 4, 3)))
    classes = b(mc.Softmax(), b(mc.Linear(5, name="fc"), b(mc.Flatten(), x)))
    return b.graph(classes, b(mc.Tanh(), b(mc.Conv2d(3, 2, name="map"), x)), b(mc.Conv2d(2, 1, name="unused"), x))


@DTYPES
def test_losses_of_several_outputs_add_up(rng, dtype):
    graph = heads()
    classes, image, unused = graph.outputs
    x = spread(rng, (3, 2, 4, 3))
    t = {classes: rng.integers(0, 5, 3), image: rng.normal(size=(3, 3, 3, 2)).astype(np.float32)}
    net = graph.compile(batch=3, train="all", loss={classes: "cross_entropy", image: "mse"}, optimizer=mc.SGD(lr=1.0),
                        dtype=dtype)
    values = walk.forward(graph, {"input": x})
    first, dz = oracles.cross_entropy(values["fc.out"], t[classes])
    second, dy = oracles.mean_squared_error(values[image], t[image].astype(np.float64))
    gradients = walk.backward(graph, values, {"fc.out": dz, image: dy})[1]
    poison(net)
    assert net.train_step(x, t) == pytest.approx(first + second, rel=TOLERANCE[dtype])
    for name, array in net.parameters().items():
        close(graph.weights[name] - array.astype(np.float64), np.asarray(gradients.get(name, np.zeros(array.shape))),
              5 * TOLERANCE[dtype], name)


def test_a_weight_that_an_output_without_a_loss_shares_is_updated(rng):
    ref = {"weight": WeightRef("w")}
    nodes = [Node("Linear", name, ("input",), (name,), {"transposed": True}, dict(ref)) for name in ("with", "without")]
    graph = Graph([Input("input", (4,))], ["with", "without"], nodes, {"w": rng.normal(size=(3, 4)).astype(np.float32)})
    net = graph.compile(batch=2, train="all", loss={"with": "mse"}, optimizer=mc.SGD(lr=1.0), dtype="float64")
    x, t = rng.normal(size=(2, 4)), rng.normal(size=(2, 3))
    dy = oracles.mean_squared_error(x @ graph.weights["w"].T, t)[1]
    net.train_step(x, {"with": t})
    close(net.parameters()["w"], graph.weights["w"] - dy.T @ x, 1e-12, "w")
    assert set(net.predict(x)) == {"with", "without"}


@pytest.mark.parametrize("shape, loss", [((24, 60, 61), "mse"), ((12, 130, 131), "cross_entropy")])
def test_large(shape, loss):
    case = Case("large", lambda: built((3, *shape[1:]), mc.Conv2d(shape[0], 1)), 3)
    inputs = case.inputs(dtype="float32")
    results = []
    for count in (1, 2):
        with threads(count):
            net = case.compile("float32", loss=loss, optimizer=mc.SGD(lr=0.01))
            if loss == "mse":
                results.append(steps(net, inputs))
                continue
            t = np.random.default_rng(1).integers(0, shape[0], (3, *shape[1:]))
            losses = [net.train_step(only(inputs), t) for _ in range(3)]
            results.append({**net.parameters(), "losses": np.array(losses)})
    same_bits(*results)
