"""Optimizers, losses and schedules as data: defaults, validation, resolution by name."""
import dataclasses
import math

import numpy as np
import pytest

from microcnn.errors import CompileError
from microcnn.losses import LOSSES, CrossEntropyLoss, MSELoss, resolve_loss
from microcnn.optim import SGD, Adam, AdamW, resolve_optimizer
from microcnn.schedule import constant, cosine, resolve_schedule


def test_defaults_are_pytorchs():
    assert dataclasses.asdict(SGD(0.1)) == {"lr": 0.1, "clip_norm": None, "momentum": 0, "dampening": 0, "weight_decay": 0,
                                            "nesterov": False}
    assert dataclasses.asdict(Adam()) == {"lr": 1e-3, "clip_norm": None, "betas": (0.9, 0.999), "eps": 1e-8,
                                          "weight_decay": 0}
    assert AdamW().weight_decay == 1e-2 and AdamW(1e-4).lr == 1e-4
    assert [SGD.kind, Adam.kind, AdamW.kind] == ["sgd", "adam", "adamw"]


@pytest.mark.torch
def test_defaults_are_those_of_the_installed_pytorch():
    import inspect

    import torch
    for own, theirs in ((SGD(), torch.optim.SGD), (Adam(), torch.optim.Adam), (AdamW(), torch.optim.AdamW),
                        (CrossEntropyLoss(), torch.nn.CrossEntropyLoss)):
        parameters = inspect.signature(theirs).parameters
        for name, value in dataclasses.asdict(own).items():
            if name == "clip_norm":
                continue      # clipping is a function of its own there
            assert parameters[name].default == value, (theirs, name)


def test_positions_follow_pytorch():
    assert SGD(0.1, 0.9, 0.0, 1e-4, True) == SGD(lr=0.1, momentum=0.9, weight_decay=1e-4, nesterov=True)
    assert Adam(0.1, (0.8, 0.9), 1e-6, 0.1) == Adam(lr=0.1, betas=[0.8, 0.9], eps=1e-6, weight_decay=0.1)


@pytest.mark.parametrize(("make", "text"), [
    (lambda: SGD(lr=-1), "SGD: lr is -1; expected a finite number, 0 or more, such as 0.01"),
    (lambda: SGD(lr=math.nan), "SGD: lr is nan"),
    (lambda: SGD(lr=math.inf), "SGD: lr is inf"),
    (lambda: SGD(lr="fast"), "SGD: lr is 'fast'"),
    (lambda: SGD(lr=True), "SGD: lr is True"),
    (lambda: SGD(momentum=-0.1), "SGD: momentum is -0.1"),
    (lambda: SGD(weight_decay=-1), "SGD: weight_decay is -1"),
    (lambda: SGD(nesterov=True), "SGD: nesterov=True with momentum=0, dampening=0; it needs a momentum above 0"),
    (lambda: SGD(momentum=0.9, dampening=0.1, nesterov=True), "it needs a momentum above 0 and no dampening"),
    (lambda: Adam(betas=(0.9, 1.0)), r"Adam: betas\[1\] is 1.0; expected two numbers from 0 to below 1"),
    (lambda: Adam(betas=0.9), "Adam: betas is 0.9; expected two numbers"),
    (lambda: AdamW(eps=-1e-8), "AdamW: eps is -1e-08"),
    (lambda: CrossEntropyLoss(weight=[1.0, -1.0]), r"CrossEntropyLoss: weight is \[1.0, -1.0\]; expected one finite"),
    (lambda: CrossEntropyLoss(weight="even"), "CrossEntropyLoss: weight is 'even'"),
    (lambda: CrossEntropyLoss(weight=[0.0, 0.0]), "not all 0"),
    (lambda: CrossEntropyLoss(ignore_index=1.5), "CrossEntropyLoss: ignore_index is 1.5; expected an integer"),
    (lambda: CrossEntropyLoss(label_smoothing=1.5), "label_smoothing is 1.5; expected a number from 0 to 1"),
    (lambda: resolve_loss("crossentropy"), 'loss is \'crossentropy\'; expected one of "cross_entropy", "mse"'),
    (lambda: resolve_loss(MSELoss), r"loss is the class MSELoss; make one of it: mc.MSELoss\(\)"),
    (lambda: resolve_optimizer("sdg"), r"optimizer is 'sdg'; expected one of mc.SGD\(...\), mc.Adam"),
    (lambda: resolve_optimizer(SGD), r"optimizer is the class SGD; make one of it: mc.SGD\(lr=0.01\)"),
    (lambda: resolve_schedule("linear"), 'schedule is \'linear\'; expected one of "constant", "cosine", or a function'),
])
def test_what_makes_no_sense_is_refused(make, text):
    with pytest.raises(CompileError, match=text):
        make()


def test_objects_are_values():
    assert resolve_optimizer("Adam") == Adam() and resolve_optimizer(None) is None
    given = SGD(lr=0.1)
    assert resolve_optimizer(given) is given
    assert len({SGD(), SGD(lr=np.float32(1e-3).item()), Adam()}) == 3
    assert [resolve_loss(name).kind for name in LOSSES] == list(LOSSES)
    assert resolve_loss(None) is None and resolve_loss("mse") == MSELoss()
    assert CrossEntropyLoss(weight=np.array([1, 2.5], np.float32)).weight == (1.0, 2.5)
    with pytest.raises(dataclasses.FrozenInstanceError):
        given.lr = 1.0


def test_how_much_targets_count():
    loss = CrossEntropyLoss(weight=[1.0, 2.0, 4.0], ignore_index=9)
    assert loss.target_weight(np.array([0, 2, 9, 2])) == 9.0
    assert CrossEntropyLoss().target_weight(np.array([[0, 1], [-100, 1]])) == 3.0
    assert loss.target_weight(np.full((5, 3), 1 / 3)) == 5.0


def test_schedules():
    assert [constant(step, 4) for step in range(4)] == [1.0] * 4
    np.testing.assert_allclose([cosine(step, 4) for step in range(5)],
                               [1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2, 0], atol=1e-15)
    assert resolve_schedule("cosine") is cosine
    assert resolve_schedule(lambda step, steps: 0.5)(0, 1) == 0.5


@pytest.mark.torch
def test_cosine_is_pytorchs():
    import torch
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10)
    for step in range(10):
        assert math.isclose(optimizer.param_groups[0]["lr"], 0.3 * cosine(step, 10), rel_tol=1e-9)
        optimizer.step()
        scheduler.step()
