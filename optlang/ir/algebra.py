"""IR expressions: which SymPy nodes are used, and how to build, measure and print them.

Sums, products and powers are SymPy's, and its automatic rewriting of them is welcome. Everything else is an opaque
function that SymPy never rewrites, because its rules for ``exp(log(x))`` or ``max`` hold only for well-behaved numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from fractions import Fraction
from functools import cache
from itertools import count
from typing import Any

import sympy as sp
from sympy.core.function import UndefinedFunction
from sympy.printing.str import StrPrinter

from optlang.functions.table import BUILTINS

COMPARISONS = ("lt", "le", "eq", "ne", "and", "or")
#: Costs of elementwise operations, relative to an addition.
WEIGHTS = {name: row.cost for name, row in BUILTINS.items()}
WEIGHTS |= {"select": 1, "number": 1, "not": 0, **dict.fromkeys(COMPARISONS, 1)}
DIVISION, ROOT, FUNCTION = 4, 6, 12
#: Functions that return a condition.
CONDITIONS = {*COMPARISONS, "not", "true", "false", *(name for name, row in BUILTINS.items() if row.boolean)}

#: Size limit for exact numbers (float64 needs at most 2,200 bits); SymPy's time grows with their size.
MAX_BITS = 4096


class Reduction(sp.Function):  # type: ignore[misc]
    """``sum(x, *dims)``, ``mean``, ``max``, ``min``: over the whole tensor, or over ``dims``, which are kept."""

    @classmethod
    def eval(cls, *args: Any) -> None:
        """Never rewrite."""
        return None


class MatrixOperation(sp.Function):  # type: ignore[misc]
    """A function of whole matrices: ``matmul(a, b)``, ``eigh(x)``, ``item(svd, 0)``, ``index(x, ...)``."""

    @classmethod
    def eval(cls, *args: Any) -> None:
        """Never rewrite."""
        return None


class Loop(MatrixOperation):
    """A loop over the entries of a history. Each loop is a subclass whose ``body`` holds its program."""

    body: Any


def loop(body: Any) -> type[Loop]:
    """Return the operation for a loop: a function of the number of filled entries and of the values the body reads."""
    return type("loop", (Loop,), {"body": body})


@cache
def matrix_operation(name: str) -> type[MatrixOperation]:
    """Return the matrix operation with the given name."""
    return type(name, (MatrixOperation,), {})


@cache
def reduction(name: str) -> type[Reduction]:
    """Return the reduction with the given name."""
    return type(name, (Reduction,), {})


@cache
def function(name: str) -> UndefinedFunction:
    """Return the opaque function with the given name (a builtin, a comparison, ``select``, ``number``)."""
    return UndefinedFunction(name)


def call(name: str, *args: sp.Expr) -> sp.Expr:
    """Return an opaque function applied to arguments."""
    return function(name)(*args)


def name_of(expr: sp.Expr) -> str:
    """Return the name of the function in an application."""
    return str(expr.func.__name__)


def number(value: Fraction | int) -> sp.Rational:
    """Return an exact literal."""
    fraction = Fraction(value)
    return sp.Rational(fraction.numerator, fraction.denominator)


def power(base: sp.Expr, exponent: sp.Expr) -> sp.Expr:
    """Return ``base ** exponent``. If exact numbers would grow too large, the power is opaque or a float."""
    if base.is_Rational and base == 0:  # SymPy's 0**-1 is complex infinity, in IEEE 754 it is infinity
        return _float_power(base, exponent) if exponent.is_Rational else call("pow", base, exponent)
    if exponent.is_Rational and bits(base) * max(1, abs(exponent)) > MAX_BITS:
        if base.is_Rational:
            return _float_power(base, exponent)
        return call("pow", base, exponent)
    if base.is_Rational and exponent.is_Rational and not exponent.is_Integer:
        return _float_power(base, exponent)
    return sp.Pow(base, exponent)


def bits(expr: sp.Expr) -> int:
    """Return the size in bits of the largest number in an expression."""
    numbers = (expr,) if expr.is_Rational else expr.atoms(sp.Rational)
    return max((n.p.bit_length() + n.q.bit_length() for n in numbers), default=0)


def content_bits(expr: sp.Expr) -> int:
    """Return an upper bound on the bits of a number that factoring an expression can produce.

    A factor taken out of ``(x/10 + 1)**2`` is squared; taken out of a power of that, it is raised again.
    """
    if expr.is_Rational:
        return bits(expr)
    below = [content_bits(a) for a in expr.args]
    if expr.is_Pow and expr.exp.is_Rational:
        raised: int = math.ceil(below[0] * abs(expr.exp))
        return raised
    return sum(below) if expr.is_Mul or expr.is_Add else max(below, default=0)


def depth(expr: sp.Expr) -> int:
    """Return the nesting depth of the operations in an expression."""
    return 1 + max(map(depth, expr.args), default=-1)


def bounded(expr: sp.Expr) -> sp.Expr:
    """Round a number larger than :data:`MAX_BITS` to a float's exact value; return anything else unchanged."""
    return literal(to_float(expr)) if expr.is_Rational and bits(expr) > MAX_BITS else expr


def to_float(expr: sp.Expr) -> float:
    """Return a number as a float, infinite if it is too large for one."""
    try:
        return Fraction(int(expr.p), int(expr.q)).__float__() if expr.is_Rational else float(expr)
    except OverflowError:
        return math.inf if expr > 0 else -math.inf


def _float_power(exact: sp.Expr, exponent: sp.Expr) -> sp.Expr:
    base = to_float(exact)
    try:
        value = math.pow(base, to_float(exponent))
    except OverflowError:
        value = math.inf
    except ValueError:
        value = math.inf if base == 0 else math.nan
    return literal(value)


def literal(value: float) -> sp.Expr:
    """Return a float as an expression: exact, or a constant for infinities and NaN."""
    if math.isnan(value):
        return call("nan")
    if math.isinf(value):
        return call("inf") if value > 0 else -call("inf")
    return number(Fraction(value))


#: Literals that are not SymPy numbers, represented as functions without arguments.
CONSTANTS = ("inf", "nan", "true", "false", "end")


def is_literal(expr: sp.Expr) -> bool:
    """Return whether an expression is a number or a constant, possibly negated."""
    if expr.is_Mul and len(expr.args) == 2 and expr.args[0] == -1:
        return is_literal(expr.args[1])
    return bool(expr.is_Rational) or (bool(expr.is_Function) and name_of(expr) in CONSTANTS)


def value_of(expr: sp.Expr) -> float:
    """Return the value of a literal."""
    if expr.is_Rational:
        return to_float(expr)
    if expr.is_Mul:
        return -value_of(-expr)
    return {"inf": math.inf, "nan": math.nan, "true": 1.0, "false": 0.0}[name_of(expr)]


#: SymPy's results of dividing by zero, and their IEEE 754 counterparts.
SINGULAR = {sp.zoo: "inf", sp.oo: "inf", sp.nan: "nan"}


def sound(expr: sp.Expr) -> sp.Expr:
    """Return an expression with SymPy's infinities replaced, for when a subexpression became 0 as in ``1/(x - x)``."""
    if not any(atom in SINGULAR or atom is sp.S.NegativeInfinity for atom in expr.atoms(sp.Number, sp.zoo.func)):
        return expr
    constants = {singular: call(name) for singular, name in SINGULAR.items()}
    return expr.xreplace({**constants, sp.S.NegativeInfinity: -call("inf")})


def is_condition(expr: sp.Expr) -> bool:
    """Return whether an expression is a condition (not a number)."""
    name = name_of(expr) if expr.is_Function else ""
    if name == "select":
        return is_condition(expr.args[1])
    return name in CONDITIONS


def fresh(stem: str, taken: Iterable[sp.Symbol]) -> sp.Symbol:
    """Return the first of ``stem1, stem2, ...`` that is not in ``taken``."""
    names = {s.name for s in taken}
    return sp.Symbol(next(f"{stem}{n}" for n in count(1) if f"{stem}{n}" not in names))


def select(condition: sp.Expr, then: sp.Expr, other: sp.Expr) -> sp.Expr:
    """Return ``then`` where ``condition`` holds, else ``other``."""
    return then if then == other else call("select", condition, then, other)


def cost(expr: sp.Expr) -> int:
    """Return the weighted number of operations of an expression."""
    if expr.is_Atom:
        return 0
    if isinstance(expr, Reduction):
        return 1 + cost(expr.args[0])
    below = sum(cost(a) for a in expr.args)
    if expr.is_Add:
        return below + len(expr.args) - 1
    if expr.is_Mul:
        divisions = sum(1 for a in expr.args if a.is_Pow and a.exp.is_number and a.exp.is_negative)
        signs = sum(1 for a in expr.args if a == -1)
        divides = DIVISION if divisions else 0
        return below - divisions * DIVISION + divides + max(0, len(expr.args) - 1 - signs - (divisions > 0))
    if expr.is_Pow:
        return below + _power_cost(expr.exp)
    return below + WEIGHTS.get(name_of(expr), FUNCTION)


def _power_cost(exponent: sp.Expr) -> int:
    if exponent.is_Integer:
        n = abs(int(exponent))
        return (n.bit_length() - 1 + bin(n).count("1") - 1) + (DIVISION if exponent < 0 else 0)
    if (2 * exponent).is_Integer:
        return ROOT + _power_cost(abs(exponent) - sp.Rational(1, 2) + 1) + (DIVISION if exponent < 0 else 0)
    return 2 * FUNCTION


#: How functions that represent operators are printed.
OPERATORS = {"lt": "<", "le": "<=", "eq": "==", "ne": "!=", "and": "and", "or": "or", "mod": "%"}


class _Shown(StrPrinter):  # type: ignore[misc]
    """Prints an expression in the rule language's notation."""

    def _print_Function(self, expr: sp.Expr) -> str:
        name = name_of(expr)
        if name in OPERATORS and len(expr.args) == 2:
            a, b = (f"({self._print(x)})" if self._is_operator(x) else self._print(x) for x in expr.args)
            return f"{a} {OPERATORS[name]} {b}"
        if name in CONSTANTS:
            return name
        if isinstance(expr, Reduction):
            return self._print_Reduction(expr)
        return str(super()._print_Function(expr))

    @staticmethod
    def _is_operator(expr: sp.Expr) -> bool:
        return bool(expr.is_Function) and name_of(expr) in OPERATORS

    def _print_Reduction(self, expr: Reduction) -> str:
        inner, *dims = expr.args
        dim = f", dim=({', '.join(map(str, dims))})" if dims else ""
        return f"{name_of(expr)}({self._print(inner)}{dim})"


def show(expr: sp.Expr) -> str:
    """Return an expression as readable text."""
    return str(_Shown({"order": "none"}).doprint(expr)).replace("**", "^")
