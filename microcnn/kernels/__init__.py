"""Compiled functions on plain arrays. Importing this package imports every kernel file through the one door (compiler.py)."""
import importlib
import pkgutil

from . import compiler

with compiler.numbas_cache():
    for _module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{_module.name}")
