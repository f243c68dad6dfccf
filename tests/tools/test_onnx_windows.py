"""Importing convolutions and pooling, of images and of rows (N, C, L), against ONNX Runtime."""
import numpy as np
import onnx
import pytest

import microcnn as mc
from microcnn import load_onnx
from microcnn.tools.onnx_export import export_onnx
from tests.onnx_models import model_of, node, numbers, onnxruntime_outputs

IMAGE, ROW = ("N", 4, 5, 6), ("N", 4, 9)


def same(model, shape, samples=2):
    """The graph, after comparing what it gives with what ONNX Runtime gives."""
    graph = load_onnx(model)
    x = numbers(samples, *shape)
    y = graph.compile(batch=samples).predict(x)
    for expected in onnxruntime_outputs(model, {"x": x}).values():
        assert y.shape == expected.shape
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    return graph


def ops(graph):
    return [one.op for one in graph.nodes]


@pytest.mark.parametrize("opset", [7, 11, 22])
@pytest.mark.parametrize("attributes", [
    {}, {"strides": [2, 3]}, {"strides": [2, 2], "output_shape": [10, 13]}, {"strides": [2, 2], "output_shape": [9, 10]},
    {"strides": [3, 2], "auto_pad": "SAME_UPPER"}, {"strides": [2, 1], "auto_pad": "SAME_LOWER", "dilations": [1, 2]},
    {"strides": [2, 2], "output_shape": [9, 11], "auto_pad": "SAME_UPPER"}, {"auto_pad": "VALID", "strides": [1, 2]},
    {"strides": [4, 5], "auto_pad": "SAME_UPPER"},
    {"strides": [3, 3], "pads": [1, 0, 2, 1], "output_padding": [2, 1], "kernel_shape": [3, 2]}])
def test_transposed_convolutions(opset, attributes):
    weights = {"w": numbers(4, 3, 3, 2), "b": numbers(3)}
    graph = same(model_of([node("ConvTranspose", ["x", "w", "b"], **attributes)], IMAGE, weights, opset), IMAGE[1:])
    assert ops(graph) == ["ConvTranspose2d"]


def test_groups_and_a_bias_that_is_added_later():
    nodes = [node("ConvTranspose", ["x", "w"], ["c"], group=2, strides=[2, 2]), node("Add", ["c", "b"])]
    graph = same(model_of(nodes, IMAGE, {"w": numbers(4, 3, 2, 2), "b": numbers(6, 1, 1)}), IMAGE[1:])
    assert ops(graph) == ["ConvTranspose2d"] and set(graph.nodes[0].weights) == {"weight", "bias"}


@pytest.mark.parametrize("attributes, message", [
    ({"group": 3}, "group is 3; that does not fit 4 input channels"),
    ({"pads": [9, 9, 9, 9]}, "leave nothing of its output"),
    ({"kernel_shape": [2, 2]}, r"kernel_shape is \(2, 2\), but the weight has the shape \(4, 3, 3, 2\)"),
    ({"output_shape": [3]}, r"output_shape is \(3,\); expected 2 sizes")])
def test_transposed_convolutions_that_cannot_be(attributes, message):
    attributes = {name: list(value) if isinstance(value, list) else value for name, value in attributes.items()}
    with pytest.raises(mc.MicroCNNError, match=message):
        load_onnx(unchecked([node("ConvTranspose", ["x", "w"], **attributes)], IMAGE, {"w": numbers(4, 3, 3, 2)}))


def unchecked(nodes, shape, weights):
    """A model of which the shapes are not inferred, because they cannot be."""
    helper = onnx.helper
    graph = helper.make_graph(nodes, "tiny", [helper.make_tensor_value_info("x", 1, shape)],
                              [helper.make_tensor_value_info("y", 1, None)],
                              [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


# Rows.

ROW_NODES = [
    (node("Conv", ["x", "w", "b"], pads=[1, 1]), {"w": numbers(5, 4, 3), "b": numbers(5)}),
    (node("Conv", ["x", "w"], strides=[2], auto_pad="SAME_UPPER"), {"w": numbers(5, 4, 3)}),
    (node("Conv", ["x", "w"], group=4, pads=[2, 0]), {"w": numbers(8, 1, 3)}),
    (node("ConvTranspose", ["x", "w", "b"], strides=[3], pads=[1, 0], output_padding=[2]),
     {"w": numbers(4, 5, 4), "b": numbers(5)}),
    (node("ConvTranspose", ["x", "w"], strides=[2], output_shape=[18]), {"w": numbers(4, 5, 3)}),
    (node("MaxPool", ["x"], kernel_shape=[3], strides=[2], pads=[1, 0]), {}),
    (node("MaxPool", ["x"], kernel_shape=[2], dilations=[3], ceil_mode=1), {}),
    (node("AveragePool", ["x"], kernel_shape=[3], strides=[2], pads=[1, 1], count_include_pad=1), {}),
    (node("AveragePool", ["x"], kernel_shape=[4], auto_pad="SAME_LOWER"), {}),
    (node("GlobalAveragePool", ["x"]), {}),
    (node("GlobalMaxPool", ["x"]), {}),
    (node("BatchNormalization", ["x", "s", "o", "m", "v"]),
     {"s": numbers(4), "o": numbers(4), "m": numbers(4), "v": np.abs(numbers(4)) + np.float32(0.1)})]


@pytest.mark.parametrize("number", range(len(ROW_NODES)))
def test_rows(number):
    one, weights = ROW_NODES[number]
    graph = same(model_of([one], ROW, weights), ROW[1:])
    if one.op_type != "BatchNormalization":
        assert ops(graph)[::2] == ["Reshape", "Reshape"]


def network(length=21):
    """A residual network over rows, as PyTorch would export it."""
    weights = {"w1": numbers(6, 4, 3), "b1": numbers(6), "w2": numbers(6, 6, 3), "w3": numbers(6, 6, 3), "late": numbers(6, 1),
               "w4": numbers(6, 3, 4), "fc": numbers(5, 3)}
    weights |= {f"{role}{i}": numbers(6) for role in "som" for i in (1, 2)} | {"v1": np.ones(6, "f4"), "v2": np.ones(6, "f4")}
    pads = {"p": np.array([0, 0, 2, 0, 0, 0], np.int64)}
    return model_of([
        node("Pad", ["x", "p"], ["padded"], name="pad"),
        node("Conv", ["padded", "w1", "b1"], ["c1"], name="conv1"),
        node("BatchNormalization", ["c1", "s1", "o1", "m1", "v1"], ["n1"], name="bn1"),
        node("Relu", ["n1"], ["r1"], name="relu1"),
        node("Conv", ["r1", "w2"], ["c2"], pads=[1, 1], name="conv2"),
        node("BatchNormalization", ["c2", "s2", "o2", "m2", "v2"], ["n2"], name="bn2"),
        node("Add", ["n2", "r1"], ["a2"], name="add"),
        node("Relu", ["a2"], ["r2"], name="relu2"),
        node("MaxPool", ["r2"], ["m"], kernel_shape=[2], strides=[2], name="pool"),
        node("Conv", ["m", "w3"], ["c3"], pads=[1, 1], name="conv3"),
        node("Add", ["c3", "late"], ["l3"], name="bias3"),
        node("Clip", ["l3"], ["k3"], name="clip"),
        node("ConvTranspose", ["k3", "w4"], ["c4"], strides=[2], name="up"),
        node("Relu", ["c4"], ["r4"], name="relu4"),
        node("GlobalAveragePool", ["r4"], ["g"], name="global"),
        node("Flatten", ["g"], ["f"], name="flat"),
        node("Gemm", ["f", "fc"], transB=1, name="fc")], ("N", 4, length), weights | pads, 13)


@pytest.mark.parametrize("length", [21, "L"])
def test_a_network_over_rows_costs_no_row_more_than_one_over_images(length):
    model = network(length)
    if length == "L":
        graph = load_onnx(model, input_shapes={"x": (4, 21)})
        x = numbers(2, 4, 21)
        np.testing.assert_allclose(graph.compile(batch=2).predict(x), onnxruntime_outputs(model, {"x": x})["y"], rtol=1e-4)
    else:
        graph = same(model, (4, 21))
    schedule = graph.compile(batch=2).schedule("predict")
    schedule.run_forward()
    rows = [(row.kernel, row.layer) for row in schedule.rows]
    assert [kernel for kernel, _ in rows if kernel.startswith("layout.")] == ["layout.input"]
    layers = [layer for kernel, layer in rows if not kernel.startswith("layout.")]
    assert list(dict.fromkeys(layers)) == ["conv1", "conv2", "pool", "conv3", "up", "global", "fc"]


def test_a_residual_is_an_image_before_the_convolution_that_it_is_added_to():
    weights = {"m": numbers(4, 1), "w": numbers(4, 4, 3), "s": np.array([0]), "e": np.array([-2]), "a": np.array([2])}
    nodes = [node("Sub", ["x", "m"], ["z"], name="centre"), node("Mul", ["z", "m"], ["d"], name="scale"),
             node("Conv", ["d", "w"], ["c"], pads=[2, 2], name="one"), node("Slice", ["c", "s", "e", "a"], ["k"]),
             node("Conv", ["k", "w"], ["e2"], pads=[1, 1], name="two"), node("Add", ["e2", "k"], ["t"]), node("Relu", ["t"])]
    graph = same(model_of(nodes, ROW, weights), ROW[1:])
    assert ops(graph) == ["Reshape", "Sub", "Mul", "Conv2d", "Reshape", "Slice", "Reshape", "Conv2d", "Add", "Relu", "Reshape"]
    schedule = graph.compile().schedule("predict")
    schedule.run_forward()
    assert not any(row.kernel.startswith("elementwise.") and row.layer in ("the_Add", "the_Relu") for row in schedule.rows)


def test_a_weight_keeps_one_form():
    weights = {"m": numbers(4, 1), "w": numbers(4, 4, 3)}
    nodes = [node("Conv", ["x", "w"], ["c"], name="one"), node("Add", ["c", "m"], ["d"]), node("Sigmoid", ["d"], ["s"]),
             node("Pow", ["s", "m"])]
    assert "Reshape" in ops(same(model_of(nodes, ROW, weights | {"m": np.abs(weights["m"])}), ROW[1:]))


def test_a_network_over_rows_trains_and_goes_back_to_onnx():
    model = network()
    net = load_onnx(model).compile(batch=2, train="all", loss="mse", optimizer=mc.SGD(lr=0.01))
    schedule = net.schedule("train")
    schedule.run_forward()
    schedule.run_losses(True)
    schedule.run_backward()
    assert [row.kernel for row in schedule.rows if row.kernel.startswith("layout.")] == ["layout.input"]
    x = numbers(2, 4, 21)
    net.train_step(x, numbers(2, 5))
    exported = export_onnx(net)
    for before, after in zip(model.graph.initializer, exported.graph.initializer, strict=True):
        assert before.name == after.name and before.dims == after.dims
    assert [one.SerializeToString() for one in model.graph.node] == [one.SerializeToString() for one in exported.graph.node]
    changed = [one.name for one, two in zip(model.graph.initializer, exported.graph.initializer, strict=True)
               if one.SerializeToString() != two.SerializeToString()]
    assert {"w1", "w2", "w3", "w4", "b1", "late", "fc"} <= set(changed)
    np.testing.assert_allclose(net.predict(x), onnxruntime_outputs(exported, {"x": x})["y"], rtol=1e-4, atol=1e-6)


def test_the_gradients_of_a_network_over_rows():
    from tests.gradcheck import check_gradients
    net = load_onnx(network()).compile(batch=2, train="all", dtype="float64")
    check_gradients(net, {"x": np.random.default_rng(3).normal(size=(2, 4, 21))})


def test_volumes_are_refused_by_name():
    model = model_of([node("Conv", ["x", "w"])], ("N", 4, 5, 6, 7), {"w": numbers(3, 4, 2, 2, 2)})
    with pytest.raises(mc.UnsupportedError, match=r'Conv "the_Conv" \(opset 17\): "x" has 5 axes; only \(N, C, L\) and'):
        load_onnx(model)


def test_indices_that_nothing_reads():
    one = node("MaxPool", ["x"], ["y", "places"], kernel_shape=[2, 2], storage_order=1)
    assert ops(same(model_of([one], IMAGE), IMAGE[1:])) == ["MaxPool2d"]
    model = model_of([one], IMAGE)
    model.graph.output.append(onnx.helper.make_tensor_value_info("places", onnx.TensorProto.INT64, None))
    with pytest.raises(mc.UnsupportedError, match=r'MaxPool "the_MaxPool" \(opset 17\): its further result "places" is not'):
        load_onnx(model)


@pytest.mark.parametrize("more", [{}, {"count_include_pad": 1, "pads": [1, 0, 1, 2]}, {"strides": [2, 1], "ceil_mode": 1}])
def test_average_pooling_with_a_dilation(more):
    one = node("AveragePool", ["x"], kernel_shape=[2, 3], dilations=[2, 2], **more)
    same(model_of([one], IMAGE, opset=19), IMAGE[1:])


def test_batch_norm_of_volumes():
    weights = {"s": numbers(4), "o": numbers(4), "m": numbers(4), "v": np.abs(numbers(4)) + np.float32(0.1)}
    same(model_of([node("BatchNormalization", ["x", *weights])], ("N", 4, 2, 3, 5), weights), (4, 2, 3, 5))
