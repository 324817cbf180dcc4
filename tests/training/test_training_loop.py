"""What loops do around a step: accumulating, clipping, averaging weights, stepping during the backward pass."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from optimizing import ADAMW, MIXED, difference, model, optimizer_class, parameter
from torch.optim.swa_utils import SWALR, AveragedModel, get_ema_multi_avg_fn, update_bn

from optlang.runtime.kernels import compiled_count

AdamW = optimizer_class(ADAMW)
X = torch.randn(16, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
PAIR = [AdamW, torch.optim.AdamW]


def loss_of(net: torch.nn.Module, x: torch.Tensor = X) -> torch.Tensor:
    return net(x).square().mean()


@pytest.mark.parametrize("to_none", [True, False])
def test_gradients_accumulate_over_micro_batches(to_none: bool) -> None:
    whole, parts = model(), model()
    optimizers = [AdamW(whole.parameters(), lr=0.1), AdamW(parts.parameters(), lr=0.1)]
    for _ in range(4):
        optimizers[0].zero_grad(set_to_none=to_none)
        loss_of(whole).backward()
        optimizers[0].step()
        optimizers[1].zero_grad(set_to_none=to_none)
        for x in X.split(4):
            (loss_of(parts, x) / 4).backward()
        optimizers[1].step()
    assert difference(list(whole.parameters()), list(parts.parameters())) < 1e-14
    if not to_none:
        optimizers[0].zero_grad(set_to_none=False)
        assert all(p.grad is not None and not p.grad.any() for p in whole.parameters())


def test_gradients_that_stay_in_place_are_read_anew_and_never_written() -> None:
    net = model()
    optimizer = AdamW(net.parameters())
    loss_of(net).backward()
    pointers = [p.grad.data_ptr() for p in net.parameters()]
    before = [p.grad.clone() for p in net.parameters()]
    optimizer.step()
    assert difference(before, [p.grad for p in net.parameters()]) == 0
    optimizer.zero_grad(set_to_none=False)
    weights = [p.detach().clone() for p in net.parameters()]
    for group in optimizer.param_groups:
        group["weight_decay"] = 0.0
    for _ in range(2000):
        optimizer.step()  # without a gradient, the average of g fades away
    assert [p.grad.data_ptr() for p in net.parameters()] == pointers
    final = [p.detach().clone() for p in net.parameters()]
    optimizer.step()
    assert difference(final, list(net.parameters())) == 0
    assert difference(weights, final) > 0


@pytest.mark.parametrize("foreach", [True, False])
def test_clipping_by_norm_and_by_value(foreach: bool) -> None:
    nets = []
    for cls in PAIR:
        net = model()
        optimizer = cls(net.parameters(), lr=0.1)
        for _ in range(4):
            optimizer.zero_grad()
            loss_of(net).backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 0.01, foreach=foreach)
            torch.nn.utils.clip_grad_value_(net.parameters(), 0.005, foreach=foreach)
            optimizer.step()
        nets.append(list(net.parameters()))
    assert difference(*nets) < 1e-13


@pytest.mark.parametrize("average", ["equal", "ema"])
def test_averaged_weights_and_their_schedule(average: str) -> None:
    def with_batch_norm() -> torch.nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            layers = [
                torch.nn.Linear(5, 4, bias=False),
                torch.nn.BatchNorm1d(4),
                torch.nn.Tanh(),
                torch.nn.Linear(4, 2),
            ]
        return torch.nn.Sequential(*layers).double()

    results = []
    for cls in PAIR:
        net = with_batch_norm()
        optimizer = cls(net.parameters(), lr=0.1)
        how: dict[str, Any] = {"multi_avg_fn": get_ema_multi_avg_fn(0.9)} if average == "ema" else {}
        averaged, schedule = AveragedModel(net, **how), SWALR(optimizer, swa_lr=0.01, anneal_epochs=2)
        for step in range(8):
            optimizer.zero_grad()
            loss_of(net).backward()
            optimizer.step()
            if step >= 3:
                averaged.update_parameters(net)
                schedule.step()
        update_bn([X], averaged)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.01)
        results.append([*net.parameters(), *averaged.parameters(), averaged.module[1].running_mean])
    assert difference(*results) < 1e-12
    assert difference(results[0][:5], results[0][5:10]) > 1e-3  # the average is not the last point


def test_an_averaged_model_of_what_is_being_optimized_is_left_alone() -> None:
    net = model()
    averaged = AveragedModel(net)
    before = copy.deepcopy(list(averaged.parameters()))
    optimizer = AdamW(net.parameters())
    loss_of(net).backward()
    optimizer.step()
    assert difference(before, list(averaged.parameters())) == 0


# Stepping during the backward pass --------------------------------------------------------------------------


def step_in_backward(net: torch.nn.Module, cls: Any, **options: Any) -> dict[torch.Tensor, torch.optim.Optimizer]:
    """Give every parameter an optimizer that steps as soon as its gradient is there, and frees it."""
    optimizers = {p: cls([p], **options) for p in net.parameters()}

    def hook(p: torch.Tensor) -> None:
        optimizers[p].step()
        optimizers[p].zero_grad()

    for p in net.parameters():
        p.register_post_accumulate_grad_hook(hook)
    return optimizers


@pytest.mark.parametrize("rule", ["adamw", "sgd", "lion", "lamb", "adafactor"])
def test_an_optimizer_a_parameter_in_the_backward_pass_is_the_ordinary_loop(rule: str) -> None:
    cls = optimizer_class(rule, name="InBackward")  # a class of its own, that no other test counts kernels of
    ordinary, hooked = model(), model()
    optimizer = cls(ordinary.parameters(), lr=0.01)
    optimizers = step_in_backward(hooked, cls, lr=0.01)
    count = 0
    for step in range(5):
        optimizer.zero_grad()
        loss_of(ordinary).backward()
        optimizer.step()
        loss_of(hooked).backward()
        assert all(p.grad is None for p in hooked.parameters())
        count = count or compiled_count(cls)
        assert compiled_count(cls) == count, step
    assert difference(list(ordinary.parameters()), list(hooked.parameters())) < 1e-15
    assert len({id(o._parts) for o in optimizers.values()}) == 1
    if rule in ("adamw", "sgd", "lion"):  # the others treat matrices and vectors differently
        assert count == 1


def test_kernels_are_shared_by_all_optimizers_of_a_class() -> None:
    cls = optimizer_class("v = beta*v + g; p -= lr*v # shared by many")
    parameters = [parameter(n + 1, n + 2, seed=n) for n in range(30)]
    for p in parameters:
        cls([p], lr=0.1, beta=0.9).step()
    assert compiled_count(cls) == 1


def test_hooks_with_schedules_of_their_own() -> None:
    ordinary, hooked = model(), model()
    optimizer = AdamW(ordinary.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    optimizers = step_in_backward(hooked, AdamW, lr=0.1)
    schedules = [torch.optim.lr_scheduler.ExponentialLR(o, 0.5) for o in optimizers.values()]
    for _ in range(3):
        optimizer.zero_grad()
        loss_of(ordinary).backward()
        optimizer.step()
        schedule.step()
        loss_of(hooked).backward()
        for each in schedules:
            each.step()
    assert difference(list(ordinary.parameters()), list(hooked.parameters())) < 1e-15


# Keywords ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keywords", [{"foreach": True}, {"fused": True}, {"foreach": False}, {"fused": None}])
@pytest.mark.parametrize("where", ["constructor", "group", "later"])
def test_foreach_and_fused_are_taken_where_torch_takes_them(keywords: dict[str, Any], where: str) -> None:
    net, twin = model(), model()
    reference = AdamW(twin.parameters(), lr=0.1)
    if where == "constructor":
        optimizer = AdamW(net.parameters(), lr=0.1, **keywords)
    elif where == "group":
        optimizer = AdamW([{"params": net.parameters(), **keywords}], lr=0.1)
    else:
        optimizer = AdamW(net[0].parameters(), lr=0.1)
        optimizer.add_param_group({"params": net[2].parameters(), **keywords})
    for m, o in ((net, optimizer), (twin, reference)):
        loss_of(m).backward()
        o.step()
    assert difference(list(net.parameters()), list(twin.parameters())) == 0


def test_foreach_and_fused_at_once_are_refused() -> None:
    with pytest.raises(RuntimeError, match="`fused` and `foreach` cannot be `True` together"):
        torch.optim.AdamW([parameter(2)], foreach=True, fused=True)
    with pytest.raises(RuntimeError, match="foreach and fused cannot be True together"):
        AdamW([parameter(2)], foreach=True, fused=True)


@pytest.mark.parametrize("keyword", ["foreach", "fused"])
def test_a_checkpoint_with_the_keywords_of_torch_goes_there_and_back(keyword: str) -> None:
    net = model()
    theirs = torch.optim.AdamW(net.parameters(), lr=0.1, **{keyword: True})
    loss_of(net).backward()
    theirs.step()
    ours = AdamW(net.parameters())
    ours.load_state_dict(theirs.state_dict())
    assert ours.param_groups[0][keyword] is True
    ours.step()
    back = torch.optim.AdamW(net.parameters())
    back.load_state_dict(ours.state_dict())
    assert back.param_groups[0][keyword] is True
    back.step()
    assert {float(state["step"]) for state in back.state.values()} == {3.0}


def test_a_closure_is_called_once_and_with_gradients_on() -> None:
    mixed = optimizer_class(MIXED)
    net = model()
    optimizer = mixed(net.parameters())
    called = []

    def closure() -> torch.Tensor:
        called.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        loss = loss_of(net)
        loss.backward()
        return loss

    before = loss_of(net).item()
    with torch.no_grad():
        assert optimizer.step(closure).item() == before
    assert called == [True]
