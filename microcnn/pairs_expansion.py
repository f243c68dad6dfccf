"""Pointwise convolutions that widen the channels, with the batch norm, the clamp and the depthwise convolution behind them:
their backward as two rows, without the gradients between (kernels/expansion.py). The batch norm's statistics are reckoned from
the moments of what the first one reads (kernels/moments.py).
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from .layers.linear import CHUNKS, WEIGHT_ROWS
from .lifetimes import forward_ends, touches
from .masks import BITS
from .memory import Buffer
from .parts import Field, Rewritten, Row

# It pays for C channels that become K where WIDER * C <= K and C * C <= SQUARE_PER_COLUMN * K: each pixel costs two products of
# C * C more, against several passes over K numbers.
WIDER, SQUARE_PER_COLUMN = 4, 6
# The bytes that a band of lines of a gradient takes, about: a second-level cache holds it beside all else.
BAND_BYTES = 64 * 1024


@dataclass
class Expansion:
    """The numbers of an expansion's rows: the product, the statistics; in backward those of the depthwise convolution to its
    weight and to its input, the batch norm's, and the product's: to its weight, perhaps turned, and to its input, with the
    turning of the weight before it."""

    product: int
    statistics: int
    depthwise_weight: int
    depthwise_input: int
    norm: int
    weight: tuple[int, ...]
    turn: int
    input: int


def join_expansions(rows: Sequence[Row], batch: int, itemsize: int, most: int) -> Rewritten:
    """The rows with the expansions joined, of those whose normalised output normalise_on_the_way makes where it is read.

    most: chunks of the work, each of which has room of its own.
    """
    uses, writers = touches(rows)
    made: list[Buffer] = []
    places: dict[int, list[Row]] = {}
    for number, row in enumerate(rows):
        if row.kernel == "batchnorm.statistics_batch":
            found = _expansion(rows, number, uses, writers)
            if found is not None:
                new, buffers = _joined(rows, found, batch, itemsize, most)
                places |= new
                made += buffers
    return Rewritten([new for number, row in enumerate(rows) for new in places.get(number, [row])], made)


def _expansion(rows: Sequence[Row], number: int, uses: dict[int, list[int]], writers: dict[int, list[int]]) -> Expansion | None:
    """The rows around a batch norm with its statistics in row `number`, where they are those of an expansion."""
    touching = uses[id(rows[number].fields["x"])]
    if [rows[i].kernel for i in touching] != ["linear.forward", "batchnorm.statistics_batch", "normalised3x3.forward",
                                              "normalised3x3.backward_weight", "batchnorm_backward.backward_batch"]:
        return None
    product, _, _, depthwise_weight, norm = touching
    norm_fields = rows[norm].fields
    if not norm_fields["clamps"] or norm_fields["dx"] is None or norm_fields["accumulate"]:
        return None
    arriving, leaving = uses[id(norm_fields["dy"])], uses[id(norm_fields["dx"])]
    before, after = [i for i in arriving if i < norm], [i for i in leaving if i > norm]
    if len(before) != 1 or len(after) != 2 or set(arriving) - {*before, norm, *after} or before[0] <= forward_ends(rows):
        return None
    found = Expansion(product=product, statistics=number, depthwise_weight=depthwise_weight, depthwise_input=before[0],
                      norm=norm, weight=tuple(range(after[0], after[1] - 1)), turn=after[1] - 1, input=after[1])
    between = {*range(before[0] + 1, after[1])} - {norm, *found.weight, found.turn}
    if any(rows[i].phase != "update" for i in between):
        return None
    lasting = (rows[product].fields["x"], rows[product].fields["weight"], rows[number].fields["saved"])
    stale = any(product < i < before[0] and i != number for buffer in lasting for i in writers.get(id(buffer), ()))
    return found if not stale and _fits(rows, found, uses) else None


def _fits(rows: Sequence[Row], found: Expansion, uses: dict[int, list[int]]) -> bool:
    """Whether the rows are what the kernels of an expansion can do, and it pays."""
    if [rows[number].kernel for number in (found.turn, found.input)] != ["linear.transpose", "linear.forward"]:
        return False
    product, norm = rows[found.product].fields, rows[found.norm].fields
    turn, last = rows[found.turn].fields, rows[found.input].fields
    C, K = product["C"], product["K"]
    return ((product["low"], product["high"]) == (last["low"], last["high"]) == (-math.inf, math.inf)
            and product["bias"] is product["residual"] is last["bias"] is None and last["residual"] in (None, last["y"])
            and WIDER * C <= K and C * C <= SQUARE_PER_COLUMN * K and K % BITS == 0 and product["w_row"] == K
            and (last["C"], last["K"]) == (K, C) and last["x"] is norm["dx"]
            and turn["weight"] is product["weight"] and turn["packed"] is last["weight"] and len(uses[id(turn["packed"])]) == 2
            and _weight_gradient(rows, found) is not None and _depthwise(rows[found.depthwise_input]) is not None)


def _weight_gradient(rows: Sequence[Row], found: Expansion) -> dict[str, Field] | None:
    """Where the product's gradient to its weight goes, and whether it is added there; None where it is not made as a whole."""
    if not found.weight or rows[found.weight[0]].kernel != "linear_weight.backward":
        return None
    product, weight, dy = rows[found.product].fields, rows[found.weight[0]].fields, rows[found.norm].fields["dx"]
    if len(found.weight) == 1 and weight["x"] is product["x"] and weight["dy"] is dy and weight["K"] == product["K"]:
        return {"dweight": weight["dweight"], "accumulate": weight["accumulate"]}
    if len(found.weight) == 2 and weight["x"] is dy and weight["dy"] is product["x"] and weight["C"] == product["K"]:
        turned = rows[found.weight[1]]
        if turned.kernel == "linear.transpose" and turned.fields["weight"] is weight["dweight"] and not weight["accumulate"]:
            return {"dweight": turned.fields["packed"], "accumulate": 0}
    return None


def _depthwise(row: Row) -> dict[str, Field] | None:
    """How the kernels of an expansion make a depthwise convolution's gradient to its input; None where they cannot."""
    fields = row.fields
    if row.kernel not in ("depthwise3x3.forward", "depthwise3x3_input.backward"):
        return None
    if not fields["bias"] is fields["residual"] is None:
        return None
    H, W, C, OH, OW = (fields[name] for name in ("H", "W", "C", "OH", "OW"))
    same = {"dy": fields["x"], "kernel": fields["weight"], "zeros": fields["zeros"]}
    if row.kernel == "depthwise3x3_input.backward":
        return same | {"back": 1, "H": H, "W": W, "OH": OH, "OW": OW, "top": fields["pad_top"], "left": fields["pad_left"],
                       "dilation": 1, "w_at": 0, "w_row": 0, "w_tap": 0, "zeros_size": OW * C}
    whole = (fields["stride_h"], fields["stride_w"], fields["y_row"], fields["y_pixel"], fields["y_base"], fields["y_size"])
    if whole != (1, 1, OW * C, C, 0, OH * OW * C):
        return None
    return same | {"back": 0, "H": OH, "W": OW, "OH": H, "OW": W, "top": fields["origin_h"], "left": fields["origin_w"],
                   "dilation": fields["dilation_h"]} | {name: fields[name] for name in ("w_at", "w_row", "w_tap", "zeros_size")}


def _joined(rows: Sequence[Row], found: Expansion, batch: int, itemsize: int, most: int
            ) -> tuple[dict[int, list[Row]], list[Buffer]]:
    """(what comes in the places of rows, the buffers made for it)"""
    product, before, norm = (rows[number].fields for number in (found.product, found.statistics, found.norm))
    last, depthwise = rows[found.input].fields, _depthwise(rows[found.depthwise_input]) or {}
    layers = [rows[number].layer for number in (found.depthwise_input, found.norm, found.product)]
    C, K, W, M = product["C"], product["K"], depthwise["W"], batch * product["rows"]
    made: list[Buffer] = []

    def buffer(what: str, size: int, kind: str = "scratch") -> Buffer:
        made.append(Buffer(f"{before['x'].name} {what}", size, kind, layers[-1]))
        return made[-1]

    def room(what: str, numbers: int) -> Buffer:
        return buffer(what, numbers * itemsize)

    sums = max(1, min(most, CHUNKS, M // WEIGHT_ROWS))
    moments = buffer("moments", (C + C * C) * itemsize, "activation")
    statistics = {name: before[name] for name in ("scale", "saved", "scratch", "together", "eps")} | {
        "x": product["x"], "weight": product["weight"], "y": before["x"], "moments": moments, "rows": product["rows"], "C": C,
        "K": K, "chunks": sums, "products": room("products", sums * (C + C * C)),
        "totals": buffer("totals", 8 * (sums * (C + C * C) + 3 * K))}
    mask, factors = buffer("bits", M * K // BITS * 2), room("factors", (K + C + 1) * last["w_row"])
    # two lines of the gradient that a stride of 2 gives share what they read
    band = max(1, BAND_BYTES // (W * K * itemsize * (1 + depthwise["back"]))) * (1 + depthwise["back"])
    band = min(band, depthwise["H"])
    chunks = min(most, batch * math.ceil(depthwise["H"] / band))
    common = depthwise | {"x": product["x"], "mask": mask, "factors": factors, "C": C, "K": K, "f_row": last["w_row"],
                          "band": band, "chunks": chunks}
    same = ("scale", "saved", "dscale", "dbias", "need_params", "accumulate_scale", "accumulate_bias")
    backward_weight = {name: norm[name] for name in same} | (_weight_gradient(rows, found) or {}) | {
        "weight": product["weight"], "moments": moments,
        "bands": room("lines", chunks * band * W * K), "partials": room("partials", chunks * (C + 1) * K),
        "sums": room("sums", (3 * C + 2) * K)}
    backward_input = {"residual": last["residual"], "dx": last["y"], "bands": room("lines again", chunks * band * W * K)}
    beside, masking = tuple(layers[:-1]), rows[found.depthwise_weight]
    return {
        found.statistics: [replace(rows[found.statistics], kernel="moments.statistics_batch", fields=statistics)],
        found.depthwise_weight: [replace(masking, fields=masking.fields | {"mask": mask})],
        found.depthwise_input: [
            replace(rows[found.weight[0]], kernel="expansion.backward_weight", fields=common | backward_weight, beside=beside),
            replace(rows[found.input], kernel="expansion.backward_input", fields=common | backward_input, beside=beside)],
        **dict.fromkeys((found.norm, *found.weight, found.turn, found.input), [])}, made
