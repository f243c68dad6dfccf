"""SIMD registers as numba values: how wide they are, and what LLVM code the operations on them are made of.

The operations stand in vector.py (Vector: one register), tile.py (Tile: MR rows x NV vectors), tile_fma.py, tile_pool.py,
rows.py (Rows: where the rows of a tile begin) and transpose.py. All work on flat (1-D, contiguous) arrays and element
offsets, in float32 and float64.

The register width follows the CPU that numba compiles for, which NUMBA_CPU_NAME together with NUMBA_CPU_FEATURES can
override, not the host. Loads and stores are unaligned; a count limits the ones that would leave their buffer.
"""
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic


def _features():
    return frozenset(cpu_target.target_context.codegen().magic_tuple()[2].split(","))


def _instruction_set():
    triple, _, _ = cpu_target.target_context.codegen().magic_tuple()
    features = _features()
    if "+avx512f" in features:
        return "avx512"
    if "+avx2" in features:
        return "avx2"
    return "neon" if triple.startswith(("aarch64", "arm64")) else "sse"


CPU = cpu_target.target_context.codegen().magic_tuple()[1]
INSTRUCTION_SET = _instruction_set()
VECTOR_BYTES = {"avx512": 64, "avx2": 32, "neon": 16, "sse": 16}[INSTRUCTION_SET]
REGISTERS = {"avx512": 32, "avx2": 16, "neon": 32, "sse": 16}[INSTRUCTION_SET]

# Rows of the tiles four, two and one vectors wide: what fills the registers without spilling. 0: no such tile. 6 x 4 would
# just fit into NEON's 32, but LLVM spills three of them; 8 x 2 loads hardly more for a multiply-add. 8 x 1 leaves two units of
# a latency of four not a sum to spare, which 16 x 1 does.
MR4, MR2, MR1 = {"avx512": (6, 8, 16), "avx2": (0, 6, 8), "neon": (0, 8, 8), "sse": (0, 6, 8)}[INSTRUCTION_SET]
# Rows of the tiles that finish what these leave, where half of one is enough.
LESS4, LESS2, LESS1 = MR4 // 2, MR2 // 2, MR1 // 2
# Rows of the tiles one vector wide that are summed in four chains of additions each: what leaves room for the last, partly
# filled vector of each step, which NEON loads number by number.
MR_CHAINS = 4 if INSTRUCTION_SET == "avx512" else 2
# Pixels of the input that a tile one vector wide sees through three neighbouring taps.
SEEN1 = MR1 + 2
# Rows of the tiles that hold whole windows of 3, 5 and 7 rows, each one or two vectors wide, for as many channels as fit.
WINDOWS3, WINDOWS5, WINDOWS7 = (rows * ((REGISTERS - 2) // rows) for rows in (3, 5, 7))
WIDE_WINDOWS3, WIDE_WINDOWS5, WIDE_WINDOWS7 = (rows * ((REGISTERS - 2) // (2 * rows)) for rows in (3, 5, 7))
# Rows, which are channels, of the two tiles that hold neighbouring rows of pixels, two vectors wide: mostly, and where K
# divides by it.
MR_POOLED, MR_POOLED_EVEN = (6, 4) if REGISTERS == 32 else (3, 2)
# Where a load with a lane mask costs no more than a plain one, the plain variant of a loop is not needed.
MASKS_ARE_FREE = INSTRUCTION_SET == "avx512"
# Where half a register takes half the time, at best, and never longer: some processors work on wide ones in halves.
HALVES = INSTRUCTION_SET == "avx512"
# Where one lane of a register can be a factor, broadcasts are not needed.
MULTIPLIES_BY_ELEMENT = INSTRUCTION_SET == "neon"

I32, I64 = ir.IntType(32), ir.IntType(64)


def lanes_of(dtype):
    """How many numbers of a numba or numpy dtype one register holds."""
    return VECTOR_BYTES // (4 if str(dtype) == "float32" else 8)


def _scalar(dtype):
    return ir.FloatType() if dtype == types.float32 else ir.DoubleType()


def bits_of(dtype):
    return 32 if dtype == types.float32 else 64


def vector_type(dtype):
    return ir.VectorType(_scalar(dtype), lanes_of(dtype))


def is_real_array(kind):
    return isinstance(kind, types.Array) and kind.dtype in (types.float32, types.float64)


def pointer_to(context, builder, array_type, array, offset):
    return builder.gep(context.make_array(array_type)(context, builder, array).data, [offset])


def _lane_bits(vector):
    """The bits of one lane of an LLVM vector type, of any number type."""
    if isinstance(vector.element, ir.IntType):
        return vector.element.width
    return 32 if isinstance(vector.element, ir.FloatType) else 64


def llvm_name(vector):
    """What LLVM's functions call a vector type: v16f32, v8i64."""
    letter = "i" if isinstance(vector.element, ir.IntType) else "f"
    return f"v{vector.count}{letter}{_lane_bits(vector)}"


def load_vector(builder, pointer, vector):
    value = builder.load(builder.bitcast(pointer, vector.as_pointer()))
    value.align = _lane_bits(vector) // 8
    return value


def store_vector(builder, value, pointer):
    builder.store(value, builder.bitcast(pointer, value.type.as_pointer())).align = _lane_bits(value.type) // 8


def lane_mask(builder, count, lanes):
    """A lane mask whose first `count` lanes are set."""
    lane_numbers = ir.Constant(ir.VectorType(I32, lanes), list(range(lanes)))
    return builder.icmp_signed("<", lane_numbers, splat(builder, builder.trunc(count, I32), lanes))


def splat(builder, scalar, lanes):
    undefined = ir.Constant(ir.VectorType(scalar.type, lanes), ir.Undefined)
    zeros = ir.Constant(ir.VectorType(I32, lanes), [0] * lanes)
    return builder.shuffle_vector(builder.insert_element(undefined, scalar, I32(0)), undefined, zeros)


def masked_load(builder, pointer, vector, count):
    """The first `count` lanes from pointer on, then zeros."""
    mask = lane_mask(builder, count, vector.count)
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(vector, [vector.as_pointer(), I32, mask.type, vector]),
        f"llvm.masked.load.{llvm_name(vector)}.p0{llvm_name(vector)}")
    return builder.call(function, [builder.bitcast(pointer, vector.as_pointer()), I32(_lane_bits(vector) // 8), mask,
                                   ir.Constant(vector, None)])


def masked_store(builder, value, pointer, count):
    """The first `count` lanes of value, to pointer on."""
    vector = value.type
    mask = lane_mask(builder, count, vector.count)
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(ir.VoidType(), [vector, vector.as_pointer(), I32, mask.type]),
        f"llvm.masked.store.{llvm_name(vector)}.p0{llvm_name(vector)}")
    builder.call(function, [value, builder.bitcast(pointer, vector.as_pointer()), I32(_lane_bits(vector) // 8), mask])


def lanewise_call(builder, name, *vectors):
    """LLVM's function llvm.<name> on vectors of one type."""
    vector = vectors[0].type
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(vector, [vector] * len(vectors)), f"llvm.{name}.{llvm_name(vector)}")
    return builder.call(function, vectors)


def multiply_add(builder, a, b, c):
    # fmuladd fuses where the CPU can; llvm.fma would become calls to fmaf where it cannot
    return lanewise_call(builder, "fmuladd", a, b, c)


@intrinsic
def lanes(typing_context, like):
    """How many numbers of like's dtype one register holds: a constant."""
    if not is_real_array(like):
        return None

    def codegen(context, builder, signature, args):
        return I64(lanes_of(like.dtype))
    return types.intp(like), codegen
