"""The memory picture of the report: every buffer of the plan as a rectangle, and who makes the peak."""
from __future__ import annotations

from collections.abc import Sequence

from .memory_drawing import (
    Frame,
    axis_drawn,
    blocks_drawn,
    grid_drawn,
    labels_drawn,
    peak_drawn,
    runs_told,
    spans_told,
    stripes_of,
    time_drawn,
)
from .memory_plan import KINDS, OTHER, Picture, PlannedRow, SharedPeak, elsewhere, extent_of, kind_of, shared_peak
from .profile_data import MemoryPlan
from .report_layers import swatch
from .report_style import page
from .report_text import NAME_MOST, TOLD_MOST, brief, counted, escaped, named, plain, share_of, size_of

HEIGHT, ABOVE, BELOW = 300.0, 20.0, 40.0        # pixels of the picture: for the buffers, the peak's label, the axis
AXIS = 58                                       # pixels beside it, for the sizes
WIDTHS = {"narrow": 230.0, "wide": 640.0}       # of the picture that words are made for: on phones, and elsewhere
HOLDERS = 8


def memory_section(plan: MemoryPlan | None, rows: Sequence[PlannedRow]) -> str:
    """The picture, what makes the peak, and what lies outside the part that is shared over time."""
    peak = shared_peak(plan, rows)
    if plan is None:
        return '<p class="note">This profile does not hold the memory plan; measured again, it will.</p>'
    if peak is None or extent_of(plan) <= 0:
        return f'<p class="note">The plan shares no buffers over time. The arena takes {size_of(plan.arena)}.</p>'
    return f"{_legend(plan, rows)}\n{_figure(plan, rows, peak)}\n{_holders(plan, peak)}"


def memory_page(picture: Picture) -> str:
    """The section as a page of its own, of a plan that nothing was measured of."""
    return page(f"{plain(picture.title)} \u2013 memory", f"""<header>
<p class="kicker">microcnn info</p>
<h1>{named(picture.title, 120)}</h1>
<p class="under">{escaped(picture.told)}</p>
</header>
<main>
<h2>Memory over time</h2>
<p>{picture.summary}.</p>
{memory_section(picture.plan, picture.rows)}
</main>""")


def _legend(plan: MemoryPlan, rows: Sequence[PlannedRow]) -> str:
    used = {kind_of(block.kind) for block in plan.blocks}
    keys = "".join(f"<li>{swatch(css)}{title}</li>" for _, css, title in (entry for entry in (*KINDS, OTHER) if entry in used))
    keys += "".join(f"<li>{swatch(css)}{name} runs</li>" for name, css in stripes_of(rows))
    return (f'<p>Each rectangle is a buffer: from left to right the rows of the program between which it lives, from bottom to '
            f'top where it lies.</p>\n<ul class="legend">{keys}</ul>')


def _figure(plan: MemoryPlan, rows: Sequence[PlannedRow], peak: SharedPeak) -> str:
    frame = Frame(plan, peak.rows, ABOVE, HEIGHT)
    height = ABOVE + HEIGHT + BELOW
    label = f"Memory over time: {len(plan.blocks)} buffers, at most {size_of(peak.bytes)} at once, in row {peak.row + 1} " \
        f"of {peak.rows}" + (f", while {peak.layer} runs" if peak.layer else "")
    return (f'<figure><div class="plot"><svg class="axis" width="{AXIS}" height="{height:g}" aria-hidden="true">'
            f'{axis_drawn(frame, AXIS - 6)}</svg>'
            f'<svg class="area" height="{height:g}" role="img" aria-label="{brief(label, TOLD_MOST)}">{grid_drawn(frame)}'
            f'{blocks_drawn(frame)}{peak_drawn(frame, peak, "narrow")}{time_drawn(frame, rows, WIDTHS)}'
            f'{labels_drawn(frame, peak, WIDTHS)}</svg></div><figcaption>{_caption(plan, rows, peak)}</figcaption></figure>')


def _caption(plan: MemoryPlan, rows: Sequence[PlannedRow], peak: SharedPeak) -> str:
    spans, others = spans_told(rows), elsewhere(plan)
    lasting = f" Before it in the arena lie {size_of(plan.begin)} that live for ever: {size_of(plan.parameters)} parameters" \
        + (f", {size_of(plan.state)} optimizer state" if plan.state else "") + "."
    told = f"{size_of(peak.bytes)} are live at the peak.{lasting if plan.begin else ''}"
    return (f"The shared part takes {size_of(extent_of(plan))}; {told} The whole arena is {size_of(plan.arena)}."
            f"{f' {others}' if others else ''}{f' {spans}.' if spans else ''}")


def _holders(plan: MemoryPlan, peak: SharedPeak) -> str:
    """The layers whose buffers are live at the peak, by size."""
    shown = peak.makers(HOLDERS)
    rows = [f'<tr><th scope="row">{named(layer, NAME_MOST)}</th><td>{_buffers(plan, peak, layer)}</td>'
            f'<td class="number">{size_of(size)}</td><td class="number">{share_of(size, peak.bytes)}</td></tr>'
            for layer, size in shown]
    rest = peak.bytes - sum(size for _, size in shown)
    if rest:
        rows.append(f'<tr><th scope="row">{counted(len(peak.holders) - len(shown), "other")}</th><td></td>'
                    f'<td class="number">{size_of(rest)}</td><td class="number">{share_of(rest, peak.bytes)}</td></tr>')
    runs = runs_told(peak.layer, peak.part)
    when = f"row {peak.row + 1}" + (f", {f'{runs} of ' if runs else ''}{named(peak.layer)}" if peak.layer else "")
    head = "".join(f'<th scope="col"{css}>{title}</th>' for title, css in (
        ("Layer", ""), ("Buffers", ""), ("Bytes", ' class="number"'), ("Share", ' class="number"')))
    return (f'<p class="note">What is held at the peak ({when}):</p>\n<div class="scroll" tabindex="0" role="region" '
            'aria-label="Who holds memory at the peak"><table><caption class="hidden">Layers by what they hold at the peak'
            f'</caption><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>')


def _buffers(plan: MemoryPlan, peak: SharedPeak, layer: str) -> str:
    """What kinds of buffers a layer holds at the peak."""
    kinds = [kind_of(block.kind)[2] for block in plan.blocks
             if block.layer == layer and block.first <= peak.row <= block.last and block.bytes]
    return ", ".join(dict.fromkeys(kinds))
