"""The networks of the benchmark, built with this library's own graph API, and written as ONNX.

Their sizes are those of networks that run on small devices: LeNet-5, the digits network that comes along, MLPerf Tiny's keyword
spotting, image classification and visual wake words, and two that are ten to a hundred times as large.
"""
from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import microcnn as mc
from microcnn.errors import FileError, ModelError
from microcnn.graph import Graph, Node, WeightRef

from ..loading import load_model
from ..terminal import Terminal, count_text

LARGE_MACS = 100_000_000


class Draft:
    """A network in the making: a GraphBuilder that keeps the tensor which the next layer reads."""

    def __init__(self, name: str, shape: tuple[int, ...]):
        self.build = mc.GraphBuilder(name)
        self.x = self.build.input("input", shape)

    def add(self, *layers: Any) -> str:
        """Add layers one after the other; returns what the last one makes."""
        for layer in layers:
            self.x = self.build(layer, self.x)
        return self.x

    def conv_bn(self, channels: int, kernel: Any, stride: int = 1, padding: Any = 0, groups: int = 1,
                act: Any = mc.ReLU) -> str:
        """A convolution without bias, batch norm, and the activation unless act is None."""
        self.add(mc.Conv2d(channels, kernel, stride, padding, groups=groups, bias=False), mc.BatchNorm2d())
        return self.add(act()) if act is not None else self.x

    def separable(self, channels: int, stride: int = 1) -> None:
        """A depthwise 3x3 and a pointwise convolution."""
        before = self.build.shape(self.x)[0]
        self.conv_bn(before, 3, stride, 1, groups=before)
        self.conv_bn(channels, 1)

    def residual(self, channels: int, stride: int, shortcut: Callable[[], str] | None) -> None:
        """Two 3x3 convolutions and what the block was given, itself or through `shortcut`, added up."""
        given = self.x
        self.conv_bn(channels, 3, stride, 1)
        made = self.conv_bn(channels, 3, 1, 1, act=None)
        if shortcut is not None:
            self.x = given
            given = shortcut()
        self.x = self.build(mc.Add(), made, given)
        self.add(mc.ReLU())

    def pooled_head(self, classes: int) -> Graph:
        """The mean over the image and a linear layer."""
        self.add(mc.GlobalAvgPool2d(), mc.Flatten(), mc.Linear(classes))
        return self.finish()

    def finish(self) -> Graph:
        """The graph, with weights of its own."""
        return with_weights(self.build.graph(self.x))


def lenet5() -> Graph:
    net = Draft("lenet5-28", (1, 28, 28))
    net.add(mc.Conv2d(6, 5, padding=2), mc.ReLU(), mc.MaxPool2d(2), mc.Conv2d(16, 5), mc.ReLU(), mc.MaxPool2d(2), mc.Flatten(),
            mc.Linear(120), mc.ReLU(), mc.Linear(84), mc.ReLU(), mc.Linear(10))
    return net.finish()


def digits() -> Graph:
    net = Draft("digits-cnn", (1, 8, 8))
    net.add(mc.Conv2d(16, 3, padding=1), mc.ReLU(), mc.Conv2d(32, 3, padding=1), mc.ReLU(), mc.MaxPool2d(2), mc.Flatten(),
            mc.Linear(10))
    return net.finish()


def dscnn() -> Graph:
    net = Draft("dscnn-kws", (1, 49, 10))
    net.conv_bn(64, (10, 4), 2, (5, 1))
    for _ in range(4):
        net.separable(64)
    return net.pooled_head(12)


def resnet8() -> Graph:
    net = Draft("resnet8", (3, 32, 32))
    net.conv_bn(16, 3, padding=1)
    net.residual(16, 1, None)
    net.residual(32, 2, lambda: net.add(mc.Conv2d(32, 1, 2)))
    net.residual(64, 2, lambda: net.add(mc.Conv2d(64, 1, 2)))
    return net.pooled_head(10)


def mobilenet1() -> Graph:
    net = Draft("mbv1-vww", (3, 96, 96))
    net.conv_bn(8, 3, 2, 1)
    for channels, stride in [(16, 1), (32, 2), (32, 1), (64, 2), (64, 1), (128, 2), *[(128, 1)] * 5, (256, 2), (256, 1)]:
        net.separable(channels, stride)
    return net.pooled_head(2)


def mobilenet2() -> Graph:
    net = Draft("mbv2-224", (3, 224, 224))
    net.conv_bn(32, 3, 2, 1, act=mc.ReLU6)
    blocks = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
    for expansion, channels, repeats, first_stride in blocks:
        for stride in [first_stride] + [1] * (repeats - 1):
            given, before = net.x, net.build.shape(net.x)[0]
            inner = before * expansion
            if expansion > 1:
                net.conv_bn(inner, 1, act=mc.ReLU6)
            net.conv_bn(inner, 3, stride, 1, groups=inner, act=mc.ReLU6)
            net.conv_bn(channels, 1, act=None)
            if stride == 1 and before == channels:
                net.x = net.build(mc.Add(), given, net.x)
    net.conv_bn(1280, 1, act=mc.ReLU6)
    return net.pooled_head(1000)


def resnet18() -> Graph:
    net = Draft("resnet18-224", (3, 224, 224))
    net.conv_bn(64, 7, 2, 3)
    net.add(mc.MaxPool2d(3, 2, 1))
    for channels, first_stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        for stride in (first_stride, 1):
            project = None if stride == 1 else lambda c=channels, s=stride: net.conv_bn(c, 1, s, act=None)
            net.residual(channels, stride, project)
    return net.pooled_head(1000)


MODELS: dict[str, Callable[[], Graph]] = {
    "lenet5-28": lenet5, "digits-cnn": digits, "dscnn-kws": dscnn, "resnet8": resnet8, "mbv1-vww": mobilenet1,
    "mbv2-224": mobilenet2, "resnet18-224": resnet18}


def with_weights(graph: Graph, seed: int = 0) -> Graph:
    """The graph with weights drawn from a seed, such that numbers keep their size on the way through, and statistics that do
    something. Changes the graph."""
    rng = np.random.default_rng(seed)
    for node in graph.nodes:
        for role, ref in node.weights.items():
            shape = graph.weights[ref.name].shape
            if role == "weight":
                seen = math.prod(shape[1:])
                drawn = rng.standard_normal(shape) * math.sqrt((2 if node.op == "Conv2d" else 1) / seen)
            elif role in ("scale", "var"):
                drawn = rng.uniform(0.8, 1.2, shape)
            else:
                drawn = 0.05 * rng.standard_normal(shape)
            graph.weights[ref.name] = drawn.astype(np.float32)
    return graph


def graph_of(model: str) -> Graph:
    """The graph of a model's name, or of an .onnx or .mcnn file. Raises ModelError, FileError."""
    if model in MODELS:
        return MODELS[model]()
    if not model.lower().endswith((".onnx", ".mcnn")):
        raise ModelError(f"there is no model {model!r}; expected one of {', '.join(MODELS)}, or the path of an .onnx file")
    graph = load_model(model).copy()
    graph.source = None         # what every peer is given is this graph, not the file that it came from
    graph.name = Path(model).stem
    return graph


def macs_of(graph: Graph) -> dict[str, int]:
    """Multiply-adds of one sample, forward, by node."""
    from microcnn.layers import LAYERS
    shapes = graph.shapes()
    found = {}
    for node in graph.nodes:
        seen = {role: ref.apply(graph.weights[ref.name]).shape for role, ref in node.weights.items()}
        found[node.name] = LAYERS[node.op].macs(node, [shapes[name] for name in node.inputs],
                                                [shapes[name] for name in node.outputs], seen)
    return found


def folded(graph: Graph) -> Graph:
    """A copy in which every batch norm that alone reads a convolution is part of it, with its running statistics."""
    graph = graph.copy()
    readers, makers = graph.consumers(), {name: node for node in graph.nodes for name in node.outputs}
    renamed: dict[str, str] = {}
    nodes: list[Node] = []
    for node in graph.nodes:
        before = makers.get(node.inputs[0]) if node.op == "BatchNorm2d" else None
        if before is None or before.op != "Conv2d" or len(readers[before.outputs[0]]) > 1 or before.outputs[0] in graph.outputs:
            nodes.append(node)
            continue
        scale, bias, mean, var = (node.weights[role].apply(graph.weights[node.weights[role].name]).astype(np.float64)
                                  for role in ("scale", "bias", "mean", "var"))
        factor = scale / np.sqrt(var + node.attrs["eps"])
        weight = before.weights["weight"].apply(graph.weights[before.weights["weight"].name])
        old = before.weights.get("bias")
        shift = old.apply(graph.weights[old.name]) if old is not None else 0.0
        for role, array in (("weight", weight * factor[:, None, None, None]), ("bias", (shift - mean) * factor + bias)):
            name = f"{before.name}.folded_{role}"
            graph.weights[name] = array.astype(np.float32)
            before.weights[role] = WeightRef(name)
        renamed[before.outputs[0]] = node.outputs[0]
    for node in nodes:
        node.outputs = tuple(renamed.get(name, name) for name in node.outputs)
    used = {ref.name for node in nodes for ref in node.weights.values()}
    return Graph(graph.inputs, graph.outputs, nodes, {name: array for name, array in graph.weights.items() if name in used},
                 name=graph.name)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the models and say what they are."""
    parser = argparse.ArgumentParser(prog="python -m microcnn.tools.bench models", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, metavar="DIR", required=True, help="the folder, made where it is missing")
    parser.add_argument("--models", metavar="A,B", default=",".join(MODELS), help="which ones (all)")
    parser.add_argument("--folded", action="store_true", help="with batch norm folded into the convolutions")
    args = parser.parse_args(arguments)
    graphs = [graph_of(name) for name in args.models.split(",")]
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"{args.out}: no folder can be made there ({error.strerror or error})") from error
    rows = []
    for graph in graphs:
        graph = folded(graph) if args.folded else graph
        path = args.out / f"{graph.name}.onnx"
        mc.save_onnx(graph, path)
        rows.append([graph.name, "x".join(map(str, graph.inputs[0].shape)), count_text(trainable(graph)),
                     count_text(sum(macs_of(graph).values())), str(path)])
    Terminal().table(["model", "input", ">parameters", ">MACs", "file"], rows)
    return 0


def trainable(graph: Graph) -> int:
    """How many numbers training may change: all weights but running statistics."""
    kept = {node.weights[role].name for node in graph.nodes if node.op == "BatchNorm2d" for role in ("mean", "var")}
    return sum(array.size for name, array in graph.weights.items() if name not in kept)
