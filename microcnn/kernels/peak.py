"""Multiply-adds in registers and nothing else: what a machine's other figures are measured against."""
from .compiler import helper
from .entry import entry, fields_of, view
from .simd import lanes
from .vector import vector_fma, vector_load, vector_store

# As many chains as two units with a latency of six keep busy; with the two factors they fit into sixteen registers.
CHAINS = 12


@helper
def _run(data, count):
    step = lanes(data)
    factor, addend = vector_load(data, 0), vector_load(data, step)
    a, b, c = vector_load(data, 2 * step), vector_load(data, 3 * step), vector_load(data, 4 * step)
    d, e, f = vector_load(data, 5 * step), vector_load(data, 6 * step), vector_load(data, 7 * step)
    g, h, i = vector_load(data, 8 * step), vector_load(data, 9 * step), vector_load(data, 10 * step)
    j, k, m = vector_load(data, 11 * step), vector_load(data, 12 * step), vector_load(data, 13 * step)
    for _ in range(count):
        a, b, c = vector_fma(a, factor, addend), vector_fma(b, factor, addend), vector_fma(c, factor, addend)
        d, e, f = vector_fma(d, factor, addend), vector_fma(e, factor, addend), vector_fma(f, factor, addend)
        g, h, i = vector_fma(g, factor, addend), vector_fma(h, factor, addend), vector_fma(i, factor, addend)
        j, k, m = vector_fma(j, factor, addend), vector_fma(k, factor, addend), vector_fma(m, factor, addend)
    vector_store(a, data, 2 * step)
    vector_store(b, data, 3 * step)
    vector_store(c, data, 4 * step)
    vector_store(d, data, 5 * step)
    vector_store(e, data, 6 * step)
    vector_store(f, data, 7 * step)
    vector_store(g, data, 8 * step)
    vector_store(h, data, 9 * step)
    vector_store(i, data, 10 * step)
    vector_store(j, data, 11 * step)
    vector_store(k, data, 12 * step)
    vector_store(m, data, 13 * step)


@entry("x= count")
def multiply_add(arena, row, batch):
    # count steps, each one multiply-add on twelve independent vectors; x holds the two factors, then the twelve
    r = fields_of(row)
    _run(view(arena, r.x, (2 + CHAINS) * lanes(view(arena, 0, 1))), r.count)
