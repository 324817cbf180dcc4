"""Comparisons: which values can be compared, and results that are known statically."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from optlang.checker.reader import Reader
from optlang.checker.values import MISTAKE, UNKNOWN, CheckedValue, Known, Sort, uses_of
from optlang.core.evaluate import COMPARISONS
from optlang.kinds import STATIC
from optlang.rule import OneOf
from optlang.syntax.suggest import listing, nearest
from optlang.syntax.tree import Compare, Expr, Name, Nothing, Text


def compare(
    reader: Reader, node: Compare, values: Sequence[CheckedValue], number: Callable[[Expr], object]
) -> CheckedValue:
    """Infer a comparison of ``values``; ``number`` reports an operand that is not a number."""
    pairs = zip(node.ops, node.operands, node.operands[1:], values, values[1:], strict=False)
    known: Known = True
    sound = True
    for op, left, right, a, b in pairs:
        sound &= comparable(reader, op, left, right, a, b, number)
        if Sort.NONE in (a.sort, b.sort):  # only none equals none
            both = a.sort is b.sort
            answer: Known = both is (op == "==")
        elif UNKNOWN in (a.known, b.known):
            answer = UNKNOWN
        elif op in ("==", "!="):
            answer = (a.known == b.known) is (op == "==")
        elif isinstance(a.known, (int, float)) and isinstance(b.known, (int, float)):
            answer = COMPARISONS[op](a.known, b.known)
        else:
            answer = UNKNOWN
        known = answer if answer is not True and known is not False else known
    if any(v.sort is Sort.NONE for v in values):
        return CheckedValue(STATIC, Sort.CONDITION, known=known)
    met = reader.combine(node, values)
    sound &= met is not MISTAKE
    return CheckedValue(met.kind, Sort.CONDITION if sound else Sort.UNKNOWN, uses_of(values), known)


def comparable(
    reader: Reader, op: str, left: Expr, right: Expr, a: CheckedValue, b: CheckedValue, number: Callable[[Expr], object]
) -> bool:
    """Check that two values can be compared."""
    ordered = op not in ("==", "!=")
    for expr, other, value, against in ((left, right, a, b), (right, left, b, a)):
        written = isinstance(expr, Nothing)
        if value.sort is Sort.NONE and (ordered or (value.optional is None and not written)):
            number(expr)
            return False
        if written and against.optional is None and against.sort is not Sort.UNKNOWN:
            reader.report(
                "E306",
                f"`{reader.text(other)}` is never none",
                expr.span,
                label="always different",
                help="only a hyperparameter whose default is none can be compared with none",
            )
            return False
        if value.sort is Sort.TEXT and against.sort in (Sort.NUMBER, Sort.CONDITION):
            reader.report(
                "E306",
                f"the string `{reader.text(expr)}` is compared with {_a_number(against.sort)}",
                expr.span,
                label="a string",
                help='strings are compared with strings: `mode == "l2"`',
            )
            return False
        if value.sort is Sort.TEXT and ordered:
            reader.report(
                "E306",
                "strings have no order",
                expr.span,
                label=f"cannot be compared with `{op}`",
                help="use `==` or `!=`",
            )
            return False
        if isinstance(expr, Compare):
            reader.report(
                "E305",
                "the result of a comparison is compared again",
                expr.span,
                label="true or false",
                help="join conditions with `and`, `or`, `not`; `a < b < c` without brackets means both",
            )
            return False
        if not is_choice(reader, expr, other):
            return False
    return True


def is_choice(reader: Reader, literal: Expr, name: Expr) -> bool:
    """Check a string against the choices of the hyperparameter it is compared with."""
    if not (isinstance(literal, Text) and isinstance(name, Name) and name.name in reader.scope.hypers):
        return True
    domain = reader.scope.hypers[name.name].domain
    if not isinstance(domain, OneOf) or literal.value in domain.values:
        return True
    choices = [value for value in domain.values if isinstance(value, str)]
    near = nearest(literal.value, choices)
    reader.report(
        "E307",
        f'`{name.text}` is never "{literal.value}"',
        literal.span,
        label=f"not {domain.text}",
        help=f'did you mean "{near}"?' if near else f"its values are {listing(choices)}",
        related=(("declared here", reader.scope.places[name.name]),),
    )
    return False


def _a_number(sort: Sort) -> str:
    return "a number" if sort is Sort.NUMBER else "a condition"
