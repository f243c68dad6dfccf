"""Random changes of training images, as plain data: what moves, how far. The compiled program makes them, step by step."""
from __future__ import annotations

import numbers
from dataclasses import dataclass, fields
from typing import Any

from .errors import CompileError


def _is_size(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool) and 0 <= int(value) <= 2**15


FLIPS = ("", "horizontal", "vertical", "both")


@dataclass(frozen=True)
class Augment:
    """How training images are changed at random, each sample of each step anew.

    train_step and fit do so; evaluation, prediction and the manual forward and backward see none of it.

    shift       up to so many pixels up or down and left or right: one integer, or (vertical, horizontal). The edge is
                repeated where the image ends
    flip        "horizontal" (or True), "vertical" or "both": mirrored in half of the cases, for "both" each way by itself
    crop        from 0 to 1: a random part, each side between this share of it and all of it, is stretched to the whole
                image (bilinear); 1: no crop
    brightness  up to so much is added to all numbers of a sample, or taken away; in the units that the network sees, after
                normalisation
    noise       standard deviation of what is added to each number by itself, bell-shaped; in the same units

    The changes follow from compile's seed, the step and the sample's place in the batch: the same run gives the same images,
    with any number of threads. Raises CompileError for values that make no sense.
    """

    shift: int | tuple[int, int] = 0
    flip: str | bool = ""
    crop: float = 1.0
    brightness: float = 0.0
    noise: float = 0.0

    def __post_init__(self) -> None:
        both = self.shift if isinstance(self.shift, (tuple, list)) else (self.shift, self.shift)
        if len(both) != 2 or not all(_is_size(n) for n in both):
            raise CompileError(f"Augment: shift is {self.shift!r}; expected a number of pixels from 0 on, or (vertical, "
                               "horizontal)")
        object.__setattr__(self, "shift", (int(both[0]), int(both[1])))
        flip = {True: "horizontal", False: ""}.get(self.flip, self.flip) if isinstance(self.flip, bool) else self.flip
        if flip not in FLIPS:
            raise CompileError(f'Augment: flip is {self.flip!r}; expected True, "horizontal", "vertical" or "both"')
        object.__setattr__(self, "flip", flip)
        self._number("crop", "a number above 0, up to 1, such as 0.8", above=0.0, most=1.0)
        self._number("brightness", "a finite number, 0 or more, such as 0.2", above=-1e-300, most=1e30)
        self._number("noise", "a finite number, 0 or more, such as 0.05", above=-1e-300, most=1e30)

    def _number(self, name: str, expected: str, above: float, most: float) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, numbers.Real) or not above < float(value) <= most:
            raise CompileError(f"Augment: {name} is {value!r}; expected {expected}")
        object.__setattr__(self, name, float(value))

    @property
    def moves(self) -> bool:
        """Whether pixels change their places."""
        return self.shift != (0, 0) or self.flip != "" or self.crop < 1

    def __bool__(self) -> bool:
        return self.moves or self.brightness > 0 or self.noise > 0


EXAMPLES = {"shift": "2", "crop": "0.8", "brightness": "0.2", "noise": "0.05"}


def parse_augment(text: str) -> Augment:
    """An Augment as people type it: "shift=2,flip,brightness=0.2", "shift=1x3,flip=both". Raises CompileError."""
    given: dict[str, Any] = {}
    names = [entry.name for entry in fields(Augment)]
    for part in text.split(","):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if name in names and name != "flip" and not value:
            raise CompileError(f"augmentation {name} needs a number: {name}={EXAMPLES[name]}")
        if name not in names or (equals and not value):
            raise CompileError(f"augmentation {part.strip()!r} is not known; expected {', '.join(names)}, such as "
                               "shift=2,flip,crop=0.8,brightness=0.2,noise=0.05")
        try:
            given[name] = _value(name, value)
        except ValueError:
            raise CompileError(f"augmentation {name}={value}: {value!r} is no number") from None
    return Augment(**given)


def _value(name: str, text: str) -> Any:
    if name == "flip":
        return True if text.lower() in ("", "true") else text
    if name == "shift":
        sizes = tuple(int(piece) for piece in text.split("x"))
        return sizes[0] if len(sizes) == 1 else sizes
    return float(text)
