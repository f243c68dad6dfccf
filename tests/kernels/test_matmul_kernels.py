"""Products of many matrices, by strides, repeated and summed."""
import numpy as np
import pytest

from tests.rows import run

SIZES = [(1, 1, 1), (3, 5, 17), (17, 33, 3), (40, 3, 33), (5, 300, 1), (33, 17, 70)]


def fields(letter, shape, repeated=()):
    """An operand's strides for the batch and three axes in front of its matrices, 0 where it repeats."""
    lead = [0 if axis in repeated else n for axis, n in enumerate(shape[:4])]
    strides, step = [], int(np.prod(shape[4:]))
    for n in reversed(lead):
        strides.insert(0, step if n else 0)
        step *= n or 1
    size = step // (lead[0] or 1)
    return {f"{letter}_batch": strides[0], **{f"{letter}{i}": n for i, n in enumerate(strides[1:])}, f"{letter}_size": size}


def without(array, axes):
    """The first along the axes that repeat."""
    return array[tuple(slice(0, 1) if axis in axes else slice(None) for axis in range(array.ndim))]


@pytest.mark.parametrize("dtype, tolerance", [("float64", 1e-12), ("float32", 2e-5)])
@pytest.mark.parametrize("M, C, K", SIZES)
@pytest.mark.parametrize("of_a, of_b, of_y", [
    ((), (), ()), ((1,), (2,), ()), ((0,), (), ()), ((), (0, 3), (0, 1)), ((2,), (), (3,))])
def test_products(M, C, K, of_a, of_b, of_y, dtype, tolerance):
    lead, rng = (2, 1, 2, 3), np.random.default_rng(0)
    a, b = (without(rng.normal(size=(*lead, *size)), axes).astype(dtype) for size, axes in (((M, C), of_a), ((C, K), of_b)))
    every = a.astype(np.float64) @ b.astype(np.float64)
    every = np.broadcast_to(every, (*lead, M, K))
    expected = every.sum(of_y, keepdims=True)
    steps = {"M": M, "C": C, "K": K, "a_row": C, "a_col": 1, "b_row": K, "d0": 1, "d1": 2, "d2": 3,
             **fields("a", (*lead, M, C), of_a), **fields("b", (*lead, C, K), of_b), **fields("y", (*lead, M, K), of_y)}
    found = []
    for threads in (1, 2):
        y, more = np.full(expected.shape, np.nan, dtype), np.full(expected.shape, 3, dtype)
        run("matmul.product", 2, threads, dtype, a=a.copy(), b=b.copy(), y=y, accumulate=0, **steps)
        run("matmul.product", 2, threads, dtype, a=a.copy(), b=b.copy(), y=more, accumulate=1, **steps)
        found.append((y, more))
    np.testing.assert_allclose(found[0][0], expected, rtol=tolerance, atol=tolerance * C)
    np.testing.assert_allclose(found[0][1], expected + 3, rtol=tolerance, atol=tolerance * C)
    assert all(one.tobytes() == two.tobytes() for one, two in zip(*found, strict=True))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_transposed_first_operand_and_all_transposed(dtype):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 5, 7)).astype(dtype), rng.normal(size=(2, 5, 19)).astype(dtype)
    y = np.full((2, 7, 19), np.nan, dtype)
    none = {f"{letter}{i}": 0 for letter in "aby" for i in range(3)}
    run("matmul.product", 2, 1, dtype, a=a.copy(), b=b.copy(), y=y, d0=1, d1=1, d2=1, **none, a_batch=35, b_batch=95,
        y_batch=133, M=7, C=5, K=19, a_row=1, a_col=7, b_row=19, a_size=35, b_size=95, y_size=133, accumulate=0)
    np.testing.assert_allclose(y, a.transpose(0, 2, 1) @ b, rtol=1e-4, atol=1e-5)
    turned = np.full((2, 19, 5), np.nan, dtype)
    run("matmul.transpose", 2, 2, dtype, x=b.copy(), y=turned, count=1, per_sample=1, C=5, K=19)
    np.testing.assert_array_equal(turned, b.transpose(0, 2, 1))
