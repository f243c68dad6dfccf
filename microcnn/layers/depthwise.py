"""The rows that run depthwise convolutions, forward and backward."""
from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from .bands import BAND_BYTES, CHUNKS, band_plan, chunk_count
from .fetch import FAR_BYTES, NEAR_BYTES, far_output, fetches

if TYPE_CHECKING:
    from ..memory import Buffer
    from ..plan import Schedule
    from .convolution import Geometry
    from .windows import Phase


def depthwise_row(s: Schedule, x: Buffer, weight: Buffer | None, bias: Buffer | None, residual: Buffer | None, y: Buffer,
                  weight_size: int, H: int, W: int, C: int, R: int, S: int, w_at: int, w_row: int, w_tap: int,
                  sides: dict[str, int], grid: dict[str, int], bounds: dict[str, float]) -> None:
    """The row of a depthwise convolution: that of a sliding window, or of any, with the bands that its padding needs."""
    OH, OW = grid["OH"], grid["OW"]
    band, jobs, band_numbers = band_plan(s, H, W, C, R, S, sides, OH, OW)
    common = {"x": x, "weight": weight, "bias": bias, "residual": residual, "y": y, "weight_size": weight_size, "H": H, "W": W,
              "C": C, "w_at": w_at, "w_row": w_row, "w_tap": w_tap, "band": band, **grid, **bounds}
    if slides(R, S, sides):
        splits = max(1, min(math.ceil(C / s.lanes), math.ceil(CHUNKS / jobs)))
        s.row("depthwise3x3.forward", **common, **zero_line(s, H, W, C, OH, sides), splits=splits,
              chunks=chunk_count(jobs * splits, s.chunks), fetch_x=fetches(s, H * W, C, NEAR_BYTES),
              fetch_y=fetches(s, OH * OW, C, far_output(s)) if grid["y_pixel"] == C else 0)
        return
    chunks = chunk_count(jobs, s.held_chunks if band_numbers > 0 else s.chunks)
    padded = chunks * band_numbers
    s.row("depthwise2d.forward", **common, **sides, R=R, S=S, padded_size=padded, chunks=chunks,
          padded=s.scratch(padded * s.itemsize, "padded") if padded else None)


def depthwise_phase(s: Schedule, g: Geometry, weight: Buffer | None, bias: Buffer | None, residual: Buffer | None, x: Buffer,
                    y: Buffer, down: Phase, across: Phase, R: int, S: int, sides: dict[str, int], grid: dict[str, int],
                    bounds: dict[str, float]) -> None:
    """One phase, its taps read backwards where they lie."""
    last = ((down.tap + (R - 1) * down.step) * g.S + across.tap + (S - 1) * across.step) * g.C if R and S else 0
    depthwise_row(s, x, weight, bias, residual, y, g.weight_numbers, g.OH, g.OW, g.C, R, S, last,
                  -down.step * g.S * g.C, -across.step * g.C, sides, grid, bounds)


def depthwise_input_row(s: Schedule, g: Geometry, weight: Buffer | None, bias: Buffer | None, residual: Buffer | None,
                        x: Buffer, y: Buffer, low: float, high: float) -> None:
    """The row that puts x back where a sliding window of stride 2 took it from, all phases of the stride at once."""
    rows = max(2, BAND_BYTES // (g.W * g.C * s.itemsize))
    bands = min(g.H, max(math.ceil(g.H / rows), math.ceil(CHUNKS / s.batch)))
    band = math.ceil(g.H / bands)
    jobs = s.batch * math.ceil(g.H / band)
    splits = max(1, min(math.ceil(g.C / s.lanes), math.ceil(CHUNKS / jobs)))
    s.row("depthwise3x3_input.backward", x=x, weight=weight, bias=bias, residual=residual, y=y, H=g.H, W=g.W, C=g.C, OH=g.OH,
          OW=g.OW, pad_top=g.pads[0], pad_left=g.pads[1], band=band, splits=splits, chunks=chunk_count(jobs * splits, s.chunks),
          fetches=fetches(s, g.H * g.W, g.C, NEAR_BYTES), zeros=s.scratch(g.OW * g.C * s.itemsize, "zeros"), low=low,
          high=high)


def slides_back(g: Geometry) -> bool:
    """Whether depthwise_input_row does for a depthwise convolution."""
    return (g.R, g.S, g.stride, g.dilation) == (3, 3, (2, 2), (1, 1))


def depthwise_weight_row(s: Schedule, g: Geometry, x: Buffer, dy: Buffer, target: Buffer, accumulate: int) -> None:
    """The row that makes dW of a depthwise convolution."""
    sides = g.sides()
    band, jobs, band_numbers = band_plan(s, g.H, g.W, g.C, g.R, g.S, sides, g.OH, g.OW)
    chunks = chunk_count(jobs, s.held_chunks)
    common = {"x": x, "dy": dy, "dweight": target, "scratch": s.scratch(chunks * g.weight_numbers * s.itemsize), "H": g.H,
              "W": g.W, "C": g.C, "OH": g.OH, "OW": g.OW, "band": band, "chunks": chunks, "accumulate": accumulate}
    if slides(g.R, g.S, sides):
        s.row("depthwise3x3.backward_weight", **common, **zero_line(s, g.H, g.W, g.C, g.OH, sides),
              fetches=fetches(s, g.H * g.W, g.C, FAR_BYTES))
        return
    padded = chunks * band_numbers
    s.row("depthwise2d.backward_weight", **common, R=g.R, S=g.S, stride_h=g.stride[0], stride_w=g.stride[1],
          dilation_h=g.dilation[0], dilation_w=g.dilation[1], pad_top=g.pads[0], pad_left=g.pads[1], padded_size=padded,
          padded=s.scratch(padded * s.itemsize, "padded") if padded else None)


def slides(R: int, S: int, sides: dict[str, int]) -> bool:
    """Whether a depthwise window can slide along a row of pixels, which keeps what its places share."""
    return (R, S, sides["dilation_w"]) == (3, 3, 1) and sides["stride_w"] <= 2


def zero_line(s: Schedule, H: int, W: int, C: int, OH: int, sides: dict[str, int]) -> dict[str, Any]:
    """The fields that only a sliding window has: where it lies, and the zeros that it sees above and below the image."""
    top = sides["origin_h"]
    bottom = top + (OH - 1) * sides["stride_h"] + 2 * sides["dilation_h"]
    zeros = W * C if top < 0 or bottom >= H else 0
    return {name: size for name, size in sides.items() if name != "dilation_w"} | {
        "zeros": s.scratch(zeros * s.itemsize, "zeros") if zeros else None, "zeros_size": zeros}
