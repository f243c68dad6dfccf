"""BatchNorm2d on running or on batch statistics."""
from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from ..errors import ModelError
from ..layout import Layout
from .base import Layer, Shape, expect_inputs

if TYPE_CHECKING:
    from ..fusion import Step
    from ..graph import Node
    from ..memory import Buffer
    from ..parts import Value
    from ..plan import Schedule

# What kernels/batchnorm_statistics.py keeps for each number of a row: constants, and sums for each chunk of rows.
MAX_CHUNKS, CHUNK = 16, 4096
FROZEN_CONSTANTS, CONSTANTS, CHUNK_SUMS = 3, 5, 3
# A row of the kernels is one pixel, or neighbouring pixels of together at most so many numbers.
WIDE = 512


class BatchNorm2d(Layer):
    """ONNX BatchNormalization over axis 1. Attributes eps, momentum (ONNX's); weights scale, bias, mean, var (C,).

    With bn="batch" training uses the batch's statistics (population variance) and updates the running ones; otherwise, and
    always outside training, the running ones are used.

    Raises   ModelError: weights that do not have one number per channel
    Memory   batch statistics (3 C numbers), partial sums
    """

    op = "BatchNorm2d"
    trainable = ("scale", "bias")
    channels_last = True
    onnx = {"BatchNormalization": {}}

    @staticmethod
    def infer(node: Node, shapes: list[Shape], weights: dict[str, Shape]) -> list[Shape]:
        expect_inputs(node, shapes, 1)
        if not shapes[0]:
            raise ModelError(f'BatchNorm2d "{node.name}" reads "{node.inputs[0]}", one number a sample; expected (channels,) '
                             "or (channels, height, width)")
        for role in ("scale", "bias", "mean", "var"):
            if weights.get(role) != (shapes[0][0],):
                raise ModelError(f'BatchNorm2d "{node.name}": {role} has shape {weights.get(role)}; expected '
                                 f"({shapes[0][0]},), one number per channel")
        return [shapes[0]]

    @classmethod
    def output_axis(cls, node: Node, role: str) -> int | None:
        return 0

    @staticmethod
    def varies(node: Node, bn: str) -> tuple[str, str] | None:
        return ("uses the statistics of the batch that a sample is in", 'Compile with bn="frozen" or bn="fold"') \
            if bn == "batch" else None

    @staticmethod
    def forward(s: Schedule, step: Step) -> None:
        node = step.node
        x = s.value(node.inputs[0])
        x = s.channels_last(x) if len(x.layout.shape) > 1 else s.plain(x)
        C = x.layout.shape[0]
        pixels = x.numbers // C
        batch_mode = s.live and s.bn == "batch"
        need_params = s.trains(node, "scale") or s.trains(node, "bias")
        live = s.node_live(step)
        # dbias is a sum of dY alone
        of_x = s.trains(node, "scale") or (batch_mode and s.needs_gradient(x.name))
        needs_x = live and of_x
        layout = Layout.channels_last(x.layout.shape) if len(x.layout.shape) > 1 else Layout.plain(x.layout.shape)
        in_place = not batch_mode and not needs_x and s.free_to_overwrite(x)
        y = s.make(step.output, layout, x.buffer if in_place else None)
        weights = {role: s.weight(node, role) for role in ("scale", "bias", "mean", "var")}
        fields: dict[str, Any] = {"pixels": pixels, "C": C, "together": pixels_together(pixels, C, s.lanes), "low": step.low,
                                  "high": step.high}
        saved = None
        if batch_mode:
            saved = s.saved(f"{step.output}.statistics", 3 * C * s.itemsize)
            s.row("batchnorm.forward_batch", x=x.buffer, scale=weights["scale"], bias=weights["bias"], saved=saved,
                  y=y.buffer, scratch=scratch(s, fields), eps=float(node.attrs["eps"]), **fields)
            s.when_finite(lambda: s.row("batchnorm.update_running", saved=saved, running_mean=weights["mean"],
                                        running_var=weights["var"], C=C, momentum=float(node.attrs["momentum"])))
        else:
            s.row("batchnorm.forward_frozen", x=x.buffer, y=y.buffer, eps=float(node.attrs["eps"]),
                  scratch=s.scratch(FROZEN_CONSTANTS * C * fields["together"] * s.itemsize), **weights, **fields)
        if live:
            if needs_x:
                s.keep(x)
            through = saved if of_x else None
            if step.clamps and through is None:
                s.keep(y)
            s.backward(lambda: backward(s, step, x, y, through, need_params, fields))


def pixels_together(pixels: int, C: int, lanes: int) -> int:
    """How many neighbouring pixels the kernels take as one row: as many as fill whole registers, where that is possible."""
    together = lanes // math.gcd(lanes, C)
    return together if pixels % together == 0 and together * C <= WIDE else 1


def scratch(s: Schedule, fields: dict[str, Any]) -> Buffer:
    """Room for the constants and the partial sums of one row."""
    width = fields["C"] * fields["together"]
    rows = s.batch * fields["pixels"] // fields["together"]
    chunks = max(1, min(MAX_CHUNKS, rows, rows * width // CHUNK))
    return s.scratch((CONSTANTS + CHUNK_SUMS * chunks) * width * s.itemsize)


def backward(s: Schedule, step: Step, x: Value, y: Value, saved: Buffer | None, need_params: bool,
             fields: dict[str, Any]) -> None:
    """dX, dscale, dbias; the fused activation's derivative is applied on the way.

    saved: the batch's statistics, None where no gradient is made of them; fields: what both directions' rows share.
    """
    node = step.node
    dy = s.gradient(step.output)
    if dy is None:
        return
    need_dx = s.needs_gradient(x.name)
    target, accumulate = s.dx_over(x.name, dy) if need_dx else (None, 0)
    places: dict[str, Buffer | None] = {"dscale": None, "dbias": None}
    added = {"accumulate_scale": 0, "accumulate_bias": 0}
    if need_params:
        for role in ("scale", "bias"):
            if s.trains(node, role):
                places[f"d{role}"], added[f"accumulate_{role}"] = s.dweight(node, role)
            else:
                places[f"d{role}"] = s.scratch(fields["C"] * s.itemsize)
    common = {"scale": s.weight(node, "scale"), "dy": dy.buffer, "dx": target,
              "scratch": scratch(s, fields), "need_dx": int(need_dx), "need_params": int(need_params),
              "accumulate": accumulate, **added, **places, **fields}
    if saved is not None:
        s.row("batchnorm_backward.backward_batch", x=x.buffer, bias=s.weight(node, "bias"), saved=saved,
              clamps=int(step.clamps), **common)
    else:
        # without dscale any numbers will do for x, and those of dY are at hand
        numbers = x.buffer if s.trains(node, "scale") else dy.buffer
        s.row("batchnorm_backward.backward_frozen", x=numbers if need_params else None, y=y.buffer if step.clamps else None,
              mean=s.weight(node, "mean"), var=s.weight(node, "var"), eps=float(node.attrs["eps"]), **common)
    for role in ("scale", "bias"):
        if s.trains(node, role):
            s.weight_done(node, role)
    s.release(dy)


