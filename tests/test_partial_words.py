"""Which weights train: words, patterns, slices of output channels."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import microcnn as mc
from microcnn.graph import Graph, Input, Node, WeightRef
from microcnn.partial import resolve_train

from .tiny import compiled, varied


def named(graph: Graph, train: Any) -> set[str]:
    return set(resolve_train(graph, train)[0])


def test_words():
    graph = varied()
    biases = {name for name in graph.weights if name.endswith(".bias")}
    assert len(biases) == 11 and named(graph, "biases") == biases
    assert named(graph, "last:1") == named(graph, "head") == {"head.weight", "head.bias"}
    last = {"head.weight", "head.bias", "wide.weight", "wide.bias", "layer.weight", "layer.bias"}
    assert named(graph, "last:2") == last
    assert named(graph, "last:4") == last | {f"{layer}.{role}" for layer in ("few", "dense", "group")
                                             for role in ("weight", "bias")}
    assert named(graph, "last:99") == named(graph, "last:8") == named(graph, "all") == named(graph, ["all"])
    assert "first.weight" in named(graph, "last:8") - named(graph, "last:7")


def test_words_and_patterns_together():
    graph = varied()
    assert named(graph, ["biases", "last:1", "first.*"]) == named(graph, "biases") | {"head.weight", "first.weight"}
    factors, _ = resolve_train(graph, {"biases": 1, "head": 0.1, "bn*": 0})
    assert factors["head.weight"] == factors["head.bias"] == 0.1 and factors["wide.bias"] == 1
    assert not {"bn1.bias", "bn2.bias"} & set(factors)


def test_a_norm_before_every_convolution_is_a_layer():
    graph = mc.Sequential([mc.BatchNorm2d(name="norm"), mc.ReLU(), mc.Flatten(), mc.Linear(2, name="fc")], (2, 3, 3)).graph()
    assert named(graph, "last:1") == {"fc.weight", "fc.bias"} < named(graph, "last:2") == named(graph, "all")


def test_a_weight_that_is_called_like_a_selector():
    nodes = [Node("Linear", f"fc{i}", (a,), (b,), {"transposed": True}, {"weight": WeightRef(name)})
             for i, (a, b, name) in enumerate([("x", "a", "biases"), ("a", "b", "w[:2]"), ("b", "c", "w")])]
    graph = Graph([Input("x", (4,))], ["c"], nodes, {name: np.ones((4, 4), np.float32) for name in ("biases", "w[:2]", "w")})
    assert resolve_train(graph, ["biases"]) == ({"biases": 1.0}, {})
    with pytest.raises(mc.CompileError, match='"biases" matches no weight that can be trained'):
        resolve_train(graph, "biases")
    assert resolve_train(graph, ["w[:2]"]) == ({"w[:2]": 1.0}, {})
    assert resolve_train(graph, ["w[:3]"]) == ({"w": 1.0}, {"w": 3})


def test_slices():
    graph = varied()
    assert resolve_train(graph, ["dense.*[:8]"]) == ({"dense.weight": 1.0, "dense.bias": 1.0}, dict.fromkeys(
        ("dense.weight", "dense.bias"), 8))
    for text, count in ("[:25%]", 5), ("[:100%]", None), ("[:1%]", 1), ("[:17]", None), ("[:99]", None), ("[:12.5%]", 3), \
            ("[ : 3 ]", 3), ("[:250%]", None):
        factors, channels = resolve_train(graph, {f"dense.weight{text}": 0.5})
        assert factors == {"dense.weight": 0.5} and channels.get("dense.weight") == count, text
    # the last word counts, for the channels too
    assert resolve_train(graph, {"dense.weight[:8]": 1, "dense.weight": 0.5}) == ({"dense.weight": 0.5}, {})
    assert resolve_train(graph, {"*": 1, "dense.weight[:8]": 0.5})[1] == {"dense.weight": 8}
    assert resolve_train(graph, {"dense.weight[:8]": 1, "dense.*": 0, "head": 1})[1] == {}
    assert set(resolve_train(graph, "all[:50%]")[1]) == named(graph, "all")


@pytest.mark.parametrize("train, message", [
    ("bias", r'train is "bias"; expected None, "all", "head", a list of patterns .* "biases" and "last:3"'),
    (["bias"], r'train: "bias" matches no weight that can be trained; close to it: \[.*"?biases'),
    ("last:0", r'train: "last:0"; expected how many layers train, counted from the last, such as "last:3"'),
    ("last:x", r'train: "last:x"; expected how many layers'),
    (["last:-1"], r'train: "last:-1"; expected how many layers'),
    (["last:"], r'train: "last:"; expected how many layers'),
    (["conv1.weight[:0]"], r'train: "conv1\.weight\[:0\]" leaves no channel that trains; expected at least one'),
    (["conv1.weight[:0%]"], r'train: "conv1\.weight\[:0%\]" leaves no channel'),
    (["conv1.weight[1:3]"], r'train: "conv1\.weight\[1:3\]" ends in \[1:3\]; a weight trains as a whole or from its first'),
    (["conv1.weight[2:]"], r"ends in \[2:\]; a weight trains as a whole or from its first output channel on: \[:8\]"),
    (["conv1.weight[:2:2]"], r"ends in \[:2:2\]"),
    (["conv1.weight[:-1]"], r"ends in \[:-1\]"),
    (["conv1.weight[:2.5]"], r"ends in \[:2\.5\]"),
    (["conv2.weight[:2]"], r'train: "conv2\.weight" matches no weight that can be trained'),
    ({"*": 1, "conv1.weight[:2]": 0}, r'train holds "conv1\.weight\[:2\]": 0; a factor of 0 freezes whole weights'),
])
def test_errors(train, message):
    with pytest.raises(mc.CompileError, match=message) as caught:
        compiled(train=train)
    assert "\n" not in str(caught.value)


def test_slices_of_what_has_no_output_channels():
    inputs_first = Graph([Input("x", (4,))], ["y"], [Node("Linear", "fc", ("x",), ("y",), {"transposed": False},
                                                         {"weight": WeightRef("w")})], {"w": np.ones((4, 4), np.float32)})
    turned = Graph([Input("x", (4,))], ["y"], [Node("Linear", "fc", ("x",), ("y",), {"transposed": False}, {
        "weight": WeightRef("w", (("transpose", (1, 0)),))})], {"w": np.ones((5, 4), np.float32)})
    upwards = mc.Sequential([mc.ConvTranspose2d(4, 2, name="up")], (4, 3, 3)).graph()
    leaky = mc.Sequential([mc.PReLU(4, name="leaky")], (4, 3, 3)).graph()
    images_norm = mc.Sequential([mc.LayerNorm((4, 3, 3), name="norm")], (4, 3, 3)).graph()
    for graph, selector, node in (inputs_first, "w[:2]", r"\"fc\" \(Linear\)"), \
            (upwards, "up.*[:2]", "ConvTranspose2d"), (leaky, "leaky.*[:2]", "PRelu"), \
            (images_norm, "norm.bias[:2]", "LayerNorm"):
        with pytest.raises(mc.CompileError, match=r"takes the first output channels of weight .* but its axis 0 is none.*"
                           + node):
            resolve_train(graph, [selector])
    # a view may put the output channels first
    assert resolve_train(turned, ["w[:2]"])[1] == {"w": 2}
    assert resolve_train(upwards, ["up.bias[:2]"])[1] == {"up.bias": 2}
