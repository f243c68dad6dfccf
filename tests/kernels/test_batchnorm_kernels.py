"""The batch norm kernels against the formulas in float64."""
import numpy as np
import pytest

from microcnn.kernels.batchnorm_statistics import SCRATCH
from microcnn.kernels.simd import lanes_of
from microcnn.layers.batchnorm import pixels_together

from ..rows import run

EPS, MOMENTUM = 1e-3, 0.9
INF = float("inf")
CLAMPS = [(-INF, INF), (0.0, INF), (-0.5, 0.75)]


def _close(actual, expected, dtype, scale=1):
    tolerance = scale * {"float32": 2e-5, "float64": 1e-12}[dtype]
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


def _case(batch, pixels, C, dtype, seed=0):
    rng = np.random.default_rng(seed)
    case = dict(x=rng.standard_normal((batch, pixels, C)) * 2 + 1, dy=rng.standard_normal((batch, pixels, C)),
                scale=rng.uniform(0.5, 1.5, C), bias=rng.standard_normal(C), mean=rng.standard_normal(C),
                var=rng.uniform(0.5, 2, C))
    return {name: value.astype(dtype) for name, value in case.items()}


def _rows(x, count=SCRATCH):
    """The fields that say what a row of the kernels is, and scratch of so many numbers for each of a row's."""
    pixels, C = x.shape[1:]
    together = pixels_together(pixels, C, lanes_of(x.dtype))
    return dict(pixels=pixels, C=C, together=together, scratch=np.full(count * C * together, np.nan, x.dtype))


def _mask(y, low, high):
    return ((y > low) & (y < high)).astype(float)


def _forward_frozen(case, low, high, threads=1):
    x = case["x"]
    y = np.full_like(x, np.nan)
    run("batchnorm.forward_frozen", len(x), threads, str(x.dtype), x=x, scale=case["scale"], bias=case["bias"],
        mean=case["mean"], var=case["var"], y=y, eps=EPS, low=low, high=high, **_rows(x, 3))
    return y


def _forward_batch(case, low=-INF, high=INF, threads=1, update=0):
    x = case["x"]
    C = x.shape[2]
    y, saved = np.full_like(x, np.nan), np.full((3, C), np.nan, x.dtype)
    running_mean, running_var = case["mean"].copy(), case["var"].copy()
    run("batchnorm.forward_batch", len(x), threads, str(x.dtype), x=x, scale=case["scale"], bias=case["bias"],
        saved=saved, y=y, eps=EPS, low=low, high=high, **_rows(x))
    if update:
        run("batchnorm.update_running", len(x), threads, str(x.dtype), saved=saved, running_mean=running_mean,
            running_var=running_var, C=C, momentum=MOMENTUM)
    return y, saved, running_mean, running_var


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("C", [1, 3, 5, 8, 17, 33])
@pytest.mark.parametrize("low, high", CLAMPS)
def test_forward_frozen(low, high, C, dtype):
    for batch, pixels in (1, 1), (2, 7), (3, 720):
        case = _case(batch, pixels, C, dtype)
        exact = {name: value.astype(float) for name, value in case.items()}
        expected = (exact["x"] - exact["mean"]) * exact["scale"] / np.sqrt(exact["var"] + EPS) + exact["bias"]
        _close(_forward_frozen(case, low, high), np.clip(expected, low, high), dtype)


def test_in_place():
    case = _case(2, 70, 17, "float32")
    common = dict(scale=case["scale"], mean=case["mean"], var=case["var"], eps=EPS, low=0.0, high=INF)
    y = _forward_frozen(case, 0.0, INF)
    x = case["x"].copy()
    run("batchnorm.forward_frozen", 2, x=x, y="x", bias=case["bias"], **common, **_rows(x, 3))
    assert x.tobytes() == y.tobytes()
    outputs = _backward_frozen(case, y, 0.0, INF)
    gradients = [case["dy"].copy(), *(np.full(17, np.nan, "float32") for _ in range(2))]
    run("batchnorm_backward.backward_frozen", 2, x=case["x"], y=y, dy=gradients[0], dx="dy", dscale=gradients[1],
        dbias=gradients[2], need_dx=1, need_params=1, accumulate=0, accumulate_scale=0, accumulate_bias=0, **common, **_rows(x))
    for one, two in zip(outputs, gradients, strict=True):
        assert one.tobytes() == two.tobytes()
    _, saved, _, _ = _forward_batch(case)
    dx = _backward_batch(case, saved, 0.0, INF)[0]
    dy = case["dy"].copy()
    run("batchnorm_backward.backward_batch", 2, x=case["x"], scale=case["scale"], bias=case["bias"], saved=saved, dy=dy,
        dx="dy", dscale=None, dbias=None, clamps=1, low=0.0, high=INF, need_dx=1, need_params=0, accumulate=0,
        accumulate_scale=0, accumulate_bias=0, **_rows(dy))
    assert dy.tobytes() == dx.tobytes()


def test_a_nan_stays_a_nan():
    x = np.array([[[1, np.nan, 3]]], "float32")
    ones, zeros = np.ones(3, "float32"), np.zeros(3, "float32")
    y = _forward_frozen(dict(x=x, scale=ones, bias=zeros, mean=zeros, var=ones), 0.0, 6.0)
    np.testing.assert_array_equal(np.isnan(y), np.isnan(x))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("C", [1, 3, 5, 8, 17, 33])
@pytest.mark.parametrize("update", [0, 1])
def test_forward_batch(update, C, dtype):
    for batch, pixels, (low, high) in (1, 1, CLAMPS[0]), (2, 7, CLAMPS[1]), (3, 720, CLAMPS[2]), (1, 30_000, CLAMPS[0]):
        case = _case(batch, pixels, C, dtype)
        exact = {name: value.astype(float) for name, value in case.items()}
        mean, variance = exact["x"].mean((0, 1)), exact["x"].var((0, 1))
        expected = (exact["x"] - mean) / np.sqrt(variance + EPS) * exact["scale"] + exact["bias"]
        y, saved, running_mean, running_var = _forward_batch(case, low, high, update=update)
        _close(y, np.clip(expected, low, high), dtype)
        _close(saved, np.stack([mean, 1 / np.sqrt(variance + EPS), variance]), dtype)
        keep = MOMENTUM if update else 1
        _close(running_mean, exact["mean"] * keep + mean * (1 - keep), dtype)
        _close(running_var, exact["var"] * keep + variance * (1 - keep), dtype)


@pytest.mark.parametrize("C", [1, 8, 256])
def test_statistics_survive_a_large_mean(C):
    rng = np.random.default_rng(0)
    case = _case(4, 2500, C, "float32")
    case["x"] = (1000 + rng.standard_normal((4, 2500, C))).astype("float32")
    y, saved, _, _ = _forward_batch(case)
    exact = case["x"].astype(float)
    np.testing.assert_allclose(saved[0], exact.mean((0, 1)), rtol=2e-7)
    np.testing.assert_allclose(saved[1], 1 / np.sqrt(exact.var((0, 1)) + EPS), rtol=1e-5)
    expected = (exact - exact.mean((0, 1))) / np.sqrt(exact.var((0, 1)) + EPS) * case["scale"] + case["bias"]
    np.testing.assert_allclose(y, expected, atol=1e-3)


def _backward_frozen(case, y, low, high, need_dx=1, need_params=1, accumulate=0, threads=1, **given):
    dy = case["dy"]
    C, dtype = dy.shape[2], dy.dtype
    outputs = dict(dx=np.full_like(dy, np.nan) if need_dx else None,
                   dscale=np.full(C, np.nan, dtype) if need_params else None,
                   dbias=np.full(C, np.nan, dtype) if need_params else None) | given
    run("batchnorm_backward.backward_frozen", len(dy), threads, str(dtype), x=case["x"] if need_params else None,
        scale=case["scale"], mean=case["mean"], var=case["var"], y=y, dy=dy, eps=EPS, low=low, high=high,
        need_dx=need_dx, need_params=need_params, accumulate=accumulate, accumulate_scale=accumulate,
        accumulate_bias=accumulate, **outputs, **_rows(dy))
    return outputs["dx"], outputs["dscale"], outputs["dbias"]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("C", [1, 3, 5, 8, 17, 33])
@pytest.mark.parametrize("low, high", CLAMPS)
def test_backward_frozen(low, high, C, dtype):
    for batch, pixels in (1, 1), (2, 7), (3, 720):
        case = _case(batch, pixels, C, dtype)
        exact = {name: value.astype(float) for name, value in case.items()}
        y = None if low == -INF else _forward_frozen(case, low, high)
        dz = exact["dy"] if y is None else exact["dy"] * _mask(y, low, high)
        inverse = 1 / np.sqrt(exact["var"] + EPS)
        expected = (dz * exact["scale"] * inverse, (dz * (exact["x"] - exact["mean"]) * inverse).sum((0, 1)),
                    dz.sum((0, 1)))
        everything = _backward_frozen(case, y, low, high)
        for actual, wanted in zip(everything, expected, strict=True):
            _close(actual, wanted, dtype, 20)
        for need_dx, need_params in (1, 0), (0, 1):
            parts = _backward_frozen(case, y, low, high, need_dx, need_params)
            for part, whole in zip(parts, everything, strict=True):
                assert part is None or part.tobytes() == whole.tobytes()
        start = _case(batch, pixels, C, dtype, 5)
        given = dict(dx=start["x"].copy(), dscale=start["scale"].copy(), dbias=start["bias"].copy())
        total = _backward_frozen(case, y, low, high, accumulate=1, **given)
        for actual, before, added in zip(total, (start["x"], start["scale"], start["bias"]), expected, strict=True):
            _close(actual, before + added, dtype, 20)


def _backward_batch(case, saved, low, high, need_dx=1, need_params=1, accumulate=0, threads=1, **given):
    dy = case["dy"]
    C, dtype = dy.shape[2], dy.dtype
    outputs = dict(dx=np.full_like(dy, np.nan) if need_dx else None,
                   dscale=np.full(C, np.nan, dtype) if need_params else None,
                   dbias=np.full(C, np.nan, dtype) if need_params else None) | given
    run("batchnorm_backward.backward_batch", len(dy), threads, str(dtype), x=case["x"], scale=case["scale"], bias=case["bias"],
        saved=saved, dy=dy, clamps=int(low > -INF or high < INF), low=low, high=high, need_dx=need_dx,
        need_params=need_params, accumulate=accumulate, accumulate_scale=accumulate, accumulate_bias=accumulate, **outputs,
        **_rows(dy))
    return outputs["dx"], outputs["dscale"], outputs["dbias"]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("C", [1, 3, 5, 8, 17, 33])
@pytest.mark.parametrize("low, high", CLAMPS)
def test_backward_batch(low, high, C, dtype):
    for batch, pixels in (1, 2), (2, 7), (3, 720):
        case = _case(batch, pixels, C, dtype)
        exact = {name: value.astype(float) for name, value in case.items()}
        y, saved, _, _ = _forward_batch(case, low, high)
        dz = exact["dy"] * _mask(y, low, high)
        inverse = 1 / np.sqrt(exact["x"].var((0, 1)) + EPS)
        normal = (exact["x"] - exact["x"].mean((0, 1))) * inverse
        dscale, dbias = (dz * normal).sum((0, 1)), dz.sum((0, 1))
        rows = batch * pixels
        expected = (exact["scale"] * inverse * (dz - dbias / rows - normal * dscale / rows), dscale, dbias)
        everything = _backward_batch(case, saved, low, high)
        for actual, wanted in zip(everything, expected, strict=True):
            _close(actual, wanted, dtype, 20)
        for need_dx, need_params in (1, 0), (0, 1):
            parts = _backward_batch(case, saved, low, high, need_dx, need_params)
            for part, whole in zip(parts, everything, strict=True):
                assert part is None or part.tobytes() == whole.tobytes()
        start = _case(batch, pixels, C, dtype, 5)
        given = dict(dx=start["x"].copy(), dscale=start["scale"].copy(), dbias=start["bias"].copy())
        total = _backward_batch(case, saved, low, high, accumulate=1, **given)
        for actual, before, added in zip(total, (start["x"], start["scale"], start["bias"]), expected, strict=True):
            _close(actual, before + added, dtype, 20)


def test_backward_batch_is_the_derivative_of_forward_batch():
    case = _case(2, 5, 3, "float64")

    def loss(x):
        return (_forward_batch(case | {"x": x})[0] * case["dy"]).sum()

    saved = _forward_batch(case)[1]
    dx = _backward_batch(case, saved, -INF, INF)[0]
    step = 1e-6
    for at in np.ndindex(dx.shape):
        shift = np.zeros_like(dx)
        shift[at] = step
        slope = (loss(case["x"] + shift) - loss(case["x"] - shift)) / (2 * step)
        np.testing.assert_allclose(dx[at], slope, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("C", [8, 33])
def test_two_threads_give_the_same_bits(C):
    case = _case(3, 3000, C, "float32")
    results = []
    for threads in 1, 2:
        frozen = _forward_frozen(case, 0.0, INF, threads)
        y, saved, running_mean, running_var = _forward_batch(case, 0.0, INF, threads, 1)
        results.append([frozen, y, saved, running_mean, running_var,
                        *_backward_frozen(case, frozen, 0.0, INF, threads=threads),
                        *_backward_batch(case, saved, 0.0, INF, threads=threads)])
    for one, two in zip(*results, strict=True):
        assert one.tobytes() == two.tobytes()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("K", [1, 3, 5, 8, 17, 33])
@pytest.mark.parametrize("with_bias", [False, True])
def test_fold(with_bias, K, dtype):
    case = _case(1, 18, K, dtype)
    exact = {name: value.astype(float) for name, value in case.items()}
    weight, bias = case["x"][0], case["dy"][0, 0] if with_bias else None
    folded_weight, folded_bias = np.full_like(weight, np.nan), np.full(K, np.nan, dtype)
    run("batchnorm_fold.fold", 1, 1, dtype, weight=weight, bias=bias, scale=case["scale"], bn_bias=case["bias"],
        mean=case["mean"], var=case["var"], folded_weight=folded_weight, folded_bias=folded_bias, rows=18, columns=K, K=K,
        KG=1, CG=0, eps=EPS)
    factor = exact["scale"] / np.sqrt(exact["var"] + EPS)
    _close(folded_weight, weight * factor, dtype)
    before = exact["dy"][0, 0] if with_bias else 0
    _close(folded_bias, (before - exact["mean"]) * factor + exact["bias"], dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("groups, KG, CG", [(1, 5, 3), (1, 1, 33), (3, 4, 17), (17, 1, 1), (2, 3, 5)])
def test_fold_of_a_transposed_convolution(groups, KG, CG, dtype):
    K, taps = groups * KG, 6
    case = _case(1, 1, K, dtype)
    weight = np.random.default_rng(5).standard_normal((taps, KG, groups, CG)).astype(dtype)
    folded_weight, folded_bias = np.full_like(weight, np.nan), np.full(K, np.nan, dtype)
    run("batchnorm_fold.fold", 1, 1, dtype, weight=weight, bias=None, scale=case["scale"], bn_bias=case["bias"],
        mean=case["mean"], var=case["var"], folded_weight=folded_weight, folded_bias=folded_bias, rows=taps * KG,
        columns=groups * CG, K=K, KG=KG, CG=CG, eps=EPS)
    factor = case["scale"].astype(float) / np.sqrt(case["var"].astype(float) + EPS)
    _close(folded_weight, weight * factor.reshape(groups, KG).T[None, :, :, None], dtype)
    _close(folded_bias, case["bias"] - case["mean"] * factor, dtype)
