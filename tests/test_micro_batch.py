"""A batch that goes through in parts, whose gradients add up: what the whole batch gives, but for rounding."""
from __future__ import annotations

import numpy as np
import pytest

import microcnn as mc
from microcnn.planned import Planned

from .test_memory import check_plan
from .test_recompute import plain, residual
from .tiny import same

HOW = {"train": "all", "loss": "cross_entropy", "dtype": "float64"}


def samples(step: int, count: int = 7) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(step)
    return rng.standard_normal((count, 3, 12, 12)), rng.integers(0, 4, count)


def close(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    for name in one:
        np.testing.assert_allclose(one[name], other[name], rtol=1e-9, atol=1e-11, err_msg=name)


OPTIMIZERS = [mc.SGD(lr=0.1, momentum=0.9, weight_decay=1e-3), mc.AdamW(lr=0.01), mc.SGD(lr=0.1, clip_norm=0.01)]


@pytest.mark.parametrize("micro_batch", [1, 3, 7])
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda one: type(one).__name__ + str(one.clip_norm))
def test_parts_add_up(optimizer, micro_batch):
    """Dropout's masks are those of the whole batch, too."""
    whole, parts = (plain().compile(batch=7, optimizer=optimizer, micro_batch=size, seed=5, **HOW)
                    for size in (None, micro_batch))
    for step in range(4):
        one, other = whole.train_step(*samples(step)), parts.train_step(*samples(step))
        assert one == pytest.approx(other, rel=1e-10)
    close(whole.parameters(), parts.parameters())


LOSSES = [mc.CrossEntropyLoss(weight=[1.0, 2.0, 0.5, 3.0], ignore_index=1), mc.CrossEntropyLoss(label_smoothing=0.2), "mse",
          "huber", "bce_with_logits"]


@pytest.mark.parametrize("loss", LOSSES, ids=str)
@pytest.mark.parametrize("weighted", [False, True])
def test_every_loss_counts_as_in_the_whole_batch(weighted, loss):
    """Targets that are ignored and weights of classes and samples lie in the parts unevenly."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((7, 3, 12, 12))
    t = np.array([1, 1, 0, 2, 3, 3, 1]) if isinstance(loss, mc.CrossEntropyLoss) else rng.random((7, 4))
    weight = rng.uniform(0.1, 3, 7) if weighted else None
    whole, parts = (residual().compile(batch=7, micro_batch=size, **{**HOW, "loss": loss}, optimizer=mc.SGD(lr=0.1))
                    for size in (None, 2))
    one, other = (net.train_step(x, t, sample_weight=weight) for net in (whole, parts))
    assert one == pytest.approx(other, rel=1e-10)
    close(whole.parameters(), parts.parameters())
    for one, other in zip(whole.evaluate(x, t).values(), parts.evaluate(x, t).values(), strict=True):
        assert one == pytest.approx(other, rel=1e-10)


def test_augmentation_is_that_of_the_whole_batch():
    augment = mc.Augment(shift=2, flip=True, brightness=0.3, noise=0.1)
    whole, parts = (residual().compile(batch=7, micro_batch=size, augment=augment, optimizer=mc.SGD(lr=0.1), **HOW)
                    for size in (None, 2))
    for step in range(3):
        assert whole.train_step(*samples(step)) == pytest.approx(parts.train_step(*samples(step)), rel=1e-10)


def test_less_memory_and_a_sound_plan(planned):
    how = {**HOW, "dtype": "float32", "optimizer": mc.SGD(lr=0.1)}
    whole = Planned(residual(), batch=32, **how).memory
    parts = residual().compile(batch=32, micro_batch=4, **how)
    check_plan(parts, {mode: schedule for mode, schedule in planned.items() if schedule.batch == 4})
    assert parts.memory.activations < whole.activations / 6
    assert parts.memory.gradients >= sum(array.nbytes for name, array in parts.parameters().items() if name in parts.trained)


def test_prediction_goes_in_parts_too():
    whole, parts = (residual().compile(batch=7, micro_batch=size, dtype="float64") for size in (None, 2))
    x, _ = samples(0, 9)
    assert whole.predict(x).tobytes() == parts.predict(x).tobytes()


def test_nothing_changes_where_a_part_is_not_finite():
    net = residual().compile(batch=6, micro_batch=2, optimizer=mc.SGD(lr=0.1, momentum=0.9), **HOW)
    x, t = samples(0, 6)
    net.train_step(x, t)
    before = net.parameters()
    bad = x.copy()
    bad[5, 0, 0, 0] = np.nan
    with pytest.raises(mc.DataError, match="holds nan"):
        net.train_step(bad, t)
    with pytest.raises(mc.DataError, match="class 4"):
        net.train_step(x, np.array([0, 1, 2, 3, 0, 4]))
    assert same(before, net.parameters())
    again = residual().compile(batch=6, micro_batch=2, optimizer=mc.SGD(lr=0.1, momentum=0.9), **HOW)
    for one in (again,):
        one.train_step(x, t)
    assert net.train_step(x, t) == again.train_step(x, t)


def test_threads_give_the_same_bits():
    results = []
    for threads in (1, 2):
        mc.set_num_threads(threads)
        net = residual().compile(batch=7, micro_batch=3, optimizer=mc.SGD(lr=0.1), **HOW)
        net.train_step(*samples(0))
        results.append(net.parameters())
    assert same(*results)


def test_loss_gradients_are_those_of_the_mean_loss():
    """Against the manual programs, whose dy is the loss's own gradient."""
    net = residual().compile(batch=7, micro_batch=3, optimizer=mc.SGD(lr=0.1), **HOW)
    x, t = samples(0)
    before = net.parameters()
    found = net.loss_gradients(x, t)
    assert same(before, net.parameters())
    logits = net.forward(x)
    power = np.exp(logits - logits.max(1, keepdims=True))
    net.backward((power / power.sum(1, keepdims=True) - np.eye(4)[t]) / 7)
    close(net.gradients(), found)


def test_a_profile_of_a_step_in_parts():
    net = residual().compile(batch=6, micro_batch=2, optimizer=mc.SGD(lr=0.1), **{**HOW, "dtype": "float32"})
    rows = net.rows("train")
    x, t = samples(0, 6)
    assert len(net.timed_step(x.astype(np.float32), t)) == len(rows) + 1
    run = mc.profile(net, repeats=3).runs[0]
    assert len(run.rows) == len(rows) and sum(layer.total_us for layer in run.layers) > 0


@pytest.mark.parametrize("arguments, message", [
    (dict(micro_batch=0), "micro_batch is 0; expected an integer from 1 to the batch, 4"),
    (dict(micro_batch=5), "micro_batch is 5; expected an integer from 1 to the batch, 4"),
    (dict(micro_batch=True), "micro_batch is True; expected"), (dict(micro_batch=1.5), r"micro_batch is 1\.5; expected"),
    (dict(micro_batch=2, bn="batch"), 'micro_batch is 2 with bn="batch": the statistics of 2 samples are not those of')])
def test_what_is_no_part_of_a_batch(arguments, message):
    with pytest.raises(mc.CompileError, match=message):
        residual().compile(batch=4, optimizer=mc.SGD(lr=0.1), **HOW, **arguments)


def test_loss_gradients_need_a_step_in_parts():
    net = residual().compile(batch=4, optimizer=mc.SGD(lr=0.1), **HOW)
    with pytest.raises(mc.CompileError, match="loss_gradients needs micro_batch"):
        net.loss_gradients(*samples(0, 4))


@pytest.mark.parametrize("micro_batch", [1, 3])
def test_evaluation_of_several_losses(micro_batch):
    """Each loss's mean is over its own targets, of which the parts hold different numbers; and so over several batches."""
    b = mc.GraphBuilder(seed=2)
    x = b(mc.Flatten(), b(mc.GlobalAvgPool2d(), b(mc.Conv2d(6, 3), b.input("x", (3, 12, 12)))))
    graph = b.graph(b(mc.Linear(4, name="p"), x), b(mc.Linear(4, name="q"), x))
    one, other = graph.outputs
    x, _ = samples(0)
    t = {one: np.array([0, -1, -1, 2, -1, -1, 3]), other: np.array([1, 2, 3, -1, 0, 0, 1])}
    how = {**HOW, "loss": mc.CrossEntropyLoss(ignore_index=-1), "optimizer": mc.SGD(lr=0.1)}
    nets = [graph.compile(**size, **how) for size in (dict(batch=7), dict(batch=7, micro_batch=micro_batch), dict(batch=2))]
    whole, *rest = [net.evaluate(x, t)["loss"] for net in nets]
    assert whole == pytest.approx(nets[0].train_step(x, t), rel=1e-10)
    assert rest == pytest.approx([whole, whole], rel=1e-10)


def test_a_part_that_fails_leaves_no_trace(monkeypatch):
    """The third part ends the step; dropout's masks are as before afterwards."""
    net, fresh = (plain().compile(batch=6, micro_batch=2, optimizer=mc.SGD(lr=0.1), **HOW) for _ in range(2))
    x, t = samples(0, 6)
    debug, runs = net._run_debug, []

    def failing(program, count):
        runs.append(count)
        if len(runs) == 4:              # behind what opens the step, and two parts
            raise mc.TrainingError("a layer makes an infinity")
        debug(program, count)
    monkeypatch.setattr(net, "_run_debug", failing)
    net.debug = True
    with pytest.raises(mc.TrainingError, match="an infinity"):
        net.train_step(x, t)
    net.debug = False
    assert same(net.parameters(), fresh.parameters())
    assert net.forward(x).tobytes() == fresh.forward(x).tobytes()
    assert net.train_step(x, t) == fresh.train_step(x, t)
