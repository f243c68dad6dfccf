"""IDX files: as MNIST has them, plain and compressed, and damaged in every way."""
import gzip
import struct
import tracemalloc

import numpy as np
import pytest

from microcnn.errors import DataError, FileError
from microcnn.idx import find_idx, load_idx, read_idx

CODES = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}


def idx(array):
    code = CODES[array.dtype.str[1:]]
    header = struct.pack(f">HBB{array.ndim}I", 0, code, array.ndim, *array.shape)
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


def write(path, array):
    path.write_bytes(gzip.compress(idx(array)) if path.suffix == ".gz" else idx(array))


@pytest.mark.parametrize("dtype", list(CODES))
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_arrays_of_every_type(tmp_path, rng, dtype, suffix):
    array = (rng.standard_normal((3, 4, 5)) * 50).astype(dtype)
    path = tmp_path / f"some{suffix}"
    write(path, array)
    found = read_idx(path)
    np.testing.assert_array_equal(found, array)
    assert found.dtype == array.dtype and found.dtype.isnative


@pytest.mark.parametrize("name", ["{}-images-idx3-ubyte.gz", "{}-images.idx3-ubyte", "{}-images-idx3-ubyte"])
def test_a_folder_as_mnist_is_handed_out(tmp_path, rng, name):
    x, y = rng.integers(0, 256, (7, 5, 4)).astype(np.uint8), rng.integers(0, 3, 7).astype(np.uint8)
    for begin, count in (("train", 7), ("t10k", 3)):
        write(tmp_path / name.format(begin), x[:count])
        write(tmp_path / name.format(begin).replace("images", "labels").replace("idx3", "idx1"), y[:count])
    parts = load_idx(tmp_path)
    np.testing.assert_array_equal(parts.train.x, x)
    np.testing.assert_array_equal(parts.train.targets, y)
    assert parts.train.targets.dtype == np.int64 and len(parts.test) == 3
    assert set(find_idx(tmp_path)) == {"train", "test"}


def test_damaged_files_are_refused(tmp_path, rng):
    whole = idx(rng.integers(0, 256, (4, 3, 3)).astype(np.uint8))
    for name, content in {"short": whole[:-1], "long": whole + b"1", "text": b"not an IDX file", "empty": b"",
                          "header": whole[:7], "type": b"\0\0\x01\x01" + whole[4:], "axes": b"\0\0\x08\0" + whole[4:]}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(FileError, match="no IDX file|truncated or damaged|may be damaged"):
            read_idx(tmp_path / name)
    (tmp_path / "cut.gz").write_bytes(gzip.compress(whole)[:-9])
    (tmp_path / "plain.gz").write_bytes(whole)
    for name in ("cut.gz", "plain.gz"):
        with pytest.raises(FileError, match="cannot be read"):
            read_idx(tmp_path / name)
    with pytest.raises(FileError, match="no such file"):
        read_idx(tmp_path / "missing")
    with pytest.raises(FileError, match="cannot be read"):
        read_idx(tmp_path)


def test_a_header_alone_takes_no_memory(tmp_path):
    (tmp_path / "huge").write_bytes(struct.pack(">HBB3I", 0, 8, 3, 2**10, 2**10, 2**10))
    (tmp_path / "larger").write_bytes(struct.pack(">HBB3I", 0, 8, 3, 2**31, 2**31, 2**31))
    tracemalloc.start()
    try:
        for name in ("huge", "larger"):
            with pytest.raises(FileError, match="fewer bytes|more than this reads"):
                read_idx(tmp_path / name)
        assert tracemalloc.get_traced_memory()[1] < 10 << 20
    finally:
        tracemalloc.stop()


def test_images_and_labels_have_to_fit(tmp_path, rng):
    with pytest.raises(FileError, match="holds no IDX files"):
        load_idx(tmp_path)
    write(tmp_path / "train-images-idx3-ubyte", np.zeros((4, 3, 3), np.uint8))
    write(tmp_path / "train-labels-idx1-ubyte", np.zeros(3, np.uint8))
    with pytest.raises(DataError, match="4 samples, y has 3"):
        load_idx(tmp_path)
    write(tmp_path / "train-labels-idx1-ubyte", np.zeros((4, 1), np.uint8))
    with pytest.raises(DataError, match=r"expected \(samples, ...\) and \(samples,\)"):
        load_idx(tmp_path)
