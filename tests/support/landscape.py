"""A loss with a gradient that tests can set, for rules that have the closure called: g·x + x² + cos x for each tensor.

A slope that is not a number is that of an element the loss does not depend on.
Its Hessian is diagonal, so that random signs give its diagonal whatever they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

Array = np.ndarray


def value(x: Array, slope: Array) -> float:
    """Return the loss of one tensor."""
    return float(np.nansum(slope * x + x * x + np.cos(x)))


def gradient(x: Array, slope: Array) -> Array:
    """Return its gradient."""
    return np.where(np.isnan(slope), 0.0, slope + 2 * x - np.sin(x))


def curved(x: Array, z: Array) -> Array:
    """Return the product of its Hessian with ``z``."""
    return np.asarray(z * (2 - np.cos(x)))


def closure(
    params: Sequence[torch.nn.Parameter], slopes: Sequence[Any | None], backward: bool = True
) -> Callable[[], torch.Tensor]:
    """Return a closure for a step: the loss of all tensors with a slope, and their gradients unless it leaves them."""

    def run() -> torch.Tensor:
        loss = torch.zeros((), dtype=torch.float64)
        for p, slope in zip(params, slopes, strict=True):
            p.grad = None
            if slope is not None:
                x = p.double()
                known = torch.as_tensor(slope, dtype=torch.float64, device=p.device)
                loss = loss.to(p.device) + (known * x + x * x + torch.cos(x)).sum()
        if backward and loss.requires_grad:
            loss.backward()
        return loss

    return run
