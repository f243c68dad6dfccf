"""A budget of bytes, and what of the training fits into it: the whole if that can be had, else what contributes most.

In this order: everything as asked for; backward makes again what one pass over memory makes; scratch for two threads only; a
batch in parts, whose gradients add up; more made again; and at last fewer weights train. All but the last give what the plain
run gives, but for rounding. Which weights train then is measured (microcnn.contribution); a head, the last layer before an
output, comes first: as long as it does not know the task, what the layers before it learn is of little use.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from .choices import fold_batchnorm, parse_budget
from .errors import CompileError
from .graph import Graph
from .layers.update import update_row
from .net import Net
from .optim import resolve_optimizer
from .partial import resolve_train
from .parts import Policy
from .planned import Planned

# Where not all output channels of a weight fit, so many parts of them are tried.
PARTS = 8
# From how many places on weights may train, so that nothing before them keeps an activation: so many are tried.
DEPTHS = 8
# Behind the weights that fit together, so many more are tried one by one.
BESIDE = 8

Progress = Callable[[int, int, str], None]
Trains = dict[str, float]


@dataclass
class Choice:
    """What a budget allows, and why.

    limit         the budget; bytes: what the plan takes beside the parameters
    train         {selector: learning-rate factor}, as compile takes it
    micro_batch   samples that go through the network at a time, of batch
    recomputed    tensors that backward makes again
    contribution  the share that what trains has in all that would contribute, 1.0 where all trains that was asked for; see
                  microcnn.contribution
    measured      on what that was measured, "" where nothing had to be left out
    layers        what trains, layer by layer, for reading: "conv2 (weight[:8], bias)"
    """

    limit: int
    bytes: int
    train: Trains
    batch: int
    micro_batch: int
    recomputed: list[str] = field(default_factory=list)
    contribution: float = 1.0
    measured: str = ""
    layers: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"budget {self.limit:,} bytes: the plan takes {self.bytes:,} beside the parameters"]
        if self.micro_batch < self.batch:
            lines.append(f"  the batch of {self.batch} goes through in parts of {self.micro_batch}, whose gradients add up")
        if self.recomputed:
            count, them = (f"{len(self.recomputed)} tensors", "them") if len(self.recomputed) > 1 else ("one tensor", "it")
            lines.append(f"  backward makes {count} again instead of keeping {them} in memory")
        if self.measured:
            lines.append(f"  not everything can train: {100 * self.contribution:.3g}% of what would contribute, measured on "
                         f"{self.measured}, does:")
            lines.append("  " + ", ".join(self.layers))
            lines.append("  less of the network bears a larger learning rate, often ten times and more")
        elif len(lines) == 1:
            lines.append("  everything fits as it is")
        return "\n".join(lines)


@dataclass(frozen=True)
class Item:
    """A weight that may train, as far as it was asked for.

    selector      of all of it
    channels      its output channels, 0 where it can only train as a whole
    contribution  of the first 0, 1, 2, ... of them
    bytes         what its gradient and the optimizer's state of it take
    """

    name: str
    selector: str
    factor: float
    channels: int
    contribution: np.ndarray
    bytes: int

    @property
    def parts(self) -> int:
        """In how many parts it is tried."""
        return PARTS if self.channels else 1

    def part(self, count: int) -> tuple[str, float, float]:
        """(selector, factor, contribution) of the first `count` of its parts."""
        first = math.ceil(count * self.channels / PARTS)
        if first == self.channels:
            return self.selector, self.factor, float(self.contribution[-1])
        return f"{self.name}[:{first}]", self.factor, float(self.contribution[first])


def compiled(graph: Graph, budget: int | str | None = None, samples: Any = None, progress: Progress | None = None, **how: Any
             ) -> Net:
    """Graph.compile, within a budget where there is one. progress: told of the kernels that are compiled."""
    limit = parse_budget(budget)
    if samples is not None:
        check_samples(samples)
    if limit is None:
        return Net(graph, progress=progress, **how)
    only_net = {name: how.pop(name) for name in ("manual",) if name in how}
    how, choice = choose(graph, limit, how, samples, progress)
    net = Net(graph, progress=progress, **how, **only_net)
    net.choice = choice
    return net


def check_samples(samples: Any) -> None:
    """Raises CompileError for what is no pair (x, t) of as many samples, one or more."""
    expected = "expected a pair (x, t) of arrays, or of dicts of arrays by name, with as many samples, one or more"
    if not isinstance(samples, (tuple, list)) or len(samples) != 2:
        raise CompileError(f"samples is a {type(samples).__name__}; {expected}")
    arrays = [np.asarray(array) for each in samples for array in (each.values() if isinstance(each, dict) else [each])]
    if len(arrays) < 2 or any(array.ndim == 0 or array.dtype.kind not in "fiub" for array in arrays) \
            or len({len(array) for array in arrays}) > 1 or not len(arrays[0]):
        shapes = ", ".join(str(array.shape) for array in arrays) or "nothing"
        raise CompileError(f"samples holds arrays of shape {shapes}; {expected}")


def choose(graph: Graph, limit: int, how: dict[str, Any], samples: Any = None, progress: Progress | None = None
           ) -> tuple[dict[str, Any], Choice]:
    """What of Planned's arguments to use so that a plan takes at most `limit` bytes beside its parameters, and why.

    how       Planned's arguments; micro_batch and recompute, where they are given, stay as they are
    samples   (x, t), on which is measured how much weights contribute, where not all of them can train
    Raises CompileError, naming the smallest budget that works, where nothing fits.
    """
    search = Search(graph, limit, how)
    asked = search.asked
    found = search.fitting(asked)
    if found is not None:
        return found.how, search.choice(found, asked)
    if not asked or how.get("loss") is None:
        raise search.refusal(search.least([asked]))
    # the smallest part of any weight, whatever is in it
    least = search.least([dict([item.part(1)[:2]]) for item in search.items(
        {name: np.ones(search.seen.weights[name].shape[:1] or (1,)) for name in search.factors})], progress)
    if least > limit:
        raise search.refusal(least)
    from .contribution import contributions
    contributing, measured = contributions(graph, how, samples, progress)
    items = search.items(contributing)
    best = search.best(items, progress)
    found = search.fitting(best[1]) if best else None
    if best is None or found is None:
        raise search.refusal(least)
    choice = search.choice(found, best[1])
    whole = sum(item.contribution[-1] for item in items)
    choice.contribution = float(best[0] / whole) if whole else 0.0
    choice.measured = measured
    return found.how, choice


@dataclass(frozen=True)
class Way:
    """Samples that go through at a time, what may be made again, and whether scratch is kept small (parts.Policy)."""

    micro_batch: int
    tier: int
    lean: bool


@dataclass
class Found:
    """A plan that fits, and the arguments that make it."""

    planned: Planned
    how: dict[str, Any]


class Search:
    """Plans of one network within a limit."""

    def __init__(self, graph: Graph, limit: int, how: dict[str, Any]):
        self.graph, self.limit = graph, limit
        self.how = {"batch": 1, **how}
        if self.how.get("winograd") is None:
            self.how["winograd"] = False
        self.seen = fold_batchnorm(graph) if how.get("bn") == "fold" else graph
        self.factors, self.channels = resolve_train(self.seen, how.get("train"))
        self.asked: Trains = {self._selector(name): factor for name, factor in self.factors.items()}

    def _selector(self, name: str) -> str:
        return f"{name}[:{self.channels[name]}]" if name in self.channels else name

    def _arguments(self, train: Trains, way: Way, limit: int) -> dict[str, Any]:
        how = {name: value for name, value in self.how.items() if name not in ("recompute", "micro_batch")}
        policy = Policy(way.tier, limit, lean=way.lean, quick=self.how.get("recompute") is not False)
        return {**how, "train": train or None, "micro_batch": way.micro_batch, "policy": policy}

    def ways(self) -> list[Way]:
        """From what costs least time to what takes least memory."""
        batch, given, again = self.how["batch"], self.how.get("micro_batch"), self.how.get("recompute")
        whole = given is not None or (self.how.get("bn") == "batch" and self.asked)
        sizes = [given or batch]
        while not whole and sizes[-1] > 1:
            sizes.append(sizes[-1] // 2)
        tiers = (0,) if again is False else (1,) if again else (1, 2)
        found = [Way(size, tier, True) for tier in tiers for size in sizes]
        return [Way(sizes[0], tiers[0], False), *found]

    def plan(self, train: Trains, way: Way, limit: int) -> Found:
        """The plan of that way within the limit, or the smallest: buffers that do not fall into place leave gaps."""
        aims = [limit]
        while True:
            how = self._arguments(train, way, aims[-1])
            planned = Planned(self.graph, **how)
            over = size_of_plan(planned) - limit
            if over <= 0 or way.tier == 0 or aims[-1] == 0:
                return Found(planned, how)
            # a little less makes up for gaps; what is still over then, only the least may do
            aims.append(limit - 2 * over if len(aims) == 1 and 8 * over < limit else 0)

    def smallest_ways(self) -> list[Way]:
        """The ways that take least memory: with the whole batch, and with as small parts as may be."""
        ways = self.ways()
        return list(dict.fromkeys([ways[-1], replace(ways[-1], micro_batch=ways[0].micro_batch)]))

    def fitting(self, train: Trains, quick: bool = False) -> Found | None:
        """The first way in which these weights can train within the limit. quick: only those that take least memory."""
        for way in self.smallest_ways() if quick else self.ways():
            found = self.plan(train, way, 0 if quick else self.limit)
            if size_of_plan(found.planned) <= self.limit:
                return found
        return None

    def choice(self, found: Found, train: Trains) -> Choice:
        """The plan that was found, as it is told."""
        return Choice(self.limit, size_of_plan(found.planned), train, self.how["batch"], found.planned.micro_batch,
                      found.planned.recomputed, layers=by_layer(self.seen, train))

    def least(self, trains: Sequence[Trains], progress: Progress | None = None) -> int:
        """The bytes of the smallest plan with which one of these trains."""
        found = []
        for number, train in enumerate(trains):
            if progress is not None:
                progress(number, len(trains), "looking for the smallest plan")
            found += [size_of_plan(self.plan(train, way, 0).planned) for way in self.smallest_ways()]
        return min(found)

    def refusal(self, least: int) -> CompileError:
        """What is said where nothing fits. least: the smallest budget that would do."""
        remedy = "Use it, or a smaller batch" if self.how["batch"] > 1 else "Use it"
        return CompileError(f"budget is {self.limit:,} bytes; this network at batch {self.how['batch']} needs {least:,} beside "
                            f"its parameters: the smallest budget that works. {remedy}"
                            + (", or train fewer weights" if self.asked else ""))

    def items(self, contributing: dict[str, np.ndarray]) -> list[Item]:
        """The weights that may train, in the graph's order. contributing: for each what each output channel contributes."""
        optimizer = resolve_optimizer(self.how.get("optimizer"))
        copies = 1 + (len(update_row(optimizer)[1]) if optimizer else 0)
        itemsize = np.dtype(self.how.get("dtype", "float32")).itemsize
        found = []
        for name, factor in self.factors.items():
            each = contributing[name][:self.channels.get(name)]
            size = self.seen.weights[name].size * len(each) // len(contributing[name]) * copies * itemsize
            sums = np.concatenate([[0.0], np.cumsum(each)])
            found.append(Item(name, self._selector(name), factor, len(each) if self._splits(name) else 0, sums, size))
        return found

    def _splits(self, name: str) -> bool:
        """Whether the first channels of a weight can train without the others."""
        try:
            return bool(resolve_train(self.seen, [f"{name}[:1]"]))
        except CompileError:
            return False

    def best(self, items: list[Item], progress: Progress | None = None) -> tuple[float, Trains] | None:
        """(contribution, what trains) of one of the sets of weights that fit, one that contributes much; None where none fits.

        For each of some places, of what lies behind it are taken the heads and then the weights that contribute most for their
        bytes, as many as fit, then of the next few what fits, if only in part. A place with less behind it than what was
        already found is passed over.
        """
        best: tuple[float, Trains] | None = None
        heads = self.seen.head()
        places = sorted({round(place) for place in np.linspace(0, len(items) - 1, min(DEPTHS, len(items)))}, reverse=True)
        for number, place in enumerate(places):
            if progress is not None:
                progress(number, len(places), "choosing what trains")
            behind = [item for index, item in enumerate(items) if index >= place or item.name in heads]
            if best is not None and sum(item.contribution[-1] for item in behind) <= best[0]:
                continue
            behind.sort(key=lambda one: (one.name not in heads, -one.contribution[-1] / one.bytes))
            total, train = self._most(behind)
            if train and (best is None or total > best[0]):
                best = total, train
        return best

    def _most(self, ranked: list[Item]) -> tuple[float, Trains]:
        """(contribution, what trains) of the first of some weights, as many as fit together, and of what fits beside them."""
        def with_first(train: Trains, item: Item) -> Callable[[int], Trains]:
            return lambda count: {**train, **dict([item.part(count)[:2]])}
        together = self._largest(len(ranked), lambda count: dict(item.part(item.parts)[:2] for item in ranked[:count]))
        train = dict(item.part(item.parts)[:2] for item in ranked[:together])
        total = sum(float(item.contribution[-1]) for item in ranked[:together])
        for item in ranked[together:together + BESIDE]:
            beside = with_first(train, item)
            if count := self._largest(item.parts, beside):
                train, total = beside(count), total + item.part(count)[2]
        return total, train

    def _largest(self, most: int, trains: Callable[[int], Trains]) -> int:
        """The largest count up to `most` with which what trains fits, 0 where none does."""
        fits, over = 0, most + 1
        while over - fits > 1:
            middle = (fits + over) // 2
            fits, over = (middle, over) if self.fitting(trains(middle), quick=True) is not None else (fits, middle)
        return fits


def by_layer(graph: Graph, train: Trains) -> list[str]:
    """What trains, layer by layer: "conv2 (weight[:8], bias)". Of fused names, joined by ";", the last is shown."""
    slices = {name: selector[len(name):] for selector in train for name in graph.weights
              if selector == name or selector.startswith(f"{name}[:")}
    found = []
    for node in graph.nodes:
        roles = [f"{role}{slices[ref.name]}" for role, ref in node.weights.items() if ref.name in slices]
        if roles:
            found.append(f"{node.name.rpartition(';')[2]} ({', '.join(roles)})")
    return found


def size_of_plan(planned: Planned) -> int:
    """What a budget counts: the arena without the parameters."""
    return planned.memory.beside_parameters
