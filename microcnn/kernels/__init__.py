"""Compiled functions on plain arrays. Importing this package imports every kernel file through the one door (cache.py)."""
import importlib
import pkgutil

from . import cache

with cache.compiling():
    for _module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{_module.name}")
