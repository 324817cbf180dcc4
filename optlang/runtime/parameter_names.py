"""What parameters are called in errors: by their own names, or by their places in the param group."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


def describe(group: Mapping[str, Any], p: torch.Tensor) -> str:
    """Return the name of a parameter in an error: its own, or its place in the group."""
    place = next((i for i, q in enumerate(group["params"]) if q is p), 0)
    names = group.get("param_names")
    return f"parameter {names[place]!r}" if names else f"parameter {place} (of shape {tuple(p.shape)})"


def named(group: Mapping[str, Any], p: torch.Tensor) -> str:
    """Return the name of a parameter in an error, with its shape."""
    who = describe(group, p)
    return who if "shape" in who else f"{who} (of shape {tuple(p.shape)})"
