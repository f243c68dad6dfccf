"""Linear, and the rows of matrix products that pointwise convolutions share with it."""
from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ..errors import ModelError
from ..layout import Layout
from .base import Layer, Shape, expect_inputs
from .columns import first_channels
from .fetch import NEAR_BYTES, fetches

if TYPE_CHECKING:
    from ..fusion import Step
    from ..graph import Node
    from ..memory import Buffer
    from ..parts import Gradient, Value
    from ..plan import Schedule

# Rows of x that one job takes, about; with a panel of its own it takes more, for it has to copy one.
BLOCK_ROWS, PANEL_BLOCK_ROWS = 48, 96
# A panel is a part of the weights that a second-level cache holds while many rows of x pass over it, copied so that each
# tile's numbers lie together: its bytes, and the fewest and most rows of the weight in it.
PANEL_BYTES, PANEL_LEAST_DEPTH, PANEL_MOST_DEPTH = 128 * 1024, 64, 512
# With fewer rows of x, or of the weight, than this a panel does not pay.
PANEL_LEAST_PIXELS, PANEL_LEAST_ROWS = 24, 256
# Iterations of a parallel loop that there should be where each has a panel of its own.
PANEL_JOBS = 4
# With fewer rows than this the weights are not worth transposing for the gradient of the input.
FEW_ROWS = 12
# Sums over all rows of the batch are cut into at most so many chunks, each of at least so many rows.
CHUNKS = 8
BIAS_ROWS, WEIGHT_ROWS = 512, 256
# The kernel's jobs for dW are so many of its rows, two tiles; where these alone are CHUNKS jobs, the sum is not cut.
JOB_ROWS, TILE_ROWS = 16, 8
# With so many rows of x, dW may be made the other way around, dY^T x, and turned: where the tiles of x^T dY are so much larger.
TURNED_ROWS, TURNED_GAIN = 64, 1.15


class Linear(Layer):
    """ONNX Gemm and MatMul: y = x W + b over the last axis. Weight (K, C) where `transposed`, else (C, K); bias (K,).

    Raises   ModelError: features that do not fit the weight
    Memory   forward: with many features and rows a panel of weights per chunk; backward: the transposed weights where there are
             12 rows or more, partial sums of dW
    """

    op = "Linear"
    trainable = ("weight", "bias")
    onnx = {"Gemm": {}}

    @staticmethod
    def infer(node: Node, shapes: list[Shape], weights: dict[str, Shape]) -> list[Shape]:
        expect_inputs(node, shapes, 1)
        shape, weight = shapes[0], weights["weight"]
        if len(weight) != 2 or not shape:
            raise ModelError(f'Linear "{node.name}": weight has shape {weight}, the input {shape} for one sample; expected two '
                             "axes for the weight and at least one for the input")
        K, C = weight if node.attrs["transposed"] else weight[::-1]
        if shape[-1] != C:
            hint = "; put a Flatten before it" if len(shape) > 1 and math.prod(shape) == C else ""
            raise ModelError(f'Linear "{node.name}": the input has {shape[-1]} features, the weight {weight} expects '
                             f"{C}{hint}")
        if "bias" in weights and weights["bias"] != (K,):
            raise ModelError(f'Linear "{node.name}": bias has shape {weights["bias"]}; expected ({K},)')
        return [(*shape[:-1], K)]

    @classmethod
    def output_axis(cls, node: Node, role: str) -> int | None:
        return 0 if role == "bias" or node.attrs["transposed"] else 1

    @staticmethod
    def macs(node: Node, shapes: list[Shape], outputs: list[Shape], weights: dict[str, Shape]) -> int:
        return math.prod(shapes[0]) * outputs[0][-1]

    @staticmethod
    def forward(s: Schedule, step: Step) -> None:
        node = step.node
        x = s.value(node.inputs[0])
        shape = x.layout.shape
        if len(shape) > 1:
            x = s.plain(x)
        K, rows, C = s.shapes[node.outputs[0]][-1], math.prod(shape[:-1]), shape[-1]
        weight, bias = s.weight(node, "weight", weight_steps(node, x, C, K)), s.weight(node, "bias")
        residual = s.plain(s.value(step.residual)) if step.residual else None
        layout = Layout.plain((*shape[:-1], K))
        if residual is not None and s.free_behind(residual, x):
            y = s.make(step.output, layout, residual.buffer)
        else:
            y = s.make(step.output, layout)
        linear_row(s, rows, C, K, x.buffer, weight, bias, residual.buffer if residual else None, y.buffer, step.low,
                    step.high)
        if s.node_live(step):
            if s.trains(node, "weight"):
                s.keep(x)
            if step.clamps:
                s.keep(y)
            s.backward(lambda: backward(s, step, rows, C, K, x, y))


def weight_steps(node: Node, x: Value, C: int, K: int) -> tuple:
    """From the weight as the node sees it to (C, K), its rows in the order in which the features lie in memory."""
    steps: list[tuple[str, tuple[int, ...]]] = []
    if node.attrs["transposed"]:
        steps.append(("transpose", (1, 0)))
    axis = x.layout.axes[-1]
    if len(x.layout.axes) == 1 and list(axis) != sorted(axis):
        dims = [x.layout.dims[i] for i in axis]
        order = sorted(range(len(axis)), key=lambda i: axis[i])
        steps += [("reshape", (*dims, K)), ("transpose", (*order, len(axis)))]
    return tuple(steps)


def linear_row(s: Schedule, rows: int, C: int, K: int, x: Buffer, weight: Buffer | None, bias: Buffer | None,
               residual: Buffer | None, y: Buffer, low: float = -math.inf, high: float = math.inf,
               w_row: int | None = None) -> None:
    """The row that runs a matrix product: y = min(max(x weight + bias + residual, low), high), x (rows, C).

    w_row: the numbers from one row of the weight to the next, K where they lie close together.
    """
    w_row = w_row or K
    tile, pixels = 4 * s.lanes, s.batch * rows
    depth, columns, chunks, panel, block = C, 0, 0, 0, BLOCK_ROWS
    if C >= PANEL_LEAST_ROWS and w_row > tile and pixels >= PANEL_LEAST_PIXELS:
        block = PANEL_BLOCK_ROWS
        blocks = max(1, round(pixels / block))
        columns = split_columns(K, 2 * s.lanes, blocks)
        chunks = min(s.held_chunks, blocks * math.ceil(K / columns))
        depth = min(C, panel_depth(s, columns))
        panel = chunks * depth * columns
    s.row("linear.forward", x=x, weight=weight, bias=bias, residual=residual, y=y,
          panels=s.scratch(panel * s.itemsize, "panels") if panel else None, rows=rows, C=C, K=K, w_row=w_row,
          depth=depth, columns=columns, chunks=chunks, block=block, fetches=fetches(s, rows, K, NEAR_BYTES), panels_size=panel,
          low=low, high=high)


def split_columns(K: int, unit: int, jobs: int) -> int:
    """The most columns, whole units, of a part where K is split so that there are PANEL_JOBS jobs, as even as can be."""
    across = math.ceil(K / unit)
    splits = min(across, math.ceil(PANEL_JOBS / jobs))
    splits -= splits > 1 and splits % 2             # as many for each of two threads
    return math.ceil(across / splits) * unit


def panel_depth(s: Schedule, columns: int) -> int:
    """Rows of a panel with so many columns."""
    return max(PANEL_LEAST_DEPTH, min(PANEL_MOST_DEPTH, PANEL_BYTES // (columns * s.itemsize)))


def backward(s: Schedule, step: Step, rows: int, C: int, K: int, x: Value, y: Value) -> None:
    """dX, dW, dB of a step, and dY to the residual."""
    dy = s.through_clamp(step, y)
    if dy is None:
        return
    if step.residual:
        s.give(s.plain(s.value(step.residual)).name, dy)
    linear_backward(s, step.node, rows, C, K, x, dy)
    s.release(dy)


def linear_backward(s: Schedule, node: Node, rows: int, C: int, K: int, x: Value, dy: Gradient) -> None:
    """dB, dW and dX of a matrix product over `rows` rows a sample."""
    bias_gradient(s, node, rows, K, dy)
    if s.trains(node, "weight"):
        weight_gradient_rows(s, node, rows, C, K, x.buffer, dy.buffer)
    if s.needs_gradient(x.name):
        input_gradient_rows(s, node, rows, C, K, x, dy)
    if s.trains(node, "weight"):
        s.weight_done(node, "weight")


def weight_gradient_rows(s: Schedule, node: Node, rows: int, C: int, K: int, x: Buffer, dy: Buffer) -> None:
    """dW (C, K) = x^T dY over the rows of the batch; of a weight that trains in part its first columns alone."""
    M, part = s.batch * rows, s.part(node, "weight")
    if part.rows > 1:
        dy, K = first_channels(s, dy, rows, K, part.columns), part.columns
    target, accumulate = s.dweight(node, "weight")
    if part.rows == 1 and not accumulate and M >= TURNED_ROWS and \
            TURNED_GAIN * tiled(K, C, s.lanes) < tiled(C, K, s.lanes):
        turned = s.scratch(C * K * s.itemsize, "turned")
        weight_row(s, rows, K, C, dy, x, turned, 0)
        s.row("linear.transpose", weight=turned, packed=target, C=K, K=C, w_row=K)
        return
    weight_row(s, rows, C, K, x, dy, target, accumulate)


def tiled(C: int, K: int, lanes: int) -> int:
    """Numbers of the tiles that dW (C, K) is made of."""
    return math.ceil(C / TILE_ROWS) * TILE_ROWS * math.ceil(K / lanes) * lanes


def weight_row(s: Schedule, rows: int, C: int, K: int, x: Buffer, dy: Buffer, target: Buffer, accumulate: int) -> None:
    """The row that makes target (C, K) = x^T dY over the rows of the batch."""
    M = s.batch * rows
    jobs = math.ceil(C / JOB_ROWS)
    chunks = 1 if jobs >= CHUNKS else max(1, min(CHUNKS // jobs, M // WEIGHT_ROWS))
    s.row("linear_weight.backward", x=x, dy=dy, dweight=target,
          scratch=s.scratch(chunks * C * K * s.itemsize) if chunks > 1 else None, rows=rows, C=C, K=K, chunks=chunks,
          chunk_rows=math.ceil(M / chunks), accumulate=accumulate)


def bias_gradient(s: Schedule, node: Node, rows: int, K: int, dy: Gradient) -> None:
    """dB, where it is wanted: the sum of dY (batch * rows, K) over its rows, as many side by side as fill a register."""
    if not s.trains(node, "bias"):
        return
    together = max(count for count in range(1, max(1, s.lanes // K) + 1) if rows % count == 0)
    chunks = max(1, min(CHUNKS, s.batch * rows // BIAS_ROWS))
    target, accumulate = s.dweight(node, "bias")
    wide = s.scratch(together * K * s.itemsize) if together > 1 else target
    s.row("linear.backward_bias", dy=dy.buffer, dbias=wide, scratch=s.scratch(chunks * together * K * s.itemsize),
          rows=rows // together, K=together * K, chunks=chunks, accumulate=accumulate if together == 1 else 0)
    if together > 1:
        s.row("widen.narrow", wide=wide, gradient=target, rows=1, S=1, C=1, K=K, P=together, step=0, WS=1,
              accumulate=accumulate)
    s.weight_done(node, "bias")


def input_gradient_rows(s: Schedule, node: Node, rows: int, C: int, K: int, x: Value, dy: Gradient) -> None:
    """dX = dY W^T; with more than a few rows as a product with the transposed weight, in scratch."""
    weight = s.store.parameters[node.weights["weight"].name].buffer
    target, accumulate = s.dx(x.name)
    if s.batch * rows < FEW_ROWS:
        s.row("linear.backward_input_few", dy=dy.buffer, weight=weight, dx=target, rows=rows, C=C, K=K, accumulate=accumulate)
        return
    w_row = math.ceil(C / s.lanes) * s.lanes
    packed = s.scratch(K * w_row * s.itemsize, "packed")
    s.row("linear.transpose", weight=weight, packed=packed, C=C, K=K, w_row=w_row)
    linear_row(s, rows, K, C, dy.buffer, packed, None, target if accumulate else None, target, w_row=w_row)
