"""A loss for optimizers that evaluate it during a step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch


def closure(parameters: Sequence[torch.Tensor], with_graph: bool) -> Callable[[], torch.Tensor]:
    """Return a closure that computes a weighted squared distance to points in the direction of the negative gradients.

    The current gradients are those of the first step. Curvatures span four orders of magnitude, so that no optimizer
    converges while it is measured: a converged optimizer would have nothing left to compute.

    Args:
        parameters: Parameters with gradients.
        with_graph: Whether the optimizer differentiates the loss itself, to get a graph; otherwise the closure computes
            gradients, as in a training loop.

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
