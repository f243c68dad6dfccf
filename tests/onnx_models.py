"""Small ONNX models for tests, and what ONNX Runtime makes of them."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper


def recorded(folder: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """The recorded pairs of input and output of a model with one of each."""
    with np.load(folder / "io.npz") as file:
        names = sorted(name for name in file if name.startswith("in"))
        return [(file[name], next(file[other] for other in file if other.startswith(f"out{name[2:].split('__')[0]}__")))
                for name in names]


def model_of(nodes: list[Any], shape: tuple[Any, ...], weights: dict[str, np.ndarray] | None = None, opset: int = 17,
             output: str = "y", ir_version: int = 8, **options: Any) -> ModelProto:
    """A model of one float input x and one output, of floats or of places."""
    inputs = [helper.make_tensor_value_info("x", options.get("dtype", TensorProto.FLOAT), list(shape))]
    made = TensorProto.INT64 if nodes and nodes[-1].op_type in ("ArgMax", "ArgMin") else options.get("dtype", TensorProto.FLOAT)
    outputs = [helper.make_tensor_value_info(output, made, None)]
    tensors = [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()]
    if ir_version < 4:
        inputs += [helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims) for tensor in tensors]
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)
    if any(one.domain for one in nodes):
        return model
    inferred = onnx.shape_inference.infer_shapes(model).graph.output[0]
    if inferred.type.tensor_type.HasField("shape"):
        model.graph.output[0].CopyFrom(inferred)
    return model


def node(operator: str, inputs: list[str], outputs: list[str] | None = None, **attributes: Any) -> Any:
    name = attributes.pop("name", f"the_{operator}")
    return helper.make_node(operator, inputs, outputs or ["y"], name=name, **attributes)


def numbers(*shape: int, seed: int = 0, dtype: Any = np.float32) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(dtype)


def onnxruntime_outputs(model: ModelProto, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What ONNX Runtime computes, optimisation off."""
    ort = pytest.importorskip("onnxruntime")
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference, over the range of what is expected."""
    spread = float(expected.max() - expected.min()) or 1.0
    return float(np.abs(found - expected).max()) / spread


def check(model: ModelProto) -> None:
    onnx.checker.check_model(model, full_check=True)
