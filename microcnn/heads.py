"""A new head on an old network: as many classes as the task at hand has."""
from __future__ import annotations

import numpy as np

from .errors import ModelError
from .graph import Graph, Node, Source, WeightRef

# Where the outputs stand in a weight as the node sees it: Conv2d (K, C / G, R, S), ConvTranspose2d (C, K / G, R, S), Linear
# (K, C) or (C, K).
HEADS = ("Conv2d", "ConvTranspose2d", "Linear")


def with_head(graph: Graph, count: int, seed: int = 0) -> Graph:
    """A copy of a graph whose last weighted layer has `count` outputs, with new weights; everything else stays.

    The new weights are uniform within 1 / sqrt(fan in), the new bias is zero. An export holds the new weights under the old
    names; only what depends on their sizes differs from the original file.

    Raises ModelError where count is no class count, where the graph has several outputs, where the last layer with weights
    is neither a convolution nor a linear layer, shares its weights, or is followed by layers that want the old count.
    """
    if isinstance(count, bool) or not isinstance(count, (int, np.integer)) or count < 1:
        raise ModelError(f"the head's class count is {count!r}; expected an integer of at least 1")
    if len(graph.outputs) != 1:
        raise ModelError(f"the model has {len(graph.outputs)} outputs, {', '.join(graph.outputs)}; a head can only be replaced "
                         "where there is one")
    new = graph.copy()
    node = _last(new)
    used = [ref.name for other in new.nodes for ref in other.weights.values()]
    rng = np.random.default_rng(seed)
    for role, ref in node.weights.items():
        if used.count(ref.name) > 1:
            raise ModelError(f'the head "{node.name}" shares its {role} "{ref.name}" with another layer; it cannot be replaced')
        _resize(new, node, role, ref, int(count), rng)
    try:
        new.check()
        _check_sizes(new)
    except ModelError as error:
        raise ModelError(f'the head "{node.name}" cannot get {count} outputs: {error}') from error
    return new


def _last(graph: Graph) -> Node:
    """The node that makes the classes. Raises ModelError where it is none that can be replaced."""
    makers = {name: node for node in graph.nodes for name in node.outputs}
    name = graph.outputs[0]
    while name in makers and not makers[name].weights:
        node = makers[name]
        if len(node.inputs) != 1:
            raise ModelError(f'{node.op} "{node.name}" stands between the last layer with weights and the output and reads '
                             f"{len(node.inputs)} tensors; the head cannot be replaced")
        name = node.inputs[0]
    found = makers.get(name)
    if found is None or found.op not in HEADS or found.attrs.get("groups", 1) != 1:
        shown = f'{found.op} "{found.name}"' if found else f'the input "{name}"'
        raise ModelError(f"the output comes from {shown}; only the head of a convolution without groups or of a linear layer "
                         "can be replaced")
    return found


def _resize(graph: Graph, node: Node, role: str, ref: WeightRef, count: int, rng: np.random.Generator) -> None:
    """New numbers for one weight of the head, in its own stored order."""
    old = graph.weights[ref.name]
    seen = ref.apply(old)
    axis = 0 if role == "bias" or node.op == "Conv2d" or node.attrs.get("transposed") else 1
    shape = list(seen.shape)
    shape[axis] = count
    if role == "bias":
        fresh = np.zeros(shape)
    else:
        limit = 1 / np.sqrt(seen.size / seen.shape[axis])
        fresh = rng.uniform(-limit, limit, shape)
    view, stored = _resized_view(ref, old.shape, seen.shape[axis], fresh.shape, count)
    new = WeightRef(ref.name, view)
    graph.weights[ref.name] = new.undo(fresh, stored).astype(old.dtype)
    node.weights[role] = new
    if graph.source is not None and ref.name in graph.source.replaced:
        how = graph.source.replaced[ref.name]
        graph.source.replaced[ref.name] = how if how[-1] == "resized" else (*how, "resized")


def _resized_view(ref: WeightRef, stored: tuple[int, ...], old: int, fresh: tuple[int, ...], count: int,
                  ) -> tuple[tuple[tuple[str, tuple[int, ...]], ...], tuple[int, ...]]:
    """The chain of views and the stored shape with `count` classes for `old`; fresh: the shape that the node sees then.

    Raises ModelError where a reshape does not say which of its axes are the classes.
    """
    if all(step == "transpose" for step, _ in ref.view):
        for _, permutation in reversed(ref.view):
            fresh = tuple(fresh[i] for i in np.argsort(permutation))
        return ref.view, fresh
    shapes = [stored, *(argument for step, argument in ref.view if step == "reshape")]
    if any(shape.count(old) != 1 for shape in shapes):
        raise ModelError(f'weight "{ref.name}" is stored as {stored} and reshaped; which of its axes are the {old} classes '
                         "cannot be told")

    def swapped(shape: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(count if n == old else n for n in shape)
    view = tuple((step, swapped(argument) if step == "reshape" else argument) for step, argument in ref.view)
    return view, swapped(stored)


def _check_sizes(graph: Graph) -> None:
    """Infer all shapes, with a size put in where the model leaves one open."""
    given = {entry.name: tuple(n or 32 for n in entry.shape) for entry in graph.inputs if None in entry.shape}
    graph.shapes(given or None)


def is_resized(source: Source, name: str) -> bool:
    """Whether a weight of the original model has got another size here."""
    return source.replaced.get(name, ())[-1:] == ("resized",)
