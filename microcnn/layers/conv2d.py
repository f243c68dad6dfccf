"""Conv2d: dense, pointwise, grouped and depthwise convolutions."""
from __future__ import annotations

import math
from copy import copy
from typing import TYPE_CHECKING

from ..errors import ModelError
from ..layout import Layout
from .base import Layer, Shape, expect_image, expect_inputs
from .conv2d_scatter import scatter_pays, scatter_rows
from .conv2d_winners import winners_input_rows, winners_pay, winners_serve, winners_weight_row
from .linear import bias_gradient, linear_backward, linear_rows
from .windows import Pads, Phase, output_hw, phases, resolve_pads

if TYPE_CHECKING:
    from ..fusion import Step
    from ..graph import Node
    from ..memory import Buffer
    from ..parts import Gradient, Value
    from ..plan import Schedule

# A band of padded input that one chunk of the work holds: about half of a small first-level cache.
BAND_BYTES = 24 * 1024
# Bands shorter than this many pixels waste tiles.
BAND_PIXELS = 48
CHUNKS = 8
# Pixels that a tile of dW sums in one go.
BLOCK_PIXELS = 256

# What the node sees, (K, C / G, R, S), as the kernels read it: (R, S, C / G, K).
WEIGHT_STEPS = (("transpose", (2, 3, 1, 0)),)


class Geometry:
    """A convolution's sizes, by the letters of the field."""

    def __init__(self, node: Node, shape: Shape, weight: Shape):
        self.C, self.H, self.W = shape
        self.K, self.CG, self.R, self.S = weight
        self.G = node.attrs["groups"]
        self.stride: tuple[int, int] = tuple(node.attrs["stride"])
        self.dilation: tuple[int, int] = tuple(node.attrs["dilation"])
        self.pads: Pads = resolve_pads(node.attrs["pads"], (self.H, self.W), (self.R, self.S), self.stride, self.dilation)
        self.OH, self.OW = output_hw(node.name, (self.H, self.W), (self.R, self.S), self.stride, self.pads, self.dilation)

    @property
    def depthwise(self) -> bool:
        return self.G == self.C == self.K and self.G > 1

    @property
    def pointwise(self) -> bool:
        return (self.R, self.S, self.G, self.stride, self.pads) == (1, 1, 1, (1, 1), (0, 0, 0, 0))

    @property
    def weight_numbers(self) -> int:
        return self.R * self.S * self.CG * self.K

    def sides(self) -> dict[str, int]:
        """The fields that say where each output pixel's window lies."""
        return {"dilation_h": self.dilation[0], "dilation_w": self.dilation[1], "stride_h": self.stride[0],
                "stride_w": self.stride[1], "origin_h": -self.pads[0], "origin_w": -self.pads[1]}

    def pixels_together(self, lanes: int) -> int:
        """How many neighbouring pixels of a row had best be one pixel with as many times the channels (kernels/widen.py)."""
        def registers(pixels: int) -> float:
            return math.ceil(pixels * self.K / lanes) * (self.S + (pixels - 1) * self.stride[1]) / pixels
        if self.G != 1 or self.dilation[1] != 1 or self.K >= lanes:
            return 1
        best = min((p for p in range(1, self.OW + 1) if self.OW % p == 0 and p * self.K <= 4 * lanes), key=registers)
        return best if registers(best) < 0.9 * registers(1) else 1

    def together(self, pixels: int) -> Geometry:
        """The same convolution with so many neighbouring pixels of a row as one pixel."""
        wide = copy(self)
        wide.K, wide.S, wide.OW = pixels * self.K, self.S + (pixels - 1) * self.stride[1], self.OW // pixels
        wide.stride = self.stride[0], pixels * self.stride[1]
        return wide


class Conv2d(Layer):
    """ONNX Conv in two dimensions. Attributes kernel, stride, pads, dilation, groups; weight (K, C / G, R, S), bias (K,).

    Raises   ModelError: channels that do not fit the weight or the groups, a window larger than the padded image
    Memory   forward: a band of padded input per chunk; backward: the transposed weights, partial sums of dW
    """

    op = "Conv2d"
    trainable = ("weight", "bias")
    channels_last = True
    onnx = {"Conv": {}}

    @staticmethod
    def infer(node: Node, shapes: list[Shape], weights: dict[str, Shape]) -> list[Shape]:
        expect_inputs(node, shapes, 1)
        C, H, W = expect_image(node, shapes[0])
        weight, groups = weights["weight"], node.attrs["groups"]
        if len(weight) != 4 or weight[2:] != tuple(node.attrs["kernel"]):
            raise ModelError(f'Conv2d "{node.name}": weight has shape {weight}; expected (K, C / groups, '
                             f"{node.attrs['kernel'][0]}, {node.attrs['kernel'][1]})")
        if groups < 1 or C % groups or weight[0] % groups:
            usable = [g for g in range(1, C + 1) if C % g == 0 and weight[0] % g == 0]
            raise ModelError(f'Conv2d "{node.name}": groups (={groups}) must divide the {C} input and {weight[0]} output '
                             f"channels; use one of {usable}")
        if weight[1] != C // groups:
            raise ModelError(f'Conv2d "{node.name}": weight has shape {weight}, for {weight[1] * groups} input channels in '
                             f"{groups} groups; the input has {C}")
        if "bias" in weights and weights["bias"] != (weight[0],):
            raise ModelError(f'Conv2d "{node.name}": bias has shape {weights["bias"]}; expected ({weight[0]},)')
        if min(node.attrs["stride"]) < 1 or min(node.attrs["dilation"]) < 1:
            raise ModelError(f'Conv2d "{node.name}": stride {node.attrs["stride"]} and dilation {node.attrs["dilation"]} '
                             "must be at least 1")
        geometry = Geometry(node, (C, H, W), weight)
        return [(geometry.K, geometry.OH, geometry.OW)]

    @staticmethod
    def macs(node: Node, shapes: list[Shape], outputs: list[Shape], weights: dict[str, Shape]) -> int:
        return math.prod(outputs[0]) * math.prod(weights["weight"][1:])

    @staticmethod
    def forward(s: Schedule, step: Step) -> None:
        node = step.node
        geometry = geometry_of(s, node)
        x = s.channels_last(s.value(node.inputs[0]))
        weight, bias = s.weight(node, "weight", WEIGHT_STEPS), s.weight(node, "bias")
        if step.bn is not None:
            weight, bias = fold_rows(s, step.bn, weight, bias, geometry.weight_numbers // geometry.K, geometry.K)
        residual = s.channels_last(s.value(step.residual)) if step.residual else None
        y = output_value(s, step, Layout.channels_last((geometry.K, geometry.OH, geometry.OW)), residual)
        pixels = geometry.pixels_together(s.lanes)
        if pixels > 1:
            weight, bias = widened(s, geometry, pixels, weight, bias)
        forward_rows(s, geometry.together(pixels), x, weight, bias, residual, y, step)
        if s.node_live(step):
            if s.trains(node, "weight"):
                s.keep(x)
            if step.clamps:
                s.keep(y)
            s.backward(lambda: backward(s, step, geometry, x, y))


def output_value(s: Schedule, step: Step, layout: Layout, residual: Value | None) -> Value:
    """The output, in the residual's memory where this is its only use."""
    if residual is not None and s.free_to_overwrite(residual) and residual.layout.same_order(layout):
        return s.make(step.output, layout, residual.buffer)
    return s.make(step.output, layout)


def fold_rows(s: Schedule, bn: Node, weight: Buffer | None, bias: Buffer | None, rows: int,
              K: int) -> tuple[Buffer, Buffer]:
    """Batch norm's running statistics folded into weight (rows, K) and bias, prepared once after the weights changed."""
    folded = s.held(f"{bn.name}.folded_weight", rows * K * s.itemsize)
    folded_bias = s.held(f"{bn.name}.folded_bias", K * s.itemsize)
    s.prepare("batchnorm.fold", weight=weight, bias=bias, scale=s.weight(bn, "scale"), bn_bias=s.weight(bn, "bias"),
              mean=s.weight(bn, "mean"), var=s.weight(bn, "var"), folded_weight=folded, folded_bias=folded_bias, rows=rows,
              K=K, eps=float(bn.attrs["eps"]))
    return folded, folded_bias


def widened(s: Schedule, g: Geometry, pixels: int, weight: Buffer | None,
            bias: Buffer | None) -> tuple[Buffer, Buffer | None]:
    """Weight and bias for several pixels at once: each step anew where they may train, else once."""
    buffer, add = (s.scratch, s.row) if s.live else (s.held, s.prepare)
    wide = g.together(pixels)
    wide_weight = buffer(size=wide.weight_numbers * s.itemsize, name="wide_weight")
    wide_bias = buffer(size=wide.K * s.itemsize, name="wide_bias") if bias else None
    add("widen.widen", weight=weight, bias=bias, wide=wide_weight, wide_bias=wide_bias, rows=g.R, S=g.S, C=g.C, K=g.K, P=pixels,
        step=g.stride[1], WS=wide.S)
    return wide_weight, wide_bias


def geometry_of(s: Schedule, node: Node) -> Geometry:
    return Geometry(node, s.shapes[node.inputs[0]], node.weights["weight"].apply(
        s.graph.weights[node.weights["weight"].name]).shape)


def forward_rows(s: Schedule, g: Geometry, x: Value, weight: Buffer | None, bias: Buffer | None, residual: Value | None,
                 y: Value, step: Step) -> None:
    """The row that runs a convolution forward, by its kind."""
    added = residual.buffer if residual else None
    bounds = {"low": step.low, "high": step.high}
    if g.pointwise:
        linear_rows(s, g.H * g.W, g.C, g.K, x.buffer, weight, bias, added, y.buffer, **bounds)
        return
    grid = {"OH": g.OH, "OW": g.OW, "y_size": g.OH * g.OW * g.K, "y_row": g.OW * g.K, "y_pixel": g.K, "y_base": 0}
    sides = g.sides()
    if g.depthwise:
        depthwise_row(s, x.buffer, weight, bias, added, y.buffer, g.weight_numbers, g.H, g.W, g.C, g.R, g.S, 0, g.S * g.C, g.C,
                      sides, grid, bounds)
    else:
        conv_row(s, x.buffer, weight, bias, added, y.buffer, g.H, g.W, g.C, g.K, g.G, g.K, g.R, g.S, sides, grid, bounds)


def conv_row(s: Schedule, x: Buffer, weight: Buffer | None, bias: Buffer | None, residual: Buffer | None, y: Buffer, H: int,
             W: int, C: int, K: int, G: int, w_row: int, R: int, S: int, sides: dict[str, int], grid: dict[str, int],
             bounds: dict[str, float]) -> None:
    """A row of the dense kernel, with the bands that its padding needs."""
    OH, OW = grid["OH"], grid["OW"]
    band, chunks, padded = band_plan(s, H, W, C, R, S, sides, OH, OW)
    s.row("conv2d.forward", x=x, weight=weight, bias=bias, residual=residual, y=y, tables=s.scratch(16 * band * OW, "tables"),
          padded=s.scratch(padded * s.itemsize, "padded") if padded else None, H=H, W=W, C=C, K=K, G=G, w_row=w_row, R=R, S=S,
          **sides, **grid, band=band, padded_size=padded, chunks=chunks, **bounds)


def depthwise_row(s: Schedule, x: Buffer, weight: Buffer | None, bias: Buffer | None, residual: Buffer | None, y: Buffer,
                  weight_size: int, H: int, W: int, C: int, R: int, S: int, w_at: int, w_row: int, w_tap: int,
                  sides: dict[str, int], grid: dict[str, int], bounds: dict[str, float]) -> None:
    """A row of the depthwise kernel, with the bands that its padding needs."""
    band, chunks, padded = band_plan(s, H, W, C, R, S, sides, grid["OH"], grid["OW"])
    s.row("depthwise2d.forward", x=x, weight=weight, bias=bias, residual=residual, y=y,
          padded=s.scratch(padded * s.itemsize, "padded") if padded else None, weight_size=weight_size, H=H, W=W, C=C, R=R,
          S=S, w_at=w_at, w_row=w_row, w_tap=w_tap, **sides, **grid, band=band, padded_size=padded, chunks=chunks, **bounds)


def band_plan(s: Schedule, H: int, W: int, C: int, R: int, S: int, sides: dict[str, int], OH: int,
              OW: int) -> tuple[int, int, int]:
    """Output rows in a band, chunks of bands, and the numbers that the padded bands of all chunks hold (0: no padding)."""
    height = (OH - 1) * sides["stride_h"] + (max(R, 1) - 1) * sides["dilation_h"] + 1
    width = (OW - 1) * sides["stride_w"] + (max(S, 1) - 1) * sides["dilation_w"] + 1
    top, left = sides["origin_h"], sides["origin_w"]
    inside = top >= 0 and left >= 0 and top + height <= H and left + width <= W
    least = min(OH, math.ceil(BAND_PIXELS / OW))
    room = BAND_BYTES // (width * C * s.itemsize) - (max(R, 1) - 1) * sides["dilation_h"] - 1
    band = min(OH, max(least, room // sides["stride_h"] + 1 if room >= 0 else 1))
    if s.batch * math.ceil(OH / band) < CHUNKS:
        band = max(least, min(band, math.ceil(OH / math.ceil(CHUNKS / s.batch))))
    band = math.ceil(OH / math.ceil(OH / band))
    jobs = s.batch * math.ceil(OH / band)
    if inside or R == 0 or S == 0:
        return band, min(jobs, 4 * CHUNKS), 0
    chunks = min(jobs, CHUNKS)
    rows = (band - 1) * sides["stride_h"] + (R - 1) * sides["dilation_h"] + 1
    return band, chunks, chunks * rows * width * C


def backward(s: Schedule, step: Step, g: Geometry, x: Value, y: Value) -> None:
    """dX, dW, dB of a step, and dY to the residual."""
    node = step.node
    winners = s.winners.get(step.output)
    if winners is not None and s.trains(node, "weight") and winners_serve(s, step, g, winners):
        weights, inputs = winners_pay(s, g, winners, s.needs_gradient(x.name))
    else:
        weights, inputs = False, False
    if winners is not None and weights:
        winners_weight_row(s, node, g, x, winners)
    if winners is not None and inputs:
        winners_input_rows(s, g, s.weight(node, "weight", WEIGHT_STEPS), x, winners)
    if winners is not None and weights and (inputs or not s.needs_gradient(x.name)):
        s.release(s.winners.pop(step.output).dy)
        finish_weight(s, node)
        return
    dy = s.through_clamp(step, y)
    if dy is None:
        return
    if step.residual:
        s.give(s.channels_last(s.value(step.residual)).name, dy)
    if g.pointwise:
        linear_backward(s, node, g.H * g.W, g.C, g.K, x, dy)
    else:
        if not weights:
            bias_gradient(s, node, g.OH * g.OW, g.K, dy)
        if s.trains(node, "weight") and not weights:
            weight_gradient(s, node, g, x, dy)
        if s.needs_gradient(x.name) and not inputs:
            input_gradient(s, node, g, x, dy)
        finish_weight(s, node)
    s.release(dy)


def finish_weight(s: Schedule, node: Node) -> None:
    """The weight may change only after the gradient of the input was made from it."""
    if s.trains(node, "weight"):
        s.weight_done(node, "weight")


def weight_gradient(s: Schedule, node: Node, g: Geometry, x: Value, dy: Gradient) -> None:
    """dW, for several pixels at once where that fills the registers better."""
    target, accumulate = s.dweight(node, "weight")
    pixels = g.pixels_together(s.lanes)
    if pixels == 1:
        weight_row(s, g, x, dy, target, accumulate)
        return
    wide = g.together(pixels)
    wide_gradient = s.scratch(wide.weight_numbers * s.itemsize, "wide_gradient")
    weight_row(s, wide, x, dy, wide_gradient, 0)
    s.row("widen.narrow", wide=wide_gradient, gradient=target, rows=g.R, S=g.S, C=g.C, K=g.K, P=pixels, step=g.stride[1],
          WS=wide.S, accumulate=accumulate)


def weight_row(s: Schedule, g: Geometry, x: Value, dy: Gradient, target: Buffer, accumulate: int) -> None:
    """The row that makes dW, by the convolution's kind."""
    common = {"x": x.buffer, "dy": dy.buffer, "dweight": target, "H": g.H, "W": g.W, "C": g.C, "OH": g.OH, "OW": g.OW,
              "R": g.R, "S": g.S, "stride_h": g.stride[0], "stride_w": g.stride[1], "dilation_h": g.dilation[0],
              "dilation_w": g.dilation[1], "pad_top": g.pads[0], "pad_left": g.pads[1], "accumulate": accumulate}
    size = g.weight_numbers * s.itemsize
    if g.depthwise:
        band, chunks, padded = band_plan(s, g.H, g.W, g.C, g.R, g.S, g.sides(), g.OH, g.OW)
        chunks = min(chunks, CHUNKS)
        s.row("depthwise2d.backward_weight", **common, band=band, chunks=chunks, padded_size=padded,
              padded=s.scratch(padded * s.itemsize, "padded") if padded else None, scratch=s.scratch(chunks * size))
        return
    rows = 8
    if g.G == 1 and g.C / (math.ceil(g.C / rows) * rows) < 0.8:
        band, chunks, padded = band_plan(s, g.H, g.W, g.C, g.R, g.S, g.sides(), g.OH, g.OW)
        chunks = min(chunks, CHUNKS)
        s.row("conv2d_weight.backward_few", **common, K=g.K, band=band, chunks=chunks, padded_size=padded,
              tables=s.scratch(8 * (band * g.OW + g.R * g.S * g.C), "tables"),
              padded=s.scratch(padded * s.itemsize, "padded") if padded else None,
              scratch=s.scratch(chunks * size))
        return
    pixels = g.OH * g.OW
    samples, band = (1, math.ceil(BLOCK_PIXELS / g.OW)) if pixels >= BLOCK_PIXELS else (BLOCK_PIXELS // pixels, g.OH)
    band = min(band, g.OH)
    tiles = math.ceil(g.K / g.G / (2 * s.lanes)) * math.ceil(g.CG / rows) * g.R * g.S * g.G
    blocks = math.ceil(s.batch / samples) * math.ceil(g.OH / band)
    chunks = 1 if tiles >= 16 else min(blocks, math.ceil(16 / tiles))
    s.row("conv2d_weight.backward", **common, K=g.K, G=g.G, band=band, samples=samples, chunks=chunks, groups=min(tiles, 32),
          scratch=s.scratch(chunks * size) if chunks > 1 else None)


def input_gradient(s: Schedule, node: Node, g: Geometry, x: Value, dy: Gradient) -> None:
    """dX: the forward kernel on dY with flipped, transposed weights, once for each phase of the stride."""
    weight = s.weight(node, "weight", WEIGHT_STEPS)
    target, accumulate = s.dx(x.name)
    if scatter_pays(s, g):
        scatter_rows(s, g, weight, dy, target, accumulate)
        return
    bounds = {"low": -math.inf, "high": math.inf}
    for down in phases(g.H, g.R, g.stride[0], g.pads[0], g.dilation[0]):
        for across in phases(g.W, g.S, g.stride[1], g.pads[1], g.dilation[1]):
            empty = down.taps == 0 or across.taps == 0
            if empty and accumulate:
                continue
            grid = {"OH": down.count, "OW": across.count, "y_size": g.H * g.W * g.C, "y_row": g.stride[0] * g.W * g.C,
                    "y_pixel": g.stride[1] * g.C, "y_base": (down.first * g.W + across.first) * g.C}
            sides = {"dilation_h": down.dilation, "dilation_w": across.dilation, "stride_h": 1, "stride_w": 1,
                     "origin_h": down.origin, "origin_w": across.origin}
            R, S = (0, 0) if empty else (down.taps, across.taps)
            added = target if accumulate else None
            if g.depthwise:
                depthwise_phase(s, g, weight, dy, target, added, down, across, R, S, sides, grid, bounds)
            else:
                dense_phase(s, g, weight, dy, target, added, down, across, R, S, sides, grid, bounds)


def depthwise_phase(s: Schedule, g: Geometry, weight: Buffer | None, dy: Gradient, target: Buffer, added: Buffer | None,
                    down: Phase, across: Phase, R: int, S: int, sides: dict[str, int], grid: dict[str, int],
                    bounds: dict[str, float]) -> None:
    """One phase, its taps read backwards where they lie."""
    last = ((down.tap + (R - 1) * down.step) * g.S + across.tap + (S - 1) * across.step) * g.C if R and S else 0
    depthwise_row(s, dy.buffer, weight, None, added, target, g.weight_numbers, g.OH, g.OW, g.C, R, S, last,
                  -down.step * g.S * g.C, -across.step * g.C, sides, grid, bounds)


def dense_phase(s: Schedule, g: Geometry, weight: Buffer | None, dy: Gradient, target: Buffer, added: Buffer | None,
                down: Phase, across: Phase, R: int, S: int, sides: dict[str, int], grid: dict[str, int],
                bounds: dict[str, float]) -> None:
    """One phase: its taps flipped and transposed into scratch, then the dense kernel."""
    w_row = math.ceil(g.C / s.lanes) * s.lanes
    packed = None
    if R and S:
        packed = s.scratch(R * S * (g.K // g.G) * w_row * s.itemsize, "packed")
        s.row("conv2d.flip", weight=weight, packed=packed, R=g.R, S=g.S, C=g.C, K=g.K, G=g.G, tap_r=down.tap,
              tap_s=across.tap, step_r=down.step, step_s=across.step, TR=R, TS=S, w_row=w_row)
    conv_row(s, dy.buffer, packed, None, added, target, g.OH, g.OW, g.K, g.C, g.G, w_row, R, S, sides, grid, bounds)
