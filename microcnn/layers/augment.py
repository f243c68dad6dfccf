"""The rows that change training images at random, behind the door through which they come."""
from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import CompileError

if TYPE_CHECKING:
    from ..augment import Augment
    from ..parts import Value
    from ..plan import Schedule

FLIPS = {"": 0, "horizontal": 1, "vertical": 2, "both": 3}
MOST_CHANNELS = 4   # of an image whose channels come last; where both ends are so short, the first are the channels


def augment_input(s: Schedule, name: str, augment: Augment) -> Value:
    """An input's samples, changed. Raises CompileError where pixels would move in what is no image."""
    value = s.value(name)
    fields = {"crop": augment.crop, "brightness": augment.brightness, "noise": augment.noise, "flips": FLIPS[str(augment.flip)]}
    shift_h, shift_w = augment.shift if isinstance(augment.shift, tuple) else (augment.shift, augment.shift)
    sizes = image_sizes(value)
    if sizes is None:
        if augment.moves:
            raise CompileError(f'input "{name}" has shape {value.layout.shape} for one sample; shift, flip and crop need '
                               "images of three axes, (channels, height, width) or (height, width, channels)")
        sizes = 1, 1, 1, value.numbers
    outer, H, W, inner = sizes
    if augment.moves and (shift_h >= H or shift_w >= W):
        raise CompileError(f'shift (={shift_h}, {shift_w}) moves all of input "{name}" out of its {H} x {W} pixels; use less')
    made = s.make(name, value.layout)
    number = [entry.name for entry in s.graph.inputs].index(name)
    s.row("augment.forward", x=value.buffer, y=made.buffer, outer=outer, H=H, W=W, inner=inner, shift_h=shift_h,
          shift_w=shift_w, layer=-1 - number, **fields)
    return made


def image_sizes(value: Value) -> tuple[int, int, int, int] | None:
    """(outer, H, W, inner) of an image as it is stored; None for what is none."""
    layout = value.layout
    if len(layout.shape) != 3 or len(layout.dims) != 3:
        return None
    channel = 2 if layout.shape[2] <= MOST_CHANNELS < layout.shape[0] else 0
    (stored,) = layout.axes[channel]
    if stored == 0:
        return layout.dims[0], layout.dims[1], layout.dims[2], 1
    return (1, *layout.dims) if stored == 2 else None
