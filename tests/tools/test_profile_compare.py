"""Two profiles beside each other: what counts as a difference, which runs and layers are compared, what is shown."""
import json

import pytest

import microcnn as mc
from microcnn.memory import Block
from microcnn.tools.profile_compare import SCHEMA, Change, compare, noise_us
from microcnn.tools.profile_data import GraphNode, LayerCost, MemoryPlan, Profile, Run, Spread
from microcnn.tools.terminal import text_width

TIGHT = Spread(99.0, 100.0, 101.0, 120.0)


def run(conv=100.0, spread=TIGHT, layers=(), train=True, total=200.0, **conditions):
    """A run with a convolution that takes so long, and what is given beside it."""
    known = {"model": "tiny", "batch": 8, "dtype": "float32", "threads": 2, "train": train, "instruction_set": "avx512",
             "cpu": "a processor", "microcnn": "0.1.0", "time": "2026-01-01", "load_average": 0.1, "repeats": 5}
    found = [LayerCost("conv", "Conv2d", conv, bytes={"activations": 1024, "gradients": 0}, spread=spread),
             *layers, LayerCost("call", "python", 8.0)]
    return Run(known | conditions, total, found, Spread(195, 200, 210, 300))


def change(before, after, spread_before=TIGHT, spread_after=TIGHT, **conditions):
    """What is said of a convolution that takes so long before and after."""
    pair, = compare(Profile([run(before, spread_before, **conditions)]), Profile([run(after, spread_after)])).runs
    return next(one for one in pair.layers if one.name == "conv")


def plan(arena, *blocks):
    return MemoryPlan(arena, arena - 10, 500, 60, 0, [Block("conv", "b", *block) for block in blocks])


@pytest.mark.parametrize(("before", "after", "verdict"), [
    (100.0, 104.9, ""), (100.0, 105.1, "slower"), (100.0, 95.1, ""), (100.0, 94.9, "faster"), (100.0, 100.0, ""),
    (10.0, 10.4, ""), (1000.0, 1049.0, ""), (1000.0, 1051.0, "slower"),
])
def test_less_than_a_twentieth_is_no_difference(before, after, verdict):
    found = change(before, after, Spread(before, before, before, before), Spread(after, after, after, after))
    assert found.verdict == verdict and found.beyond_noise == bool(verdict)
    assert found.noise_us == pytest.approx(0.05 * before)


@pytest.mark.parametrize(("after", "verdict"), [(124.9, ""), (125.1, "slower"), (75.1, ""), (74.9, "faster")])
def test_what_both_vary_is_no_difference(after, verdict):
    """15 and 20 below the medians make 25 together; what lies above them is the machine's other work."""
    found = change(100.0, after, Spread(85, 100, 300, 500), Spread(95, 115, 120, 500))
    assert found.noise_us == pytest.approx(25.0) and found.verdict == verdict


@pytest.mark.parametrize(("before", "after", "expected"), [
    (Spread(), Spread(), 5.0),                                          # neither is known
    (Spread(80, 100, 120, 130), Spread(), 20 * 2 ** 0.5),               # the other is taken to be as wide
    (Spread(), Spread(80, 100, 120, 130), 20 * 2 ** 0.5),
    (Spread(0, 0, 0, 0), Spread(0, 0, 30, 50), 5.0),                    # a median of nothing says nothing
    (Spread(100, 100, 100, 100), Spread(100, 100, 100, 100), 5.0),
    (Spread(120, 100, 90, 80), Spread(100, 100, 100, 100), 5.0),        # out of order: no negative width
    (Spread(60, 100, 100, 100), Spread(100, 100, 100, 100), 40.0),
    (Spread(100, 100, 180, 900), Spread(100, 100, 180, 900), 5.0),      # above the median only
])
def test_spreads(before, after, expected):
    assert noise_us(100.0, before, after) == pytest.approx(expected)


def test_a_reading_of_the_clock_is_no_difference():
    assert noise_us(0.1, Spread(), Spread(), 0.03) == 0.03 and noise_us(0.0, Spread(), Spread()) == 0.0
    nothing = Spread()
    assert change(0.0, 0.024, nothing, nothing, clock_ns=25.0).verdict == ""
    assert change(0.0, 0.026, nothing, nothing, clock_ns=25.0).verdict == "slower"


def test_times_of_nothing():
    found = change(0.0, 3.0, Spread(), Spread())
    assert (found.difference_us, found.ratio, found.verdict) == (3.0, None, "slower")
    found = change(0.0, 0.0, Spread(), Spread())
    assert (found.difference_us, found.ratio, found.verdict) == (0.0, None, "")
    found = change(3.0, 0.0, Spread(), Spread())
    assert (found.difference_us, found.ratio, found.verdict) == (-3.0, 0.0, "faster")
    assert Change("a", "b", 1.0, None).verdict == "only before" and Change("a", "b", None, 1.0).verdict == "only after"
    assert Change("a", "b", 1.0, None).ratio is None and Change("a", "b", None, 1.0).difference_us is None


def test_what_python_does_varies_as_the_whole_call():
    pair, = compare(Profile([run()]), Profile([run()])).runs
    call = next(one for one in pair.layers if one.name == "call")
    assert call.noise_us == pytest.approx(5 * 2 ** 0.5)


def test_before_and_after():
    before = run(100.0, layers=[LayerCost("old", "Relu", 3.0), LayerCost("fc", "Linear", 2.0, 4.0, 1.0)], microcnn="0.1.0")
    after = run(50.0, layers=[LayerCost("fc", "Gemm", 2.0, 4.0, 1.0), LayerCost("new", "Relu", 5.0)], total=150.0,
                microcnn="0.2.0", time="2026-01-02", load_average=2.0)
    after.layers[0].bytes = {"activations": 2048, "gradients": 0}
    pair, = compare(Profile([before]), Profile([after])).runs
    assert [one.name for one in pair.layers] == ["conv", "fc", "call"]
    assert [one.name for one in pair.only_before] == ["old"] and [one.name for one in pair.only_after] == ["new"]
    assert pair.differs == {"microcnn": ("0.1.0", "0.2.0")}
    assert pair.layers[0].bytes == {"activations": (1024, 2048), "gradients": (0, 0)}
    assert pair.layers[0].bytes_difference == 1024 and pair.layers[1].op == "Linear -> Gemm"
    assert pair.layers[1].parts == {"forward": (2.0, 2.0), "backward": (4.0, 4.0), "update": (1.0, 1.0)}
    assert (pair.whole.ratio, pair.whole.verdict) == (0.75, "faster")
    assert pair.memory["activations"] == (1024, 2048) and pair.memory["state"] == (0, 0)
    assert pair.notes == ["how the times of 1 layer varied is not known: what is beyond 5% counts as a difference"]
    lines = pair.table().splitlines()
    assert lines[:4] == ["before: tiny, train_step, batch 8, float32, 2 threads, avx512: 200.0 us a call",
                         "after: tiny, train_step, batch 8, float32, 2 threads, avx512: 150.0 us a call",
                         "whole call: 0.750 of the time before, faster", "differs: microcnn 0.1.0 -> 0.2.0"]
    assert [line.split()[0] for line in lines[6:]] == ["conv", "fc", "call", "old", "new", "not", "whole", "memory:",
                                                       "verdict:", "note:"]
    conv = lines[6].split()
    assert conv == ["conv", "Conv2d", "100.0", "us", "50.0", "us", "-50.0", "us", "0.500", "5.0", "us", "+1.0", "KB", "faster"]
    assert lines[9].endswith("only before") and lines[10].endswith("only after")
    assert "activations 1.0 KB -> 2.0 KB (+1.0 KB)" in lines[-3]
    assert lines[-2] == "verdict: blank where the difference is within the noise"


def test_memory_with_plans():
    before, after = run(), run()
    before.memory = plan(1000, ("activation", 400, 0, 0, 2), ("activation", 300, 400, 2, 3), ("scratch", 50, 0, 4, 4))
    after.memory = plan(900, ("activation", 400, 0, 0, 1), ("activation", 300, 0, 2, 3), ("gradient", 70, 0, 4, 4))
    pair, = compare(Profile([before]), Profile([after])).runs
    assert pair.memory == {"arena": (1000, 900), "lower_bound": (990, 890), "parameters": (500, 500), "state": (60, 60),
                           "activations": (700, 400), "scratch": (50, 0), "gradients": (0, 70)}
    assert "memory: arena 1,000 B -> 900 B (-100 B), lower bound" in pair.table()
    assert "parameters" not in pair.table()
    same, = compare(Profile([before]), Profile([before])).runs
    assert "memory: the same" in same.table()


def test_two_devices():
    other = run(2000.0, Spread(1990, 2000, 2100, 2400), total=4000.0, cpu="Cortex-A53", instruction_set="neon", threads=4)
    found = compare(Profile([run()]), Profile([other]))
    pair, = found.runs
    assert set(pair.differs) == {"cpu", "instruction_set", "threads"} and pair.layers[0].verdict == "slower"
    assert "cpu a processor -> Cortex-A53" in found.table() and "whole call: 20.000 of the time before, slower" in found.table()
    assert "threads 2 -> 4" in str(found)


def test_runs_are_paired_by_their_conditions():
    before = Profile([run(batch=1), run(batch=8), run(batch=8, threads=1)])
    after = Profile([run(batch=8, threads=1), run(batch=1), run(batch=32)])
    found = compare(before, after)
    keys = [[(one.batch, one.conditions["threads"]) for one in (pair.before, pair.after)] for pair in found.runs]
    assert keys == [[(1, 2)] * 2, [(8, 1)] * 2]
    assert found.notes == ["without a counterpart of the same batch and threads: 1 of 3 runs before",
                           "without a counterpart of the same batch and threads: 1 of 3 runs after"]
    assert found.table().count("whole call: ") == 2 and found.table().endswith(found.notes[1])


def test_one_run_finds_its_counterpart_among_several():
    found = compare(Profile([run(batch=8)]), Profile([run(batch=1), run(batch=8)]))
    assert [(pair.before.batch, pair.after.batch) for pair in found.runs] == [(8, 8)]


def test_two_numbers_of_threads():
    found = compare(Profile([run(batch=1, threads=1), run(batch=8, threads=1)]),
                    Profile([run(batch=1, threads=2), run(batch=8, threads=2)]))
    assert [(pair.before.batch, pair.after.batch, pair.differs) for pair in found.runs] == [
        (1, 1, {"threads": (1, 2)}), (8, 8, {"threads": (1, 2)})]
    assert found.notes == ["no runs have the same batch and threads: they are compared in order"]
    found = compare(Profile([run(threads=1)] * 2), Profile([run(threads=2)]))
    assert len(found.runs) == 1 and "2 runs before, 1 after" in found.notes[1]


def test_the_same_conditions_twice():
    """Cold and warm caches, say: the first with the first."""
    profile = Profile([run(caches="warm"), run(caches="cold")])
    assert [pair.differs for pair in compare(profile, profile).runs] == [{}, {}]


def test_batches_that_differ_are_noted():
    pair, = compare(Profile([run(batch=1)]), Profile([run(batch=8)])).runs
    assert pair.notes == ["batches of 1 and 8: times are those of whole calls"]
    pair, = compare(Profile([run(frequency_mhz=1500.0)]), Profile([run(frequency_mhz=600.4)])).runs
    assert pair.notes == ["the processors ran at 1,500 MHz before and 600 MHz after"] and not pair.differs
    pair, = compare(Profile([run(frequency_mhz=1500.0)]), Profile([run(frequency_mhz=1490.0)])).runs
    assert not pair.notes
    pair, = compare(Profile([run(interrupted=True)]), Profile([run()])).runs
    assert pair.notes == ["a measurement was interrupted"]


def test_a_layer_that_runs_inside_another():
    before, after = run(layers=[LayerCost("relu", "Relu", 5.0, spread=TIGHT)]), run()
    after.layers[0].fused = ("relu",)
    pair, = compare(Profile([before]), Profile([after])).runs
    assert pair.notes == ["after these run in another layer's kernel: relu in conv"]
    pair, = compare(Profile([after]), Profile([before])).runs
    assert pair.notes == ["before these run in another layer's kernel: relu in conv"]


def test_training_beside_prediction():
    with pytest.raises(mc.DataError, match="the first one measured training, the second one prediction; measure the same"):
        compare(Profile([run(train=True)]), Profile([run(train=False)]))
    both = Profile([run(train=True, threads=1), run(train=False, threads=1)])
    found = compare(both, Profile([run(train=True), run(train=True)]))
    assert len(found.runs) == 1 and found.notes[-1].startswith("1 of 2 pairs are left out")


def test_models_that_share_no_layer():
    other = Run({"model": "other", "train": True}, 10.0, [LayerCost("loss", "loss", 1.0), LayerCost("dense", "Linear", 1.0),
                                                          LayerCost("layout", "layout", 1.0), LayerCost("call", "python", 1.0)])
    first = run(layers=[LayerCost("loss", "loss", 1.0), LayerCost("layout", "layout", 1.0)])
    with pytest.raises(mc.DataError, match=r"no layer of the first one \(model 'tiny'\) is in the second one \(model 'oth"):
        compare(Profile([first]), Profile([other]))
    with pytest.raises(mc.DataError, match="without a run"):
        compare(Profile([]), Profile([first]))
    # a layer that is called as the loss is
    first.layers = [LayerCost("dense", "Linear", 1.0), LayerCost("loss", "loss", 1.0)]
    for one in (first, other):
        one.graph = [GraphNode("dense", "Linear")]
    assert compare(Profile([first]), Profile([other])).runs[0].differs == {"model": ("tiny", "other")}


def test_old_files():
    def old(took):
        return Profile([Run({"batch": 1, "threads": 1, "train": True}, 100.0,
                            [LayerCost("a", "Conv2d", took, 20.0, 5.0, 100, 7), LayerCost("loss", "mse", 1.5)])])

    found = compare(old(10.0), old(20.0))
    assert found.runs[0].layers[0].verdict == "slower" and "only 5%" not in found.table()
    assert "how the times of 2 layers varied is not known" in found.table()
    assert found.runs[0].memory == dict.fromkeys(("parameters", "activations", "gradients", "state", "scratch"), (0, 0))
    assert "not accounted for" in found.table()
    assert compare(old(10.0), Profile([run(layers=[LayerCost("a", "Conv2d", 10.0)])])).runs[0].layers[0].name == "a"


def test_nothing_took_any_time():
    nothing = Profile([Run({}, 0.0, [LayerCost("a", "Conv2d")])])
    found = compare(nothing, nothing)
    assert "no time before, within the noise of 0.0 us" in found.table() and "note" not in found.table()
    json.dumps(found.as_dict(), allow_nan=False)


def test_as_dict():
    before = run(100.0, layers=[LayerCost("gone", "Relu", 3.0)])
    found = compare(Profile([before]), Profile([run(200.0, threads=1)]))
    data = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert data["schema"] == SCHEMA == "microcnn.comparison/1" and data["notes"] == found.notes
    pair, = data["runs"]
    assert pair["layers"][0] == {"name": "conv", "op": "Conv2d", "before_us": 100.0, "after_us": 200.0, "difference_us": 100.0,
                                 "ratio": 2.0, "noise_us": 5.0, "beyond_noise": True, "parts": {"forward": [100.0, 200.0]},
                                 "bytes": {"activations": [1024, 1024], "gradients": [0, 0]}}
    assert pair["only_before"][0]["name"] == "gone" and pair["only_before"][0]["after_us"] is None
    assert pair["only_after"] == [] and pair["differs"] == {"threads": [2, 1]}
    assert pair["whole_call"]["ratio"] == 1.0 and pair["unaccounted_us"] == [89.0, -8.0]
    assert pair["memory"]["activations"] == {"before": 1024, "after": 1024, "difference": 0}
    assert pair["before"]["threads"] == 2 and pair["after"]["threads"] == 1


@pytest.mark.parametrize("width", [40, 60, 80, 100, 140])
@pytest.mark.parametrize("name", ["fc", "model/quant_dense/MatMul;model/quant_dense/BiasAdd;model/quant_dense/Softmax",
                                  "畳み込み層の一番目の長い名前です"])
def test_no_line_is_wider_than_the_terminal(width, name):
    before = run(layers=[LayerCost(name, "Linear", 123456.0, spread=TIGHT), LayerCost("gone", "Relu", 1.0)])
    after = run(layers=[LayerCost(name, "Linear", 99.0, bytes={"state": 99}, spread=TIGHT)], cpu="畳み" * 30, model="x " * 40)
    found = compare(Profile([before]), Profile([after]))
    assert max(map(text_width, found.table(width).splitlines())) <= width
    columns = next(line for line in found.table(width).splitlines() if line.startswith("layer ")).split()
    if width >= 60:
        assert "verdict" in columns and "only before" in found.table(width)
    assert ("left out: " in found.table(width)) == (width < 100)
    assert "left out" not in found.table()
    told = "verdict: blank where the difference is within the noise" in found.table(width).replace("\n", " ")
    assert told == ("verdict" in columns)


def test_a_file_beside_itself(tmp_path):
    Profile([run(), run(batch=1)]).save(tmp_path / "p.json")
    profile = Profile.load(tmp_path / "p.json")
    found = compare(profile, profile)
    assert len(found.runs) == 2 and not found.notes
    assert not any(one.beyond_noise for pair in found.runs for one in [*pair.layers, pair.whole])
