"""The library as a backend of onnx's own test suite (onnx.backend.base), and of anything else that drives one.

A backend is given a model's inputs only when it runs: among them shapes, axes and weights, which here have to be known
when a network is planned. So a model is prepared as it stands, and bound at its first run: inputs of integers become
constants, and so do floating-point ones that no converter takes as a tensor. Models of single operators often have no
batch; then the whole model becomes one sample.

What cannot be run is refused with BackendIsNotSupposedToImplementIt, whose text names every node and its reason.
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.backend.base import Backend, BackendRep
from onnx.backend.test.runner import BackendIsNotSupposedToImplementIt

from microcnn.errors import DataError, MicroCNNError, UnsupportedError
from microcnn.graph import Graph
from microcnn.integers import INTEGERS

from .onnx_import import examine_onnx
from .onnx_registry import FLOAT_DTYPES


class MicroCNNBackend(Backend):
    """onnx's Backend over this library. Class methods only, as that interface has it; device is "CPU"."""

    @classmethod
    def is_compatible(cls, model: ModelProto, device: str = "CPU", **kwargs: Any) -> bool:
        """Every model may be tried; what cannot be run is told when it is."""
        return cls.supports_device(device)

    @classmethod
    def prepare(cls, model: ModelProto, device: str = "CPU", **kwargs: Any) -> MicroCNNRep:
        """A model that is bound to its first inputs when it runs. Raises ModelError where the model is not valid."""
        return MicroCNNRep(model)

    @classmethod
    def run_node(cls, node: NodeProto, inputs: Any, device: str = "CPU",
                 outputs_info: Sequence[tuple[np.dtype, tuple[int, ...]]] | None = None, **kwargs: Any) -> tuple:
        """The results of a single node of the newest opset."""
        arrays = [np.asarray(array) for array in inputs]
        names = [name for name in node.input if name]
        given = [_info(name, array) for name, array in zip(names, arrays, strict=True)]
        results = [helper.make_tensor_value_info(name, TensorProto.UNDEFINED, None) for name in node.output if name]
        model = helper.make_model(helper.make_graph([node], node.name or node.op_type, given, results))
        return cls.prepare(model, device).run(arrays)

    @classmethod
    def supports_device(cls, device: str) -> bool:
        return device == "CPU"


class MicroCNNRep(BackendRep):
    """A model and the networks that it was bound to: one for each choice of constants and shapes."""

    def __init__(self, model: ModelProto):
        self.model = model
        held = {tensor.name for tensor in model.graph.initializer}
        self.inputs = [entry.name for entry in model.graph.input if entry.name not in held]

    def run(self, inputs: Any, **kwargs: Any) -> tuple[np.ndarray, ...]:
        """The outputs for these inputs, in the model's order and of its data types.

        inputs: arrays in the order of the model's inputs, or a dict by name. Raises BackendIsNotSupposedToImplementIt where
        the model cannot be run.
        """
        given = dict(inputs) if isinstance(inputs, dict) else dict(zip(self.inputs, inputs, strict=False))
        given = {name: as_array(value) for name, value in given.items()}
        short = [name for name, value in given.items() if isinstance(value, np.ndarray) and value.dtype.name == "bfloat16"]
        if short and len(self.model.graph.node) > 1:
            raise BackendIsNotSupposedToImplementIt(
                f'{_title(self.model)}: input "{short[0]}" is bfloat16; between nodes numbers are float32 here, rounded once '
                "at the end")
        refusals: list[str] = []
        for moving, whole in self._ways(given):
            try:
                graph = self._bound(given, moving, whole)
                return self._results(graph, {name: given[name] for name in moving}, whole)
            except UnsupportedError as error:
                refusals.append(str(error))
        odd = [f'input "{name}" holds {_kind(value)}' for name, value in given.items() if not _is_number(value, "b")]
        if odd or not refusals:
            said = "; ".join(odd) or f"the inputs hold {', '.join(map(_kind, given.values())) or 'nothing'}"
            refusals.insert(0, f"{_title(self.model)}: {said}; only floating-point numbers of 16 to 64 bits and integers of 8 "
                               "to 64 bits are computed")
        # of several ways, one that fails for its tensors being constants, or its constants tensors, says least
        said_little = ("is a constant; expected a tensor", "computed at run time; only constants")
        raise BackendIsNotSupposedToImplementIt(min(refusals, key=lambda text: any(part in text for part in said_little)))

    def _ways(self, given: dict[str, Any]) -> Iterator[tuple[list[str], bool]]:
        """Which inputs are tensors, the rest being constants, and whether the whole model is one sample; the best first."""
        for name, value in given.items():
            if not isinstance(value, np.ndarray) and not np.isscalar(value):
                raise BackendIsNotSupposedToImplementIt(
                    f'{_title(self.model)}: input "{name}" is a {type(value).__name__}; only tensors are supported')
            if np.asarray(value).dtype.name in FLOAT_DTYPES and 0 in np.shape(value) and np.ndim(value) > 1:
                raise BackendIsNotSupposedToImplementIt(
                    f'{_title(self.model)}: input "{name}" of shape {np.shape(value)} is empty; only tensors that hold numbers '
                    "are supported")
        floats = [name for name, value in given.items() if np.asarray(value).dtype.name in FLOAT_DTYPES]
        integers = [name for name, value in given.items() if np.asarray(value).dtype.name in INTEGERS]
        # operands have one type, that of the first; what else is made of integers are shapes, axes, indices
        alike = [name for name in integers if given[name].dtype == given[integers[0]].dtype]
        choices = [floats, *([name] for name in floats), alike, *([name] for name in integers), integers]
        for moving in (choice for place, choice in enumerate(choices) if choice and choice not in choices[:place]):
            batches = {np.asarray(given[name]).shape[:1] for name in moving}
            if len(batches) == 1 and batches != {()} and batches != {(0,)}:
                yield moving, False
            yield moving, True

    def _bound(self, given: dict[str, Any], moving: list[str], whole: bool) -> Graph:
        """The graph with all inputs but the moving ones as constants. Raises UnsupportedError."""
        model = ModelProto()
        model.CopyFrom(self.model)
        del model.graph.input[:]
        for name, value in given.items():
            array = np.asarray(value)
            if name in moving:
                model.graph.input.append(_info(name, array))
            else:
                model.graph.initializer.append(numpy_helper.from_array(array, name))
        graph, refused, shown = examine_onnx(model, whole=whole)
        if graph is None:
            raise UnsupportedError("; ".join(map(str, refused)) or shown)
        return graph

    def _results(self, graph: Graph, moving: dict[str, Any], whole: bool) -> tuple[np.ndarray, ...]:
        arrays = {name: np.asarray(array)[None] if whole else np.asarray(array) for name, array in moving.items()}
        double = any(array.dtype == np.float64 or array.dtype.name in INTEGERS for array in arrays.values())
        dtype = "float64" if double else "float32"
        batch = next(iter(arrays.values())).shape[0]
        try:
            net = graph.compile(batch=batch, dtype=dtype)
        except MicroCNNError as error:
            raise UnsupportedError(f"{_title(self.model)}: {error}") from error
        try:
            found = net.predict({name: array if array.dtype.name in INTEGERS else array.astype(dtype)
                                 for name, array in arrays.items()})
        except DataError as error:
            raise UnsupportedError(f"{_title(self.model)}: {error}") from error
        named = found if isinstance(found, dict) else {graph.outputs[0]: found}
        return tuple(_as_declared(named[entry.name][0] if whole else named[entry.name], entry)
                     for entry in self.model.graph.output)


def as_array(value: Any) -> Any:
    """A tensor as a numpy array, whatever form it is in; anything else as it is."""
    return numpy_helper.to_array(value) if isinstance(value, TensorProto) else value


def _kind(value: Any) -> str:
    """What an input is, for messages."""
    return f"{np.asarray(value).dtype} numbers" if _is_number(value) else str(np.asarray(value).dtype)


def _is_number(value: Any, also: str = "") -> bool:
    """Whether an input is of a type that is computed with; also: kinds of types that are let pass."""
    dtype = np.asarray(value).dtype
    return dtype.name in (*FLOAT_DTYPES, *INTEGERS) or dtype.kind in also


def _info(name: str, array: np.ndarray) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)


def _as_declared(array: np.ndarray, entry: onnx.ValueInfoProto) -> np.ndarray:
    """An output in the data type that the model declares for it."""
    kind = entry.type.tensor_type.elem_type
    return array if kind == TensorProto.UNDEFINED else array.astype(helper.tensor_dtype_to_np_dtype(kind))


def _title(model: ModelProto) -> str:
    return f'the model "{model.graph.name}"' if model.graph.name else "the model"


prepare = MicroCNNBackend.prepare
run_model = MicroCNNBackend.run_model
run_node = MicroCNNBackend.run_node
supports_device = MicroCNNBackend.supports_device
