"""What evaluation counts, against numpy's sorting."""
import numpy as np
import pytest

from microcnn import arena
from tests.rows import run

TARGET, K, FOUND, CONFUSION = range(arena.FIRST_POINTER, arena.FIRST_POINTER + 4)


def classes(x, target, batch, rows, C, k, inner=1, ignored=-100, probabilities=0, confusion=True):
    matrix = np.zeros((C, C), np.int64)
    control = {TARGET: target, K: k, FOUND: 1.0, CONFUSION: matrix if confusion else 0}
    slots = run("metrics.classes", batch, dtype=x.dtype.name, control=control, x=x, target_slot=TARGET, k_slot=K,
                found_slot=FOUND, confusion_slot=CONFUSION, rows=rows, C=C, inner=inner, ignore_index=ignored,
                probabilities=probabilities)
    return slots[FOUND:FOUND + 1].view(np.float64)[0] - 1.0, matrix


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("batch, rows, C, k", [(1, 1, 1, 1), (3, 1, 5, 1), (3, 1, 5, 2), (2, 6, 17, 5), (1, 4, 40, 40)])
def test_classes(batch, rows, C, k, dtype):
    rng = np.random.default_rng(C)
    x = rng.integers(-3, 4, (batch * rows, C)).astype(dtype)      # with equal numbers
    target = rng.integers(0, C, batch * rows)
    order = np.argsort(-x, axis=1, kind="stable")
    expected = np.zeros((C, C), np.int64)
    np.add.at(expected, (target, order[:, 0]), 1)
    found, matrix = classes(x.reshape(-1), target, batch, rows, C, k)
    assert found == (order[:, :k] == target[:, None]).any(1).sum()
    np.testing.assert_array_equal(matrix, expected)
    shares = np.eye(C, dtype=dtype)[target].reshape(-1)
    assert classes(x.reshape(-1), shares, batch, rows, C, k, probabilities=1)[0] == found
    found, matrix = classes(x.reshape(-1), target, batch, rows, C, k, ignored=int(target[0]))
    expected[target[0]] = 0
    np.testing.assert_array_equal(matrix, expected)
    assert found == (order[:, :k] == target[:, None]).any(1)[target != target[0]].sum()


def test_nothing_is_counted_unasked():
    x = np.arange(6, dtype=np.float32)
    found, matrix = classes(x, np.array([2, 2]), 2, 1, 3, 0, confusion=False)
    assert found == 0 and not matrix.any()
