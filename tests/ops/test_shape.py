"""Flatten, Reshape, Transpose, Identity: on tensors in the model's order, and on images that lie channels last."""
import numpy as np
import pytest

import microcnn as mc
from microcnn.graph import Graph, Input, Node, WeightRef
from tests.ops.table import Case, drawn, graph_of, repeated, runtime, single_precision, table


def alone(op, sizes, batch=2, **attrs):
    label = "x".join(map(str, attrs.get("shape", attrs.get("perm", ()))))
    return Case(f"{op.lower()}-{'x'.join(map(str, sizes))}-{label}", lambda: graph_of(op, sizes, **attrs), batch)


ALONE = [
    alone("Flatten", (3, 4, 5), axis=1), alone("Flatten", (7,), axis=1), alone("Flatten", (17, 1, 1), axis=1),
    alone("Reshape", (3, 4, 5), shape=(60,)), alone("Reshape", (60,), shape=(3, 4, 5)),
    alone("Reshape", (6, 4), shape=(8, 3)),
    alone("Reshape", (3, 4, 5), shape=(5, 4, 3)), alone("Reshape", (4, 6), shape=(2, 2, 3, 2, 1)),
    alone("Transpose", (3, 4, 5), 3, perm=(0, 2, 3, 1)), alone("Transpose", (3, 4, 5), perm=(0, 3, 1, 2)),
    alone("Transpose", (3, 4, 5), perm=(0, 3, 2, 1)), alone("Transpose", (4, 5), perm=(0, 2, 1)),
    alone("Transpose", (2, 3, 4, 5), perm=(0, 3, 1, 4, 2)), alone("Identity", (3, 4)),
]


@table(ALONE)
def test_alone(case, check):
    check(case)


def chain(shape, *parts):
    """A graph of parts: ("Conv2d", K, R, S), ("Linear", K), ("Reshape", shape), ("Transpose", perm), ("Relu",), ..."""
    def build():
        rng = np.random.default_rng(4)
        nodes, weights, before, now = [], {}, "x", shape
        for number, (op, *arguments) in enumerate(parts):
            name, roles, attrs = f"n{number}", {}, {}
            if op == "Conv2d":
                K, R, S = arguments
                roles = {"weight": (K, now[0], R, S), "bias": (K,)}
                attrs = {"kernel": (R, S), "stride": (1, 1), "pads": (R // 2, S // 2, (R - 1) // 2, (S - 1) // 2),
                         "dilation": (1, 1), "groups": 1}
            elif op == "Linear":
                roles, attrs = {"weight": (now[-1], arguments[0]), "bias": arguments[:1]}, {"transposed": False}
            elif op in ("Reshape", "Transpose"):
                attrs = {"shape" if op == "Reshape" else "perm": arguments[0]}
            elif op == "MaxPool2d":
                attrs = {"kernel": (2, 2), "stride": (2, 2), "pads": (0, 0, 0, 0), "dilation": (1, 1),
                         "ceil_mode": False}
            elif op == "Flatten":
                attrs = {"axis": 1}
            elif op == "Softmax":
                attrs = {"axis": arguments[0], "flatten": False}
            weights.update({f"{name}.{role}": drawn(rng, role, size) for role, size in roles.items()})
            nodes.append(Node(op, name, (before,), (f"{name}.out",), attrs,
                              {role: WeightRef(f"{name}.{role}") for role in roles}))
            before = f"{name}.out"
            now = Graph([Input("x", shape)], [before], list(nodes), dict(weights)).shapes()[before]
        return Graph([Input("x", shape)], [before], nodes, weights)
    return build


def shuffle(C, H, W, groups):
    """Channel shuffle: reshape, transpose, reshape."""
    return (("Reshape", (groups, C // groups, H, W)), ("Transpose", (0, 2, 1, 3, 4)), ("Reshape", (C, H, W)))


CHAINS = [
    Case("conv-flatten-linear", chain((3, 4, 5), ("Conv2d", 6, 3, 2), ("Flatten",), ("Linear", 4))),
    Case("conv-pool-flatten-linear", chain((1, 5, 6), ("Conv2d", 17, 3, 3), ("Relu",), ("MaxPool2d",), ("Flatten",),
                                           ("Linear", 5)), 3),
    Case("conv-reshape-linear", chain((3, 4, 5), ("Conv2d", 6, 3, 2), ("Reshape", (120,)), ("Linear", 4))),
    Case("linear-over-W", chain((3, 4, 5), ("Conv2d", 6, 2, 2), ("Linear", 3))),
    Case("linear-reshape-conv", chain((12,), ("Linear", 40), ("Reshape", (2, 4, 5)), ("Conv2d", 3, 3, 3))),
    Case("flatten-and-back", chain((3, 4, 5), ("Conv2d", 6, 1, 1), ("Flatten",), ("Reshape", (6, 4, 5)),
                                   ("Conv2d", 2, 2, 2))),
    # channel shuffles
    Case("shuffle", chain((6, 4, 5), ("Conv2d", 6, 3, 3), *shuffle(6, 4, 5, 2), ("Conv2d", 4, 2, 2))),
    Case("shuffle-and-back", chain((6, 3, 4), ("Conv2d", 6, 3, 3), *shuffle(6, 3, 4, 3), *shuffle(6, 3, 4, 2),
                                   ("Conv2d", 4, 1, 1))),
    Case("shuffle-17-groups", chain((34, 2, 3), *shuffle(34, 2, 3, 17), ("Conv2d", 3, 2, 2)), 1),
    Case("shuffle-relu-pool", chain((4, 4, 6), ("Conv2d", 8, 3, 3), *shuffle(8, 4, 6, 4), ("Relu",), ("MaxPool2d",),
                                    *shuffle(8, 2, 3, 2), ("Flatten",), ("Linear", 3))),
    # spaces and channels mixed: pixels to depth and back
    Case("depth-to-space", chain((3, 2, 3), ("Conv2d", 8, 1, 1), ("Reshape", (2, 2, 2, 2, 3)),
                                 ("Transpose", (0, 3, 4, 1, 5, 2)), ("Reshape", (2, 4, 6)), ("Conv2d", 3, 3, 3))),
    Case("space-to-depth", chain((2, 4, 6), ("Conv2d", 2, 3, 3), ("Reshape", (2, 2, 2, 3, 2)),
                                 ("Transpose", (0, 3, 5, 1, 2, 4)), ("Reshape", (8, 2, 3)), ("Conv2d", 3, 2, 2))),
    Case("rows-into-channels", chain((3, 4, 6), ("Conv2d", 4, 3, 3), ("Reshape", (8, 2, 6)), ("Conv2d", 3, 2, 2))),
    Case("channels-into-columns", chain((3, 4, 5), ("Conv2d", 4, 3, 3), ("Reshape", (2, 8, 5)), ("Reshape", (2, 4, 10)),
                                        ("Conv2d", 3, 2, 2))),
    # the axes of a TensorFlow model at the door, and attention's
    Case("nhwc-in-and-out", chain((4, 5, 3), ("Transpose", (0, 3, 1, 2)), ("Conv2d", 6, 3, 3),
                                  ("Transpose", (0, 2, 3, 1)))),
    Case("nhwc-reshape-linear", chain((4, 5, 3), ("Transpose", (0, 3, 1, 2)), ("Conv2d", 6, 2, 2),
                                      ("Transpose", (0, 2, 3, 1)), ("Reshape", (120,)), ("Linear", 5))),
    Case("nhwc-linear-over-channels", chain((3, 4, 5), ("Conv2d", 6, 3, 3), ("Transpose", (0, 2, 3, 1)), ("Linear", 7),
                                            ("Transpose", (0, 3, 1, 2)), ("Conv2d", 2, 2, 2))),
    Case("H-and-W-swapped", chain((3, 4, 6), ("Conv2d", 5, 3, 2), ("Transpose", (0, 1, 3, 2)), ("Conv2d", 4, 3, 2))),
    Case("everything-turned", chain((3, 4, 6), ("Conv2d", 5, 3, 2), ("Transpose", (0, 3, 2, 1)), ("MaxPool2d",),
                                    ("Conv2d", 4, 3, 2), ("Transpose", (0, 2, 1, 3)), ("Relu",), ("Conv2d", 2, 1, 1))),
    Case("turned-then-flattened", chain((3, 4, 5), ("Conv2d", 6, 3, 2), ("Transpose", (0, 2, 1, 3)), ("Flatten",),
                                        ("Linear", 3))),
    Case("shuffled-then-flattened", chain((3, 4, 3), ("Conv2d", 6, 3, 2), *shuffle(6, 4, 3, 2), ("Flatten",),
                                          ("Linear", 3))),
    Case("tokens", chain((3, 4, 4), ("Conv2d", 6, 2, 2), ("Reshape", (6, 16)), ("Transpose", (0, 2, 1)), ("Linear", 5),
                         ("Softmax", 2), ("Linear", 3)), 3),
    Case("ones-everywhere", chain((5, 1, 1), ("Conv2d", 17, 1, 1), ("Reshape", (1, 17, 1)), ("Transpose", (0, 2, 3, 1)),
                                  ("Flatten",), ("Linear", 3)), 3),
    Case("ones-put-in-and-taken-out", chain((12,), ("Linear", 6), ("Reshape", (6, 1, 1)), ("Conv2d", 4, 1, 1),
                                            ("Reshape", (1, 2, 1, 2)), ("Transpose", (0, 4, 1, 3, 2)),
                                            ("Reshape", (4, 1, 1)))),
    Case("a-row-of-pixels", chain((3, 4, 5), ("Conv2d", 6, 2, 2), ("Reshape", (1, 6, 1, 20)),
                                  ("Transpose", (0, 1, 4, 3, 2)), ("Reshape", (20, 1, 6)), ("Conv2d", 2, 1, 2))),
    Case("three-reshapes", chain((24,), ("Reshape", (4, 6)), ("Transpose", (0, 2, 1)), ("Reshape", (3, 8)),
                                 ("Transpose", (0, 2, 1)), ("Reshape", (2, 3, 4)), ("Conv2d", 2, 2, 2))),
]


@table(CHAINS)
def test_chains(case, check):
    check(case)


def shared_views():
    """One tensor read as it is, flattened and turned; the gradients meet again."""
    b = mc.GraphBuilder(seed=3)
    x = b(mc.Conv2d(6, 3, padding=1), b.input("x", (3, 4, 5)))
    back = b(mc.Reshape((6, 4, 5)), b(mc.Flatten(), x))
    y = b(mc.Add(), b(mc.ReLU(), back), b(mc.Tanh(), x))
    return b.graph(b(mc.Linear(3), b(mc.Flatten(), x)), b(mc.Flatten(), y), b(mc.Conv2d(2, 2), y), x)


@table([Case("shared-views", shared_views)])
def test_views_of_one_tensor(case, check):
    check(case)


LARGE = [chain((16, 66, 70), ("Conv2d", 16, 1, 1), *shuffle(16, 66, 70, 4), ("Conv2d", 8, 1, 1)),
         chain((16, 66, 70), ("Conv2d", 16, 1, 1), ("Reshape", (32, 33, 70)), ("Conv2d", 8, 1, 1)),
         chain((66, 70, 20), ("Transpose", (0, 3, 1, 2)), ("Conv2d", 16, 1, 1), ("Transpose", (0, 2, 3, 1)))]


@pytest.mark.parametrize("check", [single_precision, repeated, runtime], ids=lambda check: check.__name__)
@pytest.mark.parametrize("build", LARGE, ids=["shuffle", "mixed", "turned"])
def test_large(build, check):
    check(Case("large", build, 3))


def phases(net):
    return [info.kernel for info in net._programs["predict"][0].infos if info.kernel.startswith("layout.")]


@pytest.mark.parametrize("parts, moves", [
    ([("Conv2d", 6, 3, 3), ("Flatten",), ("Linear", 3)], 0),
    ([("Conv2d", 6, 3, 3), *shuffle(6, 4, 6, 2), ("Relu",)], 0),
    ([("Transpose", (0, 3, 1, 2)), ("Conv2d", 6, 3, 3), ("Transpose", (0, 2, 3, 1))], 0),
    ([("Conv2d", 6, 3, 3), *shuffle(6, 4, 6, 2), ("Conv2d", 2, 1, 1)], 1),
], ids=["flatten", "shuffle", "nhwc", "shuffle-before-conv"])
def test_nothing_moves_where_reading_differently_is_enough(parts, moves):
    net = chain((6, 4, 6), *parts)().compile()
    assert phases(net) == ["layout.input", *["layout.permute"] * moves, "layout.output"]


@pytest.mark.parametrize("op, attrs, text", [
    ("Flatten", {"axis": 2}, r'Flatten "node": axis \(=2\) must be 1, so that the batch stays an axis'),
    ("Reshape", {"shape": (7, -1)}, r'Reshape "node": \(7, -1\) does not hold the 60 numbers of a sample of shape'),
    ("Reshape", {"shape": (3, 4, 4)}, r"does not hold the 60 numbers"),
    ("Transpose", {"perm": (1, 0, 2, 3)}, r'Transpose "node": perm \(=\(1, 0, 2, 3\)\) must be a permutation of the 4'),
    ("Transpose", {"perm": (0, 2, 1)}, r"must be a permutation of the 4 axes"),
])
def test_what_does_not_fit_is_refused(op, attrs, text):
    with pytest.raises(mc.MicroCNNError, match=text):
        graph_of(op, (3, 4, 5), **attrs).shapes()
