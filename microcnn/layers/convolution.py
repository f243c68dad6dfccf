"""The rows that run convolutions, forward and backward, as conv2d and conv_transpose2d use them."""
from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..errors import ModelError
from .bands import BAND_BYTES, band_plan, chunk_count
from .base import Shape
from .columns import columns_row, first_channels
from .depthwise import depthwise_input_row, depthwise_phase, depthwise_row, depthwise_weight_row, slides_back
from .linear import (
    PANEL_LEAST_DEPTH,
    PANEL_LEAST_PIXELS,
    linear_row,
    panel_depth,
    split_columns,
    weight_gradient_rows,
)
from .windows import LARGEST, Pads, Pair, Phase, output_hw, phases, resolve_pads, used_phases
from .winograd import backward_geometry, packed_numbers, winograd_pays, winograd_rows

if TYPE_CHECKING:
    from ..graph import Node
    from ..memory import Buffer
    from ..plan import Schedule

# Where a window has more numbers than this, a chunk passes over a part of the weights at a time, whatever else fits.
DEEP, DEEP_BAND_BYTES = 768, 256 * 1024
# With more phases of a stride than this that no tap reaches, one row makes them all.
FEW_GAPS = 3
# An image of one row that is longer than this is cut into bands along the row.
LONG_ROW_BYTES = 4 * BAND_BYTES
# Pixels that a tile of dW sums in one go.
BLOCK_PIXELS = 128


@dataclass(frozen=True)
class Geometry:
    """A convolution's sizes, by the letters of the field. CG: the input channels that each output channel sees."""

    C: int
    H: int
    W: int
    K: int
    CG: int
    R: int
    S: int
    G: int
    stride: Pair
    dilation: Pair
    pads: Pads
    OH: int
    OW: int

    @staticmethod
    def of(node: Node, shape: Shape, weight: Shape) -> Geometry:
        """Of a Conv2d with that input and weight. Raises ModelError where the window does not fit."""
        (C, H, W), (K, CG, R, S), attrs = shape, weight, node.attrs
        stride, dilation = _pair(attrs["stride"]), _pair(attrs["dilation"])
        pads = resolve_pads(attrs["pads"], (H, W), (R, S), stride, dilation)
        OH, OW = output_hw(node.name, (H, W), (R, S), stride, pads, dilation)
        return Geometry(C, H, W, K, CG, R, S, attrs["groups"], stride, dilation, pads, OH, OW)

    @staticmethod
    def transposed(node: Node, shape: Shape, weight: Shape) -> Geometry:
        """The convolution whose gradient to its input is a ConvTranspose2d with that input and weight.

        It reads the larger image, which is that node's output. Raises ModelError where nothing is left of it.
        """
        (C, H, W), (_, KG, R, S), attrs = shape, weight, node.attrs
        stride, dilation, more = _pair(attrs["stride"]), _pair(attrs["dilation"]), _pair(attrs["output_padding"])
        top, left, bottom, right = attrs["pads"]
        pads = top, left, bottom - more[0], right - more[1]
        OH = (H - 1) * stride[0] + (R - 1) * dilation[0] + 1 - pads[0] - pads[2]
        OW = (W - 1) * stride[1] + (S - 1) * dilation[1] + 1 - pads[1] - pads[3]
        if OH < 1 or OW < 1:
            raise ModelError(f'ConvTranspose2d "{node.name}": padding {tuple(attrs["pads"])} leaves nothing of the image of '
                             f"{OH + pads[0] + pads[2]}x{OW + pads[1] + pads[3]} that it is cut from; use less padding")
        if KG * attrs["groups"] * OH * OW > LARGEST:
            raise ModelError(f'ConvTranspose2d "{node.name}": stride {stride} makes {OH}x{OW} of {H}x{W}, which no device can '
                             "hold; use a smaller one")
        return Geometry(KG * attrs["groups"], OH, OW, C, KG, R, S, attrs["groups"], stride, dilation, pads, H, W)

    @property
    def skips(self) -> bool:
        """Whether some pixels of x are seen by no tap."""
        return self.stride[0] > self.R or self.stride[1] > self.S

    @property
    def depthwise(self) -> bool:
        return self.G == self.C == self.K and self.G > 1

    @property
    def matrix(self) -> tuple[int, int, int] | None:
        """(rows of a sample, C, K) where the convolution is a product of x, read as rows of C numbers, with a matrix (C, K).

        A 1x1 window has a row for each pixel, one that is as large as the image a single row; None of any other.
        """
        if self.G != 1 or self.pads != (0, 0, 0, 0):
            return None
        if (self.R, self.S, self.stride) == (1, 1, (1, 1)):
            return self.H * self.W, self.C, self.K
        if (self.OH, self.OW, self.H, self.W) == (1, 1, self.R, self.S):
            return 1, self.R * self.S * self.C, self.K
        return None

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

    def first_channels(self, count: int) -> Geometry:
        """The same convolution with its first output channels, so many or those of as many whole groups, and what they see."""
        groups = math.ceil(count / (self.K // self.G))
        return replace(self, C=groups * self.CG, K=count if groups == 1 else groups * (self.K // self.G), G=groups)

    def together(self, pixels: int) -> Geometry:
        """The same convolution with so many neighbouring pixels of a row as one pixel."""
        return replace(self, K=pixels * self.K, S=self.S + (pixels - 1) * self.stride[1], OW=self.OW // pixels,
                       stride=(self.stride[0], pixels * self.stride[1]))


def _pair(value: Sequence[int]) -> Pair:
    return value[0], value[1]


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


def forward_rows(s: Schedule, g: Geometry, weight: Buffer | None, bias: Buffer | None, residual: Buffer | None, x: Buffer,
                 y: Buffer, low: float = -math.inf, high: float = math.inf, lasting: bool = False) -> None:
    """The rows that run a convolution, by its kind: y = clamp(x * weight + bias + residual); residual may be y.

    lasting: whether the weights change so rarely that another form of them is made once.
    """
    bounds = {"low": low, "high": high}
    if g.matrix:
        linear_row(s, *g.matrix, x, weight, bias, residual, y, low, high)
        return
    if winograd_pays(s, g):
        packed, add = packed_weight(s, packed_numbers(s, g), lasting)
        winograd_rows(s, g, weight, g.K, bias, residual, x, y, low, high, packed, add)
        return
    pixels = g.pixels_together(s.lanes)
    if pixels > 1:
        weight, bias = widened(s, g, pixels, weight, bias)
        g = g.together(pixels)
    grid = {"OH": g.OH, "OW": g.OW, "y_size": g.OH * g.OW * g.K, "y_row": g.OW * g.K, "y_pixel": g.K, "y_base": 0}
    sides = g.sides()
    if g.depthwise:
        depthwise_row(s, x, weight, bias, residual, y, g.weight_numbers, g.H, g.W, g.C, g.R, g.S, 0, g.S * g.C, g.C,
                      sides, grid, bounds)
    else:
        conv_row(s, x, weight, bias, residual, y, g.H, g.W, g.C, g.K, g.G, g.K, g.R, g.S, sides, grid, bounds)


def conv_row(s: Schedule, x: Buffer, weight: Buffer | None, bias: Buffer | None, residual: Buffer | None, y: Buffer, H: int,
             W: int, C: int, K: int, G: int, w_row: int, R: int, S: int, sides: dict[str, int], grid: dict[str, int],
             bounds: dict[str, float]) -> None:
    """A row of the dense kernel, with the bands that its padding needs."""
    if (H, R, grid["OH"], sides["origin_h"]) == (1, 1, 1, 0) and W * C * s.itemsize > LONG_ROW_BYTES:
        # one long row lies in memory as a column does, which can be cut into bands
        H, W, R, S = W, 1, S, 1
        sides = {f"{name}_{'w' if side == 'h' else 'h'}": sides[f"{name}_{side}"] for name in ("dilation", "stride", "origin")
                 for side in "hw"}
        grid = {**grid, "OH": grid["OW"], "OW": 1, "y_row": grid["y_pixel"], "y_pixel": K}
    OH, OW = grid["OH"], grid["OW"]
    tile = 4 * s.lanes
    together = G == 1 and sides["dilation_w"] == 1          # neighbouring taps, which the kernel reads as one
    deep = R * S * (C // G) > DEEP and (together or C // G >= PANEL_LEAST_DEPTH) and s.batch * OH * OW >= PANEL_LEAST_PIXELS
    across = math.ceil(K / tile) if G == 1 else 1
    if deep:
        band, jobs, band_numbers = band_plan(s, H, W, C, R, S, sides, OH, OW, DEEP_BAND_BYTES, across)
    else:
        band, jobs, band_numbers = band_plan(s, H, W, C, R, S, sides, OH, OW)
    channels = split_columns(K, tile, jobs) if G == 1 else math.ceil(K // G / tile) * tile
    splits = math.ceil(K / channels) if G == 1 else 1
    chunks = chunk_count(jobs * splits, s.held_chunks if deep or band_numbers > 0 else s.chunks)
    depth = panel_depth(s, channels) if deep else 0
    padded = chunks * band_numbers
    panels = chunks * depth * channels if w_row > tile else 0
    s.row("conv2d.forward", x=x, weight=weight, bias=bias, residual=residual, y=y, tables=s.scratch(16 * band * OW, "tables"),
          padded=s.scratch(padded * s.itemsize, "padded") if padded else None,
          panels=s.scratch(panels * s.itemsize, "panels") if panels else None, H=H, W=W, C=C, K=K, G=G, w_row=w_row, R=R, S=S,
          **sides, **grid, band=band, channels=channels, depth=depth, padded_size=padded, panels_size=panels,
          chunks=chunks, **bounds)


def weight_gradient(s: Schedule, node: Node, g: Geometry, x: Buffer, dy: Buffer) -> None:
    """dW, of the channels that train, for several pixels at once where that fills the registers better."""
    if g.matrix:
        weight_gradient_rows(s, node, *g.matrix, x, dy)
        return
    target, accumulate = s.dweight(node, "weight")
    part = s.part(node, "weight")
    if part.rows > 1:
        wanted = g.first_channels(part.columns)
        x, dy = first_channels(s, x, g.H * g.W, g.C, wanted.C), first_channels(s, dy, g.OH * g.OW, g.K, wanted.K)
        g = wanted
    if part.rows > 1 and g.K > part.columns:         # whole groups, of the last of which not all channels train
        whole = s.scratch(g.weight_numbers * s.itemsize, "groups")
        weight_row(s, g, x, dy, whole, 0)
        columns_row(s, whole, target, part.rows, part.columns, g.K, part.columns, accumulate=accumulate)
        return
    pixels = g.pixels_together(s.lanes)
    if pixels == 1:
        weight_row(s, g, x, dy, target, accumulate)
        return
    wide = g.together(pixels)
    wide_gradient = s.scratch(wide.weight_numbers * s.itemsize, "wide_gradient")
    weight_row(s, wide, x, dy, wide_gradient, 0)
    s.row("widen.narrow", wide=wide_gradient, gradient=target, rows=g.R, S=g.S, C=g.C, K=g.K, P=pixels, step=g.stride[1],
          WS=wide.S, accumulate=accumulate)


def weight_row(s: Schedule, g: Geometry, x: Buffer, dy: Buffer, target: Buffer, accumulate: int) -> None:
    """The row that makes dW, by the convolution's kind."""
    if g.depthwise:
        depthwise_weight_row(s, g, x, dy, target, accumulate)
        return
    common = {"x": x, "dy": dy, "dweight": target, "H": g.H, "W": g.W, "C": g.C, "OH": g.OH, "OW": g.OW,
              "R": g.R, "S": g.S, "stride_h": g.stride[0], "stride_w": g.stride[1], "dilation_h": g.dilation[0],
              "dilation_w": g.dilation[1], "pad_top": g.pads[0], "pad_left": g.pads[1], "accumulate": accumulate}
    size = g.weight_numbers * s.itemsize
    rows = 8
    if g.G == 1 and g.C / (math.ceil(g.C / rows) * rows) < 0.8:
        band, jobs, band_numbers = band_plan(s, g.H, g.W, g.C, g.R, g.S, g.sides(), g.OH, g.OW)
        chunks = chunk_count(jobs, s.held_chunks)
        padded = chunks * band_numbers
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
    s.row("conv2d_weight.backward", **common, K=g.K, G=g.G, band=band, samples=samples, chunks=chunks,
          scratch=s.scratch(chunks * size) if chunks > 1 else None)


def transposed_rows(s: Schedule, g: Geometry, weight: Buffer | None, bias: Buffer | None, residual: Buffer | None, x: Buffer,
                    y: Buffer, low: float = -math.inf, high: float = math.inf, lasting: bool = False) -> None:
    """The rows that put each pixel of x (OH, OW, K) back where the convolution g took it from: y (H, W, C).

    A transposed convolution, or the gradient of g to its input: y = clamp(sum + bias + residual), residual may be y. They are
    the forward kernel with flipped, transposed weights, once for each phase of the stride. lasting: whether the weights
    change so rarely that this form of them is made once.
    """
    if g.matrix:
        matrix_rows(s, g, *g.matrix, weight, bias, residual, x, y, low, high, lasting)
        return
    if scatter_pays(s, g):
        scatter_rows(s, g, weight, bias, residual, x, y, low, high, lasting)
        return
    back = backward_geometry(g)
    if winograd_pays(s, back):
        flipped, w_row = flipped_weight(s, g, weight, g.R, g.S, 0, 0, 1, 1, lasting)
        packed, add = packed_weight(s, packed_numbers(s, back), lasting)
        winograd_rows(s, back, flipped, w_row, bias, residual, x, y, low, high, packed, add)
        return
    if g.depthwise and slides_back(g):
        depthwise_input_row(s, g, weight, bias, residual, x, y, low, high)
        return
    bounds = {"low": low, "high": high}
    axes = ((g.H, g.R, g.stride[0], g.pads[0], g.dilation[0]), (g.W, g.S, g.stride[1], g.pads[1], g.dilation[1]))
    used_down, used_across = (used_phases(*axis) for axis in axes)
    gaps = min(g.stride[0], g.H) * min(g.stride[1], g.W) - len(used_down) * len(used_across)
    plain = bias is None and low == -math.inf and high == math.inf
    if plain and residual is y:
        gaps = 0                                 # what no tap reaches stays as it is
    elif plain and residual is None and gaps:
        s.row("layout.zero", y=y, size=g.H * g.W * g.C, per_sample=1)
        gaps = 0
    elif gaps > FEW_GAPS and residual is not y:
        # everything as if no tap reached it, in one row
        grid = {"OH": g.H, "OW": g.W, "y_size": g.H * g.W * g.C, "y_row": g.W * g.C, "y_pixel": g.C, "y_base": 0}
        still = {"dilation_h": 1, "dilation_w": 1, "stride_h": 1, "stride_w": 1, "origin_h": 0, "origin_w": 0}
        conv_row(s, x, None, bias, residual, y, g.OH, g.OW, g.K, g.C, 1, g.C, 0, 0, still, grid, bounds)
        gaps = 0
    for down in phases(*axes[0]) if gaps else used_down:
        for across in phases(*axes[1]) if gaps else used_across:
            empty = down.taps == 0 or across.taps == 0
            grid = {"OH": down.count, "OW": across.count, "y_size": g.H * g.W * g.C, "y_row": g.stride[0] * g.W * g.C,
                    "y_pixel": g.stride[1] * g.C, "y_base": (down.first * g.W + across.first) * g.C}
            sides = {"dilation_h": down.dilation, "dilation_w": across.dilation, "stride_h": 1, "stride_w": 1,
                     "origin_h": down.origin, "origin_w": across.origin}
            R, S = (0, 0) if empty else (down.taps, across.taps)
            if g.depthwise:
                depthwise_phase(s, g, weight, bias, residual, x, y, down, across, R, S, sides, grid, bounds)
            else:
                dense_phase(s, g, weight, bias, residual, x, y, down, across, R, S, sides, grid, bounds, lasting)


def matrix_rows(s: Schedule, g: Geometry, rows: int, C: int, K: int, weight: Buffer | None, bias: Buffer | None,
                residual: Buffer | None, x: Buffer, y: Buffer, low: float, high: float, lasting: bool) -> None:
    """transposed_rows as a product with the transposed matrix; the bias of a pixel is repeated for all of them."""
    w_row = math.ceil(C / s.lanes) * s.lanes
    packed, add = packed_weight(s, K * w_row, lasting)
    add("linear.transpose", weight=weight, packed=packed, C=C, K=K, w_row=w_row)
    if bias is not None and C > g.C:
        # no weights: only the bias, once for each pixel
        wide, _ = packed_weight(s, C, lasting)
        add("widen.widen", weight=None, bias=bias, wide=None, wide_bias=wide, rows=0, S=0, C=0, K=g.C, P=C // g.C, step=0, WS=0)
        bias = wide
    linear_row(s, rows, K, C, x, packed, bias, residual, y, low, high, w_row)


def scatter_pays(s: Schedule, g: Geometry) -> bool:
    """Whether few channels would leave so many lanes of the forward kernel empty that adding windows up is cheaper."""
    if g.G != 1 or g.dilation[1] != 1 or g.OH * g.OW > 4096:
        return False
    gathered = g.H * g.W * g.R * g.S * math.ceil(g.C / s.lanes) / (g.stride[0] * g.stride[1])
    scattered = g.OH * g.OW * g.R * math.ceil(g.S * g.C / s.lanes)
    return scattered * 1.5 < gathered


def turned(s: Schedule, g: Geometry, weight: Buffer | None, lasting: bool = False) -> tuple[Buffer, int]:
    """The weights as windows, (R, K, S * C) with rows of whole registers, and the length of a row."""
    w_row = math.ceil(g.S * g.C / s.lanes) * s.lanes
    packed, add = packed_weight(s, g.R * g.K * w_row, lasting)
    add("conv2d_scatter.turn", weight=weight, packed=packed, R=g.R, SC=g.S * g.C, K=g.K, w_row=w_row)
    return packed, w_row


def covered_size(g: Geometry) -> tuple[int, int]:
    """Rows and columns of an image that holds all windows, and all of the input."""
    return (max((g.OH - 1) * g.stride[0] + (g.R - 1) * g.dilation[0] + 1, g.pads[0] + g.H),
            max((g.OW - 1) * g.stride[1] + g.S, g.pads[1] + g.W))


def scatter_rows(s: Schedule, g: Geometry, weight: Buffer | None, bias: Buffer | None, residual: Buffer | None, x: Buffer,
                 y: Buffer, low: float, high: float, lasting: bool) -> None:
    """transposed_rows as a sum of windows: the weights turned, then every pixel of x adds its window."""
    packed, w_row = turned(s, g, weight, lasting)
    rows, columns = covered_size(g)
    chunks = min(s.batch, s.held_chunks)
    s.row("conv2d_scatter.backward_input", dy=x, packed=packed, bias=bias, residual=residual, dx=y,
          tables=s.scratch(16 * g.OH * g.OW, "tables"), sums=s.scratch(chunks * rows * columns * g.C * s.itemsize, "sums"),
          H=g.H, W=g.W, C=g.C, OH=g.OH, OW=g.OW, K=g.K, R=g.R, S=g.S, w_row=w_row, stride_h=g.stride[0],
          stride_w=g.stride[1], dilation_h=g.dilation[0], pad_top=g.pads[0], pad_left=g.pads[1], rows=rows, columns=columns,
          chunks=chunks, low=low, high=high)


def packed_weight(s: Schedule, numbers: int, lasting: bool) -> tuple[Buffer, Callable[..., None]]:
    """Room for a weight in another form, and what adds the row that makes it: once, or in every run."""
    if lasting and not s.lean:
        return s.held("packed", numbers * s.itemsize), s.prepare
    return s.scratch(numbers * s.itemsize, "packed"), s.row


def flipped_weight(s: Schedule, g: Geometry, weight: Buffer | None, R: int, S: int, tap_r: int, tap_s: int, step_r: int,
                   step_s: int, lasting: bool) -> tuple[Buffer, int]:
    """R x S of the taps, every step-th from (tap_r, tap_s) on, flipped and transposed, and the length of their rows."""
    w_row = math.ceil(g.C / s.lanes) * s.lanes
    packed, add = packed_weight(s, R * S * (g.K // g.G) * w_row, lasting)
    add("conv2d.flip", weight=weight, packed=packed, R=g.R, S=g.S, C=g.C, K=g.K, G=g.G, tap_r=tap_r, tap_s=tap_s,
        step_r=step_r, step_s=step_s, TR=R, TS=S, w_row=w_row)
    return packed, w_row


def dense_phase(s: Schedule, g: Geometry, weight: Buffer | None, bias: Buffer | None, residual: Buffer | None, x: Buffer,
                y: Buffer, down: Phase, across: Phase, R: int, S: int, sides: dict[str, int], grid: dict[str, int],
                bounds: dict[str, float], lasting: bool) -> None:
    """One phase: its taps flipped and transposed into scratch, then the dense kernel."""
    packed, w_row = None, g.C
    if R and S:
        packed, w_row = flipped_weight(s, g, weight, R, S, down.tap, across.tap, down.step, across.step, lasting)
    conv_row(s, x, packed, bias, residual, y, g.OH, g.OW, g.K, g.C, g.G, w_row, R, S, sides, grid, bounds)
