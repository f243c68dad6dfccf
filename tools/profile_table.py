"""A run of the profiler as a table: its columns, the order of its lines, and what of it fits in so many columns of text."""
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from os.path import commonprefix
from typing import Any

from microcnn.errors import CompileError
from microcnn.memory import short

from .profile_data import LayerCost, Run, Spread
from .terminal import bytes_text, count_text, table_text, text_width, time_text

# The shortest that names are made before a column is left out; "not accounted for" is as long.
LEAST_NAME = 17
# The longest that a layer's name is with the names of those that are fused with it.
MOST_FUSED = 36
# How often names that look the same are told apart: those that still do may differ elsewhere.
PASSES = 3
# Names are cut to this where nothing else limits them; medians that are not known to within this share are worth a warning.
LONGEST_NAME, UNSURE = 60, 0.1
# Blanks between columns: in plain text, and at most, where rich draws the table.
PLAIN_GAP, WIDEST_GAP = 2, 3

Cut = Callable[[str, int], str]

SORTS: dict[str, Callable[[LayerCost], Any]] = {
    "time": lambda layer: -layer.total_us,
    "forward": lambda layer: -layer.forward_us,
    "backward": lambda layer: -layer.backward_us,
    "update": lambda layer: -layer.update_us,
    "macs": lambda layer: -layer.macs,
    "memory": lambda layer: (-layer.peak_bytes, -sum(layer.bytes.values())),
    "name": lambda layer: layer.name,
}
# The columns in the order in which they are left out where there is little room: what is slow, what holds memory and why stay
# longest. "total" stays always, and "forward" where there is no "total".
LEAST_FIRST = (("output shape",), ("state",), ("gradients",), ("activations",), ("parameters",), ("spread",), ("GB/s",),
               ("op",), ("MACs",), ("dX", "dW"), ("GFLOP/s",), ("update",), ("forward",), ("backward",), ("bound by",),
               ("peak bytes",), ("share",))
RANKS = {name: rank for rank, names in enumerate(LEAST_FIRST) for name in names}
# Nor those that lines are sorted by.
SORTED_BY = {"forward": ("forward",), "backward": ("backward",), "update": ("update",), "macs": ("MACs",),
             "memory": ("peak bytes",), "time": ("share",)}


@dataclass
class Column:
    """One column of a table beside the first.

    cells     from top to bottom
    rank      columns with the lowest are left out first, those without one never
    flush     whether it is set flush right
    parts     names of columns that say the same in more detail: where width is limited and they are shown, this one is not
    """

    name: str
    cells: list[str]
    rank: int | None = None
    flush: bool = True
    parts: tuple[str, ...] = ()


@dataclass
class Fitted:
    """A table that fits: columns and rows as terminal.table_text takes them, and the names of columns that were left out."""

    columns: list[str]
    rows: list[list[str]]
    left_out: list[str] = field(default_factory=list)


def columns_and_rows(run: Run, sort: str | None = None,
                     width: int | None = None) -> tuple[list[str], list[list[str]], str]:
    """Columns, rows and title of a run, as Terminal.table and table_text take them.

    sort     None: the order in which the layers ran; else a key of SORTS, the largest first, or names in order
    width    how many characters there are in a line: names are shortened and then columns left out until it fits;
             None shows everything

    Raises CompileError for an order that is not known.
    """
    fitted = _fitted(run, sort, width, WIDEST_GAP)
    return fitted.columns, fitted.rows, wrapped(run_title(run), width)


def left_out(run: Run, sort: str | None = None, width: int | None = None) -> str:
    """What to say below the table of columns_and_rows with the same arguments, or "": whose gradients are made with another
    layer's, and which columns it has no room for."""
    return _below(run, _fitted(run, sort, width, WIDEST_GAP), width)


def run_table(run: Run, sort: str | None = None, width: int | None = None) -> str:
    """A run as plain text; arguments and errors as in columns_and_rows. A last line says which columns were left out."""
    fitted = _fitted(run, sort, width, PLAIN_GAP)
    text = table_text(fitted.columns, fitted.rows, wrapped(run_title(run), width))
    return "\n".join(filter(None, (text, _below(run, fitted, width))))


def run_heading(run: Run) -> str:
    """What was measured, in one line."""
    known = run.conditions
    threads = known.get("threads")
    model = shortened(str(known["model"]), LONGEST_NAME) if known.get("model") else None
    facts = [model, "train_step" if known.get("train") else "predict", f"batch {run.batch}", known.get("dtype"),
             None if threads is None else f"{threads} thread{'s' if threads != 1 else ''}", known.get("instruction_set")]
    return f"{', '.join(str(fact) for fact in facts if fact is not None)}: {signed_time(run.total_us)} a call"


def run_title(run: Run) -> str:
    """What was measured; and in a second line, where it is known, how the whole call varied and how well the figures stand."""
    known, spread = run.conditions, run.spread
    facts = []
    if spread.p50 > 0:
        calls = f" over {known['repeats']} calls" if known.get("repeats") else ""
        facts.append(", ".join(f"{name} {time_text(getattr(spread, name))}" for name in ("p50", "p90", "p99")) + calls)
    if isinstance(known.get("confidence"), (int, float)):
        facts.append(f"medians are known to {100 * known['confidence']:.1f}%")
        if known["confidence"] > UNSURE:
            facts.append("the machine was too busy for these figures: measure again, for longer (--seconds)")
    if known.get("caches") == "cold":
        facts.append("cold caches")
    if known.get("interrupted"):
        facts.append("interrupted")
    return "\n".join(filter(None, (run_heading(run), "; ".join(facts))))


def shape_text(shape: Sequence[int] | None) -> str:
    """A shape for people, "" where there is none."""
    return "x".join(str(size) for size in shape or ())


def signed_time(microseconds: float) -> str:
    """A duration or a difference of two, for people."""
    return ("-" if microseconds <= -0.05 else "") + time_text(abs(microseconds))


def speed_text(value: float) -> str:
    """A figure of thousands of millions a second, "-" where it is 0."""
    return "-" if value <= 0 else f"{value:,.2f}" if value < 10 else f"{value:,.1f}"


def cuts(names: Sequence[str]) -> list[Cut]:
    """Ways to shorten names that look the same without their middle: without what stands before the word in which they begin
    to differ, or before the letter; and the beginning alone.
    """
    differ = len(commonprefix(list(names)))
    word = max(names[0].rfind(mark, 0, differ) for mark in "/;.:") + 1

    def without(start: int, name: str, most: int) -> str:
        return "..." + short(name[start:], most - 3) if len(name) > most and start > 3 and most >= 10 else short(name, most)

    def beginning(name: str, most: int) -> str:
        return name if len(name) <= most else name[:most - 3] + "..."

    return [*(partial(without, start) for start in (word, differ - 2, differ - 1)), beginning]


def shortened(name: str, most: int | None, suffix: str = "", cut: Cut = short) -> str:
    """A name in at most so many columns, suffix included; what cannot be printed becomes "?"."""
    name = "".join(letter if letter.isprintable() else "?" for letter in name)
    if most is None or text_width(name) + len(suffix) <= most:
        return name + suffix
    for length in range(most - len(suffix), 3, -1):
        found = cut(name, length)
        if text_width(found) + len(suffix) <= most:
            return found + suffix
    while text_width(name) > max(most - len(suffix), 1):
        name = name[:-1]
    return name + suffix


def label(name: str, fused: Sequence[str], most: int | None, cut: Cut = short) -> str:
    """A layer's name with those that are fused with it: all of them, or how many, where all are too long."""
    if not fused:
        return shortened(name, most, cut=cut)
    joined = shortened(" + ".join((name, *fused)), None)
    if text_width(joined) <= (MOST_FUSED if most is None else min(most, MOST_FUSED)):
        return joined
    return shortened(name, most, f" +{len(fused)}", cut)


def labels(names: Sequence[str], fused: Sequence[Sequence[str]], most: int | None) -> list[str]:
    """The labels of layers, names that would look the same cut elsewhere than in the middle."""
    found = [label(name, inside, most) for name, inside in zip(names, fused, strict=True)]
    for _ in range(PASSES):
        for text in dict.fromkeys(found):
            alike = [i for i, one in enumerate(found) if one == text]
            different = [names[i] for i in alike]
            if len(set(different)) < 2:
                continue
            others = {one for one in found if one != text}
            ways = [[label(names[i], fused[i], most, cut) for i in alike] for cut in cuts(different)]
            best = max(ways, key=lambda way: len(set(way) - others))
            if len(set(best) - others) > 1:
                for i, other in zip(alike, best, strict=True):
                    found[i] = other
    return found


def check_sort(sort: str | None) -> None:
    """Raises CompileError for an order of the lines that is not known."""
    if sort is not None and sort not in SORTS:
        raise CompileError(f"sort is {sort!r}; expected one of {', '.join(SORTS)}, or nothing for the order in which they run")


def fit(first: str, cells: Callable[[int | None], list[str]], columns: Sequence[Column], width: int | None,
        gap: int = PLAIN_GAP) -> Fitted:
    """The table of as many columns as fit.

    first    the name of the first column
    cells    its cells, given how long one may be (None: as long as it is)
    width    characters in a line; None leaves nothing out
    gap      blanks between columns
    """
    if width is None:
        room, kept, shown = None, list(columns), list(columns)
    else:
        least = min(LEAST_NAME, max([text_width(first), *map(text_width, cells(None))]))
        choices = [(max(width - sum(_wide(column) + gap for column in shown), 1), kept, shown)
                   for kept, shown in _ever_fewer(columns)]
        room, kept, shown = next((choice for choice in choices if choice[0] >= least), choices[-1])
    names = cells(room)
    return Fitted([first[:room], *((">" if column.flush else "") + column.name for column in shown)],
                  [[name, *(column.cells[i] for column in shown)] for i, name in enumerate(names)],
                  [column.name for column in columns if column not in kept])


def _below(run: Run, fitted: Fitted, width: int | None) -> str:
    """The lines below a run's table."""
    return "\n".join(filter(None, (wrapped(made_together(run), width), left_out_text(fitted, width))))


def made_together(run: Run) -> str:
    """Which layers' gradients of the input are made in another's kernel, whose time they are part of; "" where none are."""
    found = {row.layer: row.beside for row in run.rows if row.part == "backward_input" and row.beside}
    return f"dX in one kernel: {', '.join(' + '.join((layer, *beside)) for layer, beside in found.items())}" if found else ""


def left_out_text(fitted: Fitted, width: int | None = None) -> str:
    """A line on the columns that were left out; "" where all are there."""
    return wrapped(f"left out: {', '.join(fitted.left_out)}", width) if fitted.left_out else ""


def wrapped(text: str, width: int | None) -> str:
    """The text in lines that are no longer than that, broken at blanks where there are any."""
    if width is None:
        return text
    lines: list[str] = []
    for line in text.splitlines():
        lines.append("")
        for word in line.split():
            if lines[-1] and text_width(lines[-1]) + 1 + text_width(word) > width:
                lines.append("")
            lines[-1] += (" " if lines[-1] else "") + word
            while len(lines[-1]) > 1 and text_width(lines[-1]) > width:
                kept = next(i for i in range(len(lines[-1]) - 1, 0, -1) if i == 1 or text_width(lines[-1][:i]) <= width)
                lines[-1:] = [lines[-1][:kept], lines[-1][kept:]]
    return "\n".join(lines)


def _wide(column: Column) -> int:
    return max(text_width(cell) for cell in (column.name, *column.cells))


def _ever_fewer(columns: Sequence[Column]) -> Iterator[tuple[list[Column], list[Column]]]:
    """The columns that are kept and those of them that are shown: all, then without what stands there twice, then fewer."""
    kept = list(columns)
    yield kept, kept
    for rank in [None, *sorted({column.rank for column in columns if column.rank is not None})]:
        kept = [column for column in kept if rank is None or column.rank != rank]
        names = {column.name for column in kept}
        yield kept, [column for column in kept if not (column.parts and names.issuperset(column.parts))]


def _sorted(layers: Sequence[LayerCost], sort: str | None) -> list[LayerCost]:
    check_sort(sort)
    return list(layers) if sort is None else sorted(layers, key=SORTS[sort])


def _fitted(run: Run, sort: str | None, width: int | None, gap: int) -> Fitted:
    layers = _sorted(run.layers, sort)
    columns = _columns(run, layers)
    for column in columns:
        if column.name in SORTED_BY.get(sort or "", ()) or column.name == "forward" and not run.conditions.get("train"):
            column.rank = None
    names = [*(layer.name for layer in layers), "not accounted for", "whole call"]
    fused = [*(layer.fused for layer in layers), (), ()]
    return fit("layer", lambda most: labels(names, fused, most or LONGEST_NAME), columns, width, gap)


def _columns(run: Run, layers: Sequence[LayerCost]) -> list[Column]:
    """All columns that a run has something for."""
    training, batch, total = bool(run.conditions.get("train")), run.batch, run.total_us
    found: list[Column] = []

    def column(name: str, text: Callable[[LayerCost], str], unaccounted: str = "", whole: str = "", always: bool = False,
               flush: bool = True, parts: tuple[str, ...] = ()) -> None:
        cells = [text(layer) or "-" for layer in layers]
        if always or any(cell != "-" for cell in cells):
            found.append(Column(name, [*cells, unaccounted, whole], RANKS.get(name), flush, parts))

    def took(key: str) -> Callable[[LayerCost], str]:
        return lambda layer: time_text(getattr(layer, key)) if getattr(layer, key) else ""

    def held(kind: str) -> Callable[[LayerCost], str]:
        return lambda layer: bytes_text(layer.bytes[kind]) if layer.bytes.get(kind) else ""

    def share(microseconds: float) -> str:
        return f"{100 * microseconds / total:.1f}%" if total else ""

    macs = sum(layer.macs for layer in layers)
    speed = speed_text(sum(layer.flops(batch) for layer in layers) / total / 1e3) if macs and total else ""
    column("op", lambda layer: layer.op, always=True, flush=False)
    whole = ("", "") if training else (signed_time(run.unaccounted_us), signed_time(total))
    column("forward", took("forward_us"), *whole, always=True)
    if training:
        split = any(layer.backward_input_us or layer.backward_weight_us for layer in layers)
        column("backward", took("backward_us"), always=True, parts=("dX", "dW") if split else ())
        if split:
            column("dX", took("backward_input_us"), always=True)
            column("dW", took("backward_weight_us"), always=True)
        column("update", took("update_us"), always=True)
        column("total", took("total_us"), signed_time(run.unaccounted_us), signed_time(total), always=True)
    column("share", lambda layer: share(layer.total_us), share(run.unaccounted_us), share(total), always=True)
    column("GFLOP/s", lambda layer: speed_text(layer.gflops(batch)), whole=speed)
    column("GB/s", lambda layer: speed_text(layer.gbs))
    column("MACs", lambda layer: count_text(layer.macs) if layer.macs else "", whole=count_text(macs) if macs else "")
    column("parameters", lambda layer: count_text(layer.parameters) if layer.parameters else "")
    column("activations", held("activations"))
    if training:
        column("gradients", held("gradients"))
        column("state", held("state"))
    column("peak bytes", lambda layer: bytes_text(layer.peak_bytes) if layer.peak_bytes else "", whole=_peak(run))
    column("spread", lambda layer: _spread_text(layer.spread), whole=_spread_text(run.spread))
    column("bound by", run.bound_by, flush=False)
    column("output shape", lambda layer: shape_text(layer.shape), flush=False)
    return found


def _spread_text(spread: Spread) -> str:
    """The 90th of a hundred calls beside the median."""
    return f"{spread.p90 / spread.p50:.2f}" if spread.p50 > 0 else ""


def _peak(run: Run) -> str:
    """What all buffers hold together when that is most."""
    if run.memory is None or not run.memory.blocks:
        return ""
    return bytes_text(max(run.memory.live(max(block.last for block in run.memory.blocks) + 1), default=0))
