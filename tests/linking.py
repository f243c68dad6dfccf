"""What the tests of the linker need: modules for LLVM, a loader for a process without it, and a reader of libraries.

The reader is written from the gABI, apart from the one under test.
"""
import json
import platform
import struct
import subprocess
import sys
from pathlib import Path

import llvmlite.binding as llvm

llvm.initialize_all_targets()
llvm.initialize_all_asmprinters()
llvm.initialize_native_asmparser()

TRIPLES = {"x86_64": "x86_64-unknown-linux-gnu", "aarch64": "aarch64-unknown-linux-gnu"}
HERE = platform.machine()

# What a process does that has no compiler: everything needed from outside is found by name, or given.
LOADER = '''
import ctypes, json, sys
from ctypes import CFUNCTYPE, c_char_p, c_double, c_float, c_int64, c_void_p

LIBRARIES = [ctypes.CDLL(None), ctypes.CDLL(sys.argv[1] or None)]
given = {}

def address(library, name):
    return ctypes.cast(getattr(library, name), c_void_p).value

def outside(name):
    if name in given:
        return given[name]
    return next(address(library, name) for library in LIBRARIES if hasattr(library, name))

def load(path, mode=ctypes.DEFAULT_MODE):
    library = ctypes.CDLL(path, mode)
    names = [name for name in ctypes.string_at(address(library, "imports")).decode().split(",") if name]
    table = (c_void_p * len(names)).from_address(address(library, "import_table"))
    table[:] = [outside(name) for name in names]
    return library

def call(library, name, result, *arguments):
    types = [type(one) for one in arguments]
    return CFUNCTYPE(result, *types)(address(library, name))(*arguments)
'''

# What kernels are made of: constants in read-only memory, variables of every kind, calls inside and outside.
MODULE = """
@weights = internal constant [16 x float] [float 1.0, float 2.0, float 3.0, float 4.0, float 5.0, float 6.0, float 7.0,
    float 8.0, float 9.0, float 10.0, float 11.0, float 12.0, float 13.0, float 14.0, float 15.0, float 16.0], align 64
@small = internal constant [8 x i8] c"\\01\\02\\03\\04\\05\\06\\07\\08", align 64
@greeting = private unnamed_addr constant [6 x i8] c"hello\\00"
@functions = internal constant [2 x ptr] [ptr @twice, ptr @thrice]
@zeros = internal global [1000 x i64] zeroinitializer, align 64
@count = internal global i64 40
@other = common global i64 0, align 8
@shared = common global i64 0, align 8
@shown = global i64 17
@chain = internal global ptr @link
@link = internal global ptr getelementptr (i8, ptr @shown, i64 0)
@given_value = external global i64
declare float @expf(float)
declare double @fmod(double, double)
declare i32 @clock_gettime(i32, ptr)
declare i64 @given_function(i64)
declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)

define void @scaled(ptr %out, float %by) {
  %vector = load <16 x float>, ptr @weights, align 64
  %first = insertelement <16 x float> poison, float %by, i32 0
  %all = shufflevector <16 x float> %first, <16 x float> poison, <16 x i32> zeroinitializer
  %product = fmul <16 x float> %vector, %all
  store <16 x float> %product, ptr %out, align 4
  ret void
}
define i64 @place_of_weights() { ret i64 ptrtoint (ptr @weights to i64) }
define i64 @place_of_zeros() { ret i64 ptrtoint (ptr @zeros to i64) }
define ptr @text() { ret ptr @greeting }
define i64 @parts(i64 %index) {
  %byte = load volatile i8, ptr getelementptr (i8, ptr @small, i64 3)
  %half = load volatile i16, ptr getelementptr (i8, ptr @small, i64 2)
  %word = load volatile i32, ptr getelementptr (i8, ptr @small, i64 4)
  %a = zext i8 %byte to i64
  %b = zext i16 %half to i64
  %c = zext i32 %word to i64
  %ab = add i64 %a, %b
  %abc = add i64 %ab, %c
  ret i64 %abc
}
define i64 @choose(i64 %which, i64 %value) {
  switch i64 %which, label %other [i64 0, label %c0 i64 1, label %c1 i64 2, label %c2 i64 3, label %c3 i64 4, label %c4
                                   i64 5, label %c5]
c0: %r0 = add i64 %value, 100
  ret i64 %r0
c1: %r1 = mul i64 %value, 3
  ret i64 %r1
c2: %r2 = call i64 @twice(i64 %value)
  ret i64 %r2
c3: %r3 = sub i64 0, %value
  ret i64 %r3
c4: %r4 = xor i64 %value, 255
  ret i64 %r4
c5: %r5 = tail call i64 @thrice(i64 %value)
  ret i64 %r5
other: ret i64 -1
}
define i64 @twice(i64 %value) noinline { %r = shl i64 %value, 1
  ret i64 %r }
define weak i64 @thrice(i64 %value) noinline { %r = mul i64 %value, 3
  ret i64 %r }
define i64 @through_table(i64 %which, i64 %value) {
  %place = getelementptr [2 x ptr], ptr @functions, i64 0, i64 %which
  %function = load ptr, ptr %place
  %r = call i64 %function(i64 %value)
  ret i64 %r
}
define i64 @counted() {
  %old = load i64, ptr @count
  %new = add i64 %old, 1
  store i64 %new, ptr @count
  %zero = load i64, ptr getelementptr (i8, ptr @zeros, i64 7992)
  %more = add i64 %zero, %new
  store i64 1000, ptr getelementptr (i8, ptr @zeros, i64 7992)
  %common = load i64, ptr @shared
  %sum = add i64 %more, %common
  store i64 100000, ptr @shared
  store i64 -1, ptr @other
  ret i64 %sum
}
define i64 @shown_now(i64 %new) {
  %cell = load volatile ptr, ptr @chain
  %pointer = load ptr, ptr %cell
  %old = load i64, ptr %pointer
  store i64 %new, ptr @shown
  ret i64 %old
}
define void @filled(ptr %out, i64 %bytes) { call void @llvm.memset.p0.i64(ptr %out, i8 90, i64 %bytes, i1 false)
  ret void }
define float @exponential(float %x) { %y = tail call float @expf(float %x)
  ret float %y }
define double @remainder(double %x) { %y = call double @fmod(double %x, double 0.75)
  %z = fadd double %y, 0x3FB999999999999A
  ret double %z }
define i64 @seconds() {
  %time = alloca [2 x i64]
  %failed = call i32 @clock_gettime(i32 1, ptr %time)
  %first = load i64, ptr %time
  %bad = icmp ne i32 %failed, 0
  %r = select i1 %bad, i64 -1, i64 %first
  ret i64 %r
}
define i64 @asked(i64 %value) {
  %answer = call i64 @given_function(i64 %value)
  %own = load i64, ptr @given_value
  %r = add i64 %answer, %own
  ret i64 %r
}
define ptr @pointer_to_given() { ret ptr @given_function }
"""
EXPORTS = """scaled place_of_weights place_of_zeros text parts choose through_table counted shown_now filled exponential
remainder seconds asked pointer_to_given shown""".split()

# Kinds of relocations that LLVM does not need for that, in the machine's language: functions that all give 77.
ASSEMBLED = {
    "x86_64": """
module asm ".data"
module asm "far: .quad cell - ."
module asm "near: .long cell@GOTPCREL + 4 - ."
module asm ".long 0"
module asm ".section .data.cell, \\22aw\\22"
module asm ".globl cell"
module asm "cell: .quad 77"
module asm ".text"
module asm ".globl by_quad"
module asm "by_quad: leaq far(%rip), %rax"
module asm "addq (%rax), %rax"
module asm "movq (%rax), %rax"
module asm "ret"
module asm ".globl by_slot"
module asm "by_slot: movslq near(%rip), %rax"
module asm "leaq near(%rip), %rcx"
module asm "movq -4(%rax,%rcx), %rax"
module asm "movq (%rax), %rax"
module asm "ret"
module asm ".globl by_jump"
module asm "by_jump: jmpq *by_quad@GOTPCREL(%rip)"
""",
    "aarch64": """
module asm ".data"
module asm "far: .xword cell - ."
module asm "near: .word cell - ."
module asm ".word 0"
module asm ".section .data.cell, \\22aw\\22"
module asm ".globl cell"
module asm "cell: .xword 77"
module asm ".balign 32"
module asm "parts: .byte 9, 10"
module asm ".hword 11"
module asm ".word 12"
module asm ".xword 13, 14, 17"
module asm ".text"
module asm ".globl by_quad"
module asm "by_quad: adrp x1, far"
module asm "add x1, x1, :lo12:far"
module asm "ldr x0, [x1]"
module asm "ldr x0, [x0, x1]"
module asm "ret"
module asm ".globl by_slot"
module asm "by_slot: adrp x1, near"
module asm "add x1, x1, :lo12:near"
module asm "ldrsw x0, [x1]"
module asm "ldr x0, [x0, x1]"
module asm "ret"
module asm ".globl by_parts"
module asm "by_parts: adrp x1, parts"
module asm "ldrb w0, [x1, :lo12:parts + 1]"
module asm "ldrh w2, [x1, :lo12:parts + 2]"
module asm "ldr w3, [x1, :lo12:parts + 4]"
module asm "ldr x4, [x1, :lo12:parts + 8]"
module asm "ldr q0, [x1, :lo12:parts + 16]"
module asm "addp d0, v0.2d"
module asm "umov x5, v0.d[0]"
module asm "add x0, x0, x2"
module asm "add x0, x0, x3"
module asm "add x0, x0, x4"
module asm "add x0, x0, x5"
module asm "ret"
module asm ".globl by_jump"
module asm "by_jump: ldr x0, literal"
module asm "cmp x0, #77"
module asm "b.eq yes"
module asm "mov x0, #1"
module asm "ret"
module asm ".section .text.yes, \\22ax\\22"
module asm ".globl yes"
module asm "yes: tbz x0, #1, really"
module asm "mov x0, #2"
module asm "ret"
module asm ".section .text.really, \\22ax\\22"
module asm ".globl really"
module asm "really: ret"
module asm ".globl literal"
module asm ".balign 8"
module asm "literal: .xword 77"
""",
}

# Constants of many pages before a variable.
LARGE = """
@weights = constant [100000 x i8] zeroinitializer
@state = global i64 5
define i64 @sum() {
  %byte = load volatile i8, ptr getelementptr (i8, ptr @weights, i64 99999)
  %zero = zext i8 %byte to i64
  %value = load i64, ptr @state
  %sum = add i64 %value, %zero
  store i64 6, ptr @state
  ret i64 %sum
}
"""


def emit(text, machine=HERE, level=2):
    """The object that LLVM makes of a module, as microcnn has it made of its kernels."""
    module = llvm.parse_assembly(f'target triple = "{TRIPLES[machine]}"\n{text}')
    module.verify()
    target = llvm.Target.from_triple(TRIPLES[machine])
    return target.create_target_machine(reloc="pic", codemodel="small", opt=level).emit_object(module)


def run(body, *arguments):
    """What a fresh process, which has the loader, prints as JSON. body: its code; the arguments are sys.argv[2:]."""
    code = LOADER + body + '\nassert not {"numba", "llvmlite", "numpy"} & set(sys.modules)'
    mathematics = "libm.so.6" if platform.libc_ver()[0] == "glibc" else ""     # musl has one library for all
    command = [sys.executable, "-W", "error", "-c", code, mathematics, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=Path(__file__).parent)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


class Parsed:
    """An ELF file: its sections with their headers, symbols, and, of a library, its segments and dynamic table."""

    def __init__(self, content):
        self.content = content
        self.type, self.machine = struct.unpack_from("<HH", content, 16)
        programs, sections = struct.unpack_from("<QQ", content, 32)
        _, entry, count, _, section_count, names = struct.unpack_from("<6H", content, 52)
        self.segments = [struct.unpack_from("<IIQQQQQQ", content, programs + entry * i) for i in range(count)]
        headers = [struct.unpack_from("<IIQQQQIIQQ", content, sections + 64 * i) for i in range(section_count)]
        self.sections = {self.text(headers[names][4] + header[0]): header for header in headers}
        self.section_headers = sections

    def text(self, start):
        return self.content[start:self.content.index(0, start)].decode()

    def header_of(self, name):
        """Where in the file the header of a section begins."""
        return self.section_headers + 64 * list(self.sections).index(name)

    def relocations(self):
        """(place in the file, kind, symbol, addend) of all that is not for unwinding."""
        for name, header in self.sections.items():
            if header[1] == 4 and name != ".rela.eh_frame":
                for start in range(header[4], header[4] + header[5], 24):
                    offset, info, addend = struct.unpack_from("<QQq", self.content, start)
                    yield start, info & 0xffffffff, info >> 32, addend

    def with_kind(self, start, kind):
        """The file, where the relocation there is of another kind."""
        return self.content[:start + 8] + struct.pack("<I", kind) + self.content[start + 12:]

    def with_addend(self, start, addend):
        return self.content[:start + 16] + struct.pack("<q", addend) + self.content[start + 24:]

    def loads(self):
        return [segment for segment in self.segments if segment[0] == 1]

    def dynamic(self):
        """{tag: value}; addresses, too, are places in the file, as all these tables lie in the first segment."""
        [(_, _, offset, _, _, size, _, _)] = [segment for segment in self.segments if segment[0] == 2]
        entries = [struct.unpack_from("<qQ", self.content, start) for start in range(offset, offset + size, 16)]
        assert entries[-1] == (0, 0) and all(tag for tag, _ in entries[:-1])
        return dict(entries[:-1])

    def dynamic_symbols(self):
        """{name: (section, value, size)}, as many as the hash table says."""
        table = self.dynamic()
        _, count = struct.unpack_from("<II", self.content, table[4])
        found = [struct.unpack_from("<IBBHQQ", self.content, table[6] + 24 * i) for i in range(count)]
        assert found[0] == (0,) * 6
        return {self.text(table[5] + name): (section, value, size) for name, _, _, section, value, size in found[1:]}

    def dynamic_relocations(self):
        """(place in memory, kind, addend)"""
        table = self.dynamic()
        assert table[9] == 24 and table[8] % 24 == 0
        return [struct.unpack_from("<QQq", self.content, start) for start in range(table[7], table[7] + table[8], 24)]
