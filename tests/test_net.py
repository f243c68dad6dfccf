"""The public face of a bound network: predict, evaluate, weights and files. Training is in test_net_training.py."""
from __future__ import annotations

import numpy as np
import pytest

import microcnn as mc

from .graph_oracle import evaluate
from .tiny import compiled, convolutional, images, losses, same


@pytest.fixture(scope="module")
def inference():
    """The network compiled with the defaults but for the batch."""
    return convolutional().compile(batch=4)


def two_by_two() -> mc.Graph:
    """Two inputs, two outputs: out1 depends on both, out2 on b alone."""
    b = mc.GraphBuilder()
    one, two = b.input("a", (2, 3, 3)), b.input("b", (2, 3, 3))
    first = b(mc.Linear(3, name="first"), b(mc.Flatten(), b(mc.Add(), one, two)))
    second = b(mc.Linear(2, name="second"), b(mc.Flatten(), two))
    return b.graph(first, second)


def test_defaults():
    net = convolutional().compile()
    assert (net.batch, net.bn, net.dtype, net.lr, net.loss, net.optimizer) == (1, "frozen", np.float32, 0.0, None, None)
    assert not net.trains and net.trained == set()
    x, _ = images(1)
    y = net.predict(x)
    assert y.shape == (1, 3) and y.dtype == np.float32
    # forward, backward and gradients work without a loss and an optimizer
    np.testing.assert_allclose(net.forward(x), y, rtol=1e-5, atol=1e-6)
    assert net.backward(y).shape == x.shape
    assert net.gradients() == {}


@pytest.mark.parametrize("samples", [1, 3, 4, 5, 8, 11])
def test_predict_takes_any_number_of_samples(inference, samples):
    x, _ = images(samples)
    y = inference.predict(x)
    expected = evaluate(inference.graph, {"input": x})["output"]
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    one_by_one = np.concatenate([inference.predict(x[i:i + 1]) for i in range(samples)])
    np.testing.assert_allclose(y, one_by_one, rtol=1e-5, atol=1e-6)


def test_predict_gives_fresh_arrays(inference):
    x, _ = images(4)
    first = inference.predict(x)
    kept = first.copy()
    second = inference.predict(x + 1)
    assert first is not second and (first == kept).all() and not (first == second).all()


def test_out(inference):
    x, _ = images(6)
    out = np.full((6, 3), np.nan, np.float32)
    assert inference.predict(x, out=out) is out
    assert (out == inference.predict(x)).all()
    named = np.empty_like(out)
    assert inference.predict(x, out={"output": named}) is named
    assert (named == out).all()


@pytest.mark.parametrize("make", [lambda x: x.astype(np.float64), lambda x: x.tolist(), lambda x: x[::-1][::-1],
                                  lambda x: np.asfortranarray(x), lambda x: {"input": x}],
                         ids=["float64", "list", "backwards", "Fortran", "dict"])
def test_inputs_of_other_kinds(inference, make):
    x, _ = images(4)
    assert (inference.predict(make(x)) == inference.predict(x)).all()


def test_integers_are_numbers_too(inference):
    x = np.arange(72, dtype=np.uint8).reshape(1, 2, 6, 6)
    assert (inference.predict(x) == inference.predict(x.astype(np.float32))).all()


def test_a_read_only_input(inference):
    x, _ = images(4)
    x.flags.writeable = False
    assert np.isfinite(inference.predict(x)).all()


def test_several_inputs_and_outputs():
    graph = two_by_two()
    net = graph.compile(batch=2, train="all", loss={graph.outputs[0]: "cross_entropy", graph.outputs[1]: "mse"},
                        optimizer=mc.SGD(lr=0.1))
    rng = np.random.default_rng(0)
    given = {name: rng.standard_normal((3, 2, 3, 3)).astype(np.float32) for name in ("a", "b")}
    outputs = net.predict(given)
    expected = evaluate(graph, given)
    assert list(outputs) == graph.outputs
    for name in graph.outputs:
        np.testing.assert_allclose(outputs[name], expected[name], rtol=1e-5, atol=1e-6)
    given = {name: array[:2] for name, array in given.items()}
    targets = {graph.outputs[0]: np.array([0, 2]), graph.outputs[1]: np.ones((2, 2))}
    separate = [graph.compile(batch=2, train="all", loss={name: kind}, optimizer=mc.SGD(lr=0.1)).train_step(
        given, {name: targets[name]}) for name, kind in zip(graph.outputs, ("cross_entropy", "mse"), strict=True)]
    np.testing.assert_allclose(net.train_step(given, targets), sum(separate), rtol=1e-6)
    net.forward(given)
    dx = net.backward({graph.outputs[1]: np.ones((2, 2))})
    assert list(dx) == ["a", "b"]
    assert (dx["a"] == 0).all()         # the second output does not depend on it
    weight = net.parameters()["second.weight"]
    np.testing.assert_allclose(dx["b"].reshape(2, -1), np.tile(weight.sum(0), (2, 1)), rtol=1e-5, atol=1e-6)


def test_parameters_and_back():
    one, two = compiled(convolutional(seed=1)), compiled(convolutional(seed=2))
    original = convolutional(seed=1).weights
    assert same(original, one.parameters())
    x, t = images(4)
    one.predict(x), two.predict(x)
    two.set_parameters(one.parameters())
    assert same(one.parameters(), two.parameters())
    assert (one.predict(x) == two.predict(x)).all()      # folded batch norm is made anew
    two.set_parameters({"bn1.running_mean": np.full(4, 0.5)})
    assert not (one.predict(x) == two.predict(x)).all()
    copy = one.parameters()
    copy["conv1.weight"][:] = 0
    assert same(original, one.parameters())              # copies


def test_set_parameters_between_steps_reaches_every_program():
    net = compiled(train="head")
    x, t = images(4)
    net.train_step(x, t), net.evaluate(x, t), net.forward(x)
    fresh = compiled(convolutional(seed=5), train="head")
    net.set_parameters(fresh.parameters())
    assert (net.predict(x) == fresh.predict(x)).all()
    assert net.evaluate(x, t) == fresh.evaluate(x, t)
    assert (net.forward(x) == fresh.forward(x)).all()


def test_save_and_load(tmp_path):
    net = compiled()
    losses(net)
    net.save(tmp_path / "tuned.mcnn")
    again = mc.load(tmp_path / "tuned.mcnn").compile(batch=4)
    assert same(net.parameters(), again.parameters())
    x, _ = images(5)
    assert (net.predict(x) == again.predict(x)).all()
    net.graph.save(tmp_path / "before.mcnn")
    assert same(mc.load(tmp_path / "before.mcnn").weights, convolutional().weights)


def test_evaluate():
    net = compiled()
    x, t = images(11)
    found = net.evaluate(x, t)
    y = net.predict(x).astype(np.float64)
    logs = y - np.log(np.exp(y).sum(1, keepdims=True))
    assert set(found) == {"loss", "accuracy"}
    np.testing.assert_allclose(found["loss"], -logs[np.arange(11), t].mean(), rtol=1e-5)
    assert found["accuracy"] == (y.argmax(1) == t).mean()
    before = net.parameters()
    net.evaluate(x, t)
    assert same(before, net.parameters())
    assert set(compiled(loss="mse").evaluate(x, np.zeros((11, 3)))) == {"loss"}


def test_evaluate_weighs_batches_by_what_counts_in_them():
    loss = mc.CrossEntropyLoss(weight=[1, 2, 5], ignore_index=1)
    x, t = images(11)
    parts, whole = compiled(batch=4, loss=loss), compiled(batch=11, loss=loss)
    one, two = parts.evaluate(x, t), whole.evaluate(x, t)
    np.testing.assert_allclose(one["loss"], two["loss"], rtol=1e-6)
    assert one["accuracy"] == two["accuracy"]
    assert whole.evaluate(x, np.ones(11, int)) == {"loss": 0.0, "accuracy": 0.0}


def test_the_head_is_the_last_node_with_weights():
    assert convolutional().head() == {"linear1.weight", "linear1.bias"}
    graph = two_by_two()
    assert graph.head() == {"first.weight", "first.bias", "second.weight", "second.bias"}


def test_it_prints_what_it_is():
    assert repr(compiled()).startswith("Net(sequential, batch 4, float32, 6 of 8 weights train, arena ")


def test_a_tensor_listed_twice_as_output():
    graph = convolutional()
    graph = mc.Graph(graph.inputs, graph.outputs * 2, graph.nodes, graph.weights)
    net, x = graph.compile(batch=4, train="all"), images(4)[0]
    once = convolutional().compile(batch=4, train="all")
    assert np.array_equal(net.predict(x), once.predict(x))
    y = net.forward(x)
    assert np.array_equal(y, once.forward(x))
    assert np.array_equal(net.backward(y), once.backward(y))


def test_out_may_overlap_the_input_of_a_later_batch():
    net = mc.Sequential([mc.Flatten(), mc.Linear(10)], input_shape=(1, 8, 8)).graph().compile(batch=8)
    memory = np.zeros(20 * 64 + 200, np.float32)
    x = memory[:20 * 64].reshape(20, 1, 8, 8)
    x[:] = np.random.default_rng(0).standard_normal(x.shape)
    expected = net.predict(x.copy())
    np.testing.assert_array_equal(net.predict(x, out=memory[600:800].reshape(20, 10)), expected)
