"""What every layer tells: shapes, costs, and which kernels run it forward and backward."""
from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from ..errors import ModelError

if TYPE_CHECKING:
    from ..fusion import Step
    from ..graph import Node
    from ..plan import Schedule

Shape = tuple[int, ...]

LAYERS: dict[str, type[Layer]] = {}


class Layer(ABC):
    """An operation. Never instantiated: a Node holds the data, the methods are static.

    A subclass with an `op` is registered in LAYERS. It has to have infer and forward, its own or inherited: without them
    it is refused with TypeError where it is defined, and with ValueError where another layer has the same op.

    op             its name in Node.op
    trainable      the roles of weights that training may change
    channels_last  whether images must lie N, H, W, C
    integers       whether its result holds whole numbers, which are int64 where they are an output of the network
    onnx           the ONNX operators that it stands for, as plain data: {operator: {}}. With "versions", the opsets that
                   changed the operator, and "attributes", {ONNX attribute: (attribute, default)}, that is all that
                   import and export need: one tensor in, one of the same shape out. Without, a converter in
                   tools (onnx_layers.py, onnx_shapes.py, ...) makes it, and onnx_build.py exports it
    """

    op: ClassVar[str]
    trainable: ClassVar[tuple[str, ...]] = ()
    channels_last: ClassVar[bool] = False
    integers: ClassVar[bool] = False
    onnx: ClassVar[dict[str, dict[str, Any]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "op" not in cls.__dict__:
            return
        for name in ("infer", "forward"):
            if getattr(cls, name) is getattr(Layer, name):
                raise TypeError(f"layer {cls.__name__} ({cls.op}) has no {name}; give it a static method of that name")
        if cls.op in LAYERS:
            raise ValueError(f"layers {LAYERS[cls.op].__name__} and {cls.__name__} are both called {cls.op}; give one another "
                             "op")
        LAYERS[cls.op] = cls

    @staticmethod
    @abstractmethod
    def infer(node: Node, shapes: list[Shape], weights: dict[str, Shape]) -> list[Shape]:
        """The outputs' shapes, given those of the inputs (of one sample) and of the weights as the node sees them, by role.

        Raises ModelError where they do not fit.
        """

    @staticmethod
    def macs(node: Node, shapes: list[Shape], outputs: list[Shape], weights: dict[str, Shape]) -> int:
        """Multiply-adds of one sample, forward; shapes and weights as in infer."""
        return 0

    @classmethod
    def output_axis(cls, node: Node, role: str) -> int | None:
        """The axis of a weight, as the node sees it, that runs along output channels; None where none does.

        In memory that axis is the last one. Training may change the first of these channels alone.
        """
        return None

    @staticmethod
    def varies(node: Node, bn: str) -> tuple[str, str] | None:
        """(why, remedy) where training makes something else of a sample each time it comes, None where it does not.

        bn: as in compile. Both are parts of a message: the node "does ...", and "Do ...".
        """
        return None

    @staticmethod
    @abstractmethod
    def forward(s: Schedule, step: Step) -> None:
        """Write the rows that run the step into the schedule s, and register its backward where a gradient passes."""


def expect_inputs(node: Node, shapes: list[Shape], count: int) -> None:
    """Raises ModelError unless the node has that many inputs."""
    if len(shapes) != count:
        raise ModelError(f'{node.op} "{node.name}" has {len(shapes)} inputs; expected {count}; give it that many')


def expect_image(node: Node, shape: Shape) -> tuple[int, int, int]:
    """(C, H, W); raises ModelError for anything else."""
    if len(shape) != 3:
        raise ModelError(f'{node.op} "{node.name}" reads "{node.inputs[0]}" of shape {shape} for one sample; expected '
                         "(channels, height, width)")
    return shape[0], shape[1], shape[2]
