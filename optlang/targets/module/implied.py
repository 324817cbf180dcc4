"""Implications between conditions: which checks in a function can no longer fail after others have passed."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from optlang.rule import Value
from optlang.targets._questions import DIMENSIONS, Trace

#: Facts about tensors that are integers.
WHOLE = frozenset({"ndim", "numel", "rows", "cols"})

_OPPOSITE: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.GtE,
    ast.GtE: ast.Lt,
    ast.Gt: ast.LtE,
    ast.LtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
_FUNCTIONS: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
    ast.In: lambda value, those: value in those,
    ast.NotIn: lambda value, those: value not in those,
}


@dataclass(frozen=True)
class _Bounds:
    """The interval of a number; its ends are included unless they are open."""

    low: float = -math.inf
    high: float = math.inf
    low_open: bool = False
    high_open: bool = False

    def with_(self, op: type[ast.cmpop], value: float) -> _Bounds:
        """Return the part of the interval in which a comparison holds."""
        found = self
        if op in (ast.Gt, ast.GtE, ast.Eq) and (value, op is ast.Gt) >= (found.low, found.low_open):
            found = replace(found, low=value, low_open=op is ast.Gt)
        if op in (ast.Lt, ast.LtE, ast.Eq) and (-value, op is ast.Lt) >= (-found.high, found.high_open):
            found = replace(found, high=value, high_open=op is ast.Lt)
        return found

    @property
    def is_empty(self) -> bool:
        """Whether the interval is empty."""
        return self.low > self.high or (self.low == self.high and (self.low_open or self.high_open))


class Known:
    """Conditions that hold at some point of a function, none of whose numbers is NaN.

    Args:
        held: Conditions as Python, each with whether it holds.
    """

    def __init__(self, held: Sequence[tuple[ast.expr, bool]] = ()) -> None:
        self.held = tuple(held)

    @classmethod
    def of(cls, trace: Trace) -> Known:
        """Return the conditions known after some questions have been answered."""
        known = cls()
        for question, answer in trace:
            if question == DIMENSIONS and answer is None:  # any number without a separate path
                continue
            known = known.also(ast.parse(_said(question, answer), mode="eval").body, True)
        return known

    def also(self, test: ast.expr, holds: bool) -> Known:
        """Return the conditions known if, additionally, a condition holds or does not hold."""
        match test:
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return self.also(operand, not holds)
            case ast.BoolOp(op=op, values=values) if isinstance(op, ast.And) is holds:
                known = self
                for value in values:
                    known = known.also(value, holds)
                return known
            case _:
                return Known((*self.held, (test, holds)))

    def truth(self, test: ast.expr) -> bool | None:
        """Return whether a condition holds; None if unknown."""
        match test:
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                inner = self.truth(operand)
                return None if inner is None else not inner
            case ast.BoolOp(op=op, values=values):
                decisive, truths = isinstance(op, ast.Or), [self.truth(value) for value in values]
                if decisive in truths:
                    return decisive
                return None if None in truths else not decisive
            case ast.Compare(left=left, ops=[op], comparators=[right]):
                said = self._said_of(test)
                return self._compared(ast.unparse(left), type(op), right) if said is None else said
            case _:
                return self._said_of(test)

    def _said_of(self, test: ast.expr) -> bool | None:
        text = ast.unparse(test)
        return next((holds for known, holds in self.held if ast.unparse(known) == text), None)

    def _compared(self, left: str, op: type[ast.cmpop], right: ast.expr) -> bool | None:
        """Return whether a comparison holds, given other comparisons of its left side."""
        value = _constant(right)
        bounds, apart = _Bounds(), list[Any]()
        for known, holds in self.held:
            match known:
                case ast.Compare(left=subject, ops=[own], comparators=[bound]) if ast.unparse(subject) == left:
                    kind, other = type(own) if holds else _OPPOSITE[type(own)], _constant(bound)
                case _:
                    continue
            if kind in (ast.Eq, ast.Is) and other != ():
                return _holds(other[0], op, value)
            if kind in (ast.NotEq, ast.IsNot) and other != ():
                apart.append(other)
            if other != () and _is_number(other[0]):
                bounds = bounds.with_(*_whole(left, kind, other[0]))
        if value != () and value in apart and op in (ast.Eq, ast.NotEq, ast.Is, ast.IsNot):
            return op in (ast.NotEq, ast.IsNot)
        if value == () or not _is_number(value[0]) or bounds == _Bounds():
            return None
        if op in (ast.NotEq, ast.Eq):
            return None if not bounds.with_(ast.Eq, value[0]).is_empty else op is ast.NotEq
        if op not in (ast.Lt, ast.LtE, ast.Gt, ast.GtE):
            return None
        if bounds.with_(*_whole(left, op, value[0])).is_empty:
            return False
        return True if bounds.with_(*_whole(left, _OPPOSITE[op], value[0])).is_empty else None


def _said(question: str, answer: Value) -> str:
    """Return the condition that a question has this answer."""
    if isinstance(answer, bool):
        return question if answer else f"not ({question})"
    return f"({question}) is None" if answer is None else f"({question}) == {answer!r}"


def _constant(node: ast.expr) -> tuple[Any, ...]:
    """Return the constant value of a piece of code, in a tuple; an empty tuple if it is not constant."""
    try:
        return (ast.literal_eval(node),)
    except ValueError:
        return ()


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _whole(name: str, op: type[ast.cmpop], value: float) -> tuple[type[ast.cmpop], float]:
    """Return a comparison in normalized form; for integers, ``> 1`` is ``>= 2``."""
    if name in WHOLE and op is ast.Gt:
        return ast.GtE, math.floor(value) + 1
    if name in WHOLE and op is ast.Lt:
        return ast.LtE, math.ceil(value) - 1
    return op, value


def _holds(left: Any, op: type[ast.cmpop], right: tuple[Any, ...]) -> bool | None:
    """Return whether a comparison of two constants holds; None if they cannot be compared."""
    if right == ():
        return None
    try:
        return _FUNCTIONS[op](left, right[0])
    except TypeError:
        return None


def simplified(body: Sequence[ast.stmt], known: Known) -> list[ast.stmt]:
    """Return statements without checks that cannot fail at their position, and without unreachable code."""
    found: list[ast.stmt] = []
    for node in body:
        if not isinstance(node, ast.If):
            found.append(node)
        elif (truth := known.truth(node.test)) is not None:
            found += simplified(node.body if truth else node.orelse, known)
        else:
            node.body = simplified(node.body, known.also(node.test, True))
            node.orelse = simplified(node.orelse, known.also(node.test, False))
            found.append(node)
            if _leaves(node.body):
                known = known.also(node.test, False)
            if _leaves(node.orelse):
                known = known.also(node.test, True)
        if _leaves(found):
            break
    return found


def _leaves(body: Sequence[ast.stmt]) -> bool:
    """Return whether some statements always leave the function."""
    return bool(body) and isinstance(body[-1], ast.Return | ast.Raise)


def negated(test: ast.expr) -> ast.expr:
    """Return the negation of a condition."""
    match test:
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return operand
        case ast.Compare(left=left, ops=[op], comparators=[_]) if (
            isinstance(op, ast.Eq | ast.NotEq | ast.Is | ast.IsNot | ast.In | ast.NotIn) or ast.unparse(left) in WHOLE
        ):
            return ast.Compare(left, [_OPPOSITE[type(op)]()], test.comparators)
        case _:
            return ast.UnaryOp(ast.Not(), test)
