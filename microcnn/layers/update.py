"""The rows of the optimizers: at once when a gradient is complete, or, with clipping, when all are."""
from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import CompileError
from ..optim import SGD, Adam, AdamW, Optimizer
from .columns import columns_row

if TYPE_CHECKING:
    from ..draft import Draft
    from ..graph import Node
    from ..memory import Buffer
    from ..parts import Parameter

# The chunks' sums of kernels/clip.py, 64 of 8 bytes.
SCRATCH_BYTES = 512


def update_row(optimizer: Optimizer) -> tuple[str, tuple[str, ...], tuple[str, ...], dict[str, Any]]:
    """(kernel, fields that hold state, fields for state that is not needed, the other fields).

    Raises CompileError for an optimizer that has no kernel.
    """
    if isinstance(optimizer, SGD):
        used = ("velocity",) if optimizer.momentum else ()
        return "update.sgd", used, () if used else ("velocity",), {
            "momentum": optimizer.momentum, "dampening": optimizer.dampening, "weight_decay": optimizer.weight_decay,
            "nesterov": int(optimizer.nesterov)}
    if isinstance(optimizer, Adam):
        return "update.adam", ("first", "second"), (), {
            "beta1": optimizer.betas[0], "beta2": optimizer.betas[1], "eps": optimizer.eps,
            "weight_decay": optimizer.weight_decay, "decoupled": int(isinstance(optimizer, AdamW))}
    raise CompileError(f"optimizer {optimizer!r} has no kernel; use mc.SGD, mc.Adam or mc.AdamW")


class Updates:
    """The updates of one schedule. With clip_norm every gradient lives until the last one has been measured."""

    def __init__(self, schedule: Draft):
        self.schedule = schedule
        self.waiting: list[tuple[Node | None, Parameter, Buffer]] = []
        self.sums: Buffer | None = None

    def ready(self, parameter: Parameter, gradient: Buffer) -> None:
        """A gradient is complete: update its weight, or with clipping measure it."""
        s = self.schedule
        if s.training.optimizer.clip_norm is None:
            self._update(parameter, gradient, None)
            return
        before, s.phase = s.phase, "update"
        if self.sums is None:
            self.sums = s.scratch(8 * len(s.training.factors), "squares")
        s.row("clip.squares", gradient=gradient, sums=self.sums, scratch=s.scratch(SCRATCH_BYTES),
              size=parameter.part.numbers, index=len(self.waiting))
        self.waiting.append((s.node, parameter, gradient))
        s.phase = before

    def finish(self) -> None:
        """No more gradients come: the factor from the norm of them all, and the updates that waited for it."""
        if not self.waiting:
            return
        s = self.schedule
        before, node = s.phase, s.node
        s.phase = "update"
        factor = s.scratch(8, "clip")
        s.row("clip.factor", sums=self.sums, factor=factor, count=len(self.waiting), limit=s.training.optimizer.clip_norm)
        for s.node, parameter, gradient in self.waiting:
            self._update(parameter, gradient, factor)
        s.phase, s.node = before, node
        self.waiting = []

    def _update(self, parameter: Parameter, gradient: Buffer, clip: Buffer | None) -> None:
        """The optimizer's row for one weight."""
        s = self.schedule
        before, s.phase = s.phase, "update"
        kernel, states, absent, fields = update_row(s.training.optimizer)
        buffers, part, weight = s.store.state(parameter, len(states)), parameter.part, parameter.buffer
        if part.rows > 1:       # what trains does not lie together: it is taken out, updated and put back
            weight = s.scratch(part.numbers * s.itemsize, "columns")
            columns_row(s, parameter.buffer, weight, part.rows, part.columns, part.length, part.columns)
        s.row(kernel, weight=weight, gradient=gradient, clip=clip, **dict(zip(states, buffers, strict=True)),
              **dict.fromkeys(absent), **fields, size=part.numbers, factor=float(s.training.factors[parameter.name]))
        if part.rows > 1:
            columns_row(s, weight, parameter.buffer, part.rows, part.columns, part.columns, part.length)
        s.phase = before
