"""The checked rule: names have roles, defaults have values, states have kinds.

The checker passes it to the compiler. Expressions are still syntax trees; nothing here depends on SymPy or torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import wraps
from typing import Any, TypeVar

from optlang.identity import GivenName
from optlang.kinds import Kind
from optlang.source import Span
from optlang.storage import Format
from optlang.syntax.tree import Def, Expr, Route, StateScope, Stmt, Tree

Value = float | bool | str | None
#: The values known before a step.
Values = Mapping[GivenName, Value]
Result = TypeVar("Result")


class Unasked(Enum):
    """Replaces an answer where only the type of a value is asked for: it is a number."""

    NUMBER = "a number"


#: The answer to a static question.
Answer = Value | Unasked


class HyperType(Enum):
    """The type of a hyperparameter."""

    NUMBER = "number"  # host value: changing it never recompiles
    OPTIONAL = "number or none"  # whether it is none is static, its number is a host value
    FLAG = "true or false"  # static
    TEXT = "string"  # static
    OPTIONAL_TEXT = "string or none"  # static


@dataclass(frozen=True)
class Range:
    """The interval a number must be in; ``text`` is the source text."""

    low: float
    high: float
    low_closed: bool
    high_closed: bool
    text: str

    def __contains__(self, value: float) -> bool:
        above = value >= self.low if self.low_closed else value > self.low
        below = value <= self.high if self.high_closed else value < self.high
        return above and below


@dataclass(frozen=True)
class OneOf:
    """The set a value must be in; ``text`` is the source text."""

    values: tuple[Value, ...]
    text: str

    def __contains__(self, value: Value) -> bool:
        return any(value == v and isinstance(value, bool) == isinstance(v, bool) for v in self.values)


@dataclass(frozen=True)
class Hyper:
    """A hyperparameter of a rule.

    Attributes:
        name: Canonical name in the formulas.
        key: Its key in the param group: its name, or the name of the tuple that contains it (``betas``).
        part: Its index in that tuple; None if it is not part of a tuple.
        type: Its type.
        default: Its default; meaningless when ``required``.
        required: Whether it has no default, so that the user must pass it.
        domain: The range of its values, if declared.
        doc: Its description, if declared.
        derived: Its default as an expression over other hyperparameters; ``default`` is its value at their defaults.
        whole: Whether its default is written as an integer (``5``, but not ``5.0`` or ``1e3``).
        count: Whether it is a size or a repeat count.
    """

    name: str
    key: str
    part: int | None
    type: HyperType
    default: Value
    required: bool
    domain: Range | OneOf | None
    doc: str | None
    span: Span
    derived: Expr | None = None
    whole: bool = False
    count: bool = False

    @property
    def as_written(self) -> Value:
        """The default as a Python value: an int if it is written as one."""
        return int(self.default) if self.whole and isinstance(self.default, float) else self.default


@dataclass(frozen=True)
class State:
    """A state of the rule.

    Attributes:
        name: Canonical name in the formulas.
        key: Its key in ``optimizer.state[p]`` (or in the param group).
        scope: Its scope.
        kind: ``element``, ``reduced``, ``matrix`` or ``scalar`` (one number per tensor; lowering decides whether it is
            kept on the host) for tensors' states; ``host`` for group and shared states. The shape of a matrix kind is
            that of some sample and has no meaning here.
        initial: Its initial value, None for zeros.
        when: The static condition under which it exists, None for always.
    """

    name: str
    key: str
    scope: StateScope
    kind: Kind
    initial: Expr | None
    when: Expr | None
    span: Span


@dataclass(frozen=True)
class Stored:
    """The declared storage format of a state, or the rounding of the parameter.

    Attributes:
        name: The state, or ``p``.
        key: The key of the state in ``optimizer.state[p]``, or of the tensor kept along with the parameter.
        format: The format.
        when: The condition on tensors; None for all tensors that the format applies to.
    """

    name: str
    key: str
    format: Format
    when: Expr | None
    span: Span


@dataclass(frozen=True)
class Requirement:
    """A condition on hyperparameters, with a message for when it does not hold.

    ``of_tensors`` means that it reads facts of a tensor (``ndim``), so that it is checked for every parameter.
    """

    condition: Expr
    message: str
    span: Span
    of_tensors: bool = False


@dataclass(frozen=True)
class Rule:
    """A checked rule.

    Attributes:
        name: Class name (``optimizer NAME``); None if not declared.
        doc: The docstring, or None.
        reference: The name given by ``# reference:`` (``torch.optim.AdamW``), or None.
        hypers: Hyperparameters in order of declaration (for an inferred rule, of first use).
        requirements: Conditions on hyperparameters and tensors.
        states: States in order of declaration.
        functions: The rule's functions by canonical name.
        body: Statements, in source order, without declarations.
        events: Statements of ``on eval`` and ``on train``, by event.
        routes: For a rule with routes, which has nothing else: the routes, in order.
        flat: Whether p is the flattened vector of a param group.
        sparse: Whether gradients are sparse, and rows they do not touch are unchanged.
        inferred: Whether roles were inferred (the rule declares nothing).
        stored: The declared storage formats, which apply unless the user passes others.
        tree: The syntax tree it was checked from.
        remembered: Cached results of functions decorated with :func:`remembering`.
    """

    name: str | None
    doc: str | None
    reference: str | None
    hypers: tuple[Hyper, ...]
    requirements: tuple[Requirement, ...]
    states: tuple[State, ...]
    functions: Mapping[str, Def]
    body: tuple[Stmt, ...]
    inferred: bool
    tree: Tree
    events: Mapping[str, tuple[Stmt, ...]] = field(default_factory=dict)
    routes: tuple[Route, ...] = ()
    flat: bool = False
    sparse: bool = False
    stored: tuple[Stored, ...] = ()
    remembered: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def keys(self) -> dict[str, tuple[Hyper, ...]]:
        """Param-group keys in order, each with its hyperparameters (several for a tuple)."""
        grouped: dict[str, list[Hyper]] = {}
        for hyper in self.hypers:
            grouped.setdefault(hyper.key, []).append(hyper)
        return {key: tuple(items) for key, items in grouped.items()}


def remembering(function: Callable[[Rule], Result]) -> Callable[[Rule], Result]:
    """Cache the result of a function of a rule on the rule."""

    @wraps(function)
    def remembered(rule: Rule) -> Result:
        if function not in rule.remembered:
            rule.remembered[function] = function(rule)
        result: Result = rule.remembered[function]
        return result

    return remembered
