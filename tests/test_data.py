"""Data sets: files, shapes, normalisation, splits, order, and what is refused."""
import numpy as np
import pytest

from microcnn.data import Dataset, load_npz
from microcnn.errors import DataError, FileError
from microcnn.losses import CrossEntropyLoss, MSELoss
from microcnn.normalize import Normalization, parse_numbers


def images(count=10, shape=(4, 5), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def saved(tmp_path, **arrays):
    path = tmp_path / "data.npz"
    np.savez(path, **arrays)
    return path


def test_a_file_of_x_and_y(tmp_path):
    x, y = images(), np.arange(10)
    parts = load_npz(saved(tmp_path, x=x, y=y))
    assert parts.test is None and parts.to_evaluate is parts.train
    assert len(parts.train) == 10 and parts.train.name == "data.npz"
    np.testing.assert_array_equal(parts.train.x, x)
    assert parts.train.x.dtype == np.uint8
    np.testing.assert_array_equal(parts.train.targets, y)


def test_a_file_of_four_arrays(tmp_path):
    x, y = images(), np.arange(10)
    parts = load_npz(saved(tmp_path, x_train=x, y_train=y, x_test=x[:3], y_test=y[:3], names=np.array(["a"])))
    assert len(parts.train) == 10 and len(parts.test) == 3 and parts.to_evaluate is parts.test
    assert parts.test.name == "data.npz (test)"
    assert load_npz(saved(tmp_path, x_test=x, y_test=y)).train is None


def test_a_file_without_targets(tmp_path):
    path = saved(tmp_path, x=images())
    assert load_npz(path, targets=False).train.targets is None
    with pytest.raises(DataError, match="data.npz holds x but no y; add the targets"):
        load_npz(path)


def test_unreadable_files(tmp_path):
    with pytest.raises(FileError, match="missing.npz: no such file"):
        load_npz(tmp_path / "missing.npz")
    text = tmp_path / "text.npz"
    text.write_text("x,y\n1,2\n")
    with pytest.raises(FileError, match=r"is no .npz file; write it with np.savez"):
        load_npz(text)
    single = tmp_path / "single.npy"
    np.save(single, images())
    with pytest.raises(FileError, match=r"is no .npz file"):
        load_npz(single)
    with pytest.raises(FileError, match="cannot be read: Is a directory; expected an .npz file$"):
        load_npz(tmp_path)
    for content in (b"PK", b"PKhello"):
        text.write_bytes(content)
        with pytest.raises(FileError, match=r"is no .npz file; write it"):
            load_npz(text)


def test_truncated_files_at_every_cut(tmp_path):
    path = saved(tmp_path, x=images(), y=np.arange(10))
    whole = path.read_bytes()
    for cut in range(0, len(whole), 37):
        path.write_bytes(whole[:cut])
        with pytest.raises(FileError, match="is no .npz file|may be truncated"):
            load_npz(path)


def test_damaged_contents(tmp_path):
    path = saved(tmp_path, x=images(), y=np.arange(10))
    damaged = bytearray(path.read_bytes())
    at = damaged.index(b"NUMPY")
    damaged[at:at + 200] = bytes(200)
    path.write_bytes(damaged)
    with pytest.raises(FileError, match="may be truncated or damaged"):
        load_npz(path)


def test_pickled_objects_are_never_loaded(tmp_path):
    path = saved(tmp_path, x=np.array([[1], [2, 3]], object), y=np.arange(2))
    with pytest.raises(DataError, match="x holds Python objects, no numbers"):
        load_npz(path)


def test_files_with_other_names(tmp_path):
    with pytest.raises(DataError, match="holds none of the arrays looked for; expected x and y, or x_train"):
        load_npz(saved(tmp_path, data=images(), target=np.arange(10)))
    with pytest.raises(DataError, match="data.npz holds x, x_train; expected x and y, or x_train"):
        load_npz(saved(tmp_path, x=images(), x_train=images()))


@pytest.mark.parametrize(("x", "y", "text"), [
    (np.zeros((0, 4, 4)), None, r"data: x is empty \(shape \(0, 4, 4\)\); expected at least one sample"),
    (np.zeros((3, 0, 4)), None, "data: x is empty"),
    (np.zeros((3, 4), complex), None, "x has dtype complex128; expected integers"),
    (np.array(["a", "b"]), None, "x has dtype <U1"),
    ([[1, 2], [3]], None, "x is no regular array"),
    (np.zeros(5), None, r"x has shape \(5,\); expected \(samples, ...\), one more axis"),
    (np.zeros((3, 4)), np.zeros(4, int), "x has 3 samples, y has 4; give one target per sample"),
    (np.zeros((3, 4)), np.zeros(0, int), "y is empty"),
    (np.zeros((3, 4)), np.array([0.0, np.nan, 1.0]), "y holds a NaN or an infinity, first in sample 1"),
])
def test_arrays_that_are_refused(x, y, text):
    with pytest.raises(DataError, match=text):
        Dataset(x, y)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_is_found_wherever_it_stands(value):
    x = np.zeros((50, 300, 300), np.float32)
    x[37, 5, 6] = value
    with pytest.raises(DataError, match="x holds a NaN or an infinity, first in sample 37"):
        Dataset(x)


@pytest.mark.parametrize(("stored", "wanted", "fitting"), [
    ((4, 5), (1, 4, 5), (1, 4, 5)),
    ((4, 5), (4, 5, 1), (4, 5, 1)),
    ((4, 5), (4, 1, 5), (4, 1, 5)),
    ((4, 5), (1, None, None), (1, 4, 5)),
    ((3, 4, 5), (3, 4, 5), (3, 4, 5)),
    ((3, 4, 5), (None, None, None), (3, 4, 5)),
])
def test_a_missing_axis_is_added(stored, wanted, fitting):
    x = images(shape=stored)
    matched = Dataset(x, np.arange(10)).matched(wanted)
    assert matched.sample_shape == fitting
    assert np.shares_memory(matched.x, x)
    np.testing.assert_array_equal(matched.x.reshape(x.shape), x)


@pytest.mark.parametrize(("stored", "wanted", "text"), [
    ((4, 5), (1, 5, 4), r"samples have shape \(4, 5\), but the model's input \"image\" takes \(1, 5, 4\)$"),
    ((4, 5), (3, None, None), r"takes \(3, \?, \?\)$"),
    ((4, 5, 3), (3, 4, 5), r"move the channels: x.transpose\(0, 3, 1, 2\)$"),
    ((3, 4, 5), (4, 5, 3), r"move the channels: x.transpose\(0, 2, 3, 1\)$"),
    ((20,), (1, 4, 5), r"takes \(1, 4, 5\)$"),
])
def test_samples_that_do_not_fit(stored, wanted, text):
    with pytest.raises(DataError, match=text):
        Dataset(images(shape=stored)).matched(wanted, input_name="image")


def test_class_numbers():
    x = images()
    for dtype in (np.uint8, np.int8, np.int32, np.int64, np.uint64):
        y = np.arange(10).astype(dtype)
        assert Dataset(x, y).matched((1, 4, 5), (10,), CrossEntropyLoss()).targets.dtype == dtype
    assert Dataset(x, np.arange(10)[:, None]).matched((1, 4, 5), (10,), CrossEntropyLoss()).targets.shape == (10,)
    ignored = np.array([-100, *range(9)])
    assert Dataset(x, ignored).matched((1, 4, 5), (10,), CrossEntropyLoss()).targets[0] == -100
    per_pixel = np.zeros((10, 4, 5), int)
    for output in ((3, 4, 5), (4, 5, 3)):
        assert Dataset(x, per_pixel).matched((1, 4, 5), output, CrossEntropyLoss()).targets.shape == (10, 4, 5)
    shares = np.full((10, 3), 1 / 3)
    assert Dataset(x, shares).matched((1, 4, 5), (3,), CrossEntropyLoss()).targets.shape == (10, 3)


def test_other_targets():
    x = images()
    values = np.linspace(0, 1, 10)
    assert Dataset(x, values).matched((1, 4, 5), (1,), MSELoss()).targets.shape == (10, 1)
    assert Dataset(x, x).matched((1, 4, 5), (1, 4, 5), MSELoss()).targets.shape == (10, 1, 4, 5)


@pytest.mark.parametrize(("y", "output", "loss", "text"), [
    (np.array([*range(9), 12]), (10,), CrossEntropyLoss(),
     r"label 12 \(sample 9\) is out of range; the model has 10 classes, so labels run from 0 to 9$"),
    (np.arange(10) + 1, (10,), CrossEntropyLoss(), "count from 1: use y - 1"),
    (np.array([-1, *range(9)]), (10,), CrossEntropyLoss(), r"label -1 \(sample 0\) is out of range"),
    (np.array([-100, *range(9)]), (10,), None, r"label -100 \(sample 0\) is out of range"),
    (np.full((10, 4, 5), 3), (3, 4, 5), CrossEntropyLoss(), r"label 3 \(sample 0\) is out of range; the model has 3"),
    (np.zeros((10, 2), int), (10,), CrossEntropyLoss(), r"y has shape \(10, 2\); expected class numbers of shape"),
    (np.arange(10.0), (10,), CrossEntropyLoss(), r"class numbers are integers: y.astype\(np.int64\)"),
    (np.zeros((10, 3)), (10,), MSELoss(), r"dtype float64 and shape \(10, 3\); expected \(10, 10\), as the model"),
    (np.zeros((10, 3), int), (10,), MSELoss(), r"y has dtype int64 and shape \(10, 3\); expected \(10, 10\)"),
])
def test_targets_that_do_not_fit(y, output, loss, text):
    with pytest.raises(DataError, match=text):
        Dataset(images(), y).matched((1, 4, 5), output, loss)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(3, 4, 5), (4, 5, 3)])
def test_normalisation(shape, dtype):
    x = images(shape=shape)
    normalization = Normalization(1 / 255, (0.5, 0.4, 0.3), (0.1, 0.2, 0.3))
    spread = (3, 1, 1) if shape[0] == 3 else (3,)
    expected = (x / 255 - np.reshape([0.5, 0.4, 0.3], spread)) / np.reshape([0.1, 0.2, 0.3], spread)
    made = [batch.copy() for batch, _ in Dataset(x, normalization=normalization).batches(4, dtype=dtype)]
    assert [len(batch) for batch in made] == [4, 4, 2] and made[0].dtype == dtype
    np.testing.assert_allclose(np.concatenate(made), expected, rtol=1e-5, atol=2e-6 if dtype == "float32" else 1e-12)
    with pytest.raises(DataError, match="normalisation has 2 numbers per channel, but samples of shape"):
        next(Dataset(x, normalization=Normalization(mean=(1, 2))).batches(4))


def test_nothing_is_done_by_default():
    x = images()
    for stored in (x, x.astype(np.int16) - 100, x.astype(np.float16), x > 100):
        np.testing.assert_array_equal(next(Dataset(stored).batches(10))[0], stored.astype(np.float32))
    assert Normalization().factors((4, 5)) is None


def test_normalisation_is_stored_as_json_can_hold_it():
    normalization = Normalization(np.float32(0.5), [1, 2, 3], None)
    assert normalization.to_meta() == {"scale": 0.5, "mean": [1.0, 2.0, 3.0]}
    assert Normalization.from_meta({"labels": ["a"], **normalization.to_meta()}) == normalization
    assert Normalization.from_meta({}) == Normalization()


@pytest.mark.parametrize(("values", "text"), [
    ({"std": 0}, "normalisation: std is 0; expected a finite number other than 0"),
    ({"scale": [1, 0]}, r"scale is \[1, 0\]; expected a finite number other than 0, or one per channel"),
    ({"mean": np.nan}, "mean is nan; expected a finite number, or"),
    ({"mean": "dark"}, "mean is 'dark'"),
    ({"mean": [1, 2], "std": [1, 2, 3]}, "numbers per channel differ in length"),
])
def test_normalisation_that_makes_no_sense(values, text):
    with pytest.raises(DataError, match=text):
        Normalization(**values)


def test_numbers_as_people_type_them():
    assert parse_numbers("0.5") == 0.5 and parse_numbers("1/255") == 1 / 255 and parse_numbers("2.5e-3") == 2.5e-3
    assert parse_numbers("0.485, 0.456,0.406") == (0.485, 0.456, 0.406)
    for text in ("", "half", "1/0", "1,,2"):
        with pytest.raises(DataError, match="is no number; expected one such as 0.5 or 1/255"):
            parse_numbers(text)


def test_memory_of_batches_stays_small():
    import tracemalloc
    data = Dataset(images(2000, (32, 32)), np.zeros(2000, np.uint8), Normalization(1 / 255))
    order = data.order(0, 1)
    tracemalloc.start()
    try:
        for _ in data.batches(16, order):
            pass
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * 16 * 32 * 32 * 4


def test_order_depends_on_seed_and_epoch_only():
    data = Dataset(images(100))
    orders = [data.order(seed, epoch).tolist() for seed, epoch in ((0, 1), (0, 2), (1, 1), (0, 1))]
    assert orders[0] == orders[3] and len({tuple(order) for order in orders}) == 3
    assert all(sorted(order) == list(range(100)) for order in orders)


def test_batches_follow_the_order():
    y = np.arange(10)
    data = Dataset(np.repeat(y[:, None], 3, 1), y)
    for part in (data, data.subset(np.array([1, 4, 7, 8]))):
        seen = []
        for x, t in part.batches(3, part.order(0, 1)):
            np.testing.assert_array_equal(x[:, 0], t)
            seen += t.tolist()
        assert sorted(seen) == part.targets.tolist() and seen != sorted(seen)


def test_split_is_disjoint_complete_and_the_same_for_a_seed():
    data = Dataset(np.arange(50)[:, None], np.arange(50))
    train, validation = data.split(0.2, seed=3)
    assert (len(train), len(validation)) == (40, 10)
    assert sorted([*train.targets, *validation.targets]) == list(range(50))
    assert data.split(0.2, seed=3)[1].targets.tolist() == validation.targets.tolist()
    assert data.split(0.2, seed=4)[1].targets.tolist() != validation.targets.tolist()
    again = train.split(0.5)[0]
    assert set(again.targets) <= set(train.targets)
    assert [len(part) for part in Dataset(np.zeros((2, 1))).split(0.01)] == [1, 1]
    matched = train.matched((1,), (50,), CrossEntropyLoss())
    assert matched.targets.tolist() == train.targets.tolist()


def test_splits_that_make_no_sense():
    for part in (0, 1, -0.1, 2):
        with pytest.raises(DataError, match="expected a part of the data between 0 and 1"):
            Dataset(images()).split(part)
    with pytest.raises(DataError, match="1 sample cannot be split"):
        Dataset(images(1)).split()


def pairs(count=6, shape=(2, 3)):
    rng = np.random.default_rng(0)
    return [(rng.integers(0, 255, shape).astype(np.uint8), int(label)) for label in rng.integers(0, 3, count)]


def test_samples_of_any_iterable():
    samples = pairs()
    for source in (samples, tuple(samples), iter(samples), (item for item in samples)):
        data = Dataset.collect(source)
        assert data.x.dtype == np.uint8 and data.x.shape == (6, 2, 3)
        assert data.y.tolist() == [label for _, label in samples]


def test_batches_of_any_iterable():
    x, y = np.arange(42, dtype=np.float32).reshape(7, 2, 3), np.arange(7)
    data = Dataset.collect((x[i:i + 3], y[i:i + 3]) for i in range(0, 7, 3))
    np.testing.assert_array_equal(data.x, x)
    np.testing.assert_array_equal(data.y, y)
    alone = Dataset.collect((x[i:i + 3] for i in range(0, 7, 3)), batched=True)
    np.testing.assert_array_equal(alone.x, x)
    assert alone.y is None
    pictures = Dataset.collect([(row, row * 2) for row in x], batched=False)
    np.testing.assert_array_equal(pictures.y, x * 2)


@pytest.mark.parametrize("source, message", [
    (3, "int is no iterable of samples"), ("folder", "str is no iterable"), ({"x": 1}, "dict is no iterable"),
    ([], "the iterable gave nothing"), ([(np.zeros(3), 1, 2)], "item 0 has 3 parts"),
    ([(np.zeros((2, 3)), 0), (np.zeros((3, 2)), 1)], r"x comes in different shapes, \(2, 3\), \(3, 2\)"),
    ([(np.zeros((2, 3)), 0), np.zeros((2, 3))], "1 of 2 items have targets"),
    ([([[1, 2], [3]], 0)], "item 0 is no array of numbers"), ([None], "item 0 has no x"), ([(None, 1)], "item 0 has no x"),
    (np.array(3), "the iterable gave nothing"),
    ([(np.zeros((4, 3)), np.zeros(4)), (np.zeros((2, 3)), np.zeros(3))], r"item 1 holds x \(2, 3\) and y \(3,\)"),
    ([("a", 0), ("b", 1)], "x has dtype")])
def test_iterables_that_are_no_data(source, message):
    with pytest.raises(DataError, match=message):
        Dataset.collect(source)


def test_batches_that_are_none():
    for item in ((1, 2), (np.zeros((4, 3)), 2), (np.zeros((4, 3)), np.zeros(3))):
        with pytest.raises(DataError, match="item 0 holds x .*; expected a batch, one target for each"):
            Dataset.collect([item], batched=True)
    with pytest.raises(DataError, match="normalization is 3; expected mc.Normalization"):
        Dataset(np.zeros((2, 3)), normalization=3)
