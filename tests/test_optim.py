"""Optimizers, losses and schedules as data: defaults, validation, resolution by name."""
import dataclasses
import math

import numpy as np
import pytest

from microcnn.errors import CompileError
from microcnn.losses import LOSSES, BCEWithLogitsLoss, CrossEntropyLoss, HuberLoss, MSELoss, SmoothL1Loss, resolve_loss
from microcnn.optim import SGD, Adam, AdamW, resolve_optimizer
from microcnn.schedule import (
    CosineAnnealingLR,
    ExponentialLR,
    MultiStepLR,
    OneCycleLR,
    StepLR,
    constant,
    cosine,
    resolve_schedule,
)


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
                        (CrossEntropyLoss(), torch.nn.CrossEntropyLoss), (SmoothL1Loss(), torch.nn.SmoothL1Loss),
                        (HuberLoss(), torch.nn.HuberLoss), (BCEWithLogitsLoss(), torch.nn.BCEWithLogitsLoss),
                        (StepLR(1), torch.optim.lr_scheduler.StepLR),
                        (MultiStepLR([1]), torch.optim.lr_scheduler.MultiStepLR),
                        (OneCycleLR(), torch.optim.lr_scheduler.OneCycleLR)):
        parameters = inspect.signature(theirs).parameters
        for name, value in dataclasses.asdict(own).items():
            if name == "clip_norm" or parameters[name].default is inspect.Parameter.empty:
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
    (lambda: resolve_schedule("linear"), 'schedule is \'linear\'; expected one of "constant", "cosine", "step"'),
    (lambda: resolve_schedule("step"), 'schedule is "step"; step needs step_size, in epochs: "step:10"'),
    (lambda: resolve_schedule("milestones"), 'milestones needs milestones, in epochs: "milestones:30\\+60"'),
    (lambda: resolve_schedule("constant:2"), "constant takes no arguments"),
    (lambda: resolve_schedule("step:2,gama=3"), '"gama=3"; step takes step_size, gamma, each once, as step:step_size=VALUE'),
    (lambda: resolve_schedule("step:2,0.1,5"), '"5"; step takes step_size, gamma, each once'),
    (lambda: resolve_schedule("step:many"), "StepLR: step_size is 'many'; expected a number of epochs, 1 or more"),
    (lambda: resolve_schedule(StepLR), r"schedule is the class StepLR; make one of it: mc.StepLR\("),
    (lambda: StepLR(0), "StepLR: step_size is 0"),
    (lambda: StepLR(1, gamma=-1), "StepLR: gamma is -1; expected a finite number, 0 or more"),
    (lambda: MultiStepLR([]), r"MultiStepLR: milestones is \[\]; expected numbers of epochs"),
    (lambda: MultiStepLR("30"), "MultiStepLR: milestones is '30'"),
    (lambda: ExponentialLR(math.nan), "ExponentialLR: gamma is nan"),
    (lambda: CosineAnnealingLR(warmup=-1), "CosineAnnealingLR: warmup is -1; expected a number of epochs"),
    (lambda: CosineAnnealingLR(floor=2), "CosineAnnealingLR: floor is 2; expected a number from 0 to 1"),
    (lambda: CosineAnnealingLR(start_factor=0), "CosineAnnealingLR: start_factor is 0; expected a number above 0"),
    (lambda: OneCycleLR(pct_start=1.5), "OneCycleLR: pct_start is 1.5; expected a number from 0 to 1"),
    (lambda: OneCycleLR(div_factor=0), "OneCycleLR: div_factor is 0; expected a finite number above 0"),
    (lambda: OneCycleLR(anneal_strategy="cubic"), "anneal_strategy is 'cubic'; expected \"cos\" or \"linear\""),
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


# by name and as an object, with what PyTorch has for it: (optimizer, epochs, steps of an epoch) -> (scheduler, by epoch)
def of_pytorch(name, torch, optimizer, epochs, epoch_steps):
    kinds, steps = torch.optim.lr_scheduler, epochs * epoch_steps
    if name.startswith("cosine"):
        warm = 3
        parts = [kinds.LinearLR(optimizer, 0.25, total_iters=warm),
                 kinds.CosineAnnealingLR(optimizer, steps - warm, eta_min=0.3 * 0.1)]
        return kinds.SequentialLR(optimizer, parts, [warm]), False
    if name.startswith("one-cycle"):
        return kinds.OneCycleLR(optimizer, 0.3, total_steps=steps, cycle_momentum=False,
                                anneal_strategy="linear" if "linear" in name else "cos", div_factor=10), False
    return {"step": lambda: kinds.StepLR(optimizer, 2, 0.5), "milestones": lambda: kinds.MultiStepLR(optimizer, [1, 4], 0.1),
            "exponential": lambda: kinds.ExponentialLR(optimizer, 0.8)}[name.partition(":")[0]](), True


NAMED = {"step:2,gamma=0.5": StepLR(2, 0.5), "milestones:4+1": MultiStepLR([1, 4]), "exponential:0.8": ExponentialLR(0.8),
         "cosine:warmup=1.5,start_factor=0.25,floor=0.1": CosineAnnealingLR(1.5, 0.25, 0.1),
         "one-cycle:div_factor=10": OneCycleLR(div_factor=10),
         "one-cycle:anneal_strategy=linear,div_factor=10": OneCycleLR(anneal_strategy="linear", div_factor=10)}


@pytest.mark.parametrize("name", NAMED)
def test_schedules_by_name_are_those_objects(name):
    by_name, given = resolve_schedule(name, 2), resolve_schedule(NAMED[name], 2)
    assert [by_name(step, 12) for step in range(12)] == [given(step, 12) for step in range(12)]


def test_schedules_by_hand():
    assert [resolve_schedule(StepLR(2, 0.5), 3)(step, 18) for step in range(0, 18, 3)] == [1, 1, 0.5, 0.5, 0.25, 0.25]
    assert resolve_schedule(MultiStepLR(3, 0.5), 1)(3, 5) == 0.5
    warm = resolve_schedule(CosineAnnealingLR(warmup=1), 3)
    np.testing.assert_allclose([warm(step, 3) for step in range(3)], [1 / 3, 5 / 9, 7 / 9])
    cycle = resolve_schedule(OneCycleLR())
    assert all(0 < cycle(step, steps) <= 1 for steps in (1, 2, 3, 10) for step in range(steps))
    assert cycle(2, 10) == 1 and cycle(0, 10) == pytest.approx(1 / 25) and cycle(9, 10) == pytest.approx(1 / 25 / 1e4)


@pytest.mark.torch
@pytest.mark.parametrize("name", NAMED)
def test_schedules_are_pytorchs(name):
    import torch
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    epochs, epoch_steps = 6, 2
    scheduler, by_epoch = of_pytorch(name, torch, optimizer, epochs, epoch_steps)
    ours = resolve_schedule(name, epoch_steps)
    for step in range(epochs * epoch_steps):
        assert math.isclose(optimizer.param_groups[0]["lr"], 0.3 * ours(step, epochs * epoch_steps), rel_tol=1e-9), step
        optimizer.step()
        if not by_epoch or step % epoch_steps == epoch_steps - 1:
            scheduler.step()
