"""How products of matrices become ONNX nodes."""
from __future__ import annotations

from microcnn.graph import Node

from .onnx_build import Build, builder


@builder("MatMul")
def matmul(build: Build, node: Node) -> None:
    operands, constant = list(node.inputs), build.weight(node, "other")
    if constant:
        operands.insert(0 if node.attrs.get("first") else 1, constant)
    build.add("MatMul", node, operands)
