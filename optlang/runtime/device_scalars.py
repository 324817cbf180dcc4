"""Host arithmetic on tensors: float64 scalars, on any device and within an autograd graph."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch

from optlang.artifact import Kernel, Variant
from optlang.backends.loading.modules import load_module
from optlang.inputs import ValueName


@lru_cache(maxsize=1024)
def traced_functions(traced: Variant | Kernel) -> dict[str, Any]:
    """Return functions on tensors, by name: ``host`` and ``updated`` of a kernel, ``group`` and others of a variant."""
    source = traced.text("traced_source") if isinstance(traced, Kernel) else traced.traced_source
    return load_module(source, f"{traced.name} traced")


def as_number(value: torch.Tensor | float, device: torch.device) -> torch.Tensor:
    """Return a number as a 0-d float64 tensor on a device (a bool stays a bool), keeping its autograd graph."""
    if isinstance(value, torch.Tensor):
        value = value.reshape(())
        return value if value.dtype is torch.bool else value.to(device=device, dtype=torch.float64)
    if isinstance(value, bool):
        return torch.full((), value, dtype=torch.bool, device=device)
    return torch.full((), value, dtype=torch.float64, device=device)


def numbers_of(raw: Mapping[ValueName, Any], device: torch.device) -> dict[ValueName, torch.Tensor]:
    """Return the numeric hyperparameters as tensors on a device; flags and strings only choose variants."""
    return {
        name: as_number(value, device) for name, value in raw.items() if isinstance(value, (int, float, torch.Tensor))
    }


def stays_on_device(device: torch.device) -> bool:
    """Return whether sums stay on their device, so that no step synchronizes; on the CPU nothing has to wait."""
    return device.type != "cpu"
