"""What a weight contributes is how far its gradients agree over the samples, whatever their scale."""
from __future__ import annotations

import numpy as np
import pytest

import microcnn as mc
from microcnn.budget import size_of_plan
from microcnn.contribution import SAMPLES, contributions
from microcnn.planned import Planned

from .test_recompute import residual
from .tiny import convolutional, images

HOW = {"train": "all", "loss": "cross_entropy", "optimizer": mc.SGD(lr=0.05, momentum=0.9), "dtype": "float64"}


def agreement(gradients: np.ndarray) -> np.ndarray:
    """(samples, axis 0, ...) to what each index of axis 0 contributes, number by number."""
    squares = (gradients ** 2).mean(0)
    each = np.where(squares > 0, gradients.mean(0) ** 2 / np.where(squares > 0, squares, 1), 0)
    return each.reshape(len(each), -1).sum(1)


def test_against_numpy():
    """Of one layer under cross-entropy: (softmax - one hot) x, sample by sample."""
    graph = mc.Sequential([mc.Linear(4, name="fc")], input_shape=(6,), seed=3).graph()
    rng = np.random.default_rng(0)
    x, t = rng.standard_normal((20, 6)), rng.integers(0, 4, 20)
    x[:, 2] = 0                                      # a number that no sample pulls
    found, measured = contributions(graph, HOW, (x, t))
    assert measured == "20 samples"
    logits = x @ graph.weights["fc.weight"].T.astype(float) + graph.weights["fc.bias"]
    power = np.exp(logits - logits.max(1, keepdims=True))
    dy = power / power.sum(1, keepdims=True) - np.eye(4)[t]
    np.testing.assert_allclose(found["fc.weight"], agreement(dy[:, :, None] * x[:, None]), rtol=1e-9)
    np.testing.assert_allclose(found["fc.bias"], agreement(dy), rtol=1e-9)


def test_each_sample_is_measured_by_itself():
    """Through convolutions, against the manual programs, one sample at a time."""
    graph = residual()
    rng = np.random.default_rng(0)
    x, t = rng.standard_normal((5, 3, 12, 12)), rng.integers(0, 4, 5)
    found, _ = contributions(graph, HOW, (x, t))
    net = graph.compile(batch=1, **HOW)
    gradients: dict[str, list[np.ndarray]] = {name: [] for name in found}
    for i in range(5):
        logits = net.forward(x[i:i + 1])
        power = np.exp(logits - logits.max())
        net.backward(power / power.sum() - np.eye(4)[t[i:i + 1]])
        for name, gradient in net.gradients().items():
            gradients[name].append(gradient.copy())
    for name, each in found.items():
        np.testing.assert_allclose(each, agreement(np.array(gradients[name])), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("factor", [1 / 256, 3.0, 1000.0])
def test_the_scale_of_the_inputs_does_not_matter(factor):
    """Inputs larger by a factor and the first weights smaller by it: the same network, the same choice."""
    x, t = images(12)
    graph, scaled = convolutional(), convolutional()
    scaled.weights["conv1.weight"] = (scaled.weights["conv1.weight"].astype(np.float64) / factor)
    graph.weights["conv1.weight"] = graph.weights["conv1.weight"].astype(np.float64)
    found, _ = contributions(graph, HOW, (x.astype(np.float64), t))
    again, _ = contributions(scaled, HOW, (x.astype(np.float64) * factor, t))
    for name, each in found.items():
        np.testing.assert_allclose(again[name], each, rtol=1e-5, err_msg=name)


def test_between_nothing_and_one_for_each_number():
    """All of it for samples that are the same, little for labels at random."""
    graph = convolutional()
    x, t = images(SAMPLES)
    same, _ = contributions(graph, HOW, (np.repeat(x[:1], 8, axis=0), np.repeat(t[:1], 8)))
    for name, each in same.items():
        full = graph.weights[name].size / len(each)
        assert (each <= full * (1 + 1e-9)).all(), name
    assert same["linear1.bias"] == pytest.approx(np.ones(3))
    random, _ = contributions(graph, HOW, (x, t))
    for name, each in random.items():
        assert (each >= 0).all() and each.sum() < 0.25 * same[name].sum(), name


def two_branches() -> mc.Graph:
    """Two layers of one size beside each other, each with an input of its own."""
    b = mc.GraphBuilder(seed=1)
    loud, telling = b.input("loud", (32,)), b.input("telling", (32,))
    both = b(mc.Add(), b(mc.Linear(32, name="of_loud"), loud), b(mc.Linear(32, name="of_telling"), telling))
    return b.graph(b(mc.Linear(4, name="head"), b(mc.ReLU(), both)))


def test_what_helps_is_chosen_and_not_what_is_loud():
    """An input of large numbers that say nothing about the class, and one of small numbers that do.

    The squares of the gradients are by far the largest where the large numbers go; training there helps least.
    """
    rng = np.random.default_rng(2)
    classes = rng.integers(0, 4, 256)
    means = rng.standard_normal((4, 32))
    x = {"loud": (4 * rng.standard_normal((256, 32))).astype(np.float32),
         "telling": (means[classes] + 0.5 * rng.standard_normal((256, 32))).astype(np.float32)}
    graph = two_branches()
    how = {"loss": "cross_entropy", "optimizer": mc.SGD(lr=0.01, momentum=0.9), "batch": 1}
    alone = {name: ["head.*", f"{name}.weight"] for name in ("of_loud", "of_telling")}
    limit = max(size_of_plan(Planned(graph, train=train, winograd=False, **how)) for train in alone.values())

    squares = dict.fromkeys(alone, 0.0)
    net = graph.compile(batch=2, micro_batch=1, train="all", loss="cross_entropy", optimizer=mc.SGD(lr=0.0))
    for i in range(64):
        for name, gradient in net.loss_gradients({key: array[i:i + 1] for key, array in x.items()}, classes[i:i + 1]).items():
            if name.removesuffix(".weight") in alone:
                squares[name.removesuffix(".weight")] += float((gradient ** 2).sum())
    assert squares["of_loud"] > 4 * squares["of_telling"]

    net = graph.compile(train="all", budget=limit, samples=(x, classes), **how)
    assert "of_telling.weight" in net.choice.train and "of_loud.weight" not in net.choice.train

    def loss_after(net: mc.Net) -> float:
        for i in range(128):
            net.train_step({name: array[i:i + 1] for name, array in x.items()}, classes[i:i + 1])
        return net.evaluate({name: array[128:] for name, array in x.items()}, classes[128:])["loss"]
    chosen = loss_after(net)
    assert chosen < 0.7 * loss_after(graph.compile(train=alone["of_loud"], **how))
