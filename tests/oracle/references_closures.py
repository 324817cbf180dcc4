"""References of rules that have the closure called again, and the options under which they are compared."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any
from unittest.mock import patch

import torch
from references_row import DECAYED, UP, Row, options

Closure = Callable[[], Any]


def sam(params: Any, rho: float = 0.05, adaptive: bool = False, **hypers: Any) -> Any:
    """pytorch_optimizer's SAM around torch's SGD, called as it wants to be, with norms in the parameters' type."""
    module = import_module("pytorch_optimizer.optimizer.sam")

    def norm(groups: Any, weight_adaptive: bool = False) -> torch.Tensor:
        members = [p for group in groups for p in group["params"] if p.grad is not None]
        scaled = [p.abs() * p.grad if adaptive else p.grad for p in members]
        return torch.stack([x.square().sum() for x in scaled]).sum().reshape(1)

    class Sam(module.SAM):  # type: ignore[misc, name-defined]
        _asked = frozenset(("grad",))

        def step(self, closure: Closure) -> None:
            closure()
            if any(p.grad is not None for group in self.param_groups for p in group["params"]):
                with patch.object(module, "get_global_gradient_norm", norm):
                    super().step(closure)

    return Sam(params, torch.optim.SGD, rho=rho, adaptive=adaptive, **hypers)


def lbfgs(params: Any, maximize: bool = False, **hypers: Any) -> Any:
    """L-BFGS of torch, which has `maximize` since 2.14."""

    class LBFGS(torch.optim.LBFGS):
        _asked = frozenset(("loss",))

        def step(self, closure: Closure) -> Any:  # type: ignore[override]
            def run() -> Any:
                loss = closure()
                for p in (p for p in self.param_groups[0]["params"] if maximize and p.grad is not None):
                    p.grad.neg_()
                return -loss if maximize else loss

            return super().step(run)

    return LBFGS(params, **hypers)


def curved(name: str) -> Callable[..., Any]:
    """Return an optimizer of pytorch_optimizer that multiplies with the Hessian, as one that takes a closure."""

    def make(params: Any, **hypers: Any) -> Any:
        class Curved(getattr(import_module("pytorch_optimizer"), name)):  # type: ignore[misc]
            _asked = frozenset(("hvp",))

            def step(self, closure: Closure) -> None:
                loss = closure()
                if loss.requires_grad:
                    loss.backward(create_graph=True)
                    super().step()

        return Curved(params, **hypers)

    return make


class ExtraGradient(torch.optim.Optimizer):
    """The extragradient method, as its papers write it."""

    _asked = frozenset(("grad",))

    def __init__(self, params: Any, lr: float, ahead: float | None = None) -> None:
        super().__init__(params, {"lr": lr, "ahead": lr if ahead is None else ahead})

    def step(self, closure: Closure) -> None:  # type: ignore[override]
        closure()
        group = self.param_groups[0]
        moved = [p for p in group["params"] if p.grad is not None]
        start = [p.detach().clone() for p in moved]
        with torch.no_grad():
            for p in moved:
                p -= group["ahead"] * p.grad
        closure()
        with torch.no_grad():
            for p, own in zip(moved, start, strict=True):
                p.copy_(own - group["lr"] * p.grad)


class Polyak(torch.optim.Optimizer):
    """Polyak's step size with a bound."""

    _asked = frozenset(("loss",))

    def __init__(self, params: Any, lr: float, least: float = 0.0, c: float = 1.0, eps: float = 1e-8) -> None:
        super().__init__(params, {"lr": lr, "least": least, "c": c, "eps": eps})

    def step(self, closure: Closure) -> None:  # type: ignore[override]
        loss, group = float(closure()), self.param_groups[0]
        moved = [p for p in group["params"] if p.grad is not None]
        square = sum(float(p.grad.double().square().sum()) for p in moved)  # type: ignore[union-attr]
        size = min(group["lr"], (loss - group["least"]) / (group["c"] * square + group["eps"]))
        with torch.no_grad():
            for p in moved:
                p -= size * p.grad


SIGNS = {"hessian_distribution": "rademacher"}

ROWS: dict[str, Row] = {
    "SAM": Row(
        options({"rho": 0.3, "adaptive": True, "momentum": 0.9}, DECAYED, UP),
        make=sam,
        plain={},
        rosenbrock={"lr": 5e-4, "momentum": 0.9, "rho": 1e-3},
    ),
    "LBFGS": Row(
        (
            {"max_iter": 3, "history_size": 4},
            {"max_iter": 3, "line_search_fn": "strong_wolfe"},
            {"max_iter": 1, "maximize": True},
        ),
        lr=0.1,
        make=lbfgs,
        plain={},
        rosenbrock={"line_search_fn": "strong_wolfe"},
        tolerance=1e-9,
        tolerance32=0.1,  # steps are made of differences of gradients, which have few digits
        akin=False,  # the reference makes several iterations a step, and keeps lists
    ),
    "ExtraGradient": Row(options({"ahead": 0.1}), make=ExtraGradient, plain={}, rosenbrock={"lr": 1.5e-3}),
    "Polyak": Row(
        options({"c": 0.5, "least": -30.0}), lr=0.1, make=Polyak, plain={}, rosenbrock={"lr": 2e-3, "least": 0.0}
    ),
    "AdaHessian": Row(
        options(
            {"update_period": 3, "hessian_power": 0.5},
            {**DECAYED, "weight_decouple": False},
            {**UP, "weight_decouple": True},
            {**DECAYED, "fixed_decay": True},
        ),
        make=curved("AdaHessian"),
        rosenbrock={"lr": 1.0},
        half={"eps": 1e-3},
        tolerance32=2e-4,  # under one of the options a number comes to lie 4e-4 from 0
    ),
    "SophiaH": Row(
        options(
            SIGNS,
            {**SIGNS, "update_period": 3, **DECAYED, "weight_decouple": False},
            {**SIGNS, **UP, "fixed_decay": True},
        )[1:],
        make=curved("SophiaH"),
        rosenbrock={"lr": 1e-1, "p_clip": 0.1},
        half={"eps": 1e-3},
    ),
}
