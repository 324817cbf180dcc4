"""Peers whose constructor or step differs from that of other optimizers."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch

Class = type[torch.optim.Optimizer]

#: Options of references for behavior that the rule always has, by the rule's name.
OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "CautiousAdamW": {"alpha": 0.0, "cautious": True, "weight_decouple": True},
}


def adapted(path: str, cls: Class) -> Class:
    """Return a class that takes parameters and hyperparameters, and whose steps take a closure if they need it.

    Args:
        path: The path of the class (``pytorch_optimizer.SAM``).
        cls: The class.
    """
    adapter = ADAPTERS.get(path)
    return cls if adapter is None else adapter(cls)


def needs_closure(cls: Class) -> bool:
    """Return whether a class has a step that requires a closure."""
    closure = inspect.signature(cls.step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty


def _ascending(cls: Any) -> Class:
    """SAM takes the class of the optimizer that it wraps, and needs gradients before its step."""

    class Ascending(cls):  # type: ignore[misc]
        def __init__(
            self,
            params: Any,
            lr: float = 1e-3,
            momentum: float = 0.0,
            weight_decay: float = 0.0,
            rho: float = 0.05,
            adaptive: bool = False,
        ) -> None:
            sgd = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
            super().__init__(params, torch.optim.SGD, rho=rho, adaptive=adaptive, **sgd)

        def step(self, closure: Callable[[], Any]) -> Any:
            closure()
            return super().step(closure)

    return Ascending


def _around(cls: Any) -> Class:
    """OrthoGrad takes the optimizer that it wraps."""

    class Around(cls):  # type: ignore[misc]
        def __init__(self, params: Any, lr: float = 1e-3, momentum: float = 0.0, weight_decay: float = 0.0) -> None:
            super().__init__(torch.optim.SGD(params, lr=lr, momentum=momentum, weight_decay=weight_decay))

    return Around


def _curved(cls: Any) -> Class:
    """Optimizers with Hessian-vector products need gradients that have a graph."""

    class Curved(cls):  # type: ignore[misc]
        def step(self, closure: Callable[[], Any]) -> Any:
            loss = closure()
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Using backward.. with create_graph=True")
                loss.backward(create_graph=True)
            super().step()
            self.zero_grad()  # a gradient with a graph and its parameter would keep each other alive
            return loss.detach()

    Curved.__signature__ = inspect.signature(cls)
    return Curved


def _of_matrices(cls: Any) -> Class:
    """Muon and similar optimizers take groups that say whether their parameters are matrices."""

    class OfMatrices(cls):  # type: ignore[misc]
        def __init__(self, params: Any, **hypers: Any) -> None:
            super().__init__([{"params": list(params), "use_muon": True}], **hypers)

    OfMatrices.__signature__ = inspect.signature(cls)
    return OfMatrices


def _with_norms(cls: Any) -> Class:
    """SCION identifies norms by number; any unknown value means no norm."""

    class WithNorms(cls):  # type: ignore[misc]
        def __init__(self, params: Any, norm_type: str = "auto", **hypers: Any) -> None:
            super().__init__(params, norm_type={"auto": 1, "sign": 4}[norm_type], **hypers)

    WithNorms.__signature__ = inspect.signature(cls)
    return WithNorms


ADAPTERS: Mapping[str, Callable[[Any], Class]] = {
    "pytorch_optimizer.SAM": _ascending,
    "pytorch_optimizer.OrthoGrad": _around,
    "pytorch_optimizer.AdaHessian": _curved,
    "pytorch_optimizer.SophiaH": _curved,
    "pytorch_optimizer.Muon": _of_matrices,
    "pytorch_optimizer.AdaMuon": _of_matrices,
    "pytorch_optimizer.AdaGO": _of_matrices,
    "pytorch_optimizer.NorMuon": _of_matrices,
    "pytorch_optimizer.SCION": _with_norms,
}
