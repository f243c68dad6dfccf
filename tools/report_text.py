"""Words and numbers of the profiler's report: escaping, widths of text, quantities, and what a run answers in words."""
from __future__ import annotations

import html
import math
import unicodedata
from collections.abc import Sequence
from typing import Any

from microcnn.memory import short

from .profile_data import LayerCost, Run
from .terminal import bytes_text, time_text

# Characters that turn the direction of what follows them, beyond the name that they stand in.
TURNING = frozenset("\u200e\u200f\u061c\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
# Advance of a letter as a share of the font's size: of the usual monospaced fonts, of what they lack, of wide sans-serif ones.
MONO_ADVANCE, STRANGE_ADVANCE, SANS_ADVANCE = 0.605, 1.21, 0.62
LAST_LATIN = "\u02ff"
NAME_MOST, OTHER_MOST, TOLD_MOST = 90, 40, 400     # letters of a name, of another word, of a description
AROUND = "python"       # op of the line for what Python does around the program: no layer
ABSENT = "\u2013"


def plain(value: Any) -> str:
    """The value as text in one line, with what cannot be shown or would disturb other text replaced."""
    return "".join(" " if sign in "\t\n\r" else "\ufffd" if _unfit(sign) else sign for sign in str(value))


def _unfit(sign: str) -> bool:
    return sign in TURNING or unicodedata.category(sign) in ("Cc", "Cs") or ord(sign) & 0xfffe == 0xfffe


def escaped(value: Any) -> str:
    """The value as text for HTML, in attributes too."""
    return html.escape(plain(value), quote=True)


def named(name: Any, most: int = NAME_MOST) -> str:
    """A layer's name as HTML: shortened where it is longer than that, with the whole of it as a title.

    It may be broken anywhere, best behind a slash.
    """
    text = plain(name)
    shown = short(text, most)
    title = "" if shown == text else f' title="{escaped(text)}"'
    return f'<span class="name"{title}>{escaped(shown[:1])}{escaped(shown[1:]).replace("/", "/<wbr>")}</span>'


def brief(value: Any, most: int = OTHER_MOST) -> str:
    """The value as text for HTML, with its middle left out where it is longer than that."""
    return escaped(short(plain(value), most))


def mono_width(text: str, size: float) -> float:
    """Pixels that a text takes in a monospaced font of so many pixels, at most."""
    return size * sum(MONO_ADVANCE if sign <= LAST_LATIN else STRANGE_ADVANCE for sign in text)


def fitted(text: str, width: float, size: float) -> str:
    """The text, its middle left out until it takes no more than so many pixels in a monospaced font; "" where nothing fits."""
    most = min(len(text), int(width / (MONO_ADVANCE * size)))
    shown = short(text, most) if most >= 4 or most >= len(text) else ""
    while shown and mono_width(shown, size) > width:
        most -= 1
        shown = short(text, most) if most >= 4 else ""
    return shown


def svg_text(x: str, y: float, text: str, css: str, *, size: float = 0.0, more: str = "") -> str:
    """A text element. size: of a monospaced font, whose width is then forced where other fonts may have to help out."""
    forced = ""
    if size and any(sign > LAST_LATIN for sign in text):
        forced = f' textLength="{mono_width(text, size):.1f}" lengthAdjust="spacingAndGlyphs"'
    return f'<text class="{css}" x="{x}" y="{y:g}"{forced}{more}>{escaped(text)}</text>'


def finite(value: Any) -> float:
    """The value where it is a number that can be drawn: finite and not below zero; else 0."""
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) and value > 0 else 0.0


def time_of(microseconds: float) -> str:
    """A duration, in a piece that does not break."""
    return _joined(time_text(microseconds).replace(" us", " \u00b5s"))


def size_of(size: float) -> str:
    """A number of bytes, in a piece that does not break."""
    return _joined(bytes_text(size))


def share_of(part: float, whole: float) -> str:
    """A part of a whole in percent; a dash where there is no whole."""
    return f"{100 * part / whole:.1f}%".replace("-", "\u2212") if whole > 0 and math.isfinite(part) else ABSENT


def shape_of(shape: Sequence[int] | None) -> str:
    """A shape as 16x8x8, with the sign for times; "" where there is none."""
    return "\u00d7".join(str(length) for length in shape or ())


def counted(number: int, noun: str) -> str:
    """1 layer, 2 layers."""
    return f"{number:,}\u00a0{noun}" + ("" if number == 1 else "s")


def rate_of(value: float) -> str:
    """A speed or a ratio with about three digits; a dash for none."""
    if not finite(value):
        return ABSENT
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _joined(text: str) -> str:
    return text.replace(" ", "\u00a0")


def title_of(run: Run) -> str:
    """What was measured: "Training step, batch 8, 2 threads"."""
    call = "Training step" if run.conditions.get("train") else "Prediction"
    threads = run.conditions.get("threads")
    told = f", {plain(threads)} thread{'' if threads == 1 else 's'}" if threads is not None else ""
    return f"{call}, batch {run.batch}{told}"


def by_cost(run: Run) -> list[LayerCost]:
    """The layers that took time, the slowest first, without what Python does around them."""
    return sorted((layer for layer in run.layers if layer.op != AROUND and finite(layer.total_us)),
                  key=lambda layer: -layer.total_us)


def bound_layers(run: Run, kind: str) -> list[LayerCost]:
    """Layers that "bandwidth" or "compute" limits, the slowest first; none where the machine was not measured."""
    return [layer for layer in by_cost(run) if run.bound_by(layer) == kind]


def share_together(run: Run, layers: Sequence[LayerCost]) -> str:
    """What layers take together, of the whole call or, where disturbances made that the smaller, of all layers."""
    whole = max(run.total_us, sum(layer.total_us for layer in run.layers))
    return share_of(sum(layer.total_us for layer in layers), whole)
