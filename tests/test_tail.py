"""A network's tail computes from features what the network computes from samples, bit for bit, whatever batch they are in."""
from __future__ import annotations

import numpy as np
import pytest

import microcnn as mc
from microcnn import threads
from microcnn.tail import MODES, Features, Tail
from microcnn.tools.bench.models import MODELS
from microcnn.tools.samples import example

from .feature_nets import branched, branching
from .test_corpus_training import MODELS as CORPUS
from .tiny import compiled, convolutional, images, same

SAMPLES = 21


def kept(tail: Tail, x, mode: str, batch: int, order: np.ndarray | None = None) -> list[np.ndarray]:
    """The features of all samples, made in batches of some size and some order, in the samples' own order."""
    count = len(next(iter(x.values())))
    order = np.arange(count) if order is None else order
    pieces = [[array.copy() for array in tail.features({name: array[order[begin:begin + batch]] for name, array in x.items()},
                                                       mode).arrays] for begin in range(0, count, batch)]
    back = np.argsort(order)
    return [np.concatenate(parts)[back] for parts in zip(*pieces, strict=True)]


def rows_of(given, rows):
    return {name: array[rows] for name, array in given.items()} if isinstance(given, dict) else given[rows]


def check_alike(plain: mc.Net, net: mc.Net, x, t, weighted: bool = False) -> None:
    """Some steps and evaluations of both, on the same samples; afterwards both have the same weights."""
    tail, rng = net.tail(), np.random.default_rng(1)
    named = x if isinstance(x, dict) else {net.graph.inputs[0].name: x}
    count = len(next(iter(named.values())))
    features = {mode: kept(tail, named, mode, net.batch) for mode in MODES}
    for step in range(4):
        rows = rng.permutation(count)[:max(1, net.batch - step)]
        weight = rng.random(len(rows)) if weighted else None
        targets = rows_of(t, rows)
        assert plain.train_step(rows_of(x, rows), targets, weight) == tail.train_step(
            Features([array[rows] for array in features["train"]]), targets, weight)
        assert plain.evaluate(rows_of(x, rows), targets) == tail.evaluate(
            Features([array[rows] for array in features["evaluate"]]), targets)
    assert same(plain.parameters(), net.parameters())
    # and the network itself has them, in every program
    assert plain.evaluate(x, t) == net.evaluate(x, t) and plain.train_step(rows_of(x, slice(2)), rows_of(t, slice(2))) == \
        net.train_step(rows_of(x, slice(2)), rows_of(t, slice(2)))


@pytest.mark.parametrize("name", ["lenet5-28", "dscnn-kws", "resnet8", "mbv1-vww"])
def test_features_do_not_depend_on_the_batch(name):
    graph = MODELS[name]()
    net = graph.compile(batch=8, train="head", loss="cross_entropy", optimizer=mc.SGD(lr=0.1))
    x, _ = example(graph, SAMPLES)
    x, tail, rng = {net.graph.inputs[0].name: x}, net.tail(), np.random.default_rng(2)
    for mode in MODES:
        whole = kept(tail, x, mode, 8)
        for batch in (1, 3, 8):
            for again, array in zip(kept(tail, x, mode, batch, rng.permutation(SAMPLES)), whole, strict=True):
                assert again.tobytes() == array.tobytes(), (mode, batch)


@pytest.mark.parametrize("optimizer", [mc.SGD(lr=0.1, momentum=0.9), mc.Adam(lr=0.01, clip_norm=0.5)], ids=["sgd", "adam"])
@pytest.mark.parametrize("bn", ["frozen", "fold"])
def test_a_border_of_two_tensors(optimizer, bn):
    plain, net = (branched(optimizer=optimizer, bn=bn) for _ in range(2))
    x, t = images(SAMPLES)
    check_alike(plain, net, x, t)
    assert net.tail().numbers("train") == [4 * 6 * 6] * 2


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("name", ["resnet8", "mbv1-vww"])
def test_the_last_layer_of_larger_networks(name, count):
    graph, before = MODELS[name](), threads.get_num_threads()
    mc.set_num_threads(count)
    try:
        plain, net = (graph.compile(batch=8, train="head", loss="cross_entropy", optimizer=mc.Adam(lr=0.01)) for _ in range(2))
        check_alike(plain, net, *example(graph, SAMPLES, "cross_entropy"))
    finally:
        mc.set_num_threads(before)


@pytest.mark.parametrize("train", [["two.*", "head.*"], ["norm.*"], ["head.*"], {"*": 1, "one.*": 0}, ["three.bias"]], ids=str)
def test_any_weights_may_train(train):
    """Batch norm that trains is folded into the frozen convolution before it in evaluation: the cut is elsewhere then."""
    plain, net = (branched(train=train) for _ in range(2))
    check_alike(plain, net, *images(SAMPLES))


def test_weights_of_samples_and_probabilities():
    plain, net = (branched() for _ in range(2))
    x, t = images(SAMPLES)
    check_alike(plain, net, x, t, weighted=True)
    check_alike(plain, net, x, np.eye(3, dtype=np.float32)[t])
    check_alike(plain, net, x, t)


def test_a_tail_that_comes_after_steps_with_probabilities():
    """What the other programs were told of the targets reaches those of the tail."""
    plain, net = (branched() for _ in range(2))
    x, t = images(4)
    shares = np.eye(3, dtype=np.float32)[t]
    for one in (plain, net):
        one.train_step(x, shares)
    net.tail()
    assert plain.train_step(x, t) == net.train_step(x, t)
    for one in (plain, net):
        one.train_step(x, shares)
    check_alike(plain, net, x, shares)


def test_several_inputs_and_outputs():
    """An input that the tail reads itself is on the border, and so is an output that nothing that trains reaches.

    Of the rows of Concat one reads nothing that changes: it belongs to the step that trains all the same.
    """
    b = mc.GraphBuilder()
    one, two = b.input("a", (2, 3, 3)), b.input("b", (2, 3, 3))
    trunk = b(mc.ReLU(), b(mc.Conv2d(3, 3, padding=1, name="trunk"), one))
    middle = b(mc.Conv2d(2, 3, padding=1, name="middle"), trunk)
    first = b(mc.Linear(3, name="first"), b(mc.Flatten(), b(mc.Concat(), middle, two)))
    second = b(mc.Linear(2, name="second"), b(mc.Flatten(), trunk))
    graph = b.graph(first, second)
    loss = {graph.outputs[0]: "cross_entropy", graph.outputs[1]: "mse"}
    rng = np.random.default_rng(0)
    x = {name: rng.standard_normal((SAMPLES, 2, 3, 3)).astype(np.float32) for name in "ab"}
    t = {graph.outputs[0]: rng.integers(0, 3, SAMPLES), graph.outputs[1]: rng.standard_normal((SAMPLES, 2)).astype(np.float32)}
    plain, net = (graph.compile(batch=4, train=["first.*", "middle.*"], loss=loss, optimizer=mc.SGD(lr=0.1)) for _ in range(2))
    check_alike(plain, net, x, t)
    assert sorted(net.tail().numbers("train")) == [2, 18, 27]


@pytest.mark.parametrize("p", [0.5, 0.0])
def test_dropout_after_the_frozen_layers_draws_what_it_draws(p):
    graph = mc.Sequential([mc.Conv2d(4, 3, padding=1), mc.ReLU(), mc.Flatten(), mc.Dropout(p), mc.Linear(3)],
                          input_shape=(2, 6, 6)).graph()
    plain, net = (compiled(graph, train="head", seed=3) for _ in range(2))
    check_alike(plain, net, *images(SAMPLES))


def test_batch_statistics_after_the_frozen_layers():
    """Of the last batch norm before the head: its running statistics move on as they would."""
    graph = mc.Sequential([mc.Conv2d(4, 3, padding=1), mc.BatchNorm2d(name="norm"), mc.ReLU(), mc.Flatten(), mc.Linear(3)],
                          input_shape=(2, 6, 6)).graph()
    plain, net = (compiled(graph, train="head", bn="batch") for _ in range(2))
    check_alike(plain, net, *images(SAMPLES))
    assert net.parameters()["norm.running_mean"].any()


def test_a_transposed_convolution_of_which_no_tap_reaches_some_pixels():
    """Rows that read no weight make those."""
    graph = mc.Sequential([mc.Conv2d(3, 3, padding=1, name="first"), mc.ConvTranspose2d(2, 1, stride=3, name="second"),
                           mc.Flatten(), mc.Linear(3, name="head")], input_shape=(2, 6, 6)).graph()
    plain, net = (compiled(graph, train=["second.*", "head.*"]) for _ in range(2))
    check_alike(plain, net, *images(SAMPLES))


@pytest.mark.parametrize("name", CORPUS)
def test_networks_made_by_others(corpus, name):
    graph = mc.load_onnx(corpus / "models" / name / "model.onnx")
    shapes = graph.shapes()
    single = len(graph.outputs) == 1 and len(shapes[graph.outputs[0]]) == 1
    loss = "cross_entropy" if single else dict.fromkeys(graph.outputs, "mse")
    x, t = example(graph, 5, loss)
    plain, net = (graph.compile(batch=2, train="head", loss=loss, optimizer=mc.SGD(lr=1e-6)) for _ in range(2))
    check_alike(plain, net, x, t)


def test_the_tail_runs_no_frozen_layer():
    net = branched()
    tail = net.tail()
    assert {row.layer for row in net.rows("train features") if row.kernel != "layout.copy"} >= {"one", "two"}
    frozen = {"one", "two", "norm"}
    for mode in MODES:
        rows = net.rows(f"{mode} tail")
        assert {row.layer for row in rows if row.kernel != "layout.copy"}.isdisjoint(frozen)
        assert [row.kernel for row in rows].count("layout.copy") == 2 == len(tail.numbers(mode))
    together = sorted((row.layer, row.kernel) for part in ("features", "tail") for row in net.rows(f"train {part}")
                      if row.kernel != "layout.copy")
    assert together == sorted((row.layer, row.kernel) for row in net.rows("train"))


def test_what_it_holds_beside_the_network():
    net = branched()
    arena = net.memory.arena
    tail = net.tail()
    assert tail.held_bytes == 2 * 2 * 4 * 4 * 36 * 4 and net.memory.arena == arena == net._arena.nbytes
    assert net.tail() is tail and tail.layers == 2     # batch norm and ReLU run in the convolutions


@pytest.mark.parametrize("layers, arguments, told", [
    ([mc.Dropout(0.3, name="drop"), mc.Conv2d(4, 3, name="late")], {},
     'Dropout "drop" drops other numbers in every step, and the frozen layer "late" comes behind it. Set its p to 0'),
    ([mc.BatchNorm2d(name="norm"), mc.ReLU(), mc.Conv2d(4, 3, name="late")], {"bn": "batch"},
     'BatchNorm2d "norm" uses the statistics of the batch that a sample is in, and the frozen layer "late" comes behind it. '
     'Compile with bn="frozen"'),
    ([], {"augment": mc.Augment(flip="horizontal")}, "changes the samples in every step"),
    ([], {"train": "all"}, "no frozen layer comes before what trains"),
    ([], {"train": None}, "cache_features needs train"),
    ([], {"loss": None}, "cache_features needs loss"),
])
def test_refusals(layers, arguments, told):
    graph = mc.Sequential([mc.Conv2d(4, 3, padding=1), *layers, mc.Flatten(), mc.Linear(3)], input_shape=(2, 6, 6)).graph()
    net = compiled(graph, **{"train": "head", **arguments})
    with pytest.raises(mc.CompileError) as caught:
        net.tail()
    assert told in str(caught.value)
    assert set(net._programs) <= {"predict", "evaluate", "train"}


def test_features_that_do_not_fit():
    tail = branched().tail()
    x, t = images(5)
    with pytest.raises(mc.DataError, match="5 samples were given; this network was compiled for up to 4"):
        tail.features(x)
    with pytest.raises(mc.DataError, match=r"features have the shapes \[\(4, 144\)\]; expected \[\(4, 144\), \(4, 144\)\]"):
        tail.train_step(Features(tail.features(x[:4]).arrays[:1]), t[:4])
    x[1, 0, 2, 3] = np.inf
    with pytest.raises(mc.DataError, match=r'input "input" holds inf at \(1, 0, 2, 3\)'):
        tail.features(x[:4])


def test_the_digest_is_of_the_frozen_part():
    def digest(net: mc.Net) -> bytes:
        return net.tail().digest("train")

    def changed(name: str) -> mc.Net:
        net = branched()
        net.set_parameters({name: net.parameters()[name] + 1})
        return net
    graph = branching()
    first = digest(branched())
    assert digest(branched(loss="mse", optimizer=mc.Adam(lr=0.1))) == first == digest(changed("three.weight"))
    others = [changed("two.bias"), branched(batch=5), branched(dtype="float64"), branched(train="head"),
              compiled(convolutional(), train="head")]
    digests = [digest(net) for net in others]
    assert len({first, *digests}) == 6 and graph.inputs[0].name == "input"
    net = branched()
    before = net.tail().digest("evaluate")
    net.train_step(*images(4))
    assert net.tail().digest("evaluate") == before != first
