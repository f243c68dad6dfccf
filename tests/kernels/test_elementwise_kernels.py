"""Addition, its broadcast gradient, accumulation and dropout as compiled, against plain loops in float64."""
import itertools
import math

import numpy as np
import pytest

from microcnn import arena
from tests.rows import run

EVERYTHING = {"low": -math.inf, "high": math.inf}
TOLERANCE = {"float32": 1e-6, "float64": 1e-14}
DTYPES = pytest.mark.parametrize("dtype", ["float32", "float64"])

# dims of one sample; which axes (batch first) the operand has, the others repeat it
BROADCASTS = [
    ((1, 1, 2, 3, 17), "010001"),   # one number per channel
    ((1, 1, 2, 3, 17), "100001"),   # one number per sample and channel
    ((1, 1, 1, 5, 33), "100010"),   # one number per pixel
    ((1, 1, 4, 3, 5), "011111"),    # a weight of the sample's shape
    ((2, 3, 2, 3, 3), "110101"),
    ((2, 3, 2, 3, 2), "001010"),
    ((1, 1, 1, 1, 1), "100000"),
    ((3, 1, 2, 1, 40), "000000"),   # one number for everything
    ((1, 1, 1, 1, 9001), "100001"),  # a row longer than a chunk
]


def strides_of(dims, has):
    """Contiguous strides of the operand, 0 along the axes that repeat it, and its size per sample."""
    strides, size = [0] * 6, 1
    for axis in range(5, 0, -1):
        if has[axis] == "1":
            strides[axis] = size
            size *= dims[axis - 1]
    strides[0] = size if has[0] == "1" else 0
    return strides, size


def names(prefix, strides):
    return {f"{prefix}_batch": strides[0], **{f"{prefix}{i}": stride for i, stride in enumerate(strides[1:])}}


def dims_fields(dims):
    return {f"d{i}": size for i, size in enumerate(dims)}


def offsets_of(batch, dims, strides):
    """The element offset of the operand's number for every number of y, in y's order."""
    return np.array([sum(i * s for i, s in zip(index, strides, strict=True))
                     for index in itertools.product(*map(range, (batch, *dims)))])


@DTYPES
@pytest.mark.parametrize("size, batch", [(1, 1), (5, 3), (17, 2), (33, 1), (64, 3)])
def test_add(size, batch, dtype):
    a, b = np.random.default_rng(size).normal(size=(2, size * batch)).astype(dtype)
    y = np.full_like(a, np.nan)
    run("elementwise.combine", batch, kind=0, dtype=dtype, a=a, b=b, y=y, size=size, **EVERYTHING)
    np.testing.assert_array_equal(y, a + b)
    for alias in ("a", "b"):
        left, right = a.copy(), b.copy()
        run("elementwise.combine", batch, kind=0, dtype=dtype, a=left, b=right, y=alias, size=size, low=0.0, high=0.5)
        np.testing.assert_array_equal(left if alias == "a" else right, np.clip(a + b, 0, np.array(0.5, dtype)))


@DTYPES
def test_add_keeps_nan(dtype):
    a = np.array([np.nan, 1, -1, 9], dtype)
    y = np.zeros_like(a)
    run("elementwise.combine", 1, kind=0, dtype=dtype, a=a, b=np.zeros_like(a), y=y, size=4, low=0.0, high=6.0)
    np.testing.assert_array_equal(y, np.array([np.nan, 1, 0, 6], dtype))


@DTYPES
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("dims, has", BROADCASTS)
def test_add_broadcast(dims, has, batch, dtype):
    rng = np.random.default_rng(0)
    full, size = strides_of(dims, "111111")
    strides, part = strides_of(dims, has)
    a = rng.normal(size=batch * size).astype(dtype)
    b = rng.normal(size=part * (batch if strides[0] else 1)).astype(dtype)
    expected = np.maximum(a + b[offsets_of(batch, dims, strides)], 0)
    y = np.full_like(a, np.nan)
    fields = {**dims_fields(dims), "low": 0.0, "high": math.inf}
    run("elementwise.combine_broadcast", batch, kind=0, dtype=dtype, a=a, b=b, y=y, **names("a", full), **names("b", strides),
        **fields)
    np.testing.assert_array_equal(y, expected)
    y[...] = np.nan
    run("elementwise.combine_broadcast", batch, kind=0, dtype=dtype, a=b, b=a, y=y, **names("a", strides), **names("b", full),
        **fields)
    np.testing.assert_array_equal(y, expected)


def test_add_broadcast_of_both_operands_and_of_spread_rows():
    dims, batch = (1, 2, 3, 4, 7), 2
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=batch * 7), rng.normal(size=3 * 4 * 7)
    a_strides = [7, 0, 0, 0, 0, 1]
    b_strides = [0, 0, 0, 1, 3, 12]   # laid out the other way round
    y = np.full(batch * 2 * 3 * 4 * 7, np.nan)
    run("elementwise.combine_broadcast", batch, kind=0, dtype="float64", a=a, b=b, y=y, **dims_fields(dims),
        **names("a", a_strides), **names("b", b_strides), **EVERYTHING)
    np.testing.assert_array_equal(y, a[offsets_of(batch, dims, a_strides)] + b[offsets_of(batch, dims, b_strides)])


def reduce(dy, dx, batch, dims, strides, size, accumulate, dtype, threads=1):
    run("elementwise_gradient.reduce_broadcast", batch, threads=threads, dtype=dtype, dy=dy, a=None, b=None, dx=dx,
        kind=0, second=0, **names("a", [0] * 6), **names("b", [0] * 6), **dims_fields(dims), batch_stride=strides[0],
        **{f"s{i}": stride for i, stride in enumerate(strides[1:])}, size=size, accumulate=accumulate)


@DTYPES
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("dims, has", [*BROADCASTS, ((1, 1, 1, 400, 3), "010001"), ((1, 1, 1, 3, 700), "100010")])
def test_reduce_broadcast(dims, has, batch, dtype):
    rng = np.random.default_rng(0)
    strides, size = strides_of(dims, has)
    dy = rng.normal(size=batch * math.prod(dims)).astype(dtype)
    expected = np.zeros(size * (batch if strides[0] else 1))
    for offset, value in zip(offsets_of(batch, dims, strides), dy, strict=True):
        expected[offset] += value
    tolerance = TOLERANCE[dtype] * 10
    dx = np.full(expected.size, np.nan, dtype)
    reduce(dy, dx, batch, dims, strides, size, 0, dtype)
    np.testing.assert_allclose(dx, expected, rtol=tolerance, atol=tolerance)
    before = rng.normal(size=expected.size).astype(dtype)
    dx = before.copy()
    reduce(dy, dx, batch, dims, strides, size, 1, dtype)
    np.testing.assert_allclose(dx, expected + before, rtol=tolerance, atol=tolerance)


def test_reduce_broadcast_to_spread_rows():
    dims, strides = (1, 2, 3, 4, 7), [0, 0, 0, 1, 3, 12]
    dy = np.random.default_rng(0).normal(size=2 * math.prod(dims))
    expected = np.zeros(84)
    np.add.at(expected, offsets_of(2, dims, strides), dy)
    dx = np.full(84, np.nan)
    reduce(dy, dx, 2, dims, strides, 84, 0, "float64")
    np.testing.assert_allclose(dx, expected, rtol=1e-14, atol=1e-14)


def test_long_sums_keep_their_digits():
    dims, strides = (1, 1, 1, 200_000, 2), [0, 0, 0, 0, 0, 1]
    dy = np.random.default_rng(0).random(400_000).astype(np.float32)
    dx = np.full(2, np.nan, np.float32)
    reduce(dy, dx, 1, dims, strides, 2, 0, "float32")
    np.testing.assert_allclose(dx, dy.reshape(-1, 2).astype(np.float64).sum(0), rtol=6e-7)


@DTYPES
def test_accumulate(dtype):
    x, y = np.random.default_rng(0).normal(size=(2, 51)).astype(dtype)
    x[3] = np.nan
    expected = x + y
    run("elementwise.accumulate", 3, dtype=dtype, x=x, y=y, size=17)
    np.testing.assert_array_equal(y, expected)


def plain_uniform(seed, step, layer, index):
    """The generator in Python's integers: splitmix64's mix of a keyed counter, its highest 52 bits."""
    every = (1 << 64) - 1
    golden = 0x9E3779B97F4A7C15

    def mix(state):
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & every
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & every
        return state ^ (state >> 31)
    key = mix((seed + golden) & every)
    key = mix(((key ^ step) + golden) & every)
    key = mix(((key ^ layer) + golden) & every)
    return (mix((key + index * golden) & every) >> 12) / 2**52


@DTYPES
@pytest.mark.parametrize("size, batch", [(1, 1), (5, 3), (17, 2), (100, 3)])
def test_dropout(size, batch, dtype):
    seed, step, layer, p = 123456789, 7, 3, 0.4
    x = np.random.default_rng(0).normal(size=size * batch).astype(dtype)
    control = {arena.SEED: seed, arena.STEP: step}
    keep = np.array([plain_uniform(seed, step, layer, i) >= p for i in range(x.size)])
    expected = np.where(keep, x / (1 - p), 0)
    y = np.full_like(x, np.nan)
    run("dropout.forward", batch, dtype=dtype, control=control, x=x, y=y, size=size, p=p, layer=layer)
    np.testing.assert_allclose(y, expected, rtol=TOLERANCE[dtype])
    in_place = x.copy()
    run("dropout.forward", batch, dtype=dtype, control=control, x=in_place, y="x", size=size, p=p,
        layer=layer)
    np.testing.assert_array_equal(in_place, y)
    dx = x.copy()
    run("dropout.backward", batch, dtype=dtype, control=control, dy=x, dx=dx, size=size, p=p, layer=layer,
        accumulate=1)
    np.testing.assert_allclose(dx, x + expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("p, expected", [(0.0, 1.0), (1.0, 0.0)])
def test_dropout_of_nothing_and_of_everything(p, expected):
    y = np.full(50, np.nan, np.float32)
    run("dropout.forward", 1, x=np.ones(50, np.float32), y=y, size=50, p=p, layer=0)
    np.testing.assert_array_equal(y, expected)


def test_dropout_masks_are_independent():
    size, masks = 40_000, []
    for seed, step, layer in [(1, 1, 0), (2, 1, 0), (1, 2, 0), (1, 1, 1)]:
        y = np.full(size, np.nan, np.float32)
        run("dropout.forward", 1, control={arena.SEED: seed, arena.STEP: step},
            x=np.ones(size, np.float32), y=y, size=size, p=0.3, layer=layer)
        masks.append(y != 0)
        # five standard deviations of the mean
        assert abs(masks[-1].mean() - 0.7) < 5 * math.sqrt(0.21 / size)
    assert np.abs(np.corrcoef(masks) - np.eye(4)).max() < 5 / math.sqrt(size)
    assert abs(np.corrcoef(masks[0][1:], masks[0][:-1])[0, 1]) < 5 / math.sqrt(size)


def test_threads_do_not_change_a_bit():
    rng = np.random.default_rng(1)
    dims, batch = (1, 1, 40, 50, 33), 2
    full, size = strides_of(dims, "111111")
    strides, part = strides_of(dims, "000001")
    a, dy = rng.normal(size=(2, batch * size)).astype(np.float32)
    b = rng.normal(size=part).astype(np.float32)
    results = []
    for threads in (1, 2):
        outputs = [np.full_like(a, np.nan) for _ in range(4)] + [np.full_like(b, np.nan)]
        run("elementwise.combine", batch, kind=0, threads=threads, a=a, b=dy, y=outputs[0], size=size, **EVERYTHING)
        run("elementwise.combine_broadcast", batch, kind=0, threads=threads, a=a, b=b, y=outputs[1], **dims_fields(dims),
            **names("a", full), **names("b", strides), **EVERYTHING)
        run("dropout.forward", batch, threads=threads, x=a, y=outputs[2], size=size, p=0.5, layer=1)
        run("dropout.backward", batch, threads=threads, dy=a, dx=outputs[3], size=size, p=0.5, layer=1,
            accumulate=0)
        reduce(dy, outputs[4], batch, dims, strides, part, 0, "float32", threads)
        results.append(np.concatenate(outputs))
    assert np.isfinite(results[0]).all()
    np.testing.assert_array_equal(results[0], results[1])


@DTYPES
@pytest.mark.parametrize("dims, has", [((1, 1, 2, 3, 17), "010001"), ((1, 1, 1, 5, 33), "100010"), ((2, 1, 3, 1, 5), "111111")])
def test_gradients_of_a_quotient(dims, has, dtype):
    """Tails hold zeros divided by zeros, which no sum may see."""
    rng, batch = np.random.default_rng(0), 2
    full, size = strides_of(dims, "111111")
    strides, part = strides_of(dims, has)
    a, dy = rng.normal(size=(2, batch * size)).astype(dtype)
    b = rng.uniform(1, 2, part * (batch if strides[0] else 1)).astype(dtype)
    seen = offsets_of(batch, dims, strides)
    fields = {"kind": 3, "accumulate": 0, **dims_fields(dims), **names("a", full), **names("b", strides)}
    dx = np.full_like(a, np.nan)
    run("elementwise_gradient.gradient", batch, dtype=dtype, dy=dy, a=None, b=b, dx=dx, second=0, **fields)
    np.testing.assert_allclose(dx, dy / b[seen], rtol=TOLERANCE[dtype])
    expected = np.zeros(b.size)
    np.add.at(expected, seen, -dy.astype(np.float64) * a / b[seen].astype(np.float64) ** 2)
    dx = np.full_like(b, np.nan)
    run("elementwise_gradient.reduce_broadcast", batch, dtype=dtype, dy=dy, a=a, b=b, dx=dx, second=1, size=part,
        batch_stride=strides[0], **{f"s{i}": stride for i, stride in enumerate(strides[1:])}, **fields)
    np.testing.assert_allclose(dx, expected, rtol=TOLERANCE[dtype] * 10, atol=TOLERANCE[dtype] * 10)
