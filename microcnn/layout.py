"""How a tensor lies in memory: which stored dimensions make up each of the model's axes.

Images are stored N, H, W, C whatever the model's axes are, because then a vector register holds neighbouring channels. A
Layout says so for one tensor; transposes, reshapes and flattenings change the Layout and move nothing. Where a layer
cannot take a tensor as it lies, the plan places an explicit row that moves it.
"""
from __future__ import annotations

import math
from dataclasses import dataclass

from .errors import CompileError

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """One sample of a tensor.

    dims: the stored dimensions, slowest first. axes: for each of the model's axes (without the batch) the indices of the
    stored dimensions whose product it is, slowest first. NCHW stored as NHWC: dims (H, W, C), axes ((2,), (0,), (1,)).
    """

    dims: Shape
    axes: tuple[tuple[int, ...], ...]

    @staticmethod
    def plain(shape: Shape) -> Layout:
        """Stored in the model's own order."""
        return Layout(tuple(shape), tuple((i,) for i in range(len(shape))))

    @staticmethod
    def channels_last(shape: Shape) -> Layout:
        """A model's (C, spatial ...) stored as (spatial ..., C)."""
        rank = len(shape)
        return Layout((*shape[1:], shape[0]), ((rank - 1,), *((i,) for i in range(rank - 1))))

    @property
    def shape(self) -> Shape:
        """The model's shape of one sample."""
        return tuple(math.prod(self.dims[i] for i in axis) for axis in self.axes)

    @property
    def size(self) -> int:
        return math.prod(self.dims)

    def simplified(self) -> Layout:
        """Without dimensions of size one, and neighbours merged that always go together: equal layouts compare equal."""
        order = [i for axis in self.axes for i in axis if self.dims[i] != 1]
        kept = sorted(order)
        dims = [self.dims[i] for i in kept]
        axes = [[kept.index(i) for i in axis if self.dims[i] != 1] for axis in self.axes]
        position = len(dims) - 2
        while position >= 0:
            for axis in axes:
                if position in axis and axis[axis.index(position) + 1:][:1] == [position + 1]:
                    dims[position:position + 2] = [dims[position] * dims[position + 1]]
                    axis.remove(position + 1)
                    axes = [[i - 1 if i > position else i for i in one] for one in axes]
                    break
            position -= 1
        return Layout(tuple(dims), tuple(tuple(axis) for axis in axes))

    def same_order(self, other: Layout) -> bool:
        """Whether both lie the same way in memory, for one and the same model shape."""
        return self.simplified() == other.simplified()

    def is_plain(self) -> bool:
        """Whether the stored order is the model's own."""
        return self.same_order(Layout.plain(self.shape))

    def is_channels_last(self) -> bool:
        return len(self.axes) >= 1 and self.same_order(Layout.channels_last(self.shape))

    def transposed(self, permutation: Shape) -> Layout:
        """After a transpose of the model's axes (without the batch): nothing moves."""
        return Layout(self.dims, tuple(self.axes[i] for i in permutation))

    def reshaped(self, shape: Shape) -> Layout | None:
        """After a reshape of the model's axes, None if that cannot be had without moving anything."""
        factors = [(i, self.dims[i]) for axis in self.axes for i in axis if self.dims[i] != 1]
        pieces: list[list[tuple[int, int]]] = []     # for each new axis, (stored dimension, size) in order
        splits: dict[int, list[int]] = {}            # stored dimension -> sizes it is cut into
        for want in shape:
            axis, have = [], 1
            while have < want:
                if not factors:
                    return None
                index, size = factors.pop(0)
                missing = want // have
                if want % have == 0 and missing % size == 0:
                    axis.append((index, size))
                elif want % have == 0 and size % missing == 0:
                    axis.append((index, missing))
                    factors.insert(0, (index, size // missing))
                    size = missing
                else:
                    return None
                splits.setdefault(index, []).append(size)
                have *= size
            pieces.append(axis)
        dims: list[int] = []
        numbers: dict[int, list[int]] = {}
        for index in range(len(self.dims)):
            cut = splits.get(index, [])
            numbers[index] = list(range(len(dims), len(dims) + len(cut)))
            dims.extend(cut)
        axes = []
        for axis in pieces:
            axes.append(tuple(numbers[index].pop(0) for index, _ in axis))
        return Layout(tuple(dims), tuple(axes))

    def strides_for(self, target: Layout) -> tuple[Shape, Shape] | None:
        """Sizes and source strides, target's order slowest first, to copy from this layout into target's.

        Both must have one model shape. None where the two cut an axis at places that do not fit together.
        """
        fine_self, fine_target = self, target
        for axis in range(len(self.axes)):
            cuts = sorted(_cuts(fine_self, axis) | _cuts(fine_target, axis))
            if any(b % a for a, b in zip(cuts, cuts[1:], strict=False)):
                return None
            fine_self, fine_target = _refine(fine_self, axis, cuts), _refine(fine_target, axis, cuts)
        source_strides = {}
        step = 1
        for index in reversed(range(len(fine_self.dims))):
            source_strides[index] = step
            step *= fine_self.dims[index]
        # a dimension of size one may be missing on either side, and stands still
        pairs = {t: s for ours, theirs in zip(fine_self.axes, fine_target.axes, strict=True)
                 for s, t in zip(_wide(fine_self, ours), _wide(fine_target, theirs), strict=True)}
        sizes = tuple(fine_target.dims)
        return sizes, tuple(source_strides[pairs[i]] if i in pairs else 0 for i in range(len(sizes)))


def _wide(layout: Layout, axis: tuple[int, ...]) -> list[int]:
    """The stored dimensions of an axis that are larger than one."""
    return [i for i in axis if layout.dims[i] != 1]


def _cuts(layout: Layout, axis: int) -> set[int]:
    """The products, from the fastest on, at which an axis is cut into stored dimensions."""
    product, cuts = 1, {1}
    for index in reversed(layout.axes[axis]):
        product *= layout.dims[index]
        cuts.add(product)
    return cuts


def _refine(layout: Layout, axis: int, cuts: list[int]) -> Layout:
    """The same layout with one axis cut at all these products."""
    dims, axes = list(layout.dims), [list(one) for one in layout.axes]
    place = 0
    while place < len(axes[axis]):
        index = axes[axis][place]
        below = math.prod(dims[i] for i in axes[axis][place + 1:])
        inner = [cut for cut in cuts if below < cut < below * dims[index]]
        if inner:
            cut = inner[-1] // below                       # the fastest part keeps `cut` numbers
            slow = dims[index] // cut
            dims[index:index + 1] = [slow, cut]
            axes = [[i + 1 if i > index else i for i in one] for one in axes]
            axes[axis].insert(place + 1, index + 1)
            continue
        place += 1
    return Layout(tuple(dims), tuple(tuple(one) for one in axes))


def strides_between(source: Layout, target: Layout) -> tuple[Shape, Shape]:
    """Sizes and source strides to write target's order. Raises CompileError where more than five loops would be needed."""
    found = source.strides_for(target)
    if found is None:
        raise CompileError(f"no way to move {source} into {target}")
    sizes, strides = merge_loops(*found)
    if len(sizes) > 5:
        raise CompileError(f"moving a tensor of shape {source.shape} takes {len(sizes)} loops; 5 are supported")
    return sizes, strides


def merge_loops(sizes: Shape, *strides: Shape) -> tuple[Shape, ...]:
    """Nested loops without those of one, and neighbours merged where the strides of every operand fit together.

    strides: each operand's, slowest first as the sizes. Returns the sizes and each operand's strides.
    """
    merged: list[list[int]] = []
    for size, *steps in zip(sizes, *strides, strict=True):
        if size == 1:
            continue
        if merged and merged[-1][1:] == [size * step for step in steps]:
            merged[-1] = [merged[-1][0] * size, *steps]
        else:
            merged.append([size, *steps])
    return tuple(tuple(loop[i] for loop in merged) for i in range(1 + len(strides)))


def pad5(sizes: Shape, strides: Shape, letter: str = "s") -> dict[str, int]:
    """A row's fields for up to five loops: sizes d0..d4 and strides s0..s4, or of another letter; loops of one in front."""
    missing = 5 - len(sizes)
    fields = {f"d{i}": size for i, size in enumerate((1,) * missing + sizes)}
    return fields | {f"{letter}{i}": stride for i, stride in enumerate((0,) * missing + strides)}
