"""The rows of the optimizers."""
from __future__ import annotations

from typing import Any

from ..errors import CompileError
from ..optim import SGD, Adam, AdamW, Optimizer


def update_row(optimizer: Optimizer) -> tuple[str, tuple[str, ...], tuple[str, ...], dict[str, Any]]:
    """(kernel, fields that hold state, fields for state that is not needed, the other fields).

    Raises CompileError for an optimizer that has no kernel.
    """
    if isinstance(optimizer, SGD):
        used = ("velocity",) if optimizer.momentum else ()
        return "update.sgd", used, () if used else ("velocity",), {
            "momentum": optimizer.momentum, "dampening": optimizer.dampening, "weight_decay": optimizer.weight_decay,
            "nesterov": int(optimizer.nesterov), "maximize": 0}
    if isinstance(optimizer, Adam):
        return "update.adam", ("first", "second"), (), {
            "beta1": optimizer.betas[0], "beta2": optimizer.betas[1], "eps": optimizer.eps,
            "weight_decay": optimizer.weight_decay, "decoupled": int(isinstance(optimizer, AdamW))}
    raise CompileError(f"optimizer {optimizer!r} has no kernel; use mc.SGD, mc.Adam or mc.AdamW")
