"""Conv2d and ConvTranspose2d: dense, pointwise, grouped and depthwise."""
from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from ..errors import ModelError
from ..layout import Layout
from .base import Layer, Shape, expect_image, expect_inputs
from .conv2d_pooled import pooled_pays, pooled_row, pooled_serves
from .conv2d_winners import winners_bias_rows, winners_input_rows, winners_pay, winners_serve, winners_weight_row
from .convolution import Geometry, forward_rows, transposed_rows, weight_gradient
from .linear import bias_gradient, linear_backward

if TYPE_CHECKING:
    from ..fusion import Step
    from ..graph import Node
    from ..memory import Buffer
    from ..parts import Value
    from ..plan import Schedule

CONVOLUTIONS = ("Conv2d", "ConvTranspose2d")
# What the node sees, (K, C / G, R, S), as the kernels read it: (R, S, C / G, K). A transposed convolution's (C, K / G, R, S)
# is the weight of the convolution from its output to its input.
WEIGHT_STEPS = (("transpose", (2, 3, 1, 0)),)


class Convolution(Layer):
    """What a convolution and a transposed one share: each one's gradient to its input is the other."""

    transposed: ClassVar[bool] = False
    trainable = ("weight", "bias")
    channels_last = True

    @classmethod
    def geometry(cls, node: Node, shape: Shape, weight: Shape) -> Geometry:
        """That of the convolution which the node is, or is the transpose of."""
        return Geometry.transposed(node, shape, weight) if cls.transposed else Geometry.of(node, shape, weight)

    @classmethod
    def infer(cls, node: Node, shapes: list[Shape], weights: dict[str, Shape]) -> list[Shape]:
        expect_inputs(node, shapes, 1)
        C, H, W = expect_image(node, shapes[0])
        weight, groups, name = weights["weight"], node.attrs["groups"], f'{node.op} "{node.name}"'
        if len(weight) != 4 or 0 in weight or weight[2:] != tuple(node.attrs["kernel"]):
            axes = "C, K / groups" if cls.transposed else "K, C / groups"
            raise ModelError(f"{name}: weight has shape {weight}; expected ({axes}, {node.attrs['kernel'][0]}, "
                             f"{node.attrs['kernel'][1]})")
        K = weight[1] * groups if cls.transposed else weight[0]
        if groups < 1 or C % groups or K % groups:
            usable = [g for g in range(1, C + 1) if C % g == 0 and weight[0] % g == 0]
            raise ModelError(f"{name}: groups (={groups}) must divide the {C} input and {K} output channels; use one of "
                             f"{usable}")
        expected = weight[0] if cls.transposed else weight[1] * groups
        if expected != C:
            raise ModelError(f"{name}: weight has shape {weight}, for {expected} input channels in {groups} groups; the input "
                             f"has {C}")
        if "bias" in weights and weights["bias"] != (K,):
            raise ModelError(f'{name}: bias has shape {weights["bias"]}; expected ({K},)')
        if min(node.attrs["stride"]) < 1 or min(node.attrs["dilation"]) < 1:
            raise ModelError(f'{name}: stride {node.attrs["stride"]} and dilation {node.attrs["dilation"]} must be at least 1')
        g = cls.geometry(node, (C, H, W), weight)
        return [(g.C, g.H, g.W) if cls.transposed else (g.K, g.OH, g.OW)]

    @classmethod
    def output_axis(cls, node: Node, role: str) -> int | None:
        return None if cls.transposed and role == "weight" else 0

    @classmethod
    def macs(cls, node: Node, shapes: list[Shape], outputs: list[Shape], weights: dict[str, Shape]) -> int:
        return math.prod(shapes[0] if cls.transposed else outputs[0]) * math.prod(weights["weight"][1:])

    @classmethod
    def forward(cls, s: Schedule, step: Step) -> None:
        node, ref = step.node, step.node.weights["weight"]
        g = cls.geometry(node, s.shapes[node.inputs[0]], ref.apply(s.graph.weights[ref.name]).shape)
        x = s.channels_last(s.value(node.inputs[0]))
        weight, bias = s.weight(node, "weight", WEIGHT_STEPS), s.weight(node, "bias")
        if step.bn is not None:
            weight, bias = fold_rows(s, step.bn, g, weight, bias, cls.transposed)
        residual = s.channels_last(s.value(step.residual)) if step.residual else None
        # pixels that no tap reaches are made first, which may not overwrite the residual of the others
        over = None if cls.transposed and g.skips else residual
        y = output_value(s, step, Layout.channels_last(s.shapes[step.output]), over, x)
        buffers = weight, bias, residual.buffer if residual else None, x.buffer, y.buffer
        pool = None if cls.transposed else pooled_serves(step, g)
        if pool is not None and pooled_pays(s, g, pool):
            s.unmade[step.output] = partial(pooled_row, s, node, g, weight, bias, x)
        elif cls.transposed:
            transposed_rows(s, g, *buffers, step.low, step.high, lasting=not s.trains(node, "weight"))
        else:
            forward_rows(s, g, *buffers, step.low, step.high, lasting=not s.trains(node, "weight"))
        if s.node_live(step):
            if s.trains(node, "weight"):
                s.keep(x)
            if step.clamps:
                s.keep(y)
            s.backward(lambda: backward(s, step, g, x, y, cls.transposed))


class Conv2d(Convolution):
    """ONNX Conv in two dimensions. Attributes kernel, stride, pads, dilation, groups; weight (K, C / G, R, S), bias (K,).

    Raises   ModelError: channels that do not fit the weight or the groups, a window larger than the padded image
    Memory   forward: a band of padded input per chunk (depthwise 3 x 3: one line of zeros), with many channels a panel of
             weights; backward: the transposed weights, partial sums of dW
    """

    op = "Conv2d"
    onnx = {"Conv": {}}


class ConvTranspose2d(Convolution):
    """ONNX ConvTranspose in two dimensions: each input pixel adds its window of weights to the output.

    Attributes kernel, stride, dilation, groups, pads (top, left, bottom, right), cut off the output, and output_padding
    (bottom, right), added to it; weight (C, K / G, R, S), bias (K,).

    Raises   ModelError: channels that do not fit the weight or the groups, padding that leaves nothing
    Memory   the transposed weights, made once where they do not train; a band of padded input and a panel of weights per chunk
    """

    op = "ConvTranspose2d"
    transposed = True
    onnx = {"ConvTranspose": {}}


def output_value(s: Schedule, step: Step, layout: Layout, residual: Value | None, x: Value) -> Value:
    """The output, in the residual's memory where this is its last use."""
    if residual is not None and s.free_behind(residual, x) and residual.layout.same_order(layout):
        return s.make(step.output, layout, residual.buffer)
    return s.make(step.output, layout)


def fold_rows(s: Schedule, bn: Node, g: Geometry, weight: Buffer | None, bias: Buffer | None,
              transposed: bool) -> tuple[Buffer, Buffer]:
    """Batch norm's running statistics folded into weight and bias, prepared once after the weights changed."""
    K = g.C if transposed else g.K
    folded = s.held(f"{bn.name}.folded_weight", g.weight_numbers * s.itemsize)
    folded_bias = s.held(f"{bn.name}.folded_bias", K * s.itemsize)
    s.prepare("batchnorm_fold.fold", weight=weight, bias=bias, scale=s.weight(bn, "scale"), bn_bias=s.weight(bn, "bias"),
              mean=s.weight(bn, "mean"), var=s.weight(bn, "var"), folded_weight=folded, folded_bias=folded_bias,
              rows=g.R * g.S * g.CG, columns=g.K, K=K, KG=g.CG if transposed else 1, CG=g.K // g.G if transposed else 0,
              eps=float(bn.attrs["eps"]))
    return folded, folded_bias


def backward(s: Schedule, step: Step, g: Geometry, x: Value, y: Value, transposed: bool) -> None:
    """dX, dW, dB of a step, and dY to the residual."""
    node = step.node
    winners = s.winners.get(step.output)
    weights = inputs = False
    if winners is not None and not (s.trains(node, "weight") or s.needs_gradient(x.name) or step.clamps or step.residual):
        winners_bias_rows(s, node, s.winners.pop(step.output))
        return
    if winners is not None and s.trains(node, "weight") and not transposed and winners_serve(s, step, g, winners):
        weights, inputs = winners_pay(s, g, winners, s.needs_gradient(x.name))
        if weights:
            winners_weight_row(s, node, g, x, winners)
        if inputs:
            winners_input_rows(s, g, s.weight(node, "weight", WEIGHT_STEPS), x, winners)
        if weights and (inputs or not s.needs_gradient(x.name)):
            s.release(s.winners.pop(step.output).dy)
            s.weight_done(node, "weight")
            return
    dy = s.through_clamp(step, y)
    if dy is None:
        return
    if step.residual:
        s.give(s.channels_last(s.value(step.residual)).name, dy)
    if g.matrix and not (transposed or weights or inputs):
        linear_backward(s, node, *g.matrix, x, dy)
        s.release(dy)
        return
    K, OH, OW = y.layout.shape
    if not weights:
        bias_gradient(s, node, OH * OW, K, dy)
    if s.trains(node, "weight") and not weights:
        weight_gradient(s, node, g, *((dy.buffer, x.buffer) if transposed else (x.buffer, dy.buffer)))
    if s.needs_gradient(x.name) and not inputs:
        target, accumulate = s.dx(x.name)
        rows = forward_rows if transposed else transposed_rows
        rows(s, g, s.weight(node, "weight", WEIGHT_STEPS), None, target if accumulate else None, dy.buffer, target,
             lasting=not s.trains(node, "weight"))
    if s.trains(node, "weight"):         # only now, after the gradient of the input was made from it
        s.weight_done(node, "weight")
    s.release(dy)
