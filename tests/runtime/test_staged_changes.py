"""What people do to parameters, states and groups between the steps of rules with several passes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from optimizing import difference
from stepping import eager, values
from test_staged_work import STAGED, give, parameters

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

every_rule = pytest.mark.parametrize("name", STAGED)


def pair(name: str, dtype: torch.dtype = torch.float64) -> list[tuple[list[Any], Any]]:
    """Return two equal lots of parameters with their optimizers."""
    lots = [parameters(dtype) for _ in range(2)]
    return [(ps, eager(name)(ps, **STAGED[name])) for ps in lots]


def step_both(both: list[tuple[list[Any], Any]], steps: range) -> None:
    for step in steps:
        for ps, optimizer in both:
            give(ps, step)
            optimizer.step()
        assert difference(both[0][0], both[1][0]) == 0, f"step {step}"


def other_memory(ps: list[Any], optimizer: Any) -> None:
    """Move a parameter, and a state, to other memory."""
    ps[2].data = ps[2].data.clone()
    held = optimizer.state.get(ps[0], {})
    held.update({key: value.clone() for key, value in held.items()})


def other_count(ps: list[Any], optimizer: Any) -> None:
    """Write to the numbers that a state shows."""
    for value in optimizer.state.get(ps[0], {}).values():
        if value.dim() == 0:
            value.fill_(7)


def no_state(ps: list[Any], optimizer: Any) -> None:
    """Forget a parameter's state, as if it were new."""
    optimizer.state.pop(ps[0], None)


def fewer(ps: list[Any], optimizer: Any) -> None:
    """Take a parameter out of its group."""
    optimizer.param_groups[0]["params"].pop()


@every_rule
@pytest.mark.parametrize("change", [other_memory, other_count, no_state, fewer], ids=lambda f: f.__name__)
def test_what_is_changed_is_seen_as_by_an_optimizer_made_anew(name: str, change: Callable[..., None]) -> None:
    both = pair(name)
    step_both(both, range(3))
    for ps, optimizer in both:
        change(ps, optimizer)
    both[1][1].__setstate__(both[1][1].__getstate__())  # lets go of everything that is kept from step to step
    step_both(both, range(3, 6))


@every_rule
def test_a_parameter_that_comes_back_goes_on(name: str) -> None:
    both = pair(name)
    step_both(both, range(2))
    for _, optimizer in both:
        optimizer.param_groups[0]["params"].pop(1)
    step_both(both, range(2, 4))
    for ps, optimizer in both:
        optimizer.param_groups[0]["params"].insert(1, ps[1])
    step_both(both, range(4, 6))


@every_rule
def test_step_sizes_may_be_tensors(name: str) -> None:
    lr = torch.tensor(0.25, dtype=torch.float64)
    (ps, ours), (qs, other) = pair(name)
    ours.param_groups[0]["lr"] = lr
    for step in range(3):
        lr.fill_(0.25 * (step + 1))
        other.param_groups[0]["lr"] = 0.25 * (step + 1)
        step_both([(ps, ours), (qs, other)], range(step, step + 1))
    assert ours.param_groups[0]["lr"] is lr


@every_rule
def test_a_shallow_copy_goes_on(name: str) -> None:
    both = pair(name)
    step_both(both, range(2))
    step_both([(both[0][0], copy.copy(both[0][1])), both[1]], range(2, 4))


@every_rule
def test_a_compiled_training_step_makes_the_usual_steps(name: str) -> None:
    (ps, ours), (qs, other) = pair(name, torch.float32)
    step = torch.compile(lambda: ours.step(), backend="eager")
    for turn in range(3):
        give(ps, turn)
        give(qs, turn)
        step()
        other.step()
        assert difference(ps, qs) == 0


@every_rule
def test_gradients_may_be_of_another_type(name: str) -> None:
    (ps, ours), (qs, other) = pair(name, torch.bfloat16)
    for step in range(4):
        for i, (p, q) in enumerate(zip(ps, qs, strict=True)):
            q.grad = values(tuple(p.shape), torch.bfloat16, 10 * step + i)
            p.grad, p.grad_dtype = None, None
            p.grad = q.grad.float()
        ours.step()
        other.step()
    for p, q in zip(ps, qs, strict=True):
        torch.testing.assert_close(p, q, rtol=0.05, atol=0.05)


@every_rule
def test_a_model_may_be_cast_between_steps(name: str) -> None:
    ((ps, optimizer), _) = pair(name, torch.float32)
    for step in range(5):
        if step == 3:
            for p in ps:
                p.grad = None
                p.data = p.data.double()
        give(ps, step)
        optimizer.step()
    assert all(p.dtype is torch.float64 and bool(torch.isfinite(p).all()) for p in ps)


def test_two_optimizers_of_a_class_in_turn_do_not_mix() -> None:
    for name in STAGED:
        both = pair(name)
        alone = pair(name)[0]
        for step in range(3):
            for ps, optimizer in (*both, alone):
                give(ps, step)
                if ps is both[1][0]:
                    for p in ps:
                        p.grad *= 3
                optimizer.step()
        assert difference(both[0][0], alone[0]) == 0, name
