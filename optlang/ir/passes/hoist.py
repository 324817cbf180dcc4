"""Hoist: compute element-independent subexpressions where that is cheapest.

In an elementwise formula, maximal subexpressions of host values become coefficients, computed once per step in float64
and rounded once. Maximal subexpressions of host values and scalars become per-tensor scalars.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import sympy as sp

from optlang.ir import algebra
from optlang.ir.program import Program, Value
from optlang.kinds import HOST, SCALAR, Kind, Level


def run(program: Program) -> Program:
    """Return the program with host and scalar subexpressions hoisted out of its tensor formulas."""
    work = _Hoist(program)
    phases = tuple(work.phase(phase) for phase in program.phases)
    return replace(program, host=tuple(work.host), phases=phases)


class _Hoist:
    """Collects the hoisted subexpressions."""

    def __init__(self, program: Program) -> None:
        self.kinds = program.kinds()
        self.host = list(program.host)
        self.coefficients = {v.expr: v.symbol for v in self.host}
        self.scalars: dict[sp.Expr, sp.Symbol] = {}
        self.values: list[Value] = []
        self.line = 0

    def phase(self, values: tuple[Value, ...]) -> tuple[Value, ...]:
        """Return the tensor values, each preceded by the scalars hoisted out of it."""
        self.values = []
        for value in values:
            self.line = value.line
            if value.matrices:
                args = (self.argument(a) for a in value.expr.args)
                self.values.append(replace(value, expr=value.expr.func(*args)))
                continue
            expr = _pull(value.expr, HOST, self.kinds, self.coefficient)
            if value.kind.level > Level.SCALAR or value.reduces:
                expr = _pull(expr, SCALAR, self.kinds, self.scalar)
            self.values.append(replace(value, expr=expr))
        return tuple(self.values)

    def argument(self, expr: sp.Expr) -> sp.Expr:
        """Return an argument of a matrix operation with the sizes in it replaced by coefficients."""
        if expr.is_Function and algebra.name_of(expr) == "slice":
            return expr.func(*map(self.argument, expr.args))
        return expr if algebra.is_literal(expr) else _pull(expr, HOST, self.kinds, self.coefficient)

    def coefficient(self, piece: sp.Expr) -> sp.Symbol:
        """Return the coefficient for a host subexpression."""
        if piece not in self.coefficients:
            symbol = algebra.fresh("c", self.kinds)
            self.kinds[symbol] = HOST
            self.coefficients[piece] = symbol
            self.host.append(Value(symbol, piece, HOST, algebra.is_condition(piece)))
        return self.coefficients[piece]

    def scalar(self, piece: sp.Expr) -> sp.Symbol:
        """Return the scalar for a subexpression that is one number per tensor."""
        if piece not in self.scalars:
            symbol = algebra.fresh("s", self.kinds)
            self.kinds[symbol] = SCALAR
            self.scalars[piece] = symbol
            self.values.append(Value(symbol, piece, SCALAR, algebra.is_condition(piece), line=self.line))
        return self.scalars[piece]


def _pull(expr: sp.Expr, kind: Kind, kinds: dict[sp.Symbol, Kind], name: Callable[[sp.Expr], sp.Symbol]) -> sp.Expr:
    """Replace the maximal subexpressions of ``expr`` whose level is at most that of ``kind`` by names."""

    def low(e: sp.Expr) -> bool:
        return all(kinds[s].level <= kind.level for s in e.free_symbols)

    def named(e: sp.Expr) -> sp.Expr:
        """Return a name for a low expression, without its sign; literals and names are returned unchanged."""
        if e.is_Symbol or algebra.is_literal(e) or (kind == SCALAR and not _has_scalar(e, kinds)):
            return e
        if e.could_extract_minus_sign() and not e.is_Add:
            return -named(-e)
        return name(e)

    def walk(e: sp.Expr) -> sp.Expr:
        if low(e):  # includes tanh(2): tensor functions do not take numbers
            return named(e)
        if e.is_Atom:
            return e
        if e.is_Mul or e.is_Add:
            return _split(e, low, named, walk)
        if e.is_Function and algebra.name_of(e) == "select" and not (e.args[1].free_symbols or e.args[2].free_symbols):
            # A choice between two literals has no tensor to take its dtype from, so make one of them a coefficient.
            return e.func(walk(e.args[0]), name(e.args[1]) if kind == HOST else e.args[1], e.args[2])
        return e.func(*(walk(a) for a in e.args))

    if kind == SCALAR and low(expr):  # the whole value is already a named scalar
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
    """Rebuild a sum or product with its low terms combined into one."""
    below: Sequence[sp.Expr] = [a for a in expr.args if low(a)]
    rest = [walk(a) for a in expr.args if not low(a)]
    gathered = expr.func(*below)
    return expr.func(named(gathered), *rest)
