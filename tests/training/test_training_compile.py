"""Training steps that are themselves given to ``torch.compile``: right, and compiled once."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from optimizing import ADAMW, difference, model, optimizer_class

AdamW = optimizer_class(ADAMW)
X = torch.randn(8, 5, generator=torch.Generator().manual_seed(1))
Step = Callable[[], torch.Tensor]


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def training_step(net: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Step:
    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = net(X).square().mean()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def against_uncompiled(cls: Any, compiled: Callable[[Step], Step], dtype: torch.dtype = torch.float32) -> float:
    """Train compiled and not; after three steps, compiling anything more is an error. Return the difference."""
    net, twin = model(dtype), model(dtype)
    optimizer, reference = cls(net.parameters(), lr=0.05), cls(twin.parameters(), lr=0.05)
    schedules = [torch.optim.lr_scheduler.ExponentialLR(o, 0.9) for o in (optimizer, reference)]
    run, plain = compiled(training_step(net, optimizer)), training_step(twin, reference)
    for step in range(10):
        with torch.compiler.set_stance("fail_on_recompile" if step >= 3 else "default"):
            loss = run()
        assert loss.item() == pytest.approx(plain().item(), rel=1e-5)
        for schedule in schedules:
            schedule.step()
    assert {float(state["step"]) for state in optimizer.state.values()} == {10.0}
    assert len({id(state) for state in optimizer.state.values()}) == 4
    return difference(list(net.parameters()), list(twin.parameters()))


def test_forward_backward_and_step_in_one_compiled_function() -> None:
    assert against_uncompiled(AdamW, lambda f: torch.compile(f, backend="aot_eager")) < 1e-6


@pytest.mark.compiler
@pytest.mark.slow
def test_the_same_with_both_sides_compiled() -> None:
    assert against_uncompiled(optimizer_class(ADAMW, backend="auto"), torch.compile) < 1e-6


@pytest.mark.parametrize("cls", [AdamW, optimizer_class("lamb"), optimizer_class("nadam")])
def test_a_compiled_method_step(cls: Any) -> None:
    net, twin = model(), model()
    optimizer, reference = cls(net.parameters(), lr=0.05), cls(twin.parameters(), lr=0.05)
    step = torch.compile(optimizer.step, backend="eager")
    for i in range(8):
        for m, run in ((net, step), (twin, reference.step)):
            m.zero_grad()
            m(X.double()).square().mean().backward()
            with torch.compiler.set_stance("fail_on_recompile" if i >= 3 else "default"):
                run()
    assert difference(list(net.parameters()), list(twin.parameters())) == 0


def test_a_compiled_step_with_hooks_and_a_closure() -> None:
    net, twin = model(), model()
    results = []
    for m, compiled in ((net, True), (twin, False)):
        optimizer, seen = AdamW(m.parameters(), lr=0.05), []
        optimizer.register_step_pre_hook(lambda o, args, kwargs, seen=seen: seen.append("before"))
        optimizer.register_step_post_hook(lambda o, args, kwargs, seen=seen: seen.append("after"))

        def closure(m: torch.nn.Module = m, optimizer: torch.optim.Optimizer = optimizer) -> torch.Tensor:
            optimizer.zero_grad()
            loss = m(X.double()).square().mean()
            loss.backward()
            return loss

        def run(optimizer: torch.optim.Optimizer = optimizer, closure: Any = closure) -> Any:
            return optimizer.step(closure)

        step = torch.compile(run, backend="eager") if compiled else run
        losses = [step().item() for _ in range(4)]
        results.append((losses, seen))
    assert results[0][0] == pytest.approx(results[1][0])
    assert results[0][1] == results[1][1] == ["before", "after"] * 4
    assert difference(list(net.parameters()), list(twin.parameters())) < 1e-14


def test_a_compiled_model_is_trained_like_any_other() -> None:
    net = model()
    twin = copy.deepcopy(net)
    compiled = torch.compile(net, backend="aot_eager")
    optimizer, reference = AdamW(compiled.named_parameters(), lr=0.05), AdamW(twin.parameters(), lr=0.05)
    for _ in range(3):
        for m, o in ((compiled, optimizer), (twin, reference)):
            o.zero_grad()
            m(X.double()).square().mean().backward()
            o.step()
    assert difference(list(net.parameters()), list(twin.parameters())) < 1e-12
    assert optimizer.param_groups[0]["param_names"][0] == "_orig_mod.0.weight"
