"""Host arithmetic on tensors: single numbers in float64, on any device and within a graph."""

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
    """Return a number as a 0-d float64 tensor on a device (a truth value stays one), within the graph it is part of."""
    if isinstance(value, torch.Tensor):
        value = value.reshape(())
        return value if value.dtype is torch.bool else value.to(device=device, dtype=torch.float64)
    if isinstance(value, bool):
        return torch.full((), value, dtype=torch.bool, device=device)
    return torch.full((), value, dtype=torch.float64, device=device)


def numbers_of(raw: Mapping[ValueName, Any], device: torch.device) -> dict[ValueName, torch.Tensor]:
    """Return those hyperparameters that are numbers, as numbers on a device; flags and texts choose variants."""
    return {
        name: as_number(value, device) for name, value in raw.items() if isinstance(value, (int, float, torch.Tensor))
    }


def stays_on_device(device: torch.device) -> bool:
    """Whether sums stay where they are computed, so that no step waits for them; on the CPU nothing has to wait."""
    return device.type != "cpu"
