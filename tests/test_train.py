"""The training loop: what it feeds, reports, keeps, and how it stops. The network is a small stand-in in numpy."""
import itertools
import math
import signal
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from microcnn.data import Dataset
from microcnn.errors import CompileError, DataError, TrainingError
from microcnn.losses import CrossEntropyLoss, MSELoss
from microcnn.normalize import Normalization
from microcnn.train import Progress, evaluate, fit, predict


class LinearClassifier:
    """Softmax regression with the parts of a network's face that the training loop uses."""

    def __init__(self, features, classes, batch=8, lr=0.5, loss=None):
        self.batch, self.lr, self.dtype, self.loss = batch, lr, np.dtype("float32"), loss or CrossEntropyLoss()
        self.graph = SimpleNamespace(inputs=[SimpleNamespace(name="x")], outputs=["y"])
        self.shapes = {"x": (features,), "y": (classes,)}
        self.weight = np.zeros((classes, features), np.float32)
        self.seen, self.rates = [], []

    def _probabilities(self, x):
        logits = x.reshape(len(x), -1) @ self.weight.T
        shares = np.exp(logits - logits.max(1, keepdims=True))
        return shares / shares.sum(1, keepdims=True)

    def predict(self, x):
        return self._probabilities(x)

    def evaluate(self, x, t):
        shares = self._probabilities(x)
        picked = shares[np.arange(len(t)), t]
        return {"loss": float(-np.log(picked).mean()), "accuracy": float((shares.argmax(1) == t).mean())}

    def train_step(self, x, t):
        assert x.dtype == self.dtype and len(x) <= self.batch
        self.seen.append(t.copy())
        self.rates.append(self.lr)
        loss = self.evaluate(x, t)["loss"]
        error = self._probabilities(x)
        error[np.arange(len(t)), t] -= 1
        self.weight -= np.float32(self.lr) * error.T @ x.reshape(len(x), -1) / len(x)
        return loss

    def parameters(self):
        return {"weight": self.weight}

    def set_parameters(self, values):
        self.weight[...] = values["weight"]


class Scripted(LinearClassifier):
    """One whose validation results and losses are prescribed; its weight counts the steps."""

    def __init__(self, results, losses=(), **rest):
        super().__init__(4, 3, **rest)
        self.results, self.losses = iter(results), iter(losses)

    def evaluate(self, x, t):
        return dict(next(self.results))

    def train_step(self, x, t):
        self.weight += 1
        return next(self.losses, 1.0)


def blobs(count=96, classes=3, features=4, seed=0):
    generator = np.random.default_rng(seed)
    y = generator.integers(0, classes, count)
    x = generator.normal(0, 0.5, (count, features))
    x[np.arange(count), y] += 2
    return Dataset(x.astype(np.float32), y)


def results(*accuracies):
    return [{"loss": 1.0, "accuracy": accuracy} for accuracy in accuracies]


def test_it_learns_and_tells():
    train, validation = blobs().split(0.25)
    net, told = LinearClassifier(4, 3), []
    history = fit(net, train, validation, epochs=5, on_progress=told.append)
    assert history.before.accuracy < 0.6 and history.reached.accuracy > 0.9
    assert [epoch.epoch for epoch in history.epochs] == list(range(6))
    assert not history.interrupted and history.steps == 5 * 9 == len(told)
    assert evaluate(net, validation)["accuracy"] == history.reached.accuracy
    assert [one.step for one in told] == list(range(1, 46)) and {one.steps for one in told} == {45}
    first, last = told[0], told[-1]
    assert isinstance(first, Progress) and (first.epoch, last.epoch, last.epochs) == (1, 5, 5)
    assert first.accuracy == history.before.accuracy and last.accuracy == history.epochs[4].accuracy
    assert last.loss < first.loss and first.samples_per_second > 0 and first.seconds_left > 0
    assert history.samples_per_second > 0 and history.seconds > 0


def test_every_sample_once_an_epoch_in_a_seeded_order():
    data = Dataset(np.eye(10, dtype=np.float32), np.arange(10))
    runs = []
    for seed in (0, 0, 1):
        net = LinearClassifier(10, 10, batch=4)
        fit(net, data, epochs=2, seed=seed)
        assert [len(t) for t in net.seen] == [4, 4, 2] * 2
        order = np.concatenate(net.seen).tolist()
        assert sorted(order[:10]) == sorted(order[10:]) == list(range(10)) and order[:10] != order[10:]
        runs.append(order)
    assert runs[0] == runs[1] != runs[2]


def test_learning_rate_follows_the_schedule_and_comes_back():
    data = Dataset(np.eye(8, dtype=np.float32), np.arange(8))
    net = LinearClassifier(8, 8, batch=4, lr=0.2)
    fit(net, data, epochs=2, schedule="cosine")
    np.testing.assert_allclose(net.rates, [0.2 * (1 + math.cos(math.pi * step / 4)) / 2 for step in range(4)])
    assert net.lr == 0.2


def test_schedules_in_epochs_know_the_steps_of_an_epoch():
    net = LinearClassifier(8, 8, batch=4, lr=0.5)
    fit(net, Dataset(np.eye(8, dtype=np.float32), np.arange(8)), epochs=3, schedule="step:1,gamma=0.5")
    assert net.rates == [0.5, 0.5, 0.25, 0.25, 0.125, 0.125]


@pytest.mark.parametrize("patience, min_delta, accuracies, last, best", [
    (None, 0.0, (0.5, 0.4, 0.4, 0.4, 0.4), 4, 0),
    (2, 0.0, (0.1, 0.5, 0.5, 0.4, 0.9), 3, 1),
    (2, 0.0, (0.1, 0.2, 0.2, 0.3, 0.3, 0.3, 0.9), 5, 3),
    (2, 0.1, (0.1, 0.3, 0.35, 0.36, 0.9), 3, 3),         # better, but not by enough: still the best weights
    (1, 0.0, (0.5, 0.4, 0.9), 1, 0),
    (4, 0.0, (0.5, 0.4, 0.4, 0.4, 0.4), 4, 0)])
def test_patience(patience, min_delta, accuracies, last, best):
    net = Scripted(results(*accuracies), batch=96)
    history = fit(net, blobs(), blobs(10), epochs=len(accuracies) - 1, patience=patience, min_delta=min_delta)
    assert history.epochs[-1].epoch == last and history.best == best and (net.weight == best).all()
    assert history.stopped == (last < len(accuracies) - 1)


def test_patience_counts_a_smaller_loss_where_accuracy_is_equal():
    steps = [{"loss": loss, "accuracy": 0.5} for loss in (3.0, 2.0, 1.0, 0.99, 0.98, 0.1)]
    history = fit(Scripted(steps, batch=96), blobs(), blobs(10), epochs=5, patience=2, min_delta=0.1)
    assert history.stopped and history.epochs[-1].epoch == 4 and history.best == 4


def test_the_best_weights_are_kept():
    net = Scripted(results(0.1, 0.5, 0.7, 0.7, 0.6), batch=96)
    history = fit(net, blobs(), blobs(10), epochs=4)
    assert history.best == 2 and (net.weight == 2).all()
    assert history.reached.accuracy == 0.7


def test_equal_accuracy_is_decided_by_loss():
    steps = [{"loss": loss, "accuracy": 0.5} for loss in (3.0, 2.0, 1.0, 1.5)]
    net = Scripted(steps, batch=96)
    assert fit(net, blobs(), blobs(10), epochs=3).best == 2 and (net.weight == 2).all()


def test_without_accuracy_the_loss_decides():
    steps = [{"loss": loss} for loss in (3.0, math.nan, 1.0, 1.5)]
    net = Scripted(steps, batch=96, loss=MSELoss())
    data = Dataset(np.zeros((96, 4)), np.zeros((96, 3)))
    history = fit(net, data, data, epochs=3)
    assert history.best == 2 and (net.weight == 2).all() and history.reached.accuracy is None


def test_training_that_only_makes_it_worse_changes_nothing():
    net = Scripted(results(0.9, 0.5, 0.6), batch=96)
    history = fit(net, blobs(), blobs(10), epochs=2)
    assert history.best == 0 and (net.weight == 0).all() and history.reached == history.before


def test_weights_before_training_that_do_not_count():
    """Those of a new head are random: neither the best, nor what patience starts from."""
    net = Scripted(results(0.9, 0.5, 0.6, 0.4), batch=96)
    history = fit(net, blobs(), blobs(10), epochs=3, before_counts=False)
    assert history.best == 2 and (net.weight == 2).all() and history.before.accuracy == 0.9
    net = Scripted(results(0.9, 0.5, 0.4, 0.6), batch=96)
    history = fit(net, blobs(), blobs(10), epochs=3, patience=1, before_counts=False)
    assert history.stopped and history.epochs[-1].epoch == 2 and history.best == 1 and (net.weight == 1).all()


def test_without_validation_the_last_weights_stay():
    net = Scripted([], batch=96)
    history = fit(net, blobs(), epochs=3)
    assert (net.weight == 3).all() and history.best == 3 and history.before is None
    assert [epoch.accuracy for epoch in history.epochs] == [None] * 3


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_and_keeps_the_good_weights(bad):
    net = Scripted(results(0.1, 0.5), [1.0, 1.0, 1.0, bad], batch=48)
    with pytest.raises(TrainingError, match=rf"stopped in epoch 2 at learning rate 0.5: the loss is {bad} at step 4. "
                                            "The network has the last good weights again, those after epoch 1. Use a "):
        fit(net, blobs(), blobs(10), epochs=5)
    assert (net.weight == 2).all() and net.lr == 0.5
    net = Scripted([], [bad], batch=48)
    with pytest.raises(TrainingError, match="those before training"):
        fit(net, blobs())
    assert (net.weight == 0).all()


def test_what_the_network_refuses_to_train_on_stops_likewise():
    class Refusing(Scripted):
        def train_step(self, x, t):
            if self.weight.max() == 3:
                raise TrainingError("the loss is nan at step 4")
            return super().train_step(x, t)

    net = Refusing(results(0.1, 0.5), batch=48)
    with pytest.raises(TrainingError, match="in epoch 2 at learning rate 0.5: the loss is nan at step 4. The network"):
        fit(net, blobs(), blobs(10), epochs=5)
    assert (net.weight == 2).all()


def test_a_validation_that_is_not_finite_stops_likewise():
    class Refusing(Scripted):
        def evaluate(self, x, t):
            if self.weight.max() == 4:
                raise TrainingError("the loss is inf")
            return super().evaluate(x, t)

    net = Refusing(results(0.1, 0.5), batch=48)
    with pytest.raises(TrainingError, match="validation: the loss is inf. The network has .*, those after epoch 1"):
        fit(net, blobs(), blobs(10), epochs=5)
    assert (net.weight == 2).all()


def test_weights_that_are_not_finite_are_not_kept():
    class Bursting(Scripted):
        def train_step(self, x, t):
            self.weight += np.inf
            return 1.0

    net = Bursting([], batch=96)
    with pytest.raises(TrainingError, match="weights became infinite or NaN by step 1. The"):
        fit(net, blobs(), epochs=3)
    assert (net.weight == 0).all()


def interrupting(at, times=1):
    """A progress callback that presses Ctrl-C after that step."""
    def told(progress):
        if progress.step == at:
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)
    return told


def test_ctrl_c_stops_at_the_next_step_and_keeps_what_was_reached():
    before = signal.getsignal(signal.SIGINT)
    net = Scripted(results(0.1, 0.5, 0.8), batch=32)
    history = fit(net, blobs(), blobs(10), epochs=9, on_progress=interrupting(5))
    assert history.interrupted and history.steps == 5 and history.best == 2 and (net.weight == 5).all()
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_goes_back_to_the_best_weights():
    net = Scripted(results(0.1, 0.5, 0.4), batch=32)
    history = fit(net, blobs(), blobs(10), epochs=9, on_progress=interrupting(5))
    assert history.interrupted and history.best == 1 and (net.weight == 3).all()


def test_ctrl_c_without_validation_keeps_the_last_step():
    net = Scripted([], batch=32)
    history = fit(net, blobs(), epochs=9, on_progress=interrupting(5))
    assert history.interrupted and (net.weight == 5).all() and net.lr == 0.5


def test_a_second_ctrl_c_skips_the_validation():
    net = Scripted(results(0.1, 0.5), batch=32)
    history = fit(net, blobs(), blobs(10), epochs=9, on_progress=interrupting(5, times=2))
    assert history.interrupted and history.best == 1 and (net.weight == 3).all()


def test_in_another_thread_it_trains_without_a_handler():
    net, found = LinearClassifier(4, 3), []
    thread = threading.Thread(target=lambda: found.append(fit(net, blobs(), epochs=2)))
    thread.start()
    thread.join()
    assert found[0].steps == 24


def test_evaluation_of_batches_equals_that_of_the_whole():
    class Weighted(LinearClassifier):
        def evaluate(self, x, t):
            kept = t != self.loss.ignore_index
            x, t = x[kept], t[kept]
            shares = self._probabilities(x)
            weight = np.asarray(self.loss.weight)[t]
            picked = -np.log(shares[np.arange(len(t)), t])
            return {"loss": float((weight * picked).sum() / weight.sum()),
                    "accuracy": float((shares.argmax(1) == t).mean())}

    data = blobs(50)
    data.y[::7] = -100
    net = Weighted(4, 3, batch=8, loss=CrossEntropyLoss(weight=[1.0, 2.0, 5.0]))
    net.weight[:] = np.random.default_rng(1).normal(size=(3, 4))
    whole, parts = net.evaluate(data.x, data.y), evaluate(net, data)
    assert parts == pytest.approx(whole, rel=1e-6)


def test_data_is_normalised_on_its_way():
    x = np.arange(24, dtype=np.uint8).reshape(6, 4)
    data = Dataset(x, np.zeros(6, int), Normalization(1 / 255, 0.5, 0.25))
    net = LinearClassifier(4, 3, batch=4)
    net.predict = lambda x: x.copy()
    np.testing.assert_allclose(np.concatenate(list(predict(net, data))), (x / 255 - 0.5) / 0.25, rtol=1e-5)


@pytest.mark.parametrize(("change", "text"), [
    ({"epochs": 0}, "epochs is 0; expected an integer, 1 or more"),
    ({"epochs": 1.5}, "epochs is 1.5; expected an integer"),
    ({"schedule": "linear"}, "schedule is 'linear'; expected one of"),
    ({"schedule": "step"}, "step needs step_size, in epochs"),
    ({"patience": 0, "validation": Dataset(np.zeros((3, 4)))}, "patience is 0; expected a number of epochs, 1 or more, or"),
    ({"patience": 2}, "patience needs validation data, which fit was not given"),
    ({"min_delta": -1.0}, "min_delta is -1.0; expected a finite number, 0 or more"),
    ({"train": Dataset(np.zeros((3, 4)))}, "fit needs targets, but the data has none"),
    ({"validation": Dataset(np.zeros((3, 4)))}, "fit needs targets, but the data has none"),
])
def test_arguments_that_make_no_sense(change, text):
    with pytest.raises(CompileError, match=text):
        fit(**{"net": LinearClassifier(4, 3), "train": blobs(), **change})


def test_data_is_brought_to_the_networks_shapes():
    net = LinearClassifier(4, 3)
    net.shapes["x"] = (1, 2, 2)
    data = blobs()
    fit(net, Dataset(data.x.reshape(-1, 2, 2), data.y[:, None]), epochs=1)
    with pytest.raises(DataError, match=r"samples have shape \(4,\), but the model's input \"x\" takes \(1, 2, 2\)"):
        fit(net, data)
    with pytest.raises(DataError, match=r"label 3 \(sample 0\) is out of range; the model has 3 classes"):
        fit(LinearClassifier(4, 3), Dataset(data.x, np.full(96, 3)))
    net.graph.outputs = ["y", "z"]
    with pytest.raises(CompileError, match="the model has 2 outputs, y, z; a data set holds one of each"):
        fit(net, data)


def test_epochs_are_told():
    told = []
    net = Scripted(itertools.chain(results(0.1, 0.5, 0.7)), batch=96)
    history = fit(net, blobs(), blobs(10), epochs=2, on_epoch=told.append)
    assert told == history.epochs


def test_a_real_network_learns_the_same_weights_every_time():
    import microcnn as mc
    generator = np.random.default_rng(0)
    y = (np.arange(300) % 3).astype(np.uint8)
    x = generator.integers(0, 100, (300, 6, 6), dtype=np.uint8)
    for label in range(3):
        x[y == label, 2 * label:2 * label + 2] += 100
    train, validation = Dataset(x, y, Normalization(1 / 255, 0.2, 0.2)).split(0.2)
    graph = mc.Sequential([mc.Conv2d(4, 3, padding=1), mc.ReLU(), mc.Flatten(), mc.Linear(3)],
                          input_shape=(1, 6, 6)).graph()
    runs = []
    for _ in range(2):
        net = graph.compile(batch=32, train="all", loss="cross_entropy", optimizer=mc.SGD(lr=0.1, momentum=0.9))
        history = fit(net, train, validation, epochs=3, schedule="cosine", seed=1)
        assert history.reached.accuracy > 0.95 and net.lr == 0.1
        assert evaluate(net, validation.matched((1, 6, 6), (3,), net.loss)) == pytest.approx(
            {"loss": history.reached.validation_loss, "accuracy": history.reached.accuracy})
        runs.append(net.parameters())
    for name, array in runs[0].items():
        assert array.tobytes() == runs[1][name].tobytes(), name
    with pytest.raises(TrainingError, match="The network has the last good weights again, those before training"):
        net.lr = 1e30
        fit(net, train, epochs=3)
    for name, array in runs[0].items():
        assert array.tobytes() == net.parameters()[name].tobytes(), name


def test_any_iterable_trains():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((20, 6)).astype("f"), rng.integers(0, 3, 20)
    weights = []
    for train in (Dataset(x, y), list(zip(x, y, strict=True)), ((x[i:i + 8], y[i:i + 8]) for i in range(0, 20, 8))):
        net = LinearClassifier(6, 3)
        fit(net, train, iter([(x[:4], y[:4])]), epochs=2)
        weights.append(net.weight)
    assert (weights[0] == weights[1]).all() and (weights[0] == weights[2]).all()
    with pytest.raises(DataError, match="validation data: the iterable gave nothing"):
        fit(LinearClassifier(6, 3), Dataset(x, y), iter([]))
