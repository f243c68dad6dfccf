"""Integers in networks that compute with floating-point numbers: which types there are, and what is exact."""
from __future__ import annotations

import numpy as np

from .errors import DataError

INTEGERS = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")


def largest_exact(itemsize: int) -> float:
    """The number up to which every integer is a floating-point number of so many bytes."""
    return 2.0**24 if itemsize == 4 else 2.0**53


def check_integers(array: np.ndarray, declared: str, dtype: np.dtype, name: str) -> None:
    """Raises DataError unless an input's numbers are ones of its declared integer type, which the network's dtype holds."""
    if not array.size or (array.dtype.name == declared and np.iinfo(declared).bits <= 16):
        return
    if array.dtype.kind == "f" and not (np.isfinite(array) & (np.trunc(array) == array)).all():
        raise DataError(f'input "{name}" holds numbers that are no integers; the model declares {declared}')
    limits, low, high = np.iinfo(declared), int(array.min()), int(array.max())
    if low < limits.min or high > limits.max:
        raise DataError(f'input "{name}" holds numbers from {low} to {high}; the model declares {declared}: {limits.min} to '
                        f"{limits.max}")
    most = int(largest_exact(dtype.itemsize))
    if max(-low, high) > most:
        more = '; compile(dtype="float64") holds those up to 2**53' if dtype.itemsize == 4 else ""
        raise DataError(f'input "{name}" holds numbers from {low} to {high}; {dtype.name} holds integers exactly up to '
                        f"{most} only{more}")


def as_integers(array: np.ndarray, name: str, out: np.ndarray) -> np.ndarray:
    """An output's numbers, put into `out`, whose type is the declared one. Raises DataError for what is no exact integer."""
    if not np.isfinite(array).all():
        more = '; compile(dtype="float64") has room for larger ones' if array.dtype.itemsize == 4 else ""
        raise DataError(f'output "{name}" is {out.dtype} and came out as NaN or infinite: an input was NaN, a division was by '
                        f"0, or an integer on the way was larger than {array.dtype.name} holds exactly{more}")
    out[...] = array
    return out
