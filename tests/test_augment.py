"""mc.Augment: what compile and the command make of it."""
import numpy as np
import pytest

import microcnn as mc
from microcnn.augment import parse_augment

from .tiny import same

ALL = mc.Augment(shift=1, flip=True, crop=0.8, brightness=0.2, noise=0.1)


def network(shape=(1, 6, 6)):
    return mc.Sequential([mc.Conv2d(4, 3, padding=1), mc.ReLU(), mc.Flatten(), mc.Linear(3)], input_shape=shape).graph()


def trained(augment, seed=0, threads=1, steps=4, graph=None):
    graph = graph or network()
    net = graph.compile(batch=5, train="all", loss="cross_entropy", optimizer=mc.SGD(lr=0.1), augment=augment, seed=seed)
    rng = np.random.default_rng(1)
    before = mc.get_num_threads()
    mc.set_num_threads(threads)
    try:
        losses = [net.train_step(rng.standard_normal((5, *graph.inputs[0].shape)).astype("f"), rng.integers(0, 3, 5))
                  for _ in range(steps)]
    finally:
        mc.set_num_threads(before)
    return net, losses


def test_only_training_sees_it():
    net, plain = trained(ALL, steps=0)[0], trained(None, steps=0)[0]
    x = np.random.default_rng(2).standard_normal((5, 1, 6, 6)).astype("f")
    t = np.arange(5) % 3
    assert (net.predict(x) == plain.predict(x)).all()
    assert net.evaluate(x, t) == plain.evaluate(x, t)
    assert net.train_step(x, t) != plain.train_step(x, t)


def test_the_same_run_gives_the_same_weights():
    first, losses = trained(ALL)
    again, others = trained(ALL, threads=2 if mc.get_num_threads() > 1 else 1)
    assert losses == others and same(first.parameters(), again.parameters())
    assert trained(ALL, seed=1)[1] != losses
    assert trained(mc.Augment())[1] == trained(None)[1]


def test_each_step_draws_anew():
    graph = mc.Sequential([mc.Flatten(), mc.Linear(1, bias=False)], input_shape=(1, 4, 4)).graph()
    net = graph.compile(batch=1, train="all", loss="mse", optimizer=mc.SGD(lr=0.0), augment=mc.Augment(brightness=1))
    x = np.zeros((1, 1, 4, 4), "f")
    losses = {net.train_step(x, np.ones((1, 1), "f")) for _ in range(10)}
    assert len(losses) == 10


def test_channels_last_and_flat_inputs():
    b = mc.GraphBuilder()
    graph = b.graph(b(mc.Linear(3), b(mc.Flatten(), b.input("x", (8, 6, 3)))))
    trained(ALL, graph=graph)
    flat = b.__class__()
    graph = flat.graph(flat(mc.Linear(3), flat.input("x", (12,))))
    trained(mc.Augment(brightness=0.1, noise=0.1), graph=graph)
    with pytest.raises(mc.CompileError, match=r'input "x" has shape \(12,\) for one sample; shift, flip and crop need images'):
        trained(mc.Augment(flip=True), graph=graph)


@pytest.mark.parametrize("arguments, message", [
    (dict(shift=-1), "shift is -1; expected a number of pixels"), (dict(shift=(1, 2, 3)), "shift is"),
    (dict(shift=1.5), "shift is 1.5"), (dict(flip="left"), "flip is 'left'; expected True, \"horizontal\""),
    (dict(crop=0), "crop is 0; expected a number above 0"), (dict(crop=1.1), "crop is 1.1"),
    (dict(brightness=-0.1), "brightness is -0.1"), (dict(noise=float("nan")), "noise is nan"),
    (dict(noise="x"), "noise is 'x'")])
def test_values_that_make_no_sense(arguments, message):
    with pytest.raises(mc.CompileError, match=message):
        mc.Augment(**arguments)


def test_networks_that_it_does_not_fit():
    graph = network()
    for how, message in ((dict(train=None), "compile was given no train; give train"),
                         (dict(augment=3), "augment is 3; expected None or"),
                         (dict(augment=mc.Augment(shift=6)), r"shift \(=6, 6\) moves all of input")):
        with pytest.raises(mc.CompileError, match=message):
            graph.compile(**{**dict(train="all", loss="mse", optimizer=mc.SGD(lr=0.1), augment=ALL), **how})
    picture = mc.Sequential([mc.Conv2d(1, 3, padding=1)], input_shape=(1, 6, 6)).graph()
    options = dict(train="all", loss="mse", optimizer=mc.SGD(lr=0.1))
    with pytest.raises(mc.CompileError, match="but not those of the targets of output"):
        picture.compile(**options, augment=ALL)
    picture.compile(**options, augment=mc.Augment(noise=0.1))


def test_as_people_type_it():
    assert parse_augment("shift=2, flip,crop=0.8,brightness=0.2,noise=0.05") == mc.Augment(2, True, 0.8, 0.2, 0.05)
    assert parse_augment("shift=1x3,flip=both") == mc.Augment(shift=(1, 3), flip="both")
    assert parse_augment("flip=True") == mc.Augment(flip=True)
    for text, message in (("rotate=3", "'rotate=3' is not known"), ("shift", "shift needs a number: shift=2"),
                          ("", "not known"), ("noise=x", "'x' is no number"), ("shift=1x2x3", "shift is"),
                          ("flip=", "not known")):
        with pytest.raises(mc.CompileError, match=message):
            parse_augment(text)
