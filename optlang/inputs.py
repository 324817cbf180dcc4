"""The inputs and outputs of programs: names in the rule, and records for what the compiler adds.

A string is a name in the rule: ``p``, ``g``, ``t``, ``first``, a fact, a hyperparameter or a state (its value before
the step). Everything else is a record, identified by its class; no string is ever parsed. The name of a record in
generated Python follows from its text, which only :func:`text` produces.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, assert_never

from optlang.functions.table import BUILTINS
from optlang.identity import Count, DimensionSize, GivenName, GroupKey, NamedPoint, Site


class _Named:
    """Base class of the records."""

    def __str__(self) -> str:
        return text(self)  # type: ignore[arg-type]  # it is one of those below


@dataclass(frozen=True)
class New(_Named):
    """The value of a group or shared state after its update."""

    state: str


@dataclass(frozen=True)
class _OfSite(_Named):
    """Base class of records that belong to a call, or to several calls at one point."""

    site: Site | NamedPoint


class Total(_OfSite):
    """A sum over the whole model; as an output, one tensor's contribution to it."""


class Random(_OfSite):
    """Random numbers, shaped like p or with another shape."""


@dataclass(frozen=True)
class Handed(_Named):
    """A value passed from one stage to another."""

    value: str


# Closure evaluations --------------------------------------------------------------------------------------------


class EvaluationPoint(_OfSite):
    """The point where the loss and its gradients are evaluated."""


class Loss(_OfSite):
    """The loss at a point."""


class Gradient(_OfSite):
    """The gradient of the loss at a point."""


class Direction(_OfSite):
    """The direction of a Hessian-vector product."""


class HessianProduct(_OfSite):
    """The product of the Hessian and a direction."""


@dataclass(frozen=True)
class LineSearch:
    """A line search, with the function that performs it."""

    method: str
    site: Site | NamedPoint

    @property
    def options(self) -> tuple[SearchOption, ...]:
        """The numeric options of the search."""
        return tuple(SearchOption(self, i) for i in range(len(BUILTINS[self.method].parameters) - 1))


@dataclass(frozen=True)
class _OfSearch(_Named):
    """Base class of records that belong to a line search."""

    search: LineSearch


class SearchDirection(_OfSearch):
    """The direction of a line search."""


@dataclass(frozen=True)
class SearchOption(_OfSearch):
    """A numeric option of a line search."""

    index: int


class SearchLength(_OfSearch):
    """The step size found by a line search."""


class Progress(_Named, Enum):
    """Values known when a step starts; enum values are the names of the builtins."""

    LOSS = "now"
    ITERATION = "iteration"
    EVALUATIONS = "evaluations"


class IterationControl(_Named, Enum):
    """The numbers that control `iterate`: the maximum number of steps, and whether to stop before this one."""

    MOST = "most"
    STOP = "now"


#: What the closure is evaluated at or along: tensors that every parameter must provide.
Asked = EvaluationPoint | Direction | SearchDirection
#: Outputs to which every tensor contributes: numbers, and the inputs of the closure.
NumberContribution = Total | SearchOption | IterationControl
Contribution = NumberContribution | Asked
#: The numbers and tensors that become available in the middle of a step.
LateNumber = Total | Loss | SearchLength | Progress
LateTensor = Gradient | HessianProduct
Late = LateNumber | LateTensor
#: The tensors exchanged with the closure.
Exchanged = Asked | LateTensor
#: The tensors passed between stages; their other outputs are parameters, states and contributions to totals.
HandedOn = Handed | Random | Exchanged
#: The name of any input or output of a program.
ValueName = GivenName | New | NumberContribution | LateNumber | HandedOn


def text(name: ValueName) -> str:
    """Return the text of a name; different names have different texts."""
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
    """Return the same mapping with a wider key type; it must not be modified."""
    return values  # type: ignore[return-value]  # dict keys are invariant


def waits_for(late: Late) -> frozenset[Contribution]:
    """Return what must be complete before a late input is available."""
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
