"""A memory plan as one SVG file for any viewer: the arena at its peak, the shared part over time, who makes the peak."""
from __future__ import annotations

import re
from collections.abc import Sequence

from .memory_drawing import (
    Frame,
    axis_drawn,
    blocks_drawn,
    grid_drawn,
    labels_drawn,
    peak_drawn,
    stripes_of,
    time_drawn,
)
from .memory_plan import KINDS, Picture, SharedPeak, elsewhere, extent_of, kind_of, phase_of
from .report_style import DARK, LIGHT
from .report_text import (
    SANS_ADVANCE,
    TOLD_MOST,
    brief,
    counted,
    fitted,
    plain,
    share_of,
    size_of,
    svg_text,
)

WIDTH, MARGIN = 1120.0, 28.0
BAR, SWATCH = 18.0, 12.0
AXIS, HOLDERS_WIDTH, BETWEEN = 70.0, 300.0, 28.0
PLOT_HEIGHT, LINE = 360.0, 21.0
TITLE_SIZE, TEXT_SIZE, NAME_SIZE = 19.0, 12.5, 11.0
FIXED, FREE = "k-other", "k-free"
UNUSED = "not used at the peak"
BOLDEST = 1.2       # how much wider than a monospaced font's letters those of a wide sans-serif one are, taken together

RULES = """
.page{fill:var(--page)}
text{font-family:"Helvetica Neue",Helvetica,Arial,"DejaVu Sans",sans-serif;font-size:12.5px;fill:var(--soft)}
.title{font-size:19px;font-weight:bold;fill:var(--ink)}
.told{fill:var(--ink)}
.told.bold{font-weight:bold}
.tick,.middle,.strong{font-size:11px}
.strong{font-weight:bold;fill:var(--peak)}
.end{text-anchor:end}
.middle{text-anchor:middle}
.name,.inside{font-family:Menlo,Consolas,"DejaVu Sans Mono","Liberation Mono",monospace}
.name{font-size:11px;fill:var(--ink)}
.inside{font-size:10px;fill:var(--k-ink)}
.grid{stroke:var(--grid)}
.base{stroke:var(--ink)}
.split{stroke:var(--edge);stroke-dasharray:2 4}
.phase,.lot{stroke-width:5}
.peak{stroke:var(--peak);stroke-width:1.5}
rect{stroke:var(--k-line);stroke-width:.6}
.page,.bar{stroke:none}
.k-other{stroke:var(--edge)}
.k-free{fill:var(--page);stroke:var(--edge);stroke-dasharray:3 2}
"""


def style() -> str:
    """All rules with their colours, and those that dark viewers take instead: many know no variables, some no paint-order."""
    fills = [name for name in LIGHT if name.startswith(("p-", "k-")) and name not in ("k-ink", "k-line")]
    rules = RULES + "".join(f"rect.{name}{{fill:var(--{name})}}line.{name}{{stroke:var(--{name})}}\n"
                            for name in fills)

    def coloured(colours: dict[str, str]) -> str:
        return re.sub(r"var\(--([\w-]+)\)", lambda found: colours[found[1]], rules)
    return f"{coloured(LIGHT)}@media screen and (prefers-color-scheme:dark){{{coloured(DARK)}}}\n"


def svg_of(picture: Picture) -> str:
    """The picture as the text of a file; the same plan always gives the same one."""
    above, y = _above(picture)
    plot_width = WIDTH - 2 * MARGIN - AXIS - BETWEEN - HOLDERS_WIDTH
    peak = picture.peak
    frame = Frame(picture.plan, peak.rows, y + 20, PLOT_HEIGHT, MARGIN + AXIS, plot_width)
    widths = {"": plot_width}
    drawn = [*above, grid_drawn(frame), axis_drawn(frame, MARGIN + AXIS - 8), blocks_drawn(frame), peak_drawn(frame, peak),
             time_drawn(frame, picture.rows, widths), labels_drawn(frame, peak, widths),
             *_holders(picture, peak, MARGIN + AXIS + plot_width + BETWEEN, frame.top - 6)]
    below, height = _below(picture, frame.foot + 62)
    drawn += below
    label = f"{picture.title}: {picture.told}. {picture.summary}"
    size = f'viewBox="0 0 {WIDTH:g} {height:g}" width="{WIDTH:g}" height="{height:g}"'
    return (f'<?xml version="1.0" encoding="UTF-8"?>\n<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">\n'
            f'<title>{brief(label, TOLD_MOST)}</title>\n<style>{style()}</style>\n'
            f'<rect class="page" width="{WIDTH:g}" height="{height:g}"/>\n' + "\n".join(drawn) + "\n</svg>\n")


def _text(x: float, y: float, text: str, css: str, *, size: float = 0.0) -> str:
    return svg_text(f"{x:g}", y, text, css, size=size)


def _above(picture: Picture) -> tuple[list[str], float]:
    """Titles, the arena as a bar with its legend, the heading of the plot; and how far down that goes."""
    inner = WIDTH - 2 * MARGIN
    drawn = [_text(MARGIN, 40, fitted(plain(picture.title), inner, BOLDEST * TITLE_SIZE), "title"),
             _text(MARGIN, 62, fitted(plain(picture.told), inner, BOLDEST * TEXT_SIZE), "soft"),
             _text(MARGIN, 92, f"{picture.summary}. At the peak it holds:", "told")]
    y, parts = 104.0, _parts(picture)
    whole, at = sum(size for _, _, size in parts), MARGIN
    for css, title, size in parts:
        length = inner * size / whole
        drawn.append(f'<rect class="{css}" x="{at:.6g}" y="{y:g}" width="{length:.6g}" height="{BAR:g}">'
                     f"<title>{title}: {size_of(size)}</title></rect>")
        at += length
    items, bottom = _legend([(css, f"{title} {size_of(size)}") for css, title, size in parts], y + BAR + 22)
    drawn += items
    extent = size_of(extent_of(picture.plan))
    drawn.append(_text(MARGIN, bottom + 34, f"The part of the arena that is shared over time, {extent}", "told bold"))
    drawn.append(_text(MARGIN, bottom + 53, "Each rectangle is a buffer: from left to right the rows of the program between "
                       "which it lives, from bottom to top where it lies, as high as its bytes.", "soft"))
    return drawn, bottom + 68


def _parts(picture: Picture) -> list[tuple[str, str, int]]:
    """The whole arena at the peak: class, name and bytes of what lives for ever, of shared buffers by kind, of the rest."""
    sums: dict[str, int] = {}
    for buffer in picture.memory.fullest.lasting:
        kind = FIXED if buffer.kind == "scratch" else buffer.kind
        sums[kind] = sums.get(kind, 0) + buffer.bytes
    for block in picture.memory.fullest.shared:
        sums[block.kind] = sums.get(block.kind, 0) + block.bytes
    found = [(css, title, sums.get(kind, 0)) for kind, css, title in (*KINDS[::-1][:2], *KINDS[:3])]
    found += [(FIXED, "constants", sums.get(FIXED, 0)),
              (FREE, UNUSED, picture.memory.arena - picture.memory.peak)]
    return [part for part in found if part[2] > 0]


def _legend(items: Sequence[tuple[str, str]], y: float) -> tuple[list[str], float]:
    """Swatches with words, in columns; and the last line's y."""
    inner = WIDTH - 2 * MARGIN
    column = max(SWATCH + 24 + len(text) * SANS_ADVANCE * TEXT_SIZE for _, text in items)
    columns = max(1, min(len(items), int(inner / column)))
    drawn = []
    for number, (css, text) in enumerate(items):
        x, at = MARGIN + number % columns * column, y + number // columns * LINE
        drawn += [f'<rect class="{css}" x="{x:.6g}" y="{at - SWATCH + 1:g}" width="{SWATCH:g}" height="{SWATCH:g}"/>',
                  _text(x + SWATCH + 6, at, text, "told")]
    return drawn, y + (len(items) - 1) // columns * LINE


def _holders(picture: Picture, peak: SharedPeak, x: float, y: float) -> list[str]:
    """A list beside the plot: by layer and kind, what lives in the shared part at the peak, the largest first."""
    right, size_at = x + HOLDERS_WIDTH, x + HOLDERS_WIDTH - 54
    runs = phase_of(peak.part)
    drawn = [_text(x, y, f"Live in it at the peak: {size_of(peak.bytes)}", "told bold"),
             _text(x, y + 19, f"row {peak.row + 1} of {peak.rows}, {runs}{'' if runs == peak.layer else ' of'}", "soft")]
    if runs != peak.layer:
        drawn.append(_text(x, y + 37, fitted(plain(peak.layer), HOLDERS_WIDTH, NAME_SIZE), "name", size=NAME_SIZE))
    held: dict[tuple[str, str], int] = {}
    for block in picture.plan.blocks:
        if block.first <= peak.row <= block.last and block.bytes:
            key = block.layer, block.kind
            held[key] = held.get(key, 0) + block.bytes
    ranked = sorted(held.items(), key=lambda entry: -entry[1])
    room, name_width = int((PLOT_HEIGHT - 52) / LINE), size_at - x - SWATCH - 76
    shown = ranked if len(ranked) <= room else ranked[:room - 1]
    y += 64
    for (layer, kind), size in shown:
        drawn.append(f'<rect class="{kind_of(kind)[1]}" x="{x:g}" y="{y - SWATCH + 2:g}" width="{SWATCH:g}" '
                     f'height="{SWATCH:g}"><title>{kind_of(kind)[2]}</title></rect>')
        drawn.append(_text(x + SWATCH + 6, y, fitted(plain(layer), name_width, NAME_SIZE), "name", size=NAME_SIZE))
        drawn += _figures(size, peak, size_at, right, y)
        y += LINE
    rest = ranked[len(shown):]
    if rest:
        drawn.append(_text(x + SWATCH + 6, y, counted(len(rest), "other"), "soft"))
        drawn += _figures(sum(size for _, size in rest), peak, size_at, right, y)
    return drawn


def _figures(size: int, peak: SharedPeak, size_at: float, right: float, y: float) -> list[str]:
    return [_text(size_at, y, size_of(size), "told end"), _text(right, y, share_of(size, peak.bytes), "soft end")]


def _below(picture: Picture, y: float) -> tuple[list[str], float]:
    """What the stripes mean, and what the picture does not show; and the height of the whole."""
    drawn, y = _legend([(css, name) for name, css in stripes_of(picture.rows)], y)
    memory, plan = picture.memory, picture.plan
    told = f"No plan can do with less than {size_of(memory.lower_bound)}; this one takes {memory.ratio:.3f} times that."
    told = f"{told} {elsewhere(plan)}".rstrip()
    drawn.append(_text(MARGIN, y + 26, told, "soft"))
    return drawn, y + 26 + MARGIN
