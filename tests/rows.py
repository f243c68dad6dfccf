"""Run one kernel entry the way a program does: an arena, a row, an address."""
import ctypes

import numpy as np

from microcnn.arena import LEAST_WORK, THREADS, aligned_bytes, start_of
from microcnn.entries import ENTRIES

from . import WORK


def number_bits(value):
    """A float as the int64 that a row carries it in."""
    return int(np.float64(value).view(np.int64))


def run(name, batch, threads=1, dtype="float32", control=None, **fields):
    """Run entry `name` once. Arrays become buffers of the arena, with 64 poisoned bytes between them; None becomes
    offset -1; ints stay, floats travel as bits; the name of another field shares its buffer. Afterwards the arrays hold
    what the kernel left there.

    control: {slot number: int or float or array} for the control block; arrays are passed by address.
    Raises AssertionError where the kernel wrote outside its buffers.
    """
    entry = ENTRIES[name]
    assert set(fields) == set(entry.fields), f"fields {sorted(set(fields) ^ set(entry.fields))}"
    head, gap = 512, 64
    offsets, at = {}, head + gap
    for field, value in fields.items():
        if isinstance(value, np.ndarray):
            offsets[field] = at
            at += (value.nbytes + 63) // 64 * 64 + gap
    arena = aligned_bytes(at)
    arena[head:] = 0xFF   # NaN, should a kernel read what is not its own
    slots = arena[:head].view(np.int64)
    slots[THREADS], slots[LEAST_WORK] = threads, WORK
    for slot, value in (control or {}).items():
        if isinstance(value, np.ndarray):
            slots[slot] = start_of(value)
        elif isinstance(value, float):
            arena[:head].view(np.float64)[slot] = value
        else:
            slots[slot] = value
    for field, begin in offsets.items():
        raw = fields[field]
        arena[begin:begin + raw.nbytes] = np.ascontiguousarray(raw).reshape(-1).view(np.uint8)
    before = arena.copy()
    offsets.update({field: offsets[value] for field, value in fields.items() if isinstance(value, str)})
    row = np.array([offsets[f] if f in offsets else -1 if fields[f] is None else
                    number_bits(fields[f]) if isinstance(fields[f], float) else int(fields[f])
                    for f in entry.fields], np.int64)
    function = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)(entry.address(dtype))
    function(start_of(arena), start_of(row), batch)
    inside = np.zeros(arena.size, bool)
    inside[:head] = True
    for field, begin in offsets.items():
        value = fields[fields[field]] if isinstance(fields[field], str) else fields[field]
        if entry.modes.get(field) in (">", "="):
            inside[begin:begin + value.nbytes] = True
        value[...] = arena[begin:begin + value.nbytes].view(value.dtype).reshape(value.shape)
    wrong = np.flatnonzero((arena != before) & ~inside)
    assert wrong.size == 0, f"{name} wrote outside its buffers, first at byte {wrong[:1]} of {offsets}"
    return slots.copy()
