"""The training loop: epochs over a data set, validation, the best weights kept, a clean stop."""
from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from .data import Dataset
from .errors import CompileError, TrainingError
from .losses import CrossEntropyLoss
from .schedule import EpochSchedule, Schedule, resolve_schedule

if TYPE_CHECKING:
    from .features import FeatureProgress, FeatureReport, FeatureSet
    from .net import Net
    from .tail import Tail


@dataclass(frozen=True)
class Progress:
    """How far the training is, after a step.

    step counts all steps from 1, steps is how many there will be. loss is the mean over this epoch so far. accuracy and
    validation_loss are those of the last validation, None before the first and without validation data. seconds_left
    counts the validations to come.
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    lr: float
    samples_per_second: float
    seconds_left: float
    accuracy: float | None
    validation_loss: float | None


@dataclass(frozen=True)
class Epoch:
    """One epoch's record: epoch 0 is the network before training. None where there is nothing to say."""

    epoch: int
    loss: float | None
    validation_loss: float | None
    accuracy: float | None
    lr: float
    seconds: float


@dataclass
class History:
    """What `fit` did. `best` is the epoch whose weights the network now has, 0 for those before training.

    stopped: whether patience ran out before the last epoch. features: where features were kept, None where none were; seconds
    counts making them.
    """

    epochs: list[Epoch] = field(default_factory=list)
    best: int = 0
    interrupted: bool = False
    stopped: bool = False
    steps: int = 0
    seconds: float = 0.0
    samples_per_second: float = 0.0
    features: FeatureReport | None = None

    @property
    def before(self) -> Epoch | None:
        """The record before training, where there was validation data."""
        return next((epoch for epoch in self.epochs if epoch.epoch == 0), None)

    @property
    def reached(self) -> Epoch | None:
        """The record of the weights that the network now has."""
        return next((epoch for epoch in self.epochs if epoch.epoch == self.best), None)


def matched(net: Net, data: Dataset) -> Dataset:
    """The data in a network's shapes. Raises CompileError where it has several inputs or outputs, else DataError."""
    inputs, outputs = [entry.name for entry in net.graph.inputs], net.graph.outputs
    for what, names in (("inputs", inputs), ("outputs", outputs)):
        if len(names) != 1:
            raise CompileError(f"the model has {len(names)} {what}, {', '.join(names)}; a data set holds one of each: "
                               "call train_step yourself, with dicts by name")
    return data.matched(net.shapes[inputs[0]], net.shapes[outputs[0]], net.loss, inputs[0])


def evaluate(net: Net | Tail, data: Dataset | FeatureSet, **metrics: Any) -> dict[str, Any]:
    """{"loss": ..., "accuracy": ...} over a data set, normalised batch by batch, so that memory stays small.

    The keys are those of net.evaluate, and so are metrics: top_k, confusion. Raises DataError where the data does not fit
    the network, CompileError for metrics that it does not have.
    """
    totals: dict[str, Any] = {}
    weights: dict[str, float] = {}
    loss = net.loss
    x: Any
    for x, y in data.batches(net.batch, dtype=net.dtype):
        for key, value in net.evaluate(x, y, **metrics).items():
            if key == "confusion":
                totals[key], weights[key] = totals.get(key, 0) + value, 1
                continue
            weight = float(len(x))
            if isinstance(loss, CrossEntropyLoss) and y is not None:
                weight = loss.target_weight(y) if key == "loss" else CrossEntropyLoss(
                    ignore_index=loss.ignore_index).target_weight(y)
            if weight:
                totals[key] = totals.get(key, 0.0) + value * weight
                weights[key] = weights.get(key, 0.0) + weight
    return {key: total if key == "confusion" else total / weights[key] for key, total in totals.items()}


def predict(net: Net, data: Dataset) -> Iterator[Any]:
    """The network's outputs for one batch after the other."""
    for x, _ in data.batches(net.batch, dtype=net.dtype):
        yield net.predict(x)


class _Stop:
    """Whether the user pressed Ctrl-C. A second time is not held back."""

    def __init__(self) -> None:
        self.asked = False

    def __call__(self, number: int, frame: Any) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


@contextmanager
def _held_interrupts() -> Iterator[_Stop]:
    """Within, the first Ctrl-C sets a flag instead of breaking into a step. Other handlers are left alone."""
    stop = _Stop()
    mine = (threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGINT) is signal.default_int_handler)
    if mine:
        signal.signal(signal.SIGINT, stop)
    try:
        yield stop
    finally:
        if mine:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _score(record: Epoch) -> tuple[float, float]:
    """Less is better: accuracy first, the loss where two are equally accurate or nothing is counted as right."""
    accuracy = 0.0 if record.accuracy is None or math.isnan(record.accuracy) else record.accuracy
    loss = math.inf if record.validation_loss is None or math.isnan(record.validation_loss) else record.validation_loss
    return -accuracy, loss


class _Patience:
    """Whether there was no progress for so many epochs: the accuracy higher, or as high and the loss lower, by min_delta."""

    def __init__(self, epochs: int | None, min_delta: float):
        self.epochs, self.min_delta = epochs, min_delta
        self.best: tuple[float, float] | None = None
        self.without = 0

    def is_over(self, score: tuple[float, float]) -> bool:
        """Take an epoch's score, of which less is better."""
        wrong, loss = score
        if self.best is None or wrong < self.best[0] - self.min_delta \
                or (wrong <= self.best[0] and loss < self.best[1] - self.min_delta):
            self.best, self.without = score, 0
        else:
            self.without += 1
        return self.epochs is not None and self.without >= self.epochs


class _Fit:
    """One call of `fit`."""

    def __init__(self, net: Net | Tail, train: Dataset | FeatureSet, validation: Dataset | FeatureSet | None, epochs: int,
                 schedule: str | Schedule | EpochSchedule, seed: int, patience: _Patience, before_counts: bool,
                 on_progress: Callable[[Progress], None] | None, on_epoch: Callable[[Epoch], None] | None, stop: _Stop):
        self.net, self.train, self.validation, self.epochs, self.patience = net, train, validation, epochs, patience
        self.seed, self.before_counts = seed, before_counts
        self.on_progress, self.on_epoch, self.stop = on_progress, on_epoch, stop
        self.base = net.lr
        self.per_epoch = -(-len(train) // net.batch)
        self.schedule = resolve_schedule(schedule, self.per_epoch)
        self.steps = epochs * self.per_epoch
        self.history = History()
        self.best_score: tuple[float, float] | None = None
        self.good = self._weights()
        self.good_epoch = 0
        self.moved = False   # whether the network has trained since the last record
        self.training = self.validating = 0.0
        self.samples = self.validations = 0

    def _weights(self) -> dict[str, np.ndarray]:
        return {name: np.array(array) for name, array in self.net.parameters().items()}

    def run(self) -> History:
        begin = time.perf_counter()
        try:
            self._validated(0, None, self.base, 0.0)
            for epoch in range(1, self.epochs + 1):
                if self.stop.asked or self.history.stopped:
                    break
                self._epoch(epoch)
        except KeyboardInterrupt:
            self.stop.asked = True
        finally:
            self.net.lr = self.base
            self.history.seconds = time.perf_counter() - begin
            self.history.samples_per_second = self.samples / self.training if self.training else 0.0
        self.history.interrupted = self.stop.asked
        if self.best_score is not None and (self.moved or self.history.best != self.history.epochs[-1].epoch):
            self.net.set_parameters(self.good)
        return self.history

    def _epoch(self, epoch: int) -> None:
        begin, total, count, rate = time.perf_counter(), 0.0, 0, self.base
        x: Any
        try:
            for x, y in self.train.batches(self.net.batch, self.train.order(self.seed, epoch), self.net.dtype):
                if self.stop.asked:
                    break
                rate = self.base * self.schedule(self.history.steps, self.steps)
                self.net.lr = rate
                self.moved = True
                started = time.perf_counter()
                try:
                    loss = self.net.train_step(x, y)
                except TrainingError as error:
                    self._diverged(str(error), epoch, rate)
                self.training += time.perf_counter() - started
                if not math.isfinite(loss):
                    self._diverged(f"the loss is {loss} at step {self.history.steps + 1}", epoch, rate)
                self.history.steps += 1
                self.samples += len(x)
                total, count = total + loss * len(x), count + len(x)
                self._report(epoch, total / count, rate, time.perf_counter() - begin, count)
        except KeyboardInterrupt:
            if self.stop.asked:
                return   # the second time: no validation
            self.stop.asked = True
        if count:
            self._validated(epoch, total / count, rate, time.perf_counter() - begin)

    def _diverged(self, what: str, epoch: int, rate: float) -> NoReturn:
        """Put the last good weights back and raise TrainingError."""
        self.net.set_parameters(self.good)
        kept = f"those after epoch {self.good_epoch}" if self.good_epoch else "those before training"
        raise TrainingError(f"training stopped in epoch {epoch} at learning rate {rate:g}: {what}. The network has the "
                            f"last good weights again, {kept}. Use a smaller learning rate, or bring the data to a "
                            "range near 1 with scale, mean and std")

    def _report(self, epoch: int, loss: float, rate: float, seconds: float, samples: int) -> None:
        if self.on_progress is None:
            return
        last = self.history.epochs[-1] if self.history.epochs else None
        left = (self.steps - self.history.steps) * seconds * self.net.batch / samples
        if self.validations:
            left += (self.epochs - epoch + 1) * self.validating / self.validations
        self.on_progress(Progress(epoch, self.epochs, self.history.steps, self.steps, loss, rate, samples / seconds,
                                  left, last.accuracy if last else None, last.validation_loss if last else None))

    def _validated(self, epoch: int, loss: float | None, rate: float, seconds: float) -> None:
        """Validate, record, and keep the weights if they are the best so far."""
        result: dict[str, float] = {}
        if self.validation is not None:
            begin = time.perf_counter()
            try:
                result = evaluate(self.net, self.validation)
            except TrainingError as error:
                self._diverged(f"validation: {error}", epoch, rate)
            self.validating += time.perf_counter() - begin
            self.validations += 1
        elif epoch == 0:
            return
        elif not all(np.isfinite(array).all() for array in self.net.parameters().values()):
            self._diverged(f"weights became infinite or NaN by step {self.history.steps}", epoch, rate)
        record = Epoch(epoch, loss, result.get("loss"), result.get("accuracy"), rate, seconds)
        self.history.epochs.append(record)
        self.moved = False
        if epoch or self.before_counts:
            self._judge(epoch, None if self.validation is None else _score(record))
        if self.on_epoch is not None:
            self.on_epoch(record)

    def _judge(self, epoch: int, score: tuple[float, float] | None) -> None:
        """Whether the weights are the best so far, and whether patience is over."""
        if score is None or self.best_score is None or score < self.best_score:
            self.history.best, self.best_score, self.good_epoch = epoch, score, epoch
            if epoch:
                self.good = self._weights()
        if score is not None and self.patience.is_over(score):
            self.history.stopped = epoch < self.epochs


def fit(net: Net, train: Dataset | Iterable[Any], validation: Dataset | Iterable[Any] | None = None, epochs: int = 10,
        schedule: str | Schedule | EpochSchedule = "constant", seed: int = 0,
        on_progress: Callable[[Progress], None] | None = None, on_epoch: Callable[[Epoch], None] | None = None,
        patience: int | None = None, min_delta: float = 0.0, before_counts: bool = True,
        cache_features: bool | str | os.PathLike[str] = False,
        on_features: Callable[[FeatureProgress], None] | None = None) -> History:
    """Train a network on a data set and leave it with the best weights.

    train, validation  data: a Dataset, or any iterable of pairs (x, y), samples or batches, which is gathered in memory
                       (Dataset.collect). A missing axis of size 1 is added, class numbers are checked (Dataset.matched)
    schedule           of the factor on net.lr: "constant", "cosine", "step:10", "milestones:30+60", "exponential:0.9",
                       "one-cycle"; mc.StepLR and its like, whose arguments the names take too ("cosine:warmup=1,floor=0.01");
                       or a function (step, steps) -> factor
    seed               of the order of the samples
    on_progress        called with a Progress after each step
    on_epoch           called with an Epoch after each validation, first with the state before training
    patience           stop after so many epochs in a row without progress in validation (None: never): an accuracy higher by
                       more than min_delta, or one as high with a loss lower by more than that; the state before training
                       counts as the first
    min_delta          what is too little to be progress
    before_counts      whether the weights before training may be the best ones: not those of a new head, which are random
    cache_features     what the layers before the first that trains make of a sample is the same in every epoch: with True it
                       is computed once and kept in a file, not in memory, that is gone afterwards, however that comes about;
                       a path (of a file, or of a folder for it) keeps the file, for a later run with the same samples and the
                       same frozen weights. Results are the same, bit for bit
    on_features        called with a FeatureProgress after each batch whose features have been made

    With validation data the network ends with the weights that were most accurate on it (of lowest loss among equals,
    and where the loss knows no accuracy), by default those before training included; without, with the last ones. Ctrl-C
    stops at the next step, validates what was reached and returns the history; a second Ctrl-C skips that validation and
    what it would have judged. Beside the network this takes one copy of its weights.

    Raises TrainingError where the loss is no longer finite; the network then has the last good weights. Raises
    CompileError for arguments that make no sense and for networks with several inputs or outputs, DataError where the
    data does not fit; with cache_features CompileError where features are not the same in every epoch (dropout or batch
    statistics before frozen layers, augment) or there are none, FileError where there is no room for them.
    """
    if not isinstance(epochs, int) or isinstance(epochs, bool) or epochs < 1:
        raise CompileError(f"epochs is {epochs!r}; expected an integer, 1 or more")
    if patience is not None and (not isinstance(patience, int) or isinstance(patience, bool) or patience < 1):
        raise CompileError(f"patience is {patience!r}; expected a number of epochs, 1 or more, or None")
    if isinstance(min_delta, bool) or not isinstance(min_delta, (int, float)) or not 0 <= min_delta < math.inf:
        raise CompileError(f"min_delta is {min_delta!r}; expected a finite number, 0 or more, such as 0.001")
    if patience is not None and validation is None:
        raise CompileError("patience needs validation data, which fit was not given")
    train = train if isinstance(train, Dataset) else Dataset.collect(train, name="training data")
    if validation is not None and not isinstance(validation, Dataset):
        validation = Dataset.collect(validation, name="validation data")
    if train.y is None or (validation is not None and validation.y is None):
        raise CompileError("fit needs targets, but the data has none; give y with x")
    train = matched(net, train)
    validation = None if validation is None else matched(net, validation)
    runs: tuple[Net | Tail, Dataset | FeatureSet, Dataset | FeatureSet | None] = net, train, validation
    report = None
    with _held_interrupts() as stop:
        if cache_features is not False:
            from .features import cached
            try:
                tail, first, second, report = cached(net, train, validation, cache_features, lambda: stop.asked, on_features)
            except KeyboardInterrupt:
                return History(interrupted=True)
            runs = tail, first, second
        history = _Fit(*runs, epochs, schedule, seed, _Patience(patience, float(min_delta)), before_counts, on_progress,
                       on_epoch, stop).run()
    if report is not None:
        history.features = report
        history.seconds += report.seconds
    return history
