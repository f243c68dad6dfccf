"""BatchNorm2d: on running statistics, on the batch's, folded."""
import numpy as np
import pytest

import microcnn as mc
from microcnn.tools.onnx_export import export_onnx
from tests import graph_oracle
from tests.ops.table import LARGE_CHECKS, SINGLE, Case, built, by_name, close, graph_of, lively, only, steps, table

SHAPES = [((1, 3, 4), 2), ((3, 5, 4), 3), ((5, 2, 3), 2), ((17, 1, 2), 3), ((33, 2, 1), 2), ((5,), 3), ((17,), 2)]


def batchnorm(shape, eps=1e-3, momentum=0.8):
    C = shape[:1]
    return graph_of("BatchNorm2d", shape, weights={"scale": C, "bias": C, "mean": C, "var": C}, eps=eps,
                    momentum=momentum)


CASES = [Case(f"{mode}-{'x'.join(map(str, shape))}", lambda shape=shape: batchnorm(shape), batch, mode)
         for shape, batch in SHAPES for mode in ("frozen", "batch") if mode == "frozen" or len(shape) > 1]
CASES += [
    Case("frozen-one-pixel-batch-1", lambda: batchnorm((5, 1, 1)), 1),
    Case("batch-1-of-an-image", lambda: batchnorm((5, 4, 3)), 1, "batch"),
    Case("large-eps", lambda: batchnorm((3, 2, 2), eps=0.5, momentum=0.0), 3, "batch"),
    Case("frozen-scale-alone-trains", lambda: batchnorm((3, 4, 3)), options={"train": ["scale"]}),
    Case("frozen-bias-alone-trains", lambda: batchnorm((3, 4, 3)), options={"train": ["bias"]}),
    Case("batch-bias-alone-trains", lambda: batchnorm((3, 4, 3)), 3, "batch", options={"train": ["bias"]}),
    Case("nothing-trains", lambda: batchnorm((3, 4, 3)), options={"train": None}),
]


@table(CASES)
def test_batchnorm(case, check):
    check(case)


def residual(first, second):
    """Norms that stand alone, with activations fused into them, in place where that is allowed, and a residual."""
    def build():
        b = mc.GraphBuilder(seed=3)
        x = b.input("x", (5, 4, 3))
        # channels are mixed in between: a norm right behind a norm takes away what the first one's scale does
        y = b(mc.Conv2d(5, 3, padding=1, bias=False), b(first, b(mc.BatchNorm2d(), x)))
        y = b(mc.Add(), b(second, b(mc.BatchNorm2d(eps=0.01), y)), b(mc.Conv2d(5, 1, bias=False), x))
        y = b(mc.BatchNorm2d(momentum=0.3), b(mc.MaxPool2d(2, stride=1), y))
        return lively(b.graph(b(mc.Conv2d(3, 2, bias=False), b(mc.ReLU(), y))))
    return build


@table([Case(f"{mode}-{name}", residual(*layers), 3, mode) for mode in ("frozen", "batch", "fold")
        for name, layers in (("relu", (mc.ReLU(), mc.Clip(-0.3, 0.4))), ("smooth", (mc.Tanh(), mc.Sigmoid())))])
def test_between_other_layers(case, check):
    check(case)


LARGE = [Case(f"{mode}-{'x'.join(map(str, shape))}", lambda shape=shape: batchnorm(shape), batch, mode)
         for shape, batch in (((24, 60, 61), 3), ((33, 50, 51), 3), ((3, 220, 221), 2)) for mode in ("frozen", "batch")]


@table(LARGE, LARGE_CHECKS)
def test_large(case, check):
    check(case)


@pytest.mark.parametrize("dtype, tolerance", [("float32", 2e-6), ("float64", 1e-12)])
@pytest.mark.parametrize("H, W", [(5, 4), (4, 4), (48, 48)])
def test_statistics_of_numbers_far_from_zero(rng, H, W, dtype, tolerance):
    """A variance made of E[x^2] - E[x]^2 would lose every digit here."""
    graph = batchnorm((3, H, W), momentum=0.0)
    net = graph.compile(batch=3, train="all", bn="batch", dtype=dtype)
    x = (1000 + rng.integers(-8, 8, (3, 3, H, W)) / 8).astype(dtype)
    net.forward(x)
    close(net.parameters()["var"], x.astype(np.float64).var((0, 2, 3)), tolerance, "variance")
    close(net.parameters()["mean"], x.astype(np.float64).mean((0, 2, 3)), tolerance, "mean")


def network(bias=True):
    return built((3, 6, 6), mc.Conv2d(5, 3, bias=bias), mc.BatchNorm2d(), mc.ReLU(), mc.Conv2d(4, 3, bias=bias),
                 mc.BatchNorm2d(eps=0.01))


@pytest.mark.parametrize("bias", [True, False])
def test_folding_changes_nothing_but_what_trains(rng, bias):
    graph, x = network(bias), rng.normal(size=(2, 3, 6, 6))
    frozen, folded = (graph.compile(batch=2, train="all", bn=bn, dtype="float64") for bn in ("frozen", "fold"))
    expected = frozen.predict(x)
    # the weights stay float32, so folding rounds them once
    close(folded.predict(x), expected, SINGLE, "predict")
    close(folded.forward(x), expected, SINGLE, "forward")
    assert frozen.trained - folded.trained >= {"bn1.weight", "bn2.weight"}


@pytest.mark.parametrize("bn", ["frozen", "batch", "fold"])
def test_what_was_trained_goes_out_in_inference_form(rng, bn):
    onnxruntime = pytest.importorskip("onnxruntime")
    case = Case(bn, network, 3, bn)
    inputs = case.inputs(dtype="float32")
    net = case.compile("float32", loss="mse", optimizer=mc.SGD(lr=0.01))
    before = net.predict(only(inputs))
    steps(net, inputs, 2)
    after = net.predict(only(inputs))
    assert np.abs(after - before).max() > 1e-3
    session = onnxruntime.InferenceSession(export_onnx(net).SerializeToString(), providers=["CPUExecutionProvider"])
    close(after, session.run(None, {"input": only(inputs)})[0], SINGLE, "onnxruntime")
    again = net.to_graph().compile(batch=3, dtype="float32")
    close(again.predict(only(inputs)), after, SINGLE, "compiled again")


def test_prediction_folds_again_after_the_weights_change(rng):
    net = network().compile(batch=2, train="all", loss="mse", optimizer=mc.SGD(lr=0.1), dtype="float64")
    x, t = rng.normal(size=(2, 3, 6, 6)), rng.normal(size=(2, 4, 2, 2))

    def check():
        graph = net.to_graph()
        graph.weights.update(net.parameters())
        close(net.predict(x), by_name(graph, graph_oracle.evaluate(graph, {"input": x}))["output"], 1e-12, "predict")
    check()
    net.train_step(x, t)
    check()
    net.forward(x)
    net.backward(t)
    net.update()
    check()
    net.set_parameters({"bn1.running_var": np.array([4.0, 2, 1, 1, 3])})
    check()
    net.evaluate(x, t)
    check()


def test_batch_statistics_of_fewer_samples(rng):
    graph = batchnorm((3, 4, 4))
    few, many = (graph.compile(batch=n, train="all", bn="batch", dtype="float64") for n in (2, 5))
    x, dy = rng.normal(size=(2, 3, 4, 4)), rng.normal(size=(2, 3, 4, 4))
    for one, other in ((few.forward(x), many.forward(x)), (few.backward(dy), many.backward(dy))):
        close(one, other, 1e-12, "batch of 2 in buffers for 5")
    for name, array in few.parameters().items():
        close(many.parameters()[name], array, 1e-12, name)


def test_a_weight_of_two_convolutions_is_not_folded(rng):
    """Each batch norm would want it scaled in its own way."""
    graph = built((4, 6, 6), mc.Conv2d(4, 3, padding=1, name="one"), mc.BatchNorm2d(), mc.ReLU(),
                  mc.Conv2d(4, 3, padding=1, name="two"), mc.BatchNorm2d())
    nodes = {node.name: node for node in graph.nodes}
    nodes["two"].weights["weight"] = nodes["one"].weights["weight"]
    x = rng.standard_normal((2, 4, 6, 6)).astype(np.float32)
    frozen, folded = (graph.compile(batch=2, bn=bn).predict(x) for bn in ("frozen", "fold"))
    np.testing.assert_allclose(folded, frozen, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bn", ["batch", "frozen"])
@pytest.mark.parametrize("role", ["scale", "bias"])
def test_two_norms_share_one_weight_of_theirs(role, bn):
    """Its gradient is added up, those of the others are each norm's own; against differences of the loss."""
    graph = built((3, 6, 6), mc.Conv2d(6, 1), mc.BatchNorm2d(), mc.Tanh(), mc.Conv2d(6, 3), mc.BatchNorm2d(), mc.Tanh(),
                  mc.Conv2d(2, 1))
    first, second = [node for node in graph.nodes if node.op == "BatchNorm2d"]
    second.weights[role] = first.weights[role]
    net = graph.compile(batch=4, train="all", bn=bn, loss="mse", optimizer=mc.SGD(lr=1.0), dtype="float64")
    before = {name: array.copy() for name, array in net.parameters().items()}
    rng = np.random.default_rng(2)
    x, t = rng.standard_normal((4, 3, 6, 6)), rng.standard_normal((4, *net.shapes[graph.outputs[0]]))

    def loss(name, step):
        changed = before[name].copy()
        changed[1] += step
        net.set_parameters(before | {name: changed})
        return net.train_step(x, t)

    loss(role_name := first.weights[role].name, 0.0)
    after = net.parameters()
    for name in {role_name, *(norm.weights[other].name for norm in (first, second) for other in ("scale", "bias"))}:
        slope = (loss(name, 1e-5) - loss(name, -1e-5)) / 2e-5
        assert (before[name] - after[name])[1] == pytest.approx(slope, rel=1e-5, abs=1e-9), name
