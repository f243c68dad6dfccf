"""Outputs of clamps of which backward needs only where the gradient passes: kept as one bit for each number."""
from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from .layers.activation import CLAMP
from .lifetimes import forward_ends, held
from .memory import Buffer
from .parts import Row

# Batch norm on fixed statistics, whose backward may have a clamp's on the way.
FROZEN = "batchnorm_backward.backward_frozen"
# Numbers to a word of bits, as kernels/masks.py has it.
BITS = 16


@dataclass
class Masked:
    """Rows, some of which are new. added: behind which of the old rows; made: the buffers of bits."""

    rows: list[Row]
    added: list[int] = field(default_factory=list)
    made: list[Buffer] = field(default_factory=list)

    def moved(self, end: int) -> int:
        """Where the rows end now that ended at `end`."""
        return end + bisect_left(self.added, end)


def mask_clamps(rows: Sequence[Row], buffers: Sequence[Buffer], batch: int) -> Masked:
    """The rows, where bits stand for each clamp's output that backward has no other use for; gradients stay what they were."""
    begin = forward_ends(rows)
    uses: dict[int, list[tuple[int, Row, str, str]]] = {}
    for number, row in enumerate(rows):
        for name, buffer, mode in held(row):
            uses.setdefault(id(buffer), []).append((number, row, name, mode))
    last = {key: found[-1][0] for key, found in uses.items()}
    packed: dict[int, Row] = {}
    read: dict[int, tuple[Buffer, int]] = {}       # the bits, and of how many numbers a sample
    for buffer in buffers:
        mine = uses.get(id(buffer), [])
        late = [use for use in mine if use[0] > begin]
        writers = [number for number, _, _, mode in mine if mode in ">="]
        if not late or buffer.kind != "activation" or buffer.held or not writers or writers[-1] > begin:
            continue
        clamps = {_clamp(row) if name == "y" else None for _, row, name, _ in late}
        if len(clamps) > 1 or (clamp := clamps.pop()) is None:
            continue
        if any(_target(row, number, last) is None for number, row, _, _ in late):
            continue
        (size, low, high), maker = clamp, rows[writers[-1]]
        # the bits of one sample begin where those of the last one end
        bits = Buffer(f"{buffer.name} as bits", 2 * -(-size * batch // BITS), "activation", buffer.layer)
        packed[writers[-1]] = Row("masks.pack", {"y": buffer, "mask": bits, "size": size, "low": low, "high": high},
                                  maker.layer, maker.op, maker.phase)
        read |= {number: (bits, size) for number, _, _, _ in late}
    found = Masked([], made=list({id(bits): bits for bits, _ in read.values()}.values()))
    for number, row in enumerate(rows):
        new = [row] if number not in read else _with_bits(row, *read[number], _target(row, number, last))
        if number in packed:
            new.append(packed[number])
        found.rows += new
        found.added += [number] * (len(new) - 1)
    return found


def kept_beside_bits(rows: Sequence[Row]) -> bool:
    """Whether backward reads a clamp's output after all, of rows with lifetimes: to make something else of it again."""
    begin = forward_ends(rows)
    return any(row.kernel == "masks.pack" and row.fields["y"].last > begin for row in rows[:begin])


def _clamp(row: Row) -> tuple[int, float, float] | None:
    """(numbers of a sample, low, high) of the clamp whose gradient a row makes of the clamp's output y; None for other rows."""
    fields = row.fields
    if row.kernel == "activation.backward" and fields["kind"] == CLAMP:
        return fields["size"], fields["low"], fields["high"]
    if row.kernel == FROZEN and fields["x"] is not fields["y"]:
        return fields["pixels"] * fields["C"], fields["low"], fields["high"]
    return None


def _target(row: Row, number: int, last: dict[int, int]) -> Buffer | None:
    """Where what a clamp passes of dY can be written: over dX, or over dY where nothing reads that any more."""
    fields = row.fields
    if fields["dx"] is not None and (row.kernel != FROZEN or not fields["accumulate"]):
        return fields["dx"]
    return fields["dy"] if last[id(fields["dy"])] == number else None


def _with_bits(row: Row, bits: Buffer, size: int, target: Buffer | None) -> list[Row]:
    """What takes the place of a row that asked the clamp's output."""
    fields = row.fields
    frozen = row.kernel == FROZEN
    passed = {"mask": bits, "dy": fields["dy"], "dx": target, "size": size,
              "accumulate": 0 if frozen else fields["accumulate"]}
    first = replace(row, kernel="masks.backward", fields=passed)
    if not frozen:
        return [first]
    x = target if fields["x"] is fields["dy"] else fields["x"]
    return [first, replace(row, fields=fields | {"x": x, "y": None, "dy": target})]
