"""The rows of the losses: what they read, and the gradient that they hand to backward."""
from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..errors import CompileError
from ..losses import CrossEntropyLoss, Loss, MSELoss

if TYPE_CHECKING:
    from ..plan import Schedule

# 48 partial sums of 8 bytes.
SCRATCH_BYTES = 512


def loss_row(s: Schedule, output: str, tensor: str, loss: Loss, gradient: bool) -> None:
    """The row of one output's loss; with `gradient` it also writes what backward begins with.

    tensor: the output, or what its softmax reads.
    Raises   CompileError: class weights that do not match the classes, a loss that has no kernel
    """
    value = s.value(tensor)
    slots = {"target_slot": s.slots[f"target:{output}"], "weight_slot": s.slots["sample_weight"]}
    if isinstance(loss, CrossEntropyLoss):
        value = s.channels_last(value) if len(value.layout.shape) > 1 else s.plain(value)
        C = value.layout.shape[0]
        if loss.weight is not None and len(loss.weight) != C:
            raise CompileError(f'CrossEntropyLoss: weight holds {len(loss.weight)} numbers; output "{output}" has {C} classes')
        rows = value.numbers // C
        class_weight = None
        if loss.weight is not None:
            dtype = np.float32 if s.itemsize == 4 else np.float64
            class_weight = s.store.constant(f"{output}.class_weight", np.asarray(loss.weight, dtype))
        fields = {"class_weight": class_weight, "rows": rows, "C": C, "inner": 1, "probabilities": 0,
                  "ignore_index": loss.ignore_index, "label_smoothing": float(loss.label_smoothing),
                  "correct_slot": -1 if gradient else s.slots["correct"]}
        kernel = "loss.cross_entropy"
        s.row("loss.check_labels", target_slot=slots["target_slot"], rows=rows, C=C, ignore_index=loss.ignore_index,
              probabilities=0)
    elif isinstance(loss, MSELoss):
        value = s.plain(value)
        kernel, fields = "loss.mse", {"size": value.numbers}
    else:
        raise CompileError(f'loss {loss!r} of output "{output}" has no kernel; use mc.CrossEntropyLoss or mc.MSELoss')
    live = gradient and s.needs_gradient(value.name)
    target = s.new_gradient(value.name) if live else None
    s.row(kernel, x=value.buffer, dx=target.buffer if target else value.buffer,      # without a gradient dx is not written
          scratch=s.scratch(SCRATCH_BYTES), gradient=int(live), **slots, **fields)
    if target:
        s.give(value.name, target)       # the losses of two outputs may read one tensor: their gradients add up
        s.release(target)


