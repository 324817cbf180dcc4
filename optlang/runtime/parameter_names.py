"""Names of parameters in error messages: their own names, or their indices in the parameter group."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


def describe(group: Mapping[str, Any], p: torch.Tensor) -> str:
    """Return the name of a parameter for an error message, or its index in the group."""
    place = next((i for i, q in enumerate(group["params"]) if q is p), 0)
    names = group.get("param_names")
    return f"parameter {names[place]!r}" if names else f"parameter {place} (of shape {tuple(p.shape)})"


def named(group: Mapping[str, Any], p: torch.Tensor) -> str:
    """Return the name of a parameter for an error message, with its shape."""
    who = describe(group, p)
    return who if "shape" in who else f"{who} (of shape {tuple(p.shape)})"
