"""The families of operations whose plain loops stand in files of their own, walk_<family>.py."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.ops import (
    walk_elementwise,
    walk_matmul,
    walk_movement,
    walk_normalization,
    walk_reduction,
    walk_resize,
    walk_unary,
    walk_where,
    walk_windows,
)

FAMILIES = (walk_elementwise, walk_matmul, walk_movement, walk_normalization, walk_reduction,
            walk_resize, walk_unary, walk_where, walk_windows)


def operations() -> dict[str, Callable[..., Any]]:
    """{operation: what it computes} of all families."""
    return {op: function for family in FAMILIES for op, function in family.OPERATIONS.items()}


def pairs() -> dict[str, tuple[Callable[..., Any], Callable[..., Any]]]:
    """{operation: (forward, backward)} of all families."""
    return {op: both for family in FAMILIES for op, both in family.OPS.items()}
