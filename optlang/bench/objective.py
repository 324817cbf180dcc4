"""A loss for optimizers that have it computed in a step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch


def closure(parameters: Sequence[torch.Tensor], with_graph: bool) -> Callable[[], torch.Tensor]:
    """Return a function that computes half the squared distance to points a gradient away from where parameters are.

    So the gradients that are there are those of the first step.

    Args:
        parameters: Parameters with gradients.
        with_graph: Whether the optimizer differentiates the loss itself, to have a graph; otherwise the function leaves
            gradients, as it does in a training loop.

    Raises:
        ValueError: If gradients are sparse.
    """
    targets = []
    for p in parameters:
        assert p.grad is not None
        if p.grad.is_sparse:
            raise ValueError("a loss with sparse gradients cannot be computed again")
        targets.append((p.detach() - p.grad).clone())

    def call() -> torch.Tensor:
        for p in parameters:
            p.grad = None
        with torch.enable_grad():
            loss = torch.stack([(p - b).square().sum() for p, b in zip(parameters, targets, strict=True)]).sum() / 2
            if not with_graph:
                loss.backward()
        return loss

    return call
