"""A static linker: one object file, as LLVM makes it, becomes a shared library that dlopen loads.

A device has no toolchain, and a process with warm kernels shall load no compiler. What LLVM emits is small and regular:
position-independent code, a few kinds of relocations. The library refers to no other one, and no other one to it: what its
code needs from outside it reads out of a table that whoever loads it fills in. So libraries with the same names do not mix,
and the dynamic linker searches for nothing.

What a library holds, beside the exports:

    imports        text that ends with a zero byte: the names of what is needed from outside, separated by commas
    import_table   so many addresses of 8 bytes, in the same order, zero in the file

Source   System V gABI, chapter 5 (dynamic linking); relocations.py for the machines
"""
from __future__ import annotations

from collections.abc import Sequence

from . import elf
from .elf import Relocation, Section, Symbol
from .relocations import ABSOLUTE, CALL, DIRECT, MACHINES, SLOT, Machine

# The smallest page of a kernel, which every library is aligned to, and how large it may get for the distances of small code.
ALIGNMENT, LARGEST = 4096, 1 << 31
OWN_EXPORTS = ("imports", "import_table")


def shared_library(relocatable: bytes, exports: Sequence[str]) -> bytes:
    """The shared library of one object file, for Linux on x86-64 or 64-bit Arm; the same bytes for the same arguments.

    relocatable   what LLVM emits with reloc="pic" and codemodel="small". Tables for unwinding and for debuggers are left out
    exports       names of global symbols defined there
    Raises ValueError for an export that is not defined, and for what is no such object, is damaged, or needs what this
    linker does not know: other relocations, thread-local variables, initializers.
    """
    source = elf.read(relocatable)
    machine = MACHINES.get(source.machine)
    if machine is None:
        raise ValueError(f"an object for machine {source.machine}; expected x86-64 (62) or 64-bit Arm (183)")
    return _Link(source, machine, list(dict.fromkeys(exports))).library()


class _Link:
    """One object on its way: what is kept of it, what it needs, and where that lies."""

    def __init__(self, source: elf.Relocatable, machine: Machine, exports: list[str]):
        self.source, self.machine = source, machine
        self.kept = {number: section for number, section in enumerate(source.sections) if _is_kept(section)}
        self.relocations = [(self.kept[number], relocation) for number, found in source.relocations.items()
                            if number in self.kept for relocation in found if relocation.kind not in machine.nothing]
        self.common = Section(".common", elf.NOBITS, elf.WRITE | elf.ALLOC, 1)
        self.common_places = self._common_places()
        self.exports = {name: self._export(name) for name in exports}
        # symbols by number: what is imported, what is called through a stub, what of our own is reached through a slot
        self.imports: dict[int, int] = {}
        self.stubs: dict[int, int] = {}
        self.slots: dict[int, int] = {}
        for section, relocation in self.relocations:
            self._note(section, relocation)
        addresses = sum(machine.rules[relocation.kind].reach == ABSOLUTE for _, relocation in self.relocations)
        names = [self.source.symbols[number].name for number in self.imports]
        for name in names:
            if "," in name or not name.isascii():
                raise ValueError(f'"{name}" is needed from outside; expected ASCII without commas')
        exported = [*exports, *OWN_EXPORTS]
        strings = elf.Strings()
        self.name_starts = [strings.add(name) for name in exported]
        # sections of our own; those made of zeros are filled in when addresses are known
        read, write = elf.ALLOC, elf.ALLOC | elf.WRITE
        self.dynamic = _room(".dynamic", elf.DYNAMIC_TABLE, write, bytearray(10 * elf.DYNAMIC.size), elf.DYNAMIC.size,
                             ".dynstr")
        self.table = _room(".got", elf.PROGBITS, write, bytearray(8 * (len(names) + len(self.slots))))
        self.hash = _room(".hash", elf.HASH, read, elf.hash_table(exported), 4, ".dynsym")
        self.dynsym = _room(".dynsym", elf.DYNSYM, read, bytearray((1 + len(exported)) * elf.SYMBOL.size), elf.SYMBOL.size,
                            ".dynstr")
        self.dynstr = _room(".dynstr", elf.STRTAB, read, strings.data)
        self.rela = _room(".rela.dyn", elf.RELA_TABLE, read, bytearray((addresses + len(self.slots)) * elf.RELA.size),
                          elf.RELA.size, ".dynsym")
        self.text = _room(".imports", elf.PROGBITS, read, bytearray(",".join(names).encode() + b"\0"))
        self.jumps = _room(".stubs", elf.PROGBITS, read | elf.EXECUTE, bytearray(machine.stub_size * len(self.stubs)))

    def _common_places(self) -> dict[int, int]:
        """Where in a section of their own the variables lie that are zero, by number of their symbol."""
        places = {}
        for number, symbol in enumerate(self.source.symbols):
            if symbol.section == elf.COMMON:
                _check_alignment(symbol.value, symbol.name)
                self.common.alignment = max(self.common.alignment, symbol.value)
                places[number] = elf.aligned(self.common.size, symbol.value)
                self.common.size = places[number] + symbol.size
        return places

    def _export(self, name: str) -> int:
        """The number of the symbol."""
        if name in OWN_EXPORTS:
            raise ValueError(f'export "{name}" has a name that the linker takes for itself')
        for number, symbol in enumerate(self.source.symbols):
            if symbol.name == name and symbol.binding != elf.LOCAL and symbol.section != elf.UNDEFINED:
                self._check_defined(symbol)
                return number
        raise ValueError(f'export "{name}" is not defined as a global symbol of this object')

    def _note(self, section: Section, relocation: Relocation) -> None:
        """What a relocation needs, so that room is made for it."""
        rule = self.machine.rules.get(relocation.kind)
        number = relocation.symbol
        symbol = self.source.symbols[number]
        outside = symbol.section == elf.UNDEFINED
        try:
            if rule is None:
                raise ValueError("this linker does not know its kind")
            if relocation.offset + rule.size > len(section.data):
                raise ValueError(f"the section has {len(section.data)} bytes")
            if outside and not symbol.name:
                raise ValueError("it refers to no symbol")
            if outside and rule.reach in (ABSOLUTE, DIRECT):
                raise ValueError("what lies outside is reached by calls and through the table of imports only")
            if rule.reach == ABSOLUTE and not section.flags & elf.WRITE:
                raise ValueError("an address stands in a section that is not writable")
            if not outside or symbol.type == elf.THREAD_SYMBOL:
                self._check_defined(symbol)
        except ValueError as error:
            raise self._error(section, relocation, str(error)) from None
        if outside:
            self.imports.setdefault(number, len(self.imports))
            if rule.reach == CALL:
                self.stubs.setdefault(number, len(self.stubs))
        elif rule.reach == SLOT:
            self.slots.setdefault(number, len(self.slots))

    def _check_defined(self, symbol: Symbol) -> None:
        """Raises ValueError unless the symbol is a place in what is kept."""
        if symbol.type in (elf.THREAD_SYMBOL, elf.INDIRECT):
            raise ValueError(f'"{symbol.name}" is thread-local or chosen at run time, which this linker does not know')
        if symbol.section != elf.COMMON and symbol.section not in self.kept:
            raise ValueError(f'"{symbol.name}" lies in section {symbol.section}, which is no part of a library')
        if symbol.section != elf.COMMON and symbol.value > self.kept[symbol.section].size:
            raise ValueError(f'"{symbol.name}" lies at {symbol.value}, outside "{self.kept[symbol.section].name}"')

    def _error(self, section: Section, relocation: Relocation, told: str) -> ValueError:
        symbol = self.source.symbols[relocation.symbol]
        name = symbol.name or (self.kept[symbol.section].name if symbol.section in self.kept else "")
        return ValueError(f'relocation {relocation.kind} of "{name}" at {section.name}+{relocation.offset:#x}: {told}')

    def library(self) -> bytes:
        """The file."""
        own = sorted([*self.kept.values(), self.common],
                     key=lambda section: (section.type == elf.NOBITS, bool(section.flags & elf.EXECUTE)))
        library = elf.Library(
            self.source.machine, self.machine.page,
            [self.hash, self.dynsym, self.dynstr, self.rela, self.text,
             *(section for section in own if not section.flags & elf.WRITE), self.jumps],
            [self.dynamic, self.table, *(section for section in own if section.flags & elf.WRITE)])
        if library.size > LARGEST:
            raise ValueError(f"the library would take {library.size:,} bytes of memory; small code reaches {LARGEST:,}")
        self._fill()
        return library.content()

    def _fill(self) -> None:
        """Write all that depends on addresses."""
        relative: list[tuple[int, int]] = []
        for section, relocation in self.relocations:
            self._relocate(section, relocation, relative)
        relative += [(self._slot(number), self._value(number)) for number in self.slots]
        self.rela.data[:] = b"".join(elf.RELA.pack(place, self.machine.relative, value) for place, value in relative)
        self.jumps.data[:] = b"".join(self.machine.stub(self._stub(number), self._slot(number)) for number in self.stubs)
        # any number of a section that is neither zero nor reserved: only whether there is one matters
        exported = [(self.source.symbols[number].type, self._value(number), self.source.symbols[number].size)
                    for number in self.exports.values()]
        exported += [(elf.OBJECT, self.text.address, self.text.size),
                     (elf.OBJECT, self.table.address, 8 * len(self.imports))]
        self.dynsym.data[elf.SYMBOL.size:] = b"".join(
            elf.SYMBOL.pack(start, elf.GLOBAL << 4 | kind, 0, 1, value, size)
            for start, (kind, value, size) in zip(self.name_starts, exported, strict=True))
        self.dynamic.data[:] = b"".join(elf.DYNAMIC.pack(tag, value) for tag, value in (
            (elf.DT_HASH, self.hash.address), (elf.DT_SYMTAB, self.dynsym.address), (elf.DT_SYMENT, elf.SYMBOL.size),
            (elf.DT_STRTAB, self.dynstr.address), (elf.DT_STRSZ, self.dynstr.size), (elf.DT_RELA, self.rela.address),
            (elf.DT_RELASZ, self.rela.size), (elf.DT_RELAENT, elf.RELA.size), (elf.DT_RELACOUNT, len(relative)),
            (elf.DT_NULL, 0)))

    def _relocate(self, section: Section, relocation: Relocation, relative: list[tuple[int, int]]) -> None:
        """Write what one relocation asks for, and note where the dynamic linker has to add where the library lies."""
        reach, size, encode = self.machine.rules[relocation.kind]
        place, number = section.address + relocation.offset, relocation.symbol
        if reach == SLOT:
            target = self._slot(number)
        elif number in self.imports:
            target = self._stub(number)
        else:
            target = self._value(number)
        if reach == ABSOLUTE:
            relative.append((place, target + relocation.addend))
        inside = slice(relocation.offset, relocation.offset + size)
        try:
            value = encode(int.from_bytes(section.data[inside], "little"), target + relocation.addend, place)
        except ValueError as error:
            raise self._error(section, relocation, str(error)) from None
        section.data[inside] = value.to_bytes(size, "little")

    def _value(self, number: int) -> int:
        """The address of a symbol of the object."""
        symbol = self.source.symbols[number]
        if symbol.section == elf.COMMON:
            return self.common.address + self.common_places[number]
        return self.kept[symbol.section].address + symbol.value

    def _slot(self, number: int) -> int:
        """Where the address of a symbol stands: imports first, then what the dynamic linker fills in."""
        index = self.imports[number] if number in self.imports else len(self.imports) + self.slots[number]
        return self.table.address + 8 * index

    def _stub(self, number: int) -> int:
        return self.jumps.address + self.machine.stub_size * self.stubs[number]


def _is_kept(section: Section) -> bool:
    """Whether a section is a part of the library. Raises ValueError for one that would be, and is not known."""
    if not section.flags & elf.ALLOC or section.name == ".eh_frame" or section.type == elf.NOTE:
        return False
    written, executed = bool(section.flags & elf.WRITE), bool(section.flags & elf.EXECUTE)
    known = section.type == elf.PROGBITS and not (written and executed) or section.type == elf.NOBITS and written
    if not known or section.flags & elf.THREAD_LOCAL or section.name.startswith((".ctors", ".dtors")):
        raise ValueError(f'section "{section.name}" has type {section.type} and flags {section.flags:#x}, which this linker '
                         "does not know")
    _check_alignment(section.alignment, section.name)
    return True


def _check_alignment(alignment: int, name: str) -> None:
    if not 0 < alignment <= ALIGNMENT or alignment & alignment - 1:
        raise ValueError(f'"{name}" is aligned to {alignment} bytes; expected a power of two up to {ALIGNMENT}')


def _room(name: str, type_: int, flags: int, data: bytearray, entry: int = 0, link: str = "") -> Section:
    """A section of our own."""
    return Section(name, type_, flags, 8, data, len(data), entry, link)
