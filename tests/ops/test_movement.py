"""Concat, Slice, Pad, Gather, Tile, Expand, DepthToSpace, SpaceToDepth: alone, and among images that lie channels last."""
import math

import numpy as np
import pytest

import microcnn as mc
from microcnn.graph import Graph, Input, Node
from tests.ops.table import LARGE_CHECKS, Case, graph_of, table


def alone(label, op, size, batch=2, skip=(), **attrs):
    return Case(f"{op.lower()}-{label}", lambda: graph_of(op, size, **attrs), batch, skip=skip)


def concat(shapes, axis):
    def build():
        names = [f"x{i}" for i in range(len(shapes))]
        return Graph([Input(name, shape) for name, shape in zip(names, shapes, strict=True)], ["y"],
                     [Node("Concat", "node", tuple(names), ("y",), {"axis": axis})], {})
    return build


def cut(axes, starts, ends, steps=None):
    return {"axes": axes, "starts": starts, "ends": ends, "steps": steps or (1,) * len(axes)}


def padded(pads, mode="constant", value=0.0):
    return {"pads": pads, "mode": mode, "value": value}


FAR = 2**63 - 1
NEGATIVE = ("reference",)      # numpy, which onnx's evaluator asks, knows no negative pads
CONCATS = [
    Case("concat-channels", concat([(3, 4, 5), (17, 4, 5), (1, 4, 5)], 1)),
    Case("concat-rows", concat([(3, 4, 5), (3, 1, 5)], 2)),
    Case("concat-columns", concat([(3, 4, 5), (3, 4, 2)], -1), 3), Case("concat-vectors", concat([(5,), (1,), (7,), (5,)], 1)),
    Case("concat-alone", concat([(3, 4)], 2)), Case("concat-tokens", concat([(3, 5), (4, 5)], 1), 1),
    Case("concat-four-axes", concat([(2, 3, 2, 2), (2, 1, 2, 2)], 2)),
]
SLICES = [
    alone("middle", "Slice", (3, 6, 7), **cut((2, 3), (1, 2), (5, 6))),
    alone("steps", "Slice", (3, 6, 7), 3, **cut((2, 3), (0, 1), (FAR, FAR), (2, 3))),
    alone("backwards", "Slice", (3, 6, 7), **cut((1, 2, -1), (-1, 4, 6), (-FAR, 1, -7), (-1, -2, -1))),
    alone("channels", "Slice", (17, 2, 3), **cut((1,), (5,), (-1,))),
    alone("vector", "Slice", (9,), **cut((1,), (-4,), (100,))),
    alone("everything", "Slice", (3, 4), **cut((1, 2), (0, -100), (3, 100))),
    alone("nothing", "Slice", (3, 4), **cut((), (), ())),
    alone("one", "Slice", (3, 4, 5), **cut((1, 2, 3), (1, 2, 3), (2, 3, 2), (1, 2, -1))),
    alone("four-axes", "Slice", (2, 3, 4, 3), **cut((2, 4), (2, 0), (-FAR, FAR), (-1, 2))),
]
PADS = [
    alone("frame", "Pad", (3, 4, 5), **padded((0, 1, 2, 0, 3, 0))),
    alone("value", "Pad", (3, 4, 5), **padded((0, 1, 1, 0, 1, 1), value=1.5)),
    alone("channels", "Pad", (3, 4, 5), 3, **padded((1, 0, 0, 16, 0, 0))),
    alone("vector", "Pad", (5,), **padded((2, 1), value=-3.0)),
    alone("everywhere", "Pad", (2, 3, 2, 3), **padded((1, 1, 1, 1, 1, 2, 1, 1))),
    alone("crop", "Pad", (3, 4, 5), skip=NEGATIVE, **padded((0, -1, -2, 0, 0, -1))),
    alone("crop-and-pad", "Pad", (3, 4, 5), skip=NEGATIVE, **padded((0, -1, 2, -1, 2, -1))),
    alone("nothing", "Pad", (3, 4), **padded((0, 0, 0, 0), "edge")),
    *[alone(mode, "Pad", (3, 4, 5), **padded((0, 3, 2, 0, 1, 4), mode))
      for mode in ("reflect", "edge", "wrap")],
    *[alone(f"{mode}-channels", "Pad", (5, 2, 3), 3, **padded((1, 0, 0, 3, 0, 0), mode))
      for mode in ("reflect", "edge", "wrap")],
    *[alone(f"{mode}-crop", "Pad", (3, 4, 5), skip=NEGATIVE if mode != "wrap" else (),
            **padded((0, -1, 2, 0, 1, -1), mode)) for mode in ("reflect", "edge", "wrap")],
]
REST = [
    alone("rows", "Gather", (3, 6, 5), axis=2, indices=(5, 0, 0, -2, 3)),
    alone("columns", "Gather", (3, 4, 5), 3, axis=-1, indices=(1, 1, 4)),
    alone("channels", "Gather", (17, 2, 3), axis=1, indices=(16, 2, 3, 2, 2)),
    alone("one", "Gather", (7,), axis=1, indices=(-1,)),
    alone("channels", "Tile", (3, 2, 2), repeats=(2, 1, 1)), alone("image", "Tile", (2, 2, 3), 3, repeats=(1, 3, 2)),
    alone("vector", "Tile", (5,), repeats=(3,)), alone("all-but-one", "Tile", (2, 3, 2), repeats=(3, 1, 2)),
    alone("once", "Tile", (2, 3), repeats=(1, 1)),
    alone("channels", "Expand", (5, 1, 1), shape=(1, 3, 4)), alone("rows", "Expand", (3, 1, 5), 3, shape=(1, 4, 1)),
    alone("grey", "Expand", (1, 4, 5), shape=(17, 4, 5)),
    alone("number", "Expand", (1,), shape=(7,)),
    alone("as-it-is", "Expand", (3, 4), shape=(1, 1)),
    *[alone(f"{mode}-{block}", "DepthToSpace", (2 * block**2, 2, 3), block=block, mode=mode)
      for mode in ("DCR", "CRD") for block in (1, 2, 3)],
    alone("two", "SpaceToDepth", (3, 4, 6), block=2, mode="DCR"),
    alone("three", "SpaceToDepth", (2, 3, 6), 3, block=3, mode="CRD"),
]


@table(CONCATS + SLICES + PADS + REST)
def test_alone(case, check):
    check(case)


def between(op, **attrs):
    """One operation on what a convolution made, in front of another one."""
    def build():
        b = mc.GraphBuilder(seed=3)
        x = b(mc.Conv2d(8, 3, padding=1), b.input("x", (3, 4, 6)))
        shape = graph_of(op, b.shape(x), **attrs).shapes()["y"]
        first = b.graph(x)
        nodes = [*first.nodes, Node(op, "node", ("output",), ("moved",), attrs)]
        last = mc.Sequential([mc.Conv2d(5, 2), mc.ReLU()], input_shape=shape, seed=4, name="last").graph()
        rename = {"input": "moved", "output": "y"}
        for one in last.nodes:
            weights = {role: type(ref)(f"last.{ref.name}", ref.view) for role, ref in one.weights.items()}
            nodes.append(Node(one.op, f"last.{one.name}", tuple(rename.get(t, f"last.{t}") for t in one.inputs),
                              tuple(rename.get(t, f"last.{t}") for t in one.outputs), one.attrs, weights))
        return Graph(first.inputs, ["y"], nodes, {**first.weights, **{f"last.{name}": w for name, w in last.weights.items()}})
    return build


BETWEEN = [
    Case("slice", between("Slice", **cut((1, 2, 3), (6, 0, -1), (0, FAR, -FAR), (-2, 2, -1)))),
    Case("pad", between("Pad", **padded((1, 1, 0, 2, 2, 3), value=0.5))),
    Case("reflect", between("Pad", **padded((1, 1, 2, 0, 2, 3), "reflect"))),
    Case("gather", between("Gather", axis=1, indices=(7, 7, 0, 3))), Case("tile", between("Tile", repeats=(2, 1, 3))),
    Case("depth-to-space", between("DepthToSpace", block=2, mode="CRD")),
    Case("space-to-depth", between("SpaceToDepth", block=2, mode="DCR")),
]


def branches():
    """Three ways from one tensor and back together, one of them through a slice that nothing else covers."""
    b = mc.GraphBuilder(seed=5)
    x = b(mc.Conv2d(6, 3, padding=1), b.input("x", (3, 4, 6)))
    wide = b(mc.Conv2d(17, 1), x)
    shuffled = b(mc.Conv2d(3, 1), b(mc.PixelShuffle(2), b(mc.Conv2d(8, 2, stride=2), x)))
    y = b(mc.Concat(1), x, wide, b(mc.ReLU(), shuffled), x)
    return b.graph(b(mc.Conv2d(4, 2), y), b(mc.Flatten(), b(mc.Concat(2), x, x)))


def flat_branches():
    """Heads that lie channels last, flattened and put together, as detectors do."""
    b = mc.GraphBuilder(seed=6)
    x = b(mc.Conv2d(6, 3, padding=1), b.input("x", (3, 4, 6)))
    heads = [b(mc.Flatten(), b(mc.Conv2d(4, 2), x)), b(mc.Flatten(), b(mc.Conv2d(3, 2, stride=2), x))]
    return b.graph(b(mc.Linear(3), b(mc.Concat(1), *heads)))


def frames():
    """Every padding that has a name, one after the other."""
    layers = [mc.Conv2d(4, 2), mc.ZeroPad2d((1, 0, 2, 1)), mc.ReflectionPad2d(1), mc.Conv2d(3, 3, stride=2),
              mc.ReplicationPad2d((1, 2, 0, 1)), mc.CircularPad2d(1), mc.ConstantPad2d((-1, 1, 0, 0), -0.5),
              mc.PixelUnshuffle(2), mc.Conv2d(2, 2)]
    return mc.Sequential(layers, input_shape=(2, 4, 5), seed=1).graph()


@table([*BETWEEN, Case("branches", branches), Case("flat-branches", flat_branches), Case("frames", frames, skip=NEGATIVE)])
def test_between_other_layers(case, check):
    check(case)


@table([Case("concat", concat([(17, 60, 61), (16, 60, 61)], 1), 3),
        alone("large", "Slice", (17, 60, 61), 3, **cut((1, 3), (1, 0), (16, FAR), (1, 2))),
        alone("large", "Pad", (17, 60, 61), 3, **padded((0, 1, 2, 0, 2, 1))),
        alone("large-reflect", "Pad", (17, 60, 61), 3, **padded((0, 1, 2, 0, 2, 1), "reflect")),
        alone("large", "Tile", (17, 60, 61), repeats=(1, 2, 1)),
    alone("large", "Expand", (17, 1, 1), 3, shape=(1, 60, 61))], LARGE_CHECKS)
def test_large(case, check):
    check(case)


@pytest.mark.parametrize("op, attrs, text", [
    ("Slice", cut((1,), (2,), (1,)), r'Slice "node": starts \(2,\) and ends \(1,\) leave nothing of \(3, 4, 5\)'),
    ("Slice", cut((1,), (0,), (2,), (0,)), "a step is 0"),
    ("Slice", cut((1, -3), (0, 0), (2, 2)), "one number for each of the different axes"),
    ("Slice", cut((0,), (0,), (1,)), r"axis \(=0\) must be an axis of \(3, 4, 5\) beside the batch: 1 to 3"),
    ("Pad", padded((0, 1, 1)), "must be 6 numbers"), ("Pad", padded((0, -2, 0, 0, -2, 0)), "crop away all of an axis"),
    ("Pad", padded((0,) * 6, "mirror"), '"constant", "reflect", "edge" or "wrap"'),
    ("Gather", {"axis": 1, "indices": (0, 3)}, "index 3 is none of axis 1, which has 3"),
    ("Tile", {"repeats": (1, 0, 1)}, "must be 3 numbers of at least 1"), ("Expand", {"shape": (2, 4, 5)}, "do not broadcast"),
    ("DepthToSpace", {"block": 2, "mode": "DCR"}, "its square must divide the 3 channels"),
    ("SpaceToDepth", {"block": 2, "mode": "DCR"}, "divide the height and width 4x5"),
])
def test_what_does_not_fit_is_refused(op, attrs, text):
    with pytest.raises(mc.MicroCNNError, match=text):
        graph_of(op, (3, 4, 5), **attrs).shapes()


def test_unequal_parts_are_refused():
    with pytest.raises(mc.MicroCNNError, match=r"the shapes \(3, 4\), \(3, 5\) of one sample must be equal but for axis 1"):
        concat([(3, 4), (3, 5)], 1)().shapes()


def test_infinite_frames():
    net = graph_of("Pad", (1, 2, 2), **padded((0, 1, 0, 0, 0, 0), value=-math.inf)).compile()
    y = net.predict(np.ones((1, 1, 2, 2), np.float32))
    assert (y[:, :, 0] == -np.inf).all() and (y[:, :, 1:] == 1).all()
