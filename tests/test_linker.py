"""Libraries that our linker makes: what dlopen gets of them in a process without a compiler, their form, and bad objects."""
import random
import re
import struct

import pytest

from microcnn.linker import shared_library
from microcnn.linker.relocations import MACHINES

from .linking import ASSEMBLED, EXPORTS, HERE, LARGE, MODULE, TRIPLES, Parsed, emit, run


@pytest.fixture(scope="module")
def module():
    """The object of MODULE for this machine."""
    return emit(MODULE)


def write(path, relocatable, exports):
    path.write_bytes(shared_library(relocatable, exports))
    return path


def test_code_and_data_work_in_a_process_without_a_compiler(module, tmp_path):
    found = run("""
one, path = CFUNCTYPE(c_int64, c_int64)(lambda value: value * 1000), sys.argv[2]
value = c_int64(5)
given = {"given_function": ctypes.cast(one, c_void_p).value, "given_value": ctypes.addressof(value)}
library = load(path)
out, bytes_out = (c_float * 16)(), ctypes.create_string_buffer(3000)
call(library, "scaled", None, c_void_p(ctypes.addressof(out)), c_float(0.5))
call(library, "filled", None, c_void_p(ctypes.addressof(bytes_out)), c_int64(2999))
print(json.dumps({
    "scaled": list(out),
    "places": [call(library, "place_of_weights", c_int64) % 64, call(library, "place_of_zeros", c_int64) % 64],
    "text": call(library, "text", c_char_p).decode(),
    "parts": call(library, "parts", c_int64, c_int64(0)),
    "choose": [call(library, "choose", c_int64, c_int64(which), c_int64(7)) for which in range(-1, 7)],
    "table": [call(library, "through_table", c_int64, c_int64(which), c_int64(7)) for which in range(2)],
    "counted": [call(library, "counted", c_int64) for _ in range(2)],
    "shown": [call(library, "shown_now", c_int64, c_int64(18)), call(library, "shown_now", c_int64, c_int64(19)),
              c_int64.in_dll(library, "shown").value],
    "filled": [bytes_out.raw == b"Z" * 2999 + bytes(1)],
    "exponential": call(library, "exponential", c_float, c_float(1.0)),
    "remainder": call(library, "remainder", c_double, c_double(2.0)),
    "seconds": call(library, "seconds", c_int64) >= 0,
    "asked": call(library, "asked", c_int64, c_int64(3)),
    "pointer": call(library, "pointer_to_given", c_void_p) == given["given_function"]}))
""", write(tmp_path / "module.so", module, EXPORTS))
    small = bytes(range(1, 9))
    assert found == {
        "scaled": [number / 2 for number in range(1, 17)], "places": [0, 0], "text": "hello",
        "parts": small[3] + int.from_bytes(small[2:4], "little") + int.from_bytes(small[4:8], "little"),
        "choose": [-1, 107, 21, 14, -7, 7 ^ 255, 21, -1], "table": [14, 21], "counted": [41, 42 + 1000 + 100000],
        "shown": [17, 18, 19], "filled": [True], "exponential": pytest.approx(2.718281828, rel=1e-6),
        "remainder": pytest.approx(0.6), "seconds": True, "asked": 3005, "pointer": True}


def test_what_is_assembled_works(tmp_path):
    names = re.findall(r"globl (by_\w+)", ASSEMBLED[HERE])
    found = run("""
library = load(sys.argv[2])
print(json.dumps({name: call(library, name, c_int64) for name in sys.argv[3:]}))
""", write(tmp_path / "assembled.so", emit(ASSEMBLED[HERE]), names), *names)
    assert found == dict.fromkeys(names, 77)


def test_every_kind_that_the_linker_knows_is_tested(module):
    """By the two tests above."""
    kinds = {kind for content in (module, emit(ASSEMBLED[HERE])) for _, kind, _, _ in Parsed(content).relocations()}
    assert kinds == set(MACHINES[Parsed(module).machine].rules)


def test_libraries_with_the_same_names_do_not_mix(tmp_path):
    text = """
@state = global i64 %d
declare i64 @labs(i64)
define i64 @helper() noinline { %%value = load i64, ptr @state
  %%next = add i64 %%value, 1
  store i64 %%next, ptr @state
  ret i64 %%value }
define i64 @answer() { %%value = call i64 @helper()
  %%positive = call i64 @labs(i64 %%value)
  ret i64 %%positive }
"""
    paths = [write(tmp_path / f"{number}.so", emit(text % number), ["answer", "helper", "state"]) for number in (10, -20)]
    found = run("""
libraries = [load(path, ctypes.RTLD_GLOBAL) for path in sys.argv[2:]]
print(json.dumps([call(library, "answer", c_int64) for _ in range(2) for library in libraries]))
""", *paths)
    assert found == [10, 20, 11, 19]


def test_a_library_may_need_nothing(tmp_path):
    found = run("""
library = load(sys.argv[2])
print(json.dumps([call(library, "seven", c_int64), ctypes.string_at(address(library, "imports")).decode()]))
""", write(tmp_path / "alone.so", emit("define i64 @seven() { ret i64 7 }"), ["seven"]))
    assert found == [7, ""]


@pytest.mark.parametrize("machine", TRIPLES)
def test_form_of_a_library(machine):
    relocatable = emit(MODULE, machine)
    library = shared_library(relocatable, EXPORTS)
    parsed, page = Parsed(library), {"x86_64": 4096, "aarch64": 65536}[machine]
    assert (parsed.type, parsed.machine) == (3, {"x86_64": 62, "aarch64": 183}[machine])
    assert len(library) < len(relocatable), "neither padded to pages nor with tables for unwinding"
    # pages: what can be written cannot be executed, and each lies on its own
    (_, fixed, *_), (_, writable, *_) = code, data = parsed.loads()
    assert (fixed, writable) == (4 | 1, 4 | 2)
    for _, _, offset, address, _, in_file, in_memory, alignment in (code, data):
        assert alignment == page and (address - offset) % page == 0 and offset + in_file <= len(library)
        assert in_memory >= in_file
    assert data[3] // page > (code[3] + code[6] - 1) // page
    [stack] = [segment for segment in parsed.segments if segment[0] == 0x6474e551]
    assert stack[1] == 4 | 2
    # names: all defined, and no other library needed
    table, symbols = parsed.dynamic(), parsed.dynamic_symbols()
    assert set(table) == {4, 5, 6, 7, 8, 9, 10, 11, 0x6ffffff9}
    assert list(symbols) == [*EXPORTS, "imports", "import_table"]
    assert all(0 < section < 0xff00 for section, _, _ in symbols.values())
    names = parsed.text(symbols["imports"][1]).split(",")
    assert sorted(names) == sorted("memset expf fmod clock_gettime given_function given_value".split())
    assert symbols["import_table"][2] == 8 * len(names)
    # relocations: of one kind, in what can be written, and not of imports
    places = [place for place, _, _ in parsed.dynamic_relocations()]
    assert len(set(places)) == table[0x6ffffff9] == len(places) > 4
    assert {info for _, info, _ in parsed.dynamic_relocations()} == {{"x86_64": 8, "aarch64": 1027}[machine]}
    end = symbols["import_table"][1] + symbols["import_table"][2]
    assert all(end <= place <= data[3] + data[5] - 8 and place % 8 == 0 for place in places)


@pytest.mark.parametrize("machine", TRIPLES)
def test_what_is_written_lies_behind_all_pages_of_the_code(machine):
    library = shared_library(emit(LARGE, machine), ["sum"])
    code, data = Parsed(library).loads()
    assert code[6] > 100000 and data[3] // data[7] == (code[3] + code[6] - 1) // code[7] + 1
    assert len(library) < 100000 + 4096


def test_a_library_of_many_pages_works(tmp_path):
    path = write(tmp_path / "large.so", emit(LARGE), ["sum"])
    assert run("""
library = load(sys.argv[2])
print(json.dumps([call(library, "sum", c_int64) for _ in range(2)]))
""", path) == [5, 6]


@pytest.mark.parametrize("machine", TRIPLES)
def test_the_same_object_gives_the_same_library(machine):
    libraries = {shared_library(emit(MODULE, machine), exports) for exports in (EXPORTS, EXPORTS + EXPORTS[:3])}
    assert len(libraries) == 1


@pytest.mark.parametrize("name, told", [
    ("nothing", 'export "nothing" is not defined'), ("expf", 'export "expf" is not defined'),
    ("count", 'export "count" is not defined as a global symbol'), ("imports", 'export "imports" has a name that')])
def test_exports_that_are_refused(module, name, told):
    with pytest.raises(ValueError, match=told):
        shared_library(module, ["scaled", name])


@pytest.mark.parametrize("text, told", [
    ("@x = thread_local global i64 1\ndefine ptr @f() { ret ptr @x }", r'section ".tdata" has type 1 and flags 0x403'),
    ("@x = external thread_local global i64\ndefine ptr @f() { ret ptr @x }", 'of "x" .* does not know its kind'),
    ("@x = external hidden global i64\ndefine ptr @f() { ret ptr @x }", 'of "x" .* through the table of imports only'),
    ("@x = global ptr @labs\ndeclare i64 @labs(i64)\ndefine void @f() { ret void }", 'of "labs" at .data.* the table'),
    ("@x = global i64 1, align 8192\ndefine void @f() { ret void }", '".data" is aligned to 8192 bytes; expected a power'),
    ("@x = global [4294967296 x i8] zeroinitializer\ndefine void @f() { ret void }", "would take 4,29.* bytes of memory"),
    ('declare void @"a,b"()\ndefine void @f() { call void @"a,b"()\n ret void }', '"a,b" is needed from outside; expected'),
    ("@llvm.global_ctors = appending global [1 x {i32, ptr, ptr}] [{i32, ptr, ptr} {i32 1, ptr @f, ptr null}]\n"
     "define void @f() { ret void }", 'section ".(init_array|ctors).* has type'),
    ('module asm ".section .rodata"\nmodule asm ".quad f"\ndefine void @f() { ret void }', "section that is not writable"),
    ("@x = ifunc i64 (), ptr @g\ndefine ptr @g() { ret ptr null }\ndefine i64 @f() { %r = call i64 @x()\n ret i64 %r }",
     '"x" is thread-local or chosen at run time'),
])
def test_what_the_linker_does_not_know_is_said(text, told):
    with pytest.raises(ValueError, match=told):
        shared_library(emit(text), ["f"])


def test_relocations_of_another_kind_or_too_far_are_said(module):
    parsed = Parsed(module)
    known = {name: kind for kind, name in ((2, "x86_64"), (283, "aarch64"))}[HERE]
    start = next(start for start, kind, _, _ in parsed.relocations() if kind == known)
    with pytest.raises(ValueError, match=r"relocation 250 of .* at \.text\+0x.*: this linker does not know its kind"):
        shared_library(parsed.with_kind(start, 250), EXPORTS)
    for far in (1 << 40, -1 << 40):
        with pytest.raises(ValueError, match=rf"relocation {known} of .* at \.text\+0x.*: the distance .* does not fit"):
            shared_library(parsed.with_addend(start, far), EXPORTS)


def test_other_files_are_refused(module):
    for content in (b"", b"\x7fELF", bytes(1000), random.Random(0).randbytes(5000), b"\x7fELF\x01" + module[5:]):
        with pytest.raises(ValueError, match="no 64-bit little-endian ELF file"):
            shared_library(content, [])
    with pytest.raises(ValueError, match="expected a relocatable object"):
        shared_library(shared_library(module, EXPORTS), EXPORTS)
    with pytest.raises(ValueError, match=r"an object for machine 243; expected x86-64 \(62\) or 64-bit Arm \(183\)"):
        shared_library(module[:18] + struct.pack("<H", 243) + module[20:], EXPORTS)


def test_numbers_that_lead_nowhere_are_said(module):
    parsed = Parsed(module)
    _, _, _, _, symbols, size, *_ = parsed.sections[".symtab"]
    start, kind, _, _ = next(parsed.relocations())
    section = parsed.sections[".text"][5]
    for place, content, told in [
            (start + 8, struct.pack("<II", kind, size // 24), f"symbol {size // 24} of {size // 24}"),
            (start, struct.pack("<Q", section), r"at \.text\+0x.*: the section has"),
            (symbols + size - 24, struct.pack("<I", 1 << 30), "a name at 1073741824 of"),
            (parsed.header_of(".symtab") + 40, struct.pack("<I", 999), "section 999 of")]:
        with pytest.raises(ValueError, match=told):
            shared_library(module[:place] + content + module[place + len(content):], EXPORTS)


def test_incomplete_and_damaged_objects_give_no_other_error(module):
    for length in range(0, len(module), 97):
        with pytest.raises(ValueError, match="ELF file"):
            shared_library(module[:length], EXPORTS)
    chance, refused, damaged = random.Random(1), 0, bytearray(module)
    for _ in range(600):
        place, value = chance.randrange(len(module)), chance.choice((0, 1, 0x7f, 0x80, 0xff))
        kept, damaged[place] = damaged[place], value
        try:
            shared_library(bytes(damaged), EXPORTS)
        except ValueError:
            refused += 1
        damaged[place] = kept
    assert refused > 50
