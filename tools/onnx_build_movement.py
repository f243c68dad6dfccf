"""How layers that put parts of tensors elsewhere become ONNX nodes."""
from __future__ import annotations

import numpy as np

from microcnn.errors import ModelError
from microcnn.graph import Node
from microcnn.layers.movement import mirrored

from .onnx_build import Build, builder


def _integers(build: Build, node: Node, **given: tuple[int, ...]) -> list[str]:
    return [build.constant(f"{node.name}.{name}", np.asarray(values, np.int64)) for name, values in given.items()]


@builder("Concat")
def concat(build: Build, node: Node) -> None:
    build.add("Concat", node, list(node.inputs), axis=node.attrs["axis"])


@builder("Slice")
def slice_(build: Build, node: Node) -> None:
    build.add("Slice", node, [node.inputs[0], *_integers(
        build, node, **{name: node.attrs[name] for name in ("starts", "ends", "axes", "steps")})])


@builder("Pad")
def pad(build: Build, node: Node) -> None:
    pads, mode = node.attrs["pads"], node.attrs["mode"]
    rank = len(pads) // 2
    if mode == "wrap":
        _wrapped(build, node)
        return
    value = build.constant(f"{node.name}.value", np.asarray(node.attrs["value"], build.dtype))
    (written,) = _integers(build, node, pads=(0, *pads[:rank], 0, *pads[rank:]))
    build.add("Pad", node, [node.inputs[0], written, value], mode=mode)


def _wrapped(build: Build, node: Node) -> None:
    """Opset 17 has no wrapping Pad: each axis is gathered. Raises ModelError where its size is open."""
    if build.shapes is None:
        raise ModelError(f'node "{node.name}": a wrapping Pad of open sizes has no form in ONNX opset 17')
    name, shape = node.inputs[0], build.shapes[node.inputs[0]]
    pads = node.attrs["pads"]
    axes = [axis for axis in range(len(shape)) if pads[axis] or pads[len(shape) + axis]]
    if not axes:
        build.add("Identity", node, [name])
    for axis in axes:
        places = mirrored("wrap", shape[axis], pads[axis], pads[len(shape) + axis])
        indices = build.constant(f"{node.name}.indices", places.astype(np.int64))
        last = axis == axes[-1]
        name = build.add("Gather", node, [name, indices], "" if last else build.free(f"{node.name}/axis{axis}"),
                         "" if last else f"/axis{axis}", axis=axis + 1)


@builder("Gather")
def gather(build: Build, node: Node) -> None:
    build.add("Gather", node, [node.inputs[0], *_integers(build, node, indices=node.attrs["indices"])],
              axis=node.attrs["axis"])


@builder("Tile")
def tile(build: Build, node: Node) -> None:
    build.add("Tile", node, [node.inputs[0], *_integers(build, node, repeats=(1, *node.attrs["repeats"]))])


@builder("Expand")
def expand(build: Build, node: Node) -> None:
    build.add("Expand", node, [node.inputs[0], *_integers(build, node, shape=(1, *node.attrs["shape"]))])


@builder("DepthToSpace")
def depth_to_space(build: Build, node: Node) -> None:
    build.add("DepthToSpace", node, [node.inputs[0]], blocksize=node.attrs["block"], mode=node.attrs["mode"])


@builder("SpaceToDepth")
def space_to_depth(build: Build, node: Node) -> None:
    if node.attrs["mode"] == "CRD":
        _pixel_unshuffle(build, node)
        return
    build.add("SpaceToDepth", node, [node.inputs[0]], blocksize=node.attrs["block"])


def _pixel_unshuffle(build: Build, node: Node) -> None:
    """Opset 17 knows no mode. Raises ModelError where sizes are open."""
    if build.shapes is None:
        raise ModelError(f'node "{node.name}": SpaceToDepth of mode "CRD" and open sizes has no form in ONNX opset 17')
    (C, H, W), block = build.shapes[node.inputs[0]], node.attrs["block"]
    cut, shape = _integers(build, node, cut=(0, C, H // block, block, W // block, block),
                           shape=(0, *build.shapes[node.outputs[0]]))
    fine = build.add("Reshape", node, [node.inputs[0], cut], build.free(f"{node.name}/cut"), "/cut")
    turned = build.add("Transpose", node, [fine], build.free(f"{node.name}/turned"), "/turned", perm=[0, 1, 3, 5, 2, 4])
    build.add("Reshape", node, [turned, shape])
