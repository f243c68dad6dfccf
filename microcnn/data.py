"""Data sets: samples and targets from .npz files or arrays, checked once, normalised batch by batch.

Samples stay as they are stored (a camera's uint8 takes a quarter of float32); only the batch at hand is converted.
"""
from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .errors import DataError, FileError
from .losses import CrossEntropyLoss, Loss
from .normalize import Normalization

CHECK_BYTES = 1 << 20   # how much is looked at in one go when all of a data set is checked


def shuffled(samples: int, seed: int, epoch: int) -> np.ndarray:
    """The numbers of so many samples in the order of an epoch, the same for the same seed and epoch."""
    return np.random.default_rng([seed, epoch]).permutation(samples)


class Dataset:
    """Samples, and targets where there are any.

    x               (N, ...) of any integer or float type, as stored
    y               (N,) class numbers, or (N, ...) of what the loss takes; None without
    normalization   applied to each batch
    name            for messages: the file's name

    Raises DataError where x is empty, has no sample axis, a dtype that is no number, a NaN or an infinity, or where y
    does not have as many rows as x.
    """

    def __init__(self, x: Any, y: Any = None, normalization: Normalization | None = None, name: str = "data"):
        if normalization is not None and not isinstance(normalization, Normalization):
            raise DataError(f"{name}: normalization is {normalization!r}; expected mc.Normalization(...) or None")
        self.name, self.normalization = name, normalization or Normalization()
        self.x = _checked(name, "x", x)
        self.y = None if y is None else _checked(name, "y", y)
        if self.x.ndim < 2:
            raise DataError(f"{name}: x has shape {self.x.shape}; expected (samples, ...), one more axis than a sample")
        if self.y is not None and len(self.y) != len(self.x):
            raise DataError(f"{name}: x has {len(self.x)} samples, y has {len(self.y)}; give one target per sample")
        self.rows: np.ndarray | None = None

    @classmethod
    def collect(cls, source: Iterable[Any], batched: bool | None = None, normalization: Normalization | None = None,
                name: str = "data") -> Dataset:
        """The samples that an iterable gives, gathered in memory as they are stored there.

        source   of pairs (x, y), one sample each or a batch, as a list, a generator or a PyTorch DataLoader gives them; of
                 arrays x alone where there are no targets
        batched  whether what it gives are batches; None: where y is an array of one axis or more whose length is that of x

        Raises DataError where it is no iterable, gives nothing, or samples of different shapes.
        """
        if isinstance(source, (str, bytes, Mapping)) or not isinstance(source, Iterable):
            raise DataError(f"{name}: {type(source).__name__} is no iterable of samples; give pairs (x, y), or a Dataset")
        xs, ys = [], []
        for number, item in enumerate(source if getattr(source, "ndim", 1) else ()):
            pair = isinstance(item, (tuple, list)) and len(item) == 2
            if isinstance(item, (tuple, list)) and not pair:
                raise DataError(f"{name}: item {number} has {len(item)} parts; expected (x, y), or x alone")
            x, y = (_part(name, number, part) for part in (item if pair else (item, None)))
            if x is None:
                raise DataError(f"{name}: item {number} has no x; expected (x, y), or x alone")
            if batched is None:
                batched = y is not None and y.ndim > 0 and x.ndim > 1 and len(y) == len(x)
            if batched and (x.ndim < 2 or (y is not None and (y.ndim < 1 or len(y) != len(x)))):
                shapes = f"x {x.shape}" + ("" if y is None else f" and y {y.shape}")
                raise DataError(f"{name}: item {number} holds {shapes}; expected a batch, one target for each of its samples")
            xs.append(x if batched else x[None])
            if y is not None:
                ys.append(y if batched else y[None])
        if not xs:
            raise DataError(f"{name}: the iterable gave nothing; an iterator that was used up cannot be used again: give a "
                            "list, or make a new one")
        if ys and len(ys) != len(xs):
            raise DataError(f"{name}: {len(ys)} of {len(xs)} items have targets; give all of them one, or none")
        return cls(_joined(name, "x", xs), _joined(name, "y", ys) if ys else None, normalization, name)

    def __len__(self) -> int:
        return len(self.x) if self.rows is None else len(self.rows)

    def __repr__(self) -> str:
        targets = "no targets" if self.y is None else f"targets {self.y.dtype} {self.y.shape[1:]}"
        return f"Dataset({self.name}: {len(self)} samples {self.x.dtype} {self.sample_shape}, {targets})"

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """The shape of one sample, as stored."""
        return self.x.shape[1:]

    @property
    def targets(self) -> np.ndarray | None:
        """The targets in this data set's order."""
        return self.y if self.y is None or self.rows is None else self.y[self.rows]

    def subset(self, rows: np.ndarray) -> Dataset:
        """These samples (numbers from 0) as a data set of their own; the arrays are shared."""
        part = self._with(self.x, self.y)
        part.rows = np.asarray(rows) if self.rows is None else self.rows[rows]
        if not len(part):
            raise DataError(f"{self.name}: a part of the data has no samples; give more data")
        return part

    def split(self, validation: float = 0.2, seed: int = 0) -> tuple[Dataset, Dataset]:
        """(training, validation) parts, drawn at random, the same for the same seed.

        Raises DataError where validation is not between 0 and 1, or there are fewer than two samples.
        """
        if not 0 < validation < 1:
            raise DataError(f"validation is {validation!r}; expected a part of the data between 0 and 1, such as 0.2")
        if len(self) < 2:
            raise DataError(f"{self.name}: 1 sample cannot be split into training and validation; give more data")
        order = np.random.default_rng(seed).permutation(len(self))
        count = min(max(1, round(len(self) * validation)), len(self) - 1)
        return self.subset(np.sort(order[count:])), self.subset(np.sort(order[:count]))

    def order(self, seed: int, epoch: int) -> np.ndarray:
        """The samples' numbers shuffled, the same for the same seed and epoch."""
        return shuffled(len(self), seed, epoch)

    def batches(self, batch: int, order: np.ndarray | None = None, dtype: Any = "float32"
                ) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        """Batches (x, y) of up to that many samples, x normalised and of this dtype, in the given order.

        x is the same buffer every time: use it before asking for the next one. Class numbers keep their integer type,
        other targets take the dtype.
        """
        buffer = np.empty((min(batch, len(self)), *self.sample_shape), dtype)
        factors = self.normalization.factors(self.sample_shape)
        if factors is not None:
            a, b = (np.asarray(factor, dtype) for factor in factors)
        for begin in range(0, len(self), batch):
            rows: Any = slice(begin, begin + batch)
            if order is not None:
                rows = order[rows]
            if self.rows is not None:
                rows = self.rows[rows]
            stored = self.x[rows]
            x = buffer[:len(stored)]
            np.copyto(x, stored, casting="unsafe")
            if factors is not None:
                np.multiply(x, a, out=x)
                np.add(x, b, out=x)
            y = None if self.y is None else self.y[rows]
            if y is not None and y.dtype.kind == "f":
                y = y.astype(dtype, copy=False)
            yield x, y

    def matched(self, input_shape: tuple[int | None, ...], output_shape: tuple[int, ...] | None = None,
                loss: Loss | None = None, input_name: str = "input") -> Dataset:
        """The same data in the shapes that a network takes; without output_shape and loss the targets are left alone.

        A missing axis of size 1 is added (grey images without a channel axis, one-number targets); None in input_shape
        takes any size. Raises DataError where the samples, the targets or the class numbers do not fit.
        """
        shape = self.sample_shape
        fitting = _add_axis(shape, input_shape)
        if fitting is None:
            said = "(" + ", ".join("?" if size is None else str(size) for size in input_shape) + ")"
            raise DataError(f'{self.name}: samples have shape {shape}, but the model\'s input "{input_name}" takes '
                            f"{said}{_transposition(shape, input_shape)}")
        y = self.y
        if y is not None and output_shape is not None:
            y = self._targets_for(y, tuple(output_shape), loss)
        result = self._with(self.x.reshape((len(self.x), *fitting)), y)
        result.rows = self.rows
        result.normalization.factors(fitting)
        return result

    def _with(self, x: np.ndarray, y: np.ndarray | None) -> Dataset:
        """The same data set with other arrays, which have been checked already."""
        result = object.__new__(Dataset)
        result.name, result.normalization, result.x, result.y, result.rows = self.name, self.normalization, x, y, None
        return result

    def _targets_for(self, y: np.ndarray, output_shape: tuple[int, ...], loss: Loss | None) -> np.ndarray:
        """y as the loss takes it; raises DataError."""
        if y.dtype.kind in "iu" and (loss is None or isinstance(loss, CrossEntropyLoss)):
            classes, shape = output_shape[0] if output_shape else 1, output_shape[1:]
            if y.shape[1:] == (1,) and classes > 1 and not shape:
                y = y[:, 0]
            if y.shape[1:] != shape and output_shape[:-1] == y.shape[1:]:
                classes, shape = output_shape[-1], output_shape[:-1]
            if y.shape[1:] == shape or (y.ndim == 1 and all(size == 1 for size in shape)):
                self._check_classes(y, classes, loss.ignore_index if isinstance(loss, CrossEntropyLoss) else None)
                return y
            raise DataError(f"{self.name}: y has shape {y.shape}; expected class numbers of shape "
                            f"{(len(y), *shape)} for an output of shape {output_shape} per sample")
        fitting = _add_axis(y.shape[1:], output_shape)
        if fitting is None:
            hint = ""
            if y.dtype.kind == "f" and y.ndim == 1 and isinstance(loss, CrossEntropyLoss):
                hint = "; class numbers are integers: y.astype(np.int64)"
            raise DataError(f"{self.name}: y has dtype {y.dtype} and shape {y.shape}; expected "
                            f"{(len(y), *output_shape)}, as the model's output{hint}")
        return y.reshape((len(y), *fitting))

    def _check_classes(self, y: np.ndarray, classes: int, ignored: int | None) -> None:
        """Raises DataError unless all class numbers are in range."""
        wrong = (y < 0) | (y >= classes)
        if ignored is not None:
            wrong &= y != ignored
        if not wrong.any():
            return
        where = tuple(int(i) for i in np.argwhere(wrong)[0])
        first, last = int(y.min()), int(y.max())
        hint = f"; they seem to count from {first}: use y - {first}" if 0 < first and last - first < classes else ""
        raise DataError(f"{self.name}: label {y[where]} (sample {where[0]}) is out of range; the model has {classes} "
                        f"classes, so labels run from 0 to {classes - 1}{hint}")


def _part(owner: str, number: int, part: Any) -> Any:
    """An item's x or y as an array; None stays. Raises DataError."""
    if part is None:
        return None
    try:
        return np.asarray(part)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{owner}: item {number} is no array of numbers: {error}") from None


def _joined(owner: str, name: str, parts: list[np.ndarray]) -> np.ndarray:
    """Batches put together. Raises DataError where their samples differ in shape."""
    shapes = {part.shape[1:] for part in parts}
    if len(shapes) > 1:
        raise DataError(f"{owner}: {name} comes in different shapes, {', '.join(map(str, sorted(shapes)))}; give all samples "
                        "the same")
    return np.concatenate(parts)


def _checked(owner: str, name: str, values: Any) -> np.ndarray:
    """values as an array with at least one row and numbers only; raises DataError."""
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise DataError(f"{owner}: {name} is no regular array ({error}); give all samples the same shape") from None
    if array.dtype.kind == "b":
        array = array.view(np.uint8)
    if array.dtype.kind not in "iuf":
        raise DataError(f"{owner}: {name} has dtype {array.dtype}; expected integers (uint8 for images) or floats")
    if not array.ndim or not array.size:
        raise DataError(f"{owner}: {name} is empty (shape {array.shape}); expected at least one sample")
    if array.dtype.kind == "f":
        rows = max(1, CHECK_BYTES // max(1, array[0].nbytes))
        for begin in range(0, len(array), rows):
            finite = np.isfinite(array[begin:begin + rows])
            if not finite.all():
                first = begin + int(np.argwhere(~finite)[0][0])
                raise DataError(f"{owner}: {name} holds a NaN or an infinity, first in sample {first}; remove or "
                                "repair such samples")
    return array


def _add_axis(shape: tuple[int, ...], wanted: tuple[int | None, ...]) -> tuple[int, ...] | None:
    """shape, with one axis of size 1 added where that makes it fit; None where nothing does."""
    for candidate in (shape, *((*shape[:axis], 1, *shape[axis:]) for axis in range(len(shape) + 1))):
        if len(candidate) == len(wanted) and all(want in (None, size)
                                                 for size, want in zip(candidate, wanted, strict=True)):
            return candidate
    return None


def _transposition(shape: tuple[int, ...], wanted: tuple[int | None, ...]) -> str:
    """The end of a message where moving the channels would make samples fit."""
    if len(shape) == 3:
        for moved, call in (((2, 0, 1), "x.transpose(0, 3, 1, 2)"), ((1, 2, 0), "x.transpose(0, 2, 3, 1)")):
            if _add_axis(tuple(shape[i] for i in moved), wanted) is not None:
                return f"; move the channels: {call}"
    return ""


@dataclass
class Parts:
    """What a data file holds: the samples to train with, and a test set where the file has one."""

    train: Dataset | None
    test: Dataset | None

    @property
    def to_evaluate(self) -> Dataset:
        """The test set, else all there is."""
        part = self.test if self.test is not None else self.train
        assert part is not None
        return part


def load_npz(path: Any, normalization: Normalization | None = None, targets: bool = True) -> Parts:
    """Read a data file: x and y, or x_train, y_train, x_test, y_test (either pair may be missing).

    targets: whether y must be there; where not, it is read if it is. Raises FileError where the file cannot be read,
    DataError where its arrays are not what they should be.
    """
    arrays = _read(Path(path), ("x", "y", "x_train", "y_train", "x_test", "y_test"))
    name = Path(path).name
    pairs = [("x", "y"), ("x_train", "y_train"), ("x_test", "y_test")]
    found = [pair for pair in pairs if pair[0] in arrays]
    if not found or (("x", "y") in found and len(found) > 1):
        raise DataError(f"{name} holds {', '.join(sorted(arrays)) or 'none of the arrays looked for'}; expected x and "
                        "y, or x_train, y_train, x_test, y_test")
    made = {}
    for x, y in found:
        if targets and y not in arrays:
            raise DataError(f"{name} holds {x} but no {y}; add the targets: np.savez(path, {x}=..., {y}=...)")
        made[x] = Dataset(arrays[x], arrays.get(y), normalization, name if x == "x" else f"{name} ({x[2:]})")
    return Parts(made.get("x", made.get("x_train")), made.get("x_test"))


def _read(path: Path, wanted: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Those of the wanted arrays that the file holds; never unpickles anything."""
    how = "write it with np.savez(path, x=..., y=...)"
    name = ""
    try:
        with open(path, "rb") as file:
            if file.read(4) not in (b"PK\x03\x04", b"PK\x05\x06"):     # a zip file, or an empty one
                raise FileError(f"{path} is no .npz file; {how}")
            file.seek(0)
            with np.load(file, allow_pickle=False) as stored:
                arrays = {}
                for name in stored.files:
                    if name in wanted:
                        arrays[name] = stored[name]
                return arrays
    except FileNotFoundError:
        raise FileError(f"{path}: no such file") from None
    except (IsADirectoryError, PermissionError) as error:
        raise FileError(f"{path} cannot be read: {error.strerror}; expected an .npz file") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, MemoryError) as error:
        raise FileError(f"{path} cannot be read ({error}); it may be truncated or damaged") from error
    except ValueError as error:
        if "Object arrays" in str(error):
            raise DataError(f"{path}: {name} holds Python objects, no numbers; {how}, all samples alike") from None
        raise FileError(f"{path} cannot be read ({error}); it may be truncated or damaged") from error
