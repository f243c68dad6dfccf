"""BatchNorm2d on running or on batch statistics."""
from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import ModelError
from ..layout import Layout
from .base import Layer, Shape, expect_inputs

if TYPE_CHECKING:
    from ..fusion import Step
    from ..graph import Node
    from ..memory import Buffer
    from ..parts import Value
    from ..plan import Schedule

# As many partial sums as the kernels keep at most, and the totals: (3 * 16 + 4) numbers a channel.
SCRATCH_NUMBERS = 52


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
        needs_x = live and (batch_mode or need_params)
        layout = Layout.channels_last(x.layout.shape) if len(x.layout.shape) > 1 else Layout.plain(x.layout.shape)
        in_place = not batch_mode and not needs_x and s.free_to_overwrite(x)
        y = s.make(step.output, layout, x.buffer if in_place else None)
        weights = {role: s.weight(node, role) for role in ("scale", "bias", "mean", "var")}
        fields = {"pixels": pixels, "C": C, "low": step.low, "high": step.high}
        saved = None
        if batch_mode:
            saved = s.saved(f"{step.output}.statistics", 3 * C * s.itemsize)
            s.row("batchnorm.forward_batch", x=x.buffer, scale=weights["scale"], bias=weights["bias"], saved=saved,
                  y=y.buffer, scratch=scratch(s, C), eps=float(node.attrs["eps"]), **fields)
            s.when_finite(lambda: s.row("batchnorm.update_running", saved=saved, running_mean=weights["mean"],
                                        running_var=weights["var"], C=C, momentum=float(node.attrs["momentum"])))
        else:
            s.row("batchnorm.forward_frozen", x=x.buffer, y=y.buffer, scratch=scratch(s, C), eps=float(node.attrs["eps"]),
                  **weights, **fields)
        if live:
            if needs_x:
                s.keep(x)
            if step.clamps and saved is None:
                s.keep(y)
            s.backward(lambda: backward(s, step, x, y, saved, need_params, fields))


def scratch(s: Schedule, C: int) -> Buffer:
    """Room for the partial sums of one row."""
    return s.scratch(SCRATCH_NUMBERS * C * s.itemsize)


def backward(s: Schedule, step: Step, x: Value, y: Value, saved: Buffer | None, need_params: bool,
             fields: dict[str, float]) -> None:
    """dX, dscale, dbias; the fused activation's derivative is applied on the way.

    saved: the batch's statistics, None where the running ones were used; fields: what both directions' rows share.
    """
    node = step.node
    dy = s.gradient(step.output)
    if dy is None:
        return
    need_dx = s.needs_gradient(x.name)
    target, accumulate = s.dx_over(x.name, dy) if need_dx else (None, 0)
    places: dict[str, Buffer | None] = {"dscale": None, "dbias": None}
    accumulate_params = 0
    if need_params:
        C = int(fields["C"])
        for name, role in (("dscale", "scale"), ("dbias", "bias")):
            if s.trains(node, role):
                places[name], accumulate_params = s.dweight(node, role)
            else:
                places[name] = s.scratch(C * s.itemsize)
    common = {"scale": s.weight(node, "scale"), "dy": dy.buffer, "dx": target,
              "scratch": scratch(s, int(fields["C"])), "need_dx": int(need_dx), "need_params": int(need_params),
              "accumulate": accumulate, "accumulate_params": accumulate_params, **places, **fields}
    if saved is not None:
        s.row("batchnorm_backward.backward_batch", x=x.buffer, bias=s.weight(node, "bias"), saved=saved,
              clamps=int(step.clamps), **common)
    else:
        s.row("batchnorm_backward.backward_frozen", x=x.buffer if need_params else None, y=y.buffer if step.clamps else None,
              mean=s.weight(node, "mean"), var=s.weight(node, "var"), eps=float(node.attrs["eps"]), **common)
    for role in ("scale", "bias"):
        if s.trains(node, role):
            s.weight_done(node, role)
    s.release(dy)


