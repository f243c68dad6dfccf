"""Cross-entropy and mean squared error as compiled, against plain loops in float64 and against PyTorch."""
import math

import numpy as np
import pytest

from microcnn import arena
from tests.rows import run

TARGET, WEIGHT, CORRECT = arena.FIRST_POINTER, arena.FIRST_POINTER + 1, arena.FIRST_POINTER + 2
TOLERANCE = {"float32": 2e-6, "float64": 1e-12}
DTYPES = pytest.mark.parametrize("dtype", ["float32", "float64"])
# batch, outer per sample, C, inner
SHAPES = pytest.mark.parametrize("batch, outer, C, inner", [
    (1, 1, 1, 1), (2, 1, 3, 1), (3, 1, 5, 1), (2, 6, 17, 1), (3, 1, 33, 1), (2, 20, 4, 1), (2, 1, 5, 7), (1, 2, 3, 4)])


def number(slots, index):
    return slots[index:index + 1].view(np.float64)[0]


def cross_entropy(x, target, batch, rows, C, inner=1, *, probabilities=0, weight=None, class_weight=None, gradient=1,
                  ignore_index=-100, label_smoothing=0.0, counting=True, threads=1, dx=None, before=0.0):
    """The loss, the gradient and the number of right predictions, as the kernel computes them."""
    dx = np.full_like(x, np.nan) if dx is None else dx
    control = {TARGET: target, arena.LOSS: before, CORRECT: 0.0}
    if weight is not None:
        control[WEIGHT] = weight
    slots = run("loss.cross_entropy", batch, threads=threads, dtype=x.dtype.name, control=control, x=x, dx=dx,
                scratch=np.full(64, np.nan), class_weight=class_weight, target_slot=TARGET, weight_slot=WEIGHT,
                correct_slot=CORRECT if counting else -1, rows=rows, C=C, inner=inner, probabilities=probabilities,
                gradient=gradient, ignore_index=ignore_index, label_smoothing=label_smoothing)
    return number(slots, arena.LOSS) - before, dx, number(slots, CORRECT)


def plain_cross_entropy(x, target, batch, outer, C, inner, probabilities, weight, class_weight, ignore_index,
                        smoothing):
    """As PyTorch's documentation defines it, one group after the other."""
    x = x.astype(np.float64).reshape(batch * outer, C, inner).transpose(0, 2, 1).reshape(-1, C)
    if probabilities:
        target = target.astype(np.float64).reshape(batch * outer, C, inner).transpose(0, 2, 1).reshape(-1, C)
    else:
        target = target.reshape(-1)
    class_weight = np.ones(C) if class_weight is None else class_weight.astype(np.float64)
    dx = np.zeros(x.shape)
    loss, correct, counted = 0.0, 0, 0.0
    for g in range(len(x)):
        if not probabilities and target[g] == ignore_index:
            continue
        sample = weight[g // (outer * inner)] if weight is not None else 1.0
        counted += 1.0 if probabilities else class_weight[target[g]]
        top = max(x[g])
        total = math.fsum(math.exp(value - top) for value in x[g])
        log_p = [value - top - math.log(total) for value in x[g]]
        hot = target[g] if probabilities else np.eye(C)[target[g]]
        if probabilities:
            q = [class_weight[c] * ((1 - smoothing) * hot[c] + smoothing / C) for c in range(C)]
        else:
            q = [(1 - smoothing) * class_weight[c] * hot[c] + smoothing / C * class_weight[c] for c in range(C)]
        loss -= sample * math.fsum(q[c] * log_p[c] for c in range(C))
        for j in range(C):
            dx[g, j] = sample * math.fsum(q[c] * (math.exp(log_p[j]) - (j == c)) for c in range(C))
        correct += int(np.argmax(x[g]) == (np.argmax(hot)))
    mean = 1 / counted if counted else 0.0
    dx = dx.reshape(batch * outer, inner, C).transpose(0, 2, 1).reshape(-1)
    return loss * mean, dx * mean, correct


def data(batch, outer, C, inner, probabilities, dtype):
    rng = np.random.default_rng(C + inner)
    groups = batch * outer * inner
    x = (rng.normal(size=groups * C) * 3).astype(dtype)
    if probabilities:
        target = rng.random((batch * outer, C, inner))
        target = (target / target.sum(1, keepdims=True)).reshape(-1).astype(dtype)
    else:
        target = rng.integers(0, C, groups)
    return x, target, rng.random(batch) + 0.5, (rng.random(C) + 0.5).astype(dtype)


@DTYPES
@SHAPES
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("probabilities", [0, 1])
@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy(batch, outer, C, inner, weighted, probabilities, smoothing, dtype):
    x, target, weight, class_weight = data(batch, outer, C, inner, probabilities, dtype)
    if not weighted:
        weight = class_weight = None
    ignored = -100
    if not probabilities and target.size > 2:
        ignored = int(target[1])
    expected = plain_cross_entropy(x, target, batch, outer, C, inner, probabilities, weight, class_weight, ignored,
                                   smoothing)
    options = {"probabilities": probabilities, "weight": weight, "class_weight": class_weight, "ignore_index": ignored,
               "label_smoothing": smoothing}
    loss, dx, correct = cross_entropy(x, target, batch, outer * inner, C, inner, before=2.0, **options)
    assert loss == pytest.approx(expected[0], rel=TOLERANCE[dtype], abs=TOLERANCE[dtype])
    np.testing.assert_allclose(dx, expected[1], rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    assert correct == expected[2]
    in_place = x.copy()
    assert cross_entropy(in_place, target, batch, outer * inner, C, inner, dx="x", before=2.0, **options)[0] == loss
    np.testing.assert_array_equal(in_place, dx)
    untouched = x.copy()
    assert cross_entropy(x, target, batch, outer * inner, C, inner, dx=untouched, gradient=0, before=2.0,
                         **options)[0] == loss
    np.testing.assert_array_equal(untouched, x)


@pytest.mark.parametrize("probabilities, inner", [(0, 1), (1, 1), (0, 3)])
def test_cross_entropy_gradient_is_the_slope_of_the_loss(probabilities, inner):
    x, target, weight, class_weight = data(2, 2, 5, inner, probabilities, "float64")
    options = {"probabilities": probabilities, "weight": weight, "class_weight": class_weight, "label_smoothing": 0.2}
    _, dx, _ = cross_entropy(x, target, 2, 2 * inner, 5, inner, **options)
    slope = [(cross_entropy(x + step, target, 2, 2 * inner, 5, inner, gradient=0, **options)[0]
              - cross_entropy(x - step, target, 2, 2 * inner, 5, inner, gradient=0, **options)[0]) / 2e-5
             for step in np.eye(x.size) * 1e-5]
    np.testing.assert_allclose(dx, slope, rtol=1e-5, atol=1e-7)
    # a wrong gradient has to be noticed
    assert not np.allclose(dx * 1.01, slope, rtol=1e-5, atol=1e-7)


@DTYPES
def test_when_every_target_is_ignored_loss_and_gradient_are_zero(dtype):
    x = np.full(15, np.nan, dtype)
    loss, dx, correct = cross_entropy(x, np.full(3, -1), 3, 1, 5, ignore_index=-1)
    assert (loss, correct) == (0.0, 0.0)
    np.testing.assert_array_equal(dx, 0)


@DTYPES
def test_huge_logits_neither_overflow_nor_vanish(dtype):
    x = np.array([1e4, 0, -1e4, -1e4, 1e4, 0], dtype)
    loss, dx, correct = cross_entropy(x, np.array([0, 2]), 2, 1, 3)
    assert loss == pytest.approx(5e3)
    np.testing.assert_allclose(dx, [0, 0, 0, 0, 0.5, -0.5])
    assert correct == 1


def test_a_forbidden_class_costs_nothing_and_a_nan_shows():
    x = np.array([0, -np.inf, 0, np.nan, 1, 2], np.float32)
    loss, dx, _ = cross_entropy(x[:3], np.array([0]), 1, 1, 3)
    assert loss == pytest.approx(math.log(2))
    np.testing.assert_allclose(dx, [-0.5, 0, 0.5])
    loss, dx, correct = cross_entropy(x[3:], np.array([2]), 1, 1, 3)
    assert math.isnan(loss) and np.isnan(dx).all() and correct == 0


def test_equal_logits_predict_the_first():
    x = np.zeros(40, np.float32)
    assert cross_entropy(x, np.array([0, 1]), 2, 1, 20)[2] == 1


def test_an_address_of_zero_means_no_weights_and_slot_minus_one_counts_nothing():
    x, target, _, _ = data(3, 1, 5, 1, 0, "float32")
    loss, _, correct = cross_entropy(x, target, 3, 1, 5, counting=False)
    assert correct == 0
    slots = run("loss.cross_entropy", 3, control={TARGET: target}, x=x, dx=None, scratch=np.full(64, np.nan),
                class_weight=None, target_slot=TARGET, weight_slot=-1, correct_slot=-1, rows=1, C=5, inner=1,
                probabilities=0, gradient=0, ignore_index=-100, label_smoothing=0.0)
    assert number(slots, arena.LOSS) == loss


def mse(x, target, batch, size, weight=None, gradient=1, threads=1, dx=None):
    dx = np.full_like(x, np.nan) if dx is None else dx
    control = {TARGET: target} if weight is None else {TARGET: target, WEIGHT: weight}
    slots = run("loss.mse", batch, threads=threads, dtype=x.dtype.name, control=control, x=x, dx=dx,
                scratch=np.full(64, np.nan), target_slot=TARGET, weight_slot=WEIGHT, size=size, gradient=gradient)
    return number(slots, arena.LOSS), dx


@DTYPES
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("batch, size", [(1, 1), (3, 5), (2, 33), (3, 1000), (2, 20_000)])
def test_mse(batch, size, weighted, dtype):
    rng = np.random.default_rng(size)
    x, target = rng.normal(size=(2, batch * size)).astype(dtype)
    weight = rng.random(batch) if weighted else None
    each = np.repeat(weight if weighted else np.ones(batch), size)
    difference = x.astype(np.float64) - target
    loss, dx = mse(x, target, batch, size, weight)
    assert loss == pytest.approx(math.fsum(each * difference**2) / x.size, rel=TOLERANCE[dtype])
    np.testing.assert_allclose(dx, 2 * each * difference / x.size, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    in_place = x.copy()
    assert mse(in_place, target, batch, size, weight, dx="x")[0] == loss
    np.testing.assert_array_equal(in_place, dx)
    untouched = x.copy()
    assert mse(x, target, batch, size, weight, gradient=0, dx=untouched)[0] == loss
    np.testing.assert_array_equal(untouched, x)


def test_reset():
    slots = run("loss.reset", 1, control={arena.LOSS: 3.5, arena.RATE: 0.25})
    assert (number(slots, arena.LOSS), number(slots, arena.RATE)) == (0.0, 0.25)


@pytest.mark.parametrize("C, inner", [(10, 1), (10, 10), (1000, 1)])
def test_threads_do_not_change_a_bit(C, inner):
    batch, rows = 4, 40_000 // C // 4
    x, target, weight, class_weight = data(batch, rows // inner, C, inner, 0, "float32")
    results = [cross_entropy(x, target, batch, rows, C, inner, weight=weight, class_weight=class_weight,
                             label_smoothing=0.1, threads=threads) for threads in (1, 2)]
    assert results[0][0] == results[1][0] and results[0][2] == results[1][2]
    np.testing.assert_array_equal(results[0][1], results[1][1])
    a, b = np.random.default_rng(0).normal(size=(2, 120_000)).astype(np.float32)
    results = [mse(a, b, 4, 30_000, np.arange(1.0, 5.0), threads=threads) for threads in (1, 2)]
    assert results[0][0] == results[1][0]
    np.testing.assert_array_equal(results[0][1], results[1][1])


@pytest.mark.torch
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("probabilities", [0, 1])
@pytest.mark.parametrize("rows", [1, 6])
def test_cross_entropy_is_pytorchs(rows, probabilities, smoothing):
    torch = pytest.importorskip("torch")
    batch, C = 3, 5
    x, target, _, class_weight = data(batch, rows, C, 1, probabilities, "float64")
    logits = torch.tensor(x.reshape(batch, rows, C)).transpose(1, 2).requires_grad_()
    goal = torch.tensor(target.reshape(batch, rows, C) if probabilities else target.reshape(batch, rows))
    if probabilities:
        goal = goal.transpose(1, 2)
    ignored = -100 if probabilities else 2
    theirs = torch.nn.functional.cross_entropy(logits, goal, weight=torch.tensor(class_weight), ignore_index=ignored,
                                               label_smoothing=smoothing)
    theirs.backward()
    loss, dx, _ = cross_entropy(x, target, batch, rows, C, probabilities=probabilities, class_weight=class_weight,
                                ignore_index=ignored, label_smoothing=smoothing)
    assert loss == pytest.approx(theirs.item(), rel=1e-12)
    np.testing.assert_allclose(dx, logits.grad.transpose(1, 2).reshape(-1).numpy(), rtol=1e-12, atol=1e-14)


@pytest.mark.torch
def test_mse_is_pytorchs():
    torch = pytest.importorskip("torch")
    x, target = np.random.default_rng(0).normal(size=(2, 60))
    theirs = torch.tensor(x, requires_grad=True)
    loss = torch.nn.functional.mse_loss(theirs, torch.tensor(target))
    loss.backward()
    ours, dx = mse(x, target, 3, 20)
    assert ours == pytest.approx(loss.item(), rel=1e-13)
    np.testing.assert_allclose(dx, theirs.grad.numpy(), rtol=1e-13)
