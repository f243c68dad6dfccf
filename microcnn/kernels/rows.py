"""Rows: the element offsets at which a tile's rows begin, as one numba value."""
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, models, register_model

from .simd import I64, pointer_to


class RowsType(types.Type):
    """The element offsets at which a tile's MR rows begin."""

    def __init__(self, mr):
        self.mr = mr
        super().__init__(name=f"Rows({mr})")


@register_model(RowsType)
class RowsModel(models.PrimitiveModel):
    def __init__(self, dmm, rows):
        super().__init__(dmm, rows, ir.ArrayType(I64, rows.mr))


def row_starts(context, builder, array_type, array, rows, offset):
    """A function that makes the pointer to array[rows[i] + offset]."""
    data = context.make_array(array_type)(context, builder, array).data
    return lambda i: builder.gep(builder.gep(data, [builder.extract_value(rows, i)]), [offset])


@intrinsic(prefer_literal=True)
def rows_strided(typing_context, start, stride, count, mr):
    """Rows at start + min(i, count - 1) * stride: those past count repeat the last, so that reading them is safe."""
    if not isinstance(mr, types.IntegerLiteral):
        return None
    rows = RowsType(mr.literal_value)
    signature = rows(types.intp, types.intp, types.intp, mr)

    def codegen(context, builder, sig, args):
        start, stride, count, _ = args
        last = builder.sub(count, I64(1))
        value = ir.Constant(context.get_value_type(rows), ir.Undefined)
        for i in range(rows.mr):
            step = builder.select(builder.icmp_signed("<", I64(i), last), I64(i), last)
            value = builder.insert_value(value, builder.add(start, builder.mul(step, stride)), i)
        return value
    return signature, codegen


@intrinsic(prefer_literal=True)
def rows_grid(typing_context, start, stride, count, inner_stride, inner_count, inner, mr):
    """Row i at start + min(i // inner, count - 1) * stride + min(i % inner, inner_count - 1) * inner_stride."""
    if not (isinstance(mr, types.IntegerLiteral) and isinstance(inner, types.IntegerLiteral)):
        return None
    rows, width = RowsType(mr.literal_value), inner.literal_value
    signature = rows(types.intp, types.intp, types.intp, types.intp, types.intp, inner, mr)

    def codegen(context, builder, sig, args):
        start, stride, count, inner_stride, inner_count, _, _ = args

        def step(i, count, stride):
            last = builder.sub(count, I64(1))
            return builder.mul(builder.select(builder.icmp_signed("<", I64(i), last), I64(i), last), stride)
        value = ir.Constant(context.get_value_type(rows), ir.Undefined)
        for i in range(rows.mr):
            row = builder.add(start, step(i // width, count, stride))
            value = builder.insert_value(value, builder.add(row, step(i % width, inner_count, inner_stride)), i)
        return value
    return signature, codegen


@intrinsic(prefer_literal=True)
def rows_table(typing_context, table, at, count, base, mr):
    """Rows at base + table[at + min(i, count - 1)]."""
    if not (isinstance(mr, types.IntegerLiteral) and isinstance(table, types.Array) and table.dtype == types.int64):
        return None
    rows = RowsType(mr.literal_value)
    signature = rows(table, types.intp, types.intp, types.intp, mr)

    def codegen(context, builder, sig, args):
        table, at, count, base, _ = args
        pointer = pointer_to(context, builder, sig.args[0], table, at)
        last = builder.sub(count, I64(1))
        value = ir.Constant(context.get_value_type(rows), ir.Undefined)
        for i in range(rows.mr):
            step = builder.select(builder.icmp_signed("<", I64(i), last), I64(i), last)
            offset = builder.load(builder.gep(pointer, [step]))
            value = builder.insert_value(value, builder.add(base, offset), i)
        return value
    return signature, codegen
