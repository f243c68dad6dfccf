"""PyTorch on the CPU: eager, eager with channels last (torch-cl), and compiled (torch-compile, which needs a C++ compiler)."""
from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from .twin import Node, Twin, refuse
from .worker import Task

CHANNELS_LAST = ("torch-cl",)


def start(threads: int, variant: str) -> str:
    torch.set_num_threads(threads)
    torch.set_num_interop_threads(1)
    return torch.__version__


def module(twin: Twin) -> Any:
    """The model as straight-line code over modules, as someone would write it by hand."""
    graph, modules = fx.Graph(), {}
    made = {twin.input: graph.placeholder("x")}
    readers = [name for node in twin.nodes for name in node.inputs]
    for node in twin.nodes:
        layer = _layer(node)
        x = [made[name] for name in node.inputs]
        if layer is not None:
            pads = node.attrs.get("pads", [0] * 4)
            if pads[:2] != pads[2:]:
                top, left, bottom, right = pads
                x[0] = graph.call_function(F.pad, (x[0], (left, right, top, bottom)),
                                           {"value": -math.inf if node.op == "MaxPool2d" else 0.0})
            modules[node.name] = layer
            made[node.output] = graph.call_module(node.name, (x[0],))
        else:
            function, options = _function(node)
            if "inplace" in options:
                options["inplace"] = node.inputs[0] != twin.input and readers.count(node.inputs[0]) == 1
            made[node.output] = graph.call_function(function, tuple(x), options)
    graph.output(made[twin.output])
    return fx.GraphModule(modules, graph)


def _layer(node: Node) -> Any:
    """The module of an operation with weights or windows, None of others."""
    attrs, weights = node.attrs, node.weights
    kernel, pads = tuple(attrs.get("kernel", ())), attrs.get("pads", [0] * 4)
    padding = tuple(pads[:2]) if pads[:2] == pads[2:] else (0, 0)
    layer: Any = None
    if node.op == "Conv2d":
        K, CG = weights["weight"].shape[:2]
        layer = nn.Conv2d(CG * attrs["groups"], K, kernel, tuple(attrs["stride"]), padding, tuple(attrs["dilation"]),
                          attrs["groups"], "bias" in weights)
    elif node.op == "Linear":
        K, C = weights["weight"].shape
        layer = nn.Linear(C, K, "bias" in weights)
    elif node.op == "BatchNorm2d":
        layer = nn.BatchNorm2d(weights["mean"].size, attrs["eps"], 1 - attrs["momentum"])
        layer.running_mean, layer.running_var = torch.from_numpy(weights["mean"]), torch.from_numpy(weights["var"])
        weights = {"weight": weights["scale"], "bias": weights["bias"]}
    elif node.op == "MaxPool2d":
        return nn.MaxPool2d(kernel, tuple(attrs["stride"]), padding, tuple(attrs["dilation"]),
                            ceil_mode=attrs["ceil_mode"])
    elif node.op == "AvgPool2d" and pads[:2] == pads[2:]:
        return nn.AvgPool2d(kernel, tuple(attrs["stride"]), padding, attrs["ceil_mode"], attrs["count_include_pad"])
    else:
        return None
    for name in ("weight", "bias"):
        if name in weights:
            getattr(layer, name).data = torch.from_numpy(weights[name].copy())
    return layer


def _function(node: Node) -> tuple[Any, dict[str, Any]]:
    """The function of an operation without weights, and its options. Raises NoTwin."""
    attrs = node.attrs
    if node.op == "Clip":
        if (attrs["low"], attrs["high"]) == (0, 6):
            return F.relu6, {"inplace": True}
        return torch.clamp, {"min": attrs["low"], "max": attrs["high"]}
    if node.op == "Add" and len(node.inputs) == 2:
        return torch.add, {}
    if node.op == "Softmax" and not attrs.get("flatten"):
        return torch.softmax, {"dim": attrs["axis"]}
    simple: dict[str, tuple[Any, dict[str, Any]]] = {
        "Relu": (F.relu, {"inplace": True}), "Sigmoid": (torch.sigmoid, {}), "Tanh": (torch.tanh, {}),
        "GlobalAvgPool2d": (torch.mean, {"dim": (2, 3), "keepdim": True}), "Flatten": (torch.flatten, {"start_dim": 1})}
    if node.op not in simple:
        raise refuse(node, "PyTorch")
    return simple[node.op]


def _built(task: Task) -> tuple[Any, Callable[[Any], Any]]:
    """The model in the variant's memory format, and how a NumPy array becomes its input."""
    net = module(task.twin())
    if task.variant not in CHANNELS_LAST:
        return net, torch.from_numpy
    # the samples lie (N, H, W, C): nothing is copied
    return net.to(memory_format=torch.channels_last), lambda x: torch.from_numpy(x).movedim(-1, 1)


def _compiled(task: Task, function: Any, freezing: bool) -> Any:
    """The function, compiled where that is the variant."""
    if task.variant != "torch-compile":
        return function
    import torch._inductor.config
    torch._dynamo.reset()
    torch._inductor.config.freezing = freezing
    return torch.compile(function, dynamic=False)


def infer(task: Task) -> Callable[..., Any]:
    net, tensor = _built(task)
    run = _compiled(task, net.eval(), freezing=True)
    # what inductor freezes has to be called so
    mode = torch.no_grad if task.variant == "torch-compile" else torch.inference_mode

    def call(x: Any) -> Any:
        with mode():
            return run(tensor(x)).numpy()
    return call


def train(task: Task) -> Callable[..., Any]:
    twin = task.twin()
    net, tensor = _built(task)
    net.train(not task.last)
    trained = {name for name, _ in twin.trained(task.last)}
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(name.partition(".")[0] in trained)
    weights = [parameter for parameter in net.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(weights, lr=twin.lr, momentum=twin.momentum, fused=True)
    loss_of = _compiled(task, lambda x, t: F.cross_entropy(net(x), t), freezing=False)

    def step(x: Any, t: Any) -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(tensor(x), torch.from_numpy(t))
        loss.backward()
        optimizer.step()
        return loss.item()
    return step
