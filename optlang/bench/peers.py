"""The other side of a comparison: the reference implementation of a rule, or one that the user names."""

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
    """An optimizer class and how to construct it.

    Attributes:
        label: Its name in tables.
        cls: The class.
        options: Keyword arguments besides the hyperparameters, such as ``fused=True``.
    """

    label: str
    cls: type[torch.optim.Optimizer]
    options: Mapping[str, Any]

    def make(self, parameters: list[torch.Tensor], values: Mapping[str, Any]) -> torch.optim.Optimizer:
        """Return an instance with those ``values`` that the class has as arguments."""
        known = inspect.signature(self.cls).parameters
        # None in a rule is left out; some classes use a number for that.
        wanted = {name: value for name, value in values.items() if name in known and value is not None}
        for name, value in wanted.items():
            default = known[name].default
            if type(default) is int and isinstance(value, float) and value.is_integer():
                wanted[name] = int(value)  # a rule's numbers are floats, but some classes need integers
            elif isinstance(default, tuple) and isinstance(value, tuple):
                wanted[name] = value + default[len(value) :]  # AdEMAMix, for example, has a third decay rate
        return self.cls(parameters, **{**wanted, **self.options})


#: Peers for lists of shapes that a rule's own reference does not support, if no other is named.
USUAL = {"embedding": "torch.optim:SparseAdam"}


#: The peer that is the rule itself, with its states stored as the rule specifies.
ITSELF = "itself"


class ClippedAdamW(torch.optim.AdamW):
    """The usual alternative to a rule that clips: ``clip_grad_norm_``, then fused AdamW.

    Args:
        params: Parameters.
        lr: As for AdamW.
        betas: As for AdamW.
        eps: As for AdamW.
        weight_decay: As for AdamW.
        max_norm: The norm to which the gradients of all parameters are clipped.
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
    """The usual alternative to a rule that clips and averages weights: additionally ``AveragedModel``.

    Args:
        params: Parameters.
        lr: As for AdamW.
        betas: As for AdamW.
        eps: As for AdamW.
        weight_decay: As for AdamW.
        max_norm: The norm to which the gradients of all parameters are clipped.
        decay: Decay rate of the average.
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
        """Clip the gradients, make a step and update the average."""
        result = super().step(closure)
        self.average.update_parameters(self.model)
        return result


class NoPeer(ValueError):
    """There is nothing to compare a rule with."""


def find(against: str | None, reference: str | None, name: str = "") -> Peer:
    """Return the peer that ``against`` names.

    Args:
        against: None, ``fused``, ``foreach``, ``clipped`` (``clip_grad_norm_``, then fused AdamW), ``averaged``
            (additionally ``AveragedModel``), ``module`` or ``module-eager`` (the rule emitted as a module, its updates
            compiled by ``torch.compile`` or not), ``MODULE:CLASS``, or a package, for its optimizer with the rule's
            name.
        reference: The rule's reference.
        name: The rule's name.

    Raises:
        NoPeer: If the package has no optimizer of that name, the rule has no reference, or the reference has no such
            implementation.
        ValueError: If the class does not exist.
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
    """Return a rule of the library, emitted as a module."""
    made = ModuleType(f"optlang_emitted_{name}")
    try:
        exec(export(name, "module"), made.__dict__)  # our compiler's output
    except OptlangError as error:
        raise NoPeer(str(error)) from error
    return Peer(
        f"module of {name} ({'compiled' if compiled else 'eager'})", getattr(made, name), {"compiled": compiled}
    )


def _same_name(package: str, name: str) -> str:
    """Return the path of a package's optimizer with some name, in any spelling."""
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
    """Choose the implementation: the requested one, or the fastest that the class has."""
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
