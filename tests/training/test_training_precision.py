"""Scaled losses, autocast, gradients of another type than the parameter, parameters of 16 bits."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from optimizing import ADAMW, MIXED, difference, model, optimizer_class

from optlang.runtime.kernels import compiled_count

AdamW = optimizer_class(ADAMW)
Mixed = optimizer_class(MIXED)  # has state on the host and in the param group
X = torch.randn(8, 5, generator=torch.Generator().manual_seed(1))


def everything(net: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Any:
    """Return a copy of all that a step may write."""
    return copy.deepcopy((list(net.parameters()), optimizer.state_dict()))


def assert_same(before: Any, after: Any) -> None:
    """Assert that two nested structures are equal bit for bit, tensors with their types."""
    assert type(before) is type(after)
    if isinstance(before, torch.Tensor):
        assert before.dtype == after.dtype
        assert torch.equal(before, after)
    elif isinstance(before, dict):
        assert list(before) == list(after)
        for key in before:
            assert_same(before[key], after[key])
    elif isinstance(before, (list, tuple)):
        assert len(before) == len(after)
        for one, other in zip(before, after, strict=True):
            assert_same(one, other)
    else:
        assert before == after


def scaled_step(net: torch.nn.Module, optimizer: Any, scaler: Any, bad: float | None = None) -> None:
    optimizer.zero_grad()
    scaler.scale(net(X).square().mean()).backward()
    if bad is not None:
        next(net.parameters()).grad[0, 0] = bad
    scaler.step(optimizer)
    scaler.update()


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
@pytest.mark.parametrize("skipped", [0, 2])
@pytest.mark.parametrize("cls", [AdamW, Mixed])
def test_a_skipped_step_leaves_no_trace(cls: Any, skipped: int, bad: float) -> None:
    net, straight = model(torch.float32), model(torch.float32)
    optimizer, reference = cls(net.parameters()), cls(straight.parameters())
    # Scales are powers of two, so that scaling and unscaling are exact and both runs agree to the last bit.
    scaler, other = (torch.amp.GradScaler("cpu", init_scale=1024.0) for _ in range(2))
    for step in range(4):
        if step == skipped:
            before = everything(net, optimizer)
            scaled_step(net, optimizer, scaler, bad)
            assert scaler.get_scale() == 512.0
            assert_same(before, everything(net, optimizer))
        scaled_step(net, optimizer, scaler)
        scaled_step(straight, reference, other)
    assert_same(everything(straight, reference), everything(net, optimizer))


def test_scaled_gradients_may_be_clipped_before_the_step() -> None:
    net, twin = model(torch.float32), model(torch.float32)
    for m, cls in ((net, AdamW), (twin, torch.optim.AdamW)):
        optimizer, scaler = cls(m.parameters(), lr=0.1), torch.amp.GradScaler("cpu", init_scale=256.0)
        for _ in range(3):
            optimizer.zero_grad()
            scaler.scale(m(X).square().mean()).backward()
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(m.parameters(), 0.01)
            scaler.step(optimizer)
            scaler.update()
    assert difference(list(net.parameters()), list(twin.parameters())) < 1e-6


def test_a_scaler_that_is_off_passes_the_step_through() -> None:
    net, twin = model(torch.float32), model(torch.float32)
    optimizer, reference = AdamW(net.parameters()), AdamW(twin.parameters())
    scaled_step(net, optimizer, torch.amp.GradScaler("cpu", enabled=False))
    twin(X).square().mean().backward()
    reference.step()
    assert difference(list(net.parameters()), list(twin.parameters())) == 0


def test_one_scaler_of_two_optimizers_skips_only_the_one_with_infinite_gradients() -> None:
    good, bad = model(torch.float32), model(torch.float32)
    optimizers = [AdamW(good.parameters()), AdamW(bad.parameters())]
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for m in (good, bad):
        scaler.scale(m(X).square().mean()).backward()
    next(bad.parameters()).grad.fill_(float("inf"))
    for optimizer in optimizers:
        scaler.step(optimizer)
    scaler.update()
    assert [len(optimizer.state) for optimizer in optimizers] == [4, 0]


def test_autocast_in_bfloat16() -> None:
    net, twin = model(torch.float32), model(torch.float32)
    for m, cls in ((net, AdamW), (twin, torch.optim.AdamW)):
        optimizer = cls(m.parameters(), lr=0.01)
        for _ in range(5):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = m(X).square().mean()
            loss.backward()
            optimizer.step()
        assert next(m.parameters()).dtype == next(m.parameters()).grad.dtype == torch.float32
    assert difference(list(net.parameters()), list(twin.parameters())) < 1e-6


@pytest.mark.parametrize("gradient", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_gradients_of_another_type_than_the_parameter(stored: torch.dtype, gradient: torch.dtype) -> None:
    """Equal to a step with the same gradients in the parameter's type, where nothing is rounded on the way."""
    cls = optimizer_class("adamw", name=f"Of{str(stored)[6:]}{str(gradient)[6:]}")
    values = torch.tensor([0.5, -0.25, 3.0, 1.0])  # exact in every type
    ours, same = (torch.nn.Parameter(torch.tensor([1.0, -2.0, 0.75, 0.0], dtype=stored)) for _ in range(2))
    ours.grad_dtype = gradient
    optimizers = [cls([ours], lr=0.1), cls([same], lr=0.1)]
    for _ in range(3):
        ours.grad, same.grad = values.to(gradient), values.to(stored)
        for optimizer in optimizers:
            optimizer.step()
    assert ours.dtype == stored
    assert ours.grad.dtype == gradient  # a step never touches a gradient
    assert optimizers[0].state[ours]["exp_avg"].dtype == stored
    limit = 1e-7 if stored is torch.float32 else 2**-7  # another type of arithmetic may round to the other neighbour
    assert difference([ours], [same]) <= limit
    assert compiled_count(cls) == len({(stored, gradient), (stored, stored)})


def test_gradients_accumulated_in_float32_for_a_parameter_of_16_bits() -> None:
    p = torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    p.grad_dtype = torch.float32
    total = 0.0
    for scale in (1.0, 2**-9):  # the sum has no room in bfloat16
        (p * scale).sum().backward()
        total += scale
    assert p.grad.dtype == torch.float32
    assert p.grad[0].item() == total
    optimizer_class("p -= lr*g")([p], lr=1.0).step()
    assert p.tolist() == torch.full((3,), 1.0 - total).bfloat16().tolist()


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16])
def test_parameters_of_16_bits_are_computed_in_float32_and_rounded_once(stored: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    p = torch.nn.Parameter(torch.randn(1000, generator=generator).to(stored))
    kept = torch.float32 if stored is torch.float16 else stored
    v, expected = torch.zeros(1000, dtype=kept), p.detach().clone()
    optimizer = optimizer_class("v = beta*v + (1 - beta)*g; p -= lr*v + lr*0.01*p")([p], lr=0.01, beta=0.9)
    for _ in range(10):
        p.grad = torch.randn(1000, generator=generator).to(stored)
        v = (0.9 * v.float() + 0.1 * p.grad.float()).to(kept)  # what is assigned is read as it is stored
        q = expected.float()
        expected = (q - (0.01 * v.float() + 0.0001 * q)).to(stored)
        optimizer.step()
    # float32 in another order, and so now and then the other neighbour among numbers of 16 bits.
    assert (p != expected).float().mean() < 0.02
    assert difference([p], [expected]) <= float(torch.finfo(stored).eps) * 4


def test_a_state_in_another_type_than_its_parameter_survives_a_checkpoint() -> None:
    net = model(torch.bfloat16)
    optimizer = AdamW(net.parameters(), lr=0.1)
    net(X.bfloat16()).square().mean().backward()
    optimizer.step()
    saved = optimizer.state_dict()
    for state in saved["state"].values():
        state["exp_avg_sq"] = state["exp_avg_sq"].float()
    optimizer.load_state_dict(saved)
    optimizer.step()
    assert {state["exp_avg_sq"].dtype for state in optimizer.state.values()} == {torch.float32}
    assert {state["exp_avg"].dtype for state in optimizer.state.values()} == {torch.bfloat16}


def test_a_model_turned_to_another_type_between_steps() -> None:
    net = model(torch.float32)
    optimizer = AdamW(net.parameters())
    for dtype in (torch.float32, torch.float64):
        net.to(dtype)
        optimizer.zero_grad()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            net(X.to(dtype)).square().mean().backward()
            optimizer.step()
    assert {float(state["step"]) for state in optimizer.state.values()} == {2.0}
