"""What each rule of the library is compared with, and under which options.

A rule whose reference is a class with the same keywords needs nothing here. A row adds options to vary, arguments
that only the reference takes, or a reference of our own where no package has one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from importlib import import_module
from typing import Any

import references_closures
import references_composed
import references_constraints
import references_matrices
import torch
from references_row import COUPLED, COUPLED_ONLY, DECAYED, UP, Row, options


class ProximalGradient(torch.optim.Optimizer):
    """Iterative soft thresholding, as its papers write it: no package has it as an optimizer."""

    def __init__(self, params: Any, lr: float = 1e-2, l1: float = 1e-3, l2: float = 0.0, maximize: bool = False):
        super().__init__(params, {"lr": lr, "l1": l1, "l2": l2, "maximize": maximize})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            lr, sign = group["lr"], 1 if group["maximize"] else -1
            for p in group["params"]:
                if p.grad is None:
                    continue
                moved = p + sign * lr * p.grad
                shrunk = torch.nn.functional.softshrink(moved, lr * group["l1"])
                p.copy_(shrunk / (1 + lr * group["l2"]))


class AdaMod(torch.optim.Optimizer):
    """Algorithm 2 of the paper (arXiv 1910.12249); pytorch_optimizer has no bias correction of the moments in it."""

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float, float] = (0.9, 0.999, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        maximize: bool = False,
    ):
        super().__init__(
            params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "maximize": maximize}
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            beta1, beta2, beta3 = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                g = -p.grad if group["maximize"] else p.grad
                state = self.state[p]
                if not state:
                    state.update(t=0, m=torch.zeros_like(p), v=torch.zeros_like(p), s=torch.zeros_like(p))
                state["t"] += 1
                state["m"].lerp_(g, 1 - beta1)
                state["v"].lerp_(g * g, 1 - beta2)
                corrected = state["m"] / (1 - beta1 ** state["t"]), state["v"] / (1 - beta2 ** state["t"])
                size = group["lr"] / (corrected[1].sqrt() + group["eps"])
                state["s"].lerp_(size, 1 - beta3)
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.sub_(torch.minimum(size, state["s"]) * corrected[0])


def sparse_adam(params: Any, **hypers: Any) -> torch.optim.Optimizer:
    """The SparseAdam of torch, which refuses dense gradients, with the dense ones that it is given made sparse."""

    class SparseAdam(torch.optim.SparseAdam):
        def step(self, closure: Any = None) -> Any:
            for p in (p for group in self.param_groups for p in group["params"] if p.grad is not None):
                p.grad = p.grad.to_sparse(1)
            return super().step(closure)

    return SparseAdam(params, **hypers)


def qhadam(params: Any, **hypers: Any) -> torch.optim.Optimizer:
    """pytorch_optimizer's QHAdam with its two weights, which it keeps in float32, in the parameter's type."""
    base = import_module("pytorch_optimizer").QHAdam

    class QHAdam(base):  # type: ignore[misc, valid-type]
        def init_group(self, group: Any, **kwargs: Any) -> None:
            super().init_group(group, **kwargs)
            for p in group["params"]:
                for key in ("beta1_weight", "beta2_weight"):
                    if key in self.state[p]:
                        self.state[p][key] = self.state[p][key].to(p.dtype)

    return QHAdam(params, **hypers)  # type: ignore[no-any-return]


def adashift(params: Any, reduce: str = "max", **hypers: Any) -> torch.optim.Optimizer:
    """pytorch_optimizer's AdaShift, which takes the function that reduces."""
    function = torch.max if reduce == "max" else None
    return import_module("pytorch_optimizer").AdaShift(params, reduce_func=function, **hypers)  # type: ignore[no-any-return]


def adopt(params: Any, clip_power: float = 0.25, **hypers: Any) -> torch.optim.Optimizer:
    """pytorch_optimizer's ADOPT, whose clipping is a function of the step."""
    hypers["clip_lambda"] = lambda step: math.pow(step, clip_power)
    return import_module("pytorch_optimizer").ADOPT(params, **hypers)  # type: ignore[no-any-return]


def cautious(params: Any, betas: tuple[float, float] = (0.9, 0.999), **hypers: Any) -> torch.optim.Optimizer:
    """pytorch_optimizer's AdEMAMix without its slow momentum: what is left is AdamW, with a cautious option."""
    hypers |= {"betas": (*betas, 0.0), "alpha": 0.0, "cautious": True, "weight_decouple": True}
    return import_module("pytorch_optimizer").AdEMAMix(params, **hypers)  # type: ignore[no-any-return]


ADAM = options({**DECAYED, "betas": (0.8, 0.95)}, {**UP, "eps": 1e-3}, {"amsgrad": True, "betas": (0.0, 0.5)})
DECOUPLED = options({**DECAYED, "betas": (0.8, 0.95)}, {**UP, "decoupled_weight_decay": True, "eps": 1e-3})

ROWS: dict[str, Row] = {
    "SGD": Row(
        options(
            {"momentum": 0.9},
            {"momentum": 0.9, "dampening": 0.5, **DECAYED},
            {"momentum": 0.9, "nesterov": True},
            UP,
        ),
        rosenbrock={"lr": 5e-4, "momentum": 0.9},
    ),
    "Adam": Row((*ADAM, {**DECAYED, "decoupled_weight_decay": True})),
    "AdamW": Row(ADAM),
    "SparseAdam": Row(
        options({"betas": (0.5, 0.9), "eps": 1e-3}, {"maximize": True}),
        make=sparse_adam,
        shapes=((4, 6), (5,), (3, 2, 1, 4)),  # a tensor without dimensions has no rows
        plain={},
        rosenbrock={"lr": 0.1, "sparse": None},
    ),
    "NAdam": Row(options(*DECOUPLED[1:], {"momentum_decay": 0.1})),
    "RAdam": Row(DECOUPLED, rosenbrock={"lr": 2e-3, "betas": (0.9, 0.5)}),
    "Adagrad": Row(options({"lr_decay": 0.1, "initial_accumulator_value": 0.5}, UP), rosenbrock={"lr": 0.2}),
    "Adadelta": Row(options({"rho": 0.5, "eps": 1e-3}, UP), lr=1.0, rosenbrock={"lr": 1.0, "eps": 1e-4, "rho": 0.99}),
    "Adamax": Row(options({"betas": (0.5, 0.9), "eps": 1e-3}, UP), rosenbrock={"lr": 0.1, "betas": (0.9, 0.9)}),
    "RMSprop": Row(
        options({"momentum": 0.9}, {"centered": True, "alpha": 0.9}, {"momentum": 0.5, "centered": True, **UP}),
        rosenbrock={"lr": 5e-3},
    ),
    "Rprop": Row(options({"etas": (0.7, 1.5), "step_sizes": (1e-3, 0.1)}, {"maximize": True})),
    "ASGD": Row(options({"t0": 5, "lambd": 0.1}, {"alpha": 0.5, **UP}), rosenbrock={"lr": 2e-3}),
    "Adafactor": Row(
        options({"beta2_decay": -0.5, "eps": (1e-4, 1e-2), **DECAYED}, {"d": 2.0, **UP}),
        lr=0.1,
        rosenbrock={"lr": 0.05},
    ),
    "Lion": Row(options({"betas": (0.5, 0.9)}, *COUPLED), rosenbrock={"lr": 5e-3}),
    "AdaBelief": Row(options({"ams_bound": True}, {"eps": 1e-4}, *COUPLED), half={"eps": 1e-3}),
    "AdaShift": Row(  # with the default 10 gradients in its history, nothing would move in a short run
        (
            {"keep_num": 3},
            {"keep_num": 3, "betas": (0.5, 0.9), "eps": 1e-3},
            {"keep_num": 2, "reduce": "none", "eps": 1e-3},
            {"keep_num": 1, "maximize": True},
        ),
        make=adashift,
    ),
    "AdaMod": Row(
        options(
            {"betas": (0.5, 0.9, 0.8)}, {"betas": (0.9, 0.95, 0.0)}, {**UP, "eps": 1e-3, "betas": (0.9, 0.99, 0.9)}
        ),
        make=AdaMod,
        plain={},
    ),
    "Yogi": Row(options({"initial_accumulator": 0.1}, *COUPLED)),
    "LAMB": Row(
        options({"grad_averaging": False}, {"eps": 1e-3, "betas": (0.5, 0.9)}, *COUPLED), rosenbrock={"lr": 5e-2}
    ),
    "LARS": Row(
        options({"momentum": 0.0}, {"nesterov": True, "dampening": 0.3}, {"trust_coefficient": 0.1, **UP}),
        lr=0.1,
        rosenbrock={"lr": 5e-3, "trust_coefficient": 0.5},
    ),
    # The reference's first difference is wrong under `maximize`: it subtracts the gradient before its sign is turned.
    "Adan": Row(
        options({"max_grad_norm": 0.5}, {"betas": (0.9, 0.8, 0.95)}, {**DECAYED, "weight_decouple": True}, DECAYED),
        make=references_matrices.clipping("Adan", "adan"),
    ),
    "AdEMAMix": Row(options({"t_alpha_beta3": 10, "alpha": 2.0}, *COUPLED)),
    "ADOPT": Row(
        options({"clip_power": 0.0}, {"eps": 0.1}, *COUPLED), make=adopt, rosenbrock={"lr": 0.1, "betas": (0.9, 0.9)}
    ),
    "Tiger": Row(options({"beta": 0.5}, *COUPLED), rosenbrock={"lr": 1e-2}),
    "SignSGD": Row(options({"momentum": 0.0}, *COUPLED_ONLY), rosenbrock={"lr": 1e-2}),
    "NovoGrad": Row(options({"grad_averaging": True}, {"eps": 0.1}, *COUPLED), rosenbrock={"lr": 1e-3}),
    "QHAdam": Row(options({"nus": (0.7, 0.9), "betas": (0.9, 0.95)}, *COUPLED), make=qhadam),
    "MADGRAD": Row(options({"momentum": 0.0}, *COUPLED_ONLY), rosenbrock={"lr": 2e-2}),
    "CautiousAdamW": Row(options({"betas": (0.5, 0.9)}, UP), make=cautious),
    "MARS": Row(
        options(
            {"optimize_1d": True, "gamma": 0.1},
            {"mars_type": "lion", "ams_bound": True, "weight_decay_1d": 0.0},
            {"ams_bound": True, "cautious": True, **UP},
        ),
    ),
    "LaProp": Row(
        options(
            {"centered": True, "steps_before_using_centered": 5},
            {"ams_bound": True, "eps": 1e-3},
            {"fixed_decay": True, "weight_decay": 1e-3},
            UP,
        )
    ),
    "StableAdamW": Row(options({"betas": (0.5, 0.9), "eps": 1e-3}, *COUPLED_ONLY), rosenbrock={"lr": 3e-2}),
    "CAME": Row(
        options({"ams_bound": True}, {"clip_threshold": 0.5, "betas": (0.5, 0.9, 0.95)}, *COUPLED),
        half={"eps1": 1e-4, "eps2": 1e-4},
    ),
    "ProximalSGD": Row(
        options({"l1": 0.5, "l2": 0.1}, {"l2": 1.0, "maximize": True}),
        make=ProximalGradient,
        plain={},
        rosenbrock={"lr": 2e-3, "l1": 0.0},
    ),
    **references_constraints.ROWS,
    **references_matrices.ROWS,
    **references_closures.ROWS,
    **references_composed.ROWS,
}


def row(name: str) -> Row:
    """Return how a rule is tested; a rule without a row is tested at its defaults."""
    return ROWS.get(name, Row())


def reference_class(reference: str | None) -> Any:
    """Return the class that a rule's ``# reference:`` line names, or None."""
    if reference is None:
        return None
    module, _, name = reference.rpartition(".")
    return getattr(import_module(module), name)


def make_reference(name: str, reference: str | None, params: Iterable[Any], **hypers: Any) -> Any:
    """Build the reference of a rule, in its plainest implementation; None if the rule has none."""
    chosen = row(name)
    make = chosen.make or reference_class(reference)
    if make is None:
        return None
    return make(params, **{**hypers, **chosen.plain})
