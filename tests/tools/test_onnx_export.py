"""Export: imported models come back as they were but for what trained; built graphs go out clean; files are whole."""
from __future__ import annotations

import errno
import os
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from microcnn import checkpoint, files
from microcnn.errors import FileError, ModelError
from microcnn.graph import Graph, Input, Node, WeightRef
from microcnn.tools.onnx_export import export_onnx, save_onnx
from microcnn.tools.onnx_import import load_onnx
from tests.graph_oracle import evaluate
from tests.onnx_models import check, model_of, node, numbers, onnxruntime_outputs, recorded, relative

X = ("N", 3, 9, 7)
SCALE = np.float32(0.02).reshape(())


def quantized(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-127, 127, shape).astype(np.int8)


def everything() -> ModelProto:
    """A model with weights of every kind: typed and raw initializers, Constant nodes, views, dequantized, computed."""
    nodes = [node("DequantizeLinear", ["q", "scale", "zero"], ["w"], name="dq"),
             node("DequantizeLinear", ["q2", "scale"], ["w2"], name="dq2"),
             node("Conv", ["x", "w", "b"], ["c"], pads=[1, 1, 1, 1]), node("Relu", ["c"], ["r"]),
             node("Conv", ["r", "w2"], ["c2"], name="second"),
             node("Constant", [], ["k"], value=numpy_helper.from_array(numbers(4, 1, 1))),
             node("Add", ["c2", "k"], ["a"], name="plus"),
             node("GlobalAveragePool", ["a"], ["g"]), node("Flatten", ["g"], ["f"]),
             node("Transpose", ["m"], ["t"], name="turn"), node("Mul", ["t", "two"], ["m2"], name="double"),
             node("MatMul", ["f", "m2"], ["p"]), node("Add", ["p", "d"], name="bias"),
             node("Tanh", ["y"], ["z"], name="two_outputs")]
    weights = {"q": quantized((4, 3, 3, 3)), "q2": quantized((4, 4, 1, 1), 1), "scale": SCALE,
               "zero": np.int8(3).reshape(()), "b": numbers(4), "m": numbers(5, 4), "two": np.float32(2).reshape(()),
               "d": numbers(1, 5), "spare": numbers(3)}
    model = model_of(nodes, X, weights, 13)
    typed = next(tensor for tensor in model.graph.initializer if tensor.name == "d")
    typed.ClearField("raw_data")
    typed.float_data.extend(weights["d"].reshape(-1).tolist())
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["N", 5]))
    model.graph.value_info.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [4, 3, 3, 3]))
    model.graph.doc_string, model.producer_name = "kept", "someone"
    helper.set_model_props(model, {"author": "kept too"})
    model.graph.initializer[0].doc_string = "a quantized kernel"
    return model


def trained(graph: Graph, *names: str) -> Graph:
    """A copy of a graph in which these weights have changed."""
    changed = graph.copy()
    for name in names:
        changed.weights[name] = (changed.weights[name] * 1.25 + 0.01).astype(changed.weights[name].dtype)
    return changed


def same_outputs(model: ModelProto, graph: Graph, shape: tuple[int, ...]) -> None:
    check(model)
    x = numbers(*shape, seed=9)
    found = evaluate(graph, {"x": x})
    for name, expected in onnxruntime_outputs(model, {"x": x}).items():
        np.testing.assert_allclose(found[name], expected, rtol=2e-5, atol=2e-5)


def test_untrained_is_the_same_message():
    model = everything()
    assert export_onnx(load_onnx(model)) == model
    assert export_onnx(load_onnx(model)).SerializeToString(deterministic=True) == \
        model.SerializeToString(deterministic=True)


def test_untrained_models_of_the_corpus_come_back_byte_for_byte(corpus):
    for name in ("mlperf_ic_resnet8", "mlperf_kws_dscnn", "mnist8_cntk"):
        path = corpus / "models" / name / "model.onnx"
        assert export_onnx(load_onnx(path)) == onnx.load(path), name


def test_the_kept_model_holds_no_weight_twice():
    model = model_of([node("Gemm", ["x", "m"])], ("N", 200), {"m": numbers(200, 100)})
    assert len(load_onnx(model).source.model) < 1000


def test_a_trained_initializer_is_replaced_in_place():
    model, graph = everything(), load_onnx(everything())
    out = export_onnx(trained(graph, "b", "d"))
    same_outputs(out, trained(graph, "b", "d"), (2, 3, 9, 7))
    for name in ("b", "d"):
        before, after = (next(t for t in m.graph.initializer if t.name == name) for m in (model, out))
        assert before != after
        before.CopyFrom(after)
    assert next(t for t in out.graph.initializer if t.name == "d").float_data
    assert out == model


def test_a_trained_constant_node_changes_its_value_only():
    model, graph = everything(), load_onnx(everything())
    out = export_onnx(trained(graph, "k"))
    same_outputs(out, trained(graph, "k"), (2, 3, 9, 7))
    before, after = (next(n for n in m.graph.node if n.op_type == "Constant") for m in (model, out))
    assert before != after
    before.CopyFrom(after)
    assert out == model


def test_a_trained_dequantized_weight_takes_its_nodes_place():
    model, graph = everything(), trained(load_onnx(everything()), "w")
    out = export_onnx(graph)
    same_outputs(out, graph, (2, 3, 9, 7))
    assert [n.name for n in out.graph.node] == [n.name for n in model.graph.node if n.name != "dq"]
    names = [t.name for t in out.graph.initializer]
    # the second one still needs the scale; q and the zero point were the first one's alone
    assert names == [t.name for t in model.graph.initializer if t.name not in ("q", "zero")] + ["w"]
    np.testing.assert_array_equal(numpy_helper.to_array(out.graph.initializer[-1]), graph.weights["w"])
    for part in ("input", "output", "value_info", "doc_string", "name"):
        assert getattr(out.graph, part) == getattr(model.graph, part)
    assert out.metadata_props == model.metadata_props and out.opset_import == model.opset_import
    both = export_onnx(trained(graph, "w2"))
    assert not {"q", "q2", "scale", "zero"} & {t.name for t in both.graph.initializer}
    assert "spare" in {t.name for t in both.graph.initializer}


def test_a_trained_computed_weight_takes_its_nodes_place():
    model, graph = everything(), trained(load_onnx(everything()), "m2")
    assert graph.source.replaced["m2"] == ("folded", "m2")
    out = export_onnx(graph)
    same_outputs(out, graph, (2, 3, 9, 7))
    gone = {"turn", "double"}
    assert [n.name for n in out.graph.node] == [n.name for n in model.graph.node if n.name not in gone]
    assert not {"m", "two"} & {t.name for t in out.graph.initializer}


def test_a_weight_that_another_one_is_computed_from():
    """Training m alone must not change what was computed from it at import."""
    nodes = [node("Mul", ["m", "two"], ["m2"], name="double"), node("MatMul", ["x", "m"], ["p"], name="first"),
             node("MatMul", ["p", "m2"])]
    model = model_of(nodes, ("N", 4), {"m": numbers(4, 4), "two": np.float32(2).reshape(())})
    graph = trained(load_onnx(model), "m")
    same_outputs(export_onnx(graph), graph, (2, 4))


def test_views_are_written_back_in_the_stored_form():
    nodes = [node("Reshape", ["w", "s"], ["m"]), node("MatMul", ["x", "m"])]
    model = model_of(nodes, ("N", 6), {"w": numbers(2, 3, 4), "s": np.array([6, 4])}, 8, ir_version=3)
    graph = trained(load_onnx(model), "w")
    out = export_onnx(graph)
    same_outputs(out, graph, (2, 6))
    model.graph.initializer[0].CopyFrom(out.graph.initializer[0])
    assert out == model


def test_replaced_nodes_in_old_models_become_inputs_as_well():
    nodes = [node("Mul", ["w", "two"], ["m"]), node("MatMul", ["x", "m"])]
    model = model_of(nodes, ("N", 6), {"w": numbers(6, 4), "two": np.float32(2).reshape(())}, 8, ir_version=3)
    graph = trained(load_onnx(model), "m")
    out = export_onnx(graph)
    same_outputs(out, graph, (2, 6))
    assert [entry.name for entry in out.graph.input] == ["x", "m"]


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_the_dtype_of_the_file_is_kept(dtype):
    tensor = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    model = model_of([node("Conv", ["x", "w"])], X, {"w": numbers(4, 3, 3, 3, dtype=dtype)}, dtype=tensor)

    class Net:
        """What export asks of a network: the parameters in the network's own dtype."""

        graph = load_onnx(model)
        trained = set()

        def parameters(self) -> dict[str, np.ndarray]:
            return {name: array.astype(np.float32) for name, array in self.graph.weights.items()}

    assert export_onnx(Net()) == model
    Net.parameters = lambda self: {"w": self.graph.weights["w"].astype(np.float32) + 1}
    out = export_onnx(Net())
    assert out.graph.initializer[0].data_type == tensor
    np.testing.assert_allclose(numpy_helper.to_array(out.graph.initializer[0]), Net.graph.weights["w"] + 1, rtol=1e-3)


def test_typed_half_precision_data():
    model = model_of([node("Conv", ["x", "w"])], X, {"w": numbers(4, 3, 3, 3, dtype=np.float16)},
                     dtype=TensorProto.FLOAT16)
    tensor = model.graph.initializer[0]
    bits = np.frombuffer(tensor.raw_data, np.uint16).tolist()
    tensor.ClearField("raw_data")
    tensor.int32_data.extend(bits)
    graph = load_onnx(model)
    assert len(graph.source.model) < 300 and export_onnx(graph) == model
    model.graph.initializer[0].int32_data[0] ^= 1
    changed = graph.copy()
    changed.weights["w"].reshape(-1).view(np.uint16)[0] ^= 1
    assert export_onnx(changed) == model


def test_values_that_are_not_finite_come_back():
    weight = numbers(5, 4)
    weight[0] = [np.nan, np.inf, -np.inf, -0.0]
    model = model_of([node("MatMul", ["x", "m"])], ("N", 5), {"m": weight})
    assert export_onnx(load_onnx(model)).SerializeToString(deterministic=True) == \
        model.SerializeToString(deterministic=True)


def test_a_trained_corpus_model_runs(corpus):
    for name in ("mlperf_kws_dscnn", "mnist8_cntk"):
        folder = corpus / "models" / name
        graph = load_onnx(folder / "model.onnx")
        changed = trained(graph, *graph.weights)
        out = export_onnx(changed)
        onnx.checker.check_model(out)
        original = onnx.load(folder / "model.onnx")
        expected = [n.name for n in original.graph.node if n.op_type != "DequantizeLinear"]
        assert [n.name for n in out.graph.node] == expected
        assert [i.name for i in out.graph.input] == [i.name for i in original.graph.input]
        assert out.opset_import == original.opset_import
        x = recorded(folder)[0][0]
        found = evaluate(changed, {graph.inputs[0].name: x})[graph.outputs[0]]
        assert relative(found, onnxruntime_outputs(out, {graph.inputs[0].name: x})[graph.outputs[0]]) < 1e-4


def test_the_native_file_gives_the_original_back(tmp_path, corpus):
    for name in ("mlperf_ic_resnet8", "mlperf_kws_dscnn", "mnist8_cntk"):
        source = corpus / "models" / name / "model.onnx"
        graph = load_onnx(source)
        checkpoint.save_graph(graph, tmp_path / "g.mcnn")
        again = checkpoint.load_graph(tmp_path / "g.mcnn")
        assert export_onnx(again) == onnx.load(source), name
        weights = sum(array.nbytes for array in graph.weights.values())
        assert os.path.getsize(tmp_path / "g.mcnn") - weights < len(graph.source.model) + 40_000
        changed = trained(graph, *graph.weights)
        checkpoint.save_graph(changed, tmp_path / "g.mcnn")
        assert export_onnx(checkpoint.load_graph(tmp_path / "g.mcnn")) == export_onnx(changed)


def test_wrong_weights_are_refused():
    graph = load_onnx(everything())
    other = graph.copy()
    other.weights["new"] = numbers(4)
    next(one for one in other.nodes if one.op == "Conv2d").weights["bias"] = WeightRef("new")
    with pytest.raises(ModelError, match='uses weight "new", which the original model does not have'):
        export_onnx(other)
    wrong = graph.copy()
    wrong.weights["b"] = numbers(5)
    with pytest.raises(ModelError, match=r'weight "b" has the shape \(5,\); the original model expects'):
        export_onnx(wrong)


# Graphs built in Python

WINDOW = {"stride": (2, 1), "pads": (1, 0, 1, 1)}


def built() -> Graph:
    """Every layer, with weights of its own."""
    weights = {"stem.weight": numbers(6, 3, 3, 3), "stem.bias": numbers(6), "deep.weight": numbers(6, 1, 3, 3),
               "bn.scale": numbers(6), "bn.bias": numbers(6), "bn.mean": numbers(6), "bn.var": np.abs(numbers(6)) + 1,
               "fc.weight": numbers(5, 24), "fc.bias": numbers(5), "mix.weight": numbers(7, 6), "mix.bias": numbers(6),
               "out.weight": numbers(5, 4), "shift": numbers(6, 1, 1)}

    def ref(name: str, **roles: str) -> dict[str, WeightRef]:
        return {role: WeightRef(f"{name}.{role}") for role in roles.get("roles", "weight bias").split()}

    nodes = [
        Node("Conv2d", "stem", ("x",), ("1",), {"kernel": (3, 3), "stride": (1, 2), "pads": "same_upper",
                                                "dilation": (1, 1), "groups": 1}, ref("stem")),
        Node("Conv2d", "deep", ("1",), ("2",), {"kernel": (3, 3), "stride": (1, 1), "pads": (1, 1, 1, 1),
                                                "dilation": (1, 1), "groups": 6}, ref("deep", roles="weight")),
        Node("BatchNorm2d", "bn", ("2",), ("3",), {"eps": 1e-3, "momentum": 0.8},
             ref("bn", roles="scale bias mean var")),
        Node("Add", "residual", ("1", "3"), ("4",)),
        Node("Clip", "relu6", ("4",), ("5",), {"low": 0.0, "high": 6.0}),
        Node("Add", "shift", ("5",), ("6",), {}, {"other": WeightRef("shift")}),
        Node("MaxPool2d", "max", ("6",), ("7",), {"kernel": (2, 2), **WINDOW, "dilation": (1, 1), "ceil_mode": False}),
        Node("AvgPool2d", "average", ("7",), ("8",), {"kernel": (2, 2), **WINDOW, "ceil_mode": True,
                                                      "count_include_pad": True}),
        Node("Transpose", "turn", ("8",), ("9",), {"perm": (0, 2, 3, 1)}),
        Node("Relu", "relu", ("9",), ("10",)),
        Node("Reshape", "shape", ("10",), ("11",), {"shape": (24, -1)}),
        Node("Transpose", "turn2", ("11",), ("12",), {"perm": (0, 2, 1)}),
        Node("Linear", "fc", ("12",), ("13",), {"transposed": True}, ref("fc")),
        Node("Sigmoid", "sigmoid", ("13",), ("14",)), Node("Tanh", "tanh", ("14",), ("15",)),
        Node("Softmax", "soft", ("15",), ("soft",), {"axis": 1, "flatten": True}),
        Node("Dropout", "drop", ("15",), ("16",), {"p": 0.4}),
        Node("Linear", "out", ("16",), ("deep_out",), {"transposed": False}, ref("out", roles="weight")),
        Node("GlobalAvgPool2d", "global", ("6",), ("17",)), Node("Flatten", "flat", ("17",), ("18",), {"axis": 1}),
        Node("Linear", "head", ("18",), ("logits",), {"transposed": True}, {"weight": WeightRef("mix.weight")}),
        Node("Softmax", "last", ("logits",), ("probabilities",), {"axis": -1, "flatten": False}),
    ]
    return Graph([Input("x", (3, 9, 7))], ["probabilities", "soft", "deep_out"], nodes, weights, name="built",
                 meta={"scale": np.float32(255), "mean": np.array([0.5]), "labels": ["a", "b"]})


def test_a_built_graph_goes_out_clean_and_comes_back():
    graph = built()
    model = export_onnx(graph)
    same_outputs(model, graph, (3, 3, 9, 7))
    assert model.ir_version >= 8 and [(o.domain, o.version) for o in model.opset_import] == [("", 17)]
    for entry in (*model.graph.input, *model.graph.output):
        assert entry.type.tensor_type.shape.dim[0].dim_param == "N"
    assert {t.name for t in model.graph.initializer} >= set(graph.weights) - {"mix.bias"}
    again = load_onnx(model)
    x = numbers(2, 3, 9, 7)
    for name, expected in evaluate(graph, {"x": x}).items():
        np.testing.assert_allclose(evaluate(again, {"x": x})[name], expected, rtol=1e-6, atol=1e-7)
    assert set(again.weights) == set(graph.weights) - {"mix.bias"}
    assert {n.name for n in graph.nodes} - {n.name for n in again.nodes} <= {"drop", "fc", "soft"}
    assert again.meta == {"scale": 255.0, "mean": [0.5], "labels": ["a", "b"]}
    assert export_onnx(again) == model


def test_open_sizes_stay_open_in_the_export():
    conv = Node("Conv2d", "c", ("x",), ("y",), {"kernel": (3, 3), "stride": (1, 1), "pads": (0, 0, 0, 0),
                                                "dilation": (1, 1), "groups": 1}, {"weight": WeightRef("w")})
    graph = Graph([Input("x", (3, None, None))], ["y"], [conv], {"w": numbers(4, 3, 3, 3)})
    model = export_onnx(graph)
    same_outputs(model, graph, (2, 3, 11, 6))
    assert load_onnx(model).inputs[0].shape == (3, None, None)


# Files

def test_saved_files_load_again(tmp_path):
    path = tmp_path / "out.onnx"
    save_onnx(load_onnx(everything()), path)
    assert onnx.load(path) == everything() and os.listdir(tmp_path) == ["out.onnx"]
    assert export_onnx(built(), path) == onnx.load(path)


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("moment", ["fsync", "replace"])
@pytest.mark.parametrize("write", [save_onnx, checkpoint.save_graph])
def test_a_failed_save_leaves_the_old_file_whole(tmp_path, monkeypatch, failure: BaseException, moment: str,
                                                     write: Any):
    path = tmp_path / "out.file"
    path.write_bytes(b"what was there")

    def fail(*arguments: Any) -> None:
        raise failure

    monkeypatch.setattr(files.os, moment, fail)
    expected = FileError if isinstance(failure, OSError) else KeyboardInterrupt
    with pytest.raises(expected) as caught:
        write(built(), path)
    if expected is FileError:
        assert "No space left on device; what was there before is unchanged" in str(caught.value)
    assert path.read_bytes() == b"what was there" and os.listdir(tmp_path) == ["out.file"]


def test_paths_that_cannot_be_written(tmp_path):
    for path in (tmp_path / "absent" / "out.onnx", tmp_path):
        with pytest.raises(FileError, match="cannot write"):
            save_onnx(built(), path)
    target = tmp_path / "real.onnx"
    target.write_bytes(b"")
    (tmp_path / "link.onnx").symlink_to(target)
    save_onnx(built(), tmp_path / "link.onnx")
    assert target.stat().st_size > 1000 and (tmp_path / "link.onnx").is_symlink()
