"""Simplify: replace each formula by a cheaper algebraic form, if there is one; never by a costlier one."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import sympy as sp

from optlang.ir import algebra
from optlang.ir.program import Program, Value

#: Formulas above this cost are left as they are: factoring time grows faster than the formula.
MAX_COST = 150


def run(program: Program) -> Program:
    """Return the program with each value in the cheapest form found."""
    return replace(
        program,
        host=tuple(_cheapest(v) for v in program.host),
        phases=tuple(tuple(_cheapest(v) for v in phase) for phase in program.phases),
    )


def _cheapest(value: Value) -> Value:
    """Return a value in the cheaper of two forms: unchanged, or with common factors taken out of sums."""
    before = algebra.cost(value.expr)
    if value.matrices or before > MAX_COST or algebra.content_bits(value.expr) > algebra.MAX_BITS:
        return value
    if not value.expr.has(sp.Add):
        return value
    form = _factored(value.expr)
    return replace(value, expr=form) if algebra.cost(form) < before else value


@lru_cache(maxsize=4096)  # the variants of a rule share most formulas
def _factored(expr: sp.Expr) -> sp.Expr:
    """Return an expression with common factors taken out of sums."""
    return sp.factor_terms(expr, sign=False)
