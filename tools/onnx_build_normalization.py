"""How normalisations by a sample's own statistics become ONNX nodes."""
from __future__ import annotations

import numpy as np

from microcnn.errors import ModelError
from microcnn.graph import Node

from .onnx_build import Build, builder


def _shape(build: Build, node: Node) -> tuple[int, ...]:
    """The input's shape for one sample. Raises ModelError where sizes are open."""
    if build.shapes is None:
        raise ModelError(f'node "{node.name}": {node.op} of open sizes has no form in ONNX opset 17')
    return build.shapes[node.inputs[0]]


def _weight(build: Build, node: Node, role: str, shape: tuple[int, ...]) -> str:
    """A weight, or numbers that change nothing in its place."""
    if role in node.weights:
        return build.weight(node, role)
    return build.constant(f"{node.name}.{role}", np.full(shape, 1 if role == "scale" else 0, build.dtype))


@builder("LRN")
def local_response(build: Build, node: Node) -> None:
    build.add("LRN", node, [node.inputs[0]], **{name: node.attrs[name] for name in ("size", "alpha", "beta", "bias")})


@builder("LayerNorm")
def layer_norm(build: Build, node: Node) -> None:
    axis = node.attrs["axis"]
    shape = () if "scale" in node.weights else _shape(build, node)
    rank = len(shape) + 1
    weights = [_weight(build, node, "scale", shape[axis % rank - 1:])]
    if "bias" in node.weights:
        weights.append(build.weight(node, "bias"))
    build.add("LayerNormalization", node, [node.inputs[0], *weights], axis=axis, epsilon=float(node.attrs["eps"]))


@builder("InstanceNorm")
def instance_norm(build: Build, node: Node) -> None:
    shape = () if len(node.weights) == 2 else _shape(build, node)[:1]
    weights = [_weight(build, node, role, shape) for role in ("scale", "bias")]
    build.add("InstanceNormalization", node, [node.inputs[0], *weights], epsilon=float(node.attrs["eps"]))


@builder("GroupNorm")
def group_norm(build: Build, node: Node) -> None:
    """Opset 17 has none: the groups are channels of an InstanceNormalization, and scale and bias come after it."""
    shape, groups = _shape(build, node), node.attrs["groups"]
    ones = build.constant(f"{node.name}.ones", np.ones(groups, build.dtype))
    zeros = build.constant(f"{node.name}.zeros", np.zeros(groups, build.dtype))
    cut = build.constant(f"{node.name}.cut", np.asarray([0, groups, -1], np.int64))
    joined = build.constant(f"{node.name}.joined", np.asarray([0, *shape], np.int64))
    made = build.add("Reshape", node, [node.inputs[0], cut], build.free(f"{node.name}/cut"), "/cut")
    made = build.add("InstanceNormalization", node, [made, ones, zeros], build.free(f"{node.name}/normalised"), "/normalised",
                     epsilon=float(node.attrs["eps"]))
    weights = [role for role in ("scale", "bias") if role in node.weights]
    made = build.add("Reshape", node, [made, joined], build.free(f"{node.name}/joined") if weights else "",
                     "/joined" if weights else "")
    for role in weights:
        along = build.constant(f"{node.name}.along", np.asarray([-1, *(1,) * (len(shape) - 1)], np.int64))
        weight = build.add("Reshape", node, [build.weight(node, role), along], build.free(f"{node.name}/{role}"), f"/{role}")
        last = role == weights[-1]
        made = build.add("Mul" if role == "scale" else "Add", node, [made, weight],
                         "" if last else build.free(f"{node.name}/scaled"), "" if last else "/scaled")
