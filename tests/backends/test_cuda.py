"""The library on a GPU: the same results, nothing waits for the GPU, and one launch where there can be one."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from references import row
from trajectories import cases, difference, feed, gradients, library_class, library_text, shapes, start, tensors

import optlang.rules

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

NAMES = optlang.rules.names()
CHANCE = [name for name in NAMES if "rand" in library_text(name)]
#: Decompositions are unique but for signs or bases, which differ between the libraries of the CPU and of the GPU, and
#: these rules keep moments in them from one decomposition to the next.
BASES = {"GaLoreAdamW", "SOAP", "Conda"}
CERTAIN = [name for name in NAMES if name not in CHANCE]


def taken(cls: Any, name: str, index: int, dtype: torch.dtype, device: str, steps: int = 20) -> list[Any]:
    """Return where a rule takes the starting values on a device."""
    params = tensors(start(shapes(name)), dtype, device)
    feed(cls(params, **cases(name)[index]), params, gradients(shapes(name), steps=steps))
    return [p.detach().double().cpu().numpy() for p in params]


@pytest.mark.parametrize("name", [name for name in CERTAIN if name not in BASES])
def test_the_gpu_agrees_with_the_cpu(name: str) -> None:
    for index in range(len(cases(name))):
        for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, max(row(name).tolerance32, 5e-5))):
            exact = dtype == torch.float64
            if exact and name == "MuonWithAdamW":  # the rules that it routes to round to bfloat16
                continue
            expected = taken(library_class(name, exact=exact), name, index, dtype, "cpu")
            result = taken(library_class(name, "auto", exact=exact), name, index, dtype, "cuda")
            assert difference(result, expected) < tolerance, (index, dtype)


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_goes_on_bit_for_bit(name: str) -> None:
    history = gradients(shapes(name), steps=6)
    params = tensors(start(shapes(name)), torch.float32, "cuda")
    cls = library_class(name, "auto")
    optimizer = cls(params, **cases(name)[-1])
    feed(optimizer, params, history[:3])
    again = [torch.nn.Parameter(p.detach().clone()) for p in params]
    other = cls(again)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    feed(optimizer, params, history[3:])
    feed(other, again, history[3:])
    for p, q in zip(params, again, strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("name", ["AdamW", "SGD", "Lion", "LAMB", "AdamWClip", "Prodigy", "Muon", "SGLD"])
def test_a_step_does_not_wait_for_the_gpu(name: str) -> None:
    params = tensors(start(shapes(name)), torch.float32, "cuda")
    optimizer = library_class(name, "auto")(params, **cases(name)[0])
    feed(optimizer, params, gradients(shapes(name), steps=3))
    torch.cuda.set_sync_debug_mode("error")
    try:
        optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", ["AdamW", "SGD", "Lion", "AdaBelief"])
def test_one_launch_updates_every_parameter(name: str) -> None:
    params = tensors(start([(5, 7), (300,), (), (64, 64), (3, 2, 1, 4)]), torch.float32, "cuda")
    optimizer = library_class(name, "auto")(params, **cases(name)[0])
    for p in params:
        p.grad = torch.ones_like(p)
    for _ in range(3):
        optimizer.step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
        optimizer.step()
        torch.cuda.synchronize()
    on_gpu = [e.name for e in seen.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    launched = [name for name in on_gpu if not name.startswith(("Memcpy", "Memset"))]
    assert len(launched) == 1, launched
