"""Resize: every mode and coordinate, up and down, along any axes; mc.Upsample."""
import numpy as np
import pytest

import microcnn as mc
from microcnn.graph import Graph, Input, Node
from tests.ops.table import LARGE_CHECKS, SINGLE, Case, built, close, gradient, graph_of, only, table

IMAGE = (3, 4, 5)
# What opset 17, which graphs are exported as, cannot say.
NEWER = ("runtime", "reference")
CROP = {"coordinate_transformation_mode": "tf_crop_and_resize", "extrapolation_value": 7.0}


def case(name, shape=IMAGE, axes=(2, 3), batch=2, skip=(), **attrs):
    return Case(name, lambda: graph_of("Resize", shape, axes=axes, **attrs), batch, skip=skip)


NEAREST = [
    *(case(f"nearest-{mode}", nearest_mode=mode, coordinate_transformation_mode=coordinates, sizes=(8, 3))
      for mode, coordinates in (("round_prefer_floor", "half_pixel"), ("round_prefer_ceil", "asymmetric"),
                                ("floor", "half_pixel"), ("ceil", "asymmetric"))),
    case("nearest-twice", (17, 3, 4), batch=3, scales=(2.0, 2.0), nearest_mode="floor",
         coordinate_transformation_mode="asymmetric"),
    case("nearest-corners", scales=(2.0, 3.0), coordinate_transformation_mode="align_corners"),
    case("nearest-symmetric", skip=NEWER, scales=(0.6, 2.5), coordinate_transformation_mode="half_pixel_symmetric"),
    case("nearest-tf-half-pixel", skip=("reference",), scales=(2.0, 0.6), nearest_mode="floor",
         coordinate_transformation_mode="tf_half_pixel_for_nn"),
    case("nearest-crop", sizes=(6, 7), roi=(0.25, 0.5, 0.75, 1.25), **CROP),
    # the reference evaluator takes this mode for another
    case("nearest-opset10-up", skip=("reference",), scales=(1.5, 2.5), nearest_mode="simple",
         coordinate_transformation_mode="asymmetric"),
    case("nearest-opset10-down", skip=("reference",), scales=(0.5, 0.6), nearest_mode="simple",
         coordinate_transformation_mode="asymmetric"),
    case("nearest-opset10-both", skip=NEWER, scales=(0.5, 1.5), nearest_mode="simple",
         coordinate_transformation_mode="asymmetric"),
    case("nearest-not-larger", skip=NEWER, sizes=(7, 8), keep_aspect_ratio_policy="not_larger"),
    case("nearest-not-smaller", skip=NEWER, sizes=(7, 8), keep_aspect_ratio_policy="not_smaller"),
    case("nearest-channels", (4, 3, 2), (1,), sizes=(6,)),
    case("nearest-matrix", (5, 6), (2, 1), sizes=(7, 3)),
    case("nearest-volume", (2, 3, 4, 5), (2, 4), sizes=(5, 3)),
]
FILTERED = [
    *(case(f"{mode}-{coordinates}", mode=mode, coordinate_transformation_mode=coordinates, sizes=(7, 3))
      for mode in ("linear", "cubic") for coordinates in ("half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel")),
    case("linear-scales", scales=(1.5, 0.6), mode="linear"),
    case("linear-twice", (17, 3, 4), batch=3, scales=(2.0, 2.0), mode="linear"),
    case("linear-to-one", sizes=(1, 1), mode="linear", coordinate_transformation_mode="align_corners"),
    case("linear-pytorch-to-one", skip=("reference",), sizes=(1, 1), mode="linear",
         coordinate_transformation_mode="pytorch_half_pixel"),
    case("linear-from-one", (3, 1, 1), sizes=(3, 4), mode="linear"),
    case("linear-symmetric", skip=NEWER, scales=(0.6, 1.5), mode="linear",
         coordinate_transformation_mode="half_pixel_symmetric"),
    case("linear-crop", sizes=(6, 7), roi=(-0.25, 0.5, 0.75, 1.25), mode="linear", **CROP),
    case("linear-crop-to-one", skip=("reference",), sizes=(1, 3), roi=(0.25, 0.25, 0.75, 0.75), mode="linear", **CROP),
    case("linear-antialias", skip=NEWER, sizes=(3, 2), mode="linear", antialias=True),
    case("linear-antialias-excluding", (2, 9, 7), skip=NEWER, sizes=(3, 5), mode="linear", antialias=True,
         exclude_outside=True),
    case("linear-channels", (4, 3, 2), (1,), skip=("runtime",), sizes=(6,), mode="linear"),
    case("linear-not-larger", skip=NEWER, sizes=(9, 8), mode="linear", keep_aspect_ratio_policy="not_larger"),
    case("cubic-excluding", sizes=(7, 9), mode="cubic", cubic_coeff_a=-0.5, exclude_outside=True),
    case("cubic-crop", sizes=(6, 7), roi=(0.25, 0.5, 0.75, 1.25), mode="cubic", **CROP),
    case("cubic-antialias", (2, 9, 7), skip=NEWER, sizes=(3, 5), mode="cubic", antialias=True),
]
UNCHANGED = [case("scale-one", scales=(1.0, 1.0), mode="cubic"), case("no-axes", axes=(), scales=())]


@table([*NEAREST, *FILTERED, *UNCHANGED])
def test_resize(case, check):
    check(case)


def read_twice():
    """A tensor resized two ways, whose gradients add up, and read by a third."""
    b = mc.GraphBuilder(seed=2)
    x = b(mc.Conv2d(5, 3, padding=1), b.input("x", (3, 6, 4)))
    small = b(mc.MaxPool2d(2), x)
    both = b(mc.Add(), b(mc.Upsample(scale_factor=2), small), b(mc.Upsample(size=(6, 4), mode="bilinear"), small))
    return b.graph(b(mc.Conv2d(2, 1), b(mc.Add(), both, x)))


def behind_flatten():
    """A layout that has an axis in two pieces."""
    nodes = [Node("Transpose", "turn", ("x",), ("t",), {"perm": (0, 2, 3, 1)}),
             Node("Reshape", "merge", ("t",), ("m",), {"shape": (20, 3)}),
             Node("Resize", "resize", ("m",), ("r",), {"axes": (1,), "sizes": (7,), "mode": "linear"}),
             Node("Tanh", "tanh", ("r",), ("y",))]
    return Graph([Input("x", IMAGE)], ["y"], nodes, {})


@table([
    Case("conv-upsample-conv", lambda: built((3, 4, 5), mc.Conv2d(4, 3), mc.ReLU(), mc.Upsample(scale_factor=2),
                                             mc.Conv2d(2, 3)), 3),
    Case("bilinear-first", lambda: built((3, 4, 5), mc.Upsample(scale_factor=(2.0, 1.5), mode="bilinear"), mc.Conv2d(2, 3))),
    Case("corners", lambda: built((3, 4, 5), mc.Conv2d(4, 1), mc.Upsample((7, 9), mode="bilinear", align_corners=True))),
    Case("read-twice", read_twice), Case("behind-flatten", behind_flatten, skip=("runtime",))])
def test_graphs(case, check):
    check(case)


@table([case("nearest", (24, 40, 41), batch=3, scales=(2.0, 2.0), nearest_mode="floor",
             coordinate_transformation_mode="asymmetric"),
        # onnxruntime's coordinates are float32, and so have an error that grows with the image
        case("linear", (33, 40, 31), batch=2, skip=("runtime",), sizes=(61, 77), mode="linear"),
        case("cubic-gray", (1, 90, 95), batch=3, skip=("runtime",), sizes=(120, 60), mode="cubic"),
        case("wide", (3, 2, 5000), (2,), sizes=(5,), mode="linear")], LARGE_CHECKS)
def test_large(case, check):
    check(case)


@pytest.mark.torch
@pytest.mark.parametrize("options", [
    {"scale_factor": 2}, {"size": (7, 3)}, {"scale_factor": (1.5, 0.7)}, {"size": 9, "mode": "bilinear"},
    {"scale_factor": 1.7, "mode": "bilinear"}, {"scale_factor": (1.7, 2.0), "mode": "bilinear", "align_corners": True},
    {"size": (9, 4), "mode": "bicubic"}, {"scale_factor": 2, "mode": "bicubic", "align_corners": True}], ids=str)
def test_upsample_is_pytorchs(options):
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(1).normal(size=(2, 3, 6, 10))
    ours = torch.from_numpy(x).requires_grad_()
    expected = torch.nn.Upsample(**options)(ours)
    dy = np.random.default_rng(2).normal(size=expected.shape)
    expected.backward(torch.from_numpy(dy))
    net = built((3, 6, 10), mc.Upsample(**options)).compile(batch=2, dtype="float64")
    # PyTorch divides by the factor as it is, here it is a float32, as in ONNX
    close(net.forward(x), expected.detach().numpy(), SINGLE, "y")
    close(net.backward(dy), ours.grad.numpy(), SINGLE, "dx")


def test_positions_without_taps_take_no_part():
    """Numbers outside the crop are the value given, also where the input is not finite."""
    net = graph_of("Resize", (1, 1, 3), axes=(3,), sizes=(3,), roi=(0.5, 1.5), mode="linear", **CROP).compile(batch=1)
    y = net.predict(np.array([np.nan, 1, 2], np.float32).reshape(1, 1, 1, 3))
    assert y.reshape(-1).tolist() == [1, 2, 7]


@pytest.mark.parametrize("attrs, text", [
    ({"axes": (0,), "scales": (2.0,)}, r"axes \(=\(0,\)\) must be different axes of the sample, 1 to 3"),
    ({"axes": (2, 2), "scales": (2.0, 2.0)}, r"axes \(=\(2, 2\)\) must be different"),
    ({"axes": (2,), "scales": (2.0,), "sizes": (8,)}, "has both scales and sizes; give one"),
    ({"axes": (2,)}, "has neither scales and sizes; give one"),
    ({"axes": (2,), "scales": (0.0,)}, r"scales \(=\(0.0,\)\) must be 1 positive numbers"),
    ({"axes": (2,), "scales": (float("nan"),)}, "must be 1 positive numbers"),
    ({"axes": (2,), "sizes": (3, 4)}, r"sizes \(=\(3, 4\)\) must be 1 positive"),
    ({"axes": (2,), "scales": (0.1,)}, r"\(3, 4, 5\) would become \(3, 0, 5\)"),
    ({"axes": (2,), "scales": (1e30,)}, "would become"),
    ({"axes": (2,), "sizes": (2,), "mode": "area"}, "mode is 'area'; expected one of nearest, linear, cubic"),
    ({"axes": (2,), "sizes": (2,), "coordinate_transformation_mode": "tf_crop_and_resize"}, "needs a roi"),
    ({"axes": (2,), "sizes": (2,), "roi": (0.0,)}, r"roi \(=\(0.0,\)\) must be 2 finite numbers")])
def test_refused(attrs, text):
    with pytest.raises(mc.ModelError, match=f'Resize "node".*{text}'):
        graph_of("Resize", IMAGE, **attrs).shapes()


@pytest.mark.parametrize("options, text", [
    ({}, "has neither size and scale_factor"), ({"size": 3, "scale_factor": 2}, "has both size and scale_factor"),
    ({"scale_factor": -1}, "scale_factor is -1; expected a positive number"), ({"size": 0}, "size is 0"),
    ({"scale_factor": 2, "mode": "area"}, "mode is 'area'"),
    ({"scale_factor": 2, "align_corners": True}, "align_corners is True and mode is nearest")])
def test_upsample_refuses(options, text):
    with pytest.raises(mc.ModelError, match=f"Upsample.*{text}"):
        mc.Sequential([mc.Upsample(**options)], input_shape=IMAGE).graph()


def test_what_opset_17_cannot_say(tmp_path):
    net = graph_of("Resize", IMAGE, axes=(2,), sizes=(2,), mode="linear", antialias=True).compile(batch=1)
    with pytest.raises(mc.ModelError, match='node "node": antialias, keep_aspect_ratio_policy and half_pixel_symm'):
        mc.save_onnx(net, tmp_path / "model.onnx")


def test_no_layout_rows_between_convolutions():
    net = built((3, 8, 8), mc.Conv2d(4, 3, padding=1), mc.Upsample(scale_factor=2), mc.Conv2d(4, 3)).compile(batch=2)
    net.predict(only({"x": np.zeros((2, 3, 8, 8), np.float32)}))
    kernels = [info.kernel for program, _ in net._programs.values() for info in program.infos]
    assert {name for name in kernels if name.startswith("layout.")} == {"layout.input", "layout.output"}


def test_a_gradient_passes_where_an_axis_is_stored_as_two():
    graph = built((2, 2, 3), mc.Conv2d(3, 1), mc.Reshape((3, 6)), mc.Reshape((3, 1, 6)),
                  mc.Upsample(scale_factor=2, mode="bilinear"), mc.Conv2d(2, 1))
    gradient(Case("reshaped", lambda: graph))
