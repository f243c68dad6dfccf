"""The inner loops of kernels as LLVM makes them for a CPU that need not be here.

    python -m tests.kernels.machine_code TARGET ENTRY ... [MR2=8]      the loops as JSON; the tile two vectors wide changed

A process for each target: which registers there are is decided when the kernels are imported. numba makes the entry without
optimisation, which is then given the target's triple and optimised and written out for it as numba would on that CPU.
"""
from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[2]
X86, ARM = "x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu"
# Triple, CPU, features as numba names them.
TARGETS = {
    "haswell": (X86, "haswell", "+avx2,+fma,+avx,+bmi2,+sse4.2"),
    "skylake-avx512": (X86, "skylake-avx512", "+avx512f,+avx512vl,+avx512bw,+avx512dq,+avx512cd,+avx2,+fma,+avx,+bmi2"),
    "cortex-a53": (ARM, "cortex-a53", "+neon"),
    "cortex-a72": (ARM, "cortex-a72", "+neon"),
    "cortex-a76": (ARM, "cortex-a76", "+neon"),
}


@dataclass
class Loop:
    """An innermost loop that multiplies and adds vectors: how many instructions of each kind it holds.

    loads: of vector registers from memory, broadcasts of one number and operands of multiply-adds included; an instruction
    that loads two registers counts twice. stores: of anything. spills: accesses of vector registers to the stack. calls: of
    functions, such as those that count the references of an array.
    """

    fma: int
    loads: int
    stores: int
    spills: int
    calls: int
    body: list[str]


def inner_loops(target: str, *entries: str, **changed: int) -> dict[str, list[Loop]]:
    """{entry: its inner loops} in float32, made in a fresh process. changed: MR2=8 sets that constant of the kernels."""
    changes = [f"{name}={value}" for name, value in changed.items()]
    environment = {**os.environ, "NUMBA_OPT": "0", "PYTHONPATH": str(ROOT)}
    for name in ("NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES"):
        environment.pop(name, None)
    made = subprocess.run([sys.executable, "-m", "tests.kernels.machine_code", target, *entries, *changes], cwd=ROOT,
                          env=environment, capture_output=True, text=True, timeout=600)
    assert made.returncode == 0, made.stderr
    return {name: [Loop(**loop) for loop in loops] for name, loops in json.loads(made.stdout).items()}


def unoptimised(entry: str) -> str:
    """The LLVM code of an entry and of all that it calls."""
    from numba.core.compiler_lock import global_compiler_lock

    from microcnn.kernels import compiler
    with global_compiler_lock:
        return str(compiler.linked(entry, "float32")._final_module)


def assembly(text: str, target: str) -> str:
    """LLVM code optimised and written out for a target."""
    import llvmlite.binding as llvm
    triple, cpu, features = TARGETS[target]
    machine = llvm.Target.from_triple(triple).create_target_machine(cpu=cpu, features=features, opt=3, reloc="pic",
                                                                    codemodel="small")
    text = re.sub(r'target triple = ".*"', f'target triple = "{triple}"', text)
    text = re.sub(r'target datalayout = ".*"', f'target datalayout = "{machine.target_data}"', text)
    module = llvm.parse_assembly(text)
    for slp in (False, True):            # numba's two passes
        options = llvm.create_pipeline_tuning_options(speed_level=3)
        options.loop_vectorization, options.slp_vectorization = True, slp
        builder = llvm.create_pass_builder(machine, options)
        builder.getModulePassManager().run(module, builder)
    return machine.emit_assembly(module)


BRANCH = re.compile(r"^\s+(?:b|b\.\w+|cbn?z|tbn?z|j\w+)\s.*?(\.L\w+)$")


def loops_of(text: str) -> list[tuple[list[str], str]]:
    """(instructions, the register that a function keeps its frame in) of every innermost loop."""
    found = []
    for function in re.split(r"^\s+\.type\s+\S+,@function$", text, flags=re.M)[1:]:
        lines = function.partition(".Lfunc_end")[0].splitlines()
        labels = {match[1]: i for i, line in enumerate(lines) if (match := re.match(r"(\.L\w+):", line))}
        spans = {}
        for i, line in enumerate(lines):
            match = BRANCH.match(line)
            if match and labels.get(match[1], len(lines)) <= i:
                spans[labels[match[1]]] = i
        frame = "rbp" if re.search(r"movq\s+%rsp, %rbp", function) else "x29" if re.search(
            r"\s(?:mov|add)\s+x29, sp", function) else "sp"
        for begin, end in spans.items():
            if not any(begin < other <= end for other in spans):
                body = [line.strip() for line in lines[begin + 1:end + 1] if re.match(r"\s+[a-z]", line)]
                found.append((body, frame))
    return found


def counted(body: list[str], frame: str, arm: bool) -> Loop:
    """What a loop is made of."""
    def count(pattern: str) -> int:
        return sum(bool(re.match(pattern, line)) for line in body)
    if arm:
        loads = count(r"(?:ldr|ldur)\s+[qds]\d|ld1r?\s") + 2 * count(r"ldp\s+[qds]\d")
        return Loop(count(r"fmla\s"), loads, count(r"st\w+\s"), count(rf"\w+\s+[qds]\d.*\[(?:sp|{frame})\b"),
                    count(r"blr?\s"), body)
    vector = r"%[xyz]mm\d+"
    loads = count(rf"(?:vmov|vbroadcast|vmaskmov|vfmadd)\w+\s+[^,]*\(.*\), {vector}|vmaskmov\w+\s+\S*\(.*\), {vector}")
    stores = count(rf"vmov\w+\s+{vector}, \S*\(|vmaskmov\w+\s+{vector}, {vector}, |mov[lqbw]\s+[%$]\w+, \S*\(")
    return Loop(count(rf"vfmadd\w+p[sd]\s.*{vector}"), loads, stores, count(rf".*\(%(?:rsp|{frame})[,)].*{vector}|.*{vector}.*"
                                                                            rf"\(%(?:rsp|{frame})[,)]"),
                count(r"call\w*\s"), body)


def main(arguments: list[str]) -> None:
    import llvmlite.binding as llvm
    from numba.core.codegen import JITCPUCodegen
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    target, *rest = arguments
    with patch.object(JITCPUCodegen, "magic_tuple", lambda self: TARGETS[target]):
        import microcnn.kernels as kernels
    changes = dict(pair.split("=") for pair in rest if "=" in pair)
    for name, value in changes.items():
        for module in vars(kernels).values():
            if hasattr(module, name):
                setattr(module, name, int(value))
    result = {}
    for entry in [name for name in rest if "=" not in name]:
        text = assembly(unoptimised(entry), target)
        loops = [counted(body, frame, TARGETS[target][0] == ARM) for body, frame in loops_of(text)]
        result[entry] = [asdict(loop) for loop in loops if loop.fma >= 4]
    print(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1:])
