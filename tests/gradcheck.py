"""Gradients against central differences, in float64, through forward, backward and gradients of a whole network."""
from __future__ import annotations

import numpy as np

ATOL, RTOL = 1e-7, 1e-5
# Tried one after the other: a small step loses digits, a large one meets the curvature or a kink.
STEPS = (1e-5, 1e-4, 1e-6)
# Of every tensor so many numbers are moved alone, and so many directions move all of them at once.
ALONE, TOGETHER = 24, 2


def check_gradients(net, inputs, dy=None, seed=0):
    """Raises AssertionError where backward's dx or a weight's gradient is not the slope of sum(dy * forward(inputs)).

    net     a float64 network, or anything with its forward, backward, gradients, parameters and set_parameters
    inputs  {name: array}; away from kinks
    dy      {output: array}, drawn at random where it is None
    """
    rng = np.random.default_rng(seed)
    inputs = {name: np.array(x, np.float64) for name, x in inputs.items()}
    single = len(inputs) == 1

    def forward():
        y = net.forward(next(iter(inputs.values())) if single else inputs)
        return y if isinstance(y, dict) else {"": y}

    first = forward()
    if dy is None:
        dy = {name: rng.normal(size=y.shape) for name, y in first.items()}
    dx = net.backward(dy if "" not in dy else dy[""])
    dx = dx if isinstance(dx, dict) else {next(iter(inputs)): dx}
    found = {f"dx of {name}": (dx[name], inputs[name], None) for name in inputs}
    weights = net.parameters()
    found.update({f"gradient of {name}": (gradient, np.array(weights[name]), name)
                  for name, gradient in net.gradients().items()})

    for what, (gradient, array, weight) in found.items():
        assert gradient.shape == array.shape, f"{what} has shape {gradient.shape}, not {array.shape}"
        start = array.copy()

        def outputs(delta, array=array, start=start, weight=weight):
            array[...] = start + delta
            if weight is not None:
                net.set_parameters({weight: array})
            return forward()

        for direction in directions(rng, array):
            slope = float((gradient * direction).sum())
            measured = []
            for step in STEPS:
                above, below = outputs(step * direction), outputs(-step * direction)
                measured.append(sum(float((dy[name] * (above[name] - below[name])).sum()) for name in dy) / (2 * step))
                if abs(measured[-1] - slope) <= ATOL + RTOL * abs(slope):
                    break
            else:
                at = np.argwhere(direction)
                where = f"at {tuple(at[0])}" if len(at) == 1 else "along a random direction"
                raise AssertionError(f"{what} {where} is {slope!r}, central differences say {measured}")
        outputs(0.0)


def directions(rng, array):
    """Single numbers of an array (all of a small one), then all of them at once."""
    for place in rng.permutation(array.size)[:ALONE]:
        one = np.zeros(array.size)
        one[place] = 1.0
        yield one.reshape(array.shape)
    for _ in range(TOGETHER):
        yield rng.choice([-1.0, 1.0], array.shape)
