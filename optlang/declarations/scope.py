"""The names of a rule: what each denotes, and where it is declared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from optlang.declarations.findings import Findings
from optlang.functions.table import BUILTINS, FACT_NAMES, HISTORY, PROXIMAL, TENSOR_NAMES, TIME, TIME_NAMES
from optlang.rule import Hyper
from optlang.source import Span
from optlang.syntax.tree import Def, Expr, StateItem, StateScope

#: Functions whose names a rule may reuse for values, because they are natural names of hyperparameters.
FREE_FUNCTIONS = frozenset(row.name for row in BUILTINS.values() if row.free or row.group in (TIME, PROXIMAL, HISTORY))

#: Predefined names, with their meaning.
FIXED: dict[str, str] = {
    **dict.fromkeys(TENSOR_NAMES, "a tensor"),
    **dict.fromkeys(FACT_NAMES, "part of the tensor's shape"),
    **dict.fromkeys(TIME_NAMES, "the step count"),
    "p": "the parameter",
    "g": "the gradient",
    "first": "whether this is the first step",
    "group": "the parameter group",
    "loss": "the value of the loss",
}


@dataclass(frozen=True)
class DeclaredState:
    """A declared state: its item, its scope, and the condition under which it exists."""

    item: StateItem
    scope: StateScope
    when: Expr | None

    @property
    def name(self) -> str:
        """Its canonical name."""
        return self.item.name.name

    @property
    def key(self) -> str:
        """Its key in ``state_dict``."""
        return self.item.key or self.name


@dataclass
class Scope:
    """All names of a rule, filled in while its declarations are checked.

    Attributes:
        findings: Collects mistakes.
        hypers: Hyperparameters by canonical name.
        tuples: Parts of the hyperparameters that are tuples, by the tuple's name.
        states: States by canonical name.
        histories: The states that are histories.
        functions: The rule's own functions by canonical name.
        locals: First assignment of every other name.
        static: Values of the locals that are known before the first step, in an order in which they can be computed.
        places: The span of each declaration, by name.
        excused: Names that are not reported, because they belong to a rejected construct or have been reported already.
        flat: Whether p is the flattened vector of a param group.
        blind: Whether a rejected construct (``use``) may define any name, so that unknown names are not reported.
    """

    findings: Findings
    hypers: dict[str, Hyper] = field(default_factory=dict)
    tuples: dict[str, tuple[str, ...]] = field(default_factory=dict)
    states: dict[str, DeclaredState] = field(default_factory=dict)
    histories: frozenset[str] = frozenset()
    functions: dict[str, Def] = field(default_factory=dict)
    locals: dict[str, Span] = field(default_factory=dict)
    static: dict[str, Expr] = field(default_factory=dict)
    places: dict[str, Span] = field(default_factory=dict)
    excused: set[str] = field(default_factory=set)
    blind: bool = False
    flat: bool = False

    def values(self) -> list[str]:
        """Return the names of all values in the rule, with the rule's own first."""
        return [*self.hypers, *self.states, *self.locals, *TENSOR_NAMES, *TIME_NAMES, *FACT_NAMES]

    def callables(self) -> list[str]:
        """Return the names that can be called."""
        return [*self.functions, *BUILTINS]

    def role(self, name: str) -> str | None:
        """Return a noun phrase for what a name is, or None if it is unknown."""
        roles: tuple[tuple[Mapping[str, object], str], ...] = (
            (self.hypers, "a hyperparameter"),
            (self.tuples, "a tuple of hyperparameters"),
            (self.states, "a state"),
            (self.functions, "a function of this rule"),
            (self.locals, "a local variable"),
        )
        for table, phrase in roles:
            if name in table:
                return phrase
        if name in FIXED:
            return FIXED[name]
        return "a function" if name in BUILTINS else None

    def declare(self, name: str, text: str, span: Span) -> bool:
        """Record that a declaration defines ``name``; report and return False if it may not."""
        if name in self.places:
            self.findings.add(
                "E205",
                f"`{text}` is declared twice",
                span,
                label="second declaration",
                help="remove one of the two, or give it another name",
                related=(("first declared here", self.places[name]),),
            )
            return False
        if not self.free(name, text, span):
            self.excused.add(name)
            return False
        self.places[name] = span
        return True

    def free(self, name: str, text: str, span: Span) -> bool:
        """Return whether a rule may define ``name``; report it if not."""
        if name in FIXED:
            meaning = FIXED[name]
            what = f"`{text}` already means something: {meaning}"
        elif name in BUILTINS and name not in FREE_FUNCTIONS:
            what = f"`{text}` is the name of a function of the language"
        else:
            return True
        self.findings.add("E206", what, span, label="this name is taken", help="choose another name")
        return False
