"""The movement kernels against numpy's slices and sums."""
import numpy as np
import pytest

from ..rows import run

DTYPES = ["float32", "float64"]


def numbers(shape, dtype, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def boxed(sizes, source, target):
    """The fields of a box: sizes and strides, ones in front."""
    missing = 5 - len(sizes)
    fields = {f"d{i}": n for i, n in enumerate((1,) * missing + tuple(sizes))}
    if source is not None:
        fields |= {f"s{i}": n for i, n in enumerate((0,) * missing + tuple(source))}
    return fields | {f"t{i}": n for i, n in enumerate((0,) * missing + tuple(target))}


def strides(shape):
    return tuple(int(np.prod(shape[axis + 1:], dtype=int)) for axis in range(len(shape)))


def part(shape, slices):
    """(offset, sizes, strides) of a part of an array."""
    ranges = [range(n)[one] for n, one in zip(shape, slices, strict=True)]
    steps = strides(shape)
    return (sum(r.start * s for r, s in zip(ranges, steps, strict=True)), tuple(len(r) for r in ranges),
            tuple(r.step * s for r, s in zip(ranges, steps, strict=True)))


BOXES = [
    ((9, 11, 17), (slice(None), slice(None), slice(3, 12)), (9, 11, 40), (slice(None), slice(None), slice(31, None))),
    ((9, 11, 5), (slice(1, 8, 2), slice(10, 0, -3), slice(None, None, -1)), (4, 4, 5), (slice(None),) * 3),
    ((4, 4, 5), (slice(None),) * 3, (9, 11, 12), (slice(1, 8, 2), slice(10, 0, -3), slice(11, 2, -2))),
    ((20, 33), (slice(None), slice(2, 31)), (25, 29), (slice(5, 25), slice(None))),
    ((70, 3, 66), (slice(5, 70), slice(1, 2), slice(None)), (65, 1, 70), (slice(None), slice(None), slice(2, 68))),
    ((9000,), (slice(100, 8000),), (10000,), (slice(2100, None),)),
    ((1,), (slice(None),), (3,), (slice(1, 2),)),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("box", BOXES, ids=lambda box: f"{box[0]}-{box[2]}")
def test_copy(box, dtype):
    from_shape, from_slices, to_shape, to_slices = box
    x_at, sizes, source = part(from_shape, from_slices)
    y_at, _, target = part(to_shape, to_slices)
    fields = boxed(sizes, source, target)
    for batch, threads in (1, 1), (3, 2):
        x, start = numbers((batch, *from_shape), dtype), numbers((batch, *to_shape), dtype, 1)
        for accumulate in 0, 1:
            y, expected = start.copy(), start.copy()
            moved = x[(slice(None), *from_slices)]
            expected[(slice(None), *to_slices)] = moved + accumulate * expected[(slice(None), *to_slices)]
            run("movement.copy", batch, threads, dtype, x=x, y=y, x_at=x_at, y_at=y_at, x_batch=x[0].size,
                y_batch=y[0].size, accumulate=accumulate, **fields)
            np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_copy_exchanges_and_repeats_axes(dtype):
    x = numbers((2, 33, 70), dtype)
    y = np.full((2, 70, 40), np.nan, dtype)
    run("movement.copy", 2, 1, dtype, x=x, y=y, x_at=0, y_at=5, x_batch=33 * 70, y_batch=70 * 40, accumulate=0,
        **boxed((70, 33), (1, 70), (40, 1)))
    np.testing.assert_array_equal(y[:, :, 5:38], x.transpose(0, 2, 1))
    assert np.isnan(y[:, :, :5]).all() and np.isnan(y[:, :, 38:]).all()
    x = numbers((2, 5), dtype)
    y = np.full((2, 5, 19), np.nan, dtype)
    for expected in x, 2 * x:
        run("movement.copy", 2, 1, dtype, x=x, y=y, x_at=0, y_at=0, x_batch=5, y_batch=5 * 19,
            accumulate=int(not np.isnan(y[0, 0, 0])), **boxed((5, 19), (1, 0), (19, 1)))
        np.testing.assert_array_equal(y, np.repeat(expected[:, :, None], 19, 2))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape, slices", [
    ((9, 11, 17), (slice(None), slice(2, 5), slice(None))), ((9, 11, 17), (slice(1, 2), slice(None), slice(3, 9))),
    ((9000,), (slice(3, 8000),)), ((3,), (slice(2, 3),))])
def test_fill(shape, slices, dtype):
    at, sizes, target = part(shape, slices)
    for batch, threads in (1, 1), (3, 2):
        y = numbers((batch, *shape), dtype)
        expected = y.copy()
        expected[(slice(None), *slices)] = -1.5
        run("movement.fill", batch, threads, dtype, y=y, y_at=at, y_batch=y[0].size, value=-1.5,
            **boxed(sizes, None, target))
        np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("inner", [1, 3, 4, 17, 33])
@pytest.mark.parametrize("table", [[[0], [2], [2], [4]], [[], [1, 3, 1], [0, 1, 2, 3, 4], []], [[4]]])
def test_gather(table, inner, dtype):
    order = np.array([i for rows in table for i in rows], np.int64)
    starts = np.cumsum([0, *(len(rows) for rows in table)]).astype(np.int64)
    for batch, threads in (1, 1), (2, 2):
        x = numbers((batch, 3, 5, inner), dtype)
        start = numbers((batch, 3, len(table), inner), dtype, 1)
        sums = np.stack([x[:, :, rows].sum(2, dtype="float64") for rows in table], 2)
        for accumulate in 0, 1:
            y = start.copy() if accumulate else np.full_like(start, np.nan)
            run("movement.gather", batch, threads, dtype, x=x, order=order, starts=starts, y=y, outer=3, size=5,
                count=len(table), inner=inner, entries=len(order), accumulate=accumulate)
            np.testing.assert_allclose(y, sums + accumulate * start, rtol=1e-5 if dtype == "float32" else 1e-13,
                                       atol=1e-5 if dtype == "float32" else 1e-13)


def test_two_threads_give_the_same_bits():
    x = numbers((3, 70, 66), "float32")
    order = np.tile(np.arange(70), 3)
    starts = np.arange(0, 211, 3)
    results = []
    for threads in 1, 2:
        copied, filled, gathered = (np.full((3, 70, 80), 7, "float32"), np.full((3, 70, 80), 7, "float32"),
                                    np.full((3, 70, 66), np.nan, "float32"))
        run("movement.copy", 3, threads, x=x, y=copied, x_at=0, y_at=9, x_batch=70 * 66, y_batch=70 * 80, accumulate=1,
            **boxed((70, 66), (66, 1), (80, 1)))
        run("movement.fill", 3, threads, y=filled, y_at=3, y_batch=70 * 80, value=2.0, **boxed((70, 70), None, (80, 1)))
        run("movement.gather", 3, threads, x=x, order=order, starts=starts, y=gathered, outer=1, size=70, count=70, inner=66,
            entries=210, accumulate=0)
        results.append([copied, filled, gathered])
    for one, two in zip(*results, strict=True):
        assert one.tobytes() == two.tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("per_sample", [0, 1])
@pytest.mark.parametrize("count, x_row, y_row", [(1, 5, 1), (8, 24, 8), (8, 8, 24), (17, 40, 33), (40, 40, 40)])
def test_columns(dtype, per_sample, count, x_row, y_row):
    """The first numbers of rows, of a sample or once; the rest of the target stays, for any number of threads."""
    rows, batch = 700, 3
    height = rows * (batch if per_sample else 1)
    x, before = numbers((height, x_row), dtype), numbers((height, y_row), dtype, 1)
    for accumulate in 0, 1:
        expected = before.copy()
        expected[:, :count] = x[:, :count] + (before[:, :count] if accumulate else 0)
        for threads in 1, 2:
            y = before.copy()
            run("movement.columns", batch, threads, dtype, x=x, y=y, rows=rows, per_sample=per_sample, columns=count,
                x_row=x_row, y_row=y_row, accumulate=accumulate)
            np.testing.assert_array_equal(y, expected)
