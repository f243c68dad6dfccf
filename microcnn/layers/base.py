"""What every layer tells: shapes, costs, and which kernels run it forward and backward."""
from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

from ..errors import ModelError

if TYPE_CHECKING:
    from ..fusion import Step
    from ..graph import Node
    from ..plan import Schedule

Shape = tuple[int, ...]

LAYERS: dict[str, type[Layer]] = {}


class Layer:
    """An operation. Never instantiated: a Node holds the data, the methods are static.

    op             its name in Node.op
    trainable      the roles of weights that training may change
    channels_last  whether images must lie N, H, W, C
    onnx           the ONNX operators that it stands for, as plain data: {operator: {}}. With "versions", the opsets that
                   changed the operator, and "attributes", {ONNX attribute: (attribute, default)}, that is all that
                   import and export need: one tensor in, one of the same shape out
    """

    op: ClassVar[str]
    trainable: ClassVar[tuple[str, ...]] = ()
    channels_last: ClassVar[bool] = False
    onnx: ClassVar[dict[str, dict[str, Any]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "op" in cls.__dict__:
            if cls.op in LAYERS:
                raise ValueError(f"two layers are called {cls.op}")
            LAYERS[cls.op] = cls

    @staticmethod
    def infer(node: Node, shapes: list[Shape], weights: dict[str, Shape]) -> list[Shape]:
        """The outputs' shapes for one sample. Raises ModelError where the inputs do not fit."""
        raise NotImplementedError

    @staticmethod
    def macs(node: Node, shapes: list[Shape], outputs: list[Shape], weights: dict[str, Shape]) -> int:
        """Multiply-adds of one sample, forward."""
        return 0

    @staticmethod
    def forward(s: Schedule, step: Step) -> None:
        """Write the rows that run the step, and register its backward where a gradient passes."""
        raise NotImplementedError


def expect_inputs(node: Node, shapes: list[Shape], count: int) -> None:
    """Raises ModelError unless the node has that many inputs."""
    if len(shapes) != count:
        raise ModelError(f'{node.op} "{node.name}" has {len(shapes)} inputs; expected {count}')


def expect_image(node: Node, shape: Shape) -> tuple[int, int, int]:
    """(C, H, W); raises ModelError for anything else."""
    if len(shape) != 3:
        raise ModelError(f'{node.op} "{node.name}" reads {node.inputs[0]!r} of shape {shape} for one sample; expected '
                         "(channels, height, width)")
    return shape[0], shape[1], shape[2]


def chunks_of(batch_work: int, per_chunk: int, most: int = 16) -> int:
    """Into how many chunks a sum is cut: by the sizes only, never by the threads."""
    return max(1, min(most, math.ceil(batch_work / per_chunk)))
