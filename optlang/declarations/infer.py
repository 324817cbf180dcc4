"""Role inference for rules without declarations, and the description of roles that ``optlang check`` prints."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from optlang.core.texts import text_of
from optlang.declarations.scope import FIXED
from optlang.functions.table import BUILTINS
from optlang.kinds import Level
from optlang.rule import Hyper, HyperType, OneOf, Rule, State, Value
from optlang.syntax.tree import (
    Assign,
    Call,
    Def,
    Every,
    Expr,
    Flat,
    For,
    History,
    HyperDecl,
    If,
    Iterate,
    Name,
    On,
    OptimizerDecl,
    Repeat,
    Route,
    Sparse,
    StateDecl,
    StateScope,
    Stmt,
    Tree,
)
from optlang.syntax.walk import assigned, body_of, called, expressions, names_read, own_expressions


@dataclass(frozen=True)
class Roles:
    """The roles of the names in an undeclared rule, each at its first use, in that order."""

    states: tuple[Name, ...]
    hypers: tuple[Name, ...]


def declares(tree: Tree) -> bool:
    """Return whether a rule declares anything, in which case it must declare everything."""
    return any(
        isinstance(item, (OptimizerDecl, HyperDecl, StateDecl, History, Flat, Sparse, Iterate, On, Route))
        for item in tree.items
    )


def infer(functions: dict[str, Def], body: Sequence[Stmt]) -> Roles:
    """Infer the roles of the names in a rule without declarations.

    A name that is assigned somewhere is a state if some path reads it before assigning it. A name that is never
    assigned is a hyperparameter.
    """
    taken = {*FIXED, *BUILTINS, *functions}
    targets = {name.name for name in assigned(body)} - taken
    states: dict[str, Name] = {}
    reads = _Reads(functions)
    _flow(body, set(), targets, states, reads)
    hypers: dict[str, Name] = {}
    for name in sorted(_all_reads(functions, body), key=lambda n: n.span):
        if name.name not in targets and name.name not in taken:
            hypers.setdefault(name.name, name)
    return Roles(tuple(states.values()), tuple(hypers.values()))


class _Reads:
    """The names that an expression reads, including reads inside called functions."""

    def __init__(self, functions: dict[str, Def]) -> None:
        self.functions = functions
        self.inside: dict[str, tuple[Name, ...]] = {}

    def of(self, expr: Expr) -> Iterable[Name]:
        for node in expressions(expr):
            if isinstance(node, Name):
                yield node
            elif isinstance(node, Call) and isinstance(node.function, Name):
                yield from self.of_function(node.function.name)

    def of_function(self, name: str) -> tuple[Name, ...]:
        if name not in self.functions:
            return ()
        if name not in self.inside:
            self.inside[name] = ()  # breaks recursion (which is reported elsewhere)
            function = self.functions[name]
            inner = [n for callee in called(body_of(function)) for n in self.of_function(callee.name)]
            self.inside[name] = (*_free(function), *inner)
        return self.inside[name]


def _free(function: Def) -> tuple[Name, ...]:
    """Return the rule's names that a function reads directly."""
    body = body_of(function)
    own = {p.name.name for p in function.parameters} | {n.name for n in assigned(body)}
    return tuple(name for name in names_read(body) if name.name not in own)


def _all_reads(functions: dict[str, Def], body: Sequence[Stmt]) -> Iterable[Name]:
    yield from names_read(body)
    for function in functions.values():
        yield from _free(function)


def _flow(block: Sequence[Stmt], seen: set[str], targets: set[str], states: dict[str, Name], reads: _Reads) -> set[str]:
    """Walk a block given the names assigned on some path to it (``seen``); return the names assigned after it."""

    def read(name: Name) -> None:
        if name.name in targets and name.name not in seen:
            states.setdefault(name.name, name)

    for statement in block:
        for expr in own_expressions(statement):
            for name in reads.of(expr):
                read(name)
        if isinstance(statement, Assign):
            if statement.op != "=":
                for name in statement.targets:
                    read(name)
            seen = seen | {name.name for name in statement.targets}
        elif isinstance(statement, If):
            bodies = [body for _, body in statement.branches] + [statement.other or ()]
            seen = set().union(*(_flow(body, seen, targets, states, reads) for body in bodies))
        elif isinstance(statement, Repeat | For | Every):
            own = {name.name for name in statement.names} if isinstance(statement, For) else set()
            seen = seen | _flow(statement.body, seen | own, targets, states, reads)
    return seen


# Descriptions -----------------------------------------------------------------------------------------------


def describe(rule: Rule) -> list[str]:
    """Return a sentence for each name of a rule, as ``optlang check`` prints it."""
    return [*_describe_states(rule), *_describe_hypers(rule)]


def _describe_states(rule: Rule) -> list[str]:
    grouped: dict[str, list[str]] = {}
    for state in rule.states:
        phrase = _state_phrase(rule, state)
        if state.key != state.name:
            phrase += f", kept under the key `{state.key}`"
        grouped.setdefault(phrase, []).append(state.name)
    return [f"{_names(names)}: state, {phrase}" for phrase, names in grouped.items()]


def _state_phrase(rule: Rule, state: State) -> str:
    initial = text_of(rule.tree, state.initial) if state.initial is not None else None
    if state.scope is StateScope.GROUP:
        phrase = f"one number for each parameter group, starts at {initial or 0}"
    elif state.scope is StateScope.SHARED:
        phrase = f"one number for the whole optimizer, starts at {initial or 0}"
    elif state.kind.level is Level.MATRIX:
        phrase = f"a tensor of another shape, starts at {initial}"
    elif state.kind.level is Level.ELEMENT:
        phrase = f"shaped like p, starts at {initial}" if initial else "zeros like p"
    elif state.kind.level is Level.SCALAR:
        phrase = f"one number for each tensor, starts at {initial or 0}"
    else:
        phrase = f"{state.kind}, starts at {initial}"
    return f"{phrase}, only when {text_of(rule.tree, state.when)}" if state.when is not None else phrase


def _describe_hypers(rule: Rule) -> list[str]:
    lines = []
    required = [h.name for h in rule.hypers if h.required and h.part is None and h.domain is None]
    if required:
        word = "hyperparameter" if len(required) == 1 else "hyperparameters"
        lines.append(f"{_names(required)}: {word}, required")
    for key, hypers in rule.keys.items():
        if key in required:
            continue
        if hypers[0].part is None:
            lines.append(f"`{key}`: hyperparameter, {_hyper_phrase(hypers[0])}")
        else:
            inner = "; ".join(f"`{h.name}` {_hyper_phrase(h)}" for h in hypers)
            lines.append(f"`{key}`: hyperparameters in a tuple: {inner}")
    return lines


def _hyper_phrase(hyper: Hyper) -> str:
    phrase = "required" if hyper.required else f"default {_value(hyper.default)}"
    if isinstance(hyper.domain, OneOf) or hyper.domain is not None:
        phrase += f", {hyper.domain.text}"
    elif hyper.type is HyperType.FLAG:
        phrase += ", true or false"
    return phrase


def _names(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _value(value: Value) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else f"{value:g}"
