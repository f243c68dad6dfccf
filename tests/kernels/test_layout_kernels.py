"""The layout kernels against numpy's transpose."""
import itertools

import numpy as np
import pytest

from microcnn import arena

from ..rows import run

SLOT = arena.FIRST_POINTER + 1


def _fields(shape, perm):
    """Sizes and strides with which a sample of `shape` is read so that its axes come in the order perm."""
    strides = [int(np.prod(shape[axis + 1:], dtype=int)) for axis in range(len(shape))]
    sizes = [1] * (5 - len(shape)) + [shape[axis] for axis in perm]
    steps = [0] * (5 - len(shape)) + [strides[axis] for axis in perm]
    return {f"d{i}": size for i, size in enumerate(sizes)} | {f"s{i}": step for i, step in enumerate(steps)}


def _expected(x, perm):
    return np.ascontiguousarray(x.transpose(0, *(axis + 1 for axis in perm)))


def _random(shape, dtype, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


CASES = [((3, 5, 7), perm) for perm in itertools.permutations(range(3))]
CASES += [((2, 3, 4, 5, 6), perm) for perm in itertools.permutations(range(5))][::7]
CASES += [((C, 9, 11), (1, 2, 0)) for C in (1, 5, 16, 17, 33, 70)]      # to channels last
CASES += [((9, 11, C), (2, 0, 1)) for C in (1, 5, 16, 17, 33, 70)]      # and back
CASES += [((70, 83), (1, 0)), ((20, 34, 18), (2, 1, 0)), ((5000,), (0,)), ((1, 1, 1), (2, 1, 0)),
          ((4, 1, 6), (2, 1, 0)), ((3, 70, 70), (1, 2, 0)), ((70, 70, 3), (2, 0, 1))]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape, perm", CASES)
def test_permute(shape, perm, dtype):
    for batch in 1, 3:
        x = _random((batch, *shape), dtype)
        y = np.full([batch, *(shape[axis] for axis in perm)], np.nan, dtype)
        run("layout.permute", batch, 1, dtype, x=x, y=y, **_fields(shape, perm))
        np.testing.assert_array_equal(y, _expected(x, perm))
        start = _random(y.shape, dtype, 1)
        total = start.copy()
        run("layout.accumulate_permute", batch, 1, dtype, x=x, y=total, **_fields(shape, perm))
        np.testing.assert_array_equal(total, start + y)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape, perm", [((C, 9, 11), (1, 2, 0)) for C in (1, 3, 8, 17, 70)] + [
    ((9, 11, 5), (0, 1, 2)), ((5000,), (0,)), ((3, 4, 5), (2, 1, 0))])
def test_input_reads_the_callers_array(shape, perm, dtype):
    for batch in 1, 2:
        x = _random((batch, *shape), dtype)
        y = np.full([batch, *(shape[axis] for axis in perm)], np.nan, dtype)
        run("layout.input", batch, 1, dtype, {SLOT: x}, y=y, slot=SLOT, **_fields(shape, perm))
        np.testing.assert_array_equal(y, _expected(x, perm))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape, perm", [((9, 11, C), (2, 0, 1)) for C in (1, 3, 8, 17, 70)] + [
    ((9, 11, 5), (0, 1, 2)), ((10,), (0,)), ((3, 4, 5), (2, 1, 0))])
def test_output_writes_the_callers_array(shape, perm, dtype):
    for batch in 1, 2:
        x = _random((batch, *shape), dtype)
        around = np.full(x.size + 16, 7, dtype)
        y = around[8:-8].reshape([batch, *(shape[axis] for axis in perm)])
        y[...] = np.nan
        run("layout.output", batch, 1, dtype, {SLOT: y}, x=x, slot=SLOT, **_fields(shape, perm))
        np.testing.assert_array_equal(y, _expected(x, perm))
        assert (around[:8] == 7).all() and (around[-8:] == 7).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", [1, 5, 17, 9000])
@pytest.mark.parametrize("per_sample", [0, 1])
def test_zero_and_copy(per_sample, size, dtype):
    count = size * (3 if per_sample else 1)
    y = np.full(count + 4, np.nan, dtype)
    run("layout.zero", 3, 1, dtype, y=y, size=size, per_sample=per_sample)
    assert (y[:count] == 0).all() and np.isnan(y[count:]).all()
    x = _random(count, dtype)
    run("layout.copy", 3, 1, dtype, x=x, y=y, size=size, per_sample=per_sample)
    np.testing.assert_array_equal(y[:count], x)
    assert np.isnan(y[count:]).all()


def test_two_threads_give_the_same_bits():
    shape, perm, batch = (33, 50, 61), (1, 2, 0), 3
    x = _random((batch, *shape), "float32")
    results = []
    for threads in 1, 2:
        outputs = [np.full((batch, 50, 61, 33), start, "float32") for start in (np.nan, 1, np.nan, np.nan, np.nan)]
        fields = _fields(shape, perm)
        run("layout.permute", batch, threads, x=x, y=outputs[0], **fields)
        run("layout.accumulate_permute", batch, threads, x=x, y=outputs[1], **fields)
        run("layout.input", batch, threads, control={SLOT: x}, y=outputs[2], slot=SLOT, **fields)
        run("layout.output", batch, threads, control={SLOT: outputs[3]}, x=x, slot=SLOT, **fields)
        run("layout.copy", batch, threads, x=x, y=outputs[4], size=x[0].size, per_sample=1)
        zeros = np.full(x.size, np.nan, "float32")
        run("layout.zero", batch, threads, y=zeros, size=x[0].size, per_sample=1)
        results.append([*outputs, zeros])
    for one, two in zip(*results, strict=True):
        assert one.tobytes() == two.tobytes()
    np.testing.assert_array_equal(results[0][0], _expected(x, perm))
