"""Forward, loss, backward and update as one schedule of kernel calls, with the lifetime of every buffer."""
from __future__ import annotations

from dataclasses import dataclass

from . import layers
from .doors import rows_in, rows_out
from .draft import Draft
from .fusion import fuse
from .graph import Node
from .lifetimes import set_lifetimes
from .masks import Masked, kept_beside_bits, mask_clamps
from .memory import Buffer, most_alive
from .pairs import pair_rows
from .pairs_batchnorm import normalise_on_the_way
from .pairs_expansion import join_expansions
from .parts import Policy, Row
from .recompute import lighten

# What is quicker may take so much more memory than what is not, unless memory is what counts.
SLACK = 1 / 1024


@dataclass
class Settled:
    """Rows and buffers with lifetimes. again: what backward makes again; most: the bytes that are alive at one time; lives: the
    lifetimes, which another try may change."""

    rows: list[Row]
    buffers: list[Buffer]
    again: list[str]
    masked: Masked
    most: int
    lives: list[tuple[Buffer, int | None, int | None]]


class Schedule(Draft):
    """A whole program in the making: layers draft it step by step."""

    def run_forward(self) -> None:
        """The doors in, and every step."""
        rows_in(self)
        self.steps.append((None, len(self.rows)))
        self.phase = "forward"
        if self.live:
            for node in self.graph.nodes:
                for role in node.weights if node.outputs[0] not in self.skipped else ():
                    if self.trains(node, role):
                        name = node.weights[role].name
                        self.pending[name] = self.pending.get(name, 0) + 1
        for step in fuse(self.graph, self.shapes, self._may_fold, self.wanted):
            if step.output in self.skipped:
                continue
            self.node = step.node
            self.fused.update(dict.fromkeys(step.fused, step.node.name))
            layers.LAYERS[step.node.op].forward(self, step)
            self.ran.update((step.node.name, *step.fused))
            self.steps.append((step, len(self.rows)))
        self.node = None

    def skip_to(self, wanted: set[str]) -> None:
        """Leave out what nothing wanted depends on: a softmax that is part of the loss, say."""
        makers = {name: node for node in self.graph.nodes for name in node.outputs}
        needed, frontier = set(wanted), list(wanted)
        while frontier:
            node = makers.get(frontier.pop())
            for name in node.inputs if node else ():
                if name not in needed:
                    needed.add(name)
                    frontier.append(name)
        self.skipped = {name for name in makers if name not in needed}
        self.wanted = wanted
        for name in list(self.readers):
            self.readers[name] = sum(node.outputs[0] not in self.skipped for node in self.consumers[name])
        self.ran = {node.name for node in self.graph.nodes if node.outputs[0] in self.skipped}

    def _may_fold(self, node: Node, bn: Node) -> bool:
        """Batch norm goes into the convolution's weights where it runs on fixed statistics and no gradient passes."""
        if self.lean:
            return False            # folded weights are a second copy of them
        return not self.live or (self.bn != "batch" and bn.outputs[0] not in self.needs)

    def run_outputs(self) -> None:
        """The doors out: each output into the caller's array."""
        rows_out(self)

    def run_losses(self, gradient: bool) -> None:
        """The losses, and with gradient what they give back to their outputs."""
        from .layers.loss import loss_row
        self.phase, self.node = "loss", None
        self.row("loss.reset")
        for name, (loss, tensor) in self.training.losses.items():
            loss_row(self, name, tensor, loss, gradient)
        self.row("loss.check_finite")
        self.phase = "forward"
        for node, function in self.accepted:
            self.node = node
            function()
        self.node = None

    def run_backward(self) -> None:
        """The tape in reverse."""
        self.phase = "backward"
        for node, function in reversed(self.tape):
            self.node = node
            function()
        if self.accumulates:
            self._open_and_close()
        if self.mode == "train":
            self.updates.finish()
        self.node = None

    def _open_and_close(self) -> None:
        """Gradients that begin with zero, and their updates, which come behind all runs."""
        nodes = {node.name: node for node in self.graph.nodes}
        body, self.rows = self.rows, []
        for buffer in self.weight_gradients.values():
            self.node = nodes.get(buffer.layer)
            self.row("layout.zero", y=buffer, size=buffer.bytes // self.itemsize, per_sample=0)
        self.opening = len(self.rows)
        self.rows += body
        for name, buffer in self.weight_gradients.items():
            self.node = nodes.get(buffer.layer)
            self.updates.ready(self.store.parameters[name], buffer)
        self.updates.finish()
        self.closing = len(self.rows) - self.opening - len(body)

    def finish(self, policy: Policy | None = None) -> None:
        """What the rows, which are now complete, can leave out, and lifetimes. policy: what backward may make again."""
        from .entries import ENTRIES
        for row in self.rows:
            if set(row.fields) != set(ENTRIES[row.kernel].fields):
                raise AssertionError(f"{row.kernel}: fields {sorted(set(row.fields) ^ set(ENTRIES[row.kernel].fields))}")
        if self.mode == "manual":           # whose rows are counted: forward is one program, backward another
            self._take(self._settled(Masked(self.rows), self.buffers, policy))
            return
        paired = pair_rows(self.rows, self.batch, self.lanes, self.itemsize, self.held_chunks)
        self.steps = [(step, end - sum(number < end for number in paired.gone)) for step, end in self.steps]
        self.fused.update(paired.fused)
        rows, buffers = paired.rows, [*self.buffers, *paired.made]
        found = self._lightest(rows, buffers, policy)
        for better in (normalise_on_the_way, join_expansions):
            new = better(rows, self.batch, self.itemsize, self.held_chunks)
            if new.made:
                rows, buffers = new.rows, [*buffers, *new.made]
                other = self._lightest(rows, buffers, policy)
                room = SLACK * found.most if policy is not None and policy.limit is None and policy.tier == 0 else 0
                found = other if other.most <= found.most + room else found
        self._take(found)

    def _lightest(self, rows: list[Row], buffers: list[Buffer], policy: Policy | None) -> Settled:
        """With bits for clamps, or without them where a clamp's output that nothing else wants would have to be kept because
        something else is made of it again.
        """
        found = self._settled(mask_clamps(rows, buffers, self.batch), buffers, policy)
        if policy is None or not kept_beside_bits(found.rows):
            return found
        plain = self._settled(Masked(rows), buffers, policy)
        return plain if plain.most < found.most else found

    def _settled(self, masked: Masked, buffers: list[Buffer], policy: Policy | None) -> Settled:
        """Lifetimes, and what backward makes again."""
        buffers = [*buffers, *masked.made]
        if policy is None:
            rows, alive, again = masked.rows, set_lifetimes(masked.rows, self.prepared, buffers), list[str]()
        else:
            rows, alive, again = lighten(masked.rows, self.prepared, buffers, policy)
        return Settled(rows, alive, again, masked, most_alive(alive)[0], [(one, one.first, one.last) for one in alive])

    def _take(self, found: Settled) -> None:
        """The rows and buffers that were found, with the lifetimes that they had then."""
        self.rows, self.buffers, self.again = found.rows, found.buffers, found.again
        for buffer, first, last in found.lives:
            buffer.first, buffer.last = first, last
        self.steps = [(step, found.masked.moved(end)) for step, end in self.steps]
