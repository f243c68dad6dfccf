"""The rows of the losses: what they read, and the gradient that they hand to backward."""
from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import CompileError
from ..losses import BCEWithLogitsLoss, CrossEntropyLoss, HuberLoss, L1Loss, Loss, MSELoss, SmoothL1Loss

if TYPE_CHECKING:
    from ..parts import Value
    from ..plan import Schedule

# 48 partial sums of 8 bytes.
SCRATCH_BYTES = 512
# What kernels/pointwise_loss.py calls its losses.
L1, SMOOTH_L1, HUBER, LOGITS = range(4)
# A smaller beta changes nothing that float32 holds.
LEAST_BETA = 1e-30


def _pointwise(s: Schedule, output: str, value: Value, loss: Loss) -> dict[str, Any] | None:
    """The fields of a loss of one number and its target at a time, None for another.

    Raises   CompileError: a pos_weight that does not fit the output
    """
    if isinstance(loss, L1Loss) or (isinstance(loss, SmoothL1Loss) and loss.beta < LEAST_BETA):
        return {"pos_weight": None, "kind": L1, "bound": 0.0}
    if isinstance(loss, SmoothL1Loss):
        return {"pos_weight": None, "kind": SMOOTH_L1, "bound": loss.beta}
    if isinstance(loss, HuberLoss):
        return {"pos_weight": None, "kind": HUBER, "bound": loss.delta}
    if not isinstance(loss, BCEWithLogitsLoss):
        return None
    weight = np.asarray(1.0 if loss.pos_weight is None else loss.pos_weight)
    if weight.size == 1:
        return {"pos_weight": None, "kind": LOGITS, "bound": float(weight.reshape(()))}
    shape = value.layout.shape
    try:
        whole = np.broadcast_to(weight, (1, *shape))
    except ValueError:
        raise CompileError(f'BCEWithLogitsLoss: pos_weight has shape {weight.shape}; output "{output}" has the shape '
                           f"{shape} for each sample, to which it must broadcast") from None
    dtype = np.float32 if s.itemsize == 4 else np.float64
    return {"pos_weight": s.store.constant(f"{output}.pos_weight", np.ascontiguousarray(whole, dtype)), "kind": LOGITS,
            "bound": 1.0}


def loss_row(s: Schedule, output: str, tensor: str, loss: Loss, gradient: bool) -> None:
    """The row of one output's loss; with `gradient` it also writes what backward begins with.

    tensor: the output, or what its softmax reads.
    Raises   CompileError: class weights that do not match the classes, a loss that has no kernel
    """
    value = s.value(tensor)
    slots = {"target_slot": s.slots[f"target:{output}"], "weight_slot": s.slots[f"weight:{output}"]}
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
        if not gradient:
            s.row("metrics.classes", x=value.buffer, target_slot=slots["target_slot"], k_slot=s.slots["top_k"],
                  found_slot=s.slots["in_top_k"], confusion_slot=s.slots["confusion"], rows=rows, C=C, inner=1,
                  ignore_index=loss.ignore_index, probabilities=0)
    elif isinstance(loss, MSELoss):
        value = s.plain(value)
        kernel, fields = "loss.mse", {"size": value.numbers}
    else:
        value = s.plain(value)
        found = _pointwise(s, output, value, loss)
        if found is None:
            raise CompileError(f'loss {loss!r} of output "{output}" has no kernel; use one of mc.CrossEntropyLoss, mc.MSELoss, '
                               "mc.L1Loss, mc.SmoothL1Loss, mc.HuberLoss, mc.BCEWithLogitsLoss")
        kernel, fields = "pointwise_loss.mean", {**found, "size": value.numbers}
    live = gradient and s.needs_gradient(value.name)
    target = s.new_gradient(value.name) if live else None
    s.row(kernel, x=value.buffer, dx=target.buffer if target else value.buffer,      # without a gradient dx is not written
          scratch=s.scratch(SCRATCH_BYTES), gradient=int(live), **slots, **fields)
    if target:
        s.give(value.name, target)       # the losses of two outputs may read one tensor: their gradients add up
        s.release(target)
