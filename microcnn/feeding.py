"""The caller's arrays as the kernels read them, or one clear error."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .errors import CompileError, DataError
from .integers import INTEGERS, check_integers
from .losses import CrossEntropyLoss, Loss

Shape = tuple[int, ...]
Arrays = dict[str, np.ndarray]

# A larger weight of a sample makes gradients that float32 cannot hold, while the loss, a float64, is still finite.
LARGEST_WEIGHT = 1e30


@dataclass(frozen=True, slots=True)
class Single:
    """The only input of a network with one output, and where their addresses stand.

    labels: its loss takes classes (N,). x_dtype: of arrays that need no check. plain: neither x nor y holds integers.
    """

    name: str
    shape: tuple[int, ...]
    output: str
    y_shape: tuple[int, ...]
    x_key: str
    t_key: str
    x_slot: int
    y_slot: int
    t_slot: int
    weight_slot: int
    labels: bool
    x_dtype: np.dtype
    plain: bool


def several(given: Any, names: list[str], what: str, complete: bool = True) -> dict[str, Any]:
    """A dict by name from what the caller gave: one array where there is one name, else a dict.

    Raises DataError for missing and unknown names.
    """
    names = list(dict.fromkeys(names))     # a model may list one tensor twice as its output
    if not isinstance(given, dict):
        if len(names) == 1:
            return {names[0]: given}
        raise DataError(f"{what} must be a dict of arrays by name, the model has {names}")
    unknown = [name for name in given if name not in names]
    missing = [name for name in names if name not in given]
    if unknown or (missing and complete):
        raise DataError(f"{what} holds {list(given)}; expected {names}")
    return given


def numbers(given: Any, what: str) -> np.ndarray:
    """An array of real numbers. Raises DataError for anything else."""
    try:
        array = np.asarray(given)
    except (ValueError, TypeError) as error:
        raise DataError(f"{what} is no array of numbers: {error}") from None
    if array.dtype.kind not in "fiub":
        raise DataError(f"{what} has dtype {array.dtype}; expected floats or integers")
    return array


def require_finite(array: np.ndarray, what: str) -> None:
    """Raises DataError that names the first number that is NaN or infinite."""
    if not np.isfinite(array).all():
        where = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
        raise DataError(f"{what} holds {array[where]} at {where}; expected finite numbers")


def input_array(given: Any, name: str, shape: Shape, dtype: np.dtype, declared: str = "float32") -> np.ndarray:
    """x for one input, (N, *shape), contiguous and of the network's dtype. declared: the model's type for it."""
    array = numbers(given, f'input "{name}"')
    if array.shape[1:] != shape or array.ndim != len(shape) + 1:
        expected = "(N, " + ", ".join(map(str, shape)) + ")"
        hint = ""
        if array.shape == shape:
            hint = "; add the batch axis: x[None]"
        elif array.ndim == len(shape) + 1 and sorted(array.shape[1:]) == sorted(shape):
            hint = "; the axes are in another order"
        raise DataError(f'input "{name}" has shape {array.shape}; expected {expected}{hint}')
    if array.shape[0] == 0:
        raise DataError(f'input "{name}" holds no samples')
    if declared in INTEGERS:
        check_integers(array, declared, dtype, name)
    return _converted(array, dtype)


def _converted(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Contiguous and of that dtype; what is too large for it becomes infinite, which training refuses."""
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(array, dtype)


def target_array(given: Any, output: str, loss: Loss, samples: int, shape: Shape, dtype: np.dtype) -> np.ndarray:
    """t for one output: int64 class indices, or numbers in the order in which the loss reads its input."""
    array = numbers(given, f'target of output "{output}"')
    if isinstance(loss, CrossEntropyLoss):
        labels = (samples, *shape[1:])
        if array.dtype.kind in "iu" or array.dtype.kind == "b":
            if array.shape != labels:
                extra = "; drop the last axis: t[:, 0]" if array.shape == (*labels, 1) else ""
                raise DataError(f'target of output "{output}" has shape {array.shape}; expected {labels} class indices{extra}')
            if array.dtype == np.uint64 and array.size and array.max() > np.iinfo(np.int64).max:
                raise DataError(f'target of output "{output}" holds class {array.max()}; expected 0 to {shape[0] - 1}')
            return np.ascontiguousarray(array, np.int64)
        if array.shape != (samples, *shape):
            raise DataError(f'target of output "{output}" is {array.dtype} of shape {array.shape}; expected {labels} class '
                            f"indices (integers), or probabilities of shape {(samples, *shape)}")
        if np.isnan(array).any() or array.min() < 0:
            raise DataError(f'target of output "{output}" holds probabilities below 0 or NaN')
        return _converted(np.moveaxis(array, 1, -1), dtype)
    if array.shape != (samples, *shape):
        raise DataError(f'target of output "{output}" has shape {array.shape}; expected {(samples, *shape)}, as the output')
    return _converted(array, dtype)


def weight_array(given: Any, samples: int) -> np.ndarray:
    """sample_weight as float64 (N,)."""
    array = numbers(given, "sample_weight")
    if array.shape != (samples,):
        raise DataError(f"sample_weight has shape {array.shape}; expected ({samples},), one number per sample")
    if not np.isfinite(array).all() or array.min() < 0:
        raise DataError("sample_weight holds numbers below 0, NaN or infinite ones")
    if array.max() > LARGEST_WEIGHT:
        raise DataError(f"sample_weight holds {array.max():g}; expected numbers from 0 to {LARGEST_WEIGHT:g}")
    return np.ascontiguousarray(array, np.float64)


def check_data(held: Arrays, losses: dict[str, tuple[Loss, str]], shapes: dict[str, Shape]) -> None:
    """Raises DataError for what kernels stop at: inputs and targets that are not finite, classes out of range.

    held: arrays by "input:NAME" and "target:NAME"; losses and shapes: as a network has them, by output and by tensor.
    """
    for key, array in held.items():
        kind, _, name = key.partition(":")
        if kind == "input":
            require_finite(array, f'input "{name}"')
    for name, (loss, tensor) in losses.items():
        array = held[f"target:{name}"]
        if isinstance(loss, CrossEntropyLoss) and array.dtype.kind == "i":
            classes = shapes[tensor][0]
            wrong = array[((array < 0) | (array >= classes)) & (array != loss.ignore_index)]
            if wrong.size:
                raise DataError(f'target of output "{name}" holds class {wrong.flat[0]}; expected 0 to {classes - 1}')
        elif not np.isfinite(array).all():
            raise DataError(f'target of output "{name}" holds NaN or infinite numbers')


def check_metrics(losses: dict[str, tuple[Loss, str]], shapes: dict[str, Shape], top_k: Any, confusion: bool
                  ) -> np.ndarray | None:
    """The matrix that evaluation counts in, where confusion asks for one.

    Raises CompileError for metrics that these losses do not have, and for a top_k that is no number of classes.
    """
    classes = [shapes[tensor][0] for loss, tensor in losses.values() if isinstance(loss, CrossEntropyLoss)]
    for asked, name in ((top_k is not None, "top_k"), (confusion, "confusion")):
        if asked and not classes:
            raise CompileError(f'{name} counts classes, which need a cross-entropy loss; compile with loss="cross_entropy"')
    if top_k is not None and (isinstance(top_k, bool) or not isinstance(top_k, (int, np.integer))
                              or not 1 <= top_k <= min(classes)):
        raise CompileError(f"top_k is {top_k!r}; expected an integer from 1 to {min(classes)}, the number of classes")
    if not confusion:
        return None
    if len(classes) > 1:
        raise CompileError(f"confusion is of one output's classes; {len(classes)} outputs have a cross-entropy loss")
    return np.zeros((classes[0], classes[0]), np.int64)


def describe(array: Any) -> str:
    """An array, or whatever it is, for messages."""
    return f"{array.dtype} of shape {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
