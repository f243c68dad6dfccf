"""Vector intrinsics against numpy, on this CPU's instruction set and on the ones it can pretend to have."""
import ctypes
import json
import mmap
import os
import platform
import subprocess
import sys
from pathlib import Path

import llvmlite.binding
import numba
import numpy as np
import pytest

from microcnn.kernels import simd, vector
from microcnn.kernels.uniform import vector_uniform
from tests.kernels.jitted import compiled, tile_functions

ROOT = Path(__file__).resolve().parents[2]
DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64])
def lanewise(name, *operands):
    """The intrinsic `name` on one vector of each operand."""
    operation = getattr(vector, name)
    load, store = vector.vector_load, vector.vector_store

    def make():
        if len(operands) == 1:
            @numba.njit
            def function(y, a):
                store(operation(load(a, 0)), y, 0)
        elif len(operands) == 2:
            @numba.njit
            def function(y, a, b):
                store(operation(load(a, 0), load(b, 0)), y, 0)
        elif len(operands) == 3:
            @numba.njit
            def function(y, a, b, c):
                store(operation(load(a, 0), load(b, 0), load(c, 0)), y, 0)
        else:
            @numba.njit
            def function(y, a, b, c, d):
                store(operation(load(a, 0), load(b, 0), load(c, 0), load(d, 0)), y, 0)
        return function
    y = np.full_like(operands[0], np.nan)
    compiled(name, make)(y, *operands)
    return y


def operands(dtype, count):
    """Vectors of random numbers with some equal and some NaN lanes."""
    a = np.random.default_rng(count).normal(size=(count, simd.lanes_of(np.dtype(dtype)))).astype(dtype)
    if count > 1:
        a[1, 1] = a[0, 1]
    return a


@DTYPES
def test_arithmetic(dtype):
    a, b, c = operands(dtype, 3)
    np.testing.assert_array_equal(lanewise("vector_add", a, b), a + b)
    np.testing.assert_array_equal(lanewise("vector_sub", a, b), a - b)
    np.testing.assert_array_equal(lanewise("vector_mul", a, b), a * b)
    np.testing.assert_array_equal(lanewise("vector_div", a, b), a / b)
    np.testing.assert_array_equal(lanewise("vector_sqrt", np.abs(a)), np.sqrt(np.abs(a)))
    np.testing.assert_allclose(lanewise("vector_fma", a, b, c), a * b + c, rtol=1e-5, atol=np.finfo(dtype).eps)
    np.testing.assert_allclose(lanewise("vector_log", np.abs(a)), np.log(np.abs(a)), rtol=4 * np.finfo(dtype).eps,
                               atol=np.finfo(dtype).eps)


@DTYPES
def test_choices(dtype):
    a, b, x, y = operands(dtype, 4)
    np.testing.assert_array_equal(lanewise("vector_max", a, b), np.maximum(a, b))
    np.testing.assert_array_equal(lanewise("vector_min", a, b), np.minimum(a, b))
    np.testing.assert_array_equal(lanewise("vector_where_greater", a, b, x, y), np.where(a > b, x, y))
    np.testing.assert_array_equal(lanewise("vector_where_equal", a, b, x, y), np.where(a == b, x, y))
    np.testing.assert_array_equal(lanewise("vector_where_beats", a, b, x, y), np.where(a > b, x, y))


@DTYPES
def test_choices_with_nan(dtype):
    """A NaN on the left stays through a clamp; comparisons with NaN are false, but NaN beats any number."""
    count = simd.lanes_of(np.dtype(dtype))
    nan, one, two = (np.full(count, value, dtype) for value in (np.nan, 1, 2))
    for name in ("vector_max", "vector_min"):
        assert np.isnan(lanewise(name, nan, one)).all()
        np.testing.assert_array_equal(lanewise(name, one, nan), one)
    for name in ("vector_where_greater", "vector_where_equal"):
        for a, b in [(nan, one), (one, nan), (nan, nan)]:
            np.testing.assert_array_equal(lanewise(name, a, b, one, two), two)
    for a, b, chosen in [(nan, one, one), (one, nan, two), (nan, nan, two)]:
        np.testing.assert_array_equal(lanewise("vector_where_beats", a, b, one, two), chosen)


@DTYPES
def test_across_lanes(dtype):
    lanes, load = simd.lanes, vector.vector_load
    total, highest, of = vector.vector_sum, vector.vector_highest, vector.vector_of
    first, store = vector.vector_where_first, vector.vector_store

    @numba.njit
    def function(a, y, count):
        x = load(a, 0)
        store(first(count, x, of(a, a[0])), y, 0)
        return lanes(a), total(x), highest(x)
    (a,) = operands(dtype, 1)
    y = np.empty_like(a)
    for count in range(-1, a.size + 2):
        width, added, top = function(a, y, count)
        np.testing.assert_array_equal(y, np.where(np.arange(a.size) < count, a, a[0]))
    assert width == a.size == simd.VECTOR_BYTES // a.itemsize
    assert added == pytest.approx(a.astype(np.float64).sum(), rel=1e-5) and top == a.max()


@numba.njit
def exponential(x, y):
    step = simd.lanes(x)
    i = 0
    while i + step <= x.size:
        vector.vector_store(vector.vector_exp(vector.vector_load(x, i)), y, i)
        i += step
    vector.vector_store_first(vector.vector_exp(vector.vector_load_first(x, i, x.size - i)), y, i, x.size - i)


@DTYPES
def test_exp_is_within_two_units_in_the_last_place(dtype):
    # from the smallest normal result to the largest; then near 0, where most arguments are
    low, high = (-87.33, 88.722) if dtype == np.float32 else (-708.39, 709.78)
    x = np.concatenate([np.linspace(low, high, 200_001), np.linspace(-1, 1, 100_001)]).astype(dtype)
    y = np.full_like(x, np.nan)
    exponential(x, y)
    wide = np.float64 if dtype == np.float32 else np.longdouble
    true = np.exp(x.astype(wide))
    assert (np.abs(y.astype(wide) - true) / np.spacing(true.astype(dtype)).astype(wide)).max() <= 2


@DTYPES
def test_exp_of_special_values(dtype):
    large = 88.73 if dtype == np.float32 else 709.79
    x = np.array([np.nan, np.inf, -np.inf, 0, -0.0, large, -large, 1e30, -1e30], dtype)
    y = np.zeros_like(x)
    exponential(x, y)
    np.testing.assert_array_equal(y, np.array([np.nan, np.inf, 0, 1, 1, np.inf, 0, np.inf, 0], dtype))


@DTYPES
def test_log_of_special_values(dtype):
    x = np.ones(simd.lanes_of(np.dtype(dtype)), dtype)
    for value, expected in [(0, -np.inf), (np.inf, np.inf), (np.nan, np.nan), (1, 0)]:
        x[0] = value
        np.testing.assert_array_equal(lanewise("vector_log", x), [expected] + [0] * (x.size - 1))


@DTYPES
def test_uniform_numbers_depend_on_key_and_index_only(dtype):
    uniform, store = vector_uniform, vector.vector_store

    @numba.njit
    def function(key, index, y):
        store(uniform(y, key, index), y, 0)

    def plain(key, index):
        every = (1 << 64) - 1
        state = (key + index * 0x9E3779B97F4A7C15) & every
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & every
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & every
        bits = 23 if dtype == np.float32 else 52
        return ((state ^ (state >> 31)) >> (64 - bits)) / 2**bits
    y = np.empty(simd.lanes_of(np.dtype(dtype)), dtype)
    for key, index in [(0, 0), (2**64 - 1, 7), (0x123456789ABCDEF, 2**33)]:
        function(np.uint64(key), index, y)
        np.testing.assert_array_equal(y, [plain(key, index + i) for i in range(y.size)])


@numba.njit
def copy_first(x, x_at, y, y_at, count):
    vector.vector_store_first(vector.vector_load_first(x, x_at, count), y, y_at, count)


@numba.njit
def load_first(x, x_at, y, count):
    vector.vector_store(vector.vector_load_first(x, x_at, count), y, 0)


@DTYPES
def test_masks_at_every_count(dtype):
    """Beyond the count, a load gives zeros and a store changes nothing."""
    width = simd.lanes_of(np.dtype(dtype))
    x = np.arange(1, 3 * width + 1).astype(dtype)
    for count in range(-1, width + 2):
        inside = min(max(count, 0), width)
        y = np.full(3 * width, -1, dtype)
        copy_first(x, 3, y, width, count)
        np.testing.assert_array_equal(y[width:width + inside], x[3:3 + inside])
        assert (np.delete(y, np.s_[width:width + inside]) == -1).all()
        loaded = np.full(width, np.nan, dtype)
        load_first(x, 3, loaded, count)
        np.testing.assert_array_equal(loaded, np.append(x[3:3 + inside], np.zeros(width - inside)))


def copy_at_the_end_of_memory():
    """Masked loads and stores right before and right behind a page that may not be touched: one that does, dies."""
    page = mmap.PAGESIZE
    memory = mmap.mmap(-1, 3 * page)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    libc = ctypes.CDLL(None, use_errno=True)
    for offset in (0, 2 * page):
        if libc.mprotect(ctypes.c_void_p(address + offset), ctypes.c_size_t(page), 0):
            raise OSError(ctypes.get_errno(), "mprotect")
    *_, stepped = tile_functions(3, 2)
    for dtype in (np.float32, np.float64):
        width = simd.lanes_of(np.dtype(dtype))
        middle = np.frombuffer(memory, dtype, page // np.dtype(dtype).itemsize, page)
        size = middle.size
        for count in range(width):
            copy_first(middle, size - count, middle, size - count, count)
            copy_first(middle, 0, middle, 0, count)
            columns = width + count
            if count > 0:
                stepped(middle[size - 15:], 5, middle[size - 5 * columns:], columns, 5, np.zeros(3 * columns, dtype),
                        columns, 3, columns, False)
    print("untouched")
    # the array and the mapping hold each other; nothing of this is to be torn down
    sys.stdout.flush()
    os._exit(0)


def child(*arguments, **environment):
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, env={**os.environ, **environment},
                          capture_output=True, text=True, timeout=600)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mprotect"), reason="no page protection here")
def test_masks_never_touch_the_next_page():
    result = child("-c", "from tests.kernels.test_simd import copy_at_the_end_of_memory as run; run()")
    assert (result.returncode, result.stdout) == (0, "untouched\n"), result.stderr[-2000:]


@DTYPES
def test_taking_up_to_a_register(dtype):
    """Beyond the count zeros; a count above a register's lanes is the whole register."""
    take, store = vector.vector_take, vector.vector_store

    @numba.njit
    def function(x, y, count):
        store(take(x, 2, count), y, 0)
    width = simd.lanes_of(np.dtype(dtype))
    x = np.arange(1, width + 5).astype(dtype)
    for count in (-1, 0, 1, width - 1, width, width + 3):
        inside = min(max(count, 0), width)
        y = np.full(width, np.nan, dtype)
        function(x, y, count)
        np.testing.assert_array_equal(y, np.append(x[2:2 + inside], np.zeros(width - inside)))


@DTYPES
@pytest.mark.parametrize("other", [np.uint8, np.uint16, np.int32, np.int64, np.float32, np.float64])
def test_reading_and_writing_other_dtypes(other, dtype):
    read, write = vector.vector_read, vector.vector_write

    @numba.njit
    def function(like, x, y, count):
        write(read(like, x, 2, count), y, 1, count)
    width = simd.lanes_of(np.dtype(dtype))
    x = np.arange(100, 100 + width + 4).astype(other)
    for count in (1, width - 1, width, width + 3):
        inside = min(count, width)
        y = np.full(width + 2, 77, other)
        function(np.empty(0, dtype), x, y, count)
        np.testing.assert_array_equal(y[1:1 + inside], x[2:2 + inside])
        assert y[0] == 77 and (y[1 + inside:] == 77).all()


CPUS = {
    "haswell": ("+avx2,+fma,+avx,+bmi2,+sse4.2", "avx2", 32),
    "nehalem": ("+sse4.2,+sse4.1,+ssse3,+sse3,+sse2,+sse", "sse", 16),
}
X86 = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="pretends to be another x86 CPU")


def pretend(cpu):
    return {"NUMBA_CPU_NAME": cpu, "NUMBA_CPU_FEATURES": CPUS[cpu][0]}


@X86
@pytest.mark.parametrize("cpu", CPUS)
def test_width_follows_the_cpu_that_numba_compiles_for(cpu):
    result = child("-c", "import json; from microcnn.kernels import simd; print(json.dumps([simd.INSTRUCTION_SET, "
                         "simd.VECTOR_BYTES, simd.lanes_of('float32'), simd.lanes_of('float64')]))", **pretend(cpu))
    assert result.returncode == 0, result.stderr[-2000:]
    _, instruction_set, width = CPUS[cpu]
    assert json.loads(result.stdout) == [instruction_set, width, width // 4, width // 8]


@X86
@pytest.mark.parametrize("cpu", CPUS)
def test_intrinsics_on_other_cpus(cpu):
    """All of the above, and the tiles, once more, compiled for a narrower CPU."""
    if os.environ.get("NUMBA_CPU_NAME"):
        pytest.skip("this is the other CPU")
    if cpu == "haswell" and not llvmlite.binding.get_host_cpu_features().get("avx2"):
        pytest.skip("this CPU cannot run AVX2 code")
    files = [str(Path(__file__).with_name(name).relative_to(ROOT)) for name in ("test_simd.py", "test_tile.py")]
    result = child("-m", "pytest", "-q", "-p", "no:cacheprovider", *files, **pretend(cpu))
    assert result.returncode == 0, result.stdout[-4000:]
