"""What programs read and write: names that a rule gives, and records for what the compiler adds.

A text is a name of the rule's own: ``p``, ``g``, ``t``, ``first``, a fact, a hyperparameter or a state (its value
before the step). All else is a record: its class says what it is, and no text is taken apart to find out. What a record
is called in generated Python follows from its text, which only :func:`text` makes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, assert_never

from optlang.functions.table import BUILTINS
from optlang.identity import Count, DimensionSize, GivenName, GroupKey, NamedPoint, Site


class _Named:
    """What all records here have in common."""

    def __str__(self) -> str:
        return text(self)  # type: ignore[arg-type]  # it is one of those below


@dataclass(frozen=True)
class New(_Named):
    """The value of a state of the group, or of the whole optimizer, after its update."""

    state: str


@dataclass(frozen=True)
class _OfSite(_Named):
    """What belongs to a call of the rule's, or to what several calls have in common."""

    site: Site | NamedPoint


class Total(_OfSite):
    """A sum over the whole model; as what a program writes, one tensor's part of it."""


class Random(_OfSite):
    """Random numbers, shaped like p or of a shape of their own."""


@dataclass(frozen=True)
class Handed(_Named):
    """What one pass leaves for another."""

    value: str


# What the closure is called for ---------------------------------------------------------------------------------


class EvaluationPoint(_OfSite):
    """Where the loss and its gradients are asked for."""


class Loss(_OfSite):
    """The loss at a point."""


class Gradient(_OfSite):
    """The gradient of the loss at a point."""


class Direction(_OfSite):
    """What the Hessian is to be multiplied with."""


class HessianProduct(_OfSite):
    """The product of the Hessian with a direction."""


@dataclass(frozen=True)
class LineSearch:
    """A search along a line, by the function that is called for it."""

    method: str
    site: Site | NamedPoint

    @property
    def options(self) -> tuple[SearchOption, ...]:
        """The numbers that it goes by."""
        return tuple(SearchOption(self, i) for i in range(len(BUILTINS[self.method].parameters) - 1))


@dataclass(frozen=True)
class _OfSearch(_Named):
    """What belongs to a search along a line."""

    search: LineSearch


class SearchDirection(_OfSearch):
    """The direction of a search."""


@dataclass(frozen=True)
class SearchOption(_OfSearch):
    """One of the numbers that a search goes by."""

    index: int


class SearchLength(_OfSearch):
    """How far a search has gone."""


class Progress(_Named, Enum):
    """What is known when a step starts: values are what builtins call them."""

    LOSS = "now"
    ITERATION = "iteration"
    EVALUATIONS = "evaluations"


class IterationControl(_Named, Enum):
    """The numbers that `iterate` goes by: how many steps there are at most, and whether this one is not made."""

    MOST = "most"
    STOP = "now"


#: What the closure is called for: tensors that have to be there for every parameter.
Asked = EvaluationPoint | Direction | SearchDirection
#: What waits for every tensor to have given its part of it: numbers, and what the closure is called for.
NumberContribution = Total | SearchOption | IterationControl
Contribution = NumberContribution | Asked
#: The numbers and tensors that arrive in the middle of a step.
LateNumber = Total | Loss | SearchLength | Progress
LateTensor = Gradient | HessianProduct
Late = LateNumber | LateTensor
#: The tensors that are exchanged with the closure.
Exchanged = Asked | LateTensor
#: The tensors that stages hand on: what else they write are parameters, states and parts of totals.
HandedOn = Handed | Random | Exchanged
#: The name of anything that programs read and write.
ValueName = GivenName | New | NumberContribution | LateNumber | HandedOn


def text(name: ValueName) -> str:
    """Return a name as text: different names have different texts."""
    match name:
        case str():
            return name
        case GroupKey() | Count() | DimensionSize():
            return str(name)
        case New(state):
            return f"{state}'"
        case Total(site):
            return f"total {site}"
        case Random(site):
            return f"noise {site}"
        case Handed(value):
            return f"carry {value}"
        case EvaluationPoint(site):
            return f"point {site}"
        case Loss(site):
            return f"loss {site}"
        case Gradient(site):
            return f"grad {site}"
        case Direction(site):
            return f"along {site}"
        case HessianProduct(site):
            return f"curved {site}"
        case SearchDirection(search):
            return f"line {search.method} {search.site}"
        case SearchOption(search, index):
            return f"term {index} {search.method} {search.site}"
        case SearchLength(search):
            return f"length {search.method} {search.site}"
        case Progress():
            return f"loss {name.value}"
        case IterationControl():
            return f"stop {name.value}"
        case _:
            assert_never(name)


def as_values(values: Mapping[str, Any] | Mapping[GivenName, Any]) -> dict[ValueName, Any]:
    """Return values that are given before a step as values by any names; it is the same mapping, not to be added to."""
    return values  # type: ignore[return-value]  # keys are invariant, as somebody might


def waits_for(late: Late) -> frozenset[Contribution]:
    """Return what has to be complete before a late input is there."""
    match late:
        case Progress():
            return frozenset()
        case Total():
            return frozenset((late,))
        case Loss(site) | Gradient(site):
            return frozenset((EvaluationPoint(site),))
        case HessianProduct(site):
            return frozenset((Direction(site),))
        case SearchLength(search):
            return frozenset((SearchDirection(search), *search.options))
        case _:
            assert_never(late)
