"""The gradient check finds wrong gradients."""
import numpy as np
import pytest

import microcnn as mc
from tests.gradcheck import check_gradients


class Wrong:
    """A network whose gradients one number is added to."""

    def __init__(self, net, what, place, error):
        self.net, self.what, self.place, self.error = net, what, place, error

    def __getattr__(self, name):
        return getattr(self.net, name)

    def backward(self, dy):
        dx = self.net.backward(dy)
        if self.what == "dx":
            dx[self.place] += self.error
        return dx

    def gradients(self):
        found = self.net.gradients()
        if self.what != "dx":
            found[self.what][self.place] += self.error
        return found


@pytest.fixture
def net():
    layers = [mc.Conv2d(3, 2), mc.Tanh(), mc.Flatten(), mc.Linear(2)]
    return mc.Sequential(layers, input_shape=(2, 4, 5), seed=1).graph().compile(batch=2, train="all", dtype="float64")


@pytest.fixture
def x(rng):
    return {"input": rng.normal(size=(2, 2, 4, 5))}


def test_right_gradients_pass_and_weights_stay(net, x):
    before = net.parameters()
    check_gradients(net, x)
    for name, array in net.parameters().items():
        np.testing.assert_array_equal(array, before[name])


@pytest.mark.parametrize("error", [1e-4, -1e-4, np.nan])
@pytest.mark.parametrize("what, place", [("dx", (1, 0, 3, 4)), ("conv1.weight", (2, 1, 0, 1)), ("conv1.bias", (1,)),
                                         ("linear1.weight", (0, 17))])
def test_one_wrong_number_fails(net, x, what, place, error):
    with pytest.raises(AssertionError, match="central differences say"):
        check_gradients(Wrong(net, what, place, error), x)


def test_a_sign_or_a_factor_fails(net, x, monkeypatch):
    backward = net.backward
    monkeypatch.setattr(net, "backward", lambda dy: -backward(dy))
    with pytest.raises(AssertionError, match="dx of input"):
        check_gradients(net, x)
    monkeypatch.setattr(net, "backward", lambda dy: backward(dy) / 2)
    with pytest.raises(AssertionError, match="dx of input"):
        check_gradients(net, x)
