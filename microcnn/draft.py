"""What layers write into: make a tensor, add a row, say what happens in backward.

A Draft keeps the tape of what was run forward; backward plays it in reverse. A gradient is used as soon as it is complete, so
that its memory is free for the next one. What it is made of, and the store of weights, is in parts.py.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import layers
from .fusion import Step
from .graph import Graph, Node, WeightRef
from .layers.activation import CLAMP
from .layers.bands import CHUNKS, LEAN_CHUNKS
from .layers.update import Updates
from .layout import Layout, pad5, strides_between
from .memory import Buffer
from .parts import Field, Gradient, Part, Row, Store, Training, Value, Winners


class Draft:
    """One program in the making.

    shapes    of one sample, by tensor
    mode      "predict", "evaluate", "train" or "manual"
    lanes     how many numbers a vector register holds; itemsize: how many bytes a number takes
    slots     where in the control block each address stands: "input:NAME", "target:NAME", "sample_weight", ...
    winograd  whether convolutions may go by Winograd's algorithm
    accumulates   whether a training step makes its gradients in several runs: `opening` and `closing` count the first and last
              rows, which run once, before and after them
    """

    def __init__(self, graph: Graph, shapes: dict[str, tuple[int, ...]], store: Store, mode: str, batch: int, lanes: int,
                 itemsize: int, bn: str, training: Training, slots: dict[str, int], winograd: bool,
                 accumulates: bool = False):
        self.graph, self.shapes, self.store, self.mode, self.batch = graph, shapes, store, mode, batch
        self.lanes, self.itemsize, self.bn, self.training, self.slots = lanes, itemsize, bn, training, slots
        self.live = mode in ("train", "manual")            # keeps what backward needs
        self.winograd = winograd
        self.accumulates = accumulates and mode == "train"
        self.opening = self.closing = 0
        self.lean = training.recompute.lean
        # chunks of a parallel loop: each of them has scratch of its own, or none
        self.held_chunks, self.chunks = LEAN_CHUNKS if self.lean else CHUNKS, 4 * CHUNKS
        self.rows: list[Row] = []
        self.prepared: list[Row] = []                      # rows to run once after the weights have changed
        self.steps: list[tuple[Step | None, int]] = []     # of forward, and where its rows end; None: the doors in
        self.buffers: list[Buffer] = []
        self.values: dict[str, Value] = {}
        self.tape: list[tuple[Node | None, Callable[[], None]]] = []
        self.accepted: list[tuple[Node | None, Callable[[], None]]] = []
        self.gradients: dict[str, Gradient] = {}
        self.winners: dict[str, Winners] = {}
        self.unmade: dict[str, Callable[..., None]] = {}   # what a max pooling makes itself, of what is before it
        self.weight_gradients: dict[str, Buffer] = {}
        self.pending: dict[str, int] = {}
        self.updates = Updates(self)
        self.node: Node | None = None
        self.phase = "forward"
        self.needs = self._needs_gradient()
        self.skipped: set[str] = set()
        self.again: list[str] = []                         # tensors that backward makes again
        self.fused: dict[str, str] = {}                    # by layer, the layer in whose kernel it runs
        # tensors that are read from outside the graph's nodes: outputs, or what the losses read
        self.wanted = set(graph.outputs)
        self.consumers = graph.consumers()
        self.readers = {name: len(nodes) for name, nodes in self.consumers.items()}
        self.ran: set[str] = set()                         # nodes whose rows are there

    def _needs_gradient(self) -> set[str]:
        """Tensors on a path from something that trains (or, in manual mode, from an input)."""
        needed: set[str] = set()
        if not self.live:
            return needed
        if self.mode == "manual":
            needed.update(i.name for i in self.graph.inputs)
        for node in self.graph.nodes:
            if any(name in needed for name in node.inputs) or self._node_trains(node):
                needed.update(node.outputs)
        return needed

    def _node_trains(self, node: Node) -> bool:
        return any(self.trains(node, role) for role in node.weights)

    # What layers ask.

    def trains(self, node: Node, role: str) -> bool:
        """Whether a weight of this node is trained by this program."""
        return (self.live and role in node.weights and role in layers.LAYERS[node.op].trainable
                and node.weights[role].name in self.training.factors)

    def part(self, node: Node, role: str) -> Part:
        """What of a weight can train; it has been asked for with `weight` before."""
        return self.store.parameters[node.weights[role].name].part

    def needs_gradient(self, tensor: str) -> bool:
        """Whether backward has to give a tensor's gradient."""
        return tensor in self.needs

    def node_live(self, step: Step) -> bool:
        """Whether backward passes through this step."""
        return step.output in self.needs

    # Tensors.

    def value(self, tensor: str) -> Value:
        """A tensor that was made before."""
        return self.values[tensor]

    def make(self, tensor: str, layout: Layout, buffer: Buffer | None = None) -> Value:
        """A new tensor, in a new buffer or in one that is given (in place)."""
        if buffer is None:
            buffer = self.activation(tensor, layout.size)
        shared = self.readers.get(tensor, 0) > 1 or tensor in self.wanted
        self.values[tensor] = Value(tensor, layout, buffer, shared)
        return self.values[tensor]

    def alias(self, tensor: str, of: Value, layout: Layout) -> Value:
        """The same memory under another name and layout."""
        result = self.make(tensor, layout, of.buffer)
        result.shared = result.shared or of.shared
        return result

    def activation(self, name: str, numbers: int) -> Buffer:
        """A buffer for so many numbers a sample."""
        return self._tensor(name, numbers, "activation")

    def _tensor(self, name: str, numbers: int, kind: str) -> Buffer:
        buffer = self._buffer(name, numbers * self.batch * self.itemsize, kind)
        buffer.per_sample = buffer.checked = True
        return buffer

    def saved(self, name: str, size: int) -> Buffer:
        """Bytes that forward leaves for backward."""
        return self._buffer(name, size, "activation")

    def scratch(self, size: int, name: str = "scratch") -> Buffer:
        """Bytes for one row or a few neighbouring ones."""
        return self._buffer(name, max(size, 8), "scratch")

    def held(self, name: str, size: int) -> Buffer:
        """Bytes that live as long as the program: weights in another form, prepared once."""
        buffer = self._buffer(name, size, "scratch")
        buffer.held = True
        return buffer

    def _buffer(self, name: str, size: int, kind: str) -> Buffer:
        buffer = Buffer(name, size, kind, self.node.name if self.node else "loss" if self.phase == "loss" else name)
        self.buffers.append(buffer)
        return buffer

    def free_to_overwrite(self, value: Value) -> bool:
        """Whether the only reader of a tensor may write its result in place."""
        return not value.shared and not value.buffer.kept

    def free_behind(self, value: Value, *reads: Value) -> bool:
        """Whether the current step, which also reads `reads`, may write over a tensor: all who else want it have run."""
        if value.buffer.kept or self.unmade or any(one.buffer is value.buffer for one in reads):
            return False
        here = {name for name, host in self.fused.items() if self.node and host == self.node.name}
        for one in self.values.values():
            if one.buffer is value.buffer and (one.name in self.wanted or one.name not in self.consumers or any(
                    node.name not in self.ran and node.name not in here for node in self.consumers[one.name])):
                return False
        return True

    def keep(self, *values: Value | None) -> None:
        """Backward will read these: nothing may overwrite them before."""
        for value in values:
            if value is not None:
                value.buffer.kept = True

    def channels_last(self, value: Value) -> Value:
        """The tensor as N, (spatial), C; moved there by a layout row if it lies otherwise."""
        return value if value.layout.is_channels_last() else self.moved(value, Layout.channels_last(value.layout.shape))

    def plain(self, value: Value) -> Value:
        """The tensor in the model's own order; moved there by a layout row if it lies otherwise."""
        return value if value.layout.is_plain() else self.moved(value, Layout.plain(value.layout.shape))

    def moved(self, value: Value, layout: Layout) -> Value:
        """The tensor in another layout."""
        name = f"{value.name}@{'x'.join(map(str, layout.dims))}:{layout.axes}"
        if name in self.values:
            return self.values[name]
        phase, self.phase = self.phase, "layout"
        moved = Value(name, layout, self.activation(name, layout.size), True)
        sizes = pad5(*strides_between(value.layout, layout))
        self.row("layout.permute", x=value.buffer, y=moved.buffer, **sizes)
        self.values[name] = moved
        self.phase = phase
        if value.name in self.needs:
            self.needs.add(name)

            def backward() -> None:
                gradient = self.gradient(name)
                if gradient is None:
                    return
                back = pad5(*strides_between(layout, value.layout))
                target, accumulate = self.dx(value.name)
                before, self.phase = self.phase, "layout"
                self.row("layout.accumulate_permute" if accumulate else "layout.permute", x=gradient.buffer, y=target,
                         **back)
                self.phase = before
                self.release(gradient)
            self.backward(backward)
        return moved

    # Weights.

    def weight(self, node: Node, role: str, steps: tuple = ()) -> Buffer | None:
        """The buffer of a weight, in the form that `steps` lead to from what the node sees; None where it has none."""
        if role not in node.weights:
            return None
        ref = node.weights[role]
        parameter = self.store.parameter(WeightRef(ref.name, ref.view + steps), node.name)
        return parameter.buffer

    def dweight(self, node: Node, role: str) -> tuple[Buffer, int]:
        """Where to write a weight's gradient, and whether to add to what is there."""
        name = node.weights[role].name
        if name in self.weight_gradients:
            return self.weight_gradients[name], 1
        parameter = self.store.parameters[name]
        buffer = self._buffer(f"{name}.gradient", parameter.part.gradient_numbers * self.itemsize, "gradient")
        buffer.checked = True
        buffer.held = self.mode == "manual" or self.accumulates
        self.weight_gradients[name] = buffer
        return buffer, int(self.accumulates)

    def weight_done(self, node: Node, role: str) -> None:
        """A node's part of a weight's gradient is complete: after the last one the weight may be updated."""
        name = node.weights[role].name
        self.pending[name] -= 1
        if self.pending[name] == 0 and self.mode == "train" and not self.accumulates:
            self.updates.ready(self.store.parameters[name], self.weight_gradients[name])

    # Rows.

    def row(self, kernel: str, **fields: Field) -> None:
        """Add a kernel call."""
        node = self.node
        self.rows.append(Row(kernel, fields, node.name if node else self.phase, node.op if node else self.phase, self.phase))

    def prepare(self, kernel: str, **fields: Field) -> None:
        """Add a kernel call that is only needed once after the weights have changed."""
        node = self.node
        self.prepared.append(Row(kernel, fields, node.name if node else "", node.op if node else "", "prepare"))

    def when_finite(self, function: Callable[[], None]) -> None:
        """Rows that change what outlives the step: in training they run once the loss is known to be finite."""
        if self.mode == "train":
            self.accepted.append((self.node, function))
        else:
            function()

    # Backward.

    def backward(self, function: Callable[[], None]) -> None:
        """What to do when backward comes to the current node, or to what was moved for a loss (no node)."""
        self.tape.append((self.node, function))

    def gradient(self, tensor: str) -> Gradient | None:
        """The complete gradient of a tensor, None where nothing reached it. The caller releases it."""
        if tensor in self.winners:
            self.winners.pop(tensor).spread()
        return self.gradients.pop(tensor, None)

    def pooled(self, tensor: str, **winners: Any) -> None:
        """The gradient of a tensor that only a max pooling reads, as the winners (parts.Winners) that it may be made from."""
        self.winners[tensor] = Winners(**winners)

    def new_gradient(self, tensor: str) -> Gradient:
        """A buffer for a gradient of that tensor, which is not yet the tensor's own."""
        return Gradient(self._tensor(f"{tensor}.gradient", self.values[tensor].numbers, "gradient"))

    def release(self, gradient: Gradient | None) -> None:
        """A gradient is read one time less."""
        if gradient is not None:
            gradient.users -= 1

    def dx(self, tensor: str) -> tuple[Buffer, int]:
        """Where to write (0) or add (1) a tensor's gradient."""
        found = self.gradients.get(tensor)
        if found is None:
            found = self.gradients[tensor] = self.new_gradient(tensor)
            return found.buffer, 0
        if found.users > 1:
            own = self.new_gradient(tensor)
            self.row("layout.copy", x=found.buffer, y=own.buffer, size=self.values[tensor].numbers, per_sample=1)
            self.release(found)
            found = self.gradients[tensor] = own
        return found.buffer, 1

    def dx_over(self, tensor: str, gradient: Gradient) -> tuple[Buffer, int]:
        """As dx, but over dY itself where no one else needs that: for rows that may run in place."""
        if tensor in self.gradients or gradient.users > 1:
            return self.dx(tensor)
        gradient.users += 1
        self.gradients[tensor] = gradient
        return gradient.buffer, 0

    def give(self, tensor: str, gradient: Gradient) -> None:
        """A gradient that is another tensor's too, as it is."""
        if tensor not in self.needs:
            return
        if tensor not in self.gradients:
            gradient.users += 1
            self.gradients[tensor] = gradient
            return
        target, _ = self.dx(tensor)
        self.row("elementwise.accumulate", x=gradient.buffer, y=target, size=self.values[tensor].numbers)

    def pass_on(self, source: str, target: str) -> None:
        """The gradient of a tensor that is another under a new name."""
        gradient = self.gradient(source)
        if gradient is not None:
            self.give(target, gradient)
            self.release(gradient)

    def own(self, gradient: Gradient, numbers: int) -> Buffer:
        """Where a layer may write its result over dY: dY itself if no one else needs it, else a new buffer."""
        if gradient.users == 1:
            return gradient.buffer
        return self._tensor("gradient", numbers, "gradient")

    def through_clamp(self, step: Step, y: Value) -> Gradient | None:
        """The step's dY with the fused activation's derivative applied (seed: the Hadamard product with its derivative)."""
        gradient = self.gradient(step.output)
        if gradient is None or not step.clamps:
            return gradient
        return self.clamped(gradient, y.buffer, y.numbers, step.low, step.high)

    def clamped(self, gradient: Gradient, y: Buffer, numbers: int, low: float, high: float) -> Gradient:
        """The gradient of what was clamped to low..high, in place of that of the result y."""
        target = self.own(gradient, numbers)
        self.row("activation.backward", y=y, dy=gradient.buffer, dx=target, size=numbers, kind=CLAMP, low=low, high=high,
                 accumulate=0)
        if target is gradient.buffer:
            return gradient
        self.release(gradient)
        return Gradient(target)
