"""Losses of one number and its target at a time, through a whole training step, against plain loops."""
import numpy as np
import pytest

import microcnn as mc
from microcnn.errors import CompileError
from tests.kernels.test_pointwise_loss_kernels import HUBER, L1, LOGITS, SMOOTH_L1, plain
from tests.ops.table import built
from tests.ops.test_loss import DTYPES, held, network

# name: (what compile is given, kind and bound of the plain loops)
LOSSES = {"l1": ("l1", L1, 0.0), "smooth-l1": ("smooth_l1", SMOOTH_L1, 1.0),
          "smooth-l1-narrow": (mc.SmoothL1Loss(beta=0.3), SMOOTH_L1, 0.3), "smooth-l1-zero": (mc.SmoothL1Loss(0), L1, 0.0),
          "huber": ("huber", HUBER, 1.0), "huber-narrow": (mc.HuberLoss(delta=0.4), HUBER, 0.4),
          "bce": ("bce_with_logits", LOGITS, 1.0), "bce-weighted": (mc.BCEWithLogitsLoss(pos_weight=2.5), LOGITS, 2.5)}


def oracle(t, kind, bound, weight=None, pos_weight=None):
    def expected(z):
        loss, dx = plain(z.reshape(-1), t.reshape(-1).astype(np.float64), z[0].size, kind, bound, weight, pos_weight)
        return loss, dx.reshape(z.shape)
    return expected


def targets(graph, rng, kind):
    shape = (3, *graph.shapes()["output"])
    return (rng.random(shape) if kind == LOGITS else rng.normal(size=shape) * 2).astype(np.float32)


@DTYPES
@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
@pytest.mark.parametrize("name", LOSSES)
def test_a_step(name, weighted, dtype):
    loss, kind, bound = LOSSES[name]
    graph, _, x, _, rng = network("features")
    t = targets(graph, rng, kind)
    w = np.array([0.5, 0.0, 3.0]) if weighted else None
    held(graph, loss, x, t, "output", oracle(t, kind, bound, w), dtype=dtype, sample_weight=w)


@pytest.mark.parametrize("name", ["image", "image-in-another-order"])
@pytest.mark.parametrize("loss", ["huber", "bce"])
def test_images(name, loss):
    given, kind, bound = LOSSES[loss]
    graph, _, x, _, rng = network(name)
    t = targets(graph, rng, kind)
    held(graph, given, x, t, "output", oracle(t, kind, bound), dtype="float32")


@pytest.mark.parametrize("shape", [(5, 1, 1), (5, 4, 3), (1, 5, 1, 1), (3,), (1,)])
def test_weights_of_positive_targets_broadcast(shape, rng):
    graph, _, x, _, _ = network("image")
    t = targets(graph, rng, LOGITS)
    pos_weight = rng.random(shape) * 3
    whole = np.broadcast_to(pos_weight, (1, 5, 4, 3)).reshape(-1)
    held(graph, mc.BCEWithLogitsLoss(pos_weight), x, t, "output", oracle(t, LOGITS, 1.0, None, whole), dtype="float32")


def test_a_sigmoid_at_the_end_is_part_of_the_loss(rng):
    graph = built((4,), mc.Linear(5), mc.Sigmoid())
    x = rng.normal(size=(3, 4)).astype(np.float32)
    t = targets(graph, rng, LOGITS)
    held(graph, "bce_with_logits", x, t, "linear1.out", oracle(t, LOGITS, 1.0), dtype="float32")


def test_weights_that_do_not_fit_are_refused():
    with pytest.raises(CompileError, match=r'pos_weight has shape \(4,\); output "output" has the shape \(5,\)'):
        built((4,), mc.Linear(5)).compile(loss=mc.BCEWithLogitsLoss([1, 2, 3, 4]))


@pytest.mark.parametrize("make, text", [
    (lambda: mc.SmoothL1Loss(-1), "SmoothL1Loss: beta is -1; expected a number from 0"),
    (lambda: mc.HuberLoss(0), "HuberLoss: delta is 0; expected a number above 0"),
    (lambda: mc.HuberLoss(float("nan")), "HuberLoss: delta is nan"),
    (lambda: mc.BCEWithLogitsLoss(-1.0), "BCEWithLogitsLoss: pos_weight is -1.0; expected finite numbers, 0 or more"),
    (lambda: mc.BCEWithLogitsLoss("even"), "BCEWithLogitsLoss: pos_weight is 'even'")])
def test_what_makes_no_sense_is_refused(make, text):
    with pytest.raises(CompileError, match=text):
        make()


COMBINED = {"weight": [0.5, 2.0, 1.0, 0.25, 4.0], "label_smoothing": 0.25, "ignore_index": 2}


@pytest.mark.torch
@pytest.mark.parametrize("left_out", [None, *COMBINED])
@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
@pytest.mark.parametrize("name", ["features", "image"])
def test_combinations_of_cross_entropy_are_pytorchs(name, weighted, left_out):
    """The mean divides by the weights of the classes that count; a sample's weight multiplies its losses only."""
    torch = pytest.importorskip("torch")
    options = {key: value for key, value in COMBINED.items() if key != left_out}
    graph, logits, x, t, _ = network(name)
    t.reshape(-1)[:2] = 1, 2
    w = np.array([0.5, 0.0, 3.0]) if weighted else None

    def expected(z):
        theirs = torch.tensor(z, requires_grad=True)
        given = {**options, "weight": torch.tensor(options["weight"], dtype=torch.float64)} if "weight" in options else options
        goal = torch.tensor(t)
        if w is None:
            loss = torch.nn.functional.cross_entropy(theirs, goal, **given)
        else:
            each = torch.nn.functional.cross_entropy(theirs, goal, reduction="none", **given)
            counted = torch.tensor(options.get("weight", [1.0] * 5))[goal] * (goal != options.get("ignore_index", -100))
            loss = (each * torch.tensor(w).reshape(-1, *[1] * (each.ndim - 1))).sum() / counted.sum()
        loss.backward()
        return loss.item(), theirs.grad.numpy()
    held(graph, mc.CrossEntropyLoss(**options), x, t, logits, expected, dtype="float32", sample_weight=w)
