"""A network's plan: every size fixed, every buffer placed, nothing compiled or allocated yet."""
from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from . import layers, threads
from .arena import FIRST_POINTER
from .choices import fold_batchnorm, resolve_augment, resolve_losses
from .errors import CompileError
from .graph import Graph, size_of
from .memory import KINDS, Block, Buffer, LayerMemory, Memory, Peak, blocks_of, lower_bound, most_live, place
from .optim import Optimizer, resolve_optimizer
from .partial import resolve_train

if TYPE_CHECKING:
    from .parts import Policy, Training
    from .plan import Schedule
    from .program import RowInfo

# Programs that only run forward.
PREDICTING = ("predict", "evaluate")


class Planned:
    """A graph with the arguments of compile: its memory and its layers' costs are known, it cannot run.

    graph, batch, micro_batch, bn, dtype, optimizer, loss, shapes (of one sample) and types by tensor, memory, recomputed,
    trains, trained: as in Net. policy: what backward may make again, instead of recompute; its limit is that of the arena
    without the parameters, which is kept where it can be.
    Raises CompileError for arguments that do not fit the model.
    """

    def __init__(self, graph: Graph, *, batch: int = 1, train: Any = None, loss: Any = None, optimizer: Any = None,
                 bn: str = "frozen", dtype: str = "float32",
                 input_shapes: dict[str, tuple[int, ...]] | None = None, seed: int = 0, augment: Any = None,
                 winograd: bool | None = None, recompute: bool | None = None,
                 micro_batch: int | None = None, policy: Policy | None = None):
        check_arguments(batch, bn, dtype, seed, winograd, recompute)
        self.graph = graph if bn != "fold" else fold_batchnorm(graph)
        self.batch, self.bn, self.dtype, self._seed = batch, bn, np.dtype(dtype), seed
        self.micro_batch = check_micro_batch(micro_batch, batch, bn, train)
        self.winograd = winograd is None or bool(winograd)
        self._forward_winograd, self._may_drop_winograd = self.winograd, winograd is None
        self.shapes, self.types = self.graph.shapes(input_shapes), self.graph.types()
        self.optimizer: Optimizer | None = resolve_optimizer(optimizer)
        self._factors, channels = resolve_train(self.graph, train)
        self.recomputed: list[str] = []
        self._losses = resolve_losses(self.graph, loss, self.shapes)
        threads.prepare_environment()
        from .parts import Policy, Store, Training
        self._slots = self._assign_slots()
        self._training: Training = Training(self._factors, dict(self._losses), self.optimizer,
                                            resolve_augment(augment, self._losses, self.shapes, self._factors, self.optimizer),
                                            policy or Policy(1 if recompute else 0, quick=recompute is not False))
        self._store = Store(self.graph, self.dtype.itemsize, channels)
        control = max(64, 8 * (max(self._slots.values(), default=0) + 1))
        self._control_bytes = -(-control // 64) * 64
        self._planned = self._schedules()
        if self.optimizer is not None:
            from .layers.update import update_row
            for name in self._factors:
                self._store.state(self._store.parameters[name], len(update_row(self.optimizer)[1]))
        self._plan_memory(self._planned)

    def _assign_slots(self) -> dict[str, int]:
        """Where in the control block each address stands."""
        names = [f"input:{entry.name}" for entry in self.graph.inputs]
        names += [f"output:{name}" for name in self.graph.outputs]
        names += [f"target:{name}" for name in self.graph.outputs]
        names += [f"weight:{name}" for name in self.graph.outputs] + ["correct", "top_k", "in_top_k", "confusion"]
        names += [f"dy:{name}" for name in self.graph.outputs] + [f"dx:{entry.name}" for entry in self.graph.inputs]
        return {name: FIRST_POINTER + i for i, name in enumerate(names)}

    def schedule(self, mode: str) -> Schedule:
        """A schedule over this network's parameters, without rows yet."""
        from .entries import lanes_of
        from .plan import Schedule
        batch = self.batch if mode == "manual" else self.micro_batch
        winograd = self._forward_winograd if mode in PREDICTING else self.winograd
        return Schedule(self.graph, self.shapes, self._store, mode, batch, lanes_of(self.dtype), self.dtype.itemsize,
                        self.bn, self._training, self._slots, winograd, accumulates=self.micro_batch < self.batch)

    def _schedules(self) -> dict[str, Schedule]:
        """Forward for prediction, for evaluation, and the whole training step, as far as they were asked for."""
        modes = ["predict"]
        if self._losses:
            modes.append("evaluate")
        if self._losses and self._factors and self.optimizer is not None:
            modes.append("train")
        schedules = {mode: self._filled(mode) for mode in modes}
        if "train" in schedules and self.winograd and self._may_drop_winograd:
            self._keep_within(schedules, lower_bound(schedules["train"].buffers))
        return schedules

    def _filled(self, mode: str, inputs: bool = True) -> Schedule:
        """The finished schedule of "predict", "evaluate" or "train"; its buffers have no places yet. inputs: as in Policy."""
        schedule = self.schedule(mode)
        if mode == "predict":
            schedule.run_forward()
            schedule.run_outputs()
        else:
            schedule.skip_to({tensor for _, tensor in self._losses.values()})
            schedule.run_forward()
            schedule.run_losses(mode == "train")
        if mode == "train":
            schedule.run_backward()
            schedule.finish(replace(self._room(), inputs=inputs))
            self.recomputed = schedule.again
        else:
            schedule.finish()
        return schedule

    def planned_again(self, mode: str) -> tuple[Schedule, bool]:
        """The schedule of "evaluate" or "train" once more, which reads inputs once only; whether the arena has room for it."""
        recomputed = self.recomputed
        schedule = self._filled(mode, inputs=False)
        self.recomputed = recomputed
        return schedule, place(schedule.buffers, self._shared_from) <= self.memory.arena

    def _lasting(self) -> list[Buffer]:
        """What lies in the arena for ever, in this order behind the control block."""
        states = [buffer for buffers in self._store.states.values() for buffer in buffers]
        constants = [buffer for buffer, _ in self._store.constants.values()]
        return [parameter.buffer for parameter in self._store.parameters.values()] + states + constants

    def _room(self) -> Policy:
        """The policy, with a limit of what may live at one time beside what lives for ever."""
        policy = self._training.recompute
        if policy.limit is None:
            return policy
        parameters = sum(parameter.buffer.bytes for parameter in self._store.parameters.values())
        lasting = self._control_bytes + sum(buffer.size for buffer in self._lasting())
        return replace(policy, limit=max(0, policy.limit + parameters - lasting))

    def _keep_within(self, schedules: dict[str, Schedule], room: int) -> None:
        """Prediction without Winograd's algorithm where it would take more memory than training does."""
        if max(lower_bound(schedules[mode].buffers) for mode in PREDICTING) > room:
            self._forward_winograd = False
            schedules.update({mode: self._filled(mode) for mode in PREDICTING})

    def _plan_memory(self, schedules: dict[str, Schedule]) -> None:
        """Offsets for everything: control block, what lives for ever, then what the largest program needs."""
        parameters = [p.buffer for p in self._store.parameters.values()]
        states = [buffer for buffers in self._store.states.values() for buffer in buffers]
        self._constants_placed = len(self._store.constants)
        control = Buffer("control block", self._control_bytes, "scratch", "control", offset=0)
        at = self._control_bytes
        for buffer in self._lasting():
            buffer.offset = at
            at += buffer.size
        end, bound = at, 0
        for schedule in schedules.values():
            end = max(end, place(schedule.buffers, at))
            bound = max(bound, lower_bound(schedule.buffers))
        self._shared_from = at           # before it lies what lives for ever
        self._blocks = {name: blocks_of(schedule.buffers) for name, schedule in schedules.items()}
        self._fused = {name: schedule.fused for name, schedule in schedules.items()}
        most = schedules.get("train", schedules["predict"])
        peaks = {kind: lower_bound(b for b in most.buffers if b.kind == kind) for kind in KINDS}
        self.memory = Memory(
            parameters=sum(buffer.bytes for buffer in parameters), gradients=peaks["gradient"],
            state=sum(buffer.bytes for buffer in states), activations=peaks["activation"], scratch=peaks["scratch"],
            arena=end, lower_bound=at + bound, fullest=self._fullest(schedules, [control, *self._lasting()]),
            layers=self._layer_memory(most.buffers, parameters + states))

    def _fullest(self, schedules: dict[str, Schedule], lasting: list[Buffer]) -> Peak:
        """The peak of the program that needs most; of the training step where others need as much."""
        from .program import row_infos
        found = {name: most_live((block.bytes, block.first, block.last) for block in self._blocks[name])
                 for name in ("train", "predict", "evaluate") if name in schedules}
        program = max(found, key=lambda name: found[name][0])
        most, row = found[program]
        rows = schedules[program].rows
        runs = row_infos(rows[row:])[0]
        live = [block for block in self._blocks[program] if block.first <= row <= block.last]
        return Peak(most + sum(buffer.bytes for buffer in lasting), program, row, len(rows), runs.layer,
                    runs.part.partition("_")[0], live, lasting)

    def _layer_memory(self, transient: list[Buffer], lasting: list[Buffer]) -> list[LayerMemory]:
        """Bytes by layer and kind; of scratch the largest at one time, and a tensor that is made again counts once."""
        found = {node.name: LayerMemory(node.name, node.op) for node in self.graph.nodes}
        fields = {"parameter": "parameters", "gradient": "gradients", "state": "state", "activation": "activations"}
        seen: set[tuple[str, str, str]] = set()
        for buffer in transient + lasting:
            name = buffer.layer, buffer.kind, buffer.name
            if buffer.kind == "activation" and name in seen:
                continue
            seen.add(name)
            layer = found.setdefault(buffer.layer, LayerMemory(buffer.layer, "loss" if buffer.layer == "loss" else "input"))
            if buffer.kind == "scratch":
                layer.scratch = max(layer.scratch, buffer.bytes)
            else:
                setattr(layer, fields[buffer.kind], getattr(layer, fields[buffer.kind]) + buffer.bytes)
        return list(found.values())

    @property
    def loss(self) -> Any:
        """The loss object, None without one, a dict by output name where several outputs have one."""
        losses = {name: loss for name, (loss, _) in self._losses.items()}
        return losses if len(losses) > 1 else next(iter(losses.values()), None)

    @property
    def trains(self) -> bool:
        """Whether any weight trains."""
        return bool(self._factors)

    @property
    def trained(self) -> set[str]:
        """Names of the weights that training may have changed."""
        names = set(self._factors)
        if self.bn == "batch" and self._factors:
            names.update(node.weights[role].name for node in self.graph.nodes if node.op == "BatchNorm2d"
                         for role in ("mean", "var"))
        return names

    @property
    def trained_numbers(self) -> int:
        """How many numbers of the weights train; those of running statistics do not count."""
        return sum(self._numbers_trained(name) for name in self._factors)

    def _numbers_trained(self, name: str) -> int:
        return self._store.parameters[name].part.numbers if name in self._factors else 0

    def blocks(self, program: str) -> tuple[int, list[Block]]:
        """Where in the arena the part begins that "predict" or "train" share over time, and the buffers of one of them."""
        return self._shared_from, self._blocks[program]

    def rows(self, program: str) -> list[RowInfo]:
        """What the rows of "predict", "evaluate" or "train" do, in order."""
        from .program import row_infos
        return row_infos(self._planned[program].rows)

    def fused(self, program: str) -> dict[str, str]:
        """{layer: the layer in whose kernel it runs}, for "predict" or "train"."""
        return self._fused[program]

    def layer_facts(self) -> dict[str, dict[str, Any]]:
        """{layer: op, macs (one sample, forward), parameters, shape (one sample), bytes by kind}.

        parameters: how many numbers train, channels that do not train left out; where nothing trains, how many could.
        Of losses there are the bytes alone.
        """
        facts: dict[str, dict[str, Any]] = {layer.name: {"bytes": _bytes(layer)} for layer in self.memory.layers}
        memory = {layer.name: layer for layer in self.memory.layers}
        for node in self.graph.nodes:
            seen = {role: ref.apply(self.graph.weights[ref.name]).shape for role, ref in node.weights.items()}
            outputs = [self.shapes[name] for name in node.outputs]
            kind = layers.LAYERS[node.op]
            facts[node.name] = {
                "op": node.op, "shape": outputs[0],
                "parameters": sum(self._numbers_trained(ref.name) if self.trains else size_of(seen[role])
                                  for role, ref in node.weights.items() if role in kind.trainable),
                "macs": kind.macs(node, [self.shapes[name] for name in node.inputs], outputs, seen),
                "bytes": _bytes(memory[node.name])}
        return facts


def _bytes(layer: LayerMemory) -> dict[str, int]:
    """A layer's bytes by kind."""
    return {"parameters": layer.parameters, "gradients": layer.gradients, "state": layer.state,
            "activations": layer.activations, "scratch": layer.scratch}


def check_micro_batch(micro_batch: Any, batch: int, bn: str, train: Any) -> int:
    """The samples that go through the network at a time. Raises CompileError for what is no part of a batch."""
    if micro_batch is None:
        return batch
    if isinstance(micro_batch, bool) or not isinstance(micro_batch, (int, np.integer)) or not 1 <= micro_batch <= batch:
        raise CompileError(f"micro_batch is {micro_batch!r}; expected an integer from 1 to the batch, {batch}")
    if bn == "batch" and train is not None and micro_batch < batch:
        raise CompileError(f'micro_batch is {micro_batch} with bn="batch": the statistics of {micro_batch} samples are not '
                           f'those of the batch of {batch}. Use bn="frozen" or bn="fold", or leave micro_batch out')
    return int(micro_batch)


def check_arguments(batch: Any, bn: Any, dtype: Any, seed: Any, winograd: Any, recompute: Any) -> None:
    """Raises CompileError for arguments of compile that no model allows."""
    if isinstance(batch, bool) or not isinstance(batch, (int, np.integer)) or not 1 <= batch <= 2**24:
        raise CompileError(f"batch is {batch!r}; expected an integer from 1 to {2**24:,}")
    if bn not in ("frozen", "batch", "fold"):
        raise CompileError(f'bn is {bn!r}; expected "frozen", "batch" or "fold"')
    if dtype not in ("float32", "float64"):
        raise CompileError(f'dtype is {dtype!r}; expected "float32" or "float64"')
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= seed < 2**63:
        raise CompileError(f"seed is {seed!r}; expected an integer from 0 to 2**63 - 1")
    if winograd is not None and not isinstance(winograd, (bool, np.bool_)):
        raise CompileError(f"winograd is {winograd!r}; expected True, False or None")
    if recompute is not None and not isinstance(recompute, (bool, np.bool_)):
        raise CompileError(f"recompute is {recompute!r}; expected True, False or None")
