"""Calls of a rule's own functions, read with the values they are called with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from optlang.language.checking.expressions import Expressions
from optlang.language.checking.values import MISTAKE, Sort, Uses, Value, combine, merge
from optlang.language.tree import (
    Assign,
    Bool,
    Call,
    Expr,
    If,
    Infinity,
    Member,
    Name,
    Nothing,
    Number,
    Return,
    Stmt,
    Text,
)
from optlang.language.walk import body_of

ATOMS = (Number, Infinity, Text, Bool, Nothing, Name, Member)
Results = tuple[Value, ...]


class Inliner(Expressions):
    """Reads functions; the statements of a rule are read by its subclass."""

    def assigned(self, node: Assign) -> Value:
        """Return the value that an assignment to one name gives it."""
        if node.op == "=":
            return self.value(node.value)
        target = node.targets[0]
        before = self.number(target)
        return combine((before, self.number(node.value)))

    def results(self, node: Assign) -> Results:
        """Return the values that an assignment gives to several names."""
        call = node.value
        if isinstance(call, Call) and isinstance(call.function, Name) and call.function.name in self.scope.functions:
            results = self.call_function(call)
            if len(results) == len(node.targets):
                return results
        return (MISTAKE,) * len(node.targets)

    def call_function(self, node: Call) -> Results:
        """Read a function of the rule with the values it is called with."""
        assert isinstance(node.function, Name)
        function = self.scope.functions[node.function.name]
        given = [a.value for a in node.arguments if a.name is None]
        named = {a.name: a.value for a in node.arguments if a.name is not None}
        inner: dict[str, Value] = {}
        for i, parameter in enumerate(function.parameters):
            name = parameter.name.name
            argument = given[i] if i < len(given) else named.get(name)
            if argument is not None:
                inner[name] = _bound(argument, self.value(argument))
            elif parameter.default is not None:
                caller, self.frame = self.frame, None
                inner[name] = self.value(parameter.default)
                self.frame = caller
            else:
                inner[name] = MISTAKE
        caller, self.frame = self.frame, inner
        results = self.function_block(body_of(function))
        self.frame = caller
        return results if results is not None else (MISTAKE,)

    def function_block(self, body: Sequence[Stmt]) -> Results | None:
        """Read statements of a function; returns its results if it returns."""
        assert self.frame is not None
        for i, statement in enumerate(body):
            match statement:
                case Return(values=values):
                    return tuple(self.returned(v) for v in values)
                case Assign(targets=(target,)):
                    self.frame[target.name] = _bound(statement.value, self.assigned(statement))
                case Assign(targets=targets):
                    for target, value in zip(targets, self.results(statement), strict=True):
                        self.frame[target.name] = value
                case If(branches=branches, other=other):
                    results = self.function_if(branches, other or (), body[i + 1 :])
                    if results is not None:
                        return results
                case _:
                    pass
        return None

    def returned(self, expr: Expr) -> Value:
        """Return the value of one result of a function."""
        return _bound(expr, self.value(expr))

    def function_if(
        self,
        branches: Sequence[tuple[Expr, tuple[Stmt, ...]]],
        other: tuple[Stmt, ...],
        following: Sequence[Stmt],
    ) -> Results | None:
        """Read an ``if`` of a function; ``following`` are the statements behind it."""
        assert self.frame is not None
        if not branches:
            return self.function_block(other)
        (condition, body), *rest = branches
        held = self.condition(condition)
        answer = self.decide(condition, held)
        if answer is not None:
            return self.function_block(body) if answer else self.function_if(rest, other, following)
        before = dict(self.frame)
        ours = self.function_block(body)
        if ours is None:
            after_ours = self.frame
            theirs, self.frame = None, before.copy()
            theirs = self.function_if(rest, other, following)
            if theirs is None:
                self.frame = meet(after_ours, self.frame, held)
                return None
            self.frame = after_ours
            ours = self.function_block(following)
        else:
            self.frame = before
            theirs = self.function_if(rest, other, following) or self.function_block(following)
        if ours is None or theirs is None or len(ours) != len(theirs):
            return ours or theirs
        return tuple(merge((a, b), held) for a, b in zip(ours, theirs, strict=True))


def _bound(expr: Expr, value: Value) -> Value:
    """Return what is known of a value under a new name: numbers that are computed choose no variant."""
    if value.literal or value.sort is not Sort.NUMBER or isinstance(expr, ATOMS):
        return value
    return replace(value, uses=value.uses | Uses.LOCAL)


def meet(a: dict[str, Value], b: dict[str, Value], condition: Value) -> dict[str, Value]:
    """Return what is known of names after two branches."""
    met: dict[str, Value] = {}
    for name in (*a, *(name for name in b if name not in a)):
        one, two = a.get(name), b.get(name)
        if one is not None and two is not None:
            met[name] = one if one is two else merge((one, two), condition)
        else:
            known = one if one is not None else two
            assert known is not None
            met[name] = replace(merge((known,), condition), missing=True)
    return met
