"""AvgPool2d, GlobalAvgPool2d."""
import pytest

import microcnn as mc
from tests import graph_oracle
from tests.ops.pooling import case_of, cases
from tests.ops.table import Case, close, graph_of, only, repeated, runtime, single_precision, table

OP = "AvgPool2d"
CASES = [*cases(OP, count_include_pad=False), *cases(OP, "-counting", count_include_pad=True)]
for counting in (False, True):
    CASES.append(case_of(OP, "same-lower" + "-counting" * counting, (3, 5, 6), (2, 4), (1, 3), "same_lower",
                         count_include_pad=counting))
for counting in (False, True):           # opset 17, which graphs go out as, has no dilation here
    more = {"count_include_pad": counting, "skip": ("runtime", "reference"), "dilation": (2, 3)}
    CASES += [case_of(OP, f"dilated-{counting}", (3, 8, 9), (3, 2), (1, 2), (1, 1, 2, 0), **more),
              case_of(OP, f"dilated-strided-{counting}", (17, 9, 8), (2, 3), (3, 2), (1, 1, 0, 1), batch=3, **more),
              case_of(OP, f"dilated-ceil-{counting}", (5, 9, 10), (2, 2), (2, 3), (0, 1, 1, 0), ceil_mode=True, **more),
              case_of(OP, f"dilated-tiles-{counting}", (3, 8, 9), (2, 2), (2, 2), **more)]
for shape, batch in (((3, 4, 5), 2), ((17, 1, 1), 1), ((33, 9, 8), 3), ((1, 3, 1), 2)):
    CASES.append(Case(f"global-{'x'.join(map(str, shape))}", lambda shape=shape: graph_of("GlobalAvgPool2d", shape),
                      batch))


@table(CASES)
def test_avgpool2d(case, check):
    check(case)


def test_windows_wholly_in_padding_are_refused():
    with pytest.raises(mc.MicroCNNError, match=r'"node": padding \(2, 0, 0, 0\) must be at least 0 and less than the'):
        graph_of(OP, (1, 4, 4), kernel=(2, 2), stride=(1, 1), pads=(2, 0, 0, 0), dilation=(1, 1), ceil_mode=False,
                 count_include_pad=False).shapes()


LARGE = [
    ("average", (24, 50, 51), {"kernel": (3, 3), "stride": (2, 2), "pads": (1, 1, 1, 1),
                                            "count_include_pad": False}),
    ("average-counting", (17, 40, 41), {"kernel": (2, 3), "stride": (1, 1), "pads": (1, 1, 0, 1),
                                                     "count_include_pad": True}),
]


@pytest.mark.parametrize("name, shape, attrs", LARGE, ids=[one[0] for one in LARGE])
def test_large(name, shape, attrs):
    case = Case(name, lambda: graph_of(OP, shape, ceil_mode=False, **attrs), 3)
    for check in (single_precision, repeated, runtime):
        check(case)
    x = case.inputs()
    close(case.compile().predict(only(x)), graph_oracle.evaluate(case.graph(), x)["y"], 1e-12, "predict")


def test_large_global_average():
    case = Case("global", lambda: graph_of("GlobalAvgPool2d", (33, 80, 81)), 3)
    for check in (single_precision, repeated, runtime):
        check(case)
    x = case.inputs()
    close(case.compile().predict(x["x"]), x["x"].mean((2, 3), keepdims=True), 1e-12, "predict")


def test_a_dilation_has_no_form_in_the_exported_opset(tmp_path):
    net = graph_of(OP, (1, 4, 4), kernel=(2, 2), stride=(1, 1), pads=(0, 0, 0, 0), dilation=(2, 2), ceil_mode=False,
                   count_include_pad=False).compile()
    with pytest.raises(mc.ModelError, match='node "node": average pooling with a dilation has no form in ONNX opset 17'):
        mc.save_onnx(net, tmp_path / "model.onnx")
