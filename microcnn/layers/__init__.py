"""One file per family of operations, named like its kernel file: shapes, parameters, cost, and the rows that run it.

LAYERS maps an operation's name, as Node.op holds it, to its Layer. A new operation is a file here (and one in kernels/
where no kernel does it yet); nothing else lists it.
"""
from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING

from .base import LAYERS as LAYERS, Layer as Layer

if TYPE_CHECKING:
    from ..graph import Graph

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")


# What a whole number stays one through.
MOVING = ("Identity", "Flatten", "Reshape", "Transpose")


def integer_tensors(graph: Graph) -> set[str]:
    """The tensors of a graph that hold whole numbers."""
    found: set[str] = set()
    for node in graph.nodes:
        if LAYERS[node.op].integers or (node.op in MOVING and node.inputs[0] in found):
            found.update(node.outputs)
    return found
