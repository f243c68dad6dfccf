"""Bad input: one clear error each, of our own kind, and nothing has changed afterwards."""
from __future__ import annotations

import re
import warnings

import numpy as np
import pytest

import microcnn as mc

from .tiny import compiled, convolutional, images, same


@pytest.fixture(scope="module", params=["frozen", "batch"])
def net(request):
    """A network that trains; every test leaves it as it is."""
    net = compiled(bn=request.param)
    net.train_step(*images(4))
    return net


def refused(net, kind, message, call):
    """call raises that error, and no weight, running statistic or later result differs."""
    before, x = net.parameters(), images(4)[0]
    y = net.predict(x)
    with pytest.raises(kind) as caught:
        call()
    assert isinstance(caught.value, mc.MicroCNNError)
    assert re.search(message, str(caught.value)), str(caught.value)
    assert same(before, net.parameters())
    assert np.array_equal(net.predict(x), y, equal_nan=True)


def refused_in_debug(net, kind, message, call):
    """As refused, where the program runs row by row."""
    net.debug = True
    try:
        refused(net, kind, message, call)
    finally:
        net.debug = False


X, T = images(4)

INPUTS = [
    (X[0], r'input "input" has shape \(2, 6, 6\); expected \(N, 2, 6, 6\); add the batch axis: x\[None\]'),
    (X.transpose(0, 2, 3, 1), r'input "input" has shape \(4, 6, 6, 2\); expected \(N, 2, 6, 6\); the axes are in another'),
    (X[:, :1], r'input "input" has shape \(4, 1, 6, 6\); expected \(N, 2, 6, 6\)$'),
    (X[..., None], r'input "input" has shape \(4, 2, 6, 6, 1\); expected \(N, 2, 6, 6\)$'),
    (np.float32(3), r'input "input" has shape \(\); expected \(N, 2, 6, 6\)'),
    (X[:0], 'input "input" holds no samples'),
    ([], r'input "input" has shape \(0,\); expected \(N, 2, 6, 6\)'),
    (X.astype(complex), 'input "input" has dtype complex64|input "input" has dtype complex128; expected floats or integers'),
    (X.astype(str), 'input "input" has dtype <U[0-9]+; expected floats or integers'),
    (np.array([None]), 'input "input" has dtype object; expected floats or integers'),
    (None, 'input "input" has dtype object; expected floats or integers'),
    ("x.npz", 'input "input" has dtype <U5; expected floats or integers'),
    ([[1, 2], [3]], 'input "input" is no array of numbers: '),
    ({"image": X}, r"x holds \['image'\]; expected \['input'\]"),
    ({}, r"x holds \[\]; expected \['input'\]"),
]


@pytest.mark.parametrize("x, message", INPUTS, ids=[message[:40] for _, message in INPUTS])
def test_inputs(net, x, message):
    for call in (lambda: net.predict(x), lambda: net.train_step(x, T), lambda: net.evaluate(x, T), lambda: net.forward(x)):
        refused(net, mc.DataError, message, call)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", [(0, 0, 0, 0), (3, 1, 5, 5), (2, 1, 3, 4)])
def test_inputs_that_are_not_finite(net, value, where):
    x = X.copy()
    x[where] = value
    message = rf'input "input" holds {value} at \({", ".join(map(str, where))}\); expected finite numbers'
    for call in lambda: net.train_step(x, T), lambda: net.evaluate(x, T), lambda: net.forward(x):
        refused(net, mc.DataError, message, call)
    refused_in_debug(net, mc.DataError, message, lambda: net.train_step(x, T))


def test_a_clamp_does_not_hide_infinities():
    # relu6 makes 6 of an infinity and the loss stays finite, but the first layer's gradient would be NaN
    graph = mc.Sequential([mc.Flatten(), mc.ReLU6(), mc.Linear(3)], (2, 6, 6)).graph()
    net = graph.compile(batch=4, train="all", loss="cross_entropy", optimizer=mc.SGD(lr=0.1))
    x = X.copy()
    x[1, 0, 2, 2] = np.inf
    refused(net, mc.DataError, r'input "input" holds inf at \(1, 0, 2, 2\)', lambda: net.train_step(x, T))


@pytest.mark.parametrize("at", range(5))
def test_the_last_numbers_are_looked_at_too(at):
    graph = mc.Sequential([mc.ReLU6(), mc.Linear(3)], (5,)).graph()
    net = graph.compile(batch=3, train="all", loss="cross_entropy", optimizer=mc.SGD(lr=0.1))
    x = np.zeros((3, 5), np.float32)
    x[2, at] = -np.inf
    with pytest.raises(mc.DataError, match=rf'input "input" holds -inf at \(2, {at}\)'):
        net.train_step(x, T[:3])
    assert np.isfinite(net.train_step(x[:2], T[:2]))     # what lies behind the last sample does not count


def test_numbers_too_large_for_the_dtype(net):
    x = X.astype(np.float64)
    x[0, 0, 0, 0] = 1e300
    refused(net, mc.DataError, r'input "input" holds inf at \(0, 0, 0, 0\)', lambda: net.train_step(x, T))


TARGETS = [
    ([0, 1, 2, 3], 'target of output "output" holds class 3; expected 0 to 2'),
    ([0, 1, -1, 2], 'target of output "output" holds class -1; expected 0 to 2'),
    (np.array([0, 2**63 + 5, 0, 0], np.uint64), f'target of output "output" holds class {2**63 + 5}; expected 0 to 2'),
    (T[:3], r'target of output "output" has shape \(3,\); expected \(4,\) class indices'),
    (T[:, None], r'target of output "output" has shape \(4, 1\); expected \(4,\) class indices; drop the last axis: t\[:, 0\]'),
    (np.eye(3, dtype=int)[T], r'target of output "output" has shape \(4, 3\); expected \(4,\) class indices'),
    (T.astype(float), r'target of output "output" is float64 of shape \(4,\); expected \(4,\) class indices \(integers\), or '
                      r'probabilities of shape \(4, 3\)'),
    (np.full((4, 3), np.nan), 'target of output "output" holds probabilities below 0 or NaN'),
    (np.full((4, 3), -0.1), 'target of output "output" holds probabilities below 0 or NaN'),
    (np.full((4, 3), np.inf), 'target of output "output" holds NaN or infinite numbers'),
    (["a"] * 4, 'target of output "output" has dtype <U1; expected floats or integers'),
    (None, 'target of output "output" has dtype object; expected floats or integers'),
    ({"label": T}, r"t holds \['label'\]; expected \['output'\]"),
    ({}, r't holds no target for output "output"; it holds \[\]'),
]


@pytest.mark.parametrize("t, message", TARGETS, ids=[message[:60] for _, message in TARGETS])
def test_targets(net, t, message):
    for call in lambda: net.train_step(X, t), lambda: net.evaluate(X, t):
        refused(net, mc.DataError, message, call)
    refused_in_debug(net, mc.DataError, message, lambda: net.train_step(X, t))


def test_targets_of_mean_squared_error():
    net = compiled(loss="mse")
    for t, message in (
            (T, r'target of output "output" has shape \(4,\); expected \(4, 3\), as the output'),
            (np.full((4, 3), np.nan), 'target of output "output" holds NaN or infinite numbers'),
            (np.full((4, 3), np.inf), 'target of output "output" holds NaN or infinite numbers')):
        refused(net, mc.DataError, message, lambda t=t: net.train_step(X, t))


@pytest.mark.parametrize("weight, message", [
    ([1, 1], r"sample_weight has shape \(2,\); expected \(4,\), one number per sample"),
    ([1, 1, 1, -1], "sample_weight holds numbers below 0, NaN or infinite ones"),
    ([1, 1, 1, np.nan], "sample_weight holds numbers below 0, NaN or infinite ones"),
    ([1, 1, 1, np.inf], "sample_weight holds numbers below 0, NaN or infinite ones"),
    ([1, 1, 1, 1e300], r"sample_weight holds 1e\+300; expected numbers from 0 to 1e\+30"),
    ("heavy", "sample_weight has dtype <U5; expected floats or integers")])
def test_sample_weights(net, weight, message):
    refused(net, mc.DataError, message, lambda: net.train_step(X, T, sample_weight=weight))


def test_more_samples_than_planned(net):
    x, t = images(5)
    message = r"x holds 5 samples; this network was compiled for up to 4\. Give fewer, or compile\(batch=5\)"
    refused(net, mc.DataError, message, lambda: net.train_step(x, t))
    refused(net, mc.DataError, message, lambda: net.forward(x))


@pytest.mark.parametrize("out", [np.empty((4, 4), np.float32), np.empty((4, 3)), np.empty((3, 4), np.float32).T, [0] * 12,
                                 np.broadcast_to(np.float32(0), (4, 3))], ids=["shape", "dtype", "order", "list", "read-only"])
def test_out(net, out):
    refused(net, mc.DataError, r'out for "output" must be a writable, contiguous float32 array of shape \(4, 3\); it is ',
            lambda: net.predict(X, out=out))


def test_dy(net):
    net.forward(X)
    for dy, message in (
            (np.ones((3, 3)), r'dy of output "output" is float64 of shape \(3, 3\); expected numbers of shape \(4, 3\), as'),
            (np.full((4, 3), np.nan), r'dy of output "output" holds nan at \(0, 0\); expected finite numbers'),
            (np.full((4, 3), "a"), r'dy of output "output" is <U1 of shape \(4, 3\)'),
            ({"logits": np.ones((4, 3))}, r"dy holds \['logits'\]; expected \['output'\]")):
        refused(net, mc.DataError, message, lambda dy=dy: net.backward(dy))
    net.backward(np.ones((4, 3)))       # the forward is still there


def test_several_inputs():
    b = mc.GraphBuilder()
    one, two = b.input("a", (3,)), b.input("b", (3,))
    net = b.graph(b(mc.Linear(2), b(mc.Add(), one, two))).compile(batch=2)
    a = np.zeros((2, 3))
    for x, message in (
            (a, r"x must be a dict of arrays by name, the model has \['a', 'b'\]"),
            ({"a": a}, r"x holds \['a'\]; expected \['a', 'b'\]"),
            ({"a": a, "b": a, "c": a}, r"x holds \['a', 'b', 'c'\]; expected \['a', 'b'\]"),
            ({"a": a, "b": a[:1]}, r"the inputs have different numbers of samples: {'a': 2, 'b': 1}; they must be equal")):
        with pytest.raises(mc.DataError, match=message):
            net.predict(x)


WEIGHTS = [
    ({"conv9.weight": np.zeros(3)}, r'"conv9\.weight" is no weight of this network; it has \[.*conv1\.weight'),
    ({"linear1.bias": np.zeros(4)}, r'weight "linear1\.bias" must be numbers of shape \(3,\); it is float64 of shape \(4,\)'),
    ({"linear1.bias": ["a", "b", "c"]}, r'weight "linear1\.bias" must be numbers of shape \(3,\); it is .*list'),
    ({"linear1.bias": [1, 2, np.nan]}, r'weight "linear1\.bias" holds NaN or infinite numbers'),
    ({"linear1.bias": np.ones(3), "conv1.bias": np.ones(3)}, r'weight "conv1\.bias" must be numbers of shape \(4,\)'),
    ([("linear1.bias", np.zeros(3))], "set_parameters takes a dict of arrays by weight name; it was given list")]


@pytest.mark.parametrize("arrays, message", WEIGHTS, ids=[message[:40] for _, message in WEIGHTS])
def test_set_parameters(net, arrays, message):
    refused(net, mc.DataError, message.replace("list", "(list|<U1)"), lambda: net.set_parameters(arrays))


def test_weights_too_large_for_the_dtype(net):
    refused(net, mc.DataError, r'weight "linear1\.bias" holds NaN or infinite numbers, or ones that float32 cannot hold',
            lambda: net.set_parameters({"linear1.bias": np.full(3, 1e300)}))


@pytest.mark.parametrize("lr", [-0.1, np.nan, np.inf, 10**400, "fast", None, True])
def test_learning_rates(net, lr):
    def call():
        net.lr = lr
    refused(net, mc.CompileError, r"lr is .*; expected a finite number, 0 or more", call)
    assert net.lr == 0.1
    with pytest.raises(mc.CompileError, match="lr is "):
        mc.SGD(lr=lr)


ARGUMENTS = [
    (dict(batch=0), r"batch is 0; expected an integer from 1 to 16,777,216"),
    (dict(batch=-3), r"batch is -3; expected an integer"),
    (dict(batch=2.0), r"batch is 2\.0; expected an integer"),
    (dict(batch=True), r"batch is True; expected an integer"),
    (dict(batch="8"), r"batch is '8'; expected an integer"),
    (dict(batch=2**60), rf"batch is {2**60}; expected an integer from 1 to 16,777,216"),
    (dict(train="everything"), r'train is "everything"; expected None, "all", "head", a list of patterns .* \["everything"\]'),
    (dict(train=["conv2.*"]), r'train: "conv2\.\*" matches no weight that can be trained; close to it: \[.*conv1'),
    (dict(train=["bn1.running_*"]), r'train: "bn1\.running_\*" matches no weight that can be trained; it matches '
                                    r"\['bn1\.running_mean', 'bn1\.running_var'\], which training does not change"),
    (dict(train={"conv1.*": -1}), r"train holds 'conv1\.\*': -1; expected a pattern \(text\) and a finite factor, 0 or more"),
    (dict(train={"conv1.*": float("nan")}), r"train holds 'conv1\.\*': nan; expected"),
    (dict(train=[7]), r"train holds 7: 1\.0; expected a pattern"),
    (dict(train=3), r"train is 3; expected None"),
    (dict(loss="hinge"), r'loss is \'hinge\'; expected one of "cross_entropy", "mse"'),
    (dict(loss=mc.CrossEntropyLoss), r"loss is the class CrossEntropyLoss; make one of it: mc\.CrossEntropyLoss\(\)"),
    (dict(loss={"logits": "mse"}), r"loss names output \"logits\", which the model does not have; it has \['output'\]"),
    (dict(loss=mc.CrossEntropyLoss(weight=[1, 2])), r'CrossEntropyLoss: weight holds 2 numbers; output "output" has 3 classes'),
    (dict(optimizer="lion"), r"optimizer is 'lion'; expected one of mc\.SGD\(\.\.\.\), mc\.Adam\(\.\.\.\)"),
    (dict(optimizer=mc.Adam), r"optimizer is the class Adam; make one of it: mc\.Adam\(lr=0\.01\)"),
    (dict(optimizer=0.1), r"optimizer is 0\.1; expected one of"),
    (dict(bn="running"), r"bn is 'running'; expected \"frozen\", \"batch\" or \"fold\""),
    (dict(bn=None), r"bn is None; expected"),
    (dict(dtype="float16"), r"dtype is 'float16'; expected \"float32\" or \"float64\""),
    (dict(dtype=None), r"dtype is None; expected"),
    (dict(seed=-1), r"seed is -1; expected an integer from 0 to 2\*\*63 - 1"),
    (dict(seed=1.5), r"seed is 1\.5; expected"),
    (dict(seed=2**63), rf"seed is {2**63}; expected"),
    (dict(budget=0), r'budget is 0; expected bytes as an integer above 0, or a size such as "256KB" or "8MB"'),
    (dict(budget="lots"), r"budget is 'lots'; expected bytes"),
    (dict(budget="-3KB"), r"budget is '-3KB'; expected bytes"),
    (dict(budget="9" * 400 + "GB"), r"budget is '9+GB'; expected bytes"),
    (dict(train={"*": 10**400}), r"train holds '\*': 10+; expected a pattern \(text\) and a finite factor"),
    (dict(budget=True), r"budget is True; expected bytes"),
    (dict(budget=12.5), r"budget is 12\.5; expected bytes"),
    (dict(budget=1), r"budget is 1 bytes; this network at batch 4 needs [\d,]+ beside its parameters"),
    (dict(input_shapes={"image": (2, 6, 6)}), r"input_shapes names \"image\", which is no input of the model; expected one of "
                                              r"\['input'\]"),
    (dict(input_shapes={"input": (2, 8, 8)}), r"input_shapes\[\"input\"\] is \(2, 8, 8\); the model says \(2, 6, 6\)"),
    (dict(input_shapes={"input": "big"}), r"input_shapes\[\"input\"\] is "),
    (dict(input_shapes=(2, 6, 6)), r"input_shapes is \(2, 6, 6\); expected a dict"),
]


@pytest.mark.parametrize("arguments, message", ARGUMENTS, ids=[str(arguments) for arguments, _ in ARGUMENTS])
def test_arguments_of_compile(arguments, message):
    with pytest.raises(mc.CompileError) as caught:
        compiled(**arguments)
    assert re.search(message, str(caught.value)), str(caught.value)


@pytest.mark.parametrize("make, message", [
    (lambda: mc.SGD(lr=-1), r"SGD: lr is -1; expected a finite number, 0 or more"),
    (lambda: mc.SGD(lr="0.1"), r"SGD: lr is '0\.1'; expected"),
    (lambda: mc.SGD(lr=0.1, momentum=np.nan), r"SGD: momentum is nan; expected"),
    (lambda: mc.SGD(lr=0.1, nesterov=True), r"SGD: nesterov=True with momentum=0"),
    (lambda: mc.Adam(betas=(0.9, 1.0)), r"Adam: betas\[1\] is 1\.0; expected two numbers from 0 to below 1"),
    (lambda: mc.Adam(betas=0.9), r"Adam: betas is 0\.9; expected two numbers"),
    (lambda: mc.AdamW(weight_decay=-1), r"AdamW: weight_decay is -1; expected"),
    (lambda: mc.CrossEntropyLoss(label_smoothing=2), r"CrossEntropyLoss: label_smoothing is 2; expected a number from 0 to 1"),
    (lambda: mc.CrossEntropyLoss(weight=[1, -1]), r"CrossEntropyLoss: weight is \[1, -1\]; expected"),
    (lambda: mc.CrossEntropyLoss(ignore_index=0.5), r"CrossEntropyLoss: ignore_index is 0\.5; expected an integer"),
])
def test_arguments_of_optimizers_and_losses(make, message):
    with pytest.raises(mc.CompileError, match=message):
        make()


def test_what_was_not_given():
    x, t = images(4)
    for missing, message in (
            ("loss", 'needs loss, which compile was not given; compile with loss="cross_entropy"'),
            ("optimizer", r"needs optimizer, which compile was not given; compile with optimizer=mc\.SGD\(lr=0\.01\)"),
            ("train", 'needs train, which compile was not given; compile with train="all"')):
        net = compiled(**{missing: None})
        with pytest.raises(mc.CompileError, match="train_step " + message):
            net.train_step(x, t)
    net = compiled(optimizer=None)
    net.forward(x)
    net.backward(np.ones((4, 3)))
    with pytest.raises(mc.CompileError, match=r"update needs optimizer, which compile was not given"):
        net.update()
    with pytest.raises(mc.CompileError, match="evaluate needs loss, which compile was not given"):
        compiled(loss=None).evaluate(x, t)


@pytest.mark.parametrize("bn", ["frozen", "batch"])
def test_a_loss_that_is_no_longer_finite(bn):
    net, twin = compiled(bn=bn), compiled(bn=bn)
    net.train_step(X, T), twin.train_step(X, T)
    before = net.parameters()
    huge = {name: np.full_like(array, 3e38) if name == "linear1.weight" else array for name, array in before.items()}
    net.set_parameters(huge)
    refused(net, mc.TrainingError, r"the loss is (nan|inf) at step 2; nothing was changed\. Use a smaller learning rate than "
                                   r"0\.1, or look at debug = True", lambda: net.train_step(X, T))
    net.set_parameters(before)
    assert net.train_step(X, T) == twin.train_step(X, T)
    assert same(twin.parameters(), net.parameters())


def test_a_refused_step_leaves_no_trace():
    # the step count, the momentum and the dropout of what follows are as if it had never been
    net, twin = (compiled(optimizer=mc.Adam(lr=0.01), bn="batch") for _ in range(2))
    for seed in range(4):
        x, t = images(4, seed)
        for bad_x, bad_t in ((x * np.nan, t), (x, t + 7)):
            with pytest.raises(mc.DataError):
                net.train_step(bad_x, bad_t)
        assert net.train_step(x, t) == twin.train_step(x, t)
    assert same(net.parameters(), twin.parameters())


def test_the_graph_is_not_touched_by_training():
    graph = convolutional()
    net = compiled(graph, bn="batch")
    net.train_step(X, T)
    assert same(graph.weights, convolutional().weights)
    assert not same(net.parameters(), graph.weights)


def test_targets_too_large_for_the_dtype():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for loss in ("cross_entropy", "mse"):
            net = compiled(loss=loss)
            refused(net, mc.DataError, "NaN or infinite numbers", lambda net=net: net.train_step(X, np.full((4, 3), 1e300)))


def test_dy_that_is_no_array():
    net = compiled()
    net.forward(X)
    with pytest.raises(mc.DataError, match='dy of output ".*" is no array of numbers: '):
        net.backward([[1], [1, 2]])


def test_factors_of_numpy():
    double, single = compiled(train={"*": np.float32(2)}), compiled(train={"*": 2})
    for net in (double, single):
        net.train_step(X, T)
    assert same(double.parameters(), single.parameters())
