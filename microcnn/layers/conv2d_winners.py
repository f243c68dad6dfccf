"""Backward of a convolution behind which a max pooling lies, from the winners of its windows alone."""
from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from .columns import columns_row
from .convolution import covered_size, turned
from .linear import bias_gradient

if TYPE_CHECKING:
    from ..fusion import Step
    from ..graph import Node
    from ..memory import Buffer
    from ..parts import Value, Winners
    from ..plan import Schedule
    from .convolution import Geometry

CHUNKS = 8
# Rows of taps that the largest tile of kernels/conv2d_winners.py holds, and its width in registers.
MOST_ROWS, MOST_VECTORS = 7, 2
# A sample that leaves the second-level cache would be read from memory once for each output channel.
IMAGE_BYTES = 128 * 1024
# Measured, in cycles: a multiply-add with an unaligned operand from memory, the same in a tile, finding a winner's window,
# adding a register to an image, and writing a register of the gradient that winners are spread out to.
FROM_MEMORY, IN_TILE, FIND, ADD_UP, SPREAD = 1.5, 0.75, 5.0, 4.0, 10.0


def padded_size(g: Geometry) -> tuple[int, int]:
    """Height and width of what all windows together cover."""
    return (g.OH - 1) * g.stride[0] + (g.R - 1) * g.dilation[0] + 1, (g.OW - 1) * g.stride[1] + g.S


def vectors_of(s: Schedule, g: Geometry) -> int:
    """How many registers a row of a window takes."""
    return math.ceil(g.S * g.C / s.lanes)


def winners_serve(s: Schedule, step: Step, g: Geometry, winners: Winners) -> bool:
    """Whether the kernels are made for this geometry."""
    pool = winners.fields
    kernel = pool["kernel_h"], pool["kernel_w"]
    return (not step.clamps and not step.residual and g.G == 1 and g.dilation[1] == 1 and g.R <= MOST_ROWS
            and vectors_of(s, g) <= MOST_VECTORS and pool["index_bytes"] == 1
            and (pool["stride_h"], pool["stride_w"]) == kernel and pool["pad_top"] == pool["pad_left"] == 0
            and pool["dilation_h"] == pool["dilation_w"] == 1
            and (pool["OH"] - 1) * kernel[0] < g.OH and (pool["OW"] - 1) * kernel[1] < g.OW
            and math.prod(padded_size(g)) * g.C * s.itemsize <= IMAGE_BYTES)


def winners_pay(s: Schedule, g: Geometry, winners: Winners, needs_dx: bool) -> tuple[bool, bool]:
    """Which of dW and dX take fewer cycles from the winners than from all pixels, for which they are spread out first."""
    pool = winners.fields
    pixels, positions = pool["OH"] * pool["OW"], pool["kernel_h"] * pool["kernel_w"]
    all_pixels, registers, window = g.OH * g.OW, math.ceil(g.K / s.lanes), g.R * vectors_of(s, g)
    weights = {True: pixels * g.K * (FIND + window * FROM_MEMORY), False: all_pixels * registers * g.R * g.S * g.C * IN_TILE}
    inputs = {False: 0.0}
    if needs_dx:
        gathered = g.H * g.W * g.R * g.S * math.ceil(g.C / s.lanes) / (g.stride[0] * g.stride[1])
        inputs = {True: pixels * (g.K * (FIND + window * IN_TILE) + min(g.K, positions) * window * ADD_UP),
                  False: min(gathered, all_pixels * window) * g.K * IN_TILE}

    def cycles(choice: tuple[bool, bool]) -> float:
        by_winners, dx_by_winners = choice
        spread = not by_winners or (needs_dx and not dx_by_winners)
        return weights[by_winners] + inputs[dx_by_winners] + spread * all_pixels * registers * SPREAD
    return min(((one, other) for one in weights for other in inputs), key=cycles)


def pool_fields(g: Geometry, winners: Winners) -> dict[str, Any]:
    """The fields that both rows share."""
    pool = winners.fields
    return {"indices": winners.indices, "y": winners.clamped, "dy": winners.dy.buffer, "H": g.H, "W": g.W, "C": g.C, "K": g.K,
            "R": g.R, "S": g.S, "PH": pool["OH"], "PW": pool["OW"], "kernel_h": pool["kernel_h"],
            "kernel_w": pool["kernel_w"], "stride_h": g.stride[0], "stride_w": g.stride[1], "dilation_h": g.dilation[0],
            "pad_top": g.pads[0], "pad_left": g.pads[1], "low": winners.low, "high": winners.high}


def winners_weight_row(s: Schedule, node: Node, g: Geometry, x: Value, winners: Winners) -> None:
    """The rows that make dW, and dB where it is wanted. dW is made whole, and what does not train of it left out."""
    pool, part = winners.fields, s.part(node, "weight")
    target, accumulate = s.dweight(node, "weight")
    dweight = target if part.rows == 1 else s.scratch(g.weight_numbers * s.itemsize, "whole")
    bias, accumulate_bias = s.dweight(node, "bias") if s.trains(node, "bias") else (None, 0)
    rows, columns = padded_size(g)
    vectors = vectors_of(s, g)
    width, pixels, chunks = vectors * s.lanes, pool["OH"] * pool["OW"], min(s.batch, CHUNKS)
    s.row("conv2d_winners.backward_weight", x=x.buffer, dweight=dweight, dbias=bias,
          tables=s.scratch(8 * (pixels + pool["kernel_h"] * pool["kernel_w"]), "tables"),
          images=s.scratch(chunks * (rows * columns * g.C + width) * s.itemsize, "images"),
          scratch=s.scratch(chunks * g.K * (g.R * width + 1 + pixels) * s.itemsize), rows=rows, columns=columns,
          vectors=vectors, chunks=chunks, accumulate=accumulate if part.rows == 1 else 0, accumulate_bias=accumulate_bias,
          **pool_fields(g, winners))
    if part.rows > 1:
        columns_row(s, dweight, target, part.rows, part.columns, part.length, part.columns, accumulate=accumulate)
    if bias is not None:
        s.weight_done(node, "bias")


def winners_bias_rows(s: Schedule, node: Node, winners: Winners) -> None:
    """The rows that make dB where nothing else is wanted: the sum of dY at the winners, wherever they lie."""
    pool = winners.fields
    pixels, dy = pool["OH"] * pool["OW"], winners.dy
    if winners.clamped is not None:
        dy = s.clamped(dy, winners.clamped, pixels * pool["C"], winners.low, winners.high)
    bias_gradient(s, node, pixels, pool["C"], dy)
    s.release(dy)


def winners_input_rows(s: Schedule, g: Geometry, weight: Buffer | None, x: Value, winners: Winners) -> None:
    """The rows that make dX."""
    pool = winners.fields
    target, accumulate = s.dx(x.name)
    packed, w_row = turned(s, g, weight)
    rows, columns = covered_size(g)
    pixels, positions, chunks = pool["OH"] * pool["OW"], pool["kernel_h"] * pool["kernel_w"], min(s.batch, CHUNKS)
    s.row("conv2d_winners_input.backward_input", packed=packed, dx=target,
          tables=s.scratch(8 * (pixels + positions), "tables"),
          lists=s.scratch(chunks * (8 * positions * (g.K + 1) + (pixels + positions) * g.K * s.itemsize), "lists"),
          images=s.scratch(chunks * rows * columns * g.C * s.itemsize, "images"), w_row=w_row, rows=rows, columns=columns,
          chunks=chunks, accumulate=accumulate, **pool_fields(g, winners))
