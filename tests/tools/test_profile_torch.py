"""Multiply-adds and parameters by layer are those that PyTorch counts on its twin of a network."""
from __future__ import annotations

import numpy as np
import pytest

from microcnn.tools.bench.models import MODELS
from microcnn.tools.bench.recipe import Recipe

pytestmark = pytest.mark.torch


@pytest.mark.parametrize("name", MODELS)
def test_macs_and_parameters(name, tmp_path):
    torch = pytest.importorskip("torch")
    from torch.utils.flop_counter import FlopCounterMode

    from microcnn.tools.bench.runners import peer_torch
    from microcnn.tools.bench.runners.worker import Task
    graph = MODELS[name]()
    recipe = Recipe(graph, tmp_path)
    recipe.prepare(1)
    twin = peer_torch.module(Task(tmp_path, 1, 1, "torch", "train").twin()).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        twin(torch.from_numpy(np.zeros((1, *graph.inputs[0].shape), np.float32)))
    names = {f"node{i}": node.name for i, node in enumerate(graph.nodes)}       # as the recipe calls them
    counted = {names[key.partition(".")[2]]: sum(found.values()) for key, found in counter.get_flop_counts().items()
               if "." in key}
    parameters = {names[key]: sum(array.numel() for array in module.parameters()) for key, module in twin.named_modules()
                  if key}
    facts = graph.compile().layer_facts()
    ours = {layer: fact for layer, fact in facts.items() if fact.get("op") in ("Conv2d", "Linear", "BatchNorm2d")}
    assert {layer: 2 * fact["macs"] for layer, fact in ours.items() if fact["macs"]} == {
        layer: flops for layer, flops in counted.items() if flops}
    assert {layer: fact["parameters"] for layer, fact in ours.items()} == {
        layer: count for layer, count in parameters.items() if count}
    assert sum(fact["macs"] for fact in facts.values() if "macs" in fact) * 2 == counter.get_total_flops()
