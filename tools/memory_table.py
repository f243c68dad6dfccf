"""A network's memory plan as lines of a table."""
from __future__ import annotations

from typing import Any

from .terminal import Terminal, bytes_text

LINES = (("parameters", "parameters"), ("gradients", "gradients"), ("state", "optimizer state"),
         ("activations", "activations"), ("scratch", "scratch"), ("arena", "arena: all that is allocated"),
         ("lower_bound", "what no plan can be below"))


def memory_dict(memory: Any) -> dict[str, int]:
    """The plan's sums in bytes, for JSON."""
    return {name: int(getattr(memory, name)) for name, _ in LINES}


def show_memory(terminal: Terminal, plans: dict[str, Any]) -> None:
    """Plans beside each other, by title. Kinds share memory over time, so that they do not add up to the arena."""
    rows = [[text, *(part for memory in plans.values() for part in _figures(getattr(memory, name)))]
            for name, text in LINES]
    terminal.table(["memory", *(part for title in plans for part in (">" + title, ">"))], rows)


def _figures(size: int) -> tuple[str, str]:
    return f"{size:,}", bytes_text(size)
