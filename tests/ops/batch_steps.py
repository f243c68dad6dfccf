"""Training steps with batch norm on the batch's statistics, beside forward and backward one by one."""
import numpy as np
import pytest

import microcnn as mc

from .table import close, poison

RATE = 1.0


def compiled(graph, dtype, batch=8, **how):
    return graph.compile(batch=batch, **{**dict(train="all", bn="batch", loss="mse", optimizer=mc.SGD(lr=RATE), dtype=dtype),
                                         **how})


def samples(net, count=8, seed=0):
    rng = np.random.default_rng(seed)
    name = net.graph.inputs[0].name
    return (rng.standard_normal((count, *net.shapes[name])).astype(net.dtype),
            rng.standard_normal((count, *net.shapes[net.graph.outputs[0]])).astype(net.dtype))


def against_the_layers_apart(net, counts=(8, 5), rtol=1e-9):
    """A step against forward and backward one by one, which know of no such rows; also of a part of a batch."""
    before = {name: array.copy() for name, array in net.parameters().items()}
    for count in counts:
        net.set_parameters(before)
        x, t = samples(net, count)
        y = net.forward(x)
        net.backward(2 * (y - t) / y.size)
        wanted = net.gradients()
        net.set_parameters(before)
        poison(net)
        loss = net.train_step(x, t)
        assert loss == pytest.approx(float(np.mean((y - t) ** 2)), rel=1e-12)
        after = net.parameters()
        for weight, gradient in wanted.items():
            close((before[weight] - after[weight]) / RATE, gradient, rtol, weight)
