"""Integer tensors: what runs on them is exact, in their own type, or refused."""
from __future__ import annotations

import numpy as np
import pytest
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import microcnn as mc
from microcnn.integers import INTEGERS
from microcnn.tools import onnx_backend
from tests.onnx_models import node, onnxruntime_outputs


def kind(dtype):
    return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


def model(nodes, inputs, output, weights=None, opset=17):
    """inputs: {name: (dtype, shape)}; output: (dtype, shape or None)."""
    infos = [helper.make_tensor_value_info(name, kind(dtype), shape) for name, (dtype, shape) in inputs.items()]
    graph = helper.make_graph(nodes, "tiny", infos, [helper.make_tensor_value_info("y", kind(output[0]), output[1])],
                              [numpy_helper.from_array(np.asarray(array), name) for name, array in (weights or {}).items()])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def some(dtype, shape, seed=0, small=False):
    """Numbers of the whole type, or of its square root's size."""
    limits, rng = np.iinfo(dtype), np.random.default_rng(seed)
    low, high = (max(limits.min, -180), min(limits.max, 180)) if small else (limits.min, limits.max)
    return rng.integers(low, high, shape, dtype, endpoint=True)


def truncated(a, b):
    a, b = a.astype(np.int64), b.astype(np.int64)
    return np.sign(a) * np.sign(b) * (np.abs(a) // np.abs(b))


FUNCTIONS = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": truncated, "Mod": np.mod, "Max": np.maximum,
             "Min": np.minimum}


@pytest.mark.parametrize("dtype", INTEGERS[:6])
@pytest.mark.parametrize("operator", FUNCTIONS)
def test_arithmetic_wraps_around_as_numpy_does(operator, dtype):
    tiny = model([node(operator, ["a", "b"])], dict.fromkeys("ab", (dtype, ["N", 3, 5])), (dtype, ["N", 3, 5]))
    net = mc.load_onnx(tiny).compile(batch=4, dtype="float64")
    # products of 32 bits are not exact: see below
    a, b = (some(dtype, (7, 3, 5), seed, operator == "Mul" and "32" in dtype) for seed in (1, 2))
    if operator in ("Div", "Mod"):
        b[b == 0] = 3
    y = net.predict({"a": a, "b": b})
    assert y.dtype == np.dtype(dtype)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(y, FUNCTIONS[operator](a, b).astype(dtype))


@pytest.mark.parametrize("operator, function", [("Neg", np.negative), ("Abs", np.abs), ("Sign", np.sign)])
def test_the_least_number_has_no_opposite(operator, function):
    net = mc.load_onnx(model([node(operator, ["x"])], {"x": ("int8", ["N", 256])}, ("int8", ["N", 256]))).compile()
    x = np.arange(-128, 128).astype(np.int8)[None]
    np.testing.assert_array_equal(net.predict(x), function(x))


@pytest.mark.parametrize("operator, constant", [("Add", 100), ("Mul", 3), ("Sub", 100), ("Div", -3), ("Mod", -3), ("Max", 5),
                                                ("Pow", 2)])
def test_constants(operator, constant):
    c = np.array([[constant], [-constant]], np.int32)
    c = np.abs(c) if operator == "Pow" else c
    tiny = model([node(operator, ["x", "c"])], {"x": ("int32", ["N", 2, 9])}, ("int32", ["N", 2, 9]), {"c": c})
    x = some("int32", (3, 2, 9), small=True)
    y = mc.load_onnx(tiny).compile().predict(x)
    expected = x ** 2 if operator == "Pow" else FUNCTIONS[operator](x, c).astype(np.int32)
    np.testing.assert_array_equal(y, expected)


MOVING = {
    "concat": node("Concat", ["x", "x"], axis=1), "slice": node("Slice", ["x", "one", "two", "two", "one"]),
    "transpose": node("Transpose", ["x"], perm=[0, 2, 3, 1]), "reshape": node("Reshape", ["x", "shape"]),
    "flatten": node("Flatten", ["x"]), "pad": node("Pad", ["x", "pads", "value"]),
    "edge": node("Pad", ["x", "pads"], mode="edge"), "gather": node("Gather", ["x", "indices"], axis=2),
    "tile": node("Tile", ["x", "repeats"]), "expand": node("Expand", ["x", "wide"]), "relu": node("Relu", ["x"]),
    "clip": node("Clip", ["x", "value", "value2"]), "identity": node("Identity", ["x"]),
    "where": node("Where", ["mask", "x", "value"]), "unsqueeze": node("Unsqueeze", ["x", "one"]),
    "depth": node("SpaceToDepth", ["x"], blocksize=2), "pool": node("MaxPool", ["x"], kernel_shape=[2, 3], pads=[1, 1, 0, 1]),
}


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "uint16"])
@pytest.mark.parametrize("name", MOVING)
def test_what_moves_numbers(name, dtype):
    weights = {"one": np.int64([1]), "two": np.int64([2]), "shape": np.int64([0, 4, -1]), "wide": np.int64([1, 2, 4, 6]),
               "pads": np.int64([0, 1, 0, 2, 0, 0, 1, 0]), "value": np.asarray(5, dtype), "value2": np.asarray(77, dtype),
               "indices": np.int64([3, 0, 0]), "repeats": np.int64([1, 2, 1, 3]), "mask": some("int8", (4, 1)) > 0}
    used = {one: array for one, array in weights.items() if one in MOVING[name].input}
    shape = ["N", 1 if name == "expand" else 2, 4, 6]
    tiny = model([MOVING[name]], {"x": (dtype, shape)}, (dtype, None), used)
    x = some(dtype, (3, *shape[1:]), small=dtype == "int32")
    if (name == "pool" and dtype not in ("int8", "uint8")) or (name == "relu" and dtype[0] == "u"):
        with pytest.raises(mc.UnsupportedError, match=f'it reads the {dtype} tensor "x", which ONNX.* does not take'):
            mc.load_onnx(tiny)
        return
    y = mc.load_onnx(tiny).compile(batch=2).predict(x)
    assert y.dtype == np.dtype(dtype)
    try:
        expected = onnxruntime_outputs(tiny, {"x": x})["y"]
    except Exception:                     # it has fewer types than ONNX
        expected, = ReferenceEvaluator(tiny).run(None, {"x": x})
    np.testing.assert_array_equal(y, expected)


def test_casts():
    nodes = [node("Cast", ["x"], ["f"], to=kind("float32")), node("Mul", ["f", "s"], ["m"]),
             node("Cast", ["m"], to=kind("int16"), name="back")]
    graph = mc.load_onnx(model(nodes, {"x": ("uint8", ["N", 256])}, ("int16", ["N", 256]), {"s": np.float32(-1.7)}))
    x = np.arange(256, dtype=np.uint8)[None]
    np.testing.assert_array_equal(graph.compile().predict(x), (x.astype(np.float32) * np.float32(-1.7)).astype(np.int16))
    assert graph.types() == {"x": "uint8", "f": "float32", "m": "float32", "y": "int16"}
    with pytest.raises(mc.CompileError, match='no gradient passes Cast "back"'):
        graph.compile(train="all", loss="mse", optimizer=mc.SGD(lr=1))
    narrow = model([node("Cast", ["x"], to=kind("int8"))], {"x": ("int32", ["N", 4])}, ("int8", ["N", 4]))
    y = mc.load_onnx(narrow).compile().predict(np.int32([[127, 128, -129, 1000]]))
    np.testing.assert_array_equal(y, np.int32([[127, 128, -129, 1000]]).astype(np.int8))
    same = mc.load_onnx(model([node("Cast", ["x"], to=kind("int8")), ], {"x": ("int8", ["N", 4])}, ("int8", ["N", 4])))
    assert [one.op for one in same.nodes] == ["Cast"]


def test_images_of_bytes_train_behind_a_cast():
    nodes = [node("Cast", ["x"], ["f"], to=kind("float32")), node("Conv", ["f", "w"])]
    weights = {"w": np.random.default_rng(0).normal(size=(2, 3, 3, 3)).astype(np.float32) / 100}
    graph = mc.load_onnx(model(nodes, {"x": ("uint8", ["N", 3, 6, 6])}, ("float32", ["N", 2, 4, 4]), weights))
    net = graph.compile(batch=2, train="all", loss="mse", optimizer=mc.SGD(lr=1e-7))
    x, t = some("uint8", (2, 3, 6, 6)), np.zeros((2, 2, 4, 4), np.float32)
    losses = [net.train_step(x, t) for _ in range(3)]
    assert losses[2] < losses[0]
    y = net.forward(x)
    assert net.backward(np.ones_like(y)).shape == x.shape


def test_integers_through_the_manual_programs():
    tiny = model([node("Transpose", ["x"], ["t"], perm=[0, 2, 1]), node("Relu", ["t"])], {"x": ("int8", ["N", 3, 5])},
                 ("int8", ["N", 5, 3]))
    net = mc.load_onnx(tiny).compile(batch=2)
    x = some("int8", (2, 3, 5))
    y = net.forward(x)
    assert y.dtype == np.int8
    np.testing.assert_array_equal(y, np.maximum(x.transpose(0, 2, 1), 0))
    np.testing.assert_array_equal(net.backward(np.ones((2, 5, 3), np.float32)), (x > 0).astype(np.float32))


def test_what_would_not_be_exact_is_refused():
    product = model([node("Mul", ["x", "x"])], {"x": ("int32", ["N", 2])}, ("int32", ["N", 2]))
    net = mc.load_onnx(product).compile(dtype="float64")
    np.testing.assert_array_equal(net.predict(np.int32([[90000, 3]])), np.int32([[90000, 3]]) * np.int32([[90000, 3]]))
    with pytest.raises(mc.DataError, match='output "y" is int32 and came out as NaN.*larger than float64 holds exactly'):
        net.predict(np.int32([[2**30, 3]]))
    single = mc.load_onnx(product).compile()
    with pytest.raises(mc.DataError, match=r"up to 16777216 only; compile\(dtype=\"float64\"\)"):
        single.predict(np.int32([[2**25, 3]]))
    with pytest.raises(mc.DataError, match=r"NaN.*compile\(dtype=\"float64\"\) has room"):
        single.predict(np.int32([[2**13, 3]]))
    divided = mc.load_onnx(model([node("Div", ["a", "b"])], dict.fromkeys("ab", ("int8", ["N", 2])), ("int8", ["N", 2])))
    with pytest.raises(mc.DataError, match="a division was by 0"):
        divided.compile().predict({"a": np.int8([[1, 2]]), "b": np.int8([[1, 0]])})
    wide = model([node("Add", ["x", "c"])], {"x": ("int64", ["N", 2])}, ("int64", ["N", 2]), {"c": np.int64([2**53 + 1, 0])})
    with pytest.raises(mc.UnsupportedError, match=r"holds integers beyond 2\*\*53"):
        mc.load_onnx(wide)
    below = mc.load_onnx(model([node("Sub", ["a", "b"])], dict.fromkeys("ab", ("uint64", ["N", 1])), ("uint64", ["N", 1])))
    net = below.compile(dtype="float64")
    assert net.predict({"a": np.uint64([[2**53]]), "b": np.uint64([[1]])}) == 2**53 - 1
    with pytest.raises(mc.DataError):
        net.predict({"a": np.uint64([[1]]), "b": np.uint64([[2]])})


def test_the_backend_computes_integers_in_double_precision():
    a, b = np.int32([[2**31 - 1, -2**31]]), np.int32([[1, -1]])
    add = model([node("Add", ["a", "b"])], dict.fromkeys("ab", ("int32", [1, 2])), ("int32", [1, 2]))
    y, = onnx_backend.prepare(add).run([a, b])
    np.testing.assert_array_equal(y, np.int32([[-2**31, 2**31 - 1]]))
    multiply = model([node("Mul", ["a", "b"])], dict.fromkeys("ab", ("int64", [1, 2])), ("int64", [1, 2]))
    with pytest.raises(onnx_backend.BackendIsNotSupposedToImplementIt, match="from 1 to 4611686018427387904"):
        onnx_backend.prepare(multiply).run([np.int64([[2**62, 1]]), np.int64([[3, 3]])])
