"""The rows through which samples come in and results go out: the callers' arrays in the model's order, the arena in its own."""
from __future__ import annotations

from typing import TYPE_CHECKING

from . import layers
from .layers.augment import augment_input
from .layout import Layout, pad5, strides_between

if TYPE_CHECKING:
    from .plan import Schedule


def rows_in(s: Schedule) -> None:
    """Every input from the caller's array; in training changed at random, where that was asked for."""
    s.phase, s.node = "layout", None
    for entry in s.graph.inputs:
        shape = s.shapes[entry.name]
        layout = _input_layout(s, entry.name, shape)
        value = s.make(entry.name, layout)
        s.row("layout.input", y=value.buffer, slot=s.slots[f"input:{entry.name}"],
              **pad5(*strides_between(Layout.plain(shape), layout)))
        if s.mode in ("train", "evaluate"):
            s.row("loss.check_input", x=value.buffer, size=value.numbers)
        if s.mode == "train" and s.training.augment:
            augment_input(s, entry.name, s.training.augment)


def _input_layout(s: Schedule, tensor: str, shape: tuple[int, ...]) -> Layout:
    """Channels last where what reads the input wants them so."""
    readers = s.graph.consumers().get(tensor, [])
    wanted = any(layers.LAYERS[node.op].channels_last for node in readers) and len(shape) == 3
    return Layout.channels_last(shape) if wanted else Layout.plain(shape)


def rows_out(s: Schedule) -> None:
    """Every output into the caller's array."""
    s.phase, s.node = "layout", None
    for name in s.graph.outputs:
        value = s.values[name]
        s.row("layout.output", x=value.buffer, slot=s.slots[f"output:{name}"],
              **pad5(*strides_between(value.layout, Layout.plain(value.layout.shape))))
