"""A memory plan drawn as SVG: every buffer a rectangle, over the rows of the program."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from microcnn.memory import Block

from .memory_plan import BOTH, PlannedRow, SharedPeak, extent_of, kind_of, phase_of, phases, updates_between
from .profile_data import MemoryPlan
from .report_text import TOLD_MOST, brief, fitted, mono_width, plain, size_of, svg_text

LABEL_SIZE, SANS_SIZE, PEAK_NAME = 10.0, 11.0, 190.0
LABEL_MOST, LABEL_LEAST = 260.0, 8      # pixels of a name; letters below which what is left of one says nothing
TICKS = 5
APART = 8.0         # pixels between the names of two phases
# Colours of what runs: classes of the report's style sheet.
STRIPES = {"forward": "p-forward", "loss": "p-loss", "backward": "p-dw", "update": "p-update"}

Widths = Mapping[str, float]    # by class, how wide in pixels a picture is that shows elements of the class


@dataclass(frozen=True)
class Frame:
    """Where a plan is drawn: rows from left to right, bytes from the foot up.

    rows     of the program
    top, height, left, width
             in pixels; without a width everything across is in percent of what the frame stands in
    """

    plan: MemoryPlan
    rows: int
    top: float
    height: float
    left: float = 0.0
    width: float | None = None

    @property
    def foot(self) -> float:
        return self.top + self.height

    def across(self, row: float) -> str:
        """Where a row begins."""
        return self._told(row, self.left)

    def length(self, rows: float) -> str:
        """How wide so many rows are."""
        return self._told(rows, 0.0)

    def level(self, size: float, extent: int) -> float:
        """How far down so many of the extent's bytes lie."""
        return self.top + self.height * (1 - size / extent)

    def _told(self, row: float, begin: float) -> str:
        share = row / self.rows
        return f"{100 * share:.6g}%" if self.width is None else f"{begin + self.width * share:.6g}"


def rectangle(block: Block, frame: Frame, extent: int) -> tuple[float, float, float, float]:
    """A block's first row and how many there are, its y from the top and its height in pixels."""
    first, end = min(max(block.first, 0), frame.rows), min(block.last + 1, frame.rows)
    height = frame.height * block.bytes / extent
    return first, max(end - first, 0), frame.level(block.offset - frame.plan.begin, extent) - height, height


def blocks_drawn(frame: Frame) -> str:
    """Every buffer; what it is is told where a mouse rests on it."""
    extent, drawn = extent_of(frame.plan), []
    for block in frame.plan.blocks:
        first, rows, y, height = rectangle(block, frame, extent)
        title = f"{block.layer}: {block.name}, {size_of(block.bytes)}, rows {block.first + 1} to {block.last + 1}"
        drawn.append(f'<rect class="{kind_of(block.kind)[1]}" x="{frame.across(first)}" y="{y:.6g}" '
                     f'width="{frame.length(rows)}" height="{height:.6g}"><title>{brief(title, TOLD_MOST)}</title></rect>')
    return "".join(drawn)


def size_steps(extent: int) -> list[int]:
    """Sizes for the axis, from 0 on: a power of two apart, about five."""
    step = 1
    while step * TICKS < extent:
        step *= 2
    return list(range(0, extent + 1, step))


def axis_drawn(frame: Frame, x: float) -> str:
    """Sizes, ending at x."""
    extent = extent_of(frame.plan)
    return "".join(svg_text(f"{x:g}", frame.level(size, extent) + 4, size_of(size).replace(".0\u00a0", "\u00a0"), "tick end")
                   for size in size_steps(extent))


def grid_drawn(frame: Frame) -> str:
    """A line for each size of the axis."""
    extent = extent_of(frame.plan)
    return "".join(f'<line class="grid" x1="{frame.across(0)}" x2="{frame.across(frame.rows)}" y1="{y:.5g}" y2="{y:.5g}"/>'
                   for y in (frame.level(size, extent) for size in size_steps(extent)))


def peak_drawn(frame: Frame, peak: SharedPeak, brief_in: str = "") -> str:
    """The line at the peak, with its size and who runs; in elements of the class `brief_in` the size alone."""
    x = frame.across(peak.row + 0.5)
    side, shift = ("", 4) if peak.row + 0.5 < frame.rows / 2 else ("end", -4)
    size = f"peak {size_of(peak.bytes)}"
    name = fitted(plain(peak.layer), PEAK_NAME, SANS_SIZE)
    full = f"{size}, {name}" if name else size
    told = ((brief_in, size), ("wide", full)) if brief_in else (("", full),)
    line = f'<line class="peak" x1="{x}" x2="{x}" y1="{frame.top - 16:g}" y2="{frame.foot:g}"/>'
    return line + "".join(svg_text(x, frame.top - 6, text, _classes("strong", css, side), more=f' dx="{shift}"')
                          for css, text in told)


def labels_drawn(frame: Frame, peak: SharedPeak, widths: Widths) -> str:
    """Names of layers in the rectangles under the peak's line that have room for them."""
    extent, found = extent_of(frame.plan), []
    for block in frame.plan.blocks:
        first, rows, y, height = rectangle(block, frame, extent)
        if not block.first <= peak.row <= block.last or height < LABEL_SIZE + 4:
            continue
        name = plain(block.layer)
        for css, pixels in widths.items():
            at, text = first, ""
            for begin in (peak.row + 0.5, first):       # behind the line where the whole name has room there
                room = (first + rows - begin) / frame.rows * pixels - 10
                at, text = begin, fitted(name, min(room, LABEL_MOST), LABEL_SIZE)
                if text == name:
                    break
            if len(text) >= LABEL_LEAST or text == name:
                found.append(svg_text(frame.across(at), round(y + height / 2 + 3.5, 2), text,
                                      _classes("inside", css, kind_of(block.kind)[1]), size=LABEL_SIZE, more=' dx="5"'))
    return "".join(found)


def time_drawn(frame: Frame, rows: Sequence[PlannedRow], widths: Widths) -> str:
    """Under the picture: the rows' numbers and what runs in them, in words where there is room."""
    y, all_phases = frame.foot, phases(rows)
    drawn = [f'<line class="base" x1="{frame.across(0)}" x2="{frame.across(frame.rows)}" y1="{y:g}" y2="{y:g}"/>',
             svg_text(frame.across(0), y + 34, "row 1", "tick"),
             svg_text(frame.across(frame.rows), y + 34, f"row {frame.rows}", "tick end")]
    for name, begin, end in all_phases:
        drawn.append(_stripe(frame, begin, end, y + 5, f"phase {STRIPES['backward' if name == BOTH else name]}"))
        if begin:
            x = frame.across(begin)
            drawn.append(f'<line class="split" x1="{x}" x2="{x}" y1="{frame.top:g}" y2="{y + 8:g}"/>')
    drawn += [_stripe(frame, begin, end, y + 5, f"lot {STRIPES['update']}") for begin, end in updates_between(rows)]
    for css, pixels in widths.items():
        drawn += [svg_text(frame.across((begin + end) / 2), y + 20, name, _classes("middle", css))
                  for name, begin, end in _named(all_phases, pixels / frame.rows, pixels)]
    return "".join(drawn)


def _classes(*names: str) -> str:
    return " ".join(filter(None, names))


def _stripe(frame: Frame, begin: int, end: int, y: float, css: str) -> str:
    return f'<line class="{css}" x1="{frame.across(begin)}" x2="{frame.across(end)}" y1="{y:g}" y2="{y:g}"/>'


def _named(found: Sequence[tuple[str, int, int]], scale: float, pixels: float) -> list[tuple[str, int, int]]:
    """The phases whose names have room below them, the long ones first; a name may be wider than its phase."""
    taken: list[tuple[float, float]] = []
    named = []
    for name, begin, end in sorted(found, key=lambda phase: phase[1] - phase[2]):
        middle, half = (begin + end) / 2 * scale, mono_width(name, SANS_SIZE) / 2
        left, right = middle - half, middle + half
        if left >= 0 and right <= pixels and all(right + APART <= one or other + APART <= left for one, other in taken):
            taken.append((left, right))
            named.append((name, begin, end))
    return named


def stripes_of(rows: Sequence[PlannedRow]) -> list[tuple[str, str]]:
    """What the colours under the picture mean: phases that some row belongs to, and the classes of their colours."""
    found = {phase_of(row.part) for row in rows}
    return [(name, css) for name, css in STRIPES.items() if name in found]


def spans_told(rows: Sequence[PlannedRow]) -> str:
    """The phases and their rows in words, "" without rows."""
    told = ", ".join(f"{name} rows {begin + 1}\u2013{end}" for name, begin, end in phases(rows))
    return f"{told[:1].upper()}{told[1:]}"


def runs_told(layer: str, part: str) -> str:
    """What a row does to a layer: "backward"; "" for the loss, which is no layer's."""
    phase = phase_of(part)
    return "" if phase == layer else phase
