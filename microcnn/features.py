"""Features of whole data sets: made once, kept in a file, and fed to a network's tail in place of the samples."""
from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .data import CHECK_BYTES, Dataset, shuffled
from .feature_file import Write, resolve_path, stored
from .tail import MODES, Features, Tail

if TYPE_CHECKING:
    from .net import Net


@dataclass(frozen=True)
class FeatureProgress:
    """How far the features are, after a batch: `done` of `samples`, those for validation included. bytes: of their file."""

    done: int
    samples: int
    bytes: int
    samples_per_second: float
    seconds_left: float


@dataclass(frozen=True)
class FeatureReport:
    """Where features were kept. path: None where the file has no name, and is gone; reused: whether an earlier run made them.

    seconds: what making or checking them took. note: why a file that was there was not used, or why it is not kept; else empty.
    """

    path: Path | None
    bytes: int
    reused: bool
    seconds: float
    note: str


class FeatureSet:
    """The features of a data set, in its order, with its targets: what batches a Dataset gives, with features for samples.

    arrays: (N, numbers), from a file; mode: "train" or "evaluate"
    """

    def __init__(self, tail: Tail, mode: str, arrays: list[np.ndarray], targets: np.ndarray):
        self.tail, self.mode, self.arrays, self.targets = tail, mode, arrays, targets

    def __len__(self) -> int:
        return len(self.targets)

    def order(self, seed: int, epoch: int) -> np.ndarray:
        """As Dataset.order."""
        return shuffled(len(self), seed, epoch)

    def batches(self, batch: int, order: np.ndarray | None = None, dtype: Any = "float32"
                ) -> Iterator[tuple[Features, np.ndarray]]:
        """Batches (features, y), as Dataset.batches. The features lie where the tail reads them, the same place every time."""
        for begin in range(0, len(self), batch):
            end = min(len(self), begin + batch)
            features = self.tail.staged(self.mode, end - begin)
            for array, place in zip(self.arrays, features.arrays, strict=True):
                if order is None:
                    np.copyto(place, array[begin:end])
                else:
                    np.take(array, order[begin:end], axis=0, out=place, mode="clip")     # "raise" would copy once more
            y = self.targets[begin:end] if order is None else self.targets[order[begin:end]]
            yield features, y.astype(dtype, copy=False) if y.dtype.kind == "f" else y


def file_bytes(tail: Tail, samples: dict[str, int]) -> int:
    """About what the file takes, but for less than a KB. samples: how many for "train" and "evaluate"."""
    return sum(count * sum(tail.numbers(mode)) * tail.dtype.itemsize for mode, count in samples.items())


def cached(net: Net, train: Dataset, validation: Dataset | None, where: bool | str | os.PathLike[str],
           stopped: Callable[[], bool], on_features: Callable[[FeatureProgress], None] | None
           ) -> tuple[Tail, FeatureSet, FeatureSet | None, FeatureReport]:
    """The network's tail and what to feed it in place of the data, whose targets are known to be there.

    where: as fit's cache_features. stopped: asked after each batch. Raises CompileError, FileError as Tail, resolve_path and
    stored, KeyboardInterrupt where it is to stop.
    """
    begin = time.perf_counter()
    path, tail = resolve_path(where), net.tail()
    sets = {mode: data for mode, data in zip(MODES, (train, validation), strict=True) if data is not None}
    shapes = {f"{mode} {number}": (len(data), numbers) for mode, data in sets.items()
              for number, numbers in enumerate(tail.numbers(mode))}
    samples, size = sum(map(len, sets.values())), file_bytes(tail, {mode: len(data) for mode, data in sets.items()})

    def fill(write: Write) -> None:
        done, started = 0, time.perf_counter()
        for mode, data in sets.items():
            for x, _ in data.batches(tail.batch, dtype=tail.dtype):
                if stopped():
                    raise KeyboardInterrupt
                features = tail.features(x, mode)
                for number, array in enumerate(features.arrays):
                    write(f"{mode} {number}", array)
                done += len(features)
                if on_features is not None:
                    speed = done / max(1e-9, time.perf_counter() - started)
                    on_features(FeatureProgress(done, samples, size, speed, (samples - done) / speed))

    digest = "" if path is None else _digest(tail, sets)
    file = stored(path, shapes, tail.dtype, digest, fill)
    made = {mode: FeatureSet(tail, mode, [file.arrays[name] for name in shapes if name.startswith(mode)], _targets(data))
            for mode, data in sets.items()}
    return tail, made["train"], made.get("evaluate"), FeatureReport(file.path, file.bytes, file.reused,
                                                                    time.perf_counter() - begin, file.note)


def _targets(data: Dataset) -> np.ndarray:
    targets = data.targets
    assert targets is not None
    return targets


def _digest(tail: Tail, sets: dict[str, Dataset]) -> str:
    """A hash of all that the features depend on: the network's frozen part and the samples as they are stored."""
    found = blake2b(digest_size=32)
    for mode, data in sets.items():
        found.update(tail.digest(mode))
        found.update(json.dumps([mode, data.x.dtype.str, len(data), data.sample_shape, data.normalization.to_meta()]).encode())
        rows = max(1, CHECK_BYTES // max(1, data.x[0].nbytes))
        for begin in range(0, len(data), rows):
            part = data.x[begin:begin + rows] if data.rows is None else data.x[data.rows[begin:begin + rows]]
            found.update(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)
    return found.hexdigest()
