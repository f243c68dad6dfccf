"""What compile's `train` means for one graph: which weights train, how fast, and how many of their output channels.

A selector is a word, or an fnmatch pattern of weight names, with or without a slice at its end:

    all        every weight that can train
    head       the weights of the last layer with weights before each output
    biases     every bias, those of normalisations (beta) among them
    last:3     the weights of the last three layers: a convolution or matrix product, and what follows it until the next
    fc.*[:8]   of each weight the first 8 output channels; fc.*[:25%] the first quarter, rounded up; all where there are fewer

Where a weight is called exactly like a selector of a list or dict, that weight is meant; a text alone is always a word.
"""
from __future__ import annotations

import difflib
import fnmatch
import math
import re
import sys
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np

from . import layers
from .errors import CompileError
from .graph import Graph, Node
from .layers.conv2d import CONVOLUTIONS

# Layers that "last:N" counts.
PRODUCTS = (*CONVOLUTIONS, "Linear", "MatMul")
WORDS = ("all", "head", "biases", "last:1")

EXPECTED = ('expected None, "all", "head", a list of patterns of weight names{}, or {{pattern: learning-rate factor}}; '
            '"biases" and "last:3" (the last three layers) are words as "head" is')


def trainable_weights(graph: Graph) -> list[str]:
    """The names of the weights that training may change, in the graph's order."""
    return list(dict.fromkeys(name for node in graph.nodes for name in _of_node(node)))


def _of_node(node: Node, roles: tuple[str, ...] | None = None) -> list[str]:
    """The names of a node's weights that training may change: all, or those with one of these roles."""
    return [ref.name for role, ref in node.weights.items()
            if role in layers.LAYERS[node.op].trainable and (roles is None or role in roles)]


def resolve_train(graph: Graph, train: Any) -> tuple[dict[str, float], dict[str, int]]:
    """({weight: learning-rate factor} of what trains, {weight: output channels} of what trains in part, its first ones).

    A factor of 0 freezes, and a later selector has the last word. Raises CompileError for anything that compile's `train`
    does not allow, for patterns that match nothing and for slices of weights whose axis 0 is no output channel.
    """
    if train is None:
        return {}, {}
    names = [] if isinstance(train, str) else trainable_weights(graph)     # that a selector may be
    if isinstance(train, dict):
        pairs = list(train.items())
    elif isinstance(train, (list, tuple, set)):
        pairs = [(selector, 1.0) for selector in train]
    elif isinstance(train, str) and (word := _split(train, names)[0]) in _words(graph, word):
        pairs = [(train, 1.0)]
    else:
        shown, such = (f'"{train}"', f' such as ["{train}"]') if isinstance(train, str) else (repr(train), "")
        raise CompileError(f"train is {shown}; {EXPECTED.format(such)}")
    factors: dict[str, float] = {}
    channels: dict[str, int] = {}
    for selector, factor in pairs:
        factor = factor.item() if isinstance(factor, np.number) else factor
        if not isinstance(selector, str) or isinstance(factor, bool) or not isinstance(factor, (int, float)) \
                or not 0 <= factor <= sys.float_info.max:
            raise CompileError(f"train holds {selector!r}: {factor!r}; expected a pattern (text) and a finite factor, 0 or "
                               "more")
        pattern, share = _split(selector, names)
        if share is not None and not factor:
            raise CompileError(f'train holds "{selector}": {factor!r}; a factor of 0 freezes whole weights: leave out the '
                               "slice, or choose the channels that train")
        for name in _matching(graph, pattern, names):
            factors[name] = float(factor)
            channels.pop(name, None)
            if share is not None:
                count, chosen = _channels_of(graph, name, selector), share(graph.weights[name].shape[0])
                if chosen < count:
                    channels[name] = chosen
    return ({name: factor for name, factor in factors.items() if factor},
            {name: count for name, count in channels.items() if factors[name]})


def _words(graph: Graph, pattern: str) -> dict[str, list[str]]:
    """{word: the names of its weights} of the words that need no number, and of the pattern where it is one that does."""
    names, head = trainable_weights(graph), graph.head()
    found = {"all": names, "head": [name for name in names if name in head],
             "biases": [name for node in graph.nodes for name in _of_node(node, ("bias",))]}
    if pattern.startswith("last:"):
        number = pattern.removeprefix("last:")
        if not re.fullmatch("[0-9]{1,9}", number) or not int(number):
            raise CompileError(f'train: "{pattern}"; expected how many layers train, counted from the last, such as "last:3"')
        found[pattern] = [name for layer in _layers(graph)[-int(number):] for name in layer]
    return found


def _layers(graph: Graph) -> list[list[str]]:
    """The weights that can train, layer by layer: what follows a convolution or matrix product until the next is part of it."""
    found: list[list[str]] = []
    for node in graph.nodes:
        names = _of_node(node)
        if names and (node.op in PRODUCTS or not found):
            found.append([])
        if names:
            found[-1] += names
    return found


def layer_count(graph: Graph) -> int:
    """How many layers "last:N" can name."""
    return len(_layers(graph))


def _matching(graph: Graph, pattern: str, own: list[str]) -> list[str]:
    """The weights that a selector without its slice means; itself where it is one of `own`. Raises CompileError for none."""
    if pattern in own:
        return [pattern]
    names, words = trainable_weights(graph), _words(graph, pattern)
    matching = words[pattern] if pattern in words else fnmatch.filter(names, pattern)
    if not matching and pattern != "all":
        frozen = fnmatch.filter(graph.weights, pattern)
        close = difflib.get_close_matches(pattern.rstrip("*"), [*names, *WORDS], 3, 0.3)
        hint = (f"it matches {frozen[:3]}, which training does not change" if frozen else
                f"close to it: {close}" if close and pattern not in words else
                f"the names are {names[:5]}{' ...' if len(names) > 5 else ''}")
        raise CompileError(f'train: "{pattern}" matches no weight that can be trained; {hint}')
    return matching


def _split(selector: str, own: list[str]) -> tuple[str, Callable[[int], int] | None]:
    """A selector without the slice at its end, and how many of so many channels the slice takes. Raises CompileError.

    own: names of weights, which have no slice.
    """
    found = re.fullmatch(r"(.*)\[([^\[\]]*:[^\[\]]*)\]", selector, re.DOTALL)
    if found is None or selector in own:
        return selector, None
    number = re.fullmatch(r"\s*:\s*([0-9]{1,9}(?:\.[0-9]{1,9})?)\s*(%?)\s*", found[2])
    if number is None or not (number[2] or number[1].isdigit()):
        raise CompileError(f'train: "{selector}" ends in [{found[2]}]; a weight trains as a whole or from its first output '
                           "channel on: [:8] for 8 of them, [:25%] for a quarter")
    amount = Fraction(number[1])
    if not amount:
        raise CompileError(f'train: "{selector}" leaves no channel that trains; expected at least one, such as [:8] or [:25%]')
    if number[2]:
        return found[1], lambda count: min(count, math.ceil(count * amount / 100))
    return found[1], lambda count: min(count, int(amount))


def _channels_of(graph: Graph, name: str, selector: str) -> int:
    """How many output channels a weight has. Raises CompileError where its axis 0 is something else."""
    stored = graph.weights[name]
    count = stored.shape[0] if stored.ndim else 0
    places = np.arange(count)
    of_place = np.broadcast_to(places.reshape(-1, *(1,) * (stored.ndim - 1)), stored.shape)
    for node in graph.nodes:
        for role, ref in node.weights.items():
            if ref.name == name and role in layers.LAYERS[node.op].trainable:
                axis, seen = layers.LAYERS[node.op].output_axis(node, role), ref.apply(of_place)
                rows = None if axis is None else np.moveaxis(seen, axis, -1)
                if rows is None or rows.shape[-1] != count or (rows != places).any():
                    raise CompileError(
                        f'train: "{selector}" takes the first output channels of weight "{name}", shape {stored.shape}, but '
                        f'its axis 0 is none of "{node.name}" ({node.op}); slices are for weights of Conv2d and Linear with '
                        "output channels first, and for weights of one axis; leave out the slice")
    return count
