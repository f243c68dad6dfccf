"""Resize and Upsample, from ONNX and back. All that is computed of them is in microcnn.layers."""
from __future__ import annotations

from typing import Any

import numpy as np

from microcnn.errors import ModelError
from microcnn.graph import Node
from microcnn.layers.resampling import COORDINATES, CROP, DEFAULTS, MODES, NEAREST_MODES, POLICIES, axes_of, scaled

from .onnx_build import OPSET, Build, builder
from .onnx_registry import Op, converter
from .onnx_values import BATCH, Dim, each


@converter("Upsample", 7)
def upsample_7(op: Op) -> None:
    _scaled_only(op, tuple(op.attribute("scales", ())))


@converter("Upsample", 9)
@converter("Resize", 10)
def resize_10(op: Op) -> None:
    _scaled_only(op, _numbers(op, 1, "scales") or ())


def _scaled_only(op: Op, scales: tuple[float, ...]) -> None:
    """The old forms: scales for all axes, coordinates divided by them."""
    mode = op.attribute("mode", "nearest")
    mode = "linear" if mode == "bilinear" else mode
    if mode not in ("nearest", "linear"):
        op.refuse(f"mode is {mode!r}; expected nearest or linear")
    attrs = {**DEFAULTS, "mode": mode, "nearest_mode": "simple", "coordinate_transformation_mode": "asymmetric"}
    _emit(op, attrs, _axes(op), scales, None)


@converter("Resize", 11, 13, 18, 19)
def resize(op: Op) -> None:
    attrs = {name: op.attribute(name, default) for name, default in DEFAULTS.items()}
    for name, known in (("mode", MODES), ("nearest_mode", NEAREST_MODES[:-1]), ("coordinate_transformation_mode", COORDINATES),
                        ("keep_aspect_ratio_policy", POLICIES)):
        if attrs[name] not in known:
            op.refuse(f"{name} is {attrs[name]!r}; expected one of {', '.join(known)}")
    attrs.update(exclude_outside=bool(attrs["exclude_outside"]), antialias=bool(attrs["antialias"]),
                 cubic_coeff_a=float(attrs["cubic_coeff_a"]), extrapolation_value=float(attrs["extrapolation_value"]))
    if attrs["antialias"] and attrs["mode"] == "nearest":
        op.refuse("antialias is 1 and mode is nearest; only linear and cubic have an antialiasing filter")
    attrs["roi"] = _numbers(op, 1, "roi") if attrs["coordinate_transformation_mode"] == CROP else None
    sizes = None
    known_sizes = op.known(3, "sizes")
    if known_sizes is not None and known_sizes.shape != (0,):
        if known_sizes.is_float:
            op.refuse(f'its sizes ("{op.inputs[3]}") are no integers')
        sizes = known_sizes.elements()
    _emit(op, attrs, _axes(op), _numbers(op, 2, "scales"), sizes)


def _numbers(op: Op, index: int, what: str) -> tuple[float, ...] | None:
    """A constant input of floating-point numbers, None where it is left out or empty."""
    found = op.weight(index, what)
    if found is None or found.shape == (0,):
        return None
    assert found.array is not None
    return tuple(float(n) for n in found.array.astype(np.float64).reshape(-1))


def _axes(op: Op) -> tuple[int, ...]:
    """The axes that are meant, as the graph counts them: 0 is the batch."""
    whole = int(op.draft.whole)
    rank = len(op.dims()) - whole
    given = tuple(op.attribute("axes", range(rank))) or tuple(range(rank))
    if any(not -rank <= axis < rank for axis in given) or len({axis % rank for axis in given}) != len(given):
        op.refuse(f"axes are {given}; expected different axes of a tensor with {rank}")
    return tuple(axis % rank + whole for axis in given)


def _emit(op: Op, attrs: dict[str, Any], axes: tuple[int, ...], scales: tuple[float, ...] | None, sizes: list[Dim] | None
          ) -> None:
    """The node, without the axes that stay as they are; the batch has to be among those."""
    x, dims = op.tensor(), op.dims()
    given: Any = sizes if scales is None else scales
    what = "sizes" if scales is None else "scales"
    if given is None or (scales is not None and sizes is not None):
        op.refuse(f"it has {'neither' if given is None else 'both'} scales and sizes; expected one of them")
    roi = attrs["roi"] or (0.0,) * len(axes) + (1.0,) * len(axes)
    if attrs["coordinate_transformation_mode"] == CROP and attrs["roi"] is None:
        op.refuse(f"coordinate_transformation_mode is {CROP}, and there is no roi")
    if len(given) != len(axes) or len(roi) != 2 * len(axes):
        op.refuse(f"it has {len(given)} {what} and {len(roi)} numbers of roi; expected {len(axes)} and {2 * len(axes)}")
    if not all(n > 0 and n < float("inf") for n in given if isinstance(n, (int, float))):
        op.refuse(f"its {what} are {tuple(given)}; expected positive numbers")
    stretch = attrs["keep_aspect_ratio_policy"] == "stretch" or what == "scales"
    kept: list[tuple[int, Any, float, float]] = []
    for axis, wanted, start, end in zip(axes, given, roi[:len(axes)], roi[len(axes):], strict=True):
        same = wanted == (dims[axis] if what == "sizes" else 1.0)
        if axis == 0 and what == "sizes":
            same = wanted in (BATCH, op.draft.batch or 1)
        if axis == 0 and not (same and stretch and (start, end) == (0.0, 1.0)):
            op.refuse(f"it resizes the batch ({what} {wanted if isinstance(wanted, (int, float)) else '?'}, "
                      f"{attrs['keep_aspect_ratio_policy']}); name the other axes in its attribute axes")
        if same and stretch and (start, end) == (0.0, 1.0):
            continue
        if not isinstance(wanted, (int, float)):
            op.refuse("its sizes depend on an open size; give input_shapes to load_onnx")
        kept.append((axis, wanted, start, end))
    if not kept:
        op.draft.values[op.outputs[0]] = x
        return
    attrs = {**attrs, "axes": tuple(axis for axis, *_ in kept), what: tuple(wanted for _, wanted, *_ in kept)}
    if attrs["roi"] is not None:
        attrs["roi"] = tuple(start for _, _, start, _ in kept) + tuple(end for *_, end in kept)
    op.emit("Resize", x, _resized(op, dims, attrs), attrs)


def _resized(op: Op, dims: tuple[Dim, ...], attrs: dict[str, Any]) -> tuple[Dim, ...]:
    """The dimensions of the result."""
    result = list(dims)
    lengths = [dims[axis] for axis in attrs["axes"]]
    for number, axis in enumerate(attrs["axes"]):
        if attrs["scales"] is not None:
            result[axis] = each(lambda n, scale=attrs["scales"][number]: scaled(n, scale), dims[axis])
        elif attrs["keep_aspect_ratio_policy"] == "stretch":
            result[axis] = attrs["sizes"][number]
        elif all(isinstance(n, int) for n in lengths):
            result[axis] = axes_of(attrs, lengths)[number].size
        else:
            op.refuse(f"keep_aspect_ratio_policy is {attrs['keep_aspect_ratio_policy']}, and the size of its input is open; "
                      "give input_shapes to load_onnx")
    if any(isinstance(n, int) and n < 1 for n in result):
        op.refuse(f"an axis would have no position left: {tuple(result[1:])} for one sample")
    return tuple(result)


@builder("Resize")
def build_resize(build: Build, node: Node) -> None:
    attrs = {**DEFAULTS, **node.attrs}
    if attrs["antialias"] or attrs["keep_aspect_ratio_policy"] != "stretch" \
            or attrs["coordinate_transformation_mode"] == "half_pixel_symmetric":
        raise ModelError(f'node "{node.name}": antialias, keep_aspect_ratio_policy and half_pixel_symmetric have no form in '
                         f"ONNX opset {OPSET}")
    rank, axes = build.ranks[node.inputs[0]], tuple(attrs["axes"])
    roi = scales = sizes = ""
    if attrs["roi"] is not None:
        ends = [0.0] * rank + [1.0] * rank
        for number, axis in enumerate(axes):
            ends[axis], ends[rank + axis] = attrs["roi"][number], attrs["roi"][len(axes) + number]
        roi = build.constant(f"{node.name}.roi", np.asarray(ends, np.float32))
    if attrs["scales"] is not None:
        wanted = dict(zip(axes, attrs["scales"], strict=True))
        scales = build.constant(f"{node.name}.scales", np.asarray([wanted.get(i, 1.0) for i in range(rank)], np.float32))
    else:
        sizes = _sizes(build, node, rank, dict(zip(axes, attrs["sizes"], strict=True)))
    inputs = [node.inputs[0], roi, scales, sizes]
    build.add("Resize", node, inputs[:4 if sizes else 3], mode=attrs["mode"], nearest_mode=_nearest_mode(node, attrs),
              coordinate_transformation_mode=attrs["coordinate_transformation_mode"],
              cubic_coeff_a=float(attrs["cubic_coeff_a"]), exclude_outside=int(attrs["exclude_outside"]),
              extrapolation_value=float(attrs["extrapolation_value"]))


def _nearest_mode(node: Node, attrs: dict[str, Any]) -> str:
    """nearest_mode, with opset 10's rule as what it comes to here."""
    if attrs["nearest_mode"] != "simple":
        return attrs["nearest_mode"]
    found = {"ceil" if scale < 1 else "floor" for scale in attrs["scales"] or ()}
    if len(found) != 1:
        raise ModelError(f'node "{node.name}": an axis that grows beside one that shrinks has no form in ONNX opset {OPSET} '
                         "with the nearest positions of opset 10")
    return found.pop()


def _sizes(build: Build, node: Node, rank: int, wanted: dict[int, int]) -> str:
    """The sizes of all axes: those that stay are read from the input's shape, the batch among them."""
    parts: list[str] = []
    axis = 0
    while axis < rank:
        end = axis
        while end < rank and (end in wanted) == (axis in wanted):
            end += 1
        if axis in wanted:
            parts.append(build.constant(f"{node.name}.sizes", np.asarray([wanted[i] for i in range(axis, end)], np.int64)))
        else:
            parts.append(build.add("Shape", node, [node.inputs[0]], build.free(f"{node.name}/shape"), f"/shape{axis}",
                                   start=axis, end=end))
        axis = end
    return build.add("Concat", node, parts, build.free(f"{node.name}/sizes"), "/sizes", axis=0)
