"""Constant folding for defaults and ends of ranges: numbers, or arithmetic on numbers."""

from __future__ import annotations

import math

from optlang.rule import Value
from optlang.source import Span
from optlang.syntax.tree import Binary, Bool, Expr, Infinity, Name, Nothing, Number, Text, Unary


class NotConstant(Exception):
    """An expression has no constant value: its span, and the reason (a phrase that follows "because")."""

    def __init__(self, span: Span, reason: str) -> None:
        super().__init__(reason)
        self.span = span
        self.reason = reason


def as_float(number: Number) -> float:
    """Return a literal as a float, infinite if it is too large for one."""
    try:
        return float(number.value)
    except OverflowError:
        return math.inf if number.value > 0 else -math.inf


def fold(expr: Expr) -> Value:
    """Return the value of a constant expression.

    Raises:
        NotConstant: If it reads a name or calls a function, or its arithmetic has no finite result.
    """
    match expr:
        case Number():
            return as_float(expr)
        case Infinity():
            return math.inf
        case Text(value=text):
            return text
        case Bool(value=flag):
            return flag
        case Nothing():
            return None
        case Unary(op="-", operand=operand):
            return -_number(operand)
        case Unary(op="+", operand=operand):
            return _number(operand)
        case Binary(op="+" | "-" | "*" | "/" | "%" | "^", left=left, right=right):
            return _arithmetic(expr, _number(left), _number(right))
        case Name(text=text):
            raise NotConstant(expr.span, f"it reads `{text}`")
        case _:
            raise NotConstant(expr.span, "only arithmetic on numbers is allowed")


def is_whole(expr: Expr) -> bool:
    """Return whether a constant is written as an integer: no decimal point, exponent or division."""
    match expr:
        case Number(text=text):
            return text.replace("_", "").isdecimal()
        case Unary(operand=operand):
            return is_whole(operand)
        case Binary(op="+" | "-" | "*", left=left, right=right):
            return is_whole(left) and is_whole(right)
        case _:
            return False


def _number(expr: Expr) -> float:
    value = fold(expr)
    if isinstance(value, bool) or not isinstance(value, float):
        raise NotConstant(expr.span, "arithmetic needs numbers")
    return value


def apply(op: str, a: float, b: float) -> float:
    """Return ``a op b``; raises ArithmeticError or ValueError if there is no finite real result."""
    match op:
        case "+":
            return a + b
        case "-":
            return a - b
        case "*":
            return a * b
        case "/":
            return a / b
        case "%":
            return a % b
        case _:
            return math.pow(a, b)


def _arithmetic(expr: Binary, a: float, b: float) -> float:
    try:
        value = apply(expr.op, a, b)
    except (ArithmeticError, ValueError):
        raise NotConstant(expr.span, "it has no finite value") from None
    if math.isnan(value):
        raise NotConstant(expr.span, "it has no finite value")
    return value
