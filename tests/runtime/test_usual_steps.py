"""Steps that are like the one before are recognised, and whatever makes one different is seen."""

import copy
import functools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

import optlang
from optlang.backends.loading import watch
from optlang.runtime.usual import UsualSteps

SHAPES = ((33, 7), (64,), (5, 4, 3), (1,))
RULES = ("AdamW", "LAMB", "AdamWClip", "Muon", "SGD")
STEPS = 6

Change = Callable[[torch.optim.Optimizer, list[torch.nn.Parameter]], Any]


def gradients(params: Sequence[torch.Tensor], number: int) -> None:
    """Give parameters the gradients of a step."""
    generator = torch.Generator().manual_seed(number)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator)


@functools.cache
def compiled(rule: str) -> Any:
    """Return the class of a rule of the library."""
    return optlang.compile(optlang.rules.path(rule), backend="cpp")


def made(rule: str) -> tuple[torch.optim.Optimizer, list[torch.nn.Parameter]]:
    """Return an optimizer with parameters of some shapes."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(33, 7), (8, 8)] if rule == "Muon" else SHAPES
    params = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    options = {"momentum": 0.9} if rule == "SGD" else {}
    return compiled(rule)(params, lr=0.01, **options), params


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Return a list that gets, for each step that is tried as a usual one, whether it was one."""
    found: list[bool] = []
    prepare = UsualSteps.prepare

    def counted(self: UsualSteps, *args: Any) -> bool:
        found.append(prepare(self, *args))
        return found[-1]

    monkeypatch.setattr(UsualSteps, "prepare", counted)
    return found


def contents(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """Return copies of all parameters and states."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    states = [v for p in params for _, v in sorted(optimizer.state[p].items()) if isinstance(v, torch.Tensor)]
    return [t.detach().clone() for t in (*params, *states)]


def after(rule: str, change: Change | None, usual: bool) -> list[torch.Tensor]:
    """Return what an optimizer holds after some steps, with a change between the third and the fourth."""
    optimizer, params = made(rule)
    for number in range(STEPS):
        if not usual:
            optimizer._usual = None
        members = [p for group in optimizer.param_groups for p in group["params"]]
        gradients(members, number)
        if number == 3 and change is not None:
            change(optimizer, params)
        optimizer.step()
    return contents(optimizer)


@pytest.mark.parametrize("rule", RULES)
def test_steps_are_usual_after_the_first(rule: str, taken: list[bool]) -> None:
    optimizer, params = made(rule)
    for number in range(STEPS):
        gradients(params, number)
        optimizer.step()
    assert taken.count(True) == STEPS - 1, taken


def lower(optimizer: Any, params: Any) -> None:
    optimizer.param_groups[0]["lr"] = 0.001


def lower_in_place(optimizer: Any, params: Any) -> None:
    rate = optimizer.param_groups[0]["lr"] = torch.tensor(0.01)
    optimizer.step()
    rate.fill_(0.001)


def add_group(optimizer: Any, params: Any) -> None:
    p = torch.nn.Parameter(torch.ones(8, 8))
    p.grad = torch.ones(8, 8)
    optimizer.add_param_group({"params": [p], "lr": 0.5})


def replace_parameter(optimizer: Any, params: Any) -> None:
    p = torch.nn.Parameter(torch.ones(8, 8))
    p.grad = torch.ones(8, 8)
    optimizer.param_groups[0]["params"][0] = p


def no_gradient(optimizer: Any, params: Any) -> None:
    params[1].grad = None


def other_order(optimizer: Any, params: Any) -> None:
    p = params[0]
    p.grad = p.grad.t().contiguous().t()


def marked_as_negative(optimizer: Any, params: Any) -> None:
    params[0].grad = torch._neg_view(params[0].grad)


def other_memory(optimizer: Any, params: Any) -> None:
    params[0].data = params[0].data.clone() * 2


def same_memory_in_another_order(optimizer: Any, params: Any) -> None:
    params[0].data = params[0].data.view(*reversed(params[0].shape)).t()


def swapped(optimizer: Any, params: Any) -> None:
    other = torch.nn.Parameter(torch.ones_like(params[0]))
    other.grad = torch.ones_like(params[0])
    torch.utils.swap_tensors(params[0], other)


def forgotten(optimizer: Any, params: Any) -> None:
    optimizer.state.clear()


def states_replaced(optimizer: Any, params: Any) -> None:
    for held in optimizer.state.values():
        held.update({k: v * 1.5 for k, v in held.items() if isinstance(v, torch.Tensor)})


def states_in_other_memory(optimizer: Any, params: Any) -> None:
    for held in optimizer.state.values():
        for value in held.values():
            if isinstance(value, torch.Tensor):
                value.data = value.data * 1.5


def counted_on(optimizer: Any, params: Any) -> None:
    for held in optimizer.state.values():
        if "step" in held:
            held["step"].add_(10)


def loaded(optimizer: Any, params: Any) -> None:
    saved = copy.deepcopy(optimizer.state_dict())
    for held in saved["state"].values():
        held.update({k: v * 2 for k, v in held.items() if isinstance(v, torch.Tensor) and v.dim()})
    optimizer.load_state_dict(saved)


def deleted(optimizer: Any, params: Any) -> None:
    held = optimizer.state[params[0]]
    for key in [*held]:
        del held[key]


CHANGES: tuple[Change, ...] = (
    lower,
    lower_in_place,
    add_group,
    replace_parameter,
    no_gradient,
    other_order,
    marked_as_negative,
    other_memory,
    same_memory_in_another_order,
    swapped,
    forgotten,
    states_replaced,
    states_in_other_memory,
    counted_on,
    loaded,
    deleted,
)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("rule", RULES)
def test_changes_are_seen(rule: str, change: Change) -> None:
    found, expected = after(rule, change, True), after(rule, change, False)
    assert all(map(torch.equal, found, expected))
    if change is not other_order and not (change is counted_on and rule in ("SGD", "Muon")):  # they do not count
        unchanged = after(rule, None, True)
        assert len(found) != len(unchanged) or not all(map(torch.equal, found, unchanged))


@pytest.mark.parametrize("rule", RULES)
def test_a_schedule_of_the_step_size_leaves_steps_usual(rule: str, taken: list[bool]) -> None:
    optimizer, params = made(rule)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    for number in range(STEPS):
        gradients(params, number)
        optimizer.step()
        schedule.step()
    assert taken.count(True) == STEPS - 1, taken


@pytest.mark.parametrize("rule", ["AdamW", "AdamWClip"])
def test_what_is_wrong_with_a_usual_step_is_said_and_nothing_is_changed(rule: str) -> None:
    optimizer, params = made(rule)
    for number in range(3):
        gradients(params, number)
        optimizer.step()
    before = contents(optimizer)
    optimizer.param_groups[0]["lr"] = -1.0
    with pytest.raises(ValueError, match="lr"):
        optimizer.step()
    optimizer.param_groups[0]["lr"] = 0.01
    params[1].grad = torch.ones(params[1].shape).to_sparse()
    with pytest.raises(ValueError, match="sparse"):
        optimizer.step()
    assert all(map(torch.equal, contents(optimizer), before))


@pytest.mark.parametrize("rule", ["AdamW", "AdamWClip"])
def test_without_a_watch_each_tensor_is_looked_at(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = after(rule, lower, True)
    monkeypatch.setattr(watch, "watch", lambda *_: None)
    assert all(map(torch.equal, after(rule, lower, True), expected))


# The watch ----------------------------------------------------------------------------------------------------


def watched() -> tuple[list[torch.nn.Parameter], list[torch.Tensor], watch.Watch]:
    params = [torch.nn.Parameter(torch.randn(shape)) for shape in SHAPES]
    gradients(params, 0)
    states = [torch.zeros_like(p) for p in params]
    assert watch.ready() is not None
    found = watch.watch(params, states)
    assert found is not None
    return params, states, found


def test_gradients_may_lie_elsewhere() -> None:
    params, _, found = watched()
    assert found.look()
    gradients(params, 1)
    assert found.look()
    assert list(found.addresses) == [p.grad.data_ptr() for p in params if p.grad is not None]


def _no_gradient(params: list[Any], states: list[Any]) -> None:
    params[2].grad = None


def _double(params: list[Any], states: list[Any]) -> None:
    params[2].data = params[2].data.double()


def _gradient_in_another_order(params: list[Any], states: list[Any]) -> None:
    params[0].grad = params[0].grad.t().contiguous().t()


def _negative(params: list[Any], states: list[Any]) -> None:
    params[0].grad = torch._neg_view(params[0].grad)


def _gone(params: list[Any], states: list[Any]) -> None:
    params[0].untyped_storage().resize_(0)


def _gradient_gone(params: list[Any], states: list[Any]) -> None:
    params[0].grad.untyped_storage().resize_(0)


def _state_elsewhere(params: list[Any], states: list[Any]) -> None:
    states[3].data = states[3].data.clone()


def _state_in_another_form(params: list[Any], states: list[Any]) -> None:
    states[0].data = states[0].data.view(7, 33)


def _state_swapped(params: list[Any], states: list[Any]) -> None:
    torch.utils.swap_tensors(states[0], torch.zeros_like(states[0]))


@pytest.mark.parametrize(
    "change",
    [
        _no_gradient,
        _double,
        _gradient_in_another_order,
        _negative,
        _gone,
        _gradient_gone,
        _state_elsewhere,
        _state_in_another_form,
        _state_swapped,
    ],
    ids=lambda change: change.__name__[1:],
)
def test_a_watch_sees(change: Callable[[list[Any], list[Any]], None]) -> None:
    params, states, found = watched()
    change(params, states)
    assert not found.look()
