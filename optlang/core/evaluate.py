"""Evaluation of expressions over Python values.

Used for defaults, ranges, requirements and static conditions. Arithmetic follows IEEE float64 (1/0 is inf, the root of
a negative number is NaN). An expression that reads a name without a value raises :class:`NotStatic`.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from fractions import Fraction

from optlang.core.core import Key, KnownSize, Operation
from optlang.functions.table import BUILTINS
from optlang.identity import Count, GroupKey
from optlang.rule import Value, Values
from optlang.syntax import tree as ast


class NotStatic(Exception):
    """The expression reads something that has no value here; ``node`` is the subexpression that does."""

    def __init__(self, node: ast.Node) -> None:
        super().__init__(node)
        self.node = node


def nearest_float(exact: Fraction) -> float:
    """Return the float nearest to an exact number, infinite if it is too large for one."""
    try:
        return float(exact)
    except OverflowError:
        return math.inf if exact > 0 else -math.inf


def divide(a: float, b: float) -> float:
    """Return a / b as IEEE defines it."""
    try:
        return a / b
    except ZeroDivisionError:
        return math.nan if a == 0 or a != a else math.copysign(math.inf, a) * math.copysign(1.0, b)


def power(a: float, b: float) -> float:
    """Return a ** b as IEEE defines it: inf on overflow, NaN for a fractional power of a negative number."""
    try:
        return math.pow(a, b)
    except OverflowError:
        return -math.inf if a < 0 and b % 2 == 1 else math.inf
    except ValueError:
        return math.inf if a == 0 else math.nan


FUNCTIONS: dict[str, Callable[..., float | bool]] = {
    name: row.value for name, row in BUILTINS.items() if row.value is not None and row.static
}

ARITHMETIC: dict[str, Callable[[float, float], float]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": divide,
    "^": power,
    "%": lambda a, b: math.nan if b == 0 or math.isinf(a) else a % b,
}

COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def member_name(node: ast.Member) -> GroupKey | Count | None:
    """Return the identity of ``group.x``; None for a member of anything else."""
    if not (isinstance(node.value, ast.Name) and node.value.name == "group"):
        return None
    return Count.GROUP if node.name == "t" else GroupKey(node.name)


def truth(value: Value) -> bool:
    """Return whether a value counts as true in a condition (0, none and the empty string do not)."""
    return bool(value)


def equal(a: Value, b: Value) -> bool:
    """Return whether two values are equal. Values of different types are not, except that 1 equals true."""
    return a == b


def _number(value: Value, node: ast.Node) -> float:
    if isinstance(value, (bool, int, float)):
        return float(value)
    raise NotStatic(node)


def evaluate(node: ast.Expr, names: Values) -> Value:
    """Evaluate an expression.

    Args:
        node: The expression.
        names: Values by name.

    Raises:
        NotStatic: If it reads a name that is not in ``names``, or is not an expression over Python values.
    """
    match node:
        case ast.Number(value=exact):
            return nearest_float(exact)
        case KnownSize(value=size):
            return float(size)
        case Key(key=name) if name in names:
            return names[name]
        case ast.Infinity():
            return math.inf
        case ast.Text(value=text):
            return text
        case ast.Bool(value=flag):
            return flag
        case ast.Nothing():
            return None
        case ast.Name(name=name):
            if name in names:
                return names[name]
        case ast.Member():
            key = member_name(node)
            if key is not None and key in names:
                return names[key]
        case ast.Unary(op=op, operand=operand):
            value = evaluate(operand, names)
            if op == "not":
                return not truth(value)
            return -_number(value, node) if op == "-" else _number(value, node)
        case ast.Binary():
            return _binary(node, names)
        case ast.Compare(ops=ops, operands=operands):
            return _compare(ops, [evaluate(o, names) for o in operands], node)
        case ast.Ternary(condition=condition, then=then, other=other):
            return evaluate(then if truth(evaluate(condition, names)) else other, names)
        case ast.Call(function=ast.Name(name="where"), arguments=(c, a, b)):
            return evaluate(a.value if truth(evaluate(c.value, names)) else b.value, names)
        case ast.Call(function=ast.Name(name=name), arguments=arguments) if name in FUNCTIONS:
            if not any(a.name for a in arguments):
                return FUNCTIONS[name](*(_number(evaluate(a.value, names), node) for a in arguments))
        case Operation(function=name, arguments=arguments, dims=None) if name in FUNCTIONS:
            return FUNCTIONS[name](*(_number(evaluate(a, names), node) for a in arguments))
        case _:
            pass
    raise NotStatic(node)


def _binary(node: ast.Binary, names: Values) -> Value:
    left = evaluate(node.left, names)
    if node.op == "and":
        return truth(left) and truth(evaluate(node.right, names))
    if node.op == "or":
        return truth(left) or truth(evaluate(node.right, names))
    if node.op == "??":
        return evaluate(node.right, names) if left is None else left
    if node.op not in ARITHMETIC:
        raise NotStatic(node)
    return ARITHMETIC[node.op](_number(left, node), _number(evaluate(node.right, names), node))


def _compare(ops: tuple[str, ...], values: list[Value], node: ast.Node) -> bool:
    for op, a, b in zip(ops, values, values[1:], strict=False):
        if op in ("==", "!="):
            holds = equal(a, b) is (op == "==")
        else:
            holds = COMPARISONS[op](_number(a, node), _number(b, node))
        if not holds:
            return False
    return True
