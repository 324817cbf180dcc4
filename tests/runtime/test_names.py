"""Parameters with names: where they are kept, and how a checkpoint is matched by them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from optimizing import ADAMW, MIXED, difference, model, optimizer_class, train

AdamW = optimizer_class(ADAMW)
NAMES = ["0.weight", "0.bias", "2.weight", "2.bias"]


def named(net: torch.nn.Module, order: list[str] = NAMES) -> list[tuple[str, torch.nn.Parameter]]:
    parameters = dict(net.named_parameters())
    return [(name, parameters[name]) for name in order]


def trained(groups: Any = None) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    net = model()
    optimizer = AdamW(named(net) if groups is None else groups(net))
    train(net, optimizer, 3)
    return net, optimizer


def test_names_are_kept_in_groups_and_in_the_state_dict() -> None:
    _, optimizer = trained()
    assert optimizer.param_groups[0]["param_names"] == NAMES
    assert optimizer.state_dict()["param_groups"][0]["param_names"] == NAMES


@pytest.mark.parametrize("theirs", [AdamW, torch.optim.AdamW])
def test_a_model_in_another_order_goes_on_as_it_was(theirs: Any) -> None:
    net = model()
    optimizer = theirs(named(net))
    train(net, optimizer, 3)
    other = copy.deepcopy(net)
    order = NAMES[::-1]
    again = AdamW(named(other, order))
    saved = optimizer.state_dict()
    before = copy.deepcopy(saved)
    again.load_state_dict(saved)
    assert str(saved) == str(before)
    assert again.param_groups[0]["param_names"] == order
    for name, p in other.named_parameters():
        assert again.state[p]["exp_avg"].shape == p.shape, name
    train(net, optimizer, 3, seed=1)
    train(other, again, 3, seed=1)
    assert difference(list(net.parameters()), list(other.parameters())) < 1e-15


def test_groups_in_another_order_are_found_by_their_names() -> None:
    def split(net: torch.nn.Module, turned: bool = False) -> list[dict[str, Any]]:
        parts = [
            {"params": named(net, ["0.weight", "2.weight"]), "lr": 0.1},
            {"params": named(net, ["2.bias", "0.bias"]), "lr": 0.2},
        ]
        return parts[::-1] if turned else parts

    net, optimizer = trained(split)
    other = copy.deepcopy(net)
    again = AdamW(split(other, turned=True))
    again.load_state_dict(optimizer.state_dict())
    assert [group["lr"] for group in again.param_groups] == [0.2, 0.1]
    train(net, optimizer, 2, seed=1)
    train(other, again, 2, seed=1)
    assert difference(list(net.parameters()), list(other.parameters())) == 0


def test_a_mismatch_is_an_error_that_lists_the_names_and_loads_nothing() -> None:
    _, optimizer = trained()
    saved = optimizer.state_dict()
    renamed = model()
    other = AdamW([(f"new.{name}", p) for name, p in renamed.named_parameters()])
    with pytest.raises(
        ValueError, match=r"no state for 'new.0.bias', .*it has '0.bias', .*does not have; nothing was loaded"
    ):
        other.load_state_dict(saved)
    assert not other.state
    fewer = AdamW(named(renamed, NAMES[:3]))
    with pytest.raises(ValueError, match=r"it has .2.bias., which this optimizer does not have"):
        fewer.load_state_dict(saved)
    halves = AdamW([{"params": named(renamed, NAMES[:2])}, {"params": named(renamed, NAMES[2:])}])
    with pytest.raises(ValueError, match="are in different parameter groups: 1 there, 2 here"):
        halves.load_state_dict(saved)
    assert not halves.state and not fewer.state


def test_long_lists_are_cut() -> None:
    parameters = [torch.nn.Parameter(torch.ones(1)) for _ in range(9)]
    one = AdamW([(f"a{i}", p) for i, p in enumerate(parameters)])
    other = AdamW([(f"b{i}", p) for i, p in enumerate(parameters)])
    with pytest.raises(ValueError, match="'b4' and 4 more"):
        other.load_state_dict(one.state_dict())


def test_without_names_on_both_sides_places_decide() -> None:
    net, optimizer = trained()
    saved = optimizer.state_dict()
    other = copy.deepcopy(net)
    again = AdamW(other.parameters())
    again.load_state_dict(saved)
    assert again.param_groups[0]["param_names"] == NAMES  # as torch.optim does
    anonymous = AdamW(copy.deepcopy(net).parameters())
    del saved["param_groups"][0]["param_names"]
    anonymous.load_state_dict(saved)
    third = AdamW(named(copy.deepcopy(net), NAMES))
    third.load_state_dict(saved)
    assert third.param_groups[0]["param_names"] == NAMES
    assert all(
        torch.equal(a["exp_avg"], b["exp_avg"]) for a, b in zip(third.state.values(), again.state.values(), strict=True)
    )


def test_a_parameter_in_an_error_is_called_by_its_name() -> None:
    net = model()
    optimizer = AdamW(named(net))
    weight = net.get_parameter("2.weight")
    weight.grad = torch.sparse_coo_tensor([[0], [0]], [1.0], weight.shape, dtype=weight.dtype)
    with pytest.raises(ValueError, match=r"parameter '2.weight' has a sparse gradient"):
        optimizer.step()


def test_state_of_a_group_goes_with_its_group() -> None:
    mixed = optimizer_class(MIXED)
    net = model()
    optimizer = mixed([{"params": named(net, NAMES[:2])}, {"params": named(net, NAMES[2:])}], lr=0.1)
    net.get_parameter("0.weight").grad = torch.ones(4, 5, dtype=torch.float64)
    optimizer.step()
    assert [group["seen"] for group in optimizer.param_groups] == [1, 0]
    again = mixed([{"params": named(net, NAMES[2:])}, {"params": named(net, NAMES[:2])}], lr=0.1)
    again.load_state_dict(optimizer.state_dict())
    assert [group["seen"] for group in again.param_groups] == [0, 1]
