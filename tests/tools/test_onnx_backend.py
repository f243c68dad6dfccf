"""The library as a backend of onnx's own test suite."""
from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx.backend.test.runner import BackendIsNotSupposedToImplementIt, Runner

import microcnn as mc
from microcnn.tools import onnx_backend, onnx_conformance
from microcnn.tools.onnx_conformance import Outcome, TestCase, judge, stored_cases, table, tally, write_table

FLOAT = TensorProto.FLOAT


def model(node, inputs, outputs, opset=17):
    """A model of one node; inputs and outputs: {name: shape}."""
    def infos(named):
        return [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in named.items()]
    graph = helper.make_graph([node], "one", infos(inputs), infos(outputs))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def test_weights_and_shapes_given_at_run_time_become_constants(rng):
    node = helper.make_node("Conv", ["x", "w", "b"], ["y"], pads=[1, 1, 1, 1])
    conv = model(node, {"x": (FLOAT, (2, 3, 5, 5)), "w": (FLOAT, (4, 3, 3, 3)), "b": (FLOAT, (4,))},
                 {"y": (FLOAT, (2, 4, 5, 5))})
    arrays = [rng.standard_normal(shape).astype(np.float32) for shape in ((2, 3, 5, 5), (4, 3, 3, 3), (4,))]
    y, = onnx_backend.prepare(conv).run(arrays)
    expected, = onnx.reference.ReferenceEvaluator(conv).run(None, dict(zip("xwb", arrays, strict=True)))
    np.testing.assert_allclose(y, expected, atol=1e-5)
    reshape = model(helper.make_node("Reshape", ["x", "s"], ["y"]), {"x": (FLOAT, (2, 3, 4)), "s": (TensorProto.INT64, (2,))},
                    {"y": (FLOAT, (4, 6))})
    x = rng.standard_normal((2, 3, 4)).astype(np.float32)
    y, = onnx_backend.prepare(reshape).run({"x": x, "s": np.array([4, 6])})
    np.testing.assert_array_equal(y, x.reshape(4, 6))


def test_a_model_without_a_batch(rng):
    x = rng.standard_normal((3, 4)).astype(np.float32)
    turn = model(helper.make_node("Transpose", ["x"], ["y"]), {"x": (FLOAT, (3, 4))}, {"y": (FLOAT, (4, 3))})
    np.testing.assert_array_equal(onnx_backend.run_model(turn, [x])[0], x.T)
    y, = onnx_backend.run_node(helper.make_node("Relu", ["x"], ["y"]), [x])
    np.testing.assert_array_equal(y, np.maximum(x, 0))


def test_refusals_name_the_node_and_the_reason():
    einsum = model(helper.make_node("Einsum", ["x"], ["y"], name="sum", equation="ij->i"), {"x": (FLOAT, (3, 4))},
                {"y": (FLOAT, (3,))})
    with pytest.raises(BackendIsNotSupposedToImplementIt, match=r'Einsum "sum" \(opset 17\): no layer does this yet'):
        onnx_backend.prepare(einsum).run([np.zeros((3, 4), np.float32)])
    cut = model(helper.make_node("And", ["x", "x"], ["y"]), {"x": (TensorProto.BOOL, (3,))}, {"y": (TensorProto.BOOL, (3,))})
    with pytest.raises(BackendIsNotSupposedToImplementIt, match="the inputs hold bool; only floating-point numbers"):
        onnx_backend.prepare(cut).run([np.zeros(3, bool)])


@pytest.mark.filterwarnings("ignore::RuntimeWarning")     # of the numbers in onnx's own cases
def test_onnx_own_runner_accepts_it():
    assert onnx_backend.supports_device("CPU") and not onnx_backend.supports_device("CUDA")
    runner = Runner(onnx_backend.MicroCNNBackend, __name__)
    assert hasattr(runner.test_cases["OnnxBackendNodeModelTest"], "test_relu_cpu")


def outcome(verdict, reason=""):
    node = helper.make_node("Relu", ["x"], ["y"])
    case = TestCase("test_relu", model(node, {"x": (FLOAT, (2,))}, {"y": (FLOAT, (2,))}), [], 1e-3, 1e-7)
    return Outcome(case, verdict, reason)


def test_a_case_fails_where_the_answer_is_wrong():
    case = outcome("passed").case
    x = np.array([-1, 2], np.float32)
    right = TestCase(case.name, case.model, [([x], [np.array([0, 2], np.float32)])], 1e-3, 1e-7)
    wrong = TestCase(case.name, case.model, [([x], [np.array([0, 3], np.float32)])], 1e-3, 1e-7)
    other = TestCase(case.name, case.model, [([x], [np.array([0, 2])])], 1e-3, 1e-7)
    assert [judge(one).verdict for one in (right, wrong, other, case)] == ["passed", "failed", "failed", "failed"]


def test_the_table_goes_between_the_markers(tmp_path):
    text = table(tally([outcome("passed"), outcome("refused", 'the model: Relu "a" (opset 17): its "x" is too | long')]))
    assert "| Relu | 1 of 2 | its ... is too / long |" in text
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- operators -->\nold\n<!-- end of operators -->\nafter\n")
    write_table(readme, text)
    written = readme.read_text()
    assert written.startswith("before\n<!-- operators -->\n| ONNX") and written.endswith("<!-- end of operators -->\nafter\n")
    assert "old" not in written
    readme.write_text("nothing")
    with pytest.raises(mc.DataError, match="no place for the table"):
        write_table(readme, text)


def test_the_command_prints_and_tells_what_failed(corpus, capsys):
    folder = corpus / "ops" / "onnx_node"
    assert onnx_conformance.main(["--cases", str(folder), "--operators", "Flatten,Sigmoid", "--reasons"]) == 0
    out = capsys.readouterr().out
    assert "Flatten" in out and "11 cases: 11 passed, 0 failed, 0 refused" in out


def test_no_stored_case_gives_a_wrong_answer(corpus):
    outcomes = [judge(case) for case in stored_cases(corpus / "ops" / "onnx_node")]
    assert len(outcomes) == 270
    assert [f"{one.case.name}: {one.reason}" for one in outcomes if one.verdict == "failed"] == []
    assert all(one.reason for one in outcomes if one.verdict == "refused")


def test_places_are_integers_and_reductions_may_take_the_batch(rng):
    x = rng.standard_normal((3, 4, 5)).astype(np.float32)
    for op, expected in (("ArgMax", x.argmax(1)), ("ArgMin", x.argmin(1))):
        y, = onnx_backend.run_node(helper.make_node(op, ["x"], ["y"], axis=1, keepdims=0), [x])
        assert y.dtype == np.int64
        np.testing.assert_array_equal(y, expected)
    y, = onnx_backend.run_node(helper.make_node("ReduceMax", ["x"], ["y"], keepdims=0), [x])
    assert y == x.max() and y.shape == ()
    with pytest.raises(BackendIsNotSupposedToImplementIt, match=r'input "x" of shape \(2, 0\) is empty'):
        onnx_backend.run_node(helper.make_node("ReduceSum", ["x"], ["y"]), [np.zeros((2, 0), np.float32)])
