"""Training a bound network: what trains, losses and targets, batch norm, seeds, debug."""
from __future__ import annotations

import numpy as np
import pytest

import microcnn as mc

from .graph_oracle import evaluate
from .ops.table import built, poison
from .tiny import compiled, convolutional, images, losses, same, train_alike


@pytest.mark.parametrize("bn", ["frozen", "batch"])
def test_fewer_samples_than_planned(bn):
    large, small = compiled(batch=7, bn=bn), compiled(batch=3, bn=bn)
    for seed in range(3):
        x, t = images(3, seed)
        np.testing.assert_allclose(large.train_step(x, t), small.train_step(x, t), rtol=1e-5)
    for name, array in large.parameters().items():
        np.testing.assert_allclose(array, small.parameters()[name], rtol=1e-4, atol=1e-6, err_msg=name)


def test_the_learning_rate_between_steps():
    net = compiled()
    assert net.lr == 0.1
    x, t = images(4)
    net.lr = 0
    before = net.parameters()
    net.train_step(x, t)
    assert same(before, net.parameters())
    # a rate that was set afterwards is as good as one that was compiled in
    net, twin = compiled(optimizer=mc.SGD(lr=0.1)), compiled(optimizer=mc.SGD(lr=0.3))
    net.lr = 0.3
    assert net.lr == 0.3
    train_alike(net, twin)


def test_sample_weight():
    weighted, plain, none = (compiled(optimizer=mc.SGD(lr=0.1)) for _ in range(3))
    x, t = images(4)
    assert weighted.train_step(x, t, sample_weight=np.ones(4)) == plain.train_step(x, t)
    assert same(weighted.parameters(), plain.parameters())
    # a sample without weight does not count; the mean is still over all
    first = weighted.train_step(x, t, sample_weight=[2, 2, 0, 0])
    plain.train_step(x, t)
    none.train_step(x, t)
    half = none.train_step(x[:2], t[:2])
    np.testing.assert_allclose(first, half, rtol=1e-6)
    for name, array in none.parameters().items():
        np.testing.assert_allclose(weighted.parameters()[name], array, rtol=1e-4, atol=1e-6)
    # and the next step without weights has none
    x, t = images(4, 3)
    np.testing.assert_allclose(weighted.train_step(x, t), none.train_step(x, t), rtol=1e-4)


def test_probabilities_as_targets():
    numeric = compiled(optimizer=mc.SGD(lr=0.1))
    soft = compiled(optimizer=mc.SGD(lr=0.1))
    for seed in range(3):
        x, t = images(4, seed)
        np.testing.assert_allclose(soft.train_step(x, np.eye(3)[t]), numeric.train_step(x, t), rtol=1e-5)
    # and back to indices
    np.testing.assert_allclose(soft.train_step(x, t), numeric.train_step(x, t), rtol=1e-5)
    mixed = np.array([[0.2, 0.3, 0.5]] * 4)
    y = numeric.predict(x).astype(float)
    logs = y - np.log(np.exp(y).sum(1, keepdims=True))
    np.testing.assert_allclose(numeric.train_step(x, mixed), -(mixed * logs).sum(1).mean(), rtol=1e-5)
    assert numeric.evaluate(x, np.eye(3)[t])["accuracy"] == numeric.evaluate(x, t)["accuracy"]


@pytest.mark.parametrize("kind", ["int8", "uint8", "int32", "int64", "uint64"])
def test_labels_of_any_integer_type(kind):
    x, t = images(4)
    assert compiled().train_step(x, t.astype(kind)) == compiled().train_step(x, t)


def test_cross_entropy_options():
    x, t = images(4)[0], np.array([0, 1, 2, 0])
    y = compiled().predict(x).astype(float)
    logs = y - np.log(np.exp(y).sum(1, keepdims=True))
    picked = logs[np.arange(4), t]
    share = np.array([1.0, 2.0, 5.0])
    for loss, expected in (
            (mc.CrossEntropyLoss(ignore_index=1), -picked[[0, 2, 3]].mean()),
            (mc.CrossEntropyLoss(label_smoothing=0.1), -(0.9 * picked + 0.1 * logs.mean(1)).mean()),
            (mc.CrossEntropyLoss(weight=share), -(share[t] * picked).sum() / share[t].sum())):
        np.testing.assert_allclose(compiled(loss=loss).train_step(x, t), expected, rtol=1e-5)
    # the default index that is ignored
    t[1] = -100
    np.testing.assert_allclose(compiled().train_step(x, t), -picked[[0, 2, 3]].mean(), rtol=1e-5)
    # nothing counts: nothing is learnt
    net = compiled(optimizer=mc.SGD(lr=0.1))
    before = net.parameters()
    assert net.train_step(x, np.full(4, -100)) == 0
    assert same(before, net.parameters())


def changed(net: mc.Net) -> set[str]:
    """The weights that some steps change."""
    before = net.parameters()
    losses(net, 2)
    after = net.parameters()
    return {name for name in before if before[name].tobytes() != after[name].tobytes()}


def test_which_weights_train():
    every = {"conv1.weight", "conv1.bias", "bn1.weight", "bn1.bias", "linear1.weight", "linear1.bias"}
    running = {"bn1.running_mean", "bn1.running_var"}
    for train, expected in ("all", every), ("head", {"linear1.weight", "linear1.bias"}), \
            (["conv1.*"], {"conv1.weight", "conv1.bias"}), (["*.bias", "bn1.weight"],
                                                            {"conv1.bias", "bn1.bias", "linear1.bias", "bn1.weight"}):
        net = compiled(train=train)
        assert net.trained == expected
        assert changed(net) == expected, train
    net = compiled(bn="batch")
    assert net.trained == every | running
    # before batch statistics a bias has no effect, so that its gradient is nothing but rounding
    assert changed(net) | {"conv1.bias"} == every | running


def test_factors():
    plain = compiled(optimizer=mc.SGD(lr=0.2), train=["linear1.*"])
    half = compiled(optimizer=mc.SGD(lr=0.4), train={"linear1.*": 0.5})
    for one, two in zip(losses(plain), losses(half), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5)
    # the last pattern that matches wins; a factor of 0 changes nothing
    net = compiled(train={"*": 1.0, "conv1.*": 0.0}, optimizer=mc.SGD(lr=0.1))
    assert not {"conv1.weight", "conv1.bias"} & changed(net)


def test_batch_norm_modes():
    x, t = images(4)
    frozen, batch = compiled(), compiled(bn="batch")
    assert (frozen.predict(x) == batch.predict(x)).all()         # prediction always uses the running statistics
    assert frozen.evaluate(x, t) == batch.evaluate(x, t)
    assert frozen.train_step(x, t) != batch.train_step(x, t)
    conv = evaluate(convolutional(), {"input": x}, every=True)[convolutional().nodes[0].outputs[0]]
    expected = conv.mean((0, 2, 3)) * 0.1
    np.testing.assert_allclose(batch.parameters()["bn1.running_mean"], expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(batch.parameters()["bn1.running_var"], 0.9 + 0.1 * conv.var((0, 2, 3)), rtol=1e-5)
    assert (frozen.parameters()["bn1.running_var"] == 1).all()


def test_folded_batch_norm_computes_the_same():
    graph = convolutional()
    rng = np.random.default_rng(0)
    for name, low in ("weight", -1), ("bias", -1), ("running_mean", -1), ("running_var", 0.5):
        graph.weights[f"bn1.{name}"] = rng.uniform(low, 2, 4).astype(np.float32)
    x, t = images(4)
    fold, frozen = compiled(graph, bn="fold"), compiled(graph)
    np.testing.assert_allclose(fold.predict(x), frozen.predict(x), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(fold.train_step(x, t), frozen.train_step(x, t), rtol=1e-5)
    assert losses(fold, 10)[-1] < 2
    np.testing.assert_allclose(fold.to_graph().compile(batch=4).predict(x), fold.predict(x), rtol=1e-4, atol=1e-5)


def dropping(seed: int) -> mc.Net:
    graph = mc.Sequential([mc.Flatten(), mc.Dropout(0.5), mc.Linear(3)], (2, 6, 6)).graph()
    return graph.compile(batch=4, train="all", loss="cross_entropy", optimizer=mc.SGD(lr=0.1), seed=seed)


def test_seeds():
    train_alike(dropping(3), dropping(3))
    assert losses(dropping(3)) != losses(dropping(4))
    # prediction drops nothing
    x, _ = images(4)
    net = dropping(3)
    assert (net.predict(x) == net.predict(x)).all()
    np.testing.assert_allclose(net.predict(x), evaluate(net.graph, {"input": x})["output"], rtol=1e-4, atol=1e-5)
    assert same(convolutional(1).weights, convolutional(1).weights)
    assert not same(convolutional(1).weights, convolutional(2).weights)


def test_from_run_to_run():
    train_alike(compiled(bn="batch"), compiled(bn="batch"))


def test_float64():
    net, single = compiled(dtype="float64"), compiled()
    x, t = images(4)
    y = net.predict(x)
    assert y.dtype == np.float64
    expected = evaluate(net.graph, {"input": x})["output"]
    np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(losses(net), losses(single), rtol=1e-4)
    assert all(array.dtype == np.float64 for array in net.parameters().values())


@pytest.mark.parametrize("tail", [[mc.Softmax()], [mc.Softmax(dim=-1)]], ids=["axis 1", "axis -1"])
def test_a_softmax_at_the_end_is_part_of_the_loss(tail):
    def graph(more):
        return mc.Sequential([mc.Conv2d(4, 3, padding=1), mc.BatchNorm2d(), mc.ReLU(), mc.MaxPool2d(2), mc.Flatten(),
                              mc.Linear(3), *more], input_shape=(2, 6, 6)).graph()
    train_alike(compiled(graph(tail)), compiled(graph([])))
    soft, plain = compiled(graph(tail)), compiled(graph([]))
    x, t = images(4)
    np.testing.assert_allclose(soft.predict(x).sum(1), 1, rtol=1e-6)
    one, two = soft.evaluate(x, t), plain.evaluate(x, t)
    np.testing.assert_allclose(one["loss"], two["loss"], rtol=1e-6)
    assert one["accuracy"] == two["accuracy"]


def test_mean_squared_error():
    net = compiled(loss="mse", optimizer=mc.SGD(lr=0.05))
    x, _ = images(4)
    t = np.random.default_rng(5).standard_normal((4, 3))
    expected = ((net.predict(x).astype(float) - t) ** 2).mean()
    np.testing.assert_allclose(net.train_step(x, t), expected, rtol=1e-5)
    np.testing.assert_allclose(compiled(loss=mc.MSELoss()).evaluate(x, t)["loss"], expected, rtol=1e-5)


def test_debug_computes_the_same():
    slow, plain = compiled(bn="batch"), compiled(bn="batch")
    slow.debug = True
    train_alike(slow, plain)
    x, _ = images(3)
    assert (slow.predict(x) == plain.predict(x)).all()


def test_debug_waits_until_a_gradient_is_whole():
    """One that several rows make, each a part of the pixels: what lies in the others' places may read as no number."""
    net = built((16, 15, 15), mc.Conv2d(16, 1), mc.ReLU(), mc.Conv2d(16, 5, groups=16, stride=3), mc.Conv2d(32, 1), mc.ReLU()
                ).compile(batch=2, train="all", loss="mse", optimizer=mc.SGD(lr=0.1))
    assert [info.kernel for info in net.rows("train") if info.phase == "backward"].count("depthwise2d.forward") > 3
    rng, shape = np.random.default_rng(0), net.shapes[net.graph.outputs[0]]
    x, t = rng.standard_normal((2, 16, 15, 15), np.float32), rng.standard_normal((2, *shape), np.float32)
    net.debug = True
    poison(net)
    assert np.isfinite(net.train_step(x, t))


def test_debug_names_the_first_bad_layer():
    net = compiled()
    x, t = images(4)
    huge = net.parameters()["linear1.weight"]
    huge[:] = 3e38
    net.set_parameters({"linear1.weight": huge})
    before = net.parameters()
    with pytest.raises(mc.TrainingError, match=r"the loss is (nan|inf) at step 1; nothing was changed"):
        net.train_step(x, t)
    net.debug = True
    bad = r'"linear1" \(Linear, forward\) is the first layer that makes a NaN or an infinity'
    with pytest.raises(mc.TrainingError, match=bad):
        net.train_step(x, t)
    with pytest.raises(mc.TrainingError, match=bad):
        net.predict(x)
    with pytest.raises(mc.TrainingError, match=bad):
        net.forward(x)
    assert same(before, net.parameters())
