"""What a class shares with that of the same name in ``torch.optim``, if its rule says that it stands for it.

Checkpoints go from one to the other as they are, so param groups of both have the same keys.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.optim import Optimizer

from optlang.rule import Rule

#: Keys of torch's param groups that are no hyperparameters: they choose an implementation, or what a step may do.
SWITCHES = ("foreach", "fused", "capturable", "differentiable")
#: Keys by which one of torch's classes tells another what it is.
MARKS = ("decoupled_weight_decay",)
#: States of torch's classes that steps of ours do not know, by class. Taken along, they would be of long ago.
UNKNOWN = {"LBFGS": frozenset({"n_iter", "old_dirs", "old_stps", "ro", "al"})}


def undecorated(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a method of ``Optimizer`` without the decorator that imports Dynamo (seconds) on the first call."""
    return getattr(function, "__wrapped__", function)


@dataclass(frozen=True)
class Counterpart:
    """What is known of the class in ``torch.optim``; nothing of all this if there is none.

    Attributes:
        switches: Its switches, each with its default.
        marks: Keys of its param groups that always have one value, with that.
        positional: Names of its arguments after ``params``, in the order in which they may be given without a name.
        early: Whether its states are there before the first step.
        unknown: Keys of its states that are not kept.
    """

    switches: Mapping[str, Any] = field(default_factory=dict)
    marks: Mapping[str, Any] = field(default_factory=dict)
    positional: tuple[str, ...] | None = None
    early: bool = False
    unknown: frozenset[str] = frozenset()

    @classmethod
    def of(cls, rule: Rule) -> Counterpart:
        """Return what there is to know for a rule."""
        package, _, name = (rule.reference or "").rpartition(".")
        other = getattr(torch.optim, name, None) if package == "torch.optim" and name == rule.name else None
        if not (isinstance(other, type) and issubclass(other, Optimizer)):
            return cls()
        # A small one is made, as its class is all that tells: constructors differ from version to version.
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
        """The keys that param groups have besides hyperparameters, with their usual values."""
        return {**self.switches, **self.marks}
