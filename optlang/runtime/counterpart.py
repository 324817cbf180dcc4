"""What a class shares with the class in ``torch.optim`` that its rule declares as its counterpart.

Checkpoints are interchangeable between the two, so the parameter groups of both have the same keys.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.optim import Optimizer

from optlang.rule import Rule

#: Keys of torch's parameter groups that are not hyperparameters: they choose an implementation or enable features.
SWITCHES = ("foreach", "fused", "capturable", "differentiable")
#: Keys by which torch's classes identify themselves.
MARKS = ("decoupled_weight_decay",)
#: States of torch's classes that our steps do not update, by class. If we kept them, they would be stale.
UNKNOWN = {"LBFGS": frozenset({"n_iter", "old_dirs", "old_stps", "ro", "al"})}


def undecorated(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a method of ``Optimizer`` without the decorator that imports Dynamo (seconds) on the first call."""
    return getattr(function, "__wrapped__", function)


@dataclass(frozen=True)
class Counterpart:
    """Facts about the class in ``torch.optim``; all empty if there is none.

    Attributes:
        switches: Its switches, with their defaults.
        marks: Keys of its parameter groups whose value never changes, with that value.
        positional: Names of its arguments after ``params``, in positional order.
        early: Whether its states exist before the first step.
        unknown: Keys of its states that are dropped.
    """

    switches: Mapping[str, Any] = field(default_factory=dict)
    marks: Mapping[str, Any] = field(default_factory=dict)
    positional: tuple[str, ...] | None = None
    early: bool = False
    unknown: frozenset[str] = frozenset()

    @classmethod
    def of(cls, rule: Rule) -> Counterpart:
        """Return the counterpart of a rule."""
        package, _, name = (rule.reference or "").rpartition(".")
        other = getattr(torch.optim, name, None) if package == "torch.optim" and name == rule.name else None
        if not (isinstance(other, type) and issubclass(other, Optimizer)):
            return cls()
        # Constructors differ between versions, so the facts are read from a small instance.
        quick = type(name, (other,), {"add_param_group": undecorated(Optimizer.add_param_group)})
        made = quick([torch.nn.Parameter(torch.zeros(1, 1, device="cpu"))])
        arguments = list(inspect.signature(other).parameters.values())[1:]
        return cls(
            {key: made.defaults[key] for key in SWITCHES if key in made.defaults},
            {key: made.defaults[key] for key in MARKS if key in made.defaults and key not in rule.keys},
            tuple(p.name for p in arguments if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD),
            bool(made.state),
            UNKNOWN.get(name, frozenset()),
        )

    @property
    def keys(self) -> dict[str, Any]:
        """The keys that parameter groups have in addition to hyperparameters, with their usual values."""
        return {**self.switches, **self.marks}
