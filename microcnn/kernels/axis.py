"""Walks over tensors (outer, C, inner), flat: by groups along the middle axis, or beside one value for each of its places.

A group is the C numbers along the middle. With inner = 1 its numbers are neighbours and vectors run along the group;
otherwise they lie `inner` apart, the groups are neighbours, and a vector holds one number of each of some. A unit is what
one vector takes: so many groups, or the one group that it runs along.
"""
from .compiler import helper
from .simd import lanes
from .vector import vector_of, vector_take

CHUNK = 4096


@helper
def job_shape(like, C, inner):
    """How many groups share a vector, how many such vectors lie side by side, how many of them one job takes."""
    width = lanes(like) if inner > 1 else 1
    return width, (inner + width - 1) // width, max(1, CHUNK // (C * width))


@helper
def job_count(like, groups, C, inner):
    """How many jobs take all groups."""
    _, blocks, per_job = job_shape(like, C, inner)
    return (groups // inner * blocks + per_job - 1) // per_job


@helper
def unit_at(unit, width, blocks, C, inner):
    """(place of a unit's first number, of its first group, how many groups lie side by side, 0 with inner = 1)."""
    first = unit % blocks * width
    return (unit // blocks * C * inner + first, unit // blocks * inner + first,
            min(width, inner - first) if inner > 1 else 0)


@helper
def run_at(i, end, C, inner):
    """(the end, the place of the first value) of the run of numbers at i.

    A run has `inner` numbers beside one of the C values, or with inner = 1 one number beside each value; it ends at `end`
    at the latest.
    """
    length = inner if inner > 1 else C
    row = i // length
    return min(end, (row + 1) * length), row % C if inner > 1 else i - row * length


@helper
def beside(values, first, along, count, inner, like):
    """One vector: the values beside `count` numbers of a run, `along` behind its start."""
    return vector_of(like, values[first]) if inner > 1 else vector_take(values, first + along, count)
