"""Prediction on the callers' arrays: what is checked and converted, and the shortest way for what needs neither."""
from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .arena import start_of
from .bound import Bound
from .errors import DataError
from .feeding import Single, describe, input_array, several
from .graph import Graph
from .integers import INTEGERS, as_integers
from .losses import CrossEntropyLoss

if TYPE_CHECKING:
    pass

Arrays = dict[str, np.ndarray]


class Predicting(Bound):
    """A network with its weights that predicts, on the callers' arrays."""

    def __init__(self, graph: Graph, **how: Any):
        super().__init__(graph, **how)
        self._output_shapes = [self.shapes[name] for name in self.graph.outputs]
        self._single = self._only_one()
        # shapes of what most calls give and get, at hand without a new tuple
        self._usual = (self.micro_batch, *self._single.shape) if self._single else ()
        self._usual_result = (self.micro_batch, *self._single.y_shape) if self._single else ()

    def _only_one(self) -> Single | None:
        """What predict needs to know where there is one input and one output."""
        if len(self.graph.inputs) != 1 or len(self.graph.outputs) != 1:
            return None
        name, output = self.graph.inputs[0].name, self.graph.outputs[0]
        x_dtype = np.dtype(self.types[name]) if self.types[name] in INTEGERS else self.dtype
        if x_dtype.kind != "f" and x_dtype.itemsize > 2:       # some of its numbers may not be exact
            return None
        loss, tensor = self._losses.get(output, (None, output))
        x_key, t_key = f"input:{name}", f"target:{output}"
        return Single(name, self.shapes[name], output, self.shapes[output], x_key, t_key, self._slots[x_key],
                      self._slots[f"output:{output}"], self._slots[t_key], self._slots[f"weight:{output}"],
                      isinstance(loss, CrossEntropyLoss) and len(self.shapes[tensor]) == 1, x_dtype,
                      x_dtype == self._output_dtype(output) == self.dtype)

    def predict(self, x: Any, out: Any = None) -> Any:
        """The outputs in inference mode, for any number of samples.

        x     one array (N, ...) with the model's own axes, or a dict by input name where there are several
        out   where to write: an array of the output's shape, or a dict by output name
        Returns fresh arrays (or out): one, or a dict by output name where there are several; of the network's dtype, or of
        the integer type that the model declares.
        Raises DataError for inputs that do not fit, and for integers that the network's dtype does not hold exactly.
        """
        single, samples = self._single, self._fits(x)
        if single is not None and out is None and 0 < samples <= self.micro_batch:
            # the shortest way, for which a small network's user waits
            y = np.empty(self._usual_result if samples == self.micro_batch else (samples, *single.y_shape), self.dtype)
            if not single.plain:
                x = x.astype(self.dtype, copy=False)
            control = self._control
            with self._lock if self._team else self._guard():
                control[single.x_slot] = start_of(x)
                control[single.y_slot] = start_of(y)
                self._run("predict", samples)
            return y if single.plain else self._in_type(single.output, y)
        inputs = self._inputs(x)
        samples = next(iter(inputs.values())).shape[0]
        asked = self._results(out, samples)
        results = self._written(asked)
        if out is not None:       # what one batch writes may not be what the next one reads
            inputs = {name: array.copy() if any(np.may_share_memory(array, result) for result in results.values()) else array
                      for name, array in inputs.items()}
        with self._guard():
            self._predict(inputs, results, samples)
        for name, array in asked.items():
            if array is not results[name]:
                as_integers(results[name], name, array)
        return asked if len(asked) > 1 else asked[self.graph.outputs[0]]

    def _fits(self, x: Any) -> int:
        """How many samples x holds, where the network has one input and x is just what the kernels read; else 0."""
        single = self._single
        if single is not None and type(x) is np.ndarray and (x.dtype is single.x_dtype or x.dtype == single.x_dtype) \
                and x.flags.c_contiguous:
            shape = x.shape
            if shape == self._usual or shape[1:] == single.shape:
                return shape[0]
        return 0

    def _inputs(self, x: Any) -> Arrays:
        if self._single is not None and self._fits(x):
            return {self._single.name: x.astype(self.dtype, copy=False)}
        given = several(x, [entry.name for entry in self.graph.inputs], "x")
        arrays = {name: input_array(array, name, self.shapes[name], self.dtype, self.types[name])
                  for name, array in given.items()}
        counts = {name: array.shape[0] for name, array in arrays.items()}
        if len(set(counts.values())) > 1:
            raise DataError(f"the inputs have different numbers of samples: {counts}; they must be equal")
        return arrays

    def _results(self, out: Any, samples: int) -> Arrays:
        if out is None:
            return {name: np.empty((samples, *shape), self._output_dtype(name))
                    for name, shape in zip(self.graph.outputs, self._output_shapes, strict=True)}
        given = dict(several(out, self.graph.outputs, "out"))
        for name, array in given.items():
            shape, dtype = (samples, *self.shapes[name]), self._output_dtype(name)
            if not isinstance(array, np.ndarray) or array.shape != shape or array.dtype != dtype \
                    or not array.flags.c_contiguous or not array.flags.writeable:
                raise DataError(f'out for "{name}" must be a writable, contiguous {dtype.name} array of shape {shape}; '
                                f"it is {describe(array)}")
        return given

    def _output_dtype(self, name: str) -> np.dtype:
        """What an output comes out as."""
        return np.dtype(self.types[name]) if self.types[name] in INTEGERS else self.dtype

    def _in_type(self, name: str, array: np.ndarray) -> np.ndarray:
        """An output as the model declares it. Raises DataError for integers that are not exact."""
        dtype = self._output_dtype(name)
        return array if dtype == self.dtype else as_integers(array, name, np.empty(array.shape, dtype))

    def _written(self, results: Arrays) -> Arrays:
        """What the program writes: the results themselves, but for those that are integers."""
        return {name: array if array.dtype == self.dtype else np.empty(array.shape, self.dtype)
                for name, array in results.items()}

    def _predict(self, inputs: Arrays, results: Arrays, samples: int) -> None:
        control = self._control
        places = [(self._slots[f"input:{name}"], start_of(array), array.strides[0]) for name, array in inputs.items()]
        places += [(self._slots[f"output:{name}"], start_of(array), array.strides[0]) for name, array in results.items()]
        for begin in range(0, samples, self.micro_batch):
            for slot, address, step in places:
                control[slot] = address + begin * step
            self._run("predict", min(self.micro_batch, samples - begin))
