"""What the processor gets: the inner loops of the tiles hold multiply-adds and the loads that feed them, and nothing else."""
from __future__ import annotations

import functools

import pytest

from tests.kernels.machine_code import Loop, inner_loops

ENTRIES = ("conv2d.forward", "linear.forward", "conv2d_weight.backward", "linear_weight.backward")
loops_for = functools.cache(inner_loops)

# Multiply-adds and loads of one turn of each entry's largest tile. AVX2: 6 x 2 with a broadcast for each row. NEON: 8 x 2;
# where the inputs of a row are neighbours, four steps at once, by element.
LARGEST = {
    "haswell": {"conv2d.forward": (12, 8), "linear.forward": (12, 8), "conv2d_weight.backward": (12, 8),
                "linear_weight.backward": (12, 8)},
    "cortex-a72": {"conv2d.forward": (64, 16), "linear.forward": (64, 16), "conv2d_weight.backward": (16, 10),
                   "linear_weight.backward": (16, 10)},
}


def fewest_loads(loops: list[Loop]) -> Loop:
    """The loop that loads least for a multiply-add."""
    return min(loops, key=lambda loop: loop.loads / loop.fma)


@pytest.mark.parametrize("target", LARGEST)
@pytest.mark.parametrize("entry", ENTRIES)
def test_tiles_stay_in_registers(target, entry):
    loops = loops_for(target, *ENTRIES)[entry]
    assert len(loops) >= 4
    for loop in loops:
        listing = "\n".join(loop.body)
        assert loop.spills == 0, f"{loop.spills} registers go to the stack:\n{listing}"
        assert loop.stores == 0, f"{loop.stores} stores:\n{listing}"
        assert loop.calls == 0, f"{loop.calls} calls:\n{listing}"
    largest = fewest_loads(loops)
    fma, loads = LARGEST[target][entry]
    assert largest.fma % fma == 0 and largest.loads * fma <= largest.fma * loads, "\n".join(largest.body)


def test_half_a_register_is_one_of_half_the_size():
    """Columns that need a register and a half: as many multiply-adds of wide registers as of the next smaller ones."""
    loops = [loop for loop in loops_for("skylake-avx512", "linear.forward")["linear.forward"]
             if 0 < sum("%ymm" in line for line in loop.body if line.startswith("vfmadd")) < loop.fma]
    assert loops
    for loop in loops:
        wide = sum("%zmm" in line for line in loop.body if line.startswith("vfmadd"))
        assert wide % (loop.fma - wide) == 0 and loop.spills == loop.calls == 0, "\n".join(loop.body)


@pytest.mark.parametrize("target", [*LARGEST, "skylake-avx512"])
def test_a_sliding_window_calls_nothing(target):
    """Three columns of three pixels, nine multiply-adds, one store; weights that find no register are operands from memory."""
    loops = [loop for loop in loops_for(target, "depthwise3x3.forward")["depthwise3x3.forward"] if loop.fma == 9]
    assert loops
    for loop in loops:
        assert loop.calls == 0, "\n".join(loop.body)
    assert min(loop.loads for loop in loops) <= 3 + 9 and min(loop.stores for loop in loops) == 1


def test_a_tile_that_is_too_large_is_seen():
    """8 x 2 needs 16 registers for its sums alone, and AVX2 has no more."""
    assert any(loop.spills > 0 for loop in inner_loops("haswell", "linear_weight.backward", MR2=8)["linear_weight.backward"])
