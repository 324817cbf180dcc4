"""Gradients that are sparse, as an embedding has them: of some rows, in no order, listed twice where chance has it."""

from __future__ import annotations

import torch


def gradient(p: torch.Tensor, rows: int, generator: torch.Generator) -> torch.Tensor:
    """Return a gradient of so many rows of a parameter."""
    indices = torch.randint(len(p), (1, rows), generator=generator)
    values = torch.randn((rows, *p.shape[1:]), generator=generator).mul_(1e-3)
    return torch.sparse_coo_tensor(indices.to(p.device), values.to(p), p.shape, check_invariants=True)
