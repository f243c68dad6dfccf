"""The data of ONNX tensors: checked before anything is allocated, taken out of a model and put back."""
from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from microcnn.errors import FileError, ModelError

# The field that holds a tensor's numbers when raw_data does not.
TYPED_FIELDS = ("float_data", "double_data", "int32_data", "int64_data", "uint64_data", "string_data")
BITS = {
    TensorProto.FLOAT: 32, TensorProto.DOUBLE: 64, TensorProto.FLOAT16: 16, TensorProto.BFLOAT16: 16,
    TensorProto.INT8: 8, TensorProto.UINT8: 8, TensorProto.INT16: 16, TensorProto.UINT16: 16,
    TensorProto.INT32: 32, TensorProto.UINT32: 32, TensorProto.INT64: 64, TensorProto.UINT64: 64,
    TensorProto.BOOL: 8, TensorProto.COMPLEX64: 64, TensorProto.COMPLEX128: 128,
}
FLOATS = {TensorProto.FLOAT: "float32", TensorProto.DOUBLE: "float64", TensorProto.FLOAT16: "float16",
          TensorProto.BFLOAT16: "bfloat16"}


def check_tensor(tensor: TensorProto, what: str) -> None:
    """Raises ModelError unless the data that a tensor holds is as long as its dimensions say. Allocates nothing."""
    if any(n < 0 for n in tensor.dims):
        raise ModelError(f"{what} has negative dimensions {tuple(tensor.dims)}")
    count = math.prod(tensor.dims)
    if tensor.data_location == TensorProto.EXTERNAL or tensor.data_type == TensorProto.STRING:
        return
    if tensor.data_type == TensorProto.UNDEFINED or tensor.data_type not in TensorProto.DataType.values():
        raise ModelError(f"{what} has no data type that ONNX knows ({tensor.data_type})")
    bits = BITS.get(tensor.data_type)
    if tensor.HasField("raw_data"):
        expected = -(-count * bits // 8) if bits else None
        if expected is None or len(tensor.raw_data) == expected:
            return
        raise ModelError(f"{what} of dimensions {tuple(tensor.dims)} needs {expected} bytes of data; the model holds "
                         f"{len(tensor.raw_data)}")
    held = max(len(getattr(tensor, name)) for name in TYPED_FIELDS)
    wanted = count * 2 if tensor.data_type in (TensorProto.COMPLEX64, TensorProto.COMPLEX128) else count
    if held != wanted and not (bits is None and held == (count + 1) // 2):
        raise ModelError(f"{what} of dimensions {tuple(tensor.dims)} needs {wanted} numbers; the model holds {held}")


def load_external(tensor: TensorProto, folder: Path | None, what: str) -> None:
    """Bring a tensor's data from a file beside the model into the tensor.

    Raises FileError where that file is missing, too short, or lies outside the model's folder.
    """
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    if folder is None:
        raise FileError(f'{what} has its data in the file "{location}"; give the model\'s path instead of its bytes')
    try:
        path = (folder / location).resolve()
    except (OSError, ValueError) as error:
        raise FileError(f"{what} has its data in {location!r}, which is no file's name: {error}") from error
    if not location or Path(location).is_absolute() or not path.is_relative_to(folder.resolve()):
        raise FileError(f'{what} has its data in "{location}", outside the model\'s folder; move the file into the '
                        "folder and save the model again")
    bits = BITS.get(tensor.data_type)
    if bits is None or any(n < 0 for n in tensor.dims):
        raise ModelError(f"{what} has external data of a type or size that is not valid")
    expected = math.prod(tensor.dims) * bits // 8
    try:
        if not path.is_file():
            raise FileError(f'{what} has its data in "{location}", which is missing; put it beside the model')
        offset = int(entries.get("offset", 0))
        length = int(entries.get("length", path.stat().st_size - offset))
        if offset < 0 or length != expected or offset + length > path.stat().st_size:
            raise FileError(f'{what} needs {expected} bytes from "{location}" at {offset}; the file says {length} and '
                            f"holds {path.stat().st_size}")
        with open(path, "rb") as file:
            file.seek(offset)
            data = file.read(length)
    except ValueError as error:
        raise ModelError(f"{what} names no valid place in its data file: {error}") from error
    except OSError as error:
        raise FileError(f'{what} has its data in "{location}", which cannot be read: {error.strerror}') from error
    tensor.raw_data = data
    del tensor.external_data[:]
    tensor.ClearField("data_location")


def to_array(tensor: TensorProto) -> np.ndarray:
    """A tensor's numbers. The tensor has passed check_tensor. Raises ModelError for types that onnx cannot read."""
    try:
        return numpy_helper.to_array(tensor)
    except (KeyError, NotImplementedError, TypeError, ValueError) as error:
        raise ModelError(f'tensor "{tensor.name}" cannot be read: {error}') from error


def from_float(array: np.ndarray) -> np.ndarray:
    """A float array in a dtype that numpy knows by itself: bfloat16 becomes float32."""
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array


def data_field(tensor: TensorProto) -> str:
    """Which field of a tensor holds its numbers."""
    if tensor.HasField("raw_data"):
        return "raw_data"
    return next((name for name in TYPED_FIELDS if len(getattr(tensor, name))), "raw_data")


def take_data(tensor: TensorProto) -> None:
    """Empty a tensor, if putting the same array back gives the same tensor."""
    field = data_field(tensor)
    array = from_float(to_array(tensor))
    twin = TensorProto()
    twin.CopyFrom(tensor)
    twin.ClearField(field)
    put_data(twin, array, field)
    if twin.SerializeToString(deterministic=True) == tensor.SerializeToString(deterministic=True):
        tensor.ClearField(field)


def put_data(tensor: TensorProto, array: np.ndarray, field: str) -> None:
    """Write an array as a tensor's data, in the tensor's own type and the given field."""
    with np.errstate(all="ignore"):
        array = np.ascontiguousarray(array, dtype=helper.tensor_dtype_to_np_dtype(tensor.data_type))
    tensor.ClearField(field)
    if field == "raw_data":
        tensor.raw_data = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
    elif field == "int32_data" and array.dtype.itemsize == 2 and array.dtype.kind not in "iu":
        tensor.int32_data.extend(array.reshape(-1).view(np.uint16).tolist())
    else:
        getattr(tensor, field).extend(array.reshape(-1).tolist())


def attribute_value(attribute: onnx.AttributeProto) -> Any:
    """An attribute as plain Python: strings decoded, lists as tuples, tensors as arrays."""
    value = helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, TensorProto):
        return to_array(value)
    if attribute.type in (onnx.AttributeProto.INTS, onnx.AttributeProto.FLOATS):
        return tuple(value)
    if attribute.type == onnx.AttributeProto.STRINGS:
        return tuple(item.decode("utf-8", "replace") for item in value)
    return value
