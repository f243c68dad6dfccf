"""Neighbouring rows of a schedule that run as one: what is between them never leaves the cache."""
from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field

from .layers.bands import chunk_count
from .memory import Buffer
from .parts import Row

# With fewer pixels in a band than this the product wastes tiles.
PAIR_PIXELS = 32
# From so many features on a product with at most a register of columns is a sum of four chains (kernels/linear.py).
CHAINS_DEPTH = 64


@dataclass
class Paired:
    """Rows, some of which are two. gone: the numbers of the first ones of these; fused: {layer: the layer in whose row it
    runs}; made: the buffers that only such a row uses."""

    rows: list[Row] = field(default_factory=list)
    gone: list[int] = field(default_factory=list)
    fused: dict[str, str] = field(default_factory=dict)
    made: list[Buffer] = field(default_factory=list)


def pair_rows(rows: list[Row], batch: int, lanes: int, itemsize: int, most: int) -> Paired:
    """The rows with each depthwise 3 x 3 convolution and the pointwise one that alone reads it as one row.

    most: chunks of the work, each of which has room for a band of its own.
    """
    uses = Counter(id(value) for row in rows for value in row.fields.values() if isinstance(value, Buffer))
    found = Paired()
    for number, row in enumerate(rows):
        first = found.rows[-1] if found.rows and _fit(found.rows[-1], row, uses, lanes) else None
        jobs = batch * math.ceil(first.fields["OH"] / first.fields["band"]) if first else 0
        if first and jobs > 1:          # an image of one band had better be shared by channels
            found.rows.pop()
            found.gone.append(number - 1)
            found.fused[first.layer] = row.layer
            chunks = chunk_count(jobs, most)
            middle = Buffer(first.fields["y"].name, itemsize * chunks * first.fields["band"] * first.fields["OW"]
                            * first.fields["C"], "scratch", row.layer)
            found.made.append(middle)
            row = _together(first, row, middle, chunks)
        found.rows.append(row)
    return found


def _fit(first: Row, second: Row, uses: Counter[int], lanes: int) -> bool:
    if (first.kernel, second.kernel, first.phase) != ("depthwise3x3.forward", "linear.forward", second.phase):
        return False
    one, two = first.fields, second.fields
    C, OW = one["C"], one["OW"]
    return (two["x"] is one["y"] and uses[id(one["y"])] == 2 and two["y"] is not one["x"]
            and one["residual"] is None and two["panels"] is None and two["w_row"] == two["K"] and two["C"] == C
            and (one["y_row"], one["y_pixel"], one["y_base"]) == (OW * C, C, 0)
            and (one["w_at"], one["w_row"], one["w_tap"]) == (0, 3 * C, C) and one["stride_h"] == one["stride_w"]
            and one["band"] * OW >= PAIR_PIXELS and (two["K"] > lanes or C < CHAINS_DEPTH))


def _together(first: Row, second: Row, middle: Buffer, chunks: int) -> Row:
    one, two = first.fields, second.fields
    same = ("x", "weight", "bias", "zeros", "zeros_size", "H", "W", "C", "dilation_h", "origin_h", "origin_w", "OH", "OW",
            "band", "low", "high", "fetch_x")
    fields = {name: one[name] for name in same} | {
        "stride": one["stride_h"], "chunks": chunks, "middle": middle, "point_weight": two["weight"],
        "point_bias": two["bias"], "residual": two["residual"], "y": two["y"], "K": two["K"], "least": two["low"],
        "most": two["high"], "fetch_y": two["fetches"]}
    return Row("separable.forward", fields, second.layer, second.op, second.phase, (first.layer,))
