"""References of the rules of matrices, of the whole model, of time and of chance; see ``references``.

Some published implementations leave float64 for part of a step: a norm of all gradients is summed in float32, singular
vectors are computed in float32, matrices are orthogonalized in bfloat16. Where a float64 parameter is compared, that
part is done in float64 instead; everything else is theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from typing import Any
from unittest.mock import patch

import torch
from references_row import COUPLED, COUPLED_ONLY, DECAYED, UP, Row, options

Make = Callable[..., Any]
Params = Iterable[torch.Tensor]

MATRICES = ((4, 6), (6, 4), (5, 5))
FILTERS = (*MATRICES, (3, 2, 1, 4))
#: With sides whose product with themselves has at most one eigenvalue of 0: eigenvectors of several are arbitrary.
NEARLY_SQUARE = ((5, 5), (4, 5), (5, 4), (2,), ())


# Parts of references in float64 ---------------------------------------------------------------------------------


def stepping_with(make: Make, module: str, always: bool = False, **replaced: Any) -> Make:
    """Return how to make a reference with functions of a module replaced while it steps, if not only in float64."""

    def build(params: Params, **hypers: Any) -> Any:
        params = list(params)
        optimizer = make(params, **hypers)
        if always or params[0].dtype == torch.float64:
            step = optimizer.step

            def exact(closure: Any = None) -> None:
                with patch.multiple(import_module(module), **replaced):
                    step(closure)

            optimizer.step = exact
        return optimizer

    return build


def published(name: str, package: str = "pytorch_optimizer") -> Make:
    """Return a class of a package, which is imported when the first optimizer is made."""
    return lambda params, **hypers: getattr(import_module(package), name)(params, **hypers)


def summed_squares(groups: Iterable[Mapping[str, Any]], *_: Any) -> torch.Tensor:
    """Sum of the squares of all gradients."""
    gradients = [p.grad for group in groups for p in group["params"] if p.grad is not None]
    return torch.stack([(g**2).sum() for g in gradients]).sum()


def newton_schulz(
    x: torch.Tensor, coefficients: Sequence[float], steps: int, eps: float, *, transposed: bool = False
) -> torch.Tensor:
    """Muon's iteration in the number type of ``x``."""
    if x.shape[0] > x.shape[1]:
        return newton_schulz(x.T, coefficients, steps, eps, transposed=True).T
    a, b, c = coefficients
    x = x / x.norm().clamp(min=eps)
    for _ in range(steps):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return x


def newton_schulz_5(
    x: torch.Tensor, num_steps: int = 5, weights: Sequence[Sequence[float]] = ((3.4445, -4.7750, 2.0315),)
) -> torch.Tensor:
    """The same, as pytorch_optimizer calls it."""
    (coefficients,) = weights
    return newton_schulz(x, coefficients, num_steps, 1e-7)


def muons(name: str) -> Make:
    """One of pytorch_optimizer's relatives of Muon, all of whose parameters are matrices."""

    def make(params: Params, **hypers: Any) -> Any:
        return getattr(import_module("pytorch_optimizer"), name)([{"params": list(params), "use_muon": True}], **hypers)

    modules = ("base", name.lower())  # each of which imports the function for itself
    for module in modules:
        make = stepping_with(
            make, f"pytorch_optimizer.optimizer.muon.{module}", zero_power_via_newton_schulz_5=newton_schulz_5
        )
    return make


def scion(params: Params, norm_type: str = "auto", **hypers: Any) -> Any:
    """pytorch_optimizer's SCION, whose norms have numbers."""
    module = import_module("pytorch_optimizer.optimizer.scion")

    def make(params: Params, **keywords: Any) -> Any:
        return module.SCION(params, norm_type=module.LMONorm[norm_type.upper()], **keywords)

    return stepping_with(make, module.__name__, zero_power_via_newton_schulz_5=newton_schulz_5)(params, **hypers)


def clipping(name: str, module: str) -> Make:
    """An optimizer of pytorch_optimizer that takes the norm of all gradients, there a float32 with one dimension."""
    path = f"pytorch_optimizer.optimizer.{module}"
    return stepping_with(published(name), path, always=True, get_global_gradient_norm=summed_squares)


def soap(params: Params, **hypers: Any) -> Any:
    """pytorch_optimizer's SOAP, whose bases go through float32."""
    base = import_module("pytorch_optimizer").SOAP

    class SOAP(base):  # type: ignore[misc, valid-type]
        def get_orthogonal_matrix_qr(self, state: Any, *arguments: Any, **keywords: Any) -> Any:
            bases = []
            for dim, (side, basis) in enumerate(zip(state["GG"], state["Q"], strict=True)):
                if len(side) == 0:
                    bases.append(basis)
                    continue
                turned = side @ basis
                order = torch.argsort((basis * turned).sum(dim=0), descending=True)
                state["exp_avg_sq"] = state["exp_avg_sq"].index_select(dim, order)
                bases.append(torch.linalg.qr(turned[:, order]).Q)
            return bases

    params = list(params)
    return (SOAP if params[0].dtype == torch.float64 else base)(params, **hypers)


def projecting(name: str) -> Make:
    """pytorch_optimizer's GaLore or Conda, whose singular vectors are computed in float32."""

    def make(params: Params, **hypers: Any) -> Any:
        base = import_module(f"pytorch_optimizer.optimizer.{name.lower()}").GaLoreProjector

        class Projector(base):  # type: ignore[misc, valid-type]
            def get_orthogonal_matrix(self, weights: torch.Tensor, projection_type: str, **_: Any) -> Any:
                u, _, vh = torch.linalg.svd(weights, full_matrices=False)
                sides = {"left": u[:, : self.rank], "right": vh[: self.rank]}
                return sides[projection_type] if projection_type in sides else (sides["left"], sides["right"])

        module = f"pytorch_optimizer.optimizer.{name.lower()}"
        return stepping_with(published(name), module, GaLoreProjector=Projector)(params, **hypers)

    return make


def galore(params: Params, rank: float | None = None, **hypers: Any) -> Any:
    """pytorch_optimizer's GaLore, whose options of a projection are keys of the param group."""
    if rank is not None:
        hypers = {"update_proj_gap": 50, "scale": 1.0, "projection_type": "std", "rank": int(rank), **hypers}
    return projecting("GaLore")(params, **hypers)


def splus(params: Params, **hypers: Any) -> Any:
    """pytorch_optimizer's SPlus, whose eigenvectors are computed in float32."""
    base = import_module("pytorch_optimizer").SPlus
    params = list(params)
    optimizer = base(params, **hypers)
    if params[0].dtype == torch.float64:
        step = optimizer.step

        def exact(closure: Any = None) -> None:
            with patch.object(torch.Tensor, "float", lambda x: x):
                step(closure)

        optimizer.step = exact
    return optimizer


# References of our own ------------------------------------------------------------------------------------------


class MuonWithAdamW(torch.optim.Optimizer):
    """torch's Muon for matrices and torch's AdamW for the rest."""

    def __init__(self, params: Params, **hypers: Any) -> None:
        params = list(params)
        super().__init__(params, {})
        given = {
            "adamw_": {k.removeprefix("adamw_"): v for k, v in hypers.items() if k.startswith("adamw_")},
            "": {k: v for k, v in hypers.items() if not k.startswith("adamw_")},
        }
        for key in ("betas", "amsgrad", "maximize"):  # Muon has none of these
            if key in given[""]:
                given["adamw_"][key] = given[""].pop(key)
        matrices, others = ([p for p in params if (p.ndim == 2) is flag] for flag in (True, False))
        self.inner = [torch.optim.Muon(matrices, **given[""]), torch.optim.AdamW(others, **given["adamw_"])]

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for optimizer in self.inner:
            optimizer.step()


class AdamWClip(torch.optim.AdamW):
    """torch's AdamW after torch's clipping."""

    def __init__(self, params: Params, max_norm: float = 1.0, **hypers: Any) -> None:
        super().__init__(params, **hypers)
        self.max_norm = max_norm

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        every = [p for group in self.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(every, self.max_norm)
        super().step()


class AdamWEMA(torch.optim.AdamW):
    """torch's AdamW, and a running mean of the parameters as torch.optim.swa_utils takes it."""

    def __init__(self, params: Params, decay: float = 0.999, **hypers: Any) -> None:
        super().__init__(params, **hypers)
        self.mean = torch.optim.swa_utils.get_ema_multi_avg_fn(decay)
        self.averages: list[torch.Tensor] | None = None

    def _every(self) -> list[torch.Tensor]:
        return [p.detach() for group in self.param_groups for p in group["params"]]

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        super().step()
        if self.averages is None:
            self.averages = [p.clone() for p in self._every()]
        else:
            self.mean(self.averages, self._every(), None)

    def eval(self) -> None:
        assert self.averages is not None
        for p, average in zip(self._every(), self.averages, strict=True):
            before = p.clone()
            p.copy_(average)
            average.copy_(before)

    train = eval  # they are exchanged again


def lookahead(name: str) -> Make:
    """pytorch_optimizer's Lookahead around an optimizer of torch."""

    def make(params: Params, k: int = 5, alpha: float = 0.5, pullback_momentum: str = "none", **hypers: Any) -> Any:
        inner = getattr(torch.optim, name)(params, **hypers)
        return import_module("pytorch_optimizer").Lookahead(
            inner, k=int(k), alpha=alpha, pullback_momentum=pullback_momentum
        )

    return make


class DoG(torch.optim.Optimizer):
    """DoG as its paper writes it, its distances those of the whole model or of each tensor."""

    layers = False

    def __init__(
        self,
        params: Params,
        lr: float = 1.0,
        reps_rel: float = 1e-6,
        init_eta: float | None = None,
        weight_decay: float = 0.0,
        eps: float = 1e-8,
        maximize: bool = False,
    ) -> None:
        super().__init__(params, {"lr": lr})
        self.every = [p for group in self.param_groups for p in group["params"]]
        self.reps_rel, self.init_eta, self.weight_decay = reps_rel, init_eta, weight_decay
        self.eps, self.sign = eps, -1 if maximize else 1
        self.origin: list[torch.Tensor] = []

    def _blocks(self) -> list[list[int]]:
        numbers = list(range(len(self.every)))
        return [[i] for i in numbers] if self.layers else [numbers]

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        first = not self.origin
        if first:
            self.origin = [p.clone() for p in self.every]
            self.longest = [p.new_zeros(()) for p in self.every]
            self.squares = [torch.full_like(x, self.eps) for x in self.longest]
        gradients = [self.sign * p.grad + self.weight_decay * p for p in self.every]
        for block in self._blocks():
            flat, origin, gradient = (
                torch.cat([x[i].flatten() for i in block]) for x in (self.every, self.origin, gradients)
            )
            if not first:
                self.longest[block[0]] = max(self.longest[block[0]], (flat - origin).norm())
            elif self.init_eta is None:
                self.longest[block[0]] = self.reps_rel * (1 + flat.norm())
            self.squares[block[0]] += gradient @ gradient
            eta = self.param_groups[0]["lr"] * self.longest[block[0]] / self.squares[block[0]].sqrt()
            if first and self.init_eta is not None:
                eta = torch.full_like(eta, self.init_eta)
            for i in block:
                self.every[i] -= eta * gradients[i]


class LDoG(DoG):
    """DoG tensor by tensor."""

    layers = True


class Langevin(torch.optim.Optimizer):
    """SGLD as its paper writes it, at temperature 0: what chance adds to it has a test of its own."""

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        temperature: float = 0.0,
        weight_decay: float = 0.0,
        maximize: bool = False,
    ) -> None:
        assert temperature == 0
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "maximize": maximize})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            sign = -1 if group["maximize"] else 1
            for p in group["params"]:
                p -= group["lr"] * (sign * p.grad + group["weight_decay"] * p)


# Rows -----------------------------------------------------------------------------------------------------------

#: Of matrices that are orthogonalized in bfloat16, with its 8 bits, each in its own order of operations.
BF16 = 0.1
MUON = (*COUPLED_ONLY, {"use_adjusted_lr": True})
DISTANCE = options({"d0": 1e-3}, {"d0": 0.1, "growth_rate": 1.02}, {"d0": 1e-2, "lr": 0.5})

ROWS: dict[str, Row] = {
    # Matrices -------------------------------------------------------------------------------------------------
    "Muon": Row(
        tuple(
            {"adjust_lr_fn": "original", **row}
            for row in options(
                {"nesterov": False, "momentum": 0.8, "weight_decay": 0.0},
                {"adjust_lr_fn": "match_rms_adamw", "ns_steps": 3},
                {"ns_coefficients": (2.0, -1.5, 0.5), "eps": 10.0},
            )
        ),
        make=stepping_with(
            published("Muon", "torch.optim"), "torch.optim._muon", _zeropower_via_newtonschulz=newton_schulz
        ),
        plain={},
        shapes=MATRICES,
        tolerance32=BF16,
        rosenbrock={"lr": 5e-3, "weight_decay": 0.0},
    ),
    "MuonWithAdamW": Row(
        options({"adamw_lr": 3e-3, "weight_decay": 0.0, "betas": (0.8, 0.95)}, {"momentum": 0.5, "amsgrad": True}),
        make=MuonWithAdamW,
        plain={},
        tolerance=BF16,
        tolerance32=BF16,
        rosenbrock={"lr": 5e-3, "weight_decay": 0.0},
    ),
    "NorMuon": Row(
        options(
            {"momentum": 0.8, "beta2": 0.5, "nesterov": False, "ns_steps": 3}, *MUON, {"update_scale": "match_rms"}
        ),
        make=muons("NorMuon"),
        shapes=FILTERS,
        tolerance32=BF16,
        rosenbrock={"lr": 5e-3},
    ),
    "AdaMuon": Row(
        options({"betas": (0.8, 0.5), "ns_steps": 3}, *MUON, {"use_adjusted_lr": False}),
        make=muons("AdaMuon"),
        shapes=FILTERS,
        tolerance32=BF16,
        rosenbrock={"lr": 0.01},
    ),
    "AdaGO": Row(
        options({"gamma": 2.0, "v": 0.1, "eps": 1e-3}, {"nesterov": True, "momentum": 0.5}, *MUON),
        lr=1.0,
        make=muons("AdaGO"),
        shapes=FILTERS,
        tolerance32=BF16,
        rosenbrock={"lr": 0.5, "eps": 5e-3},
    ),
    "SCION": Row(
        options({"momentum": 0.5, "scale": 3.0}, {"constraint": True}, *COUPLED_ONLY),
        make=scion,
        tolerance32=BF16,
        rosenbrock={"lr": 1e-2},
    ),
    "Shampoo": Row(
        options({"momentum": 0.5}, {"matrix_eps": 0.1, "preconditioning_compute_steps": 3}, *COUPLED),
        lr=0.1,
        compared=((4, 6), (6, 4), (5,), ()),
        tolerance32=1e-3,  # the least eigenvalues, `matrix_eps`, are lost beside the largest
        rosenbrock={"lr": 0.2},
    ),
    "SOAP": Row(
        options(
            {"precondition_frequency": 3, "shampoo_beta": 0.8, "betas": (0.8, 0.9)},
            {"precondition_1d": True, "normalize_gradient": True, "correct_bias": False},
            {"max_precondition_dim": 4, "maximize": True},
        ),
        make=soap,
        shapes=NEARLY_SQUARE,
    ),
    "SPlus": Row(
        options({"inverse_steps": 5, "betas": (0.5, 0.9), "max_dim": 5}, {"ema_rate": 0.5}, *COUPLED),
        lr=0.1,
        make=splus,
        shapes=((5, 5), (4, 5), (5, 4), (5,), ()),
        rosenbrock={"lr": 5e-3},
    ),
    "GaLoreAdamW": Row(
        options(
            {"rank": 2, "update_proj_gap": 4, "scale": 0.5},
            {"rank": 3, "update_proj_gap": 7, "projection_type": "reverse_std", **DECAYED},
            {"rank": 2, "projection_type": "left", "betas": (0.5, 0.9)},
            {"rank": 2, "projection_type": "right", "eps": 1e-3},
            {"rank": 9, "update_proj_gap": 3, "projection_type": "full", **UP},
        ),
        make=galore,
        shapes=(*MATRICES, (5,), ()),
    ),
    "Conda": Row(
        options(
            {"update_proj_gap": 4, "scale": 0.5},
            {"update_proj_gap": 7, "projection_type": "reverse_std", **DECAYED},
            {"projection_type": "left", "betas": (0.5, 0.9)},
            {"projection_type": "right", "eps": 1e-3},
            {"update_proj_gap": 3, "projection_type": "full", "eps": 1e-3, **UP},
        ),
        make=projecting("Conda"),
        shapes=(*MATRICES, (5,), ()),
    ),
    "RACS": Row(
        options({"beta": 0.5, "gamma": 1.2, "alpha": 0.5}, *COUPLED), lr=0.1, rosenbrock={"lr": 3e-2, "alpha": 0.9}
    ),
    "SM3": Row(
        options({"momentum": 0.9}, {"beta": 0.5, "momentum": 0.5}, {"eps": 0.1, "maximize": True}),
        lr=0.1,
        shapes=((4, 6), (5,), (), (3, 2, 4), (3, 2, 1, 4)),
        rosenbrock={"lr": 0.5, "momentum": 0.5},
    ),
    "Nero": Row(
        options({"constraints": False, "beta": 0.9}, {"eps": 0.1, "maximize": True}),
        shapes=((4, 6), (5,), (), (3, 2, 4), (3, 2, 1, 4)),
        rosenbrock={"lr": 1e-2, "constraints": False, "beta": 0.9},
    ),
    "Fromage": Row(options({"p_bound": 1.01}, {"p_bound": 0.9, "maximize": True}), rosenbrock={"lr": 1e-2}),
    "AdaBound": Row(
        options({"final_lr": 0.5, "gamma": 0.1, "betas": (0.5, 0.9)}, {"ams_bound": True, "eps": 1e-3}, *COUPLED),
        half={"eps": 1e-3},
        rosenbrock={"lr": 0.1, "final_lr": 1e-2},
    ),
    # The whole model ------------------------------------------------------------------------------------------
    "AdamWClip": Row(options({"max_norm": 0.1, "betas": (0.8, 0.95)}, {**UP, "amsgrad": True}), make=AdamWClip),
    "AdamS": Row(options({"ams_bound": True, **DECAYED}, *COUPLED)),
    "Adai": Row(
        options(
            {"dampening": 0.9, "betas": (0.2, 0.9)},
            {"stable_weight_decay": True, **COUPLED[0]},
            {"stable_weight_decay": True, **COUPLED[1]},
            *COUPLED,
        ),
        lr=0.1,
        half={"eps": 0.05},
        rosenbrock={"lr": 1e-3},
    ),
    "AvaGrad": Row(options({"eps": 1e-3}, *COUPLED), lr=0.1, rosenbrock={"lr": 1e-2}),
    # Under coupled decay, the reference takes the norm of gradients some of which have their decay already.
    "AdaGC": Row(
        options({"warmup_steps": 5, "beta": 0.5}, {"warmup_steps": 0, "lambda_rel": 0.9}, *COUPLED[1:]),
        make=clipping("AdaGC", "adagc"),
        rosenbrock={"lr": 0.1, "weight_decay": 0.0},
    ),
    "Prodigy": Row(
        (
            *DISTANCE,
            {"d0": 0.1, "beta3": 0.9, "betas": (0.8, 0.9), "d_coef": 2.0, "bias_correction": True},
            {"d0": 1e-2, "safeguard_warmup": True, "lr": 0.3, **UP},
            {"d0": 1e-2, "fixed_decay": True, "weight_decay": 1e-3},
        ),
        lr=1.0,
        half={"d0": 1e-2},
        rosenbrock={"d0": 1e-2},
    ),
    "DAdaptAdam": Row(
        (
            *DISTANCE,
            {"d0": 1e-2, "bias_correction": True, "betas": (0.8, 0.9)},
            *({**row, "d0": 1e-2, "growth_rate": 1.1} for row in COUPLED),
        ),
        lr=1.0,
        rosenbrock={"d0": 1e-2},
    ),
    "DAdaptLion": Row(
        options({"d0": 1e-3}, {"d0": 1e-2, "lr": 0.5, "betas": (0.8, 0.9)}, *({**row, "d0": 1e-3} for row in COUPLED)),
        lr=1.0,
        rosenbrock={"d0": 1.0, "lr": 3e-3, "betas": (0.9, 0.99)},
    ),
    "DAdaptSGD": Row(
        (*DISTANCE, {"d0": 1e-2, "momentum": 0.0}, *({**row, "d0": 1e-2, "growth_rate": 1.1} for row in COUPLED)),
        lr=1.0,
        make=clipping("DAdaptSGD", "dadapt"),
        rosenbrock={"d0": 1e-2},
    ),
    "DoG": Row(
        options({"reps_rel": 1e-2, "eps": 0.1}, {"init_eta": 1e-2}, {**UP, "reps_rel": 1e-2}),
        lr=1.0,
        make=DoG,
        plain={},
        rosenbrock={"reps_rel": 1e-2},
    ),
    "LDoG": Row(
        options({"reps_rel": 1e-2, "eps": 0.1}, {"init_eta": 1e-2}, {**UP, "reps_rel": 1e-2}),
        lr=1.0,
        make=LDoG,
        plain={},
        rosenbrock={"reps_rel": 1e-2},
    ),
    # Time and chance ------------------------------------------------------------------------------------------
    "ScheduleFreeSGD": Row(
        options({"momentum": 0.5, "warmup_steps": 7}, {"r": 1.0, "weight_lr_power": 1.0}, UP),
        lr=0.1,
        rosenbrock={"lr": 3e-3},
    ),
    "ScheduleFreeAdamW": Row(
        options(
            {"betas": (0.5, 0.9), "warmup_steps": 7},
            {"r": 1.0, "weight_lr_power": 1.0, "decoupling_c": 5},
            {"ams_bound": True, "eps": 1e-3, **UP},
        ),
        rosenbrock={"lr": 0.05},
    ),
    # Without `silent_sgd_phase`, the reference's first steps are of size 1.
    "ScheduleFreeRAdam": Row(
        options({"betas": (0.5, 0.9)}, {"betas": (0.9, 0.99), "r": 1.0, "weight_lr_power": 1.0}, {"eps": 1e-3, **UP}),
        rosenbrock={"lr": 0.2},
    ),
    "LookaheadSGD": Row(
        options(
            {"momentum": 0.9, "k": 3, "alpha": 0.8, **DECAYED},
            {"momentum": 0.9, "nesterov": True, "pullback_momentum": "reset"},
            {"momentum": 0.9, "dampening": 0.1, "pullback_momentum": "pullback", **UP},
        ),
        make=lookahead("SGD"),
        rosenbrock={"lr": 5e-4, "momentum": 0.9},
    ),
    "Lookahead": Row(
        options({"momentum": 0.9, "k": 3, "alpha": 0.8, **DECAYED}, UP),
        make=lookahead("SGD"),
        rosenbrock={"lr": 5e-4, "momentum": 0.9},
    ),
    "LookaheadAdamW": Row(
        options({"k": 3, "alpha": 0.8, "betas": (0.8, 0.95)}, {**UP, "amsgrad": True}), make=lookahead("AdamW")
    ),
    "AdamWEMA": Row(options({"decay": 0.5, "betas": (0.8, 0.95)}, {**UP, "amsgrad": True}), make=AdamWEMA),
    "SGLD": Row(
        tuple({"temperature": 0.0, **row} for row in options(UP)),
        make=Langevin,
        plain={},
        rosenbrock={"lr": 2e-3, "temperature": 1e-4},
    ),
}
