"""Converters of normalisations by a sample's own statistics, and of local response normalisation."""
from __future__ import annotations

from typing import Any

from .onnx_elementwise import combine
from .onnx_layers import per_sample, viewed
from .onnx_registry import Op, converter
from .onnx_tensor import from_float
from .onnx_values import Constant, Dim, Tensor, each, show

Dims = tuple[Dim, ...]


def _channels(op: Op, rank: int) -> tuple[Tensor, Dims]:
    """The tensor that is normalised, of at least that many axes, the batch and the channels first."""
    x, dims = op.tensor(), op.dims()
    if op.draft.whole:
        op.refuse("its first axis is not the batch")
    if len(dims) < rank:
        op.refuse(f'"{op.inputs[0]}" has {len(dims)} axes; at least {rank} are supported')
    return x, dims


@converter("LRN", 1, 13)
def local_response(op: Op) -> None:
    x, dims = _channels(op, 2)
    size = op.attribute("size")
    if not isinstance(size, int) or size < 1:
        op.refuse(f"size is {size}; expected an integer of at least 1")
    op.emit("LRN", x, dims, {"size": size, **{name: float(op.attribute(name, default)) for name, default in
                                              (("alpha", 1e-4), ("beta", 0.75), ("bias", 1.0))}})


def _both(op: Op, shape: tuple[int | None, ...]) -> dict[str, Constant | None]:
    return {"scale": op.required(1, "scale", shape), "bias": op.required(2, "bias", shape)}


@converter("InstanceNormalization", 6, 22)
def instance_norm(op: Op) -> None:
    x, dims = _channels(op, 3)
    weights = _both(op, (dims[1] if isinstance(dims[1], int) else None,))
    op.emit("InstanceNorm", x, dims, {"eps": _epsilon(op)}, {} if _stand_for_none(op, x, weights) else weights)


def _stand_for_none(op: Op, x: Tensor, weights: dict[str, Constant | None]) -> bool:
    """Whether scale and bias only fill their places: ones and zeros in Constant nodes, for channels that a Reshape made.

    PyTorch writes GroupNorm so; its own scale and bias are a Mul and an Add behind.
    """
    if not any(node.op == "Reshape" and x.name in node.outputs for node in op.draft.nodes):
        return False
    for role, neutral in (("scale", 1.0), ("bias", 0.0)):
        found = weights[role]
        assert found is not None and found.array is not None
        if op.draft.kinds.get(found.ref.name, ("initializer",))[0] != "constant" or (from_float(found.array) != neutral).any():
            return False
    return True


def _epsilon(op: Op) -> float:
    return float(op.attribute("epsilon", 1e-5))


@converter("GroupNormalization", 18, 21)
def group_norm(op: Op) -> None:
    """Until opset 21 scale and bias have one number for each group: then a group is a channel of InstanceNorm."""
    x, dims = _channels(op, 3)
    _stash(op)
    groups, channels = op.attribute("num_groups"), dims[1]
    if not isinstance(groups, int) or groups < 1 or not isinstance(channels, int) or channels % groups:
        op.refuse(f"num_groups is {groups}; it does not divide the {show((channels,))} channels")
    if op.opset >= 21:
        op.emit("GroupNorm", x, dims, {"groups": groups, "eps": _epsilon(op)}, _both(op, (channels,)))
        return
    weights, output = _both(op, (groups,)), op.outputs[0]
    cut: Dims = (dims[0], groups, each(lambda n: n // groups, per_sample(dims)))
    x = op.emit("Reshape", x, cut, {"shape": op.sample(cut)}, output=f"{output}/groups", suffix="groups")
    x = op.emit("InstanceNorm", x, cut, {"eps": _epsilon(op)}, weights, f"{output}/normalised")
    op.emit("Reshape", x, dims, {"shape": op.sample(dims)}, suffix="channels")


def _stash(op: Op) -> None:
    op.allow("stash_type", 1, "statistics are of the network's own dtype; only 1 is supported")


def _from_axis(op: Op) -> tuple[Tensor, Dims, tuple[int, ...]]:
    """The tensor, its dimensions, and all axes from the attribute `axis` on."""
    x, dims = op.tensor(), op.dims()
    _stash(op)
    return x, dims, tuple(range(op.axis(op.attribute("axis", -1)), len(dims)))


def _kept(dims: Dims, axes: tuple[int, ...]) -> Dims:
    return tuple(1 if axis in axes else n for axis, n in enumerate(dims))


class Formula:
    """Nodes that an operator is made of, one after the other; the last makes the operator's result."""

    def __init__(self, op: Op, output: str, number: int = 0):
        self.op, self.output, self.number = op, output, number

    def __call__(self, layer: str, x: Tensor | list[Tensor], dims: Dims, attrs: dict[str, Any] | None = None,
                 last: bool = False) -> Tensor:
        self.number += 1
        suffix = f"{self.output.rpartition('/')[2]}_{layer.lower()}{self.number}"
        return self.op.emit(layer, x, dims, attrs, output=self.output if last else f"{self.output}/{suffix}", suffix=suffix)

    def mean(self, x: Tensor, axes: tuple[int, ...], last: bool = False) -> Tensor:
        """Over the axes, which stay with size 1."""
        if len(x.dims or ()) == 4 and axes == (2, 3):
            return self("GlobalAvgPool2d", x, _kept(x.dims or (), axes), None, last)
        return self("ReduceMean", x, _kept(x.dims or (), axes), {"axes": axes, "keepdims": True}, last)

    def squares(self, x: Tensor, axes: tuple[int, ...]) -> Tensor:
        """The mean of the squares."""
        return self.mean(self("Pow", x, x.dims or (), {"scalar": 2.0}), axes)

    def inverse_root(self, x: Tensor, eps: float, last: bool = False) -> Tensor:
        """1 / sqrt(x + eps)"""
        shifted = self("Add", x, x.dims or (), {"scalar": eps})
        return self("Pow", shifted, x.dims or (), {"scalar": -0.5}, last)


def _fitting(op: Op, index: int, what: str, dims: Dims) -> tuple[Constant | None, bool]:
    """A weight, in the shape dims where it has that but for axes of size 1, and whether it does."""
    found = op.weight(index, what)
    if found is None or found.shape == dims:
        return found, True
    if all(isinstance(n, int) for n in dims) and len(found.shape) <= len(dims) \
            and [n for n in found.shape if n != 1] == [n for n in dims if n != 1]:
        padded = (1,) * (len(dims) - len(found.shape)) + found.shape
        if padded == dims:
            return viewed(found, "reshape", padded), True
    return found, False


@converter("LayerNormalization", 17)
def layer_norm(op: Op) -> None:
    x, dims, axes = _from_axis(op)
    if op.weight(1, "scale") is None:
        op.refuse("its scale is missing")
    (scale, scale_fits), (bias, bias_fits) = (_fitting(op, i, what, dims[axes[0]:]) for i, what in ((1, "scale"), (2, "bias")))
    eps = _epsilon(op)
    attrs = {"axis": axes[0], "eps": eps}
    if scale_fits and bias_fits:
        op.emit("LayerNorm", x, dims, attrs, {"scale": scale, "bias": bias})
    else:                   # a weight that repeats along axes that are normalised
        output = op.outputs[0]
        made = op.emit("LayerNorm", x, dims, attrs, output=f"{output}/normalised")
        assert scale is not None
        made = combine(op, "Mul", made, scale, None if bias is None else f"{output}/scaled", "scale")
        if bias is not None:
            combine(op, "Add", made, bias, None, "bias")
    further = [*op.outputs[1:], "", ""][:2]
    if further[0]:
        Formula(op, further[0]).mean(x, axes, True)
    if further[1]:
        formula = Formula(op, further[1])
        centred = formula("Sub", [x, formula.mean(x, axes)], dims)
        formula.inverse_root(formula.squares(centred, axes), eps, True)


@converter("RMSNormalization", 23)
def rms_norm(op: Op) -> None:
    """The tensor over the root of its mean square, times scale."""
    x, dims, axes = _from_axis(op)
    scale, output = op.required(1, "scale"), op.outputs[0]
    formula = Formula(op, f"{output}/rms")
    inverse = formula.inverse_root(formula.squares(x, axes), _epsilon(op))
    combine(op, "Mul", formula("Mul", [x, inverse], dims), scale)


@converter("MeanVarianceNormalization", 9, 13)
def mean_variance(op: Op) -> None:
    """(x - mean) / (deviation + 1e-9) over the axes."""
    x, dims = op.tensor(), op.dims()
    axes = tuple(sorted({op.axis(axis) for axis in op.attribute("axes", (0, 2, 3))}))
    formula = Formula(op, op.outputs[0])
    centred = formula("Sub", [x, formula.mean(x, axes)], dims)
    root = formula("Pow", formula.squares(centred, axes), _kept(dims, axes), {"scalar": 0.5})
    shifted = formula("Add", root, _kept(dims, axes), {"scalar": 1e-9})
    formula("Div", [centred, shifted], dims, last=True)
