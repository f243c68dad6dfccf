"""Where the boxes and edges of a network's graph lie: from top to bottom, at most two boxes abreast, so that a phone shows it.

Edges between neighbouring rows run in the gap between them; longer ones take a lane beside the boxes. The picture is cut into
bands at heights where every edge is upright, so that bands may stand under each other or in columns.
"""
from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from .profile_data import GraphNode

WIDTH = 360.0
ABREAST = 2
BETWEEN, GAP, STUB = 12.0, 28.0, 11.0       # between boxes of a row; between rows, and how much of that is upright above a box
TITLE, LINE, PADDING = 33.0, 13.0, 6.0      # heights: name and operation, a fused layer, below them
INPUT_HEIGHT = 24.0
CUT = 7.0                                   # above a box, where a band may end
SINGLE = 0.74                               # of the room, for a box alone in its row
EDGE, LANE, LANES = 6.0, 7.0, 54.0          # beside the lanes; between two of them; all of one side at most
BAND_LEAST, BAND_BEST, BAND_MOST = 150.0, 230.0, 340.0

Point = tuple[float, float]


@dataclass
class Box:
    """A layer that runs, with the layers fused into it; or an input of the network, without any. across: its middle, 0..1."""

    name: str
    members: list[GraphNode] = field(default_factory=list)
    row: int = 0
    across: float = 0.5
    x: float = 0.0
    y: float = 0.0
    width: float = 0.0
    height: float = INPUT_HEIGHT

    @property
    def fused(self) -> list[GraphNode]:
        """The layers that run in its kernel."""
        return [node for node in self.members if node.name != self.name]


@dataclass
class Edge:
    """What the box `source` makes and the box `target` reads (their numbers), and the corners of its way."""

    source: int
    target: int
    points: list[Point] = field(default_factory=list)


@dataclass
class Layout:
    """Boxes and edges, and the heights between which the bands lie."""

    boxes: list[Box]
    edges: list[Edge]
    cuts: list[float]


def lay_out(nodes: Sequence[GraphNode]) -> Layout:
    """The layout of a graph. Cycles, unknown names and hosts that are missing do no harm."""
    boxes, edges = boxes_of(nodes)
    rows = _rows(boxes, edges)
    _arrange(boxes, rows, edges)
    lanes = {side: _lanes(group) for side, group in _sides(boxes, edges).items()}
    _place(boxes, rows, {side: len(set(found.values())) for side, found in lanes.items()})
    tops = [boxes[row[0]].y for row in rows]
    bottoms = [max(boxes[number].y + boxes[number].height for number in row) for row in rows]
    _route(boxes, edges, _lane_places(lanes), tops, bottoms)
    return Layout(boxes, edges, _cuts(edges, boxes, tops, bottoms))


def boxes_of(nodes: Sequence[GraphNode]) -> tuple[list[Box], list[Edge]]:
    """A box for each input and each layer that runs itself, and an edge for each pair that reads from each other."""
    by_name = {node.name: node for node in nodes}
    inputs = dict.fromkeys(source for node in nodes for source in node.inputs if source and source not in by_name)
    hosts = {name: _host(node, by_name) for name, node in by_name.items()}
    boxes = [Box(name) for name in inputs]
    numbers = {name: number for number, name in enumerate(inputs)}
    for node in by_name.values():
        host = hosts[node.name]
        if host not in numbers:
            numbers[host] = len(boxes)
            boxes.append(Box(host))
        boxes[numbers[host]].members.append(node)
    for box in boxes:
        if box.members:
            box.height = TITLE + LINE * len(box.fused) + PADDING
    pairs = dict.fromkeys((numbers[hosts.get(source, source)], numbers[hosts[node.name]])
                          for node in by_name.values() for source in node.inputs if source)
    return boxes, [Edge(source, target) for source, target in pairs if source != target]


def _host(node: GraphNode, by_name: dict[str, GraphNode]) -> str:
    """The layer in whose kernel a node runs at last."""
    seen = {node.name}
    while node.ran_in is not None and node.ran_in in by_name and node.ran_in not in seen:
        node = by_name[node.ran_in]
        seen.add(node.name)
    return node.name


def _rows(boxes: list[Box], edges: list[Edge]) -> list[list[int]]:
    """The boxes' numbers by row: below all that they read, and at most ABREAST in each."""
    sources: list[list[int]] = [[] for _ in boxes]
    targets: list[list[int]] = [[] for _ in boxes]
    for edge in edges:
        sources[edge.target].append(edge.source)
        targets[edge.source].append(edge.target)
    rows: list[list[int]] = []
    placed: set[int] = set()
    for number in _order(sources, targets):
        row = max((boxes[source].row + 1 for source in sources[number] if source in placed), default=0)
        while row < len(rows) and len(rows[row]) >= ABREAST:
            row += 1
        if row == len(rows):
            rows.append([])
        rows[row].append(number)
        boxes[number].row = row
        placed.add(number)
    return rows


def _order(sources: list[list[int]], targets: list[list[int]]) -> list[int]:
    """Numbers so that what is read comes first, else as they are; where a cycle leaves nothing, the smallest goes on."""
    waits = [len(before) for before in sources]
    ready = [number for number, count in enumerate(waits) if count == 0]
    left = dict.fromkeys(range(len(sources)))
    order = []
    while left:
        number = heapq.heappop(ready) if ready else next(iter(left))
        if number not in left:
            continue
        del left[number]
        order.append(number)
        for target in targets[number]:
            waits[target] -= 1
            if waits[target] == 0:
                heapq.heappush(ready, target)
    return order


def _long(boxes: list[Box], edge: Edge) -> bool:
    return boxes[edge.target].row - boxes[edge.source].row != 1


def _sides(boxes: list[Box], edges: list[Edge]) -> dict[str, dict[int, tuple[int, int]]]:
    """For each side, the rows between which the lane of each box runs from which a long edge comes."""
    spans: dict[int, tuple[int, int]] = {}
    for edge in edges:
        if _long(boxes, edge):
            ends = (boxes[edge.source].row, boxes[edge.target].row)
            low, high = spans.get(edge.source, ends)
            spans[edge.source] = min(low, *ends), max(high, *ends)
    sides: dict[str, dict[int, tuple[int, int]]] = {"left": {}, "right": {}}
    for source, span in sorted(spans.items(), key=lambda entry: (entry[1], entry[0])):
        busy = {side: sum(low < span[1] and span[0] < high for low, high in group.values()) for side, group in sides.items()}
        leans = boxes[source].across - 0.5 or busy["left"] - busy["right"]
        sides["left" if leans < 0 else "right"][source] = span
    return sides


def _lanes(spans: dict[int, tuple[int, int]]) -> dict[int, int]:
    """A lane for each span, so that no two that overlap share one."""
    ends: list[int] = []
    lanes: dict[int, int] = {}
    for source, (low, high) in spans.items():
        lane = next((number for number, end in enumerate(ends) if end <= low), len(ends))
        if lane == len(ends):
            ends.append(high)
        ends[lane] = high
        lanes[source] = lane
    return lanes


def _spacing(count: int) -> float:
    return min(LANE, LANES / count) if count else 0.0


def _arrange(boxes: list[Box], rows: list[list[int]], edges: list[Edge]) -> None:
    """Who stands left and who right in a row: as what they read does."""
    sources: dict[int, list[float]] = {}
    readers: dict[int, list[int]] = {}
    for edge in edges:
        readers.setdefault(edge.source, []).append(edge.target)
    for row in rows:
        row.sort(key=lambda number: (sum(found := sources.get(number, [0.5])) / len(found), number))
        for place, number in enumerate(row):
            boxes[number].across = (place + 0.5) / len(row)
            for reader in readers.get(number, ()):
                sources.setdefault(reader, []).append(boxes[number].across)


def _place(boxes: list[Box], rows: list[list[int]], lanes: dict[str, int]) -> None:
    """Sizes and places of the boxes, beside so many lanes."""
    left, right = (EDGE + _spacing(lanes[side]) * lanes[side] for side in ("left", "right"))
    room = WIDTH - left - right
    y = STUB
    for row in rows:
        width = room * SINGLE if len(row) == 1 else (room - BETWEEN * (len(row) - 1)) / len(row)
        x = left + (room - width * len(row) - BETWEEN * (len(row) - 1)) / 2
        for number in row:
            box = boxes[number]
            box.x, box.y, box.width = x, y, width
            x += width + BETWEEN
        y += max(boxes[number].height for number in row) + GAP


def _lane_places(lanes: dict[str, dict[int, int]]) -> dict[int, float]:
    """The x of each source's lane: the first lane lies next to the boxes."""
    places = {}
    for side, found in lanes.items():
        count = len(set(found.values()))
        outward = -_spacing(count) if side == "left" else _spacing(count)
        inner = EDGE / 2 + count * _spacing(count) if side == "left" else WIDTH - EDGE / 2 - count * _spacing(count)
        for source, lane in found.items():
            places[source] = inner + outward * (lane + 0.5)
    return places


def _route(boxes: list[Box], edges: list[Edge], lanes: dict[int, float], tops: list[float], bottoms: list[float]) -> None:
    """The corners of every edge: down from a box, through the gap, perhaps along a lane, and down into another box."""
    leaving = _ports(boxes, ((edge.source, _toward(boxes, edge, lanes, True)) for edge in edges))
    entering = _ports(boxes, ((edge.target, _toward(boxes, edge, lanes, False)) for edge in edges))
    for edge in edges:
        source, target = boxes[edge.source], boxes[edge.target]
        begin = leaving[edge.source, _toward(boxes, edge, lanes, True)]
        end = entering[edge.target, _toward(boxes, edge, lanes, False)]
        edge.points = [(begin, source.y + source.height), (begin, bottoms[source.row])]
        if _long(boxes, edge):
            lane = lanes[edge.source]
            below = tops[source.row + 1] - STUB if source.row + 1 < len(tops) else bottoms[-1] + GAP - STUB
            above = bottoms[target.row - 1] if target.row else 0.0
            edge.points += [(lane, below), (lane, above)]
        edge.points += [(end, target.y - STUB), (end, target.y)]


def _toward(boxes: list[Box], edge: Edge, lanes: dict[int, float], leaves: bool) -> float:
    """What an edge comes from or goes to, seen from a box: the x of a lane, or of the middle of a neighbour."""
    if _long(boxes, edge):
        return lanes[edge.source]
    other = boxes[edge.target if leaves else edge.source]
    return other.x + other.width / 2


def _ports(boxes: list[Box], wanted: Iterable[tuple[int, float]]) -> dict[tuple[int, float], float]:
    """Where edges meet a box: neighbours' in its middle, lanes' toward their sides. One place for what comes from one."""
    groups: dict[int, list[float]] = {}
    for number, toward in dict.fromkeys(wanted):
        groups.setdefault(number, []).append(toward)
    ports = {}
    inner = min((box.x for box in boxes), default=0.0), max((box.x + box.width for box in boxes), default=WIDTH)
    for number, group in groups.items():
        box = boxes[number]
        left = sorted(toward for toward in group if toward < inner[0])
        right = sorted(toward for toward in group if toward > inner[1])
        middle = sorted(toward for toward in group if inner[0] <= toward <= inner[1])
        for part, low, high in ((left, 0.06, 0.34), (middle, 0.34, 0.66), (right, 0.66, 0.94)):
            for place, toward in enumerate(part):
                ports[number, toward] = box.x + box.width * (low + (high - low) * (place + 1) / (len(part) + 1))
    return ports


def _cuts(edges: list[Edge], boxes: list[Box], tops: list[float], bottoms: list[float]) -> list[float]:
    """Heights of the bands' ends: above a row, where few edges pass, and not too near to or far from one another."""
    if not tops:
        return []
    crossing = _crossing(boxes, edges, len(tops))
    end = bottoms[-1] + GAP / 2
    cuts = [0.0]
    while end - cuts[-1] > BAND_MOST:
        below = [row for row in range(1, len(tops)) if tops[row] - STUB - cuts[-1] >= BAND_LEAST]
        near = [row for row in below if tops[row] - cuts[-1] <= BAND_MOST] or below[:1]
        if not near:
            break
        best = min(near, key=lambda row: (crossing[row], abs(tops[row] - cuts[-1] - BAND_BEST)))
        cuts.append(tops[best] - CUT)
    return [*cuts, end]


def _crossing(boxes: list[Box], edges: list[Edge], rows: int) -> list[int]:
    """How many boxes' edges pass the gap above each row."""
    spans: dict[int, tuple[int, int]] = {}
    for edge in edges:
        ends = sorted((boxes[edge.source].row, boxes[edge.target].row))
        low, high = spans.get(edge.source, (ends[0], ends[1]))
        spans[edge.source] = min(low, ends[0]), max(high, ends[1])
    crossing = [0] * (rows + 1)
    for low, high in spans.values():
        crossing[low + 1] += 1
        crossing[min(high + 1, rows)] -= 1
    for row in range(1, rows + 1):
        crossing[row] += crossing[row - 1]
    return crossing
