"""ELF files of 64-bit little-endian machines: relocatable objects are read, shared libraries are written.

Source   System V gABI, chapters 4 (object files) and 5 (program loading and dynamic linking)
"""
from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
PROGRAM_HEADER = struct.Struct("<IIQQQQQQ")
SECTION_HEADER = struct.Struct("<IIQQQQIIQQ")
SYMBOL = struct.Struct("<IBBHQQ")
RELA = struct.Struct("<QQq")
DYNAMIC = struct.Struct("<qQ")
IDENT = b"\x7fELF\x02\x01\x01" + bytes(9)           # 64 bits, little endian, version 1, System V

REL, DYN = 1, 3                                     # types of files
PROGBITS, SYMTAB, STRTAB, RELA_TABLE, HASH, DYNAMIC_TABLE, NOTE, NOBITS, REL_TABLE = range(1, 10)      # types of sections
DYNSYM = 11
WRITE, ALLOC, EXECUTE, THREAD_LOCAL = 1, 2, 4, 1024  # flags of sections
UNDEFINED, COMMON = 0, 0xfff2                       # sections of symbols that are none
LOCAL, GLOBAL = 0, 1                                # bindings of symbols
OBJECT, THREAD_SYMBOL, INDIRECT = 1, 6, 10          # types of symbols
PT_LOAD, PT_DYNAMIC, PT_GNU_STACK = 1, 2, 0x6474e551
READABLE, WRITABLE, EXECUTABLE = 4, 2, 1            # flags of segments
DT_NULL, DT_HASH, DT_STRTAB, DT_SYMTAB, DT_RELA, DT_RELASZ, DT_RELAENT, DT_STRSZ, DT_SYMENT = 0, *range(4, 12)
DT_RELACOUNT = 0x6ffffff9


@dataclass
class Section:
    """A section, read or to be written. size: of its memory, which `data` fills unless the type is NOBITS.

    entry, link   size of an entry of a table, and the name of the section that it refers to
    offset, address   its place in the file, and in memory counted from where the library lies
    """

    name: str
    type: int
    flags: int
    alignment: int
    data: bytearray = field(default_factory=bytearray)
    size: int = 0
    entry: int = 0
    link: str = ""
    offset: int = 0
    address: int = 0


class Symbol(NamedTuple):
    """section: the number of one, UNDEFINED, or a reserved one such as COMMON. value: the place there; COMMON: alignment."""

    name: str
    binding: int
    type: int
    section: int
    value: int
    size: int


class Relocation(NamedTuple):
    """A place in a section that depends on the address of a symbol, given by number; the kind is the machine's."""

    offset: int
    kind: int
    symbol: int
    addend: int


class Relocatable(NamedTuple):
    """An object file. relocations: by the number of the section that they change; of sections in memory only."""

    machine: int
    sections: list[Section]
    symbols: list[Symbol]
    relocations: dict[int, list[Relocation]]


def read(content: bytes) -> Relocatable:
    """A relocatable object. Raises ValueError for anything else, and for what is incomplete or contradicts itself."""
    if len(content) < HEADER.size or content[:7] != IDENT[:7]:
        raise ValueError("no 64-bit little-endian ELF file")
    _, kind, machine, _, _, _, start, _, _, _, _, entry, count, names = HEADER.unpack_from(content)
    if kind != REL or entry != SECTION_HEADER.size or not names < count:
        raise ValueError(f"ELF file of type {kind} with {count} sections; expected a relocatable object, type {REL}")
    headers = list(SECTION_HEADER.iter_unpack(_part(content, start, count * entry)))
    parts = [b"" if header[1] in (0, NOBITS) else _part(content, header[4], header[5]) for header in headers]
    sections = [Section(_string(parts[names], name), type_, flags, max(alignment, 1), bytearray(part), size)
                for (name, type_, flags, _, _, size, _, _, alignment, _), part in zip(headers, parts, strict=True)]
    symbols: list[Symbol] = []
    for (_, type_, _, _, _, _, link, _, _, _), part in zip(headers, parts, strict=True):
        if type_ == SYMTAB:
            strings = parts[_index(link, parts, "section")]
            symbols = [Symbol(_string(strings, name), info >> 4, info & 15, section, value, size)
                       for name, info, _, section, value, size in _entries(SYMBOL, part)]
    relocations: dict[int, list[Relocation]] = {}
    for (_, type_, _, _, _, _, _, target, _, _), part in zip(headers, parts, strict=True):
        if type_ not in (RELA_TABLE, REL_TABLE) or not sections[_index(target, sections, "section")].flags & ALLOC:
            continue
        if type_ == REL_TABLE:
            raise ValueError(f'"{sections[target].name}" has relocations without addends, which this machine does not use')
        relocations.setdefault(target, []).extend(
            Relocation(offset, info & 0xffffffff, _index(info >> 32, symbols, "symbol"), addend)
            for offset, info, addend in _entries(RELA, part))
    return Relocatable(machine, sections, symbols, relocations)


def _part(content: bytes, offset: int, size: int) -> bytes:
    if offset + size > len(content):
        raise ValueError(f"ELF file is incomplete: {len(content)} bytes, which should be {offset + size} or more")
    return content[offset:offset + size]


def _entries(entry: struct.Struct, table: bytes) -> Iterator[tuple[Any, ...]]:
    if len(table) % entry.size:
        raise ValueError(f"ELF file is damaged: a table of {len(table)} bytes, with entries of {entry.size}")
    return entry.iter_unpack(table)


def _index(number: int, table: Sequence[object], what: str) -> int:
    if number >= len(table):
        raise ValueError(f"ELF file is damaged: {what} {number} of {len(table)}")
    return number


def _string(strings: bytes, start: int) -> str:
    end = strings.find(b"\0", start)
    if end < 0 and (strings or start):
        raise ValueError(f"ELF file is damaged: a name at {start} of {len(strings)} bytes")
    return strings[start:end].decode("utf-8", "surrogateescape")


class Strings:
    """A string table that grows."""

    def __init__(self) -> None:
        self.data = bytearray(1)

    def add(self, name: str) -> int:
        """Where the name begins."""
        start = len(self.data)
        self.data += name.encode("utf-8", "surrogateescape") + b"\0"
        return start


def hash_table(names: Sequence[str]) -> bytearray:
    """DT_HASH of a symbol table, whose first entry, before these names, is empty."""
    buckets, chain = [0] * max(len(names), 1), [0] * (len(names) + 1)
    for number, name in enumerate(names, 1):
        value = 0
        for byte in name.encode("utf-8", "surrogateescape"):
            value = (value << 4) + byte
            high = value & 0xf0000000
            value = (value ^ high >> 24) & ~high
        chain[number], buckets[value % len(buckets)] = buckets[value % len(buckets)], number
    return bytearray(struct.pack(f"<{2 + len(buckets) + len(chain)}I", len(buckets), len(chain), *buckets, *chain))


class Library:
    """The sections of a shared library, which get their addresses here and may be filled in afterwards.

    fixed      what is only read or executed, placed after the headers
    writable   the rest, on pages of its own in memory; those of type NOBITS last. The first is the dynamic table
    page       the largest page of a kernel for this machine: what segments are aligned to in memory, not in the file
    size       of the memory that the library takes
    """

    def __init__(self, machine: int, page: int, fixed: Sequence[Section], writable: Sequence[Section]):
        self.machine, self.page, self.fixed, self.writable = machine, page, fixed, writable
        end = _place(fixed, HEADER.size + 4 * PROGRAM_HEADER.size, 0)
        self._fixed_end = end
        # a page further in memory than in the file: so no page of it holds some of both
        start = aligned(end, max(section.alignment for section in writable))
        self._end = _place(writable, start, page)
        self.size = self._end + page

    def content(self) -> bytes:
        """The file."""
        filled = [section for section in self.writable if section.type != NOBITS]
        dynamic, last = filled[0], filled[-1]
        file_end = last.offset + last.size
        names = Strings()
        named = [*self.fixed, *self.writable, Section(".shstrtab", STRTAB, 0, 1, names.data)]
        numbers = {section.name: number for number, section in enumerate(named, 1)}
        starts = [names.add(section.name) for section in named]
        named[-1].offset, named[-1].size = file_end, len(names.data)
        table = aligned(file_end + len(names.data), 8)
        out = bytearray(table)
        for section in named:
            out[section.offset:section.offset + len(section.data)] = section.data
        segments = [(PT_LOAD, READABLE | EXECUTABLE, 0, 0, self._fixed_end, self._fixed_end, self.page),
                    (PT_LOAD, READABLE | WRITABLE, dynamic.offset, dynamic.address, file_end - dynamic.offset,
                     self._end - dynamic.offset, self.page),
                    (PT_DYNAMIC, READABLE | WRITABLE, dynamic.offset, dynamic.address, dynamic.size, dynamic.size, 8),
                    (PT_GNU_STACK, READABLE | WRITABLE, 0, 0, 0, 0, 16)]
        head = HEADER.pack(IDENT, DYN, self.machine, 1, 0, HEADER.size, table, 0, HEADER.size, PROGRAM_HEADER.size,
                           len(segments), SECTION_HEADER.size, len(named) + 1, len(named))
        head += b"".join(PROGRAM_HEADER.pack(kind, flags, offset, address, address, size, memory, alignment)
                         for kind, flags, offset, address, size, memory, alignment in segments)
        out[:len(head)] = head
        out += bytes(SECTION_HEADER.size)
        for section, name in zip(named, starts, strict=True):
            out += SECTION_HEADER.pack(name, section.type, section.flags & (WRITE | ALLOC | EXECUTE), section.address,
                                       section.offset, section.size, numbers.get(section.link, 0),
                                       int(section.type == DYNSYM), section.alignment, section.entry)
        return bytes(out)


def _place(sections: Sequence[Section], start: int, shift: int) -> int:
    """One section after the other from there on in the file, that much further on in memory; where the last one ends."""
    for section in sections:
        section.offset = aligned(start, section.alignment)
        section.address = section.offset + shift
        start = section.offset + section.size
    return start


def aligned(number: int, alignment: int) -> int:
    """The next multiple of an alignment."""
    return -(-number // alignment) * alignment
