"""One file per family of operations, named like its kernel file: shapes, parameters, cost, and the rows that run it.

LAYERS maps an operation's name, as Node.op holds it, to its Layer. A new operation is a file here (and one in kernels/
where no kernel does it yet); nothing else lists it.
"""
import importlib
import pkgutil

from .base import LAYERS as LAYERS, Layer as Layer

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
