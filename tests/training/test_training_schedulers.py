"""Every learning-rate scheduler of torch on a compiled rule and on the optimizer of torch.optim of the same name."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from optimizing import difference, model, optimizer_class, train
from torch.optim import lr_scheduler
from torch.optim.swa_utils import SWALR

from optlang.runtime.kernels import compiled_count

STEPS = 12
RULES: dict[str, dict[str, Any]] = {
    "AdamW": {"lr": 0.05, "weight_decay": 0.1},
    "Adam": {"lr": 0.05, "amsgrad": True},
    "SGD": {"lr": 0.05, "momentum": 0.9, "nesterov": True},
    "RMSprop": {"lr": 0.01, "momentum": 0.5},
    "NAdam": {"lr": 0.02},
}

#: How to make each scheduler; those that also write `momentum` or `betas` do.
SCHEDULERS: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda step: 1 / (1 + step)),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda step: 0.9),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 3, gamma=0.5),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [2, 7], gamma=0.3),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, factor=0.25, total_iters=4),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, start_factor=0.1, total_iters=5),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.8),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, total_iters=10, power=2.0),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=6),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, T_0=3, T_mult=2),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.001, 0.05, step_size_up=3, cycle_momentum=True),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.1, total_steps=STEPS + 1, cycle_momentum=True),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0, threshold=10.0, factor=0.5),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1, total_iters=4), lr_scheduler.CosineAnnealingLR(o, T_max=8)], milestones=[4]
    ),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, 0.5, total_iters=3), lr_scheduler.ExponentialLR(o, 0.9)]
    ),
    "SWALR": lambda o: SWALR(o, swa_lr=0.005, anneal_epochs=4),
}
#: What a scheduler writes besides `lr`.
CYCLES_MOMENTUM = {"CyclicLR", "OneCycleLR"}


def scheduled(cls: Any, rule: str, scheduler: str) -> tuple[torch.nn.Module, torch.optim.Optimizer, list[Any]]:
    """Train under a scheduler; return the network, the optimizer and the hyperparameters of each step."""
    net = model()
    first, last = net[0].parameters(), net[2].parameters()
    optimizer = cls([{"params": first}, {"params": last, "lr": 0.03}], **RULES[rule])
    schedule = SCHEDULERS[scheduler](optimizer)
    seen = []
    for step in range(STEPS):
        group = optimizer.param_groups[1]
        seen.append([float(group["lr"]), group.get("betas"), group.get("momentum")])
        train(net, optimizer, 1, seed=step)
        schedule.step(*([1.0] if scheduler == "ReduceLROnPlateau" else []))
    return net, optimizer, seen


def test_every_scheduler_of_torch_is_tested() -> None:
    public = {
        name
        for name, value in vars(lr_scheduler).items()
        if inspect.isclass(value)
        and not name.startswith("_")
        and value.__module__ == lr_scheduler.__name__
        and issubclass(value, lr_scheduler.LRScheduler)
        and value is not lr_scheduler.LRScheduler
    }
    assert public <= set(SCHEDULERS)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("rule", RULES)
def test_a_scheduler_does_what_it_does_to_torch_optim(rule: str, scheduler: str) -> None:
    ours_class = optimizer_class(rule.lower())
    ours, optimizer, numbers = scheduled(ours_class, rule, scheduler)
    before = compiled_count(ours_class)
    theirs, _, expected = scheduled(getattr(torch.optim, rule), rule, scheduler)
    assert numbers == expected
    assert len({str(n) for n in numbers}) > 1  # something did change
    apart = 1e-8 if rule == "NAdam" else 1e-12  # torch keeps NAdam's product in float32
    assert difference(list(ours.parameters()), list(theirs.parameters())) < apart
    scheduled(ours_class, rule, scheduler)
    assert compiled_count(ours_class) == before  # which other tests may have made more of
    if scheduler in CYCLES_MOMENTUM:
        key = "momentum" if "momentum" in optimizer.param_groups[0] else "betas"
        assert len({str(n[1:]) for n in numbers}) > 1, key


@pytest.mark.parametrize("scheduler", ["OneCycleLR", "SequentialLR", "ReduceLROnPlateau"])
def test_a_schedule_goes_on_after_resuming(scheduler: str) -> None:
    def advance(net: torch.nn.Module, optimizer: torch.optim.Optimizer, schedule: Any, steps: range) -> None:
        for step in steps:
            train(net, optimizer, 1, seed=step)
            schedule.step(*([1.0] if scheduler == "ReduceLROnPlateau" else []))

    cls = optimizer_class("adamw")
    net = model()
    optimizer = cls(net.parameters(), **RULES["AdamW"])
    schedule = SCHEDULERS[scheduler](optimizer)
    advance(net, optimizer, schedule, range(5))
    saved = copy.deepcopy((optimizer.state_dict(), schedule.state_dict()))
    twin = copy.deepcopy(net)
    advance(net, optimizer, schedule, range(5, STEPS))

    resumed = cls(twin.parameters(), **RULES["AdamW"])
    again = SCHEDULERS[scheduler](resumed)
    resumed.load_state_dict(saved[0])
    again.load_state_dict(saved[1])
    advance(twin, resumed, again, range(5, STEPS))
    assert difference(list(net.parameters()), list(twin.parameters())) == 0
    assert resumed.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]


def test_momentum_cycles_if_a_rule_has_it_under_that_name() -> None:
    named = optimizer_class("v = momentum*v + g; p -= lr*v")
    net = model()
    optimizer = named(net.parameters(), lr=0.1, momentum=0.9)
    lr_scheduler.CyclicLR(optimizer, 0.01, 0.1, base_momentum=0.5, max_momentum=0.7)
    assert optimizer.param_groups[0]["momentum"] == 0.7

    other = optimizer_class("v = beta*v + g; p -= lr*v")(model().parameters(), lr=0.1, beta=0.9)
    with pytest.raises(ValueError, match="cycle_momentum"):
        lr_scheduler.CyclicLR(other, 0.01, 0.1)
    lr_scheduler.CyclicLR(other, 0.01, 0.1, cycle_momentum=False)
    assert other.param_groups[0]["lr"] == 0.01


def test_a_rate_kept_in_a_tensor_is_scheduled_in_place() -> None:
    nets = []
    for cls in (optimizer_class("adamw"), torch.optim.AdamW):
        net = model()
        optimizer = cls(net.parameters(), lr=torch.tensor(0.05, dtype=torch.float64))
        schedule = lr_scheduler.ExponentialLR(optimizer, 0.5)
        for step in range(4):
            train(net, optimizer, 1, seed=step)
            schedule.step()
        assert float(optimizer.param_groups[0]["lr"]) == pytest.approx(0.05 / 16)
        assert isinstance(optimizer.param_groups[0]["lr"], torch.Tensor)
        nets.append(list(net.parameters()))
    assert difference(*nets) < 1e-12
