"""A small data set and a small classifier for the tests of frameworks; both are always the same."""

from __future__ import annotations

from typing import Any

import torch
from optimizing import difference, optimizer_class
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

CLASSES = {"ours": optimizer_class("adamw"), "theirs": torch.optim.AdamW}
OPTIONS = {"lr": 0.02, "weight_decay": 0.1}


def data() -> TensorDataset:
    """Return 48 points in three classes."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(48, 6, generator=generator)
    return TensorDataset(x, x[:, :3].argmax(1))


def batches(size: int = 8) -> DataLoader[Any]:
    """Return the data in batches, in order."""
    return DataLoader(data(), batch_size=size)


def classifier() -> nn.Module:
    """Return a smooth network, so that rounding errors stay small."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.Linear(16, 3))


def apart(a: nn.Module, b: nn.Module) -> float:
    """Return the largest difference between the parameters of two networks."""
    return difference(list(a.parameters()), list(b.parameters()))


def moved(net: nn.Module) -> bool:
    """Return whether training has changed a network."""
    return apart(net, classifier()) > 0.01
