"""Sums over the whole model that stay on a device: nothing waits for them. The CPU stands for the device here."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from optimizing import model, optimizer_class, parameter
from test_switches import sealed

from optlang.backends.loading import toolchain
from optlang.compiler import compile_source
from optlang.runtime import plan, stages
from optlang.runtime.optimizer_class import make_class
from optlang.source import Source

RULES = {
    "adamwclip": {},
    "prodigy": {},
    "dadaptadam": {},
    "dog": {},
    "avagrad": {"lr": 0.01},
    "adan": {"max_grad_norm": 1},
}


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let sums stay where they are computed."""
    for module in (stages, plan):
        monkeypatch.setattr(module, "stays_on_device", lambda device: True)


def steps(network: torch.nn.Module, optimizer: Any, count: int) -> list[torch.Tensor]:
    """Make some steps with gradients that follow from the count."""
    for step in range(count):
        generator = torch.Generator().manual_seed(step)
        for p in network.parameters():
            p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)
        optimizer.step()
    return [p.detach().clone() for p in network.parameters()]


@pytest.mark.parametrize("name", RULES)
def test_a_step_with_sums_on_the_device_is_the_usual_one(name: str, request: pytest.FixtureRequest) -> None:
    network = model()
    twin = copy.deepcopy(network)
    usual = steps(network, optimizer_class(name)(network.parameters(), **RULES[name]), 5)
    request.getfixturevalue("device")
    ours = steps(twin, optimizer_class(name)(twin.parameters(), **RULES[name]), 5)
    for a, b in zip(usual, ours, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", RULES)
def test_nothing_is_read_back(name: str, device: None) -> None:
    network = model()
    optimizer = optimizer_class(name)(network.parameters(), **RULES[name])
    steps(network, optimizer, 2)
    for p in network.parameters():
        p.grad = torch.ones_like(p)
    with sealed():
        optimizer.step()


def test_a_shared_state_is_saved_and_loaded_with_its_device(device: None) -> None:
    network = model()
    optimizer = optimizer_class("prodigy")(network.parameters())
    steps(network, optimizer, 3)
    assert isinstance(optimizer.param_groups[0]["d"], torch.Tensor)
    twin = copy.deepcopy(network)
    other = optimizer_class("prodigy")(twin.parameters())
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for a, b in zip(steps(network, optimizer, 3), steps(twin, other, 3), strict=True):
        assert torch.equal(a, b)


@pytest.mark.compiler
@pytest.mark.skipif(toolchain.compiler() is None, reason="no C++ compiler")
def test_the_next_process_finds_the_arithmetic_on_sums(
    device: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPTLANG_CACHE", str(tmp_path))
    source = Source("optimizer Clipped\nhyper lr = 0.1 >= 0\np -= lr*g/max(1, sqrt(total(sum(g^2))))\n")
    for known in (False, True):
        cls: Any = make_class(compile_source(source), backend="cpp", module="nowhere")
        cls([parameter(3)]).step()
        (prepared,) = cls._parts.parts[0].kernels._variants.values()
        last = prepared.variant.schedule.stages[-1].kernel
        assert ("traced_source",) in last.texts
        assert (last._program is None) is known
