"""Checkpoints of parameters with names, where names alone do not say everything."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from optimizing import ADAMW, difference, model, optimizer_class, train

AdamW = optimizer_class(ADAMW)


def of_two_models(one: torch.nn.Module, other: torch.nn.Module) -> list[dict[str, Any]]:
    return [{"params": one.named_parameters(), "lr": 0.1}, {"params": other.named_parameters(), "lr": 0.2}]


@pytest.mark.parametrize("theirs", [AdamW, torch.optim.AdamW])
def test_groups_with_the_same_names_are_told_apart_by_their_order(theirs: Any) -> None:
    one, other = model(), model()
    optimizer = theirs(of_two_models(one, other))
    train(one, optimizer, 2)
    train(other, optimizer, 3, seed=1)
    first, second = copy.deepcopy((one, other))
    again = AdamW(of_two_models(first, second))
    again.load_state_dict(optimizer.state_dict())
    assert [group["lr"] for group in again.param_groups] == [0.1, 0.2]
    for net, twin in ((one, first), (other, second)):
        train(net, optimizer, 2, seed=2)
        train(twin, again, 2, seed=2)
        assert difference(list(net.parameters()), list(twin.parameters())) < 1e-15


def test_a_name_that_stands_twice_in_a_group_leaves_it_to_the_order() -> None:
    def both(one: torch.nn.Module, other: torch.nn.Module) -> list[tuple[str, torch.nn.Parameter]]:
        return [*one.named_parameters(), *other.named_parameters()]

    one, other = model(), model()
    optimizer = AdamW(both(one, other))
    train(other, optimizer, 3)
    first, second = copy.deepcopy((one, other))
    again = AdamW(both(first, second))
    again.load_state_dict(optimizer.state_dict())
    assert set(again.state) == set(second.parameters())


def test_names_that_stand_in_one_group_less_often_are_a_mismatch() -> None:
    one, other = model(), model()
    optimizer = AdamW(of_two_models(one, other))
    alone = AdamW(model().named_parameters())
    with pytest.raises(ValueError, match="are in different parameter groups: 2 there, 1 here"):
        alone.load_state_dict(optimizer.state_dict())


def test_a_hook_before_loading_may_rename_what_is_loaded() -> None:
    def without_prefix(optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
        groups = [dict(group) for group in state_dict["param_groups"]]
        for group in groups:
            group["param_names"] = [name.removeprefix("module.") for name in group["param_names"]]
        return {**state_dict, "param_groups": groups}

    net = model()
    optimizer = AdamW([(f"module.{name}", p) for name, p in net.named_parameters()])
    train(net, optimizer, 3)
    saved = optimizer.state_dict()
    other = copy.deepcopy(net)
    again = AdamW(list(other.named_parameters())[::-1])
    with pytest.raises(ValueError, match=r"it has 'module.0.bias', .*delete them"):
        again.load_state_dict(saved)
    again.register_load_state_dict_pre_hook(without_prefix)
    again.load_state_dict(saved)
    assert saved["param_groups"][0]["param_names"][0] == "module.0.weight"
    train(net, optimizer, 2, seed=1)
    train(other, again, 2, seed=1)
    assert difference(list(net.parameters()), list(other.parameters())) == 0


def test_a_mismatch_of_names_leaves_a_trained_optimizer_as_it_was() -> None:
    net, twin = model(), model()
    optimizer, reference = AdamW(net.named_parameters()), AdamW(twin.named_parameters())
    saved = optimizer.state_dict()
    saved["param_groups"][0]["param_names"] = ["a", "b", "c", "d"]
    saved["param_groups"][0]["lr"] = 123.0
    train(net, optimizer, 2)
    train(twin, reference, 2)
    with pytest.raises(ValueError, match="nothing was loaded"):
        optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["lr"] == reference.param_groups[0]["lr"]
    train(net, optimizer, 2, seed=1)
    train(twin, reference, 2, seed=1)
    assert difference(list(net.parameters()), list(twin.parameters())) == 0


def test_state_of_named_parameters_goes_through_the_state_dict_of_the_model() -> None:
    """``torch.distributed.checkpoint`` puts names in the place of indices, and finds parameters by them."""
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

    net = model()
    optimizer = AdamW(net.named_parameters(), lr=0.1)
    train(net, optimizer, 3)
    saved = get_optimizer_state_dict(net, optimizer)
    assert set(saved["state"]) == {name for name, _ in net.named_parameters()}
    other = copy.deepcopy(net)
    again = AdamW(list(other.named_parameters())[::-1])
    set_optimizer_state_dict(other, again, saved)
    train(net, optimizer, 2, seed=1)
    train(other, again, 2, seed=1)
    assert difference(list(net.parameters()), list(other.parameters())) == 0
    assert again.param_groups[0]["param_names"] == [name for name, _ in net.named_parameters()][::-1]
