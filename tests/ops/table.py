"""What every operation is held to. A test file lists its cases; `table` runs each of them through all checks.

A case is a small graph. To add an operation: its loops in tests/oracles.py, an entry in tests/ops/walk.py, a file here.
"""
from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from onnx.reference import ReferenceEvaluator

import microcnn as mc
from microcnn.graph import Graph, Input, Node, WeightRef
from microcnn.partial import trainable_weights
from microcnn.tools.onnx_export import export_onnx
from tests import graph_oracle
from tests.gradcheck import check_gradients
from tests.ops import walk

# Relative to the largest number of the output: sums in another order differ by some roundings of it.
DOUBLE, SINGLE = 1e-12, 4e-6


@dataclass
class Case:
    """graph: built by a function, so that listing cases costs nothing. skip: names of checks that say nothing here."""

    name: str
    build: Callable[[], Graph]
    batch: int = 2
    bn: str = "frozen"
    skip: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)

    def compile(self, dtype="float64", **options):
        options = {"train": "all" if self.trains else None, **self.options, **options}
        return self.graph().compile(batch=self.batch, bn=self.bn, dtype=dtype, **options)

    def graph(self):
        if not hasattr(self, "_graph"):
            self._graph = self.build()
        return self._graph

    @property
    def trains(self):
        """Whether any weight may be trained."""
        return bool(trainable_weights(self.graph())) and self.options.get("train", "all") is not None

    def inputs(self, samples=None, dtype="float64"):
        """{input: array}: numbers apart from each other and from 0, so that no small step meets a kink."""
        rng = np.random.default_rng(7)
        return {entry.name: spread(rng, (self.batch, *entry.shape))[:samples].astype(dtype)
                for entry in self.graph().inputs}


def spread(rng, shape, width=4.0):
    """Different numbers from -width / 2 to width / 2, each the same in float32 and float64, none 0, in random order."""
    count = int(np.prod(shape))
    numbers = (np.arange(count) + 0.5 - count // 2) * (width / count)
    return rng.permutation(numbers).astype(np.float32).astype(np.float64).reshape(shape)


def graph_of(op, *sizes, weights=None, dtype="float32", **attrs):
    """A graph of one node; weights: {role: array or shape to draw}."""
    rng = np.random.default_rng(3)
    arrays = {role: drawn(rng, role, w) for role, w in (weights or {}).items()}
    names = ["x"] if len(sizes) == 1 else ["a", "b"]
    node = Node(op, "node", tuple(names), ("y",), attrs, {role: WeightRef(role) for role in arrays})
    return Graph([Input(n, s, dtype) for n, s in zip(names, sizes, strict=True)], ["y"], [node], arrays)


def drawn(rng, role, weight):
    """A weight of that shape, the same in float32 and float64; arrays stay what they are."""
    if isinstance(weight, np.ndarray):
        return weight
    if role in ("scale", "var"):
        return rng.uniform(0.5, 2.0, weight).astype(np.float32)
    return rng.uniform(-1, 1, weight).astype(np.float32)


def built(shape, *layers, seed=1):
    """A chain of layers on an input of that shape; batch norms get statistics that are not 0 and 1."""
    return lively(mc.Sequential(list(layers), input_shape=shape, seed=seed).graph())


def chain(shape, *layers):
    """What builds that network, when a Case asks for it."""
    return lambda: built(shape, *layers)


def lively(graph, seed=5):
    """The graph with random weights for its batch norms and biases."""
    rng = np.random.default_rng(seed)
    for node in graph.nodes:
        if node.op == "BatchNorm2d":
            for role, ref in node.weights.items():
                graph.weights[ref.name] = drawn(rng, role, graph.weights[ref.name].shape)
    return graph


def only(arrays):
    """One array where there is one, as the network takes and gives them."""
    return next(iter(arrays.values())) if len(arrays) == 1 else arrays


def by_name(graph, y):
    return y if isinstance(y, dict) else {graph.outputs[0]: y}


def close(actual, expected, tolerance, what):
    """Equal but for `tolerance` of the largest number; NaN and infinities in the same places."""
    assert actual.shape == expected.shape, f"{what}: {actual.shape}, expected {expected.shape}"
    finite = np.isfinite(expected)
    assert np.array_equal(actual[~finite], expected[~finite], equal_nan=True), f"{what}: NaN or infinities elsewhere"
    scale = np.abs(expected[finite]).max(initial=0.0) or 1.0
    wrong = np.abs(np.asarray(actual[finite], np.float64) - expected[finite]).max(initial=0.0) / scale
    assert wrong <= tolerance, f"{what}: off by {wrong:.2e} of the largest number, {tolerance:.0e} allowed"


def poison(net):
    """NaN into all memory that a run must write before it reads it: all but weights, optimizer state and constants."""
    store = net._store
    lasting = [p.buffer for p in store.parameters.values()] + [
        buffer for buffer, _ in list(store.constants.values())[:net._constants_placed]]
    lasting += [buffer for buffers in store.states.values() for buffer in buffers]
    net._arena[max([buffer.offset + buffer.size for buffer in lasting], default=net._control_bytes):] = 0xFF
    net._prepared = None
    if net._manual is not None:
        net._manual._arena[net._manual._transient:] = 0xFF


def random_dy(net, samples):
    rng = np.random.default_rng(11)
    return {name: rng.normal(size=(samples, *net.shapes[name])).astype(np.float32).astype(net.dtype)
            for name in net.graph.outputs}


def everything(net, inputs):
    """predict, forward, dx, gradients and weights afterwards by name, from poisoned memory and the graph's weights."""
    samples = len(next(iter(inputs.values())))
    net.set_parameters({name: net.graph.weights[name] for name in net.parameters()})
    poison(net)
    found = {f"predict {name}": y for name, y in by_name(net.graph, net.predict(only(inputs))).items()}
    net._manual_programs()
    poison(net)
    found.update({f"forward {name}": y for name, y in by_name(net.graph, net.forward(only(inputs))).items()})
    dx = net.backward(only(random_dy(net, samples)))
    found.update({f"dx {name}": array for name, array in (dx if isinstance(dx, dict) else {only(
        {e.name: e.name for e in net.graph.inputs}): dx}).items()})
    found.update({f"gradient {name}": array for name, array in net.gradients().items()})
    found.update({f"weight {name}": array for name, array in net.parameters().items()})
    return found


def same_bits(first, second):
    assert first.keys() == second.keys()
    for name in first:
        assert first[name].tobytes() == second[name].tobytes(), f"{name} differs"


@contextlib.contextmanager
def threads(count):
    """Run with that many threads."""
    before = mc.get_num_threads()
    try:
        mc.set_num_threads(count)
    except mc.MicroCNNError as error:
        pytest.skip(str(error))
    try:
        yield
    finally:
        mc.set_num_threads(before)


def steps(net, inputs, count=3):
    """The weights after training steps towards random targets."""
    samples = len(next(iter(inputs.values())))
    targets = only(random_dy(net, samples))
    for _ in range(count):
        poison(net)
        net.train_step(only(inputs), targets)
    return net.parameters()


# The checks.

def oracle(case):
    """float64 against plain loops: as many samples as planned, and fewer."""
    net, batch_statistics = case.compile(), case.bn == "batch"
    for samples in sorted({1, case.batch}):
        inputs = case.inputs(samples)
        values = walk.forward(net.graph, inputs)
        expected = {f"predict {name}": values[name] for name in net.graph.outputs}
        if batch_statistics:
            values = walk.forward(net.graph, inputs, True)
        gradients, of_weights = walk.backward(net.graph, values, random_dy(net, samples), batch_statistics)
        expected.update({f"forward {name}": values[name] for name in net.graph.outputs})
        # what no output depends on has no gradient
        expected.update({f"dx {name}": gradients.get(name, np.zeros(x.shape)) for name, x in inputs.items()})
        expected.update({f"weight {name}": array for name, array in
                         {**net.graph.weights, **walk.running(net.graph, values, batch_statistics)}.items()})
        expected.update({f"gradient {name}": of_weights.get(name, np.zeros(array.shape))
                         for name, array in net.graph.weights.items()})
        for name, array in everything(net, inputs).items():
            close(array, expected[name], DOUBLE, f"{name}, {samples} samples")


def single_precision(case):
    """float32 against float64."""
    single, double = (everything(case.compile(dtype), case.inputs(dtype=dtype)) for dtype in ("float32", "float64"))
    assert single.keys() == double.keys()
    for name, array in single.items():
        assert array.dtype == np.float32
        close(array, double[name], SINGLE, name)


def gradient(case):
    """Central differences."""
    check_gradients(case.compile(), case.inputs())


def training(case):
    """train_step, which updates weights as it goes and reuses memory, against forward, backward and update by hand."""
    options = {"loss": "mse", "optimizer": mc.SGD(lr=0.01, momentum=0.9, weight_decay=0.1)}
    if not case.trains:
        return
    inputs = case.inputs()
    at_once, by_hand = case.compile(**options), case.compile(**options)
    targets = random_dy(at_once, case.batch)
    for _ in range(2):
        y = by_name(by_hand.graph, by_hand.forward(only(inputs)))
        by_hand.backward({name: 2 * (y[name] - targets[name]) / y[name].size for name in y})
        by_hand.update()
    expected = by_hand.parameters()
    for name, array in steps(at_once, inputs, 2).items():
        close(array, expected[name], DOUBLE, name)


def runtime(case):
    """onnxruntime, on the exported graph."""
    onnxruntime = pytest.importorskip("onnxruntime")
    model = export_onnx(case.graph())
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads, options.inter_op_num_threads = 3, 1, 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    compare_inference(case, lambda inputs: session.run(None, inputs))


def reference(case):
    """onnx's reference evaluator, on the exported graph."""
    evaluator = ReferenceEvaluator(export_onnx(case.graph()))
    compare_inference(case, lambda inputs: evaluator.run(None, inputs))


def compare_inference(case, run):
    inputs = case.inputs(dtype="float32")
    net = case.compile("float32", train=None)
    for name, expected in zip(case.graph().outputs, run(inputs), strict=True):
        close(by_name(net.graph, net.predict(only(inputs)))[name], expected, SINGLE, name)


def repeated(case):
    """Bit for bit the same with 1 and 2 threads, and in memory that held something else before."""
    inputs = case.inputs(dtype="float32")
    net = case.compile("float32")
    with threads(1):
        first = everything(net, inputs)
    with threads(2):
        same_bits(first, everything(net, inputs))
    if case.trains:
        trained = []
        for count in (1, 2):
            net = case.compile("float32", loss="mse", optimizer=mc.SGD(lr=0.01, momentum=0.9))
            with threads(count):
                trained.append(steps(net, inputs))
        same_bits(*trained)


def double_precision(case):
    """predict in float64 against numpy."""
    net, inputs = case.compile(), case.inputs()
    expected = graph_oracle.evaluate(case.graph(), inputs)
    for name, y in by_name(net.graph, net.predict(only(inputs))).items():
        close(y, expected[name], DOUBLE, name)


CHECKS = (oracle, single_precision, gradient, training, runtime, reference, repeated)
# For sizes at which kernels run in parallel, and plain loops would take too long.
LARGE_CHECKS = (single_precision, double_precision, runtime, repeated)


def table(cases, checks=CHECKS):
    """Parametrizes a test with every case and every check that is not skipped there."""
    pairs = [pytest.param(case, check, id=f"{case.name}-{check.__name__}")
             for case in cases for check in checks if check.__name__ not in case.skip]
    return pytest.mark.parametrize("case, check", pairs)
