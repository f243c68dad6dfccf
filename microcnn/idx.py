"""Images and labels in IDX files, as MNIST and those like it come: plain or as .gz."""
from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np

from .data import Dataset, Parts
from .errors import DataError, FileError
from .normalize import Normalization

# The third byte of the magic number.
TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
# How the files of the two parts begin.
PARTS = {"train": "train", "test": "t10k"}
LARGEST = 2**33
CHUNK = 1 << 20


def read_idx(path: Any) -> np.ndarray:
    """The array in an IDX file, of the type and shape that its header says. Raises FileError.

    Source: yann.lecun.com, "THE IDX FILE FORMAT": 0, 0, type, number of axes, their sizes (big-endian), then the numbers.
    """
    path = Path(path)
    try:
        file: Any
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            return _array(path, file)
    except FileNotFoundError:
        raise FileError(f"{path}: no such file") from None
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise FileError(f"{path} cannot be read ({error}); it may be truncated or damaged") from error
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error.strerror or error}; expected an IDX file") from error


def _array(path: Path, file: IO[bytes]) -> np.ndarray:
    """Header and numbers; nothing is allocated on the header's word alone."""
    magic = file.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in TYPES or not 1 <= magic[3] <= 8:
        raise FileError(f"{path} is no IDX file: it begins with {magic!r}; expected two zero bytes, a type and a count")
    header = file.read(4 * magic[3])
    if len(header) < 4 * magic[3]:
        raise FileError(f"{path} ends within its header; it may be truncated or damaged")
    dtype = np.dtype(TYPES[magic[2]])
    shape = tuple(np.frombuffer(header, ">u4").tolist())
    wanted = math.prod(shape) * dtype.itemsize
    if wanted > LARGEST:
        raise FileError(f"{path} declares the shape {shape}, which is more than this reads; it may be damaged")
    pieces = []
    left = wanted
    while left and (piece := file.read(min(left, CHUNK))):
        pieces.append(piece)
        left -= len(piece)
    if left or file.read(1):
        raise FileError(f"{path} holds {'fewer' if left else 'more'} bytes than its shape {shape} says; it may be truncated or "
                        "damaged")
    return np.frombuffer(b"".join(pieces), dtype).reshape(shape).astype(dtype.newbyteorder("="))


def find_idx(folder: Any) -> dict[str, tuple[Path, Path]]:
    """{"train" or "test": (images, labels)} in a folder with MNIST's file names; empty where there are none."""
    found = {}
    for part, begin in PARTS.items():
        pair = [next((path for path in sorted(Path(folder).glob(f"{begin}[-.]{kind}*idx*ubyte*"))), None)
                for kind in ("images", "labels")]
        if pair[0] is not None and pair[1] is not None:
            found[part] = pair[0], pair[1]
    return found


def load_idx(folder: Any, normalization: Normalization | None = None) -> Parts:
    """The data set in a folder of IDX files: train-images-idx3-ubyte, train-labels-idx1-ubyte and their t10k twins, .gz or not.

    Raises FileError where there are none or one cannot be read, DataError where images and labels do not fit each other.
    """
    files = find_idx(folder)
    if not files:
        raise FileError(f"{folder} holds no IDX files; expected train-images-idx3-ubyte and train-labels-idx1-ubyte, or "
                        "t10k-..., as they are or as .gz")
    made: dict[str, Dataset] = {}
    for part, (images, labels) in files.items():
        x, y = read_idx(images), read_idx(labels)
        if y.ndim != 1 or x.ndim < 2:
            raise DataError(f"{images.name} has the shape {x.shape} and {labels.name} {y.shape}; expected (samples, ...) and "
                            "(samples,)")
        made[part] = Dataset(x, y.astype(np.int64), normalization, f"{Path(folder).name} ({part})")
    return Parts(made.get("train"), made.get("test"))
