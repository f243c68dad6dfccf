"""What each layer costs, in the report: a bar per layer, and the table of all figures."""
from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from microcnn.memory import short

from .memory_plan import shared_peak
from .profile_data import LayerCost, Run
from .report_text import (
    ABSENT,
    AROUND,
    NAME_MOST,
    TOLD_MOST,
    brief,
    escaped,
    finite,
    named,
    plain,
    rate_of,
    shape_of,
    share_of,
    size_of,
    time_of,
)
from .terminal import count_text

Cell = Callable[[Run, LayerCost], tuple[Any, str]]      # a value to sort by, None for text, and what is shown
LENGTH = 1000.0         # units of a bar's length
MANY = 40               # layers above which the slowest stand first
BAR_NAME, TABLE_NAME = 64, 40
# Part, class of its colour, what it is called. "backward" is what a file tells that does not know dX from dW.
SEGMENTS = (("forward", "p-forward", "forward"), ("backward_input", "p-dx", "dX (backward)"),
            ("backward_weight", "p-dw", "dW (backward)"), ("backward", "p-dw", "backward"), ("update", "p-update", "update"))


def parts_of(layer: LayerCost) -> dict[str, float]:
    """Microseconds by part, none of them negative; "backward" is what dX and dW leave of it, but for rounding."""
    parts = {part: finite(getattr(layer, f"{part}_us")) for part, _, _ in SEGMENTS}
    rest = parts["backward"] - parts["backward_input"] - parts["backward_weight"]
    parts["backward"] = rest if rest > 0.005 * parts["backward"] + 0.002 else 0.0
    return parts


def segments_used(run: Run) -> list[tuple[str, str, str]]:
    """The segments that some layer has."""
    found = [parts_of(layer) for layer in run.layers]
    return [segment for segment in SEGMENTS if any(parts[segment[0]] for parts in found)] or [SEGMENTS[0]]


def bar(lengths: Iterable[tuple[str, float]], whole: float, label: str) -> str:
    """A bar of coloured pieces as SVG. lengths: classes and sizes, of a whole that fills the bar."""
    pieces, at = [], 0.0
    for css, size in lengths:
        length = LENGTH * size / whole if whole > 0 else 0.0
        if length > 0:
            pieces.append(f'<rect class="{css}" x="{at:.6g}" width="{length:.6g}" height="10"/>')
        at += length
    return (f'<svg class="bar" role="img" viewBox="0 0 {LENGTH:g} 10" preserveAspectRatio="none" '
            f'aria-label="{escaped(label)}">{"".join(pieces)}</svg>')


def whole_bar(run: Run) -> str:
    """One bar of the whole call by part, with its legend."""
    sums = dict.fromkeys((part for part, _, _ in SEGMENTS), 0.0)
    around = 0.0
    for layer in run.layers:
        if layer.op == AROUND:
            around += finite(layer.total_us)
            continue
        for part, microseconds in parts_of(layer).items():
            sums[part] += microseconds
    pieces = [(css, title, sums[part]) for part, css, title in SEGMENTS if sums[part]]
    pieces += [("p-around", "Python around it", around)] if around else []
    pieces += [("p-rest", "not accounted for", finite(run.unaccounted_us))] if finite(run.unaccounted_us) else []
    whole = sum(size for _, _, size in pieces)
    label = "The whole call: " + ", ".join(f"{title} {share_of(size, whole)}" for _, title, size in pieces)
    keys = "".join(f'<li>{swatch(css)}{title} <b>{share_of(size, whole)}</b></li>' for css, title, size in pieces)
    drawn = bar([(css, size) for css, _, size in pieces], whole, label)
    return f'<div class="whole">{drawn}</div><ul class="legend">{keys}</ul>'


def swatch(css: str) -> str:
    """A small square in a colour, for legends."""
    return f'<svg class="swatch" aria-hidden="true"><rect class="{css}" width="14" height="14"/></svg>'


def bars_section(run: Run, prefix: str) -> str:
    """A bar for each layer, in the order of the program or by cost, the latter where there are many. prefix: of the ids."""
    if not run.layers:
        return '<p class="note">This profile holds no layers.</p>'
    used = segments_used(run)
    longest = max(finite(sum(parts_of(layer).values())) for layer in run.layers)
    ranks = {number: rank for rank, number in enumerate(
        sorted(range(len(run.layers)), key=lambda number: -finite(run.layers[number].total_us)))}
    rows = [_bar_row(run, layer, used, longest, ranks[number]) for number, layer in enumerate(run.layers)]
    legend = "".join(f"<li>{swatch(css)}{title}</li>" for _, css, title in used)
    in_order, by_cost = ("", " checked") if len(run.layers) > MANY else (" checked", "")
    return (f'<ul class="legend">{legend}</ul>\n'
            f'<input type="radio" class="pick" name="{prefix}order" id="{prefix}program"{in_order}>'
            f'<label for="{prefix}program">in program order</label>'
            f'<input type="radio" class="pick by-cost" name="{prefix}order" id="{prefix}cost"{by_cost}>'
            f'<label for="{prefix}cost">slowest first</label>\n'
            f'<ol class="bars">\n' + "\n".join(rows) + "\n</ol>")


def _bar_row(run: Run, layer: LayerCost, used: list[tuple[str, str, str]], longest: float, rank: int) -> str:
    parts = parts_of(layer)
    told = ", ".join(f"{title} {time_of(parts[part])}" for part, _, title in used if parts[part]) or "no time"
    pieces = [("p-around" if layer.op == AROUND else css, parts[part]) for part, css, _ in used]
    drawn = bar(pieces, longest, f"{short(plain(layer.name), NAME_MOST)}: {told}")
    bound = run.bound_by(layer)
    mark = f' <span class="bound {bound}">{bound}</span>' if bound else ""
    who = f'<span>{named(layer.name, BAR_NAME)} <span class="op">{brief(layer.op)}</span></span>{mark}'
    return (f'<li style="--rank:{rank}"><span class="who">{who}</span>{drawn}<span class="time">'
            f'{time_of(layer.total_us)}</span><span class="part">{share_of(layer.total_us, run.total_us)}</span></li>')


def _times(part: str) -> Cell:
    def cell(run: Run, layer: LayerCost) -> tuple[float, str]:
        value = layer.part_us(part) if part != "total" else layer.total_us
        return value, time_of(value) if value else ABSENT
    return cell


def _bytes(kind: str) -> Cell:
    def cell(run: Run, layer: LayerCost) -> tuple[float, str]:
        value = finite(layer.peak_bytes if kind == "peak" else layer.bytes.get(kind, 0))
        return value, size_of(value) if value else ABSENT
    return cell


def _counts(value: float) -> tuple[float, str]:
    return value, count_text(value).replace(" ", "\u00a0") if value else ABSENT


def _rates(value: float) -> tuple[float, str]:
    return finite(value), rate_of(value)


def _fused(run: Run, layer: LayerCost) -> tuple[float, str]:
    names = brief(", ".join(map(str, layer.fused)), TOLD_MOST)
    return len(layer.fused), f'<span title="{names}">{len(layer.fused)}</span>' if layer.fused else ABSENT


def _columns(run: Run) -> list[tuple[str, Cell]]:
    """Headings and what stands below them: a value to sort by, and its text."""
    columns: list[tuple[str, Cell]] = [
        ("Operation", lambda run, layer: (None, brief(layer.op))),
        ("Output", lambda run, layer: (None, brief(shape_of(layer.shape)) or ABSENT)),
        ("fused", _fused)]
    parts = segments_used(run)
    columns += [(title.replace(" (backward)", ""), _times(part)) for part, _, title in parts]
    columns += [("total", _times("total"))] if len(parts) > 1 else []
    columns += [
        ("share", lambda run, layer: (layer.total_us, share_of(layer.total_us, run.total_us))),
        ("median", lambda run, layer: (layer.spread.p50, time_of(layer.spread.p50) if layer.spread.p50 else ABSENT)),
        ("99% below", lambda run, layer: (layer.spread.p99, time_of(layer.spread.p99) if layer.spread.p99 else ABSENT)),
        ("multiply-adds a sample", lambda run, layer: _counts(finite(layer.macs))),
        ("GFLOP/s", lambda run, layer: _rates(layer.gflops(run.batch))),
        ("GB/s", lambda run, layer: _rates(layer.gbs)),
        ("operations a byte", lambda run, layer: _rates(layer.intensity(run.batch)))]
    if run.machine is not None:
        columns += [("bound by", lambda run, layer: (None, run.bound_by(layer) or ABSENT)),
                    ("of that roof", lambda run, layer: (run.of_roof(layer), share_of(run.of_roof(layer), 1.0)
                                                         if run.bound_by(layer) else ABSENT))]
    columns += [("parameters", lambda run, layer: _counts(finite(layer.parameters))), ("at the peak", _bytes("peak")),
                ("activations", _bytes("activations")), ("gradients", _bytes("gradients")), ("scratch", _bytes("scratch")),
                ("optimizer state", _bytes("state"))]
    return [(title, cell) for title, cell in columns
            if title in ("Operation", "share", _took(run)) or any(cell(run, layer)[1] != ABSENT for layer in run.layers)]


def _took(run: Run) -> str:
    """The heading of the column in which all that a layer took stands."""
    parts = segments_used(run)
    return "total" if len(parts) > 1 else parts[0][2].replace(" (backward)", "")


def table_section(run: Run) -> str:
    """All figures of all layers in a table that scrolls in its own box."""
    columns = _columns(run)
    head = '<th scope="col">Layer</th>' + "".join(_heading(run, title, cell) for title, cell in columns)
    body = "\n".join(_table_row(run, layer, columns) for layer in run.layers)
    return ('<p class="note">Multiply-adds are those of forward. Bytes are as the plan has them; at the peak: what '
            'a layer holds when the memory is fullest.</p>\n'
            '<div class="scroll" tabindex="0" role="region" aria-label="Figures of all layers">'
            '<table class="sortable"><caption class="hidden">Every layer in the order in which it ran</caption>'
            f'<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n<tfoot>\n{_whole_rows(run, columns)}\n</tfoot>'
            '</table></div>')


def _whole_rows(run: Run, columns: Iterable[tuple[str, Cell]]) -> str:
    """What the layers leave of the whole call, and the whole call."""
    titles, took = [title for title, _ in columns], _took(run)
    macs, speed, peak = sum(finite(layer.macs) for layer in run.layers), 0.0, shared_peak(run.memory, run.rows)
    if run.total_us > 0:
        speed = sum(layer.flops(run.batch) for layer in run.layers) / run.total_us / 1e3
    told = {took: time_of(run.total_us), "share": share_of(run.total_us, run.total_us),
            "median": time_of(run.spread.p50) if run.spread.p50 else "",
            "99% below": time_of(run.spread.p99) if run.spread.p99 else "",
            "multiply-adds a sample": _counts(macs)[1], "GFLOP/s": rate_of(speed),
            "parameters": _counts(sum(finite(layer.parameters) for layer in run.layers))[1],
            "at the peak": size_of(peak.bytes) if peak else ""}
    rest = {took: _signed(run.unaccounted_us), "share": share_of(run.unaccounted_us, run.total_us)}
    return "\n".join(f'<tr><th scope="row">{name}</th>'
                     + "".join(f'<td class="number">{cells.get(title, "")}</td>' for title in titles) + "</tr>"
                     for name, cells in (("not accounted for", rest), ("whole call", told)))


def _signed(microseconds: float) -> str:
    return ("\u2212" if microseconds <= -0.05 else "") + time_of(abs(microseconds))


def _heading(run: Run, title: str, cell: Cell) -> str:
    number = ' class="number"' if any(cell(run, layer)[0] is not None for layer in run.layers) else ""
    return f'<th scope="col"{number}>{title}</th>'


def _table_row(run: Run, layer: LayerCost, columns: Iterable[tuple[str, Cell]]) -> str:
    cells = []
    for _, cell in columns:
        value, text = cell(run, layer)
        cells.append(f"<td>{text}</td>" if value is None else f'<td class="number" data-v="{value:.6g}">{text}</td>')
    return f'<tr><th scope="row">{named(layer.name, TABLE_NAME)}</th>{"".join(cells)}</tr>'
