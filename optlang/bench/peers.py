"""The other side of a comparison: the optimizer a rule is written after, or one that the user names."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from optlang.api import export
from optlang.bench import adapters
from optlang.diagnostics import OptlangError


@dataclass(frozen=True)
class Peer:
    """An optimizer class and how it is made.

    Attributes:
        label: What tables call it.
        cls: The class.
        options: Keyword arguments beside the hyperparameters, such as ``fused=True``.
    """

    label: str
    cls: type[torch.optim.Optimizer]
    options: Mapping[str, Any]

    def make(self, parameters: list[torch.Tensor], values: Mapping[str, Any]) -> torch.optim.Optimizer:
        """Return an instance with those of ``values`` that the class knows."""
        known = inspect.signature(self.cls).parameters
        # What is none in a rule is left out; some classes have a number for that.
        wanted = {name: value for name, value in values.items() if name in known and value is not None}
        for name, value in wanted.items():
            default = known[name].default
            if type(default) is int and isinstance(value, float) and value.is_integer():
                wanted[name] = int(value)  # a rule's numbers are floats, and some classes count with theirs
            elif isinstance(default, tuple) and isinstance(value, tuple):
                wanted[name] = value + default[len(value) :]  # as AdEMAMix has a third decay rate
        return self.cls(parameters, **{**wanted, **self.options})


#: Peers for lists of shapes that a rule's own reference does not take, if no other is named.
USUAL = {"embedding": "torch.optim:SparseAdam"}


#: The peer that is the rule itself, with its states as the rule says.
ITSELF = "itself"


class ClippedAdamW(torch.optim.AdamW):
    """What is done today in place of a rule that clips: ``clip_grad_norm_``, then fused AdamW.

    Args:
        params: Parameters.
        lr: As for AdamW.
        betas: As for AdamW.
        eps: As for AdamW.
        weight_decay: As for AdamW.
        max_norm: The norm that the gradients of all parameters are clipped to.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        max_norm: float = 1.0,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, fused=True)
        self.max_norm = max_norm

    def step(self, closure: Any = None) -> Any:
        """Clip the gradients and make a step."""
        members = [p for group in self.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(members, self.max_norm)
        return super().step(closure)


class ClippedAveragedAdamW(ClippedAdamW):
    """What is done today in place of a rule that clips and keeps a mean of the weights: ``AveragedModel`` besides.

    Args:
        params: Parameters.
        lr: As for AdamW.
        betas: As for AdamW.
        eps: As for AdamW.
        weight_decay: As for AdamW.
        max_norm: The norm that the gradients of all parameters are clipped to.
        decay: Decay rate of the mean.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        max_norm: float = 1.0,
        decay: float = 0.999,
    ) -> None:
        members = list(params)
        super().__init__(members, lr, betas, eps, weight_decay, max_norm)
        self.model = torch.nn.ParameterList(members)
        self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(decay))

    def step(self, closure: Any = None) -> Any:
        """Clip the gradients, make a step and update the mean."""
        result = super().step(closure)
        self.average.update_parameters(self.model)
        return result


class NoPeer(ValueError):
    """There is nothing to compare a rule with."""


def find(against: str | None, reference: str | None, name: str = "") -> Peer:
    """Return the peer that ``against`` asks for.

    Args:
        against: None, ``fused``, ``foreach``, ``clipped`` (``clip_grad_norm_``, then fused AdamW), ``averaged`` (that,
            and ``AveragedModel``), ``module`` or ``module-eager`` (the rule emitted as a module of its own, its updates
            compiled by ``torch.compile`` or not), ``MODULE:CLASS``, or a package, for its optimizer of the rule's name.
        reference: The rule's reference.
        name: The rule's name.

    Raises:
        NoPeer: If the package has no optimizer of that name, the rule no reference, or that no such implementation.
        ValueError: If there is no such class.
    """
    if against == "clipped":
        return Peer("clip_grad_norm_ + torch.optim.AdamW (fused)", ClippedAdamW, {})
    if against == "averaged":
        return Peer("clip_grad_norm_ + torch.optim.AdamW (fused) + AveragedModel", ClippedAveragedAdamW, {})
    if against in ("module", "module-eager"):
        return _emitted(name, against == "module")
    if against is not None and against not in ("fused", "foreach"):
        path = against.replace(":", ".") if ":" in against or "." in against else _same_name(against, name)
        return _described(path, None, name)
    if reference is None:
        raise NoPeer(f"{name or 'the rule'} names no reference; say what to compare with: --against MODULE:CLASS")
    try:
        return _described(reference, against, name)
    except ValueError as error:
        raise NoPeer(str(error)) from error


def _emitted(name: str, compiled: bool) -> Peer:
    """Return a rule of the library as a module of its own."""
    made = ModuleType(f"optlang_emitted_{name}")
    try:
        exec(export(name, "module"), made.__dict__)  # our own compiler's output
    except OptlangError as error:
        raise NoPeer(str(error)) from error
    return Peer(
        f"module of {name} ({'compiled' if compiled else 'eager'})", getattr(made, name), {"compiled": compiled}
    )


def _same_name(package: str, name: str) -> str:
    """Return the path of a package's own optimizer of some name, in whatever spelling."""
    try:
        module = importlib.import_module(package)
    except ImportError as error:
        raise ValueError(f"cannot load the peer {package}: {error}") from error
    for attribute, value in vars(module).items():
        if (
            attribute.lower() == name.lower()
            and isinstance(value, type)
            and value.__module__.split(".")[0] == package.split(".")[0]
        ):
            return f"{package}.{attribute}"
    raise NoPeer(f"{package} has no optimizer of its own that is called {name}")


def _load(name: str) -> type[torch.optim.Optimizer]:
    module, _, attribute = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"cannot load the peer {name}: {error}") from error
    if not (isinstance(found, type) and issubclass(found, torch.optim.Optimizer)):
        raise ValueError(f"the peer {name} is not a torch.optim.Optimizer")
    return found


def _described(path: str, implementation: str | None, rule: str) -> Peer:
    """Choose the implementation: the one asked for, or the fastest that the class has."""
    cls = adapters.adapted(path, _load(path))
    always = adapters.OPTIONS.get(rule, {})
    offered = inspect.signature(cls).parameters
    if implementation is None:
        implementation = next((word for word in ("fused", "foreach") if word in offered), None)
    elif implementation not in offered:
        raise ValueError(f"{path} has no {implementation} implementation")
    options = {key: value for key, value in always.items() if key in offered}
    if implementation is None:
        return Peer(path, cls, options)
    return Peer(f"{path} ({implementation})", cls, {**options, implementation: True})
