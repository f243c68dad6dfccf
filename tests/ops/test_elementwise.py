"""Add with and without broadcasting; Dropout."""
import numpy as np
import pytest

import microcnn as mc
from microcnn.graph import Graph, Input, Node, WeightRef
from tests import graph_oracle
from tests.ops.table import (
    Case,
    built,
    close,
    graph_of,
    lively,
    only,
    poison,
    repeated,
    runtime,
    same_bits,
    single_precision,
    table,
    threads,
)


def add(a, b, batch=2):
    """Two tensors of these shapes."""
    return Case(f"{a}+{b}".replace(" ", ""), lambda: graph_of("Add", a, b), batch)


def constant(shape, other, batch=2):
    """A tensor and a constant, aligned as ONNX does: at the last axis, the batch included."""
    return Case(f"{shape}+constant{other}".replace(" ", ""),
                lambda: graph_of("Add", shape, weights={"other": other}), batch)


CASES = [
    add((3, 4, 5), (3, 4, 5), 3), add((17,), (17,)), add((33, 1, 1), (33, 1, 1), 1), add((5, 2, 3, 2), (5, 2, 3, 2)),
    # broadcast along each axis, from either side, from both
    add((3, 4, 5), (3, 1, 1)), add((17, 1, 1), (17, 3, 4), 3), add((3, 4, 5), (1, 4, 5)), add((5, 4, 3), (5, 1, 3)),
    add((1, 4, 1), (3, 4, 5)), add((3, 1, 5), (3, 4, 1)), add((1, 4, 1), (3, 1, 5), 3), add((1, 1, 1), (3, 4, 5)),
    add((5,), (1,)), add((4, 1), (1, 5)), add((2, 1, 3, 1), (1, 4, 1, 5)), add((33, 2, 3), (33, 1, 1)),
    # (3,) runs along W of (2, 4, 3), not along the channels
    constant((2, 4, 3), (3,)), constant((3, 4, 3), (3,), 3), constant((3, 4, 5), (3, 1, 1)),
    constant((3, 4, 5), (1, 3, 1, 1)),
    constant((3, 4, 5), (4, 1)), constant((3, 4, 5), (4, 5)), constant((3, 4, 5), (3, 4, 5)), constant((3, 4, 5), (1,)),
    constant((3, 4, 5), ()), constant((3, 4, 5), (3, 1, 5)), constant((1, 4, 5), (3, 1, 1)), constant((17,), (17,), 3),
    constant((17,), (1, 17)), constant((4, 5), (4, 1)), constant((1,), (5,)), constant((33, 1, 1), (33, 1, 1), 1),
]


@table(CASES)
def test_add(case, check):
    check(case)


def with_constant(shape, other, first=(), last=()):
    """Layers, a constant added, more layers: the tensor that it meets lies channels last."""
    def build():
        b = mc.GraphBuilder(seed=6)
        x = b.input("x", shape)
        for layer in first:
            x = b(layer, x)
        before = b.graph(x)
        after = mc.Sequential([mc.Conv2d(2, 1), *last], seed=9, input_shape=np.broadcast_shapes(
            (1, *before.shapes()["output"]), other)[1:]).graph()
        weights = {**before.weights, **{f"late.{name}": array for name, array in after.weights.items()},
                   "other": np.random.default_rng(8).normal(size=other).astype(np.float32)}
        late = [Node(n.op, f"late.{n.name}", tuple("sum" if t == "input" else f"late.{t}" for t in n.inputs),
                     tuple(f"late.{t}" for t in n.outputs), n.attrs,
                     {role: WeightRef(f"late.{ref.name}") for role, ref in n.weights.items()}) for n in after.nodes]
        plus = Node("Add", "plus", ("output",), ("sum",), {}, {"other": WeightRef("other")})
        return Graph(before.inputs, ["late.output"], [*before.nodes, plus, *late], weights)
    return build


def broadcast_activations():
    """A squeezed branch added back to every pixel, clamped."""
    b = mc.GraphBuilder(seed=2)
    x = b(mc.Conv2d(5, 3, padding=1), b.input("x", (3, 4, 5)))
    squeezed = b(mc.Conv2d(5, 1), b(mc.GlobalAvgPool2d(), x))
    y = b(mc.Clip(-0.5, 0.8), b(mc.Add(), x, squeezed))
    return b.graph(b(mc.Conv2d(2, 2), y))


def two_orders():
    """One operand lies channels last, the other in the model's order."""
    b = mc.GraphBuilder(seed=2)
    x = b.input("x", (6, 4, 5))
    turned = b(mc.Reshape((6, 4, 5)), b(mc.Linear(120), b(mc.Flatten(), x)))
    y = b(mc.Conv2d(6, 3, padding=1), x)
    return b.graph(b(mc.ReLU(), b(mc.Add(), turned, y)), b(mc.Add(), y, turned))


def excitation():
    """Channel weights made by fully connected layers, put back into an image's shape; one operand is cut otherwise."""
    b = mc.GraphBuilder(seed=2)
    x = b(mc.Conv2d(6, 3, padding=1), b.input("x", (3, 4, 5)))
    y = b(mc.Linear(6), b(mc.Flatten(), b(mc.GlobalAvgPool2d(), x)))
    y = b(mc.Add(), x, b(mc.Reshape((6, 1, 1)), y))
    halves = b(mc.Reshape((12, 2, 5)), y)
    return b.graph(b(mc.Add(), halves, b(mc.Reshape((12, 1, 1)), b(mc.Linear(12), b(mc.Flatten(), y)))))


def sums_of_sums():
    """Gradients that are several tensors' at once, and add up: x + x, (x + y) + y, all of them read again."""
    b = mc.GraphBuilder(seed=2)
    x = b(mc.Conv2d(4, 1), b.input("x", (3, 3, 4)))
    y = b(mc.Conv2d(4, 3, padding=1), x)
    double = b(mc.Add(), x, x)
    both = b(mc.Add(), b(mc.Add(), x, y), y)
    clipped = b(mc.ReLU(), b(mc.Add(), double, both))
    return b.graph(b(mc.Tanh(), b(mc.Add(), clipped, both)), b(mc.Add(), double, y))


CHAINS = [
    Case("constant-along-W", with_constant((3, 5, 5), (4,), [mc.Conv2d(6, 2)], [mc.ReLU()])),
    Case("constant-along-C", with_constant((3, 5, 5), (6, 1, 1), [mc.Conv2d(6, 2)], [mc.ReLU()])),
    Case("constant-image", with_constant((3, 5, 4), (6, 4, 3), [mc.Conv2d(6, 2), mc.ReLU()])),
    Case("constant-widens", with_constant((3, 4, 5), (1, 2, 1, 1), [mc.Conv2d(1, 2)])),
    Case("squeezed-branch", broadcast_activations, 3),
    Case("excitation", excitation),
    Case("two-orders", two_orders),
    Case("sums-of-sums", sums_of_sums),
    Case("add-relu", lambda: relu_after_add(mc.ReLU())),
    Case("add-clip", lambda: relu_after_add(mc.Clip(-0.4, 0.7))),
    Case("add-relu-broadcast", lambda: relu_after_add(mc.ReLU(), (5, 1, 1))),
]


def relu_after_add(activation, second=(5, 3, 4)):
    b = mc.GraphBuilder()
    a, c = b.input("a", (5, 3, 4)), b.input("b", second)
    return b.graph(b(activation, b(mc.Add(), b(mc.Tanh(), a), b(mc.Sigmoid(), c))))


@table(CHAINS)
def test_chains(case, check):
    check(case)


LARGE = [add((33, 40, 41), (33, 40, 41), 3), add((24, 40, 41), (24, 1, 1), 3), add((24, 40, 41), (1, 40, 41), 3),
         add((1, 1, 70), (33, 40, 1), 3), constant((33, 40, 41), (41,), 3), constant((33, 40, 41), (33, 1, 1), 3)]


@pytest.mark.parametrize("case", LARGE, ids=lambda case: case.name)
def test_large(case):
    for check in (single_precision, repeated, runtime):
        check(case)
    inputs = case.inputs()
    close(case.compile().predict(only(inputs)), graph_oracle.evaluate(case.graph(), inputs)["y"], 1e-15, "predict")


def test_shapes_that_do_not_broadcast_are_refused():
    with pytest.raises(mc.MicroCNNError, match=r'Add "node": shapes \(3, 4\) and \(3, 5\) of one sample do not'):
        graph_of("Add", (3, 4), (3, 5)).shapes()
    with pytest.raises(mc.MicroCNNError, match="different numbers of axes, so the batch of one would meet another"):
        graph_of("Add", (3, 4), (4,)).shapes()
    with pytest.raises(mc.MicroCNNError, match=r"the constant has shape \(2, 4\), which does not broadcast against"):
        graph_of("Add", (4,), weights={"other": (2, 4)}).shapes()


# Dropout.

def dropout(p, shape=(4, 5, 6), batch=8, seed=0, dtype="float32"):
    return graph_of("Dropout", shape, p=p).compile(batch=batch, seed=seed, dtype=dtype)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_drops_its_share_and_scales_the_rest(p):
    net = dropout(p, (20, 25, 26))
    ones = np.ones((8, 20, 25, 26), np.float32)
    y = net.forward(ones)
    kept = y != 0
    np.testing.assert_allclose(y[kept], 1 / (1 - p), rtol=1e-6)
    n = y.size
    assert abs(kept.mean() - (1 - p)) < 5 * np.sqrt(p * (1 - p) / n)
    # every sample, row and channel has its share, and neighbours know nothing of each other
    for axis in range(4):
        shares = kept.mean(tuple(i for i in range(4) if i != axis))
        assert np.abs(shares - (1 - p)).max() < 5.5 * np.sqrt(p * (1 - p) * len(shares) / n)
    centred = (kept - kept.mean()).reshape(-1)
    for distance in (1, 2, 8, 16, 20, 20 * 26):
        assert abs((centred[distance:] * centred[:-distance]).mean()) < 5 * p * (1 - p) / np.sqrt(n)


def test_backward_uses_the_mask_of_forward(rng):
    for p in (0.3, 0.5):
        net = dropout(p, dtype="float64")
        for samples in (8, 3):
            ones = np.ones((samples, 4, 5, 6))
            mask = net.forward(ones)
            dy = rng.normal(size=ones.shape)
            np.testing.assert_allclose(net.backward(dy), mask * dy, rtol=1e-15)


def test_dropout_of_nothing_and_of_all(rng):
    x = rng.normal(size=(8, 4, 5, 6)).astype(np.float32)
    nothing, everything = dropout(0.0), dropout(1.0)
    np.testing.assert_array_equal(nothing.forward(x), x)
    np.testing.assert_array_equal(nothing.backward(x), x)
    np.testing.assert_array_equal(everything.forward(x), 0)
    np.testing.assert_array_equal(everything.backward(x), 0)


def test_prediction_drops_nothing(rng):
    x = rng.normal(size=(8, 4, 5, 6)).astype(np.float32)
    np.testing.assert_array_equal(dropout(0.5).predict(x), x)


def test_masks_are_reproducible_and_differ_by_seed_step_and_layer():
    ones = np.ones((8, 4, 5, 6), np.float32)
    net, same, other = dropout(0.5), dropout(0.5), dropout(0.5, seed=1)
    first, second = net.forward(ones), net.forward(ones)
    assert (first != second).any()
    np.testing.assert_array_equal(same.forward(ones), first)
    np.testing.assert_array_equal(same.forward(ones), second)
    assert (other.forward(ones) != first).any()
    twice = built((4, 5, 6), mc.Dropout(0.5), mc.Dropout(0.5)).compile(batch=8).forward(ones)
    assert set(np.unique(twice)) == {0, 4} and 0.2 < (twice == 4).mean() < 0.3


def test_masks_are_the_same_for_any_number_of_threads():
    large = np.ones((8, 16, 40, 41), np.float32)
    for _ in range(2):
        results = []
        for count in (1, 2):
            with threads(count):
                net = dropout(0.4, large.shape[1:])
                results.append({"y": net.forward(large), "dx": net.backward(large)})
        same_bits(*results)


@pytest.mark.parametrize("layers", [
    [mc.Conv2d(4, 2), mc.Dropout(0.4), mc.ReLU(), mc.Conv2d(2, 2)],
    [mc.Conv2d(4, 2), mc.ReLU(), mc.Dropout(0.4), mc.Flatten(), mc.Dropout(0.2), mc.Linear(3)],
], ids=["image", "features"])
def test_dropout_between_layers_in_a_training_step(layers):
    """train_step draws the same masks as forward at the same step, and goes back through them."""
    graph = lively(mc.Sequential(layers, input_shape=(2, 5, 6), seed=2).graph())
    options = dict(batch=3, train="all", loss="mse", optimizer=mc.SGD(lr=0.1), dtype="float64", seed=5)
    at_once, by_hand = graph.compile(**options), graph.compile(**options)
    rng = np.random.default_rng(1)
    x, t = rng.normal(size=(3, 2, 5, 6)), rng.normal(size=(3, *graph.shapes()["output"]))
    for _ in range(3):
        y = by_hand.forward(x)
        by_hand.backward(2 * (y - t) / y.size)
        by_hand.update()
        poison(at_once)
        assert at_once.train_step(x, t) == pytest.approx(((y - t) ** 2).mean(), rel=1e-12)
    for name, array in by_hand.parameters().items():
        close(at_once.parameters()[name], array, 1e-12, name)


def test_a_probability_outside_0_to_1_is_refused():
    with pytest.raises(mc.MicroCNNError, match=r'Dropout "node": p \(=1.5\) must lie between 0 and 1'):
        graph_of("Dropout", (3,), p=1.5).shapes()


@pytest.mark.parametrize("op", ["Mul", "Div"])
@pytest.mark.parametrize("first", [True, False])
def test_a_step_makes_dx_of_the_constant_as_it_was(op, first):
    """The constant that trains may stand first: it is updated when the other operand's gradient has been made of it."""
    rng = np.random.default_rng(0)
    weights = {"matrix": rng.normal(size=(4, 4)).astype(np.float32), "constant": rng.uniform(0.5, 1.5, 4).astype(np.float32)}
    nodes = [Node("Linear", "linear", ("x",), ("a",), {"transposed": True}, {"weight": WeightRef("matrix")}),
             Node(op, "node", ("a",), ("y",), {"first": first}, {"other": WeightRef("constant")})]
    graph = Graph([Input("x", (4,))], ["y"], nodes, weights)
    x, t = rng.normal(size=(2, 4)), rng.normal(size=(2, 4))
    at_once, by_hand = (graph.compile(batch=2, train="all", loss="mse", optimizer=mc.SGD(lr=0.5), dtype="float64")
                        for _ in range(2))
    at_once.train_step(x, t)
    y = by_hand.forward(x)
    by_hand.backward(2 * (y - t) / y.size)
    by_hand.update()
    for name, array in by_hand.parameters().items():
        np.testing.assert_allclose(at_once.parameters()[name], array, rtol=1e-12, err_msg=name)
