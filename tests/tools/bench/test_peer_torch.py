"""PyTorch's twin of a network computes what the network does: outputs, and the losses of its first steps."""
from __future__ import annotations

import numpy as np
import pytest

import microcnn as mc
from microcnn.tools.bench.models import MODELS
from microcnn.tools.bench.recipe import LR, MOMENTUM, Recipe
from microcnn.tools.bench.runners.worker import Task
from microcnn.tools.bench.timing import disagreement

pytestmark = pytest.mark.torch
BATCH = 4


@pytest.mark.parametrize("variant", ["torch", "torch-cl"])
@pytest.mark.parametrize("name", ["lenet5-28", "digits-cnn", "dscnn-kws", "resnet8", "mbv1-vww"])
def test_twins_agree(name, variant, tmp_path):
    pytest.importorskip("torch")
    from microcnn.tools.bench.runners import peer_torch
    graph = MODELS[name]()
    recipe = Recipe(graph, tmp_path)
    recipe.prepare(BATCH)
    with np.load(tmp_path / f"data-{BATCH}.npz") as data:
        x, t = data["x"], data["t"]
    theirs = np.ascontiguousarray(x.transpose(0, 2, 3, 1)) if variant in peer_torch.CHANNELS_LAST else x
    ours = graph.compile(batch=BATCH).predict(x)
    assert disagreement(peer_torch.infer(Task(tmp_path, BATCH, 1, variant, "infer"))(theirs), ours) < 0.1
    for job, train, bn in (("train", "all", "batch"), ("last", "head", "frozen")):
        net = graph.compile(batch=BATCH, train=train, loss="cross_entropy", optimizer=mc.SGD(lr=LR, momentum=MOMENTUM), bn=bn)
        step = peer_torch.train(Task(tmp_path, BATCH, 1, variant, job))
        expected, found = [net.train_step(x, t) for _ in range(3)], [step(theirs, t) for _ in range(3)]
        assert expected[2] < expected[0]
        assert disagreement(found, expected) < 1, (job, found, expected)
