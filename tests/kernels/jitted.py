"""Small compiled functions for the tests of intrinsics."""
import numba

from microcnn.kernels import rows, tile, tile_fma

COMPILED = {}


def compiled(name, make):
    """make()'s jitted function, made once."""
    if name not in COMPILED:
        COMPILED[name] = make()
    return COMPILED[name]


def tile_functions(mr, nv):
    """Products through tiles of mr rows and nv vectors: of whole vectors, with all that may be fused, and all steps at once."""
    fill, zeros, strided, table = tile.tile_fill, tile.tile_zeros, rows.rows_strided, rows.rows_table
    fma, tail, add, clamp, store = tile_fma.tile_fma, tile_fma.tile_fma_tail, tile.tile_add, tile.tile_clamp, tile.tile_store
    steps, steps_tail = tile_fma.tile_fma_steps, tile_fma.tile_fma_steps_tail

    @numba.njit
    def product(a, a_stride, b, b_stride, depth, c, c_stride, row_count, count):
        """c = a b, whole vectors of b."""
        rows = strided(0, a_stride, row_count, mr)
        tile = zeros(a, mr, nv)
        for k in range(depth):
            tile = fma(tile, a, rows, k, b, k * b_stride)
        store(tile, c, strided(0, c_stride, row_count, mr), 0, row_count, count)

    @numba.njit
    def fused(a, a_rows, b, b_stride, depth, bias, low, high, c, c_stride, row_count, count):
        """c = clamp(bias + a b + c), rows of a by table, only `count` columns read."""
        rows = table(a_rows, 1, row_count, 0, mr)
        c_rows = strided(0, c_stride, row_count, mr)
        tile = fill(zeros(a, mr, nv), bias, 0, count)
        for k in range(depth):
            tile = tail(tile, a, rows, k, b, k * b_stride, count)
        tile = clamp(add(tile, c, c_rows, 0, row_count, count), low, high)
        store(tile, c, c_rows, 0, row_count, count)

    @numba.njit
    def stepped(a, a_stride, b, b_stride, depth, c, c_stride, row_count, count, whole):
        """c = a b, all steps at once; b is read up to `count` columns, or whole vectors."""
        rows = strided(0, a_stride, row_count, mr)
        if whole:
            tile = steps(zeros(a, mr, nv), a, rows, 0, b, 0, b_stride, depth)
        else:
            tile = steps_tail(zeros(a, mr, nv), a, rows, 0, b, 0, b_stride, depth, count)
        store(tile, c, strided(0, c_stride, row_count, mr), 0, row_count, count)
    return product, fused, stepped
