"""The checked rule: every name has its role, every default its value, every state its kind.

This is what the checker hands to the compiler. Expressions are still tree nodes; nothing here knows SymPy or torch.
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
#: What is known before a step.
Values = Mapping[GivenName, Value]
Result = TypeVar("Result")


class Unasked(Enum):
    """In the place of an answer where it is known that a value is a number, and not asked which."""

    NUMBER = "a number"


#: What a static question of a rule is answered by.
Answer = Value | Unasked


class HyperType(Enum):
    """What a hyperparameter may hold."""

    NUMBER = "number"  # host value: changing it never recompiles
    OPTIONAL = "number or none"  # whether it is none is static, its number is a host value
    FLAG = "true or false"  # static
    TEXT = "string"  # static
    OPTIONAL_TEXT = "string or none"  # static


@dataclass(frozen=True)
class Range:
    """The interval a number must lie in; ``text`` is as written."""

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
    """The set a value must be in; ``text`` is as written."""

    values: tuple[Value, ...]
    text: str

    def __contains__(self, value: Value) -> bool:
        return any(value == v and isinstance(value, bool) == isinstance(v, bool) for v in self.values)


@dataclass(frozen=True)
class Hyper:
    """A hyperparameter as the rule's formulas see it.

    Attributes:
        name: Canonical name in the formulas.
        key: Param-group key: the name itself, or the name of the tuple that holds it (``betas``).
        part: Position in that tuple; None when the key holds this value alone.
        type: What it may hold.
        default: Its default; meaningless when ``required``.
        required: Whether the user must pass it.
        domain: Where its value must lie, if declared.
        doc: What it is, if the rule says so.
        derived: Its default, where that follows from other hyperparameters; ``default`` is that of their defaults.
        whole: Whether its default is written as a whole number (``5``, but not ``5.0`` or ``1e3``).
        count: Whether it says how many: a size, or how often something is repeated.
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
        """The default as Python has it: an int if it is written as one."""
        return int(self.default) if self.whole and isinstance(self.default, float) else self.default


@dataclass(frozen=True)
class State:
    """A state of the rule.

    Attributes:
        name: Canonical name in the formulas.
        key: Its key in ``optimizer.state[p]`` (or in the param group).
        scope: What it belongs to.
        kind: ``element``, ``reduced``, ``matrix`` or ``scalar`` (one number per tensor; whether that number can live
            on the host is found when a variant is lowered); ``host`` for group and shared state. The shape of a matrix
            depends on the tensor: that of the sample last looked at means nothing.
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
    """How a rule asks for a state to be kept, or for the rounding of the parameter.

    Attributes:
        name: The state, or ``p``.
        key: The key of the state in ``optimizer.state[p]``, or of what is kept beside the parameter.
        format: The format.
        when: For which tensors, None for all that the format is for.
    """

    name: str
    key: str
    format: Format
    when: Expr | None
    span: Span


@dataclass(frozen=True)
class Requirement:
    """A condition across hyperparameters and what to say when it does not hold.

    ``of_tensors`` says that it reads facts of a tensor (``ndim``), so that every parameter is held to it.
    """

    condition: Expr
    message: str
    span: Span
    of_tensors: bool = False


@dataclass(frozen=True)
class Rule:
    """A checked rule.

    Attributes:
        name: Class name (``optimizer NAME``), or None for a rule that declares none.
        doc: The docstring, or None.
        reference: What ``# reference:`` names (``torch.optim.AdamW``), or None.
        hypers: Hyperparameters in the order of their declaration (for an inferred rule, of first use).
        requirements: Conditions across hyperparameters.
        states: States in the order of their declaration.
        functions: User's functions by canonical name.
        body: Statements, in textual order, without declarations.
        events: Statements of ``on eval`` and ``on train``, by event.
        routes: For a rule that sends tensors to other rules, which and when; it has nothing else.
        flat: Whether p is all parameters of a param group as one vector.
        sparse: Whether gradients are sparse, and rows that they do not touch stay.
        inferred: Whether roles were inferred (the rule declares nothing).
        stored: How states are kept, and the parameter is rounded, where nothing else is asked for.
        tree: The syntax tree it was checked from.
        remembered: What functions of :func:`remembering` have found out about it.
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
    """Make a function of a rule work out its result once for each rule."""

    @wraps(function)
    def remembered(rule: Rule) -> Result:
        if function not in rule.remembered:
            rule.remembered[function] = function(rule)
        result: Result = rule.remembered[function]
        return result

    return remembered
