"""Flatten, Reshape, Transpose, Identity, DepthToSpace, SpaceToDepth.

They change how memory is read, and move nothing where that is enough.
"""
from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ..errors import ModelError
from ..layout import Layout
from .base import Layer, Shape, expect_image, expect_inputs

if TYPE_CHECKING:
    from ..fusion import Step
    from ..graph import Node
    from ..plan import Schedule


def reshape(s: Schedule, step: Step, shape: Shape) -> None:
    """The step's output: its input's memory under another shape, moved only where the layout cannot be read so."""
    x = s.value(step.node.inputs[0])
    layout = x.layout.reshaped(shape)
    if layout is None:
        x = s.plain(x)
        layout = x.layout.reshaped(shape) or Layout.plain(shape)
    s.alias(step.output, x, layout)
    if s.needs_gradient(x.name):
        s.backward(lambda: s.pass_on(step.output, x.name))


class Flatten(Layer):
    """ONNX Flatten with axis 1: all axes of a sample in one.

    Raises   ModelError: another axis
    """

    op = "Flatten"
    onnx = {"Flatten": {}}

    @staticmethod
    def infer(node: Node, shapes: list[Shape], weights: dict[str, Shape]) -> list[Shape]:
        expect_inputs(node, shapes, 1)
        if node.attrs.get("axis", 1) != 1:
            raise ModelError(f'Flatten "{node.name}": axis (={node.attrs["axis"]}) must be 1, so that the batch stays an axis')
        return [(math.prod(shapes[0]),)]

    @staticmethod
    def forward(s: Schedule, step: Step) -> None:
        reshape(s, step, s.shapes[step.node.outputs[0]])


class Reshape(Layer):
    """ONNX Reshape of each sample. Attribute shape, without the batch; one size may be -1.

    Raises   ModelError: a shape that does not hold the input's numbers
    """

    op = "Reshape"
    onnx = {"Reshape": {}}

    @staticmethod
    def infer(node: Node, shapes: list[Shape], weights: dict[str, Shape]) -> list[Shape]:
        expect_inputs(node, shapes, 1)
        wanted = [shapes[0][i] if n == 0 and i < len(shapes[0]) else n for i, n in enumerate(node.attrs["shape"])]
        total = math.prod(shapes[0])
        known = math.prod(n for n in wanted if n != -1)
        if wanted.count(-1) == 1 and known and total % known == 0:
            wanted[wanted.index(-1)] = total // known
        if any(n < 0 for n in wanted) or math.prod(wanted) != total:
            raise ModelError(f'Reshape "{node.name}": {tuple(node.attrs["shape"])} does not hold the {total} numbers of a '
                             f"sample of shape {shapes[0]}; give sizes whose product is {total}, or -1 for one of them")
        return [tuple(wanted)]

    @staticmethod
    def forward(s: Schedule, step: Step) -> None:
        reshape(s, step, s.shapes[step.node.outputs[0]])


class Transpose(Layer):
    """ONNX Transpose. Attribute perm, with the batch as axis 0, which stays where it is.

    Raises   ModelError: what is no permutation, or moves the batch
    """

    op = "Transpose"
    onnx = {"Transpose": {}}

    @staticmethod
    def infer(node: Node, shapes: list[Shape], weights: dict[str, Shape]) -> list[Shape]:
        expect_inputs(node, shapes, 1)
        perm = node.attrs["perm"]
        if sorted(perm) != list(range(len(shapes[0]) + 1)) or perm[0] != 0:
            raise ModelError(f'Transpose "{node.name}": perm (={tuple(perm)}) must be a permutation of the '
                             f"{len(shapes[0]) + 1} axes that leaves the batch first")
        return [tuple(shapes[0][i - 1] for i in perm[1:])]

    @staticmethod
    def forward(s: Schedule, step: Step) -> None:
        x = s.value(step.node.inputs[0])
        s.alias(step.output, x, x.layout.transposed(tuple(i - 1 for i in step.node.attrs["perm"][1:])))
        if s.needs_gradient(x.name):
            s.backward(lambda: s.pass_on(step.output, x.name))


class Identity(Layer):
    """ONNX Identity: another name."""

    op = "Identity"
    onnx = {"Identity": {}}

    @staticmethod
    def infer(node: Node, shapes: list[Shape], weights: dict[str, Shape]) -> list[Shape]:
        expect_inputs(node, shapes, 1)
        return [shapes[0]]

    @staticmethod
    def forward(s: Schedule, step: Step) -> None:
        x = s.value(step.node.inputs[0])
        s.alias(step.output, x, x.layout)
        if s.needs_gradient(x.name):
            s.backward(lambda: s.pass_on(step.output, x.name))


def rearranged(s: Schedule, step: Step, cut: Shape, permutation: Shape) -> None:
    """The step's output: its input reshaped, transposed (both of one sample) and reshaped again, moved only if need be."""
    x = s.value(step.node.inputs[0])
    shape = s.shapes[step.output]
    fine = x.layout.reshaped(cut)
    layout = fine and fine.transposed(permutation).reshaped(shape)
    if layout is None:
        x = s.plain(x)
        fine = x.layout.reshaped(cut) or Layout.plain(cut)
        layout = fine.transposed(permutation).reshaped(shape)
    assert layout is not None         # neighbours can always be read as one
    s.alias(step.output, x, layout)
    if s.needs_gradient(x.name):
        s.backward(lambda: s.pass_on(step.output, x.name))


class DepthToSpace(Layer):
    """ONNX DepthToSpace: blocks of channels become blocks of pixels. Attributes block, mode ("DCR" or "CRD").

    Raises   ModelError: channels that do not divide, another mode
    """

    op = "DepthToSpace"
    onnx = {"DepthToSpace": {}}

    @staticmethod
    def infer(node: Node, shapes: list[Shape], weights: dict[str, Shape]) -> list[Shape]:
        expect_inputs(node, shapes, 1)
        C, H, W = expect_image(node, shapes[0])
        block = node.attrs["block"]
        if block < 1 or C % (block * block) or node.attrs["mode"] not in ("DCR", "CRD"):
            raise ModelError(f'{node.op} "{node.name}": block (={block}) must be at least 1, its square must divide the {C} '
                             f'channels, and mode (={node.attrs["mode"]!r}) must be "DCR" or "CRD"')
        return [(C // (block * block), H * block, W * block)]

    @staticmethod
    def forward(s: Schedule, step: Step) -> None:
        block = step.node.attrs["block"]
        C, H, W = s.shapes[step.node.inputs[0]]
        if step.node.attrs["mode"] == "DCR":
            rearranged(s, step, (block, block, C // (block * block), H, W), (2, 3, 0, 4, 1))
        else:
            rearranged(s, step, (C // (block * block), block, block, H, W), (0, 3, 1, 4, 2))


class SpaceToDepth(Layer):
    """ONNX SpaceToDepth: blocks of pixels become blocks of channels. Attributes block, mode ("DCR" or "CRD").

    Raises   ModelError: sizes that do not divide, another mode
    """

    op = "SpaceToDepth"
    onnx = {"SpaceToDepth": {}}

    @staticmethod
    def infer(node: Node, shapes: list[Shape], weights: dict[str, Shape]) -> list[Shape]:
        expect_inputs(node, shapes, 1)
        C, H, W = expect_image(node, shapes[0])
        block = node.attrs["block"]
        if block < 1 or H % block or W % block or node.attrs["mode"] not in ("DCR", "CRD"):
            raise ModelError(f'{node.op} "{node.name}": block (={block}) must be at least 1 and divide the height and width '
                             f'{H}x{W}, and mode (={node.attrs["mode"]!r}) must be "DCR" or "CRD"')
        return [(C * block * block, H // block, W // block)]

    @staticmethod
    def forward(s: Schedule, step: Step) -> None:
        block = step.node.attrs["block"]
        C, H, W = s.shapes[step.node.inputs[0]]
        order = (2, 4, 0, 1, 3) if step.node.attrs["mode"] == "DCR" else (0, 2, 4, 1, 3)
        rearranged(s, step, (C, H // block, block, W // block, block), order)
