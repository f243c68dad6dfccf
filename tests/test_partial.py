"""Training in part: biases alone, the last layers, the first output channels; what is left out is neither made nor kept."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import microcnn as mc
from microcnn.graph import Graph, Input, Node, WeightRef
from microcnn.partial import resolve_train
from tests import oracles
from tests.ops import walk
from tests.ops.table import close, poison, same_bits, threads

from .tiny import compiled, convolutional, images, same, varied

MOMENTUM: dict[str, Any] = {"momentum": 0.9, "weight_decay": 0.05}
ADAM: dict[str, Any] = {"betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.1}


def data(graph: Graph, batch: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets of mean squared error, the same in both precisions."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(batch, *graph.inputs[0].shape)).astype(np.float32)
    return x, rng.normal(size=(batch, *graph.shapes()["output"])).astype(np.float32)


def stepped(graph: Graph, train: Any, batch: int = 3, steps: int = 2, optimizer: Any = None, **how: Any) -> mc.Net:
    """A network that has made some steps, in memory that was poisoned first."""
    net = graph.compile(batch=batch, train=train, loss="mse", optimizer=optimizer or mc.SGD(lr=0.1, **MOMENTUM), **how)
    for step in range(steps):
        poison(net)
        net.train_step(*(array.astype(net.dtype) for array in data(graph, batch, step)))
    return net


def expected(graph: Graph, chosen: dict[str, int | None], steps: int, batch: int, update: Any, batch_statistics: bool,
             factor: float = 1.0, **options: Any) -> dict[str, np.ndarray]:
    """The weights after some steps in which the first channels of those chosen, or all (None), follow the oracle's update."""
    now = graph.copy()
    now.weights = {name: array.astype(np.float64) for name, array in graph.weights.items()}
    seen: dict[str, list[np.ndarray]] = {name: [] for name in chosen}
    for step in range(steps):
        x, t = data(graph, batch, step)
        values = walk.forward(now, {"input": x}, batch_statistics)
        dy = oracles.mean_squared_error(values["output"], t.astype(np.float64))[1]
        gradients = walk.backward(now, values, {"output": dy}, batch_statistics)[1]
        running = walk.running(now, values, batch_statistics)
        for name, count in chosen.items():
            seen[name].append(gradients[name][:count])
            now.weights[name][:count] = update(graph.weights[name][:count], seen[name], 0.1 * factor, **options)
        now.weights.update(running)
    return now.weights


def kernels(net: mc.Net, phase: str = "backward") -> set[tuple[str, str]]:
    return {(row.layer, row.kernel) for row in net.rows("train") if row.phase == phase}


WEIGHT_KERNELS = {"conv2d_weight.backward", "conv2d_weight.backward_few", "depthwise3x3.backward_weight",
                  "depthwise2d.backward_weight", "linear_weight.backward", "conv2d_winners.backward_weight"}


@pytest.mark.parametrize("bn", ["frozen", "batch", "fold"])
def test_biases_make_no_dw_and_keep_no_input(planned, bn):
    graph = varied()
    nets = {train: graph.compile(batch=3, train=train, loss="mse", optimizer=mc.SGD(lr=0.1, momentum=0.9), bn=bn)
            for train in ("all", "biases")}
    whole, biases = nets["all"], nets["biases"]
    assert WEIGHT_KERNELS & {kernel for _, kernel in kernels(whole)}
    assert not WEIGHT_KERNELS & {kernel for _, kernel in kernels(biases)}
    assert biases.memory.arena < whole.memory.arena and biases.memory.activations < whole.memory.activations
    assert biases.memory.state == sum(graph.weights[name].nbytes for name in biases.trained if "running" not in name)
    # no convolution's input, and of a network without other norms none, is touched by backward; what activations gave is
    schedule = planned["train"]
    backward = [row for row in schedule.rows if row.phase == "backward"]
    read = {id(value) for row in backward for value in row.fields.values() if not isinstance(value, (int, float))}
    for value in schedule.values.values():
        users = {node.op for node in schedule.graph.nodes if value.name in node.inputs}
        made = {node.op for node in schedule.graph.nodes if value.name in node.outputs}
        if users <= {"Conv2d", "Linear"} and made <= {"Conv2d", "Linear", "Flatten"} and users and made:
            assert id(value.buffer) not in read, value.name


def test_a_batch_norm_whose_beta_alone_trains_runs_in_place(planned):
    """Neither its input nor, without an activation behind, its output is kept."""
    graph = mc.Sequential([mc.Conv2d(8, 3, bias=False), mc.BatchNorm2d(name="bn"), mc.Flatten(), mc.Linear(3, bias=False)],
                          (2, 6, 6)).graph()
    scale = graph.compile(batch=3, train=["bn.*"], loss="mse", optimizer=mc.SGD(lr=0.1))
    values = planned["train"].values
    assert values["conv1.out"].buffer is not values["bn.out"].buffer
    beta = graph.compile(batch=3, train=["bn.bias"], loss="mse", optimizer=mc.SGD(lr=0.1))
    values = planned["train"].values
    assert values["conv1.out"].buffer is values["bn.out"].buffer
    assert beta.memory.activations < scale.memory.activations
    # on the batch's statistics, too, where no gradient passes through them
    graph.compile(batch=3, train=["bn.bias"], loss="mse", optimizer=mc.SGD(lr=0.1), bn="batch")
    rows = [row for row in planned["train"].rows if row.layer == "bn" and row.phase == "backward"]
    assert [row.kernel for row in rows] == ["batchnorm_backward.backward_frozen"]
    assert id(planned["train"].values["conv1.out"].buffer) not in {id(value) for value in rows[0].fields.values()}


@pytest.mark.parametrize("norm", [mc.LayerNorm((4, 3, 2), name="norm"), mc.LayerNorm(2, name="norm"),
                                  mc.GroupNorm(2, name="norm")], ids=["image", "row", "group"])
def test_a_norm_whose_bias_alone_trains_keeps_nothing(planned, norm):
    """Its gradient is a sum of dY, as long as its input needs none."""
    graph = mc.Sequential([norm, mc.Flatten(), mc.Linear(3)], (4, 3, 2)).graph()
    net = graph.compile(batch=3, train=["norm.bias"], loss="mse", optimizer=mc.SGD(lr=0.1))
    rows = [row for row in planned["train"].rows if row.layer == "norm"]
    assert "linear.backward_bias" in [row.kernel for row in rows if row.phase == "backward"]
    read = {id(value) for row in rows if row.phase == "backward" for value in row.fields.values()}
    assert id(planned["train"].values["input"].buffer) not in read
    net.train_step(*data(graph, 3))
    dbias = gradients_of(graph, "all")["norm.bias"]
    close(net.parameters()["norm.bias"] - graph.weights["norm.bias"], -0.1 * dbias, 1e-5, "norm.bias")


def test_last_layers_leave_out_what_is_before():
    graph = varied()
    nets = [graph.compile(batch=3, train=f"last:{count}", loss="mse", optimizer=mc.Adam(lr=0.1)) for count in (1, 3, 5, 8)]
    for fewer, more in zip(nets, nets[1:], strict=False):
        assert fewer.memory.arena < more.memory.arena and fewer.memory.state < more.memory.state
        assert len(kernels(fewer)) < len(kernels(more))
    assert {layer for layer, _ in kernels(nets[1])} <= {"few", "flatten1", "wide", "layer", "head"}


WEIGHTS = ["first.weight", "depthwise.weight", "pointwise.weight", "grouped.weight", "dense.weight", "few.weight",
           "wide.weight", "head.weight"]


@pytest.mark.parametrize("name", WEIGHTS)
def test_channels_are_all_that_is_made_and_held(planned, name):
    """The gradient, the optimizer's state and the kernel of dW are those of the channels that train."""
    graph = varied()
    K, count = graph.weights[name].shape[0], 4
    numbers = graph.weights[name].size // K * count
    net = graph.compile(batch=3, train=[f"{name}[:{count}]"], loss="mse", optimizer=mc.Adam(lr=0.1))
    rows = [row for row in planned["train"].rows if row.kernel in WEIGHT_KERNELS]
    assert len(rows) == 1
    # one matrix of so many columns, or as few whole groups of channels
    assert rows[0].fields.get("K", rows[0].fields.get("C")) in (count, *(4 * pixels for pixels in (1, 2, 3, 4)))
    gradient = [buffer for buffer in planned["train"].buffers if buffer.name == f"{name}.gradient"]
    assert [buffer.bytes for buffer in gradient] == [4 * numbers]
    assert net.memory.state == 2 * 4 * numbers
    update, = (row for row in planned["train"].rows if row.kernel == "update.adam")
    assert update.fields["size"] == numbers
    layer = name.partition(".")[0]
    assert net.layer_facts()[layer]["parameters"] == net.trained_numbers == numbers
    whole = graph.compile(batch=3, train=[name], loss="mse", optimizer=mc.Adam(lr=0.1))
    assert net.memory.arena < whole.memory.arena
    assert whole.layer_facts()[layer]["parameters"] == graph.weights[name].size


def test_facts_say_what_trains():
    graph = convolutional()
    can = {"conv1": 4 * 18 + 4, "bn1": 8, "linear1": 36 * 3 + 3}
    for train, found in (None, can), ("all", can), ("biases", {"conv1": 4, "bn1": 4, "linear1": 3}), \
            (["conv1.weight[:50%]"], {"conv1": 36, "bn1": 0, "linear1": 0}):
        facts = compiled(graph, train=train).layer_facts()
        assert {name: facts[name]["parameters"] for name in can} == found, train


# What it computes.

SELECTIONS: dict[str, Any] = {
    "biases": "biases", "last": "last:3", "mixed": {"biases": 0.5, "last:2": 1.0},
    "channels": ["first.weight[:7]", "depthwise.weight[:25%]", "pointwise.*[:5]", "grouped.weight[:6]", "dense.weight[:16]",
                 "few.weight[:1]", "wide.*[:40%]", "head.weight[:5]", "bn1.*[:9]", "group.bias[:2]", "layer.weight[:3]"],
    "one": ["depthwise.weight[:1]", "grouped.weight[:1]"],
}


@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("bn, batch, dtype, kind", [
    ("frozen", 3, "float64", "sgd"), ("batch", 3, "float64", "adam"), ("frozen", 1, "float32", "adam"),
    ("batch", 3, "float32", "sgd")])
def test_steps_against_the_oracle(selection, bn, batch, dtype, kind):
    graph = varied()
    optimizer, update, options = {"sgd": (mc.SGD(lr=0.1, **MOMENTUM), oracles.sgd, MOMENTUM),
                                  "adam": (mc.Adam(lr=0.1, **ADAM), oracles.adam, ADAM)}[kind]
    factors, channels = resolve_train(graph, SELECTIONS[selection])
    factor = 1.0
    if selection == "mixed":              # one factor for all in the oracle
        factors, factor = dict.fromkeys(factors, 0.5), 0.5
    net = stepped(graph, factors if selection == "mixed" else SELECTIONS[selection], batch, 3, optimizer, bn=bn, dtype=dtype)
    wanted = expected(graph, {name: channels.get(name) for name in factors}, 3, batch, update, bn == "batch", factor, **options)
    for name, array in net.parameters().items():
        close(array, wanted[name], 1e-9 if dtype == "float64" else 2e-4, name)
        count = channels.get(name, len(array) if name in factors else 0)
        if name in net.trained and name not in factors:
            continue                      # running statistics
        assert array[count:].tobytes() == graph.weights[name][count:].astype(dtype).tobytes(), name
        assert count == 0 or (array[:count] != graph.weights[name][:count]).any(), name


@pytest.mark.parametrize("name", [*WEIGHTS, "grouped.bias", "bn1.weight", "bn2.bias", "group.weight", "layer.bias"])
@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_channels_train_as_they_do_with_the_others(name, count, dtype):
    """One step of the whole weight makes the same of its first channels, but for the order of sums."""
    graph = varied()
    part, whole = (stepped(graph, [selector], 1, 1, dtype=dtype).parameters() for selector in (f"{name}[:{count}]", name))
    change = whole[name][:count] - graph.weights[name][:count]
    close(part[name][:count] - graph.weights[name][:count], change.astype(np.float64), 2e-5 if dtype == "float32" else 1e-13,
          name)
    part[name][:count] = graph.weights[name][:count]
    assert same(part, {other: array.astype(dtype) for other, array in graph.weights.items()})


@pytest.mark.parametrize("selection", ["biases", "channels"])
@pytest.mark.parametrize("bn", ["frozen", "batch", "fold"])
def test_threads_change_no_bit(selection, bn):
    results = []
    for count in (1, 2):
        with threads(count):
            results.append(stepped(varied(), SELECTIONS[selection], bn=bn).parameters())
    same_bits(*results)


def test_folded_batch_norms_train_in_part():
    """With bn="fold" the convolution's weight and the bias that it has from its batch norm."""
    graph = varied()
    net = stepped(graph, ["first.weight[:6]", "bn1.bias[:6]"], bn="fold")
    whole = stepped(graph, ["first.weight", "bn1.bias"], bn="fold")
    folded = graph.compile(bn="fold").parameters()
    for name in ("first.weight", "bn1.bias"):
        part, start = net.parameters()[name], folded[name]
        assert same({name: part[6:]}, {name: start[6:]}) and (part[:6] != start[:6]).any()
    one = [stepped(graph, [f"first.weight{end}", f"bn1.bias{end}"], steps=1, bn="fold").parameters() for end in ("[:6]", "")]
    for name in ("first.weight", "bn1.bias"):
        close(one[0][name][:6], one[1][name][:6].astype(np.float64), 1e-5, name)
    assert whole.memory.state > net.memory.state


def test_the_norm_of_all_gradients_is_that_of_what_trains():
    graph = varied()
    selectors = ["dense.weight[:5]", "bn1.bias[:3]", "head.bias"]
    net = stepped(graph, selectors, optimizer=mc.SGD(lr=0.1, clip_norm=1e-3), steps=1, dtype="float64")
    gradients = gradients_of(graph, selectors)
    norm = np.sqrt(sum(float((array ** 2).sum()) for array in gradients.values()))
    assert norm > 1e-3
    for name, gradient in gradients.items():
        close(net.parameters()[name] - graph.weights[name], -0.1 * gradient * 1e-3 / (norm + 1e-6), 1e-9, name)


def gradients_of(graph: Graph, train: Any, batch: int = 3) -> dict[str, np.ndarray]:
    """What gradients() gives for the first step's loss."""
    net = graph.compile(batch=batch, train=train, dtype="float64")
    x, t = data(graph, batch)
    net.forward(x)
    poison(net)
    y = net.forward(x)
    net.backward(2 * (y - t) / y.size)
    return net.gradients()


def test_gradients_have_zeros_where_nothing_trains():
    graph = varied()
    part, whole = (gradients_of(graph, train) for train in (SELECTIONS["channels"], "all"))
    _, channels = resolve_train(graph, SELECTIONS["channels"])
    assert set(part) == set(channels)
    for name, array in part.items():
        assert array.shape == graph.weights[name].shape
        assert not array[channels[name]:].any(), name
        close(array[:channels[name]], whole[name][:channels[name]], 1e-11, name)


@pytest.mark.parametrize("clip", [None, 0.5])
def test_steps_by_hand_are_steps(clip):
    graph = varied()
    train = SELECTIONS["channels"]
    at_once, by_hand = (graph.compile(batch=3, train=train, loss="mse", optimizer=mc.Adam(lr=0.05, clip_norm=clip),
                                      dtype="float64") for _ in range(2))
    for step in range(3):
        x, t = data(graph, 3, step)
        at_once.train_step(x, t)
        y = by_hand.forward(x)
        by_hand.backward(2 * (y - t) / y.size)
        by_hand.update()
    for name, array in at_once.parameters().items():
        close(by_hand.parameters()[name], array, 1e-9, name)


def test_a_shared_weight_gets_the_gradients_of_both():
    nodes = [Node("Linear", "one", ("x",), ("a",), {"transposed": True}, {"weight": WeightRef("w")}),
             Node("Tanh", "tanh", ("a",), ("b",), {}),
             Node("Linear", "two", ("b",), ("output",), {"transposed": True}, {"weight": WeightRef("w")})]
    weight = np.random.default_rng(0).normal(size=(5, 5)).astype(np.float32)
    graph = Graph([Input("x", (5,))], ["output"], nodes, {"w": weight})
    part, whole = (gradients_of(graph, train)["w"] for train in (["w[:2]"], ["w"]))
    close(part[:2], whole[:2], 1e-12, "w")
    assert not part[2:].any() and whole[2:].any()


def test_what_comes_out_is_whole(tmp_path):
    """Files hold every channel; a network read from one goes on."""
    onnx = pytest.importorskip("onnx")
    graph = convolutional()
    net = compiled(graph, train=["conv1.weight[:2]", "biases"])
    net.train_step(*images(4))
    mc.save_onnx(net, tmp_path / "tuned.onnx")
    net.save(tmp_path / "tuned.mcnn")
    onnx.checker.check_model(onnx.load(tmp_path / "tuned.onnx"), full_check=True)
    x, _ = images(4, 3)
    for read in mc.load_onnx(tmp_path / "tuned.onnx"), mc.load(tmp_path / "tuned.mcnn"):
        assert same(dict(read.weights), net.parameters())
        np.testing.assert_array_equal(read.compile(batch=4).predict(x), net.predict(x))
    assert (net.parameters()["conv1.weight"][2:] == graph.weights["conv1.weight"][2:]).all()
    assert (net.parameters()["conv1.weight"][:2] != graph.weights["conv1.weight"][:2]).all()


def pooled() -> Graph:
    """Convolutions whose gradients come from the winners of a max pooling alone."""
    return mc.Sequential([mc.Conv2d(6, 5, padding=2, name="first"), mc.ReLU(), mc.MaxPool2d(2, name="pool"),
                          mc.Conv2d(9, 3, name="second"), mc.MaxPool2d(2), mc.Flatten(), mc.Linear(4, name="head")],
                         (1, 14, 14), seed=3).graph()


@pytest.mark.parametrize("train", ["biases", ["first.weight[:2]", "second.*[:4]"], ["first.*[:3]", "second.weight[:50%]"]],
                         ids=["biases", "weights", "both"])
def test_behind_a_max_pooling(planned, train):
    graph = pooled()
    net = stepped(graph, train, dtype="float64")
    rows = planned["train"].rows
    assert not [row.kernel for row in rows if (row.layer, row.phase) == ("pool", "backward")], "nothing is spread out"
    factors, channels = resolve_train(graph, train)
    wanted = expected(graph, {name: channels.get(name) for name in factors}, 2, 3, oracles.sgd, False, **MOMENTUM)
    for name, array in net.parameters().items():
        close(array, wanted[name], 1e-10, name)
        count = channels.get(name, len(array) if name in factors else 0)
        assert array[count:].tobytes() == graph.weights[name][count:].astype("float64").tobytes(), name
    whole = graph.compile(batch=3, train=list(factors), loss="mse", optimizer=mc.SGD(lr=0.1, **MOMENTUM), dtype="float64")
    assert net.memory.state <= whole.memory.state and net.memory.arena <= whole.memory.arena
    everything = graph.compile(batch=3, train="all", loss="mse", optimizer=mc.SGD(lr=0.1, **MOMENTUM), dtype="float64")
    assert net.memory.arena < everything.memory.arena
