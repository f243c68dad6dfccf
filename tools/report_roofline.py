"""The roofline of the report: how fast each layer computes, beside what the machine allows for so many operations a byte."""
from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .profile_data import BUSY, FROM_MEMORY, IDLE, LayerCost, Machine, Run
from .report_text import (
    TOLD_MOST,
    bound_layers,
    brief,
    by_cost,
    counted,
    escaped,
    finite,
    fitted,
    mono_width,
    named,
    plain,
    rate_of,
    share_of,
    share_together,
    svg_text,
    time_of,
)

HEIGHT, ABOVE, BELOW = 300.0, 22.0, 40.0        # pixels of the picture: for the points, the upper roof's label, the axis
AXIS = 44
# Widths of the picture between which labels of a class do not meet: phones, and others.
SPANS = {"narrow": (230.0, 700.0), "wide": (600.0, 1200.0)}
LABELS, LABEL_SIZE, LINE = 8, 10.0, 13.0
LABEL_ROOM = 240.0
SAMPLES = 60                                    # places of the roofs that labels keep away from
SMALLEST, LARGEST = 3.5, 9.0                    # radii of points
KNOWN_BY = "microcnn doctor --measure"


@dataclass
class Point:
    """A layer in the picture. x: share of the width; y: pixels from the top; radius: by its share of the time."""

    layer: LayerCost
    bound: str
    x: float
    y: float
    radius: float


@dataclass
class Label:
    """A text, or something that none may cover: from `left` to `right`, pixels beside x, and from `top` to `bottom`.

    What is said of several ones holds for every width of the picture in a span.
    """

    x: float
    left: float
    right: float
    top: float
    bottom: float
    text: str = ""
    anchor: str = ""

    def ends(self, width: float) -> tuple[float, float]:
        """Where it begins and ends in a picture so wide."""
        return self.x * width + self.left, self.x * width + self.right

    def inside(self, span: tuple[float, float]) -> bool:
        """Whether the picture holds it."""
        within = all(self.ends(width)[0] >= 0 and self.ends(width)[1] <= width for width in span)
        return within and self.top >= 0 and self.bottom <= ABOVE + HEIGHT

    def apart(self, other: Label, span: tuple[float, float]) -> bool:
        """Whether the two do not meet."""
        if self.bottom <= other.top or other.bottom <= self.top:
            return True
        ends = [(self.ends(width), other.ends(width)) for width in span]
        return all(mine[1] <= its[0] for mine, its in ends) or all(its[1] <= mine[0] for mine, its in ends)


@dataclass
class Scale:
    """A logarithmic axis over whole decades, from 10**low to 10**high, as 0..1."""

    low: int
    high: int

    def at(self, value: float) -> float:
        """Where a value lies."""
        return (math.log10(value) - self.low) / (self.high - self.low)

    def decades(self) -> list[tuple[float, str]]:
        """Places and texts of the ticks, no more than seven."""
        step = -(-(self.high - self.low) // 6)
        return [((power - self.low) / (self.high - self.low), _power(power)) for power in range(self.low, self.high + 1, step)]


def scale_over(values: Iterable[float]) -> Scale:
    """The decades that hold all values, which are above 0."""
    powers = [math.log10(value) for value in values]
    low, high = math.floor(min(powers) + 1e-9), math.ceil(max(powers) - 1e-9)
    return Scale(low, max(high, low + 1))


def _power(power: int) -> str:
    return f"{10 ** power:,}" if 0 <= power <= 4 else f"{10.0 ** power:.{-power}f}" if -3 <= power < 0 else f"1e{power}"


def roofline_section(run: Run) -> str:
    """The roofline with both roofs, and who is bound by what; without a measured machine, how to get it."""
    machine = run.machine
    if machine is None:
        return ('<p class="note">What this machine can do at most was not known when this was measured. '
                f'Run <code>{KNOWN_BY}</code> once, then measure again: the report will show both roofs and what bounds each '
                'layer.</p>')
    shown = [layer for layer in by_cost(run) if finite(layer.intensity(run.batch)) and finite(layer.gflops(run.batch))]
    return (f'<p>Each point is a layer that multiplies, the larger the more time it takes; the roofs meet at '
            f'{rate_of(machine.ridge)} operations a byte. A layer is bound by compute where it reaches {BUSY:.0%} of the '
            f'flat roof, or {IDLE:.0%} right of where they meet; else by bandwidth where it moves {IDLE:.0%} to '
            f'{FROM_MEMORY:.0%} of what memory can. Layers without a mark are held down by neither: it is overhead that '
            'counts, or their numbers come from caches, which are faster than memory. Multiply-adds are counted as in a direct '
            f'convolution: one that runs by Winograd\u2019s algorithm can lie above the flat roof.</p>\n{_legend(run, shown)}\n'
            f'{_figure(run, machine, shown)}\n{_bound(run, shown)}')


def _legend(run: Run, shown: Sequence[LayerCost]) -> str:
    kinds = [("bandwidth", "bound by bandwidth"), ("compute", "bound by compute")]
    kinds += [("neither", "held down by neither")] if any(not run.bound_by(layer) for layer in shown) else []
    keys = "".join(f'<li><svg class="swatch" aria-hidden="true"><circle class="{css}" cx="7" cy="7" r="5"/></svg>'
                   f'{title}</li>' for css, title in kinds)
    return f'<ul class="legend">{keys}</ul>'


def points_of(run: Run, layers: Sequence[LayerCost], across: Scale, up: Scale) -> list[Point]:
    """The layers as points."""
    longest = max((layer.total_us for layer in layers), default=1.0)
    return [Point(layer, run.bound_by(layer), across.at(layer.intensity(run.batch)),
                  ABOVE + HEIGHT * (1 - up.at(layer.gflops(run.batch))),
                  SMALLEST + (LARGEST - SMALLEST) * math.sqrt(layer.total_us / longest)) for layer in layers]


def labels_of(points: Sequence[Point], taken: Sequence[Label], kind: str) -> list[Label]:
    """Labels beside the points that take most time, only where nothing is met: no other label, no point, no roof, no border.

    They show names or, in a narrow picture and where a name has no room, ranks, which a list explains. kind: of the picture.
    """
    span = SPANS[kind]
    covered = [*taken, *map(_outline, points)]
    found: list[Label] = []
    for rank, point in enumerate(points[:LABELS], 1):
        name = fitted(plain(point.layer.name), LABEL_ROOM, LABEL_SIZE)
        texts = [str(rank)] if kind == "narrow" else [f"{rank} {name}", str(rank)]
        label = next((label for text in texts for label in _candidates(point, text)
                      if label.inside(span) and all(label.apart(other, span) for other in covered)), None)
        if label is not None:
            found.append(label)
            covered.append(label)
    return found


def _candidates(point: Point, text: str) -> list[Label]:
    """Right of a point, left of it, above and below."""
    width, reach = mono_width(text, LABEL_SIZE), point.radius + 3
    beside = point.y - LINE / 2, point.y + LINE / 2
    above, below = (point.y - reach - LINE, point.y - reach), (point.y + reach, point.y + reach + LINE)
    return [Label(point.x, left, left + width, top, bottom, text, anchor) for (top, bottom), left, anchor in (
        (beside, reach, ""), (beside, -reach - width, "end"), (above, -width / 2, "middle"), (below, -width / 2, "middle"))]


def _figure(run: Run, machine: Machine, layers: Sequence[LayerCost]) -> str:
    across = scale_over([machine.ridge / 3, machine.ridge * 3, *(layer.intensity(run.batch) for layer in layers)])
    up = scale_over([machine.peak_gflops / 10, machine.peak_gflops, *(layer.gflops(run.batch) for layer in layers)])
    points = points_of(run, layers, across, up)
    corners = _corners(machine, across, up)
    labels = "".join(_labels(machine, points, corners, kind) for kind in SPANS)
    dots = "".join(_dot(run, point) for point in reversed(points))
    height = ABOVE + HEIGHT + BELOW
    axis = "".join(svg_text(str(AXIS - 6), ABOVE + HEIGHT * (1 - place) + 4, text, "tick end") for place, text in up.decades())
    label = f"Roofline: {len(points)} layers under {rate_of(machine.peak_gflops)} GFLOP/s and " \
        f"{rate_of(machine.bandwidth_gbs)} GB/s"
    return (f'<figure><p class="unit">GFLOP/s</p><div class="plot"><svg class="axis" width="{AXIS}" height="{height:g}" '
            f'aria-hidden="true">{axis}</svg><svg class="area" height="{height:g}" role="img" aria-label="{escaped(label)}">'
            f'{_grid(across, up)}{_roofs(corners)}{dots}{labels}</svg></div>'
            f'<figcaption>The roofs were measured with {counted(machine.threads, "thread")} in {brief(machine.dtype)}.'
            f'</figcaption></figure>\n{_ranks(run, points)}')


def _ranks(run: Run, points: Sequence[Point]) -> str:
    """What the ranks in the picture stand for."""
    entries = "".join(f"<li>{named(point.layer.name, 48)} {rate_of(point.layer.gflops(run.batch))}\u00a0GFLOP/s, "
                      f"{_held(run, point)}</li>" for point in points[:LABELS])
    return f'<ol class="ranks">{entries}</ol>' if entries else ""


def _held(run: Run, point: Point) -> str:
    """How near a layer comes to the roof that holds it down."""
    if not point.bound:
        return "held down by neither"
    return f"{share_of(run.of_roof(point.layer), 1.0)} of the {'flat' if point.bound == 'compute' else 'left'} roof"


def _grid(across: Scale, up: Scale) -> str:
    """Lines and texts of the decades."""
    bottom = ABOVE + HEIGHT
    heights = [ABOVE + HEIGHT * (1 - place) for place, _ in up.decades()]
    drawn = [f'<line class="grid" x1="0" x2="100%" y1="{y:.5g}" y2="{y:.5g}"/>' for y in heights]
    ticks = across.decades()
    for number, (place, text) in enumerate(ticks):
        side = "" if number == 0 else " end" if place > 0.99 else " middle"
        drawn.append(f'<line class="grid" x1="{100 * place:.5g}%" x2="{100 * place:.5g}%" y1="{ABOVE:g}" y2="{bottom:g}"/>'
                     + svg_text(f"{100 * place:.5g}%", bottom + 16, text, f"tick{side}"))
    drawn.append(svg_text("50%", bottom + 34, "operations a byte", "middle"))
    return "".join(drawn)


def _corners(machine: Machine, across: Scale, up: Scale) -> list[tuple[float, float]]:
    """Where the roof begins, its ridge and its end, as shares of the width and pixels from the top."""
    low = max(10.0 ** across.low, 10.0 ** up.low / machine.bandwidth_gbs)
    return [(across.at(x), ABOVE + HEIGHT * (1 - up.at(machine.roof(x)))) for x in (low, machine.ridge, 10.0 ** across.high)]


def _roofs(corners: Sequence[tuple[float, float]]) -> str:
    """Both roofs, and a line down from their ridge."""
    lines = [f'<line class="roof" x1="{100 * x:.5g}%" y1="{y:.5g}" x2="{100 * to_x:.5g}%" y2="{to_y:.5g}"/>'
             for (x, y), (to_x, to_y) in zip(corners, corners[1:], strict=False)]
    x, y = corners[1]
    lines.append(f'<line class="ridge" x1="{100 * x:.5g}%" x2="{100 * x:.5g}%" y1="{y:.5g}" y2="{ABOVE + HEIGHT:g}"/>')
    return "".join(lines)


def _labels(machine: Machine, points: Sequence[Point], corners: Sequence[tuple[float, float]], kind: str) -> str:
    """The labels of roofs and points for pictures of a kind."""
    peak, top = f"{rate_of(machine.peak_gflops)} GFLOP/s", corners[1][1]
    roofs = [Label(1.0, -mono_width(peak, LABEL_SIZE), 0.0, top - LINE - 3, top - 3, peak, "end"),
             _slope_label(f"{rate_of(machine.bandwidth_gbs)} GB/s", points, corners, kind)]
    covered = [Label(x, -1, 1, y - 1, y + 1) for x, y in _along(corners)]
    return "".join(_drawn(label, kind) for label in [*roofs, *labels_of(points, [*roofs, *covered], kind)])


def _slope_label(text: str, points: Sequence[Point], corners: Sequence[tuple[float, float]], kind: str) -> Label:
    """The label of the left roof: above or below it, where no point lies, if there is such a place."""
    (begin, start), (ridge, top), _ = corners
    width, span = mono_width(text, LABEL_SIZE), SPANS[kind]
    candidates = []
    for part in (0.4, 0.55, 0.25, 0.7, 0.1):
        x, y = begin + part * (ridge - begin), start + part * (top - start)
        candidates += [Label(x, -width - 8, -8, y - LINE, y, text, "end"), Label(x, 8, width + 8, y, y + LINE, text)]
    possible = [label for label in candidates if label.inside(span)] or candidates[1:2]
    covered = [_outline(point) for point in points]
    return next((label for label in possible if all(label.apart(other, span) for other in covered)), possible[0])


def _outline(point: Point) -> Label:
    """What a point covers."""
    return Label(point.x, -point.radius, point.radius, point.y - point.radius, point.y + point.radius)


def _along(corners: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Places along the roofs."""
    return [(x + (to_x - x) * part / SAMPLES, y + (to_y - y) * part / SAMPLES)
            for (x, y), (to_x, to_y) in zip(corners, corners[1:], strict=False) for part in range(SAMPLES + 1)]


def _drawn(label: Label, kind: str) -> str:
    shift = label.left if not label.anchor else label.right if label.anchor == "end" else (label.left + label.right) / 2
    return svg_text(f"{100 * label.x:.5g}%", round(label.bottom - 3, 2), label.text, f"halo {kind} {label.anchor}".strip(),
                    size=LABEL_SIZE, more=f' dx="{shift:.4g}"')


def _dot(run: Run, point: Point) -> str:
    layer = point.layer
    speed, intensity = rate_of(layer.gflops(run.batch)), rate_of(layer.intensity(run.batch))
    title = f"{layer.name}: {speed} GFLOP/s at {intensity} operations a byte, " \
        f"{_held(run, point)}, {time_of(layer.total_us)}"
    return (f'<circle class="{point.bound or "neither"}" cx="{100 * point.x:.5g}%" cy="{point.y:.5g}" r="{point.radius:.3g}">'
            f'<title>{brief(title, TOLD_MOST)}</title></circle>')


def _bound(run: Run, shown: Sequence[LayerCost]) -> str:
    """How much of the time each roof bounds, and what multiplies nothing and so is not in the picture."""
    told = []
    for kind, title in (("bandwidth", "Bound by bandwidth"), ("compute", "Bound by compute"), ("", "Held down by neither")):
        layers = bound_layers(run, kind)
        names = ", ".join(named(layer.name, 40) for layer in layers[:5])
        told.append(f"<li><b>{title}:</b> {counted(len(layers), 'layer')}, {share_together(run, layers)} of the time"
                    + (f" ({names}{' and more' if len(layers) > 5 else ''})" if names else "") + "</li>")
    silent = len(by_cost(run)) - len(shown)
    if silent:
        told.append(f"<li><b>Not in the picture</b>, as nothing is multiplied: {counted(silent, 'layer')}.</li>")
    return f'<ul class="facts">{"".join(told)}</ul>'
