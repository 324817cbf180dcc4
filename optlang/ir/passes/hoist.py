"""Hoist: whatever does not depend on an element is computed where it is cheapest.

In a formula over elements, the largest pieces made of host values only become coefficients, computed once per step in
float64 and rounded once; the largest pieces made of host values and scalars become scalars of the tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import sympy as sp

from optlang.ir import algebra
from optlang.ir.program import Program, Value
from optlang.language.kinds import HOST, SCALAR, Kind, Level


def run(program: Program) -> Program:
    """Return the program with host and scalar pieces pulled out of its tensor formulas."""
    kinds = program.kinds()
    host = list(program.host)
    known = {v.expr: v.symbol for v in host}

    def coefficient(expr: sp.Expr) -> sp.Symbol:
        if expr not in known:
            known[expr] = algebra.fresh("c", kinds)
            kinds[known[expr]] = HOST
            host.append(Value(known[expr], expr, HOST, algebra.is_condition(expr)))
        return known[expr]

    phases = []
    for phase in program.phases:
        values: list[Value] = []
        shared: dict[sp.Expr, sp.Symbol] = {}
        for value in phase:
            expr = _pull(value.expr, HOST, kinds, coefficient)
            if value.kind.level > Level.SCALAR or value.reduces:
                line = value.line

                def scalar(piece: sp.Expr, line: int = line) -> sp.Symbol:
                    if piece not in shared:
                        shared[piece] = algebra.fresh("s", kinds)
                        kinds[shared[piece]] = SCALAR
                        values.append(Value(shared[piece], piece, SCALAR, algebra.is_condition(piece), line=line))
                    return shared[piece]

                expr = _pull(expr, SCALAR, kinds, scalar)
            values.append(replace(value, expr=expr))
        phases.append(tuple(values))
    return replace(program, host=tuple(host), phases=tuple(phases))


def _pull(
    expr: sp.Expr, kind: Kind, kinds: dict[sp.Symbol, Kind], name: Callable[[sp.Expr], sp.Symbol]
) -> sp.Expr:
    """Replace the largest pieces of ``expr`` that live at most at ``kind`` by names."""

    def low(e: sp.Expr) -> bool:
        return all(kinds[s].level <= kind.level for s in e.free_symbols)

    def named(e: sp.Expr) -> sp.Expr:
        """Return a name for a low expression, its sign outside."""
        if e.is_Atom or not e.free_symbols or (kind == SCALAR and not _has_scalar(e, kinds)):
            return e
        if e.could_extract_minus_sign() and not e.is_Add:
            return -named(-e)
        return name(e)

    def walk(e: sp.Expr) -> sp.Expr:
        if e.is_Atom or not e.free_symbols:
            return e
        if low(e):
            return named(e)
        if e.is_Mul or e.is_Add:
            return _split(e, low, named, walk)
        return e.func(*(walk(a) for a in e.args))

    if low(expr):  # a whole value of this kind is a name already
        return expr
    return walk(expr)


def _has_scalar(expr: sp.Expr, kinds: dict[sp.Symbol, Kind]) -> bool:
    return any(kinds[s] == SCALAR for s in expr.free_symbols)


def _split(
    expr: sp.Expr,
    low: Callable[[sp.Expr], bool],
    named: Callable[[sp.Expr], sp.Expr],
    walk: Callable[[sp.Expr], sp.Expr],
) -> sp.Expr:
    """Rebuild a sum or product with its low terms gathered into one piece."""
    below: Sequence[sp.Expr] = [a for a in expr.args if low(a)]
    rest = [walk(a) for a in expr.args if not low(a)]
    gathered = expr.func(*below)
    return expr.func(named(gathered), *rest)
