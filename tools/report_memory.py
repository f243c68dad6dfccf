"""The memory picture of the report: every buffer of the plan as a rectangle, over the rows of the program."""
from __future__ import annotations

from microcnn.memory import ALIGNMENT, Block

from .profile_data import MemoryPlan, Run
from .report_layers import swatch
from .report_text import (
    NAME_MOST,
    TOLD_MOST,
    Peak,
    brief,
    counted,
    fitted,
    mono_width,
    named,
    peak_of,
    plain,
    share_of,
    size_of,
    svg_text,
)

HEIGHT, ABOVE, BELOW = 300.0, 20.0, 40.0        # pixels of the picture: for the buffers, the peak's label, the axis
AXIS = 58                                       # pixels beside it, for the sizes
NARROW, WIDE = 230.0, 640.0                     # widths of the picture that labels are made for: phones, and others
LABEL_SIZE, SANS_SIZE, PEAK_NAME = 10.0, 11.0, 190.0
TICKS = 5
# Kinds as the plan or older files name them, the class of their colour, what they are called.
KINDS = (("activation", "k-activation", "activations"), ("gradient", "k-gradient", "gradients"),
         ("scratch", "k-scratch", "scratch"), ("state", "k-state", "optimizer state"),
         ("parameter", "k-parameter", "parameters"))
OTHER = ("", "k-other", "other")
PARTS = {"forward": "forward", "loss": "forward", "backward_input": "backward", "backward_weight": "backward",
         "backward": "backward", "update": "update"}
HOLDERS = 8


def kind_of(kind: str) -> tuple[str, str, str]:
    """The entry of KINDS for a block's kind."""
    return next((entry for entry in KINDS if str(kind).rstrip("s") == entry[0]), OTHER)


def memory_section(run: Run) -> str:
    """The picture, what makes the peak, and what lies outside the part that is shared over time."""
    plan, peak = run.memory, peak_of(run)
    if plan is None:
        return '<p class="note">This profile does not hold the memory plan; measured again, it will.</p>'
    if peak is None or extent_of(plan) <= 0:
        return f'<p class="note">The plan shares no buffers over time. The arena takes {size_of(plan.arena)}.</p>'
    return f"{_legend(plan)}\n{_figure(run, plan, peak)}\n{_holders(run, plan, peak)}"


def extent_of(plan: MemoryPlan) -> int:
    """Bytes from where the shared part begins to where its highest buffer ends."""
    return max(block.offset + block.bytes for block in plan.blocks) - plan.begin


def rectangle(block: Block, plan: MemoryPlan, rows: int, extent: int) -> tuple[float, float, float, float]:
    """A block's x and width in percent of the picture's, its y from the top and its height in pixels."""
    x, end = 100 * max(block.first, 0) / rows, 100 * min(block.last + 1, rows) / rows
    height = HEIGHT * block.bytes / extent
    return x, ABOVE + HEIGHT * (1 - (block.offset - plan.begin) / extent) - height, max(end - x, 0.0), height


def phases(run: Run) -> list[tuple[str, int, int]]:
    """Forward, backward and update: the first row and the row after the last, without overlap."""
    parts = [PARTS.get(row.part, "forward") for row in run.rows]
    if not parts:
        return []
    behind = len(parts)
    begin = next((number for number, part in enumerate(parts) if part != "forward"), behind)
    end = max((number + 1 for number, part in enumerate(parts) if part == "backward"), default=begin)
    if "update" in parts[begin:end]:        # each weight may be updated as soon as its gradient is there
        return [("forward", 0, begin), ("backward and update", begin, behind)]
    found = [("forward", 0, begin), ("backward", begin, max(begin, end)), ("update", max(begin, end), behind)]
    return [phase for phase in found if phase[2] > phase[1]]


def _legend(plan: MemoryPlan) -> str:
    used = {kind_of(block.kind) for block in plan.blocks}
    keys = "".join(f"<li>{swatch(css)}{title}</li>" for _, css, title in (entry for entry in (*KINDS, OTHER) if entry in used))
    return (f'<p>Each rectangle is a buffer: from left to right the rows of the program between which it lives, from bottom to '
            f'top where it lies.</p>\n<ul class="legend">{keys}</ul>')


def _figure(run: Run, plan: MemoryPlan, peak: Peak) -> str:
    extent = extent_of(plan)
    steps = size_steps(extent)
    height = ABOVE + HEIGHT + BELOW
    axis = "".join(svg_text(str(AXIS - 6), ABOVE + HEIGHT * (1 - size / extent) + 4, _tick(size), "tick end") for size in steps)
    lines = "".join(f'<line class="grid" x1="0" x2="100%" y1="{y:.5g}" y2="{y:.5g}"/>'
                    for y in (ABOVE + HEIGHT * (1 - size / extent) for size in steps))
    blocks = "".join(_block(block, plan, peak.rows, extent) for block in plan.blocks)
    label = f"Memory over time: {len(plan.blocks)} buffers, at most {size_of(peak.bytes)} at once, in row {peak.row + 1} " \
        f"of {peak.rows}" + (f", while {peak.layer} runs" if peak.layer else "")
    return (f'<figure><div class="plot"><svg class="axis" width="{AXIS}" height="{height:g}" aria-hidden="true">{axis}</svg>'
            f'<svg class="area" height="{height:g}" role="img" aria-label="{brief(label, TOLD_MOST)}">{lines}{blocks}'
            f'{_peak_line(peak)}{_time_axis(run, peak.rows)}{_labels(plan, peak, extent)}</svg></div>'
            f'<figcaption>{_caption(run, plan, peak, extent)}</figcaption></figure>')


def size_steps(extent: int) -> list[int]:
    """Sizes for the axis, from 0 on: a power of two apart, about five."""
    step = 1
    while step * TICKS < extent:
        step *= 2
    return list(range(0, extent + 1, step))


def _tick(size: float) -> str:
    return size_of(size).replace(".0\u00a0", "\u00a0")


def _block(block: Block, plan: MemoryPlan, rows: int, extent: int) -> str:
    x, y, width, height = rectangle(block, plan, rows, extent)
    title = f"{block.layer}: {block.name}, {size_of(block.bytes)}, rows {block.first + 1} to {block.last + 1}"
    return (f'<rect class="{kind_of(block.kind)[1]}" x="{x:.6g}%" y="{y:.6g}" width="{width:.6g}%" height="{height:.6g}">'
            f'<title>{brief(title, TOLD_MOST)}</title></rect>')


def _peak_line(peak: Peak) -> str:
    x = 100 * (peak.row + 0.5) / peak.rows
    side, shift = ("", 4) if x < 50 else ("end", -4)
    size = f"peak {size_of(peak.bytes)}"
    name = fitted(plain(peak.layer), PEAK_NAME, SANS_SIZE)
    told = (("narrow", size), ("wide", f"{size}, {name}" if name else size))
    return f'<line class="peak" x1="{x:.6g}%" x2="{x:.6g}%" y1="4" y2="{ABOVE + HEIGHT:g}"/>' + "".join(
        svg_text(f"{x:.6g}%", 14, text, f"strong {css} {side}".strip(), more=f' dx="{shift}"') for css, text in told)


def _labels(plan: MemoryPlan, peak: Peak, extent: int) -> str:
    """Names of layers in the rectangles under the peak's line that have room for them."""
    found = []
    for block in plan.blocks:
        x, y, width, height = rectangle(block, plan, peak.rows, extent)
        if not block.first <= peak.row <= block.last or height < LABEL_SIZE + 4:
            continue
        for css, pixels in (("narrow", NARROW), ("wide", WIDE)):
            room = width / 100 * pixels - 10
            text = fitted(plain(block.layer), min(room, 260), LABEL_SIZE)
            if len(text) >= 4 or text == plain(block.layer):
                found.append(svg_text(f"{x:.6g}%", round(y + height / 2 + 3.5, 2), text,
                                      f"inside {css} {kind_of(block.kind)[1]}", size=LABEL_SIZE, more=' dx="5"'))
    return "".join(found)


def _time_axis(run: Run, rows: int) -> str:
    """The rows' numbers and the phases, where they have room."""
    y = ABOVE + HEIGHT
    drawn = [f'<line class="base" x1="0" x2="100%" y1="{y:g}" y2="{y:g}"/>', svg_text("0", y + 34, "row 1", "tick"),
             svg_text("100%", y + 34, f"row {rows}", "tick end")]
    for name, begin, end in phases(run):
        left, right = 100 * begin / rows, 100 * end / rows
        drawn.append(f'<line class="phase" x1="{left:.6g}%" x2="{right:.6g}%" y1="{y + 4:g}" y2="{y + 4:g}"/>')
        if begin:
            drawn.append(f'<line class="split" x1="{left:.6g}%" x2="{left:.6g}%" y1="{ABOVE:g}" y2="{y + 8:g}"/>')
        if (right - left) / 100 * NARROW >= mono_width(name, SANS_SIZE):
            drawn.append(svg_text(f"{(left + right) / 2:.6g}%", y + 18, name, "middle"))
    return "".join(drawn)


def _caption(run: Run, plan: MemoryPlan, peak: Peak, extent: int) -> str:
    spans = ", ".join(f"{name} rows {begin + 1}\u2013{end}" for name, begin, end in phases(run))
    lasting = f" Before it in the arena lie {size_of(plan.begin)} that live for ever: {size_of(plan.parameters)} parameters" \
        + (f", {size_of(plan.state)} optimizer state" if plan.state else "") + "."
    others = plan.arena - plan.begin - extent      # less than ALIGNMENT is what the last buffer is rounded up by
    elsewhere = f" {size_of(others)} of the arena only other programs of this network use." if others >= ALIGNMENT else ""
    told = f"{size_of(peak.bytes)} are live at the peak.{lasting if plan.begin else ''}"
    return (f"The shared part takes {size_of(extent)}; {told} "
            f"The whole arena is {size_of(plan.arena)}.{elsewhere}{f' {spans[0].upper()}{spans[1:]}.' if spans else ''}")


def _holders(run: Run, plan: MemoryPlan, peak: Peak) -> str:
    """The layers whose buffers are live at the peak, by size."""
    shown = peak.makers(HOLDERS)
    rows = [f'<tr><th scope="row">{named(layer, NAME_MOST)}</th><td>{_buffers(plan, peak, layer)}</td>'
            f'<td class="number">{size_of(size)}</td><td class="number">{share_of(size, peak.bytes)}</td></tr>'
            for layer, size in shown]
    rest = peak.bytes - sum(size for _, size in shown)
    if rest:
        rows.append(f'<tr><th scope="row">{counted(len(peak.holders) - len(shown), "other")}</th><td></td>'
                    f'<td class="number">{size_of(rest)}</td><td class="number">{share_of(rest, peak.bytes)}</td></tr>')
    when = f"row {peak.row + 1}" + (f", {PARTS.get(peak.part, 'forward')} of {named(peak.layer)}" if peak.layer else "")
    head = "".join(f'<th scope="col"{css}>{title}</th>' for title, css in (
        ("Layer", ""), ("Buffers", ""), ("Bytes", ' class="number"'), ("Share", ' class="number"')))
    return (f'<p class="note">What is held at the peak ({when}):</p>\n<div class="scroll" tabindex="0" role="region" '
            'aria-label="Who holds memory at the peak"><table><caption class="hidden">Layers by what they hold at the peak'
            f'</caption><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>')


def _buffers(plan: MemoryPlan, peak: Peak, layer: str) -> str:
    """What kinds of buffers a layer holds at the peak."""
    kinds = [kind_of(block.kind)[2] for block in plan.blocks
             if block.layer == layer and block.first <= peak.row <= block.last and block.bytes]
    return ", ".join(dict.fromkeys(kinds))
