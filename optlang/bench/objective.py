"""A loss for optimizers that have it computed in a step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch


def closure(parameters: Sequence[torch.Tensor], with_graph: bool) -> Callable[[], torch.Tensor]:
    """Return a function that computes a weighted squared distance to points from which the gradients lead away.

    The gradients that are there are those of the first step. Curvatures are spread over four orders of magnitude, so
    that no optimizer arrives while it is measured: one that has arrived has nothing left to compute.

    Args:
        parameters: Parameters with gradients.
        with_graph: Whether the optimizer differentiates the loss itself, to have a graph; otherwise the function leaves
            gradients, as it does in a training loop.

    Raises:
        ValueError: If gradients are sparse.
    """
    targets, curvatures = [], []
    for p in parameters:
        assert p.grad is not None
        if p.grad.is_sparse:
            raise ValueError("a loss with sparse gradients cannot be computed again")
        curvature = torch.logspace(-4, 0, max(1, p.numel()), device=p.device)[: p.numel()].view(p.shape).to(p)
        curvatures.append(curvature)
        targets.append((p.detach() - p.grad / curvature).clone())

    def call() -> torch.Tensor:
        for p in parameters:
            p.grad = None
        with torch.enable_grad():
            tensors = zip(parameters, targets, curvatures, strict=True)
            loss = torch.stack([((p - b).square() * c).sum() for p, b, c in tensors]).sum() / 2
            if not with_graph:
                loss.backward()
        return loss

    return call
