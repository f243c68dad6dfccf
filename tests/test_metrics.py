"""What evaluation counts beside the loss, through a network and over a data set."""
import numpy as np
import pytest

import microcnn as mc
from microcnn import train
from microcnn.errors import CompileError

from .tiny import compiled, images


def expected(y, t, k):
    order = np.argsort(-y, axis=1, kind="stable")
    matrix = np.zeros((y.shape[1],) * 2, np.int64)
    np.add.at(matrix, (t, order[:, 0]), 1)
    return (order[:, :k] == t[:, None]).any(1).mean(), matrix


def test_of_a_network_in_parts():
    net = compiled()
    x, t = images(11)
    share, matrix = expected(net.predict(x), t, 2)
    found = net.evaluate(x, t, top_k=2, confusion=True)
    assert set(found) == {"loss", "accuracy", "top_2", "confusion"}
    assert found["top_2"] == share and found["accuracy"] == np.trace(matrix) / 11
    np.testing.assert_array_equal(found["confusion"], matrix)
    assert net.evaluate(x, t, top_k=1)["top_1"] == found["accuracy"] and net.evaluate(x, t, top_k=3)["top_3"] == 1
    assert set(net.evaluate(x, t)) == {"loss", "accuracy"}


def test_of_a_data_set_and_of_targets_that_are_ignored():
    net = compiled(loss=mc.CrossEntropyLoss(ignore_index=1))
    x, t = images(11)
    share, matrix = expected(net.predict(x)[t != 1], t[t != 1], 2)
    for found in (net.evaluate(x, t, top_k=2, confusion=True), train.evaluate(net, mc.Dataset(x, t), top_k=2, confusion=True)):
        assert found["top_2"] == pytest.approx(share, rel=1e-12)
        np.testing.assert_array_equal(found["confusion"], matrix)


def test_of_probabilities():
    net = compiled()
    x, t = images(11)
    whole, parts = (net.evaluate(x, targets, top_k=2, confusion=True) for targets in (t, np.eye(3, dtype=np.float32)[t]))
    assert whole["top_2"] == parts["top_2"]
    np.testing.assert_array_equal(whole["confusion"], parts["confusion"])


@pytest.mark.parametrize("options, text", [
    ({"top_k": 4}, "top_k is 4; expected an integer from 1 to 3, the number of classes"), ({"top_k": 0}, "top_k is 0"),
    ({"top_k": True}, "top_k is True"), ({"top_k": 1.0}, "top_k is 1.0")])
def test_what_makes_no_sense_is_refused(options, text):
    with pytest.raises(CompileError, match=text):
        compiled().evaluate(*images(4), **options)


@pytest.mark.parametrize("name", ["top_k", "confusion"])
def test_without_classes_there_is_nothing_to_count(name):
    with pytest.raises(CompileError, match=f"{name} counts classes, which need a cross-entropy loss"):
        compiled(loss="mse").evaluate(images(4)[0], np.zeros((4, 3)), **{name: 1})
