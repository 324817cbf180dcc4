"""References of the rules with constraints and penalties, written as their papers have them: no package has these."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from references_row import Row, options
from torch import Tensor
from torch.nn.functional import softshrink


class Plain(torch.optim.Optimizer):
    """An optimizer whose parameters are changed one after the other by ``update``."""

    own: ClassVar[dict[str, Any]] = {}

    def __init__(self, params: Any, **hypers: Any) -> None:
        super().__init__(params, {"lr": 1e-2, "maximize": False, **self.own, **hypers})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    g = -p.grad if group["maximize"] else p.grad
                    p.copy_(self.update(p, g, self.state[p], group))

    def update(self, p: Tensor, g: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        """Return the parameter's new value."""
        raise NotImplementedError


class ProjectedSGD(Plain):
    """Gradient steps with heavy-ball momentum, each followed by a projection."""

    own: ClassVar[dict[str, Any]] = {"constraint": "l2_ball", "radius": 1.0, "low": -1.0, "high": 1.0, "momentum": 0.0}

    def update(self, p: Tensor, g: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        if group["momentum"]:
            g = state["b"] = group["momentum"] * state.get("b", 0) + g
        q = p - group["lr"] * g
        match group["constraint"]:
            case "box":
                return q.clamp(group["low"], group["high"])
            case "nonnegative":
                return q.relu()
            case "simplex":
                return (q - lost(q, group["radius"])).relu()
            case "l1_ball":
                sizes = q.abs()
                inside = bool(sizes.sum() <= group["radius"])
                return q if inside else q.sign() * (sizes - lost(sizes, group["radius"])).relu()
            case "l2_ball":
                return q / max(1.0, float(q.double().norm()) / group["radius"])
            case "unit_norm":
                return q / q.norm()
        matrix = q.reshape(len(q), -1) if q.ndim > 1 else q.reshape(-1, 1)
        u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
        return (u @ vh).reshape(q.shape)


def lost(q: Tensor, total: float) -> float:
    """Return what elements lose in a projection to the simplex: found by halving an interval."""
    values = q.double().flatten()
    low, high = float(values.min()) - total, float(values.max())
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if (values - middle).relu().sum() > total else (low, middle)
    return high


class ExponentiatedGradient(Plain):
    """Weights times exp(-lr*g), by their sum: a softmax of logarithms."""

    own: ClassVar[dict[str, Any]] = {"per_row": False}

    def update(self, p: Tensor, g: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        dims = (-1,) if group["per_row"] and p.ndim else tuple(range(p.ndim))
        weights = p.abs()
        if not state:
            weights = weights / weights.sum(dims, keepdim=True)
            state["started"] = True
        grown = weights.log() - group["lr"] * g
        return (grown - grown.logsumexp(dims, keepdim=True)).exp()


class AcceleratedProximal(Plain):
    """FISTA with constant step size, as its paper numbers it, with restarts by the sign of a scalar product."""

    own: ClassVar[dict[str, Any]] = {"penalty": "l1", "weight": 1e-3, "l2": 0.0, "restart": False}

    def update(self, p: Tensor, g: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        old, t = state.get("x", p.clone()), state.get("t", 1.0)
        new = self.prox(p - group["lr"] * g, group)
        if group["restart"] and float(((p - new) * (new - old)).sum()) > 0:
            t = 1.0
        state["x"], state["t"] = new, (1 + math.sqrt(1 + 4 * t * t)) / 2
        return new + (t - 1) / state["t"] * (new - old)

    def prox(self, q: Tensor, group: dict[str, Any]) -> Tensor:
        """Return what the proximal map of the penalty makes of q: the square's first, then the norm's."""
        shrink = 1 + group["lr"] * group["l2"]
        q, k = q / shrink, group["lr"] * group["weight"] / shrink
        if group["penalty"] == "l1":
            return softshrink(q, k)
        matrix = q.reshape(len(q), -1) if q.ndim > 1 else q.reshape(1, -1)
        if group["penalty"] == "group_lasso":
            norms = matrix.norm(dim=1, keepdim=True)
            return (matrix * (1 - k / norms).relu()).reshape(q.shape)
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
        return (u @ torch.diag(softshrink(s, k)) @ vh).reshape(q.shape)

    def swap(self) -> None:
        """Exchange the parameters with the points that they are ahead of."""
        for group in self.param_groups:
            for p in group["params"]:
                if self.state[p]:
                    p.data, self.state[p]["x"] = self.state[p]["x"], p.data

    eval = train = swap


def varied(key: str, values: Sequence[str], **others: Any) -> tuple[dict[str, Any], ...]:
    """Return options for each value of a hyperparameter."""
    return tuple({key: value, **others} for value in values)


ROWS: dict[str, Row] = {
    "ProjectedSGD": Row(
        options(
            *varied("constraint", ("box", "simplex", "l1_ball", "orthogonal"), momentum=0.9),
            *varied("constraint", ("nonnegative", "unit_norm"), maximize=True),
            {"constraint": "simplex", "radius": 2.5, "lr": 0.1},
            {"constraint": "box", "low": -0.1, "high": 0.2},
        ),
        make=ProjectedSGD,
        plain={},
        rosenbrock={"lr": 5e-4, "momentum": 0.5, "constraint": "box", "low": -2.0, "high": 2.0},
    ),
    "ExponentiatedGradient": Row(
        options({"lr": 0.3}, {"per_row": True, "maximize": True}),
        make=ExponentiatedGradient,
        plain={},
        rosenbrock={"lr": 1e-3},
    ),
    "AcceleratedProximal": Row(
        options(
            {"weight": 1.0, "l2": 0.1},
            *varied("penalty", ("group_lasso", "nuclear"), weight=2.0),
            {"restart": True, "l2": 1.0, "maximize": True},
            {"penalty": "nuclear", "restart": True, "l2": 0.1},
        ),
        make=AcceleratedProximal,
        plain={},
        rosenbrock={"lr": 1e-4, "weight": 0.0, "restart": True},
    ),
}
