"""Parameter groups by patterns over names."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import optlang


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.layers = nn.ModuleList([nn.Linear(4, 4) for _ in range(2)])
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embed.weight  # tied: one parameter, under its first name


def names(groups: list[dict[str, Any]]) -> list[list[str]]:
    return [[name for name, _ in group["params"]] for group in groups]


def test_each_parameter_goes_to_the_first_pattern_it_matches() -> None:
    found = optlang.groups(Model(), {"*.bias | *norm*": {"weight_decay": 0}, "embed.*": {"lr": 1e-4}}, weight_decay=0.1)
    assert names(found) == [
        ["layers.0.bias", "layers.1.bias", "norm.weight", "norm.bias"],
        ["embed.weight"],
        ["layers.0.weight", "layers.1.weight"],
    ]
    assert [{k: v for k, v in g.items() if k != "params"} for g in found] == [
        {"weight_decay": 0},
        {"lr": 1e-4},
        {"weight_decay": 0.1},
    ]


@pytest.mark.parametrize("cls", [torch.optim.AdamW, optlang.rules.AdamW])
def test_groups_are_for_any_optimizer(cls: Any) -> None:
    model = Model()
    optimizer = cls(optlang.groups(model, {"*.bias": {"weight_decay": 0}}), lr=0.1, weight_decay=0.1)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0, 0.1]
    assert optimizer.param_groups[0]["param_names"] == ["layers.0.bias", "layers.1.bias", "norm.bias"]
    assert {id(p) for g in optimizer.param_groups for p in g["params"]} == {id(p) for p in model.parameters()}


def test_a_group_of_everything_leaves_no_rest() -> None:
    assert names(optlang.groups([("a.b", torch.ones(1))], {"a.?": {}})) == [["a.b"]]


def test_a_pattern_that_matches_nothing_lists_the_names() -> None:
    with pytest.raises(ValueError, match=r"no parameter matches '\*\.baises'.*The names are: embed\.weight, layers"):
        optlang.groups(Model(), {"*.baises": {}})
    with pytest.raises(ValueError, match="Did you mean 'bias'"):
        optlang.groups(Model(), {"*.biass": {}})


def test_a_pattern_that_comes_too_late_says_so() -> None:
    with pytest.raises(
        ValueError, match=r"taken by an earlier pattern .norm\.weight, norm\.bias.; put the more specific"
    ):
        optlang.groups(Model(), {"*": {}, "norm.*": {}})


def test_names_are_needed_and_options_are_dicts() -> None:
    with pytest.raises(TypeError, match=r"pass the model, or model\.named_parameters"):
        optlang.groups(Model().parameters(), {"*": {}})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="must be a dict"):
        optlang.groups(Model(), {"*": 0.1})  # type: ignore[dict-item]
