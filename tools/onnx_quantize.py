"""QuantizeLinear, DequantizeLinear and Where: import, and the way back; the way back of Cast."""
from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper

from microcnn.graph import Node
from microcnn.integers import INTEGERS

from .onnx_build import Build, builder
from .onnx_elementwise import broadcast, widened
from .onnx_registry import FLOAT_DTYPES, Op, converter
from .onnx_tensor import from_float
from .onnx_values import Constant, Tensor

VERSIONS = (10, 13, 19, 21, 23, 24, 25, 28)


@converter("QuantizeLinear", *VERSIONS)
def quantize(op: Op) -> None:
    x = op.tensor()
    zero = op.known(2, "zero point")
    declared = op.attribute("output_dtype", 0) or TensorProto.UINT8
    dtype = _type_of(zero) if zero is not None else helper.tensor_dtype_to_np_dtype(declared).name
    if dtype not in INTEGERS[:4]:
        op.refuse(f"it makes {dtype} numbers; only {', '.join(INTEGERS[:4])} are supported")
    op.emit("QuantizeLinear", x, op.dims(), _parameters(op, zero), dtype=dtype)


@converter("DequantizeLinear", *VERSIONS)
def dequantize(op: Op) -> None:
    x = op.tensor()
    if x.dtype not in INTEGERS[:5]:
        op.refuse(f"it reads {x.dtype} numbers; only {', '.join(INTEGERS[:5])} are supported")
    declared = op.attribute("output_dtype", 0)
    dtype = helper.tensor_dtype_to_np_dtype(declared).name if declared else _type_of(op.known(1, "scale"))
    if dtype not in FLOAT_DTYPES:
        op.refuse(f"it makes {dtype} numbers; only {', '.join(FLOAT_DTYPES)} are supported")
    attrs = _parameters(op, op.known(2, "zero point"))
    op.emit("DequantizeLinear", x, op.dims(), attrs, dtype="float32" if dtype == "bfloat16" else dtype)


def _type_of(found: Constant | None) -> str:
    return "nothing" if found is None else found.probes[0].dtype.name


def _parameters(op: Op, zero: Constant | None) -> dict[str, object]:
    """The attributes scale, zero_point and axis. Refuses blocks, and what is not one number or one for each place of axis."""
    op.allow("block_size", 0, "only one scale for all, or one for each place of an axis, is supported")
    known = op.known(1, "scale")
    if known is None or known.array is None or not known.is_float:
        op.refuse("its scale is no floating-point constant")
    scale = from_float(known.array)
    points = np.zeros(scale.shape) if zero is None else zero.array
    if points is None or scale.ndim > 1 or points.size != scale.size:
        op.refuse(f"its scale has the shape {scale.shape} and its zero point {getattr(points, 'shape', '?')}; only one number "
                  "for all, or one for each place of an axis, is supported")
    dims, axis = op.dims(), 0
    if scale.size > 1:
        axis = op.axis(op.attribute("axis", 1))
        if isinstance(dims[axis], int) and dims[axis] != scale.size:
            op.refuse(f"its scale has {scale.size} numbers; axis {op.attribute('axis', 1)} has {dims[axis]} places")
    return {"axis": axis, "scale": tuple(map(float, scale.reshape(-1))), "zero_point": tuple(map(int, points.reshape(-1)))}


@builder("QuantizeLinear", "DequantizeLinear")
def build_quantize(build: Build, node: Node) -> None:
    single = len(node.attrs["scale"]) == 1
    dtype = node.attrs["dtype"] if node.op == "QuantizeLinear" else build.graph.types()[node.inputs[0]]
    scale, zero = np.asarray(node.attrs["scale"], np.float32), np.asarray(node.attrs["zero_point"], dtype)
    inputs = [build.constant(f"{node.name}.{name}", array.reshape(()) if single else array)
              for name, array in (("scale", scale), ("zero_point", zero))]
    build.add(node.op, node, [node.inputs[0], *inputs], **({} if single else {"axis": node.attrs["axis"]}))


@builder("Cast")
def build_cast(build: Build, node: Node) -> None:
    build.add("Cast", node, [node.inputs[0]], to=helper.np_dtype_to_tensor_dtype(np.dtype(node.attrs["dtype"])))


@converter("Where", 9, 16)
def where(op: Op) -> None:
    """The condition has to be known: a mask that never changes, or one that shapes alone decide."""
    condition = op.known(0, "condition")
    if condition is None or condition.array is None:
        op.refuse("its condition depends on an open size; give input_shapes to load_onnx")
    given = [op.required(index, "operand") if isinstance(op.value(index), Constant) else op.tensor(index) for index in (1, 2)]
    tensors = [one for one in given if isinstance(one, Tensor)]
    if not tensors:
        op.refuse("none of what it selects from is computed at run time")
    tensors = op.aligned(*tensors)
    constants = {"condition": condition}
    constants.update(("other", one) for one in given if isinstance(one, Constant))
    if op.draft.whole:
        ranks = [len(one.shape) for one in constants.values()]
        widest = max(constants.values(), key=lambda one: len(one.shape))
        if max(ranks) > len(tensors[0].dims or ()) - 1:
            tensors = [widened(op, one, widest, f"{op.outputs[0]}/{number}") for number, one in enumerate(tensors)]
    else:
        for one in constants.values():
            widened(op, tensors[0], one, op.outputs[0])
    dims = tensors[0].dims or ()
    for other in (*(one.dims or () for one in tensors[1:]), *(one.shape for one in constants.values())):
        dims = broadcast(op, dims, other)
    op.emit("Where", tensors, dims, {"first": True} if isinstance(given[0], Constant) else {}, dict(constants))


@builder("Where")
def build_where(build: Build, node: Node) -> None:
    mask = build.add("Cast", node, [build.weight(node, "condition")], build.free(f"{node.name}/condition"), "/condition",
                     to=TensorProto.BOOL)
    inputs = list(node.inputs)
    if "other" in node.weights:
        inputs.insert(0 if node.attrs.get("first") else 1, build.weight(node, "other"))
    build.add("Where", node, [mask, *inputs])
