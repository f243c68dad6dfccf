"""Depthwise 3 x 3 convolutions that make the output of the batch norm before them themselves, line by line, whenever they read
it (kernels/normalised3x3.py): it is neither kept for backward nor written at all.
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from .layers.bands import BAND_PIXELS, CHUNKS
from .lifetimes import touches
from .memory import Buffer
from .parts import Rewritten, Row

# The rings of lines may take this share of what they save.
ROOM = 0.5


def normalise_on_the_way(rows: Sequence[Row], batch: int, itemsize: int, most: int) -> Rewritten:
    """The rows with each batch norm's output, if depthwise convolutions alone read it, made where they do.

    most: chunks of the work, each of which has a ring of lines of its own.
    """
    uses, writers = touches(rows)
    found = Rewritten(list(rows))
    for number, norm in enumerate(rows):
        if norm.kernel != "batchnorm.forward_batch":
            continue
        readers = uses[id(norm.fields["y"])][1:]
        lasting = [norm.fields[name] for name in ("x", "scale", "bias", "saved")]
        if not readers or any(_stale(buffer, number, readers[-1], writers) for buffer in lasting):
            continue
        new = [_reader(norm, rows[reader], batch, itemsize, most) for reader in readers]
        if all(new):
            for reader, (row, made) in zip(readers, (one for one in new if one), strict=True):
                found.rows[reader] = row
                found.made += made
            kept = ("x", "scale", "saved", "scratch", "pixels", "C", "together", "eps")
            found.rows[number] = replace(norm, kernel="batchnorm.statistics_batch",
                                         fields={name: norm.fields[name] for name in kept})
    return found


def _stale(buffer: Buffer, number: int, last: int, writers: dict[int, list[int]]) -> bool:
    """Whether something between two rows writes to a buffer."""
    return any(number < writer <= last for writer in writers.get(id(buffer), ()))


def _reader(norm: Row, row: Row, batch: int, itemsize: int, most: int) -> tuple[Row, list[Buffer]] | None:
    """A row that reads a batch norm's output as one that makes it, and the buffers for that; None where it cannot."""
    fields = row.fields
    if row.kernel not in ("depthwise3x3.forward", "depthwise3x3.backward_weight") or fields["x"] is not norm.fields["y"]:
        return None
    H, W, C, OH, OW = (fields[name] for name in ("H", "W", "C", "OH", "OW"))
    forward = row.kernel == "depthwise3x3.forward"
    if forward and ((fields["y_row"], fields["y_pixel"], fields["y_base"]) != (OW * C, C, 0)
                    or (fields["w_at"], fields["w_row"], fields["w_tap"]) != (0, 3 * C, C)
                    or fields["residual"] is norm.fields["y"]):
        return None
    stride, seen = fields["stride_h"], 2 * fields["dilation_h"] + 1
    # the power of 2 of lines that holds a band of pixels enough, and the rows of the band that fills it
    lines = 2 ** math.ceil(math.log2(seen + (min(OH, math.ceil(BAND_PIXELS / OW)) - 1) * stride))
    band = min(OH, (lines - seen) // stride + 1)
    jobs = batch * math.ceil(OH / band)
    chunks = min(most, jobs)
    room = itemsize * chunks * lines * W * C
    if jobs < CHUNKS or room > ROOM * itemsize * batch * H * W * C:
        return None
    together = norm.fields["together"] if W % norm.fields["together"] == 0 else 1
    made = [Buffer(f"{norm.fields['y'].name} lines", room, "scratch", row.layer),
            Buffer(f"{norm.fields['y'].name} constants", itemsize * 3 * C * together, "scratch", row.layer)]
    same = ("H", "W", "C", "OH", "OW", "stride_h", "stride_w", "dilation_h", "origin_h", "origin_w", "zeros", "zeros_size")
    new = {name: fields[name] for name in same} | {
        "x": norm.fields["x"], "scale": norm.fields["scale"], "shift": norm.fields["bias"], "saved": norm.fields["saved"],
        "low": norm.fields["low"], "high": norm.fields["high"], "together": together, "lines": made[0], "constants": made[1],
        "ring": lines - 1, "band": band, "chunks": chunks}
    if forward:
        new |= {name: fields[name] for name in ("weight", "bias", "residual", "y", "fetch_y")} | {
            "least": fields["low"], "most": fields["high"]}
        return replace(row, kernel="normalised3x3.forward", fields=new, beside=(norm.layer,)), made
    partials = Buffer(fields["scratch"].name, itemsize * chunks * 9 * C, "scratch", row.layer)
    new |= {name: fields[name] for name in ("dy", "dweight", "accumulate")} | {"mask": None, "scratch": partials}
    return replace(row, kernel="normalised3x3.backward_weight", fields=new, beside=(norm.layer,)), [*made, partials]
