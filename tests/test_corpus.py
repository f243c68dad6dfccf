"""Networks made by others: recorded outputs, training, and the way back to ONNX."""
from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
import pytest

import microcnn as mc

from .onnx_models import onnxruntime_outputs, recorded, relative

MODELS = ["mlperf_ic_resnet8", "mnist8_cntk", "mlperf_kws_dscnn", "cifar_resnet20"]


@pytest.fixture(scope="module", params=MODELS)
def model(request, corpus) -> dict[str, Any]:
    """One of the models: its name, graph, onnx form, and recorded pairs as whole batches."""
    folder = corpus / "models" / request.param
    pairs = recorded(folder)
    return {"name": request.param, "graph": mc.load_onnx(folder / "model.onnx"), "onnx": onnx.load(folder / "model.onnx"),
            "x": np.concatenate([x for x, _ in pairs]), "y": np.concatenate([y for _, y in pairs])}


def flat(model: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    return model["x"].astype(np.float32), model["y"]


def test_recorded_outputs(model):
    x, y = flat(model)
    for batch in 1, 4:
        found = model["graph"].compile(batch=batch).predict(x)
        assert found.shape == y.shape and found.dtype == np.float32
        assert relative(found, y) < 1e-4


def test_recorded_outputs_one_sample_at_a_time(model):
    x, y = flat(model)
    net = model["graph"].compile()
    for i in range(min(len(x), 5)):
        assert relative(net.predict(x[i:i + 1]), y[i:i + 1]) < 1e-4 * max(1.0, np.ptp(y) / np.ptp(y[i]))


@pytest.mark.parametrize("name", ["ultraface_slim_320_simplified", "yunet_n_320_320"])
def test_recorded_outputs_of_detectors(corpus, name):
    """Several outputs; many are probabilities close to 0, and all of an output may be."""
    folder = corpus / "models" / name
    graph = mc.load_onnx(folder / "model.onnx")
    net = graph.compile(batch=1)
    with np.load(folder / "io.npz") as file:
        inputs = sorted(key for key in file if key.startswith("in"))
        for key in inputs:
            number, _, _ = key[2:].partition("__")
            found = net.predict(file[key])
            assert set(found) == {other.partition("__")[2] for other in file if other.startswith(f"out{number}__")}
            for output, y in found.items():
                expected = file[f"out{number}__{output}"]
                assert y.shape == expected.shape and y.dtype == np.float32
                assert float(np.abs(y - expected).max()) < 1e-5 * max(1.0, float(np.abs(expected).max())), output


def test_no_layout_rows_but_the_doors(corpus):
    graph = mc.load_onnx(corpus / "models" / "mlperf_ic_resnet8" / "model.onnx")
    net = graph.compile(batch=2, train="all", loss="cross_entropy", optimizer=mc.SGD(lr=0.01))
    for program, _ in net._programs.values():
        kernels = [info.kernel for info in program.infos if info.kernel.startswith("layout.")]
        assert set(kernels) <= {"layout.input", "layout.output"}, kernels


def training(model: dict[str, Any], steps: int = 20) -> tuple[mc.Net, list[float], float]:
    """Steps on recorded inputs and the classes that the network gives them, at the largest rate that works."""
    x, y = flat(model)
    batch = min(8, len(x))
    x = x[:batch]
    classes = y.shape[-1]
    t = (y.reshape(len(y), classes).argmax(1)[:batch] + 1) % classes        # other classes than it knows
    net = model["graph"].compile(batch=batch, train="all", loss="cross_entropy", optimizer=mc.SGD(lr=0.01))
    start = net.parameters()
    for power in range(1, 8):
        net.set_parameters(start)
        net.lr = 10.0 ** -power
        losses = []
        try:
            for _ in range(steps):
                losses.append(net.train_step(x, t))
        except mc.TrainingError:
            continue
        if losses[-1] < losses[0]:
            return net, losses, net.lr
    raise AssertionError(f"no rate from 0.1 to 1e-7 lets the loss fall; at the last: {losses}")


def test_training_and_the_way_back(model, tmp_path):
    net, losses, rate = training(model)
    assert all(math.isfinite(loss) for loss in losses)
    assert losses[-1] < losses[0], (rate, losses)
    path = tmp_path / "tuned.onnx"
    mc.save_onnx(net, path)
    tuned = onnx.load(path)
    onnx.checker.check_model(tuned, full_check=True)
    x, _ = flat(model)
    expected = {name: array for name, array in zip([i.name for i in tuned.graph.input], [x[:1]], strict=False)}
    ours = net.predict(x[:1])
    theirs = next(iter(onnxruntime_outputs(tuned, expected).values()))
    assert theirs.shape == ours.shape
    assert relative(ours, theirs) < 1e-4
    before = next(iter(onnxruntime_outputs(model["onnx"], expected).values()))
    assert relative(ours, before) > 1e-4          # something was learnt
    compare(model["onnx"], tuned, {name for name, array in net.parameters().items()
                                   if array.tobytes() != model["graph"].weights[name].astype(array.dtype).tobytes()})


def compare(original: onnx.ModelProto, tuned: onnx.ModelProto, changed: set[str]) -> None:
    """Field by field: nothing may differ but the weights that changed, and nodes that held one."""
    assert changed
    for descriptor in original.DESCRIPTOR.fields:
        if descriptor.name != "graph":
            assert getattr(original, descriptor.name) == getattr(tuned, descriptor.name), descriptor.name
    one, two = original.graph, tuned.graph
    for descriptor in one.DESCRIPTOR.fields:
        if descriptor.name not in ("node", "initializer", "value_info"):
            assert getattr(one, descriptor.name) == getattr(two, descriptor.name), descriptor.name
    nodes = {tuple(node.output): node for node in two.node}
    gone = [node for node in one.node if tuple(node.output) not in nodes]
    # in the place of a DequantizeLinear stands a float initializer with the name of its output
    held = {tensor.name for tensor in two.initializer}
    assert all(node.op_type == "DequantizeLinear" and node.output[0] in held & changed for node in gone)
    kept = [node for node in one.node if tuple(node.output) in nodes]
    assert len(kept) == len(two.node)
    for mine, theirs in zip(kept, two.node, strict=True):
        if mine != theirs:      # a Constant node whose value trained
            assert mine.op_type == theirs.op_type == "Constant" and mine.output[0] in changed
            assert mine.name == theirs.name and mine.output == theirs.output
    before = {tensor.name: tensor for tensor in one.initializer}
    for tensor in two.initializer:
        if tensor.name not in before:
            assert tensor.name in {name for node in gone for name in node.output}
            continue
        old = before[tensor.name]
        if tensor.SerializeToString() != old.SerializeToString():
            assert tensor.name in changed
            assert (tensor.dims, tensor.data_type, tensor.doc_string) == (old.dims, old.data_type, old.doc_string)
    read = {name for node in two.node for name in node.input}
    assert not [name for name in before if name not in held and name in read]
    order = [tensor.name for tensor in two.initializer if tensor.name in before]
    assert order == [tensor.name for tensor in one.initializer if tensor.name in held]


@pytest.mark.parametrize("name", [*MODELS, "ultraface_slim_320_simplified", "yunet_n_320_320", "mlperf_ic_resnet8_int8",
                                  "mlperf_kws_dscnn_int8"])
def test_every_model_goes_out_as_it_runs(corpus, name, tmp_path):
    """With other weights, where it has any that train: onnxruntime gives our outputs."""
    folder = corpus / "models" / name
    graph = mc.load_onnx(folder / "model.onnx")
    net = graph.compile(batch=1)
    if "int8" not in name:
        rng = np.random.default_rng(4)
        net.set_parameters({weight: array * rng.uniform(0.95, 1.05, array.shape) for weight, array in net.parameters().items()
                            if array.ndim > 1})
    mc.save_onnx(net, tmp_path / "out.onnx")
    model = onnx.load(tmp_path / "out.onnx")
    onnx.checker.check_model(model, full_check=True)
    with np.load(folder / "io.npz") as file:
        x = next(file[key] for key in sorted(file) if key.startswith("in"))[:1]
    theirs = onnxruntime_outputs(model, {graph.inputs[0].name: x})
    ours = net.predict(x)
    ours = ours if isinstance(ours, dict) else {graph.outputs[0]: ours}
    assert set(ours) == set(theirs)
    for output, y in ours.items():
        assert y.dtype == theirs[output].dtype and y.shape == theirs[output].shape
        if y.dtype.kind in "iu":
            assert (y == theirs[output]).all()
        else:
            assert np.abs(y - theirs[output]).max() < 1e-4 * max(1.0, float(np.abs(theirs[output]).max())), output


@pytest.mark.parametrize("name", ["mlperf_ic_resnet8_int8", "mlperf_kws_dscnn_int8"])
def test_recorded_classes_of_quantized_models(corpus, name):
    folder = corpus / "models" / name
    net = mc.load_onnx(folder / "model.onnx").compile(batch=2)
    for x, y in recorded(folder):
        assert (net.predict(x).reshape(len(x), -1).argmax(1) == y.reshape(len(x), -1).argmax(1)).all()
