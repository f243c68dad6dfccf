"""The figures as a picture: for each job how fast this library is beside the fastest peer, and where the other peers stand."""
from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from microcnn.errors import FileError, MicroCNNError
from microcnn.files import atomic_write

from .catalog import JOBS, PEERS
from .table import Report
from .timing import OURS, Measured

SUFFIXES = (".svg", ".png")
# Text and lines in an SVG take whatever colour is readable on the page: this stands for it until the file is written.
INK = "#010203"
STYLE = """<style>svg { color: #1f2328 } @media (prefers-color-scheme: dark) { svg { color: #e6edf3 } }</style>"""
OUR_COLOUR = "#e8590c"
# Readable on white and on black, and told apart by people who see few colours, with the markers' help.
COLOURS = {"torch": "#4c8bf5", "torch-cl": "#4c8bf5", "torch-compile": "#4c8bf5", "tf": "#2f9e44", "litert": "#2f9e44",
           "ort": "#9c6ade", "ort-training": "#9c6ade", "openvino": "#0ca5b0", "jax": "#c2528b"}
MARKS = {"torch": "o", "torch-cl": "s", "torch-compile": "^", "tf": "o", "litert": "D", "ort": "o", "ort-training": "D",
         "openvino": "v", "jax": "P"}


def check_chart(path: Path) -> None:
    """Before hours of measuring: raises FileError for a suffix that cannot be drawn, MicroCNNError without matplotlib."""
    if path.suffix.lower() not in SUFFIXES:
        raise FileError(f"{path}: expected a file that ends in {' or '.join(SUFFIXES)}")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise MicroCNNError("--chart needs the package matplotlib, which is not installed; install it: "
                            "python -m pip install 'microcnn[bench]'") from None


def draw(report: Report, path: Path) -> None:
    """Draw a panel for each job and number of threads, and write it as the suffix says. Raises FileError, MicroCNNError."""
    check_chart(path)
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    vector = path.suffix.lower() == ".svg"
    ink = INK if vector else "#1f2328"
    panels = [(job, threads) for job in report.jobs() for threads in sorted({cell.cell.threads for cell in report.of(job)})]
    settings = {"svg.fonttype": "none", "svg.hashsalt": "microcnn", "font.size": 9, "text.color": ink, "axes.edgecolor": ink,
                "axes.labelcolor": ink, "xtick.color": ink, "ytick.color": ink, "legend.labelcolor": ink}
    with rc_context(settings):
        figure = Figure(figsize=(9.5, 0.6 + 2.7 * len(panels)), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
        for (job, threads), axis in zip(panels, axes, strict=True):
            _panel(axis, [cell for cell in report.of(job) if cell.cell.threads == threads], ink)
            count = f"{threads} thread{'s' if threads > 1 else ''}"
            axis.set_title(f"{JOBS[job][0].upper()}{JOBS[job][1:]}, {count}", loc="left", color=ink)
        handles = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=5, frameon=False)
        written = io.BytesIO()
        if vector:
            figure.savefig(written, format="svg", transparent=True, metadata={"Date": None})
        else:
            figure.savefig(written, format="png", dpi=150, facecolor="white")
    content = written.getvalue()
    if vector:
        text = content.decode().replace(INK, "currentColor")
        begin = text.index(">", text.index("<svg")) + 1
        content = f"{text[:begin]}\n{STYLE}{text[begin:]}".encode()
    atomic_write(path, [content])


def _panel(axis: Any, cells: list[Measured], ink: str) -> None:
    """Speed beside the fastest peer, which is the line at 1: a bar up or down for this library, a mark for each peer.

    Only peers that agree count. The scale is logarithmic: half as fast is as far from the line as twice as fast.
    """
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullLocator
    best = [cell.fastest() for cell in cells]
    base = [cell.results[name].us if name else None for cell, name in zip(cells, best, strict=True)]
    ours = [us / cell.results[OURS].us if us and OURS in cell.results and cell.results[OURS].agrees else 1.0
            for cell, us in zip(cells, base, strict=True)]
    axis.bar(range(len(cells)), [speed - 1 for speed in ours], bottom=1.0, width=0.62, color=OUR_COLOUR,
             label=PEERS[OURS].title)
    for name in COLOURS:
        points = [(place, us / cell.results[name].us) for place, (cell, us) in enumerate(zip(cells, base, strict=True))
                  if us and name in cell.results and cell.results[name].agrees]
        if points:
            axis.scatter(*zip(*points, strict=True), s=20, marker=MARKS[name], color=COLOURS[name], edgecolors=ink,
                         linewidths=0.5, zorder=3, label=PEERS[name].title)
    axis.axhline(1.0, color=ink, linewidth=0.8, linestyle="--")
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.set_xticks(range(len(cells)), [f"{cell.cell.model}\nbatch {cell.cell.batch}" for cell in cells],
                    fontsize=7 if len(cells) < 12 else 5.5)
    axis.set_ylabel("speed, fastest peer = 1")
    axis.patch.set_alpha(0.0)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
