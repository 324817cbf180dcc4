"""Whatever fails in a step fails before anything was written, and the next step goes on as if it had not happened."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from optimizing import ADAMW, MIXED, difference, model, optimizer_class, train

from optlang.runtime import host
from optlang.runtime.kernels import Kernels, Prepared

RULES = {"adamw": ADAMW, "mixed": MIXED, "lamb": "lamb", "adafactor": "adafactor"}


class Fault:
    """Raises an error in the place of a function when it is called for the n-th time."""

    def __init__(self, function: Callable[..., Any], error: BaseException, after: int) -> None:
        self.function, self.error, self.left = function, error, after

    def __get__(self, instance: Any, owner: Any) -> Callable[..., Any]:
        return lambda *args, **kwargs: self(instance, *args, **kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.left -= 1
        if self.left < 0:
            raise self.error
        return self.function(*args, **kwargs)


def two_groups(name: str, net: torch.nn.Module) -> torch.optim.Optimizer:
    first, last = net[0].parameters(), net[2].parameters()
    return optimizer_class(RULES[name])([{"params": first}, {"params": last, "lr": 0.02}], lr=0.1)


def everything(net: torch.nn.Module, optimizer: torch.optim.Optimizer) -> str:
    with torch._tensor_str.printoptions(precision=17):
        return str([list(net.parameters()), optimizer.state_dict()])


FAULTS: dict[str, tuple[Any, str, BaseException, int]] = {
    "interrupted while compiling": (Kernels, "kernel", KeyboardInterrupt(), 0),
    "interrupted while compiling the second kernel": (Kernels, "kernel", KeyboardInterrupt(), 1),
    "no memory for the first state": (Prepared, "started", torch.OutOfMemoryError("no memory"), 0),
    "no memory for a later state": (Prepared, "started", torch.OutOfMemoryError("no memory"), 3),
    "an error in host arithmetic": (host, "call", RuntimeError("host"), 0),
    "an error in host arithmetic of the second group": (host, "call", RuntimeError("host"), 1),
}


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("steps", [0, 2])
def test_a_step_that_fails_has_not_begun(fault: str, name: str, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    place, attribute, error, after = FAULTS[fault]
    net = model()
    optimizer = two_groups(name, net)
    train(net, optimizer, steps)
    twin = copy.deepcopy(net)
    other = two_groups(name, twin)
    other.load_state_dict(optimizer.state_dict())
    if steps:  # bound anew, so that the same may fail again
        optimizer.load_state_dict(optimizer.state_dict())
    before = everything(net, optimizer)
    with monkeypatch.context() as patch:
        patch.setattr(place, attribute, Fault(getattr(place, attribute), error, after))
        try:
            train(net, optimizer, 1, seed=5)
        except type(error):
            assert everything(net, optimizer) == before
        else:
            # no state was missing, or all parameters share a kernel
            assert attribute == "started" or (attribute == "kernel" and after)
            train(twin, other, 1, seed=5)
    train(net, optimizer, 2, seed=6)
    train(twin, other, 2, seed=6)
    assert difference(list(net.parameters()), list(twin.parameters())) == 0
    assert everything(net, optimizer) == everything(twin, other)


@pytest.mark.parametrize("key", ["lr", "betas", "eps", "weight_decay"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, "0.1", None, True])
def test_nonsense_in_the_last_group_stops_the_step_before_the_first(key: str, value: Any) -> None:
    net = model()
    optimizer = two_groups("adamw", net)
    train(net, optimizer, 1)
    before = [p.detach().clone() for p in net.parameters()]
    optimizer.param_groups[1][key] = (0.9, value) if key == "betas" else value
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    with pytest.raises(ValueError, match=rf"AdamW: .*({key}|beta2)"):
        optimizer.step()
    assert difference(list(net.parameters()), before) == 0
    assert {float(held["step"]) for held in optimizer.state.values()} == {1.0}


def test_a_checkpoint_is_loaded_whole_or_not_at_all() -> None:
    net = model()
    optimizer = two_groups("adamw", net)
    train(net, optimizer, 2)
    before = everything(net, optimizer)
    good = copy.deepcopy(optimizer.state_dict())

    def spoil(change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
        bad = copy.deepcopy(good)
        change(bad)
        return bad

    for bad in (
        spoil(lambda d: d["param_groups"][1].update(lr=float("nan"))),
        spoil(lambda d: d["param_groups"].pop()),
        spoil(lambda d: d["param_groups"][1]["params"].pop()),
        spoil(lambda d: d["state"][3].update(exp_avg=torch.ones(9))),
        spoil(lambda d: d["state"][3].update(step=torch.ones(2))),
        spoil(lambda d: d.pop("state")),
    ):
        with pytest.raises(ValueError):
            optimizer.load_state_dict(bad)
        assert everything(net, optimizer) == before


def test_parameters_that_stand_twice() -> None:
    p = torch.nn.Parameter(torch.ones(2))
    with pytest.warns(UserWarning, match="duplicate parameters"):
        optimizer_class(ADAMW)([p, p])
    with pytest.raises(ValueError, match="more than one parameter group"):
        optimizer_class(ADAMW)([{"params": [p]}, {"params": [p]}])
    with pytest.raises(ValueError, match="non-leaf"):
        optimizer_class(ADAMW)([p * 2])
