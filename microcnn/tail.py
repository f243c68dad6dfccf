"""The part of a network that training changes, run from features: what frozen layers make of a sample, computed once."""
from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import numpy as np

from .arena import FLAGS, LOSS, aligned_bytes, start_of
from .errors import CompileError, DataError
from .feeding import check_data
from .frontier import Part, cut
from .memory import Buffer

if TYPE_CHECKING:
    from .net import Net

Arrays = dict[str, np.ndarray]

# The training step keeps what backward reads, and evaluation has folded what it can: each has features of its own.
MODES = ("train", "evaluate")


@dataclass(frozen=True)
class Features:
    """The features of some samples: for each tensor that the tail reads of the frozen layers an array (N, numbers)."""

    arrays: list[np.ndarray]

    def __len__(self) -> int:
        return len(self.arrays[0])


class Tail:
    """The layers of a network from the first one that trains on, over the same weights, optimizer state and arena.

        tail = net.tail()
        features = tail.features(x)         # once
        loss = tail.train_step(features, t) # the same, bit for bit, as net.train_step(x, t)

    Features are as they lie in the arena; those for evaluation are others. Beside the network it holds one batch of both.

    batch, dtype, loss, lr   the network's
    layers                   how many steps of the network's training program it leaves out
    Raises CompileError without train, loss and optimizer, with augment, with micro_batch smaller than batch, where nothing that
    is frozen comes before what trains, and where a frozen layer is behind one that makes something else of a sample every time
    (dropout, bn="batch").
    """

    def __init__(self, net: Net):
        if "train" not in net._programs:
            raise CompileError(net._missing("cache_features"))
        if net._training.augment is not None:
            raise CompileError(f"{net._training.augment} changes the samples in every step, so that their features are others "
                               "in every epoch; leave out augment, or cache_features")
        if net.micro_batch < net.batch:
            raise CompileError(f"features are kept for whole batches; this network takes {net.batch} samples in parts of "
                               f"{net.micro_batch}. Leave out micro_batch or the budget, or cache_features")
        self.net = net
        self._staged: dict[str, list[np.ndarray]] = {}
        self._batches: dict[tuple[str, int], Features] = {}      # parts of these, by mode and number of samples
        self._lasting: dict[str, list[Buffer]] = {}
        self._described: dict[str, bytes] = {}
        store = net._store
        changing = [store.parameters[name].buffer for name in net.trained if name in store.parameters]
        for mode in MODES:
            schedule, fits = net.planned_again(mode)
            parts = cut(schedule, changing)
            if mode == "train":
                self.layers = parts.layers
                if not parts.layers:
                    raise CompileError("no frozen layer comes before what trains, so there are no features to keep; train "
                                       'less, such as train="head", or leave out cache_features')
            if not fits:
                raise CompileError("the arena has room for the inputs only where backward reads them again, which it cannot "
                                   "when it begins with features; leave out cache_features")
            self._stage(mode, parts.border)
            self._describe(mode, parts.frozen)
            net._add_program(f"{mode} features", parts.frozen.rows, parts.frozen.prepared)
            net._add_program(f"{mode} tail", parts.live.rows, parts.live.prepared)
        kinds, net._target_kinds = net._target_kinds, {}
        for output, kind in kinds.items():       # of targets, as the other programs have been told
            net._set_target_kind(output, kind)

    def _stage(self, mode: str, border: list[Buffer]) -> None:
        """Arrays outside the arena for a batch of features: what programs read and write in place of the callers' arrays."""
        net = self.net
        self._staged[mode] = []
        for buffer in border:
            raw = aligned_bytes(buffer.bytes)
            buffer.offset = start_of(raw) - net._base       # may be negative, which the rows that copy do not mind
            self._staged[mode].append(raw.view(net.dtype).reshape(net.batch, -1))

    def _describe(self, mode: str, part: Part) -> None:
        """What the features depend on: the rows, with buffers as numbers, and the weights and constants that they read."""
        from .entries import ENTRIES
        store = self.net._store
        lasting = {parameter.buffer for parameter in store.parameters.values()} | {buffer for buffer, _ in
                                                                                   store.constants.values()}
        known: dict[Buffer, int] = {}
        told: list[Any] = [self.net.batch, self.net.dtype.name]
        for row in part.prepared + part.rows:
            values = [row.fields[name] for name in ENTRIES[row.kernel].fields]
            told.append((row.kernel, [("buffer", known.setdefault(value, len(known))) if isinstance(value, Buffer) else value
                                      for value in values]))
        self._described[mode] = repr(told).encode()
        self._lasting[mode] = [buffer for buffer in known if buffer in lasting]

    @property
    def batch(self) -> int:
        return self.net.batch

    @property
    def dtype(self) -> np.dtype:
        return self.net.dtype

    @property
    def loss(self) -> Any:
        return self.net.loss

    @property
    def lr(self) -> float:
        return self.net.lr

    @lr.setter
    def lr(self, value: float) -> None:
        self.net.lr = value

    @property
    def held_bytes(self) -> int:
        """What it holds beside the network: a batch of features of either kind."""
        return sum(array.nbytes for arrays in self._staged.values() for array in arrays)

    def numbers(self, mode: str) -> list[int]:
        """How many numbers a sample's features have, for each of their arrays. mode: "train" or "evaluate"."""
        return [array.shape[1] for array in self._staged[mode]]

    def staged(self, mode: str, samples: int) -> Features:
        """Where a batch of features is best put: what lies here is not copied again."""
        found = self._batches.get((mode, samples))
        if found is None:
            found = self._batches[mode, samples] = Features([array[:samples] for array in self._staged[mode]])
        return found

    def digest(self, mode: str) -> bytes:
        """A hash of all that features depend on but the samples: layers, weights, the form of the computation, the code."""
        from .store import fingerprint, processor
        found = blake2b(self._described[mode], digest_size=32)
        found.update(f"{fingerprint()} {processor()}".encode())
        with self.net._lock:
            for buffer in self._lasting[mode]:
                found.update(self.net._arena[buffer.offset:buffer.offset + buffer.bytes].data)
        return found.digest()

    def features(self, x: Any, mode: str = "train") -> Features:
        """The features of up to `batch` samples, for train_step or, with "evaluate", for evaluate.

        The arrays are the same every time: copy them before asking for the next ones. Raises DataError for inputs that do
        not fit, are NaN or infinite.
        """
        net = self.net
        inputs = net._inputs(x)
        samples = next(iter(inputs.values())).shape[0]
        self._check(samples)
        with net._guard():
            for name, array in inputs.items():
                net._control[net._slots[f"input:{name}"]] = start_of(array)
            net._run(f"{mode} features", samples)
            if net._control[FLAGS]:
                check_data({f"input:{name}": array for name, array in inputs.items()}, {}, net.shapes)
        return self.staged(mode, samples)

    def _check(self, samples: int) -> None:
        if samples > self.net.batch:
            raise DataError(f"{samples} samples were given; this network was compiled for up to {self.net.batch}. Give fewer, "
                            f"or compile(batch={samples})")

    def _load(self, features: Features, mode: str) -> int:
        """Put features where the programs read them, and say how many samples they are of. Raises DataError."""
        samples = len(features)
        self._check(samples)
        own = self.staged(mode, samples)
        if features is own:
            return samples
        shapes, expected = ([array.shape for array in each.arrays] for each in (features, own))
        if shapes != expected:
            raise DataError(f'features have the shapes {shapes}; expected {expected}, as features(x, "{mode}") gives them')
        for place, array in zip(own.arrays, features.arrays, strict=True):
            np.copyto(place, array, casting="same_kind")
        return samples

    def train_step(self, features: Features, t: Any, sample_weight: Any = None) -> float:
        """As Net.train_step, from features."""
        net = self.net
        held = net._targets(t, sample_weight, len(features))
        with net._guard():
            samples = self._load(features, "train")
            net._point(held)
            net._train(samples, held, "train tail")
            loss: float = net._control_numbers[LOSS]
            return loss

    def evaluate(self, features: Features, t: Any, top_k: int | None = None, confusion: bool = False) -> dict[str, Any]:
        """As Net.evaluate, from features of up to `batch` samples."""
        held = self.net._targets(t, None, len(features))
        with self.net._guard():
            return self.net._evaluate("evaluate tail", self._load(features, "evaluate"), held, top_k, confusion)

    def parameters(self) -> Arrays:
        """All weights of the network, as Net.parameters."""
        return self.net.parameters()

    def set_parameters(self, arrays: Arrays) -> None:
        """As Net.set_parameters. Where frozen weights change, features are no longer theirs."""
        self.net.set_parameters(arrays)
