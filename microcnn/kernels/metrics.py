"""What evaluation counts beside the loss: predictions among the k best, and which class was taken for which."""
import numpy as np

from .compiler import helper
from .entry import entry, fields_of, outside, slot, view
from .loss import _add_to_slot, _first_at, _maximum


@helper
def _rank(x, at, C, inner, label):
    """How many classes of a group come before one: larger numbers, and equal ones with a lower index. C with a NaN."""
    value = x[at + label * inner]
    before = 0
    for c in range(C):
        other = x[at + c * inner]
        if other != other:
            return C
        before += 1 if other > value or (other == value and c < label) else 0
    return before


@entry("x< target_slot k_slot found_slot confusion_slot rows C inner ignore_index probabilities")
def classes(arena, row, batch):
    # k_slot holds k, 0 when nobody asks; confusion_slot the address of a (C, C) int64 matrix of the caller's, true class
    # by predicted class, or 0. Labels lie in [0, C) or are ignore_index: the caller has checked them.
    row = fields_of(row)
    k, address = slot(arena, row.k_slot), slot(arena, row.confusion_slot)
    if k > 0 or address != 0:
        groups = row.rows * batch
        x = view(arena, row.x, groups * row.C)
        target = slot(arena, row.target_slot)
        labels, goal = outside(target, groups, np.int64), outside(target, groups * row.C, x.dtype)
        confusion = outside(address, row.C * row.C if address else 0, np.int64)
        found = 0.0
        for group in range(groups):
            at = group // row.inner * row.inner * row.C + group % row.inner
            label = labels[group] if not row.probabilities else \
                _first_at(goal, at, row.C, row.inner, _maximum(goal, at, row.C, row.inner))
            if row.probabilities or label != row.ignore_index:
                if k > 0 and _rank(x, at, row.C, row.inner, label) < k:
                    found += 1.0
                if address != 0:
                    predicted = _first_at(x, at, row.C, row.inner, _maximum(x, at, row.C, row.inner))
                    # where every number is NaN nothing is the largest
                    confusion[label * row.C + max(predicted, 0)] += 1
        _add_to_slot(arena, row.found_slot, found)
