"""Finds the hyperparameters that are sizes or counts, which get integers as samples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from optlang.core.definitions import body
from optlang.declarations.scope import Scope
from optlang.functions.table import BUILTINS, EMPTY, MAKERS, RANDOMS
from optlang.syntax.tree import Assign, Call, Expr, Index, Name, Repeat, Slice, Stmt
from optlang.syntax.walk import body_of, expressions, own_expressions, statements


def whole_numbers(scope: Scope, blocks: Iterable[Sequence[Stmt]]) -> set[str]:
    """Return the hyperparameters that determine sizes, counts and ends of slices."""
    several = tuple(blocks)
    counted: dict[str, set[str]] = {}  # parameters that are counts, by function
    for name, function in scope.functions.items():
        counted[name] = _names(body_of(function), counted, scope)
    initial = tuple(s.item.initial for s in scope.states.values() if s.item.initial is not None)
    found: set[str] = set()
    for block in several:
        found |= _names(block, counted, scope)
    for expr in initial:
        found |= set(_in_expression(expr, counted, scope))
    while True:
        more = {n for name in found if name in scope.static for n in _read(scope.static[name])} - found
        if not more:
            return {name for name in found if name in scope.hypers}
        found |= more


def _names(block: Sequence[Stmt], counted: dict[str, set[str]], scope: Scope) -> set[str]:
    """Return the names in a block that determine sizes and counts, including indirectly through locals."""
    found: set[str] = set()
    values: dict[str, list[Expr]] = {}
    for statement in statements(block):
        if isinstance(statement, Repeat):
            found |= set(_read(statement.count))
        if isinstance(statement, Assign):
            for target in statement.targets:
                values.setdefault(target.name, []).append(statement.value)
        for expr in own_expressions(statement):
            found |= set(_in_expression(expr, counted, scope))
    fixed = {"p", "g", *scope.states}
    while True:
        origins = {n for name in found - fixed for value in values.get(name, ()) for n in _read(value)}
        if origins <= found:
            return found
        found |= origins


def _in_expression(expr: Expr, counted: dict[str, set[str]], scope: Scope) -> Iterator[str]:
    """Yield the names in an expression that determine sizes."""
    for node in expressions(expr):
        match node:
            case Index(items=items):
                for item in items:
                    ends = (item.start, item.stop) if isinstance(item, Slice) else (item,)
                    yield from (name for end in ends if end is not None for name in _read(end))
            case Call(function=Name(name=name)) if name in scope.functions:
                parameters = [p.name.name for p in scope.functions[name].parameters]
                yield from _of_arguments(node, parameters, counted.get(name, set()))
            case Call(function=Name(name=name)) if name in (*MAKERS, *RANDOMS, EMPTY):
                yield from (n for argument in node.arguments for n in _read(argument.value))
            case Call(function=Name(name=name)) if name in BUILTINS:
                parameters = [parameter for parameter, _ in BUILTINS[name].parameters]
                wanted = {parameters[1]} if BUILTINS[name].sized else _names(body(name) or (), counted, scope)
                yield from _of_arguments(node, parameters, wanted)
            case _:
                pass


def _of_arguments(node: Call, parameters: Sequence[str], wanted: set[str]) -> Iterator[str]:
    """Yield the names in the arguments for the given parameters."""
    for i, argument in enumerate(node.arguments):
        name = argument.name or (parameters[i] if i < len(parameters) else "")
        if name in wanted:
            yield from _read(argument.value)


def _read(expr: Expr) -> Iterator[str]:
    """Yield the names that a number depends on."""
    return (node.name for node in expressions(expr) if isinstance(node, Name))
