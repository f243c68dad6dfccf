"""Building blocks: what a layer has to have, and graphs that cannot be built."""
from __future__ import annotations

import numpy as np
import pytest

import microcnn as mc
from microcnn.layers import LAYERS, Layer
from microcnn.specs import LayerSpec


@pytest.mark.parametrize("missing", ["infer", "forward"])
def test_a_layer_without_a_method_is_refused_where_it_is_defined(missing):
    methods = {name: staticmethod(lambda *_: None) for name in ("infer", "forward") if name != missing}
    with pytest.raises(TypeError, match=rf"layer Half \(Half\) has no {missing}; give it a static method of that name"):
        type("Half", (Layer,), {"op": "Half", **methods})
    assert "Half" not in LAYERS


def test_two_layers_of_one_name_are_refused():
    relu = LAYERS["Relu"]
    with pytest.raises(ValueError, match="layers Relu and Other are both called Relu"):
        type("Other", (relu,), {"op": "Relu"})
    assert LAYERS["Relu"] is relu


def test_layers_inherit_their_methods(monkeypatch):
    relu = LAYERS["Relu"]
    monkeypatch.setitem(LAYERS, "Again", None)      # takes the name out again afterwards
    del LAYERS["Again"]
    again = type("Again", (relu,), {"op": "Again"})
    assert LAYERS["Again"] is again and again.forward is relu.forward


def test_the_base_of_what_networks_are_built_of_is_no_layer():
    with pytest.raises(TypeError, match="abstract"):
        LayerSpec()


def test_a_graph_that_cannot_be_built():
    for layers, shape, message in (
            ([], (2, 6, 6), "Sequential needs at least one layer"),
            ([mc.Conv2d(0, 3)], (2, 6, 6), "Conv2d: out_channels is 0; expected an integer of at least 1"),
            ([mc.Conv2d(4, 9)], (2, 6, 6), '"conv1": a window of 9x9 does not fit into an image of 6x6 with padding'),
            ([mc.Conv2d(4, 3, groups=3)], (2, 6, 6), r"Conv2d: groups \(=3\) must divide the 2 input and 4 output channels; "
                                                     r"use one of \[1, 2\]"),
            ([mc.Linear(3)], (2, 6, 6), r"Linear: the input has shape \(2, 6, 6\) for one sample; put a Flatten before it"),
            ([mc.Conv2d(4, 3)], (6,), r"Conv2d: the input has shape \(6,\) for one sample; expected"),
            ([mc.Linear(3)], (), r"Linear: the input is one number a sample; expected at least one axis"),
            ([mc.BatchNorm2d()], (), r"BatchNorm2d: the input is one number a sample; expected \(channels,\)"),
            ([mc.Flatten], (6,), r"make one of it: mc\.Flatten\("),
            ([mc.Flatten()], (6, 0), r'input "input": each size is 0; expected an integer of at least 1')):
        with pytest.raises(mc.ModelError, match=message):
            mc.Sequential(layers, shape).graph()


def test_names_that_are_taken():
    b = mc.GraphBuilder()
    x = b.input("x", (3,))
    with pytest.raises(mc.ModelError, match='tensor "x" is made twice'):
        b.input("x", (3,))
    b(mc.ReLU(name="again"), x)
    with pytest.raises(mc.ModelError, match='two layers are called "again"; give each its own name'):
        b(mc.ReLU(name="again"), x)


def test_weights_are_drawn_within_one_over_the_root_of_the_fan_in():
    weights = mc.Sequential([mc.Conv2d(8, 3, groups=2), mc.Flatten(), mc.Linear(50)], (4, 9, 9)).graph().weights
    for name, fan_in in (("conv1.weight", 2 * 9), ("conv1.bias", 2 * 9), ("linear1.weight", 8 * 49), ("linear1.bias", 8 * 49)):
        most = np.abs(weights[name]).max()
        assert most <= fan_in ** -0.5 and weights[name].dtype == np.float32, name
        assert most > 0.5 * fan_in ** -0.5, name
