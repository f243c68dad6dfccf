"""What the command prints: tables and progress, with rich where it is there and someone is watching, else plain."""
from __future__ import annotations

import io
import os
import shutil
import sys
import time
import unicodedata
from collections.abc import Sequence
from typing import Any, TextIO

REDRAW = 0.1   # seconds between two pictures of a moving bar
# Seconds between two lines about long work where no bar moves, and until the first.
REPORT, FIRST_REPORT = 30.0, 3.0


def bytes_text(size: float) -> str:
    """A number of bytes for people; KB = 1,024 bytes."""
    for unit in ("B", "KB", "MB"):
        if abs(size) < 1024:
            return f"{size:,.0f} B" if unit == "B" else f"{size:,.1f} {unit}"
        size /= 1024
    return f"{size:,.1f} GB"


def time_text(microseconds: float) -> str:
    """A duration for people, given in microseconds."""
    if microseconds < 1_000:
        return f"{microseconds:,.1f} us"
    if microseconds < 1_000_000:
        return f"{microseconds / 1e3:,.2f} ms"
    return f"{microseconds / 1e6:,.2f} s"


def clock_text(seconds: float) -> str:
    """Minutes and seconds, or hours, minutes and seconds."""
    whole = int(round(max(0.0, seconds)))
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def count_text(number: float) -> str:
    """A count for people: 1,234 or 12.5 M."""
    for limit, divisor, unit in ((1e6, 1, ""), (1e9, 1e6, " M"), (1e12, 1e9, " G")):
        if abs(number) < limit:
            return f"{number:,.0f}" if divisor == 1 else f"{number / divisor:,.2f}{unit}"
    return f"{number / 1e12:,.2f} T"


def text_width(text: str) -> int:
    """Columns that a text takes in a terminal: two for a wide letter, none for one that is put over another."""
    return sum(0 if unicodedata.combining(letter) else 2 if unicodedata.east_asian_width(letter) in "WF" else 1
               for letter in text)


def table_text(columns: Sequence[str], rows: Sequence[Sequence[Any]], title: str = "") -> str:
    """A table in plain text. A column whose name begins with ">" is set flush right."""
    names = [column.lstrip(">") for column in columns]
    right = [column.startswith(">") for column in columns]
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(text_width(line[i]) for line in [names, *cells]) for i in range(len(names))]

    def line(row: Sequence[str]) -> str:
        padded = []
        for cell, width, flush in zip(row, widths, right, strict=True):
            blanks = " " * (width - text_width(cell))
            padded.append(blanks + cell if flush else cell + blanks)
        return "  ".join(padded).rstrip()

    lines = [title] if title else []
    if any(names):
        lines += [line(names), "  ".join("-" * width for width in widths)]
    return "\n".join(lines + [line(row) for row in cells])


class Terminal:
    """Where output goes: `say`, `table` and `progress`.

    rich is used when it is installed and standard output is a terminal; whatever is piped stays plain, unwrapped text.
    """

    def __init__(self, out: TextIO | None = None, err: TextIO | None = None):
        self.out, self.err = out or sys.stdout, err or sys.stderr
        for stream in (self.out, self.err):
            if isinstance(stream, io.TextIOWrapper):     # a name that it cannot spell is no reason to end
                stream.reconfigure(errors="backslashreplace")
        self.console: Any = None
        if self.out.isatty() and os.environ.get("TERM") != "dumb":
            try:
                from rich.console import Console
            except ImportError:
                pass
            else:
                self.console = Console(file=self.out, highlight=False)

    def say(self, text: str = "") -> None:
        """One or more lines."""
        print(text, file=self.out, flush=True)

    def heading(self, text: str) -> None:
        """A line that opens a part of the output, after an empty one."""
        if self.console is not None:
            from rich.markup import escape
            self.console.print(f"\n[bold]{escape(text)}[/bold]")
        else:
            self.say(f"\n{text}")

    def warn(self, text: str) -> None:
        """A line on standard error."""
        print(f"microcnn: note: {text}", file=self.err, flush=True)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[Any]], title: str = "") -> None:
        """A table; see table_text for the columns."""
        text = table_text(columns, rows, title)
        wide = max(map(len, text.splitlines()), default=0) > shutil.get_terminal_size().columns
        if self.console is None or wide:
            self.say(text)   # rich would break words to fit a narrow terminal
            return
        from rich import box
        from rich.table import Table
        from rich.text import Text
        drawn = Table(title=title or None, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD,
                      show_edge=False, show_header=any(column.lstrip(">") for column in columns), pad_edge=False)
        for column in columns:
            drawn.add_column(Text(column.lstrip(">")), justify="right" if column.startswith(">") else "left",
                             no_wrap=True)
        for row in rows:
            drawn.add_row(*(Text(str(cell)) for cell in row))
        self.console.print(drawn)

    def progress(self, total: int, label: str) -> Progress:
        """A bar to be moved in a `with` block."""
        return Progress(self, total, label)


class Progress:
    """A bar that moves on standard error while someone watches; elsewhere a line now and then about what takes long."""

    def __init__(self, terminal: Terminal, total: int, label: str):
        self.terminal, self.total, self.label = terminal, max(1, total), label
        self.watched = terminal.err.isatty() and os.environ.get("TERM") != "dumb"
        self._drawn, self._width = 0.0, 0
        self._report_at = time.monotonic() + FIRST_REPORT
        self._rich: Any = None
        self._task: Any = None

    def __enter__(self) -> Progress:
        if self.watched and self.terminal.console is not None:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn
            self._rich = Progress(TextColumn("{task.description}", markup=False), BarColumn(bar_width=24),
                                  TextColumn("{task.fields[note]}", markup=False),
                                  console=Console(file=self.terminal.err), transient=True, redirect_stdout=False,
                                  redirect_stderr=False, auto_refresh=False)   # no thread beside what is measured
            self._rich.start()
            self._task = self._rich.add_task(self.label, total=self.total, note="")
        return self

    def show(self, done: int, note: str = "", label: str | None = None) -> None:
        """Move the bar; cheap enough to be called every step."""
        now = time.monotonic()
        if not self.watched:
            if now >= self._report_at:
                self._report_at = now + REPORT
                print(f"microcnn: {label or self.label}: {note}", file=self.terminal.err, flush=True)
            return
        if now - self._drawn < REDRAW and done < self.total:
            return
        self._drawn, self.label = now, label or self.label
        if self._rich is not None:
            self._rich.update(self._task, completed=min(done, self.total), total=self.total, note=note,
                              description=self.label, refresh=True)
            return
        filled = min(24, 24 * done // self.total)
        line = f"{self.label} [{'#' * filled}{'.' * (24 - filled)}] {note}"[:shutil.get_terminal_size().columns - 1]
        self.terminal.err.write("\r" + line.ljust(self._width))
        self.terminal.err.flush()
        self._width = len(line)

    def say(self, text: str) -> None:
        """A line that stays, above the bar."""
        if self._rich is not None:   # then both streams are terminals, and rich knows where its bar is
            self._rich.console.print(text, markup=False, highlight=False, soft_wrap=True)
            return
        self._clear()
        self.terminal.say(text)

    def _clear(self) -> None:
        if self._width:
            self.terminal.err.write("\r" + " " * self._width + "\r")
            self.terminal.err.flush()
            self._width = 0

    def __exit__(self, *_: object) -> None:
        if self._rich is not None:
            self._rich.stop()
        else:
            self._clear()
