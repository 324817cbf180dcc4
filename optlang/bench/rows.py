"""Sparse gradients like those of an embedding: some rows, in random order, possibly repeated."""

from __future__ import annotations

import torch


def gradient(p: torch.Tensor, rows: int, generator: torch.Generator) -> torch.Tensor:
    """Return a gradient with this many rows of a parameter."""
    indices = torch.randint(len(p), (1, rows), generator=generator)
    values = torch.randn((rows, *p.shape[1:]), generator=generator).mul_(1e-3)
    return torch.sparse_coo_tensor(indices.to(p.device), values.to(p), p.shape, check_invariants=True)
