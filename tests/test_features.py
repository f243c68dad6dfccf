"""fit with cached features: the same weights and the same history, and the frozen layers run once for each sample."""
from __future__ import annotations

import os
import shutil
import signal
import tempfile
from types import SimpleNamespace

import numpy as np
import pytest

import microcnn as mc
from microcnn import threads
from microcnn.bound import Bound
from microcnn.features import file_bytes

from .feature_nets import branched, branching, pictures
from .tiny import compiled, same


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    """Where files without a name go."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return tmp_path / "temporary"


def facts(history: mc.train.History) -> list:
    """All of a history but the times."""
    return [(one.epoch, one.loss, one.validation_loss, one.accuracy, one.lr) for one in history.epochs] + [
        history.best, history.interrupted, history.stopped, history.steps]


def check_fits(plain: mc.Net, net: mc.Net, training: mc.Dataset, validation: mc.Dataset | None, **how) -> mc.train.History:
    """Both nets fitted, the second one from features, in two calls: the optimizer's state goes on."""
    for seed in (0, 1):
        expected = mc.fit(plain, training, validation, epochs=3, seed=seed, schedule="cosine", **how)
        found = mc.fit(net, training, validation, epochs=3, seed=seed, schedule="cosine", cache_features=True, **how)
        assert facts(found) == facts(expected)
        assert same(plain.parameters(), net.parameters())
    return found


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("optimizer", [mc.SGD(lr=0.05, momentum=0.9), mc.Adam(lr=0.01)], ids=["sgd", "adam"])
def test_the_same_weights_and_history(folder, optimizer, count):
    """uint8 samples, normalised by channel, parts of one data set, a last batch of fewer samples."""
    training, validation = pictures(31).split(0.3)
    assert len(training) % 4 and len(validation) % 4
    before = threads.get_num_threads()
    mc.set_num_threads(count)
    try:
        history = check_fits(branched(optimizer=optimizer), branched(optimizer=optimizer), training, validation)
    finally:
        mc.set_num_threads(before)
    assert history.features.path is None and not history.features.reused and not list(folder.iterdir())
    assert [epoch.epoch for epoch in history.epochs] == [0, 1, 2, 3]


def test_without_validation_and_with_numbers_as_targets():
    rng = np.random.default_rng(0)
    data = mc.Dataset(rng.standard_normal((18, 2, 6, 6)), rng.standard_normal((18, 3)))
    check_fits(branched(loss="mse"), branched(loss="mse"), data, None)


def test_float64_and_patience():
    training, validation = pictures(30).split(0.3)
    check_fits(branched(dtype="float64"), branched(dtype="float64"), training, validation, patience=1, before_counts=False)


def test_the_frozen_layers_run_once(monkeypatch):
    run, names = Bound._run, []

    def noted(self, name, samples):
        names.append(name)
        run(self, name, samples)
    net = branched()
    frozen = {"one", "two", "norm"}
    monkeypatch.setattr(Bound, "_run", noted)
    mc.fit(net, pictures(10), pictures(6, seed=1), epochs=3, cache_features=True)
    assert names == ["train features"] * 3 + ["evaluate features"] * 2 + ["evaluate tail"] * 2 \
        + (["train tail"] * 3 + ["evaluate tail"] * 2) * 3
    for name in ("train tail", "evaluate tail"):
        assert frozen.isdisjoint(row.layer for row in net.rows(name) if row.kernel != "layout.copy")


def test_progress_of_the_features():
    told, order = [], []
    net = branched()
    history = mc.fit(net, pictures(10), pictures(6, seed=1), epochs=1, cache_features=True, on_features=told.append,
                     on_progress=lambda now: order.append(len(told)))
    assert [now.done for now in told] == [4, 8, 10, 14, 16] and {now.samples for now in told} == {16}
    assert set(order) == {5} and told[-1].seconds_left == 0 < told[0].samples_per_second
    size = file_bytes(net.tail(), {"train": 10, "evaluate": 6})
    assert {now.bytes for now in told} == {size} and size <= history.features.bytes < size + 1024


def test_a_path_keeps_the_features_for_later_runs(tmp_path):
    def fitted(net, training, **how):
        history = mc.fit(net, training, pictures(6, seed=1), epochs=2, cache_features=tmp_path / "kept", **how)
        return net.parameters(), history
    first, history = fitted(branched(), pictures(10))
    assert not history.features.reused and history.features.path == tmp_path / "kept"
    # other targets, loss, optimizer, seed: the features are the same
    net = branched(optimizer=mc.Adam(lr=0.1))
    data = pictures(10)
    data.y = 2 - data.y
    told = []
    _, history = fitted(net, data, seed=5, on_features=told.append)
    assert history.features.reused and told == []
    again, history = fitted(branched(), pictures(10))
    assert history.features.reused and same(first, again)
    # other samples, frozen weights, normalisation: they are not
    moved = branched()
    moved.set_parameters({"one.bias": moved.parameters()["one.bias"] + 0.1})
    brighter = pictures(10)
    brighter.normalization = mc.Normalization(1 / 256)
    for net, data in ((branched(), pictures(10, seed=3)), (moved, pictures(10, seed=3)), (branched(), brighter),
                      (branched(), pictures(9)), (branched(), pictures(10).subset(np.arange(9)[::-1]))):
        _, history = fitted(net, data)
        assert not history.features.reused and "was made anew: it is of other data" in history.features.note
    assert [path.name for path in tmp_path.iterdir() if path.name != "temporary"] == ["kept"]


def test_the_samples_that_a_part_is_made_of_count_not_how(tmp_path):
    data = pictures(12)
    rows = np.arange(12)[::-1]
    same_samples = mc.Dataset(data.x[rows], data.y[rows], data.normalization)
    mc.fit(branched(), data.subset(rows), epochs=1, cache_features=tmp_path)
    assert mc.fit(branched(), same_samples, epochs=1, cache_features=tmp_path).features.reused


@pytest.mark.parametrize("named", [True, False])
def test_ctrl_c_during_the_features(folder, tmp_path, named):
    net = branched()
    before = net.parameters()

    def interrupt(now):
        if now.done == 8:
            os.kill(os.getpid(), signal.SIGINT)
    history = mc.fit(net, pictures(30), pictures(6), epochs=2, on_features=interrupt,
                     cache_features=tmp_path / "kept" if named else True)
    assert history.interrupted and history.steps == 0 and history.epochs == []
    assert same(net.parameters(), before) and not list(folder.iterdir())
    assert [path.name for path in tmp_path.iterdir()] == ["temporary"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_during_training(folder):
    def interrupt(now):
        if now.step == 10:
            os.kill(os.getpid(), signal.SIGINT)
    plain, net = branched(), branched()
    histories = [mc.fit(one, pictures(30), pictures(6), epochs=5, on_progress=interrupt, cache_features=cache)
                 for one, cache in ((plain, False), (net, True))]
    assert facts(histories[0]) == facts(histories[1]) and histories[1].interrupted
    assert same(plain.parameters(), net.parameters()) and not list(folder.iterdir())


def test_training_that_diverges_puts_the_good_weights_back(folder):
    told = []
    nets = [branched(optimizer=mc.SGD(lr=1e30)) for _ in range(2)]
    for net, cache in zip(nets, (False, True), strict=True):
        with pytest.raises(mc.TrainingError) as caught:
            mc.fit(net, pictures(30), pictures(6), epochs=2, cache_features=cache)
        told.append(str(caught.value))
    assert told[0] == told[1] and same(nets[0].parameters(), nets[1].parameters()) and not list(folder.iterdir())


def test_no_room(folder, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda where: SimpleNamespace(free=100))
    net = branched()
    before = net.parameters()
    with pytest.raises(mc.MicroCNNError, match="the features take 23,296 bytes, and the disk of .* has 100 left"):
        mc.fit(net, pictures(20), epochs=1, cache_features=True)
    assert same(before, net.parameters()) and not list(folder.iterdir())


@pytest.mark.parametrize("arguments, told", [
    ({"train": "all"}, "no frozen layer comes before what trains"),
    ({"bn": "batch", "train": "head"}, 'BatchNorm2d "norm" uses the statistics of the batch'),
    ({"augment": mc.Augment(noise=0.1)}, "changes the samples in every step")])
def test_refusals(folder, tmp_path, arguments, told):
    net = compiled(branching(), **{"train": ["head.*"], **arguments})
    before = net.parameters()
    with pytest.raises(mc.CompileError, match=told):
        mc.fit(net, pictures(10), epochs=1, cache_features=tmp_path)
    assert same(before, net.parameters()) and [path.name for path in tmp_path.iterdir()] == ["temporary"]


def test_what_is_no_path():
    with pytest.raises(mc.CompileError, match="cache_features is 3; expected False, True, or the path"):
        mc.fit(branched(), pictures(10), epochs=1, cache_features=3)
