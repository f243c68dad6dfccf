"""Batch normalisation on fixed statistics, folded into the weights of the convolution before it."""
from .batchnorm import deviation
from .entry import entry, fields_of, number, view
from .simd import lanes
from .vector import vector_div, vector_fma, vector_mul, vector_of, vector_sqrt, vector_sub, vector_take, vector_write


@entry("weight< bias< scale< bn_bias< mean< var< folded_weight> folded_bias> rows columns K KG CG eps")
def fold(arena, row, batch):
    """A convolution's weight and bias (K,), which may be absent, with the batch norm behind it folded in.

    weight (rows, columns): with CG = 0 the columns are the K output channels; else those of the input, CG to a group, and
    the rows the KG output channels of a group under each tap, as a transposed convolution's lie.
    """
    row = fields_of(row)
    rows, columns, K = row.rows, row.columns, row.K
    weight, folded_weight = view(arena, row.weight, rows * columns), view(arena, row.folded_weight, rows * columns)
    scale, variance, mean = view(arena, row.scale, K), view(arena, row.var, K), view(arena, row.mean, K)
    bias, bn_bias, folded_bias = view(arena, row.bias, K), view(arena, row.bn_bias, K), view(arena, row.folded_bias, K)
    for k in range(0, K, lanes(weight)):
        count = K - k
        factor = vector_div(vector_take(scale, k, count), deviation(variance, k, K, number(row.eps)))
        shift = vector_of(weight, weight.dtype.type(0))
        if row.bias >= 0:
            shift = vector_take(bias, k, count)
        shift = vector_fma(vector_sub(shift, vector_take(mean, k, count)), factor,
                           vector_take(bn_bias, k, count))
        vector_write(shift, folded_bias, k, count)
        if row.CG == 0:
            for at in range(k, rows * K, K):
                vector_write(vector_mul(vector_take(weight, at, count), factor), folded_weight, at, count)
    if row.CG > 0:
        for line in range(rows):
            kg = line % row.KG
            for g in range(columns // row.CG):
                k, at = g * row.KG + kg, line * columns + g * row.CG
                spread = vector_sqrt(vector_of(weight, variance[k] + variance.dtype.type(number(row.eps))))
                factor = vector_div(vector_of(weight, scale[k]), spread)
                for c in range(0, row.CG, lanes(weight)):
                    vector_write(vector_mul(vector_take(weight, at + c, row.CG - c), factor), folded_weight, at + c,
                                 row.CG - c)
