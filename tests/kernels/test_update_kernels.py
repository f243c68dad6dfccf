"""Optimizer steps as compiled, against plain loops in float64 and against PyTorch."""
import math

import numpy as np
import pytest

from microcnn import arena
from tests.rows import run

RATE = 0.1
TOLERANCE = {"float32": 2e-6, "float64": 1e-13}
DTYPES = pytest.mark.parametrize("dtype", ["float32", "float64"])
SIZES = pytest.mark.parametrize("size", [1, 3, 17, 33, 100])
SGD = [
    {},
    {"weight_decay": 0.01},
    {"momentum": 0.9},
    {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.02},
    {"momentum": 0.9, "nesterov": 1, "weight_decay": 0.02},
    {"momentum": 0.8, "scale": 0.3, "weight_decay": 0.02},
    {"scale": 0.3},
]
ADAM = [
    {},
    {"beta1": 0.8, "beta2": 0.99, "eps": 1e-3},
    {"weight_decay": 0.1},
    {"weight_decay": 0.1, "decoupled": 1},
    {"weight_decay": 0.1, "scale": 0.3},
]


def clip_of(scale):
    return None if scale is None else np.array([scale])


def sgd_steps(weight, gradients, factor=1.0, threads=1, momentum=0.0, dampening=0.0, weight_decay=0.0, nesterov=0,
              scale=None):
    """The weight after one step per gradient; scale is what clipping multiplies it by."""
    weight = weight.copy()
    velocity = np.full_like(weight, np.nan) if momentum else None
    for step, gradient in enumerate(gradients, 1):
        run("update.sgd", 7, threads=threads, dtype=weight.dtype.name, control={arena.RATE: RATE, arena.STEP: step},
            weight=weight, gradient=gradient, velocity=velocity, size=weight.size, momentum=momentum,
            dampening=dampening, weight_decay=weight_decay, nesterov=nesterov, factor=factor,
            clip=clip_of(scale))
    return weight


def adam_steps(weight, gradients, factor=1.0, threads=1, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0,
               decoupled=0, scale=None):
    weight = weight.copy()
    first, second = np.zeros_like(weight), np.zeros_like(weight)
    for step, gradient in enumerate(gradients, 1):
        run("update.adam", 7, threads=threads, dtype=weight.dtype.name, control={arena.RATE: RATE, arena.STEP: step},
            weight=weight, gradient=gradient, first=first, second=second, size=weight.size, beta1=beta1, beta2=beta2,
            eps=eps, weight_decay=weight_decay, decoupled=decoupled, factor=factor, clip=clip_of(scale))
    return weight


def plain_sgd(weight, gradients, rate, momentum=0.0, dampening=0.0, weight_decay=0.0, nesterov=0, scale=1.0):
    result = weight.astype(np.float64)
    for i in range(weight.size):
        w, velocity = float(weight[i]), None
        for gradient in gradients:
            g = scale * float(gradient[i]) + weight_decay * w
            if momentum:
                velocity = g if velocity is None else momentum * velocity + (1 - dampening) * g
                g = g + momentum * velocity if nesterov else velocity
            w -= rate * g
        result[i] = w
    return result


def plain_adam(weight, gradients, rate, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0, decoupled=0, scale=1.0):
    result = weight.astype(np.float64)
    for i in range(weight.size):
        w, m, v = float(weight[i]), 0.0, 0.0
        for step, gradient in enumerate(gradients, 1):
            g = scale * float(gradient[i])
            if decoupled:
                w *= 1 - rate * weight_decay
            else:
                g += weight_decay * w
            m = beta1 * m + (1 - beta1) * g
            v = beta2 * v + (1 - beta2) * g * g
            w -= rate / (1 - beta1**step) * m / (math.sqrt(v) / math.sqrt(1 - beta2**step) + eps)
        result[i] = w
    return result


def data(size, dtype, steps=5):
    rng = np.random.default_rng(size)
    return rng.normal(size=size).astype(dtype), list(rng.normal(size=(steps, size)).astype(dtype))


@DTYPES
@SIZES
@pytest.mark.parametrize("options", SGD)
def test_sgd(options, size, dtype):
    weight, gradients = data(size, dtype)
    for factor in (1.0, 0.25, 0.0):
        np.testing.assert_allclose(sgd_steps(weight, gradients, factor, **options),
                                   plain_sgd(weight, gradients, RATE * factor, **options), rtol=TOLERANCE[dtype],
                                   atol=TOLERANCE[dtype])


@DTYPES
@SIZES
@pytest.mark.parametrize("options", ADAM)
def test_adam(options, size, dtype):
    weight, gradients = data(size, dtype)
    for factor in (1.0, 0.25, 0.0):
        np.testing.assert_allclose(adam_steps(weight, gradients, factor, **options),
                                   plain_adam(weight, gradients, RATE * factor, **options), rtol=TOLERANCE[dtype],
                                   atol=TOLERANCE[dtype])


def test_the_first_step_ignores_what_stood_in_velocity():
    weight, gradients = data(20, "float32", 1)
    velocity = np.full_like(weight, np.nan)
    run("update.sgd", 1, control={arena.RATE: RATE, arena.STEP: 1}, weight=weight.copy(), gradient=gradients[0],
        velocity=velocity, size=20, momentum=0.9, dampening=0.5, weight_decay=0.0, nesterov=0, factor=1.0, clip=None)
    np.testing.assert_array_equal(velocity, gradients[0])


@DTYPES
@SIZES
def test_accumulate_scaled(size, dtype):
    x, (y,) = data(size, dtype, 1)
    expected = y.astype(np.float64) + 0.3 * x.astype(np.float64)
    run("update.accumulate_scaled", 7, dtype=dtype, x=x, y=y, size=size, scale=0.3)
    np.testing.assert_allclose(y, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def test_threads_do_not_change_a_bit():
    weight, gradients = data(60_011, "float32", 2)
    for steps, options in [(sgd_steps, SGD[4]), (adam_steps, ADAM[3])]:
        one, two = (steps(weight, gradients, threads=threads, **options) for threads in (1, 2))
        np.testing.assert_array_equal(one, two)
    one, two = gradients[0].copy(), gradients[0].copy()
    run("update.accumulate_scaled", 1, threads=1, x=weight, y=one, size=weight.size, scale=0.3)
    run("update.accumulate_scaled", 1, threads=2, x=weight, y=two, size=weight.size, scale=0.3)
    np.testing.assert_array_equal(one, two)


def scaled(gradients, options):
    return [gradient * gradient.dtype.type(options.get("scale", 1.0)) for gradient in gradients]


def torch_steps(torch, optimizer, weight, gradients, **options):
    parameter = torch.nn.Parameter(torch.tensor(weight))
    optimizer = optimizer([parameter], lr=RATE, **options)
    for gradient in gradients:
        parameter.grad = torch.tensor(gradient)
        optimizer.step()
    return parameter.detach().numpy()


@pytest.mark.torch
@DTYPES
@pytest.mark.parametrize("options", SGD)
def test_sgd_is_pytorchs(options, dtype):
    torch = pytest.importorskip("torch")
    weight, gradients = data(100, dtype)
    theirs = {**options, "nesterov": bool(options.get("nesterov"))}
    theirs.pop("scale", None)
    np.testing.assert_allclose(sgd_steps(weight, gradients, **options),
                               torch_steps(torch, torch.optim.SGD, weight, scaled(gradients, options), **theirs),
                               rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.torch
@DTYPES
@pytest.mark.parametrize("options", ADAM)
def test_adam_is_pytorchs(options, dtype):
    torch = pytest.importorskip("torch")
    weight, gradients = data(100, dtype)
    optimizer = torch.optim.AdamW if options.get("decoupled") else torch.optim.Adam
    theirs = {"betas": (options.get("beta1", 0.9), options.get("beta2", 0.999)), "eps": options.get("eps", 1e-8),
              "weight_decay": options.get("weight_decay", 0.0)}
    np.testing.assert_allclose(adam_steps(weight, gradients, **options),
                               torch_steps(torch, optimizer, weight, scaled(gradients, options), **theirs),
                               rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_averages_without_a_gradient_end_at_zero(dtype):
    """Numbers below the smallest normal one take x86 a hundred times as long."""
    tiny = np.finfo(dtype).tiny
    weight, gradient = np.ones(40, dtype), np.zeros(40, dtype)
    velocity, first, second = (np.full(40, 1.05 * tiny, dtype) for _ in range(3))
    velocity[3] = first[3] = second[3] = np.nan
    first[5] = velocity[5] = -1.05 * tiny
    run("update.sgd", 1, 1, dtype, {arena.RATE: 0.1, arena.STEP: 2}, weight=weight, gradient=gradient, velocity=velocity,
        size=40, momentum=0.9, dampening=0.0, weight_decay=0.0, nesterov=0, factor=1.0, clip=None)
    run("update.adam", 1, 1, dtype, {arena.RATE: 0.1, arena.STEP: 2}, weight=weight, gradient=gradient, first=first,
        second=second, size=40, beta1=0.9, beta2=0.9, eps=1e-8, weight_decay=0.0, decoupled=0, factor=1.0, clip=None)
    for average in (velocity, first, second):
        assert np.isnan(average[3]) and not np.delete(average, 3).any()
