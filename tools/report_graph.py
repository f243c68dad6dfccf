"""The network's graph in the report: boxes coloured by their share of the time, in bands that stand in columns."""
from __future__ import annotations

from collections.abc import Iterable

from .profile_data import GraphNode, Run
from .report_layout import STUB, WIDTH, Box, Edge, Layout, Point, lay_out
from .report_text import (
    TOLD_MOST,
    brief,
    finite,
    fitted,
    mono_width,
    named,
    plain,
    shape_of,
    share_of,
    svg_text,
    time_of,
)

STEPS = 5           # shades between nothing and the most expensive box
NAME_SIZE, SMALL_SIZE, SEAM_SIZE = 11.0, 10.0, 9.0
INSET = 8.0
SEAM = 0.8          # by which edges reach into the next band, so that no gap shows where it follows
LABELLED = 6        # layers that the description of a band names


def graph_section(run: Run) -> str:
    """The graph as HTML: legend and bands."""
    if not run.graph:
        return '<p class="note">This profile does not hold the network\u2019s graph; measured again, it will.</p>'
    layout = lay_out(run.graph)
    costs = [box_cost(run, box) for box in layout.boxes]
    most = max((cost for cost in costs if cost), default=0.0)
    bands = [_band(run, layout, costs, most, number) for number in range(len(layout.cuts) - 1)]
    return f'{_legend(most, run)}\n<div class="graph">\n' + "\n".join(bands) + "\n</div>\n" + _outside(run, layout)


def box_cost(run: Run, box: Box) -> float | None:
    """Microseconds of a box: of its layers and of changing their layouts; None where none of them is in the program."""
    names = {name for node in box.members for name in (node.name, f"{node.name} (layout)")}
    found = [finite(layer.total_us) for layer in run.layers if layer.name in names]
    return sum(found) if found else None


def shade(cost: float | None, most: float) -> str:
    """The class of a box: h1 to h5 by its share of the most expensive one, h0 for no time, off for what does not run."""
    if cost is None:
        return "off"
    return f"h{min(STEPS, 1 + int(STEPS * cost / most))}" if most > 0 and cost > 0 else "h0"


def _legend(most: float, run: Run) -> str:
    """What the colours mean, in shares of the whole call."""
    steps = []
    for step in range(STEPS):
        low, high = (100 * most * part / STEPS / run.total_us if run.total_us > 0 else 0.0 for part in (step, step + 1))
        steps.append(f'<li><svg class="swatch" aria-hidden="true"><rect class="h{step + 1}" width="14" height="14"/></svg>'
                     f'{low:.1f}\u2013{high:.1f}%</li>')
    return ('<p>Each box is a kernel with the layers that are fused into it (+), coloured by its share of the call. '
            'Dashed boxes have nothing to do in this program: they are folded into others, or only rename a shape.</p>\n'
            f'<ul class="legend">{"".join(steps)}<li><svg class="swatch" aria-hidden="true">'
            '<rect class="off" x=".5" y=".5" width="13" height="13"/></svg>no work</li></ul>')


def _outside(run: Run, layout: Layout) -> str:
    """What took time and is no layer of the network."""
    known = {node.name for node in run.graph} | {f"{node.name} (layout)" for node in run.graph}
    others = [layer for layer in run.layers if layer.name not in known]
    if not others:
        return ""
    told = ", ".join(f"{named(layer.name, 40)}\u00a0{share_of(layer.total_us, run.total_us)}" for layer in others[:12])
    return f'<p class="note">Beside the graph: {told}{"" if len(others) <= 12 else " and more"}.</p>'


def _band(run: Run, layout: Layout, costs: list[float | None], most: float, number: int) -> str:
    """One band as an SVG."""
    top, bottom = layout.cuts[number], layout.cuts[number + 1]
    inside = [(box, cost) for box, cost in zip(layout.boxes, costs, strict=True) if top <= box.y < bottom]
    ways = (edge_path(edge, top, bottom + SEAM) for edge in layout.edges)
    edges = "".join(f'<path class="edge" d="{way}"/>' for way in ways if way)
    names = [box.name for box, _ in inside]
    label = f"The network, part {number + 1} of {len(layout.cuts) - 1}: " + ", ".join(names[:LABELLED])
    label += f" and {len(names) - LABELLED} more" if len(names) > LABELLED else ""
    view = f"0 {top:g} {WIDTH:g} {bottom - top:g}"
    # The script shows these where the next band stands in another column.
    seams = [(top + 8.5, "continued", "back", top)] if number else []
    seams += [(bottom - 4, "continues", "onward", bottom)] if number < len(layout.cuts) - 2 else []
    words = "".join(svg_text(f"{x:.5g}", y, word, css) for y, word, css, height in seams
                    if (x := seam_label(layout, height)) is not None)
    return (f'<svg class="band" role="img" viewBox="{view}" aria-label="{brief(label, TOLD_MOST)}">' + edges
            + "".join(_box(run, box, cost, most) for box, cost in inside) + words + "</svg>")


def seam_label(layout: Layout, height: float) -> float | None:
    """Where at a band's end it can say that it goes on: beside an edge that is cut there; None where there is no room."""
    cut = {begin[0] for edge in layout.edges for begin, end in zip(edge.points, edge.points[1:], strict=False)
           if begin[0] == end[0] and min(begin[1], end[1]) < height < max(begin[1], end[1])}
    borders = sorted({0.0, *cut, WIDTH})
    left, right = max(zip(borders, borders[1:], strict=False), key=lambda gap: gap[1] - gap[0])
    width = mono_width("continues", SEAM_SIZE)
    if not cut or right - left < width + 2 * INSET:
        return None
    return left + INSET if left > 0 else right - INSET - width


def edge_path(edge: Edge, top: float, bottom: float) -> str:
    """The part of an edge between two heights, as path data; its upright pieces end there, its curves lie within one band."""
    pieces = []
    last: Point | None = None
    for begin, end in zip(edge.points, edge.points[1:], strict=False):
        trimmed = _trimmed(begin, end, top, bottom)
        if trimmed is None:
            continue
        (x, y), (to_x, to_y) = trimmed
        if last != (x, y):
            pieces.append(f"M{x:.4g} {y:.6g}")
        middle = (y + to_y) / 2
        pieces.append(f"V{to_y:.6g}" if x == to_x else f"C{x:.4g} {middle:.6g} {to_x:.4g} {middle:.6g} {to_x:.4g} {to_y:.6g}")
        last = to_x, to_y
    x, y = edge.points[-1]
    if top < y <= bottom:
        reach = STUB / 2
        pieces.append(f"M{x - 3.5:.4g} {y - reach:.6g}L{x:.4g} {y - 0.5:.6g}L{x + 3.5:.4g} {y - reach:.6g}")
    return "".join(pieces)


def _trimmed(begin: Point, end: Point, top: float, bottom: float) -> tuple[Point, Point] | None:
    (x, y), (to_x, to_y) = begin, end
    if x != to_x:
        return (begin, end) if top <= (y + to_y) / 2 <= bottom else None
    low, high = (min(max(height, top), bottom) for height in (y, to_y))
    return None if low == high else ((x, low), (x, high))


def _box(run: Run, box: Box, cost: float | None, most: float) -> str:
    """A box with its text."""
    css = shade(cost, most) if box.members else "input"
    right = box.x + box.width - INSET
    lines = [f'<g class="box {css}"><title>{brief(_told(run, box, cost), TOLD_MOST)}</title>'
             f'<rect x="{box.x:.5g}" y="{box.y:g}" width="{box.width:.5g}" height="{box.height:g}" rx="4"/>']
    room = box.width - 2 * INSET
    lines.append(_line(box.x, box.y + 15.5, fitted(plain(box.name), room, NAME_SIZE), NAME_SIZE, "title"))
    if box.members:
        share = "no work" if cost is None else share_of(cost, run.total_us)
        head = next((node for node in box.members if node.name == box.name), box.members[0])
        about = _about(head, room - mono_width(share, SMALL_SIZE) - 6)
        lines += [_line(box.x, box.y + 29, about, SMALL_SIZE, ""),
                  svg_text(f"{right:.5g}", box.y + 29, share, "share")]
        for number, node in enumerate(box.fused):
            text = fitted(plain(f"+ {node.op} {node.name}"), room, SMALL_SIZE)
            lines.append(_line(box.x, box.y + 42 + 13 * number, text, SMALL_SIZE, ""))
    return "".join(lines) + "</g>"


def _about(node: GraphNode, room: float) -> str:
    """A layer's operation, and the shape of its output where there is room for it."""
    whole = plain(f"{node.op} {shape_of(node.shape)}".strip())
    return whole if mono_width(whole, SMALL_SIZE) <= room else fitted(plain(node.op), room, SMALL_SIZE)


def _line(x: float, y: float, text: str, size: float, css: str) -> str:
    return svg_text(f"{x + INSET:.5g}", y, text, css, size=size) if text else ""


def _told(run: Run, box: Box, cost: float | None) -> str:
    """What a box is, in words."""
    if not box.members:
        return f"{box.name}: an input of the network"
    parts = [_member(node.name, node.op, node.shape) for node in box.members]
    told = "no work in this program" if cost is None else f"{time_of(cost)}, {share_of(cost, run.total_us)} of the call"
    return f"{'; '.join(parts)}: {told}"


def _member(name: str, op: str, shape: Iterable[int]) -> str:
    return f"{name} ({' '.join(part for part in (op, shape_of(tuple(shape))) if part)})"
