"""forward, backward, gradients, update: custom losses in plain Python."""
from __future__ import annotations

import numpy as np
import pytest

import microcnn as mc

from .tiny import compiled, images, same


@pytest.mark.parametrize("optimizer", [mc.SGD(lr=0.1, momentum=0.9, weight_decay=0.01), mc.Adam(lr=0.01)],
                         ids=["sgd", "adam"])
@pytest.mark.parametrize("bn", ["frozen", "batch"])
def test_manual_steps_equal_train_steps(optimizer, bn):
    # no bias before the batch norm: its gradient would be 0 but for rounding, which Adam scales up
    graph = mc.Sequential([mc.Conv2d(4, 3, padding=1, bias=False), mc.BatchNorm2d(), mc.ReLU(), mc.MaxPool2d(2),
                           mc.Flatten(), mc.Linear(3)], input_shape=(2, 6, 6)).graph()
    whole, parts = (compiled(graph, optimizer=optimizer, bn=bn) for _ in range(2))
    for seed in range(3):
        x, t = images(4, seed)
        loss = whole.train_step(x, t)
        y = parts.forward(x).astype(np.float64)
        power = np.exp(y - y.max(1, keepdims=True))
        share = power / power.sum(1, keepdims=True)
        np.testing.assert_allclose(-np.log(share[np.arange(4), t]).mean(), loss, rtol=1e-5)
        share[np.arange(4), t] -= 1
        parts.backward(share / 4)
        parts.update()
    for name, array in whole.parameters().items():
        np.testing.assert_allclose(parts.parameters()[name], array, rtol=1e-4, atol=1e-6, err_msg=name)
    x, _ = images(5, 9)
    np.testing.assert_allclose(parts.predict(x), whole.predict(x), rtol=1e-3, atol=1e-5)


def test_gradients_are_not_averaged_and_have_the_weights_names_and_shapes():
    net = compiled()
    x, _ = images(4)
    y = net.forward(x)
    net.backward(np.ones_like(y))
    gradients = net.gradients()
    assert {name: array.shape for name, array in gradients.items()} == {
        name: net.graph.weights[name].shape for name in net.trained}
    np.testing.assert_allclose(gradients["linear1.bias"], [4, 4, 4])
    step = 1e-2                                     # along linear1.weight the outputs are linear
    moved = net.parameters()["linear1.weight"]
    moved[1, 5] += step
    net.set_parameters({"linear1.weight": moved})
    np.testing.assert_allclose((net.forward(x).astype(float) - y).sum() / step, gradients["linear1.weight"][1, 5], rtol=1e-3)


def test_gradients_are_copies_that_stay():
    net = compiled()
    x, _ = images(4)
    net.forward(x)
    net.backward(np.ones((4, 3)))
    first = net.gradients()
    kept = {name: array.copy() for name, array in first.items()}
    net.forward(x * 2)
    net.backward(np.ones((4, 3)))
    assert same(first, kept) and not same(first, net.gradients())


def test_manual_from_the_start_and_counted_apart():
    late, early = compiled(), compiled(manual=True)
    assert late.memory.manual == 0 < early.memory.manual
    late.forward(images(1)[0])
    assert late.memory.manual == early.memory.manual
    assert late.memory.arena == early.memory.arena


def test_the_order_of_forward_backward_gradients_update():
    net = compiled()
    x, _ = images(4)
    for call in net.gradients, net.update:
        with pytest.raises(mc.TrainingError, match=f"{call.__name__} needs a backward before it"):
            call()
    with pytest.raises(mc.TrainingError, match="backward needs a forward before it"):
        net.backward(np.ones((4, 3)))
    net.forward(x)
    for call in net.gradients, net.update:
        with pytest.raises(mc.TrainingError, match=f"{call.__name__} needs a backward before it"):
            call()
    net.backward(np.ones((4, 3)))
    with pytest.raises(mc.TrainingError, match="backward needs a forward before it, one for each"):
        net.backward(np.ones((4, 3)))
    net.gradients()
    net.update()


@pytest.mark.parametrize("layers", [[mc.Upsample(scale_factor=3, mode="bilinear")], [mc.ReflectionPad2d(1)]],
                         ids=["resize", "gather"])
def test_tables_that_only_backward_reads(layers):
    """A network compiled for prediction has no place for them: they lie with the second program."""
    net = mc.Sequential(layers, input_shape=(2, 3, 4)).graph().compile(batch=2, dtype="float64")
    x = np.random.default_rng(3).standard_normal((2, 2, 3, 4))
    y = net.forward(x)
    dy = np.random.default_rng(4).standard_normal(y.shape)
    dx = net.backward(dy)
    change = np.random.default_rng(5).standard_normal(x.shape)     # both are linear: <dy, f(v)> = <dx, v>
    np.testing.assert_allclose((dx * change).sum(), (dy * (net.predict(x + change) - net.predict(x))).sum(), rtol=1e-9)
    assert (net.predict(x) == y).all()
