"""L1, smooth L1, Huber and binary cross-entropy as compiled, against plain loops in float64 and against PyTorch."""
import math

import numpy as np
import pytest

from microcnn import arena
from microcnn.kernels.pointwise_loss import HUBER, L1, LOGITS, SMOOTH_L1
from tests.rows import run

TARGET, WEIGHT = arena.FIRST_POINTER, arena.FIRST_POINTER + 1
TOLERANCE = {"float32": 2e-6, "float64": 1e-13}
DTYPES = pytest.mark.parametrize("dtype", ["float32", "float64"])
# kind, bound, with a weight of targets of 1 for each number
CASES = {"l1": (L1, 0.0, False), "smooth": (SMOOTH_L1, 1.0, False), "smooth-narrow": (SMOOTH_L1, 0.25, False),
         "huber": (HUBER, 1.0, False), "huber-wide": (HUBER, 1.5, False), "logits": (LOGITS, 1.0, False),
         "logits-weighted": (LOGITS, 3.0, False), "logits-by-place": (LOGITS, 1.0, True)}


def mean(x, target, batch, size, kind, bound, *, weight=None, pos_weight=None, gradient=1, threads=1, dx=None, before=2.0):
    """The loss and the gradient, as the kernel computes them."""
    dx = np.full_like(x, np.nan) if dx is None else dx
    control = {TARGET: target, arena.LOSS: before}
    if weight is not None:
        control[WEIGHT] = weight
    slots = run("pointwise_loss.mean", batch, threads=threads, dtype=x.dtype.name, control=control, x=x, dx=dx,
                scratch=np.full(16, np.nan), pos_weight=pos_weight, target_slot=TARGET, weight_slot=WEIGHT, size=size,
                kind=kind, bound=float(bound), gradient=gradient)
    return slots[arena.LOSS:arena.LOSS + 1].view(np.float64)[0] - before, dx


def one(x, t, kind, bound):
    """(loss, its derivative) of one number, as PyTorch's documentation says."""
    d = x - t
    if kind == L1:
        return abs(d), float(np.sign(d))
    if kind == SMOOTH_L1:
        return (d * d / (2 * bound), d / bound) if abs(d) < bound else (abs(d) - bound / 2, float(np.sign(d)))
    if kind == HUBER:
        return (d * d / 2, d) if abs(d) <= bound else (bound * (abs(d) - bound / 2), bound * float(np.sign(d)))
    log_yes = -math.log1p(math.exp(-abs(x))) + min(x, 0)      # of sigmoid(x)
    log_no = log_yes - x
    yes = math.exp(log_yes)
    return -(bound * t * log_yes + (1 - t) * log_no), (1 - t) * yes - bound * t * (1 - yes)


def plain(x, target, size, kind, bound, weight, pos_weight):
    dx, losses = np.zeros(x.size), []
    for i in range(x.size):
        share = 1.0 if weight is None else weight[i // size]
        loss, slope = one(float(x[i]), float(target[i]), kind, bound if pos_weight is None else float(pos_weight[i % size]))
        losses.append(share * loss)
        dx[i] = share * slope / x.size
    return math.fsum(losses) / x.size, dx


def data(name, batch, size, dtype):
    kind, bound, by_place = CASES[name]
    rng = np.random.default_rng(size)
    x = (rng.normal(size=batch * size) * 2).astype(dtype)
    target = (rng.random(x.size) if kind == LOGITS else x + rng.normal(size=x.size)).astype(dtype)
    target[::4] = (target[::4] > 0.5) if kind == LOGITS else x[::4]      # 0 and 1, or no difference at all
    pos_weight = (rng.random(size) * 3).astype(dtype) if by_place else None
    return x, target, kind, bound, pos_weight, rng.random(batch) + 0.5


@DTYPES
@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
@pytest.mark.parametrize("batch, size", [(1, 1), (2, 3), (3, 17), (3, 1000)])
@pytest.mark.parametrize("name", CASES)
def test_mean(name, batch, size, weighted, dtype):
    x, target, kind, bound, pos_weight, weight = data(name, batch, size, dtype)
    options = {"weight": weight if weighted else None, "pos_weight": pos_weight}
    expected, slopes = plain(x, target, size, kind, bound, **options)
    loss, dx = mean(x, target, batch, size, kind, bound, **options)
    assert loss == pytest.approx(expected, rel=TOLERANCE[dtype], abs=TOLERANCE[dtype])
    np.testing.assert_allclose(dx * x.size, slopes * x.size, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    in_place = x.copy()
    assert mean(in_place, target, batch, size, kind, bound, dx="x", **options)[0] == loss
    np.testing.assert_array_equal(in_place, dx)
    untouched = x.copy()
    assert mean(x, target, batch, size, kind, bound, gradient=0, dx=untouched, **options)[0] == loss
    np.testing.assert_array_equal(untouched, x)


@pytest.mark.parametrize("x, target, expected, slope", [
    (80.0, 1.0, math.exp(-80), -math.exp(-80)), (-80.0, 0.0, math.exp(-80), math.exp(-80)), (-1000.0, 1.0, 1000.0, -1.0),
    (1000.0, 0.0, 1000.0, 1.0), (1000.0, 1.0, 0.0, 0.0), (12.0, 1.0, math.log1p(math.exp(-12)), -1 / (1 + math.exp(12)))])
@DTYPES
def test_far_logits_lose_nothing(x, target, expected, slope, dtype):
    loss, dx = mean(np.array([x], dtype), np.array([target], dtype), 1, 1, LOGITS, 1.0, before=0.0)
    assert loss == pytest.approx(expected, rel=2e-6, abs=0)
    # a target of 1 leaves sigmoid(x) - 1, which the dtype rounds
    assert dx[0] == pytest.approx(slope, rel=2e-6, abs=float(np.finfo(dtype).eps))


@pytest.mark.parametrize("name", ["smooth", "logits-by-place"])
def test_threads_do_not_change_a_bit(name):
    x, target, kind, bound, pos_weight, weight = data(name, 4, 30_000, "float32")
    results = [mean(x, target, 4, 30_000, kind, bound, weight=weight, pos_weight=pos_weight, threads=threads)
               for threads in (1, 2)]
    assert results[0][0] == results[1][0]
    np.testing.assert_array_equal(results[0][1], results[1][1])


@pytest.mark.torch
@pytest.mark.parametrize("name", CASES)
def test_losses_are_pytorchs(name):
    torch = pytest.importorskip("torch")
    x, target, kind, bound, pos_weight, _ = data(name, 3, 20, "float64")
    logits, goal = torch.tensor(x.reshape(3, 20), requires_grad=True), torch.tensor(target.reshape(3, 20))
    nn = torch.nn
    made = {L1: lambda: nn.L1Loss(), SMOOTH_L1: lambda: nn.SmoothL1Loss(beta=bound), HUBER: lambda: nn.HuberLoss(delta=bound),
            LOGITS: lambda: nn.BCEWithLogitsLoss(pos_weight=torch.tensor(bound if pos_weight is None else pos_weight))}[kind]()
    theirs = made(logits, goal)
    theirs.backward()
    loss, dx = mean(x, target, 3, 20, kind, bound, pos_weight=pos_weight)
    assert loss == pytest.approx(theirs.item(), rel=1e-13)
    np.testing.assert_allclose(dx, logits.grad.reshape(-1).numpy(), rtol=1e-12, atol=1e-16)
