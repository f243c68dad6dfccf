"""Relocations of x86-64 and 64-bit Arm: places in code and data that depend on the addresses of symbols.

Source   x86-64 psABI, chapter 4 (relocation types); ELF for the Arm 64-bit Architecture, IHI 0056 (relocation operations)
"""
from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

# How a relocation reaches its symbol. ABSOLUTE: by an address that is known when the library is loaded. DIRECT: by the
# distance, within the library. CALL: likewise, or by a stub that jumps to what an import is. SLOT: by a place that holds the
# address.
ABSOLUTE, DIRECT, CALL, SLOT = range(4)
Encode = Callable[[int, int, int], int]


class Rule(NamedTuple):
    """A kind of relocation. encode(old, target, place): the new content of so many bytes; raises ValueError if none fits."""

    reach: int
    size: int
    encode: Encode


def _signed(value: int, bits: int) -> int:
    if not -(1 << bits - 1) <= value < 1 << bits - 1:
        raise ValueError(f"the distance {value} does not fit into {bits} bits")
    return value & (1 << bits) - 1


def _distance(reach: int, size: int) -> Rule:
    return Rule(reach, size, lambda old, target, place: _signed(target - place, 8 * size))


def _words(reach: int, bits: int, shift: int) -> Rule:
    """Arm: a distance in words, such as instructions."""
    def encode(old: int, target: int, place: int) -> int:
        if (target - place) % 4:
            raise ValueError(f"the distance {target - place} is no whole number of words")
        return old & ~((1 << bits) - 1 << shift) | _signed(target - place >> 2, bits) << shift
    return Rule(reach, 4, encode)


def _page(reach: int) -> Rule:
    """Arm's adrp: a distance in pages of 4 KiB; the lowest two bits stand apart."""
    def encode(old: int, target: int, place: int) -> int:
        pages = _signed((target >> 12) - (place >> 12), 21)
        return old & 0x9f00001f | (pages & 3) << 29 | pages >> 2 << 5
    return Rule(reach, 4, encode)


def _low(reach: int, scale: int) -> Rule:
    """Arm: an address within a page of 4 KiB, in units of 2**scale bytes."""
    def encode(old: int, target: int, place: int) -> int:
        if target & (1 << scale) - 1:
            raise ValueError(f"the address {target:#x} is no multiple of {1 << scale}")
        return old & ~(0xfff << 10) | (target & 0xfff) >> scale << 10
    return Rule(reach, 4, encode)


def _address(old: int, target: int, place: int) -> int:
    """An address, which the dynamic linker writes; its relocation says it in 64 bits."""
    return _signed(target, 64) & 0


def _x86_stub(place: int, slot: int) -> bytes:
    """jmp *slot(%rip)"""
    return b"\xff\x25" + struct.pack("<i", slot - place - 6) + b"\xcc\xcc"


def _arm_stub(place: int, slot: int) -> bytes:
    """adrp x16, slot; ldr x16, [x16, slot's low bits]; br x16. A call may change x16."""
    adrp, ldr = _page(CALL).encode(0x90000010, slot, place), _low(CALL, 3).encode(0xf9400210, slot, place)
    return struct.pack("<3I", adrp, ldr, 0xd61f0200)


@dataclass(frozen=True)
class Machine:
    """page: the largest of its kernels. relative: the dynamic relocation that adds where the library lies. nothing: kinds
    that ask for nothing. stub(place, slot): the code there that jumps to the address in a slot, so many bytes.
    """

    page: int
    relative: int
    nothing: tuple[int, ...]
    rules: dict[int, Rule]
    stub: Callable[[int, int], bytes]
    stub_size: int


MACHINES = {
    62: Machine(4096, 8, (0,), {                # x86-64
        1: Rule(ABSOLUTE, 8, _address),         # R_X86_64_64
        2: _distance(DIRECT, 4),                # PC32
        4: _distance(CALL, 4),                  # PLT32
        9: _distance(SLOT, 4),                  # GOTPCREL
        24: _distance(DIRECT, 8),               # PC64
        41: _distance(SLOT, 4),                 # GOTPCRELX
        42: _distance(SLOT, 4),                 # REX_GOTPCRELX
    }, _x86_stub, 8),
    183: Machine(65536, 1027, (0, 256), {       # AArch64
        257: Rule(ABSOLUTE, 8, _address),       # R_AARCH64_ABS64
        260: _distance(DIRECT, 8),              # PREL64
        261: _distance(DIRECT, 4),              # PREL32
        273: _words(DIRECT, 19, 5),             # LD_PREL_LO19
        275: _page(DIRECT),                     # ADR_PREL_PG_HI21
        277: _low(DIRECT, 0),                   # ADD_ABS_LO12_NC
        278: _low(DIRECT, 0),                   # LDST8_ABS_LO12_NC
        279: _words(DIRECT, 14, 5),             # TSTBR14
        280: _words(DIRECT, 19, 5),             # CONDBR19
        282: _words(CALL, 26, 0),               # JUMP26
        283: _words(CALL, 26, 0),               # CALL26
        284: _low(DIRECT, 1),                   # LDST16_ABS_LO12_NC
        285: _low(DIRECT, 2),                   # LDST32_ABS_LO12_NC
        286: _low(DIRECT, 3),                   # LDST64_ABS_LO12_NC
        299: _low(DIRECT, 4),                   # LDST128_ABS_LO12_NC
        311: _page(SLOT),                       # ADR_GOT_PAGE
        312: _low(SLOT, 3),                     # LD64_GOT_LO12_NC
    }, _arm_stub, 12),
}
