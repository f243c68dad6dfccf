"""What users run: training steps, evaluation, and the manual programs, on the callers' arrays; prediction: predicting.py."""
from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from .accumulation import Parts, spans, target_share
from .arena import BAD_GRADIENT, FIRST, FLAGS, LOSS, STEP, start_of
from .errors import CompileError, DataError, TrainingError
from .feeding import check_data, check_metrics, several, target_array, weight_array
from .graph import Graph
from .losses import CrossEntropyLoss
from .predicting import Predicting

if TYPE_CHECKING:
    from .budget import Choice
    from .manual import Manual
    from .program import RowInfo
    from .tail import Tail
    from .tools.profile_data import Profile

Arrays = dict[str, np.ndarray]


class Net(Predicting):
    """A network that Graph.compile made. Its methods may be called from any thread, one at a time.

    graph     the graph it was made from
    batch     how many samples a training step takes at most
    micro_batch   how many its buffers hold: that many go through the network at a time
    memory    the plan of its memory (Memory); prints as a table
    trained   names of the weights that training may change, running statistics included where bn="batch"
    lr        the learning rate; may be set between steps
    recomputed   names of the tensors that backward makes again
    choice    what a budget allowed, and why; None without one
    debug     with True every step runs row by row, and the first layer that makes a NaN or an infinity is named
    """

    def __init__(self, graph: Graph, *, manual: bool = False, **how: Any):
        super().__init__(graph, **how)
        self._target_kinds: dict[str, int] = {}
        self._manual: Manual | None = None
        self._tail: Tail | None = None
        self._parts = Parts(self.micro_batch, self._losses) if self.micro_batch < self.batch else None
        self.choice: Choice | None = None
        if manual:
            self._manual_programs()

    # Training.

    def train_step(self, x: Any, t: Any, sample_weight: Any = None) -> float:
        """One step of training on up to `batch` samples; returns the mean loss before the update.

        x              as in predict
        t              targets: class indices (N,) or probabilities for cross-entropy, otherwise of the output's shape; a dict
                       by output name where there are several outputs
        sample_weight  (N,): each sample's share of the mean
        Raises DataError for data that do not fit and for inputs that are NaN or infinite, TrainingError where the loss is no
        longer finite; no weight has changed then.
        """
        if "train" not in self._programs:
            raise CompileError(self._missing("train_step"))
        single, samples = self._single, self._fits(x)
        if single is not None and single.labels and single.plain and sample_weight is None and 0 < samples <= self.batch \
                and self._parts is None and type(t) is np.ndarray and t.dtype == np.int64 and t.shape == (samples,) \
                and t.flags.c_contiguous:
            with self._lock if self._team else self._guard():      # the shortest way, as in predict
                control = self._control
                control[single.weight_slot] = 0
                control[single.x_slot] = start_of(x)
                control[single.t_slot] = start_of(t)
                if self._target_kinds:
                    self._set_target_kind(single.output, 0)
                self._train(samples, {single.x_key: x, single.t_key: t})
                return self._control_numbers[LOSS]
        samples, held = self._feed(x, t, sample_weight)
        with self._guard():
            self._point(held)
            self._train(samples, held)
            return self._control_numbers[LOSS]

    def loss_gradients(self, x: Any, t: Any, sample_weight: Any = None) -> Arrays:
        """{weight: gradient of the mean loss, in ONNX's layout} of up to `batch` samples, as train_step takes them.

        No weight changes. Raises CompileError where micro_batch is not smaller than the batch (gradients do not last then),
        DataError and TrainingError as train_step.
        """
        if self._parts is None or "train" not in self._programs:
            raise CompileError(self._missing("loss_gradients") if "train" not in self._programs else
                               "loss_gradients needs micro_batch, smaller than the batch: without it each gradient makes way "
                               f"for the next; compile(batch={max(2, self.batch)}, micro_batch={max(1, self.batch // 2)}, ...)")
        samples, held = self._feed(x, t, sample_weight)
        with self._guard():
            self._control[STEP] = self._steps[0] + 1
            self._run_parts(self._parts, samples, held)
            if self._control[FLAGS]:
                self._refuse(held)
            return {name: self._gradient(name, self._gradients.get(name), self._arena) for name in self._factors}

    def _train_parts(self, parts: Parts, samples: int, held: Arrays) -> None:
        """The gradients of all parts of a batch, then the updates; none where a part's loss is not finite."""
        loss = self._run_parts(parts, samples, held)
        if not self._control[FLAGS]:
            self._run("train", samples, self._closing)
        self._control_numbers[LOSS] = loss

    def _run_parts(self, parts: Parts, samples: int, held: Arrays) -> float:
        """The gradients of all parts of a batch, added up, as far as their losses are finite; returns the loss."""
        control, loss = self._control, 0.0
        self._run("train", samples, self._opening)
        for begin, count in parts.of(held, samples):
            self._point(held, begin)
            self._point_weights(parts)
            control[FIRST] = begin
            try:
                self._run("train", count)
            finally:
                control[FIRST] = 0
            loss += self._control_numbers[LOSS]
            if control[FLAGS]:
                break
        return loss

    def _point_weights(self, parts: Parts) -> None:
        """Let every loss count its samples as parts has it."""
        for output, weights in parts.weights.items():
            self._control[self._slots[f"weight:{output}"]] = start_of(weights)

    def _train(self, samples: int, held: Arrays, program: str = "train") -> None:
        step = self._steps[0] + 1
        self._steps[0] = self._control[STEP] = step
        try:
            if self._parts is None:
                self._run(program, samples)
            else:
                self._train_parts(self._parts, samples, held)
        except TrainingError:
            self._steps[0] = step - 1
            check_data(held, self._losses, self.shapes)
            raise
        if self._control[FLAGS]:
            self._steps[0] = step - 1
            self._refuse(held)
        if self._prepared == "predict" or self._prepared == "evaluate":
            self._prepared = None

    def _missing(self, what: str) -> str:
        for value, name, example in ((self._losses, "loss", 'loss="cross_entropy"'),
                                     (self.optimizer, "optimizer", "optimizer=mc.SGD(lr=0.01)"),
                                     (self._factors, "train", 'train="all"')):
            if not value:
                return f"{what} needs {name}, which compile was not given; compile with {example}"
        raise AssertionError(what)

    def _feed(self, x: Any, t: Any, sample_weight: Any, most: int | None = None) -> tuple[int, Arrays]:
        """(samples, arrays by slot name), every one checked and of the type that the kernels read."""
        inputs = self._inputs(x)
        samples = next(iter(inputs.values())).shape[0]
        if samples > (most or self.batch):
            raise DataError(f"x holds {samples} samples; this network was compiled for up to {self.batch}. Give fewer, or "
                            f"compile(batch={samples})")
        return samples, {**{f"input:{name}": array for name, array in inputs.items()},
                         **self._targets(t, sample_weight, samples)}

    def _targets(self, t: Any, sample_weight: Any, samples: int) -> Arrays:
        """Targets and weights by slot name, every one checked and of the type that the kernels read."""
        held: Arrays = {}
        targets = several(t, list(self._losses), "t", complete=False)
        for name, (loss, tensor) in self._losses.items():
            if name not in targets:
                raise DataError(f't holds no target for output "{name}"; it holds {list(targets)}')
            held[f"target:{name}"] = target_array(targets[name], name, loss, samples, self.shapes[tensor], self.dtype)
        if sample_weight is not None:
            held["sample_weight"] = weight_array(sample_weight, samples)
        return held

    def _point(self, held: Arrays, begin: int = 0) -> None:
        """The addresses into the control block."""
        for name, array in held.items():
            if name != "sample_weight":
                self._control[self._slots[name]] = start_of(array) + begin * array.strides[0]
        own = held.get("sample_weight")
        for name in self._losses:
            self._control[self._slots[f"weight:{name}"]] = \
                0 if own is None else start_of(own) + begin * own.strides[0]
        for name, (loss, _) in self._losses.items():
            if isinstance(loss, CrossEntropyLoss):
                self._set_target_kind(name, int(held[f"target:{name}"].dtype.kind == "f"))

    def _set_target_kind(self, output: str, probabilities: int) -> None:
        if self._target_kinds.get(output, 0) == probabilities:
            return
        self._target_kinds[output] = probabilities
        slot = self._slots[f"target:{output}"]
        for program, _ in self._programs.values():
            for kernel in ("loss.cross_entropy", "loss.check_labels", "metrics.classes"):
                program.set_field(kernel, "probabilities", probabilities, where=("target_slot", slot))

    def _refuse(self, held: Arrays) -> None:
        """Say why a program stopped. Nothing was changed."""
        check_data(held, self._losses, self.shapes)
        if self._control[FLAGS] == BAD_GRADIENT:
            raise TrainingError(f"a gradient holds NaN or infinite numbers at step {self._steps[0] + 1}; no weight was "
                                f"changed. Use a smaller learning rate than {self.lr:g}, or look at debug = True")
        raise TrainingError(f"the loss is {self._control_numbers[LOSS]} at step {self._steps[0] + 1}; nothing "
                            f"was changed. Use a smaller learning rate than {self.lr:g}, or look at debug = True")

    def evaluate(self, x: Any, t: Any, top_k: int | None = None, confusion: bool = False) -> dict[str, Any]:
        """{"loss": mean loss, "accuracy": share of right classes} in inference mode, for any number of samples.

        Accuracy stands there where a loss is cross-entropy, and so may:
        top_k       5 adds "top_5": the share of targets among the 5 largest outputs, of equal ones those of lower index
        confusion   adds "confusion": how often each class (row) was taken for each class (column), int64 (C, C)
        Raises CompileError without a loss and for metrics that it does not have, DataError as train_step.
        """
        if "evaluate" not in self._programs:
            raise CompileError("evaluate needs loss, which compile was not given; compile with loss=\"cross_entropy\"")
        inputs = self._inputs(x)
        samples, held = self._feed(x, t, None, most=next(iter(inputs.values())).shape[0])
        return self._evaluate("evaluate", samples, held, top_k, confusion)

    def _evaluate(self, program: str, samples: int, held: Arrays, top_k: int | None, confusion: bool) -> dict[str, Any]:
        matrix = check_metrics(self._losses, self.shapes, top_k, confusion)
        total = weight = correct = labels = 0.0
        with self._guard():
            self._control[self._slots["top_k"]] = top_k or 0
            self._control[self._slots["confusion"]] = 0 if matrix is None else start_of(matrix)
            self._control_numbers[self._slots["in_top_k"]] = 0.0
            # several losses have a mean each, whose shares of the samples differ
            parts = Parts(self.micro_batch, self._losses) if len(self._losses) > 1 else None
            for begin, count in spans(samples, self.micro_batch) if parts is None else parts.of(held, samples):
                self._point(held, begin)
                if parts is not None:
                    self._point_weights(parts)
                self._control_numbers[self._slots["correct"]] = 0.0
                self._run(program, count)
                if self._control[FLAGS]:
                    self._refuse(held)
                share = self._share(held, begin, count) if parts is None else 1.0
                total += self._control_numbers[LOSS] * share
                weight = weight + share if parts is None else 1.0
                correct += self._control_numbers[self._slots["correct"]]
                labels += self._labels(held, begin, count)
            among = self._control_numbers[self._slots["in_top_k"]]
        result: dict[str, Any] = {"loss": total / weight if weight else 0.0}
        if any(isinstance(loss, CrossEntropyLoss) for loss, _ in self._losses.values()):
            result["accuracy"] = correct / labels if labels else 0.0
        if top_k is not None:
            result[f"top_{top_k}"] = among / labels if labels else 0.0
        if matrix is not None:
            result["confusion"] = matrix
        return result

    def _share(self, held: Arrays, begin: int, count: int) -> float:
        """What the mean over these samples counts: the denominator of the one loss."""
        (name, (loss, _)), = self._losses.items()
        return target_share(loss, held[f"target:{name}"][begin:begin + count])

    def _labels(self, held: Arrays, begin: int, count: int) -> int:
        """How many predictions are counted."""
        found = 0
        for name, (loss, tensor) in self._losses.items():
            if isinstance(loss, CrossEntropyLoss):
                part = held[f"target:{name}"][begin:begin + count]
                found += int((part != loss.ignore_index).sum()) if part.dtype.kind == "i" else \
                    part.size // self.shapes[tensor][0]
        return found

    # The manual programs.

    def _manual_programs(self) -> Manual:
        if self._manual is None:
            from .manual import Manual
            self._manual = Manual(self)
            self.memory.manual = self._manual.bytes
        return self._manual

    def forward(self, x: Any) -> Any:
        """The outputs in training mode (dropout, bn as compiled), for up to `batch` samples; keeps what backward needs."""
        inputs = self._inputs(x)
        with self._guard():
            return self._manual_programs().forward(inputs)

    def backward(self, dy: Any) -> Any:
        """The gradient of the inputs, given that of the outputs: a vector-Jacobian product, not averaged.

        Raises TrainingError unless forward came before. Dict in, dict out where the model has several outputs or inputs.
        """
        with self._guard():
            return self._manual_programs().backward(dy)

    def gradients(self) -> Arrays:
        """{weight name: gradient in ONNX's layout} of the last backward. Raises TrainingError where there was none.

        A weight that trains in part has a gradient of its own shape, with zeros for the channels that do not train.
        """
        with self._lock:
            if self._manual is None:
                raise TrainingError("gradients needs a backward before it")
            return self._manual.gradients()

    def update(self) -> None:
        """Apply the gradients of the last backward. Raises TrainingError where there was none, CompileError without an
        optimizer."""
        if self.optimizer is None:
            raise CompileError("update needs optimizer, which compile was not given; compile with optimizer=mc.SGD(lr=0.01)")
        with self._guard():
            if self._manual is None:
                raise TrainingError("update needs a backward before it")
            self._manual.update()

    def tail(self) -> Tail:
        """What training changes of this network and what reads that, to be run from features that are computed once.

        See microcnn.tail.Tail. Raises CompileError where nothing can be kept.
        """
        with self._lock:
            if self._tail is None:
                from .tail import Tail
                self._tail = Tail(self)
            return self._tail

    def profile(self, x: Any = None, t: Any = None, **how: Any) -> Profile:
        """What each layer costs on this device: mc.profile of this network, whose weights stay as they are."""
        from . import profile
        measured: Profile = profile(self, x, t, **how)
        return measured

    # What the profiler asks.

    def rows(self, program: str) -> list[RowInfo]:
        """The rows of "predict", "evaluate" or "train", in order; those of a step's parts stand there once.

        Raises CompileError where there is no such program.
        """
        if program not in self._programs:
            raise CompileError(self._missing(program))
        infos = self._programs[program][0].infos
        if program == "train" and self._opening is not None and self._closing is not None:
            parts = -(-self.batch // self.micro_batch)
            infos = [replace(info, reads=parts * info.reads, writes=parts * info.writes) for info in infos]
            infos = [*self._opening.infos, *infos, *self._closing.infos]
        return infos

    def timed_step(self, x: Any, t: Any) -> np.ndarray:
        """train_step through the timed executor: the clock in nanoseconds before the first row and after each, int64."""
        with self._guard(), self._timing() as marks:
            self.train_step(x, t)
        if self._parts is not None:     # as if a row's turns came one after the other, and no time passed between them
            opening, *parts, closing = (np.diff(run) for run in marks)
            return np.concatenate([[0], np.cumsum(np.concatenate([opening, np.sum(parts, axis=0), closing]))])
        return marks[0]

    def timed_predict(self, x: Any) -> np.ndarray:
        """predict of up to `batch` samples, as timed_step."""
        with self._guard(), self._timing() as marks:
            self.predict(x)
        if len(marks) > 1:
            raise DataError(f"x holds more than {self.micro_batch} samples, which is what timed_predict takes at most")
        return marks[0]

    def __repr__(self) -> str:
        return f"Net({self.graph.name}, batch {self.batch}, {self.dtype.name}, {len(self._factors)} of " \
               f"{len(self._store.parameters)} weights train, arena {self.memory.arena:,} bytes)"
