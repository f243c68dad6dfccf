"""A profile as one self-contained HTML page: what is slow, what fills the memory, what waits for memory, and why.

Pictures are SVG that is drawn here, so the page needs no network and says the same without its script, and on paper.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from .memory_drawing import runs_told
from .memory_plan import extent_of, shared_peak
from .profile_data import Profile, Run
from .profile_table import UNSURE
from .report_graph import graph_section
from .report_layers import bars_section, segments_used, table_section, whole_bar
from .report_memory import memory_section
from .report_roofline import KNOWN_BY, roofline_section
from .report_style import page
from .report_text import (
    ABSENT,
    NAME_MOST,
    bound_layers,
    brief,
    by_cost,
    counted,
    escaped,
    finite,
    named,
    plain,
    share_of,
    share_together,
    size_of,
    time_of,
    title_of,
)

SECTIONS: tuple[tuple[str, str, Callable[[Run, str], str]], ...] = (
    ("layers", "Time by layer", bars_section),
    ("graph", "The network", lambda run, prefix: graph_section(run)),
    ("roofline", "Roofline", lambda run, prefix: roofline_section(run)),
    ("memory", "Memory over time", lambda run, prefix: memory_section(run.memory, run.rows)),
    ("table", "All figures", lambda run, prefix: table_section(run)),
    ("conditions", "Conditions", lambda run, prefix: _conditions(run)),
)
# What the conditions are called, in their order; others follow under their own names.
CONDITIONS = {
    "model": "model", "train": "training step", "batch": "batch", "threads": "threads", "dtype": "numbers", "start": "start",
    "caches": "caches",
    "loss": "loss", "optimizer": "optimizer", "bn": "batch norm", "repeats": "calls measured",
    "confidence": "medians are known to", "interrupted": "interrupted", "compile_seconds": "time to compile",
    "clock_ns": "a reading of the clock", "cpu": "processor", "cpus": "usable processors", "machine": "architecture",
    "instruction_set": "instruction set", "vector_bytes": "bytes of a vector", "tiles": "tiles (rows \u00d7 vectors)",
    "threading_layer": "threading layer", "gomp_spincount": "GOMP_SPINCOUNT", "load_average": "load average",
    "frequency_mhz": "MHz", "max_frequency_mhz": "MHz at most", "governor": "governor", "temperature_c": "\u00b0C",
    "throttled": "throttled", "process_bytes": "memory of the process", "system": "system",
    "microcnn": "microcnn", "python": "Python", "numba": "numba", "llvmlite": "llvmlite", "numpy": "NumPy", "time": "time",
    "trained": "trained",
}
# How numbers are told that have a unit.
UNITS: dict[str, Callable[[float], str]] = {
    "process_bytes": size_of, "confidence": lambda share: f"\u00b1{100 * share:.1f}%",
    "compile_seconds": lambda seconds: time_of(1e6 * seconds), "clock_ns": lambda nanoseconds: f"{nanoseconds:.0f}\u00a0ns",
}
FEW = 3         # names that an answer lists
LONG = 200      # characters from which a condition's value is folded away


def report_html(profile: Profile) -> str:
    """The page as text; the same profile always gives the same one."""
    profile = Profile([_sound(run) for run in profile.runs])
    first = profile.runs[0]
    model = first.conditions.get("model")
    title = f"{plain(model)} \u2013 profile" if model else "Profile"
    several = len(profile.runs) > 1
    runs = "\n".join(_run(run, number, several) for number, run in enumerate(profile.runs, 1))
    return page(title, f"""<header>
<p class="kicker">microcnn profile</p>
<h1>{named(model, 120) if model else "Profile"}</h1>
<p class="under">{_subtitle(profile)}</p>
</header>
<nav aria-label="Contents">
{_runs_table(profile) if several else _contents("r1-")}
</nav>
<main>
{runs}
</main>
<footer>Made by microcnn {escaped(first.conditions.get("microcnn", ""))}.</footer>""")


def _sound(run: Run) -> Run:
    """The run, without a machine whose figures no file that was written here holds."""
    machine = run.machine
    sound = machine is not None and finite(machine.peak_gflops) and finite(machine.bandwidth_gbs)
    return run if sound else replace(run, machine=None)


def _subtitle(profile: Profile) -> str:
    """What was measured on what, in a line."""
    conditions = profile.conditions
    told = [f"{len(profile.runs)} runs" if len(profile.runs) > 1 else title_of(profile.runs[0]),
            *(conditions.get(key) for key in ("dtype", "cpu", "instruction_set", "time"))]
    return " \u00b7 ".join(brief(part, NAME_MOST) for part in told if part)


def _contents(prefix: str) -> str:
    """Links to the sections of a run."""
    links = "".join(f'<li><a href="#{prefix}{key}">{title}</a></li>' for key, title, _ in SECTIONS)
    return f"<ul>{links}</ul>"


def _runs_table(profile: Profile) -> str:
    """The runs beside each other, with links."""
    rows = []
    for number, run in enumerate(profile.runs, 1):
        slowest = next(iter(by_cost(run)), None)
        rows.append(f'<tr><th scope="row"><a href="#r{number}">{escaped(title_of(run))}</a></th>'
                    f'<td class="number">{time_of(run.total_us)}</td>'
                    f'<td class="number">{time_of(run.total_us / max(run.batch, 1))}</td>'
                    f'<td>{named(slowest.name, 40) if slowest else ABSENT}</td></tr>')
    return ('<div class="scroll" tabindex="0" role="region" aria-label="Runs"><table><thead><tr><th scope="col">Run</th>'
            '<th scope="col" class="number">Call</th><th scope="col" class="number">Sample</th>'
            f'<th scope="col">Slowest layer</th></tr></thead><tbody>{"".join(rows)}</tbody></table></div>')


def _run(run: Run, number: int, several: bool) -> str:
    """All sections of a run. Headings go a level down where there are several runs."""
    prefix, level = f"r{number}-", 3 if several else 2
    parts = [f'<section class="run" id="r{number}">']
    if several:
        parts += [f"<h2>{escaped(title_of(run))}</h2>", f'<nav aria-label="Run {number}">{_contents(prefix)}</nav>']
    parts += [_warning(run), _summary(run, level)]
    for key, title, section in SECTIONS:
        parts.append(f'<section id="{prefix}{key}">\n<h{level}>{title}</h{level}>\n{section(run, prefix)}\n</section>')
    return "\n".join([*filter(None, parts), "</section>"])


def _warning(run: Run) -> str:
    """What stands above a run whose medians are hardly known."""
    share = finite(run.conditions.get("confidence"))
    if share <= UNSURE:
        return ""
    return ('<p class="warning" role="note"><b>The machine was too busy while this was measured:</b> medians are only known to '
            f"within {100 * share:.0f}%. Measure again, for longer.</p>")


def _summary(run: Run, level: int) -> str:
    """The three answers, the main numbers, and the whole call as a bar."""
    answers = "".join(f'<div><h{level + 1} class="question">{question}</h{level + 1}>{answer}</div>' for question, answer in (
        ("Slowest layer", _slowest(run)), ("Memory peak", _peak(run)), ("Bound by bandwidth", _bandwidth(run))))
    numbers = "".join(f"<div><dt>{key}</dt><dd>{value}{f'<small>{more}</small>' if more else ''}</dd></div>"
                      for key, value, more in _numbers(run))
    return (f'<h{level} class="hidden">Summary</h{level}>\n<div class="answers">{answers}</div>\n'
            f'<dl class="numbers">{numbers}</dl>\n{whole_bar(run)}')


def _slowest(run: Run) -> str:
    ranked = by_cost(run)
    if not ranked:
        return '<p class="big">none</p><p>No layer took time.</p>'
    first = ranked[0]
    parts = [(first.part_us(part), title) for part, _, title in segments_used(run) if first.part_us(part)]
    most = f", {share_of(max(parts)[0], first.total_us)} of it {max(parts)[1]}" if len(parts) > 1 else ""
    others = _entries((layer.name, share_of(layer.total_us, run.total_us)) for layer in ranked[1:1 + FEW])
    return (f'<p class="big">{named(first.name, 60)}</p><p>{brief(first.op)}: {time_of(first.total_us)}, '
            f'{share_of(first.total_us, run.total_us)} of the call{most}.</p>' + (f"<p>Then:</p>{others}" if others else ""))


def _peak(run: Run) -> str:
    peak = shared_peak(run.memory, run.rows)
    if peak is None:
        return '<p class="big">not known</p><p>This profile holds no memory plan.</p>'
    makers = _entries((layer, f"{size_of(size)}, {share_of(size, peak.bytes)}") for layer, size in peak.makers(FEW))
    when = f"while {named(peak.layer, 60)} runs {runs_told(peak.layer, peak.part)}".rstrip() if peak.layer \
        else f"in row {peak.row + 1}"
    return (f'<p class="big">{named(peak.layer or peak.holders[0][0], 60)}</p>'
            f"<p>{size_of(peak.bytes)} are live at once {when}. Most is held by:</p>{makers}")


def _bandwidth(run: Run) -> str:
    if run.machine is None:
        return f'<p class="big">not known</p><p>Run <code>{KNOWN_BY}</code> once and measure again.</p>'
    layers = bound_layers(run, "bandwidth")
    if not layers:
        return '<p class="big">no layer</p><p>None moves its numbers about as fast as memory can.</p>'
    return (f'<p class="big">{counted(len(layers), "layer")}, {share_together(run, layers)} of the time</p><p>Most in:</p>'
            + _entries((layer.name, share_of(layer.total_us, run.total_us)) for layer in layers[:FEW]))


def _entries(entries: Iterable[tuple[str, str]]) -> str:
    """Names and what is said of each, as a list."""
    told = "".join(f"<li>{named(name, 48)}<span>{value}</span></li>" for name, value in entries)
    return f'<ul class="entries">{told}</ul>' if told else ""


def _numbers(run: Run) -> list[tuple[str, str, str]]:
    """Headings, values and what is said below them."""
    conditions, spread = run.conditions, run.spread
    between = f"median {time_of(spread.p50)}, 99% below {time_of(spread.p99)}" if finite(spread.p50) else ""
    found = [("Whole call", time_of(run.total_us), between),
             ("A sample", time_of(run.total_us / max(run.batch, 1)),
              f"{1e6 * run.batch / run.total_us:,.0f} a second" if run.total_us > 0 else ""),
             ("Not accounted for", share_of(run.unaccounted_us, run.total_us), ""),
             ("Batch", escaped(run.batch), ""), ("Threads", escaped(conditions.get("threads", ABSENT)), "")]
    if run.memory is not None:
        shared = f"{size_of(extent_of(run.memory))} of it shared over time" if run.memory.blocks else ""
        found.append(("Arena", size_of(run.memory.arena), shared))
    return found


def _conditions(run: Run) -> str:
    """The conditions as a list of definitions, the known ones first."""
    keys = [key for key in CONDITIONS if key in run.conditions] + [key for key in run.conditions if key not in CONDITIONS]
    entries = [(CONDITIONS.get(key, plain(key).replace("_", " ")),
                UNITS[key](run.conditions[key]) if key in UNITS and finite(run.conditions[key]) else run.conditions[key])
               for key in keys]
    if run.machine is not None:
        entries.append(("roofs", f"{run.machine.peak_gflops:.4g} GFLOP/s, {run.machine.bandwidth_gbs:.4g} GB/s"))
    told = "".join(f"<div><dt>{escaped(key)}</dt><dd>{_value(value)}</dd></div>" for key, value in entries)
    return f'<dl class="conditions">{told}</dl>'


def _value(value: Any) -> str:
    """A condition's value as HTML; a long one can be unfolded."""
    text = _worded(value)
    if len(text) <= LONG:
        return escaped(text)
    count = f"{len(value):,} names" if isinstance(value, list) else f"{len(text):,} characters"
    return f"<details><summary>{count}</summary>{escaped(text)}</details>"


def _worded(value: Any) -> str:
    """A value of JSON's types in words."""
    if value is None or value == "":
        return "not known"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_worded(one)}" for key, one in value.items())
    if isinstance(value, (list, tuple)):
        inner = " \u00d7 " if value and all(isinstance(one, (int, float)) for one in value) else ", "
        return inner.join(map(_worded, value))
    return str(value)
