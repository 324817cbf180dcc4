"""Parameters in bfloat16 whose updates are rounded away: a warning says so, once, and nothing is looked at in vain."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import optlang
from optlang.runtime import vanishing

SGD = "hyper lr = 1e-3\np -= lr*g\n"


def parameter(value: float = 1.0, dtype: torch.dtype = torch.bfloat16, numel: int = 64) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.full((numel,), value, dtype=dtype))


def warned(optimizer: Any, params: list[torch.nn.Parameter], steps: int = 12) -> list[str]:
    """Return the warnings of some steps with gradients of 1."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        for _ in range(steps):
            for p in params:
                p.grad = torch.ones_like(p)
            optimizer.step()
    assert all(Path(each.filename) == Path(__file__) for each in found)
    return [str(each.message) for each in found]


def made(text: str = SGD, **options: Any) -> tuple[Any, list[torch.nn.Parameter]]:
    params = [parameter()]
    return optlang.compile(text, name="Rule", backend="eager")(params, **options), params


def test_it_is_said_once_with_what_to_do() -> None:
    (message,) = warned(*made())
    assert message.startswith("Rule: step 10 changed almost nothing in parameter 0 of group 0: ")
    assert all(way in message for way in ("'stochastic'", "'kahan'", "'bf16+8'", "'bf16+16'", "'nearest'"))


def test_parameters_are_named() -> None:
    moving, small = parameter(1e-3), [parameter() for _ in range(5)]
    named = [("moving", moving), *((f"norm.{i}", p) for i, p in enumerate(small))]
    cls = optlang.compile(SGD, backend="eager")
    (message,) = warned(cls(named), [moving, *small])
    assert "in 'norm.0', 'norm.1', 'norm.2' and 2 more:" in message
    groups = [{"params": [parameter(1e-3)]}, {"params": [parameter(1e-3), parameter()]}]
    (message,) = warned(cls(groups), [p for group in groups for p in group["params"]])
    assert "in parameter 1 of group 1:" in message


@pytest.mark.parametrize("rule", ["AdamW", "Muon", "LAMB"])
def test_rules_of_every_kind_of_step(rule: str) -> None:
    p = torch.nn.Parameter(torch.ones(64, 64, dtype=torch.bfloat16))
    cls = optlang.compile(optlang.rules.path(rule), backend="eager")
    assert len(warned(cls([p], lr=1e-6, weight_decay=0.0), [p])) == 1


@pytest.mark.parametrize(
    ("value", "options"),
    [(1e-2, {}), (1.0, {"lr": 0.01}), (1.0, {"lr": 0.0}), (0.0, {"lr": 1e-9})],
    ids=["small", "moving", "lr = 0", "zeros"],
)
def test_what_changes_or_is_not_meant_to_is_not_warned_of(value: float, options: dict[str, Any]) -> None:
    p = parameter(value)
    optimizer = optlang.compile(SGD, backend="eager")([p], **options)
    assert warned(optimizer, [p]) == []


@pytest.mark.parametrize("rounding", ["stochastic", "kahan", "bf16+8", "bf16+16", "nearest"])
def test_who_has_chosen_is_not_warned(rounding: str) -> None:
    assert warned(*made(rounding=rounding)) == []


def test_a_rule_that_chooses_is_not_warned_of() -> None:
    assert warned(*made(f"{SGD}store p: kahan\n")) == []


def test_parameters_in_float32_are_not_looked_at() -> None:
    p = parameter(dtype=torch.float32)
    optimizer = optlang.compile(SGD, backend="eager")([p], lr=1e-12)
    assert warned(optimizer, [p]) == [] and optimizer._vanishing is None


@pytest.mark.parametrize(
    "text",
    [
        "hyper lr = 1e-1\nstate a\na += g\nevery 4:\n    p -= lr*a\n    a = 0*p\n",
        "hyper lr = 1e-1\nif t > 1: p -= lr*g\n",
        "hyper lr = 1e-1\nhistory s: size 3\np -= lr*g*s[0]\npush s <- g\n",
    ],
    ids=["every", "if", "history"],
)
def test_parameters_that_wait_are_not_warned_of(text: str) -> None:
    assert warned(*made(text)) == []


def test_conditions_on_options_make_nothing_wait() -> None:
    assert len(warned(*made("hyper lr = 1e-3, nesterov = false\nif not nesterov: p -= lr*g\n"))) == 1


def test_gradients_of_zero_say_nothing() -> None:
    optimizer, (p,) = made()
    p.grad = torch.zeros_like(p)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(12):
            optimizer.step()


def test_the_beginning_of_a_warm_up_is_not_looked_at() -> None:
    optimizer, params = made(lr=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 1e-4 if t < 15 else 1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(12):
            params[0].grad = torch.ones_like(params[0])
            optimizer.step()
            scheduler.step()


def test_it_is_looked_three_times_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    looked = []
    stuck = vanishing._stuck
    monkeypatch.setattr(vanishing, "_stuck", lambda compared: looked.append(len(compared)) or stuck(compared))
    p = torch.nn.Parameter(torch.randn(64).bfloat16())
    optimizer = optlang.compile(SGD, backend="eager")([p], lr=0.01)
    monkeypatch.setattr(vanishing, "LOOKS", (2, 5, 9))
    assert warned(optimizer, [p]) == []
    assert looked == [1, 1, 1] and optimizer._vanishing is None


def test_what_begins_late_is_found_later() -> None:
    p = parameter(1e-3)
    optimizer = optlang.compile(SGD, backend="eager")([p])
    assert warned(optimizer, [p], 20) == []
    with torch.no_grad():
        p.fill_(1.0)
    (message,) = warned(optimizer, [p], 90)
    assert "step 100 changed almost nothing" in message


def test_rules_that_make_no_step_at_first_are_not_warned_of() -> None:
    p = torch.nn.Parameter(torch.full((64,), 1e-3, dtype=torch.bfloat16))
    cls = optlang.compile(optlang.rules.path("ScheduleFreeRAdam"), backend="eager")
    assert warned(cls([p]), [p]) == []


def test_other_kinds_of_steps_are_left_alone() -> None:
    assert warned(*made(capturable=True)) == []


def test_parameters_in_another_order_of_memory() -> None:
    p = torch.nn.Parameter(torch.ones(4, 4, 3, 3, dtype=torch.bfloat16).to(memory_format=torch.channels_last))
    assert len(warned(optlang.compile(SGD, backend="eager")([p]), [p])) == 1


def test_large_parameters_are_looked_at_in_part() -> None:
    assert vanishing._some(torch.arange(1_000_000)).numel() <= vanishing.ELEMENTS
    assert vanishing._some(torch.ones(())).numel() == 1
