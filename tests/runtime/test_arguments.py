"""Constructing: arguments, param groups, and what a user's mistake gets."""

from __future__ import annotations

import inspect
import math

import numpy as np
import pytest
import torch
from optimizing import ADAMW, MIXED, optimizer_class, parameter

AdamW = optimizer_class(ADAMW)
Momentum = optimizer_class("v = beta*v + g; p -= lr*v", name="Momentum")


def test_it_is_a_torch_optimizer_with_the_rules_signature() -> None:
    assert issubclass(AdamW, torch.optim.Optimizer)
    parameters = inspect.signature(AdamW).parameters
    assert list(parameters)[:3] == ["params", "lr", "betas"]
    assert parameters["lr"].default == 1e-3
    assert parameters["betas"].default == (0.9, 0.999)
    assert "self" in inspect.signature(AdamW.__init__).parameters
    assert inspect.signature(Momentum).parameters["lr"].default is inspect.Parameter.empty


def test_help_lists_every_argument_with_default_and_range() -> None:
    text = inspect.getdoc(AdamW)
    assert text is not None
    for part in ("Args:", "lr (float, optional)", "(default: 0.001)", ">= 0", "betas (tuple of 2 numbers, optional)"):
        assert part in text
    assert "lr (float)" in (inspect.getdoc(Momentum) or "")


def test_positional_arguments_follow_the_rule_as_in_torch() -> None:
    optimizer = AdamW([parameter(2)], 0.5, (0.8, 0.9))
    assert optimizer.param_groups[0]["lr"] == 0.5
    assert optimizer.param_groups[0]["betas"] == (0.8, 0.9)
    with pytest.raises(TypeError, match="multiple values for argument 'lr'"):
        AdamW([parameter(2)], 0.5, lr=0.1)
    with pytest.raises(TypeError, match="arguments after params"):
        AdamW([parameter(2)], *range(50))


@pytest.mark.parametrize(
    ("keyword", "message"),
    [
        ("beta", "unexpected keyword argument 'beta'; did you mean 'betas'"),
        ("weight_decy", "did you mean 'weight_decay'"),
        ("beta1", r"it is part of betas=\(beta1, beta2\)"),
        ("zzz", "it takes lr, betas"),
    ],
)
def test_an_unknown_keyword_is_a_type_error_with_a_suggestion(keyword: str, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        AdamW([parameter(2)], **{keyword: 0.1})


def test_missing_arguments_are_named_unless_every_group_has_them() -> None:
    with pytest.raises(TypeError, match="missing required arguments: 'beta', 'lr'"):
        Momentum([parameter(2)])
    optimizer = Momentum([{"params": [parameter(2)], "lr": 0.1, "beta": 0.9}])
    assert optimizer.param_groups[0]["beta"] == 0.9
    with pytest.raises(ValueError, match="no 'beta'"):
        optimizer.add_param_group({"params": [parameter(2)], "lr": 0.1})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lr": -1.0}, "lr must be >= 0, got -1"),
        ({"lr": math.nan}, "lr must not be NaN"),
        ({"lr": True}, "lr must be a number, got True"),
        ({"lr": "0.1"}, "lr must be a number, got '0.1'"),
        ({"lr": torch.ones(2)}, "lr must be a number, got 'tensor"),
        ({"lr": np.ones(2)}, "lr must be a number, got 'array"),
        ({"lr": [0.1]}, r"lr must be a number, got \[0.1\]"),
        ({"lr": 1j}, "lr must be a number, got 1j"),
        ({"betas": (0.9, 1.0)}, r"beta2 \(betas\[1\]\) must be in \[0, 1\), got 1"),
        ({"betas": (0.9,)}, r"betas must be a tuple \(beta1, beta2\), got \(0.9,\)"),
        ({"betas": 0.9}, "betas must be a tuple"),
        ({"amsgrad": 1}, "amsgrad must be True or False, got 1"),
    ],
)
def test_a_bad_value_is_a_value_error_everywhere(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AdamW([parameter(2)], **arguments)
    optimizer = AdamW([parameter(2)])
    with pytest.raises(ValueError, match=message):
        optimizer.add_param_group({"params": [parameter(3)], **arguments})
    assert len(optimizer.param_groups) == 1
    optimizer.param_groups[0].update(arguments)
    before = optimizer.param_groups[0]["params"][0].detach().clone()
    with pytest.raises(ValueError, match=message):
        optimizer.step()
    assert torch.equal(before, optimizer.param_groups[0]["params"][0])
    assert not optimizer.state


@pytest.mark.parametrize("lr", [1, 0.5, np.float32(0.5), np.array(0.5), torch.tensor(0.5), np.int64(1)])
def test_numbers_of_all_kinds_are_accepted_and_kept(lr: object) -> None:
    p, q = parameter(3), parameter(3)
    optimizer, plain = AdamW([p], lr=lr), AdamW([q], lr=float(lr))  # type: ignore[arg-type]
    optimizer.step()
    plain.step()
    assert torch.equal(p, q)
    kept = optimizer.param_groups[0]["lr"]
    assert kept is lr if type(lr) in (int, float, torch.Tensor) else type(kept) in (int, float) and kept == lr


def test_a_tensor_lr_that_changes_in_place_is_read_at_each_step() -> None:
    lr = torch.tensor(0.5)
    p, q = parameter(3), parameter(3)
    optimizer, plain = AdamW([p], lr=lr), AdamW([q], lr=0.5)
    for value in (0.5, 0.25):
        lr.fill_(value)
        plain.param_groups[0]["lr"] = value
        optimizer.step()
        plain.step()
    assert torch.equal(p, q)


def test_switches_of_torch_that_choose_an_implementation() -> None:
    keys = ("foreach", "fused", "capturable", "differentiable")
    for rule, found in ((AdamW, [True, None, False, False]), (optimizer_class("lion"), ["none"] * 4)):
        optimizer = rule([parameter(2)], foreach=True, fused=None, capturable=False, differentiable=False)
        assert [optimizer.param_groups[0].get(key, "none") for key in keys] == found
        for name in ("capturable", "differentiable"):
            assert rule([parameter(2)], **{name: True}).param_groups[0][name] is True
    with pytest.raises(RuntimeError, match="foreach and fused cannot be True together"):
        AdamW([parameter(2)], foreach=True, fused=True)


def test_python_keywords_as_names() -> None:
    rule = optimizer_class("optimizer K\nhyper lambda = 0.5 >= 0\np -= lambda*g")
    p = parameter(2)
    expected = p.detach() - 0.25 * p.grad
    rule([p], lambda_=0.25).step()
    assert torch.allclose(p, expected)
    assert "lambda_" in inspect.signature(rule).parameters


def test_parameters_in_all_their_forms() -> None:
    net = torch.nn.Linear(2, 2)
    named = AdamW(net.named_parameters())
    assert named.param_groups[0]["param_names"] == ["weight", "bias"]
    groups = AdamW([{"params": [net.weight], "lr": 0.5}, {"params": iter([net.bias])}], lr=0.1)
    assert [group["lr"] for group in groups.param_groups] == [0.5, 0.1]
    with pytest.raises(ValueError, match="empty parameter list"):
        AdamW([])
    with pytest.raises(TypeError, match="iterable of Tensors"):
        AdamW(net.weight)
    with pytest.raises(ValueError, match="more than one parameter group"):
        groups.add_param_group({"params": [net.bias]})


def test_requirements_across_hyperparameters() -> None:
    sgd = optimizer_class("sgd")
    with pytest.raises(ValueError, match="SGD: "):
        sgd([parameter(2)], nesterov=True)
    sgd([parameter(2)], nesterov=True, momentum=0.9)


def test_group_state_starts_in_the_param_group_and_is_not_printed() -> None:
    optimizer = optimizer_class(MIXED)([parameter(2)])
    assert optimizer.param_groups[0]["seen"] == 0.0
    assert repr(optimizer) == "Mixed (\nParameter Group 0\n    k: 0.5\n    lr: 0.1\n    momentum: 0\n)"


def test_keys_of_the_users_own_that_a_rule_reads() -> None:
    rule = optimizer_class("optimizer D\nhyper lr = 1\np -= lr*group.depth*g")
    with pytest.raises(ValueError, match=r"reads group.depth: give every parameter group a 'depth'"):
        rule([parameter(2)])
    p = parameter(2)
    expected = p.detach() - 3 * p.grad
    rule([{"params": [p], "depth": 3}]).step()
    assert torch.allclose(p, expected)


def test_backends_are_found_by_name() -> None:
    with pytest.raises(ValueError, match="there is no backend 'tpu'; there are: auto, cpp, eager, inductor"):
        optimizer_class(ADAMW, backend="tpu")
