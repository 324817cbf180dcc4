"""Inline: substitute locals into the formulas that use them, so that simplification sees whole formulas.

Values of states and of the parameter keep their names (simplification does not cross a rounding point), and so do
reductions. A tensor value is inlined if it is used once, and only into a value of the same kind, where it costs the
same. A small host value is inlined everywhere: hoisting moves it back together with its context, and sharing computes
it once.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import sympy as sp

from optlang.ir import algebra
from optlang.ir.program import Program, Value
from optlang.kinds import Level

#: Formulas are not grown above this cost, which bounds SymPy's time and keeps them readable.
MAX_COST = 600

#: Nor are formulas nested deeper than this: SymPy is recursive, and Python limits recursion.
MAX_DEPTH = 16

#: A host value of at most this cost is inlined into all its uses.
SMALL = 8


def run(program: Program) -> Program:
    """Return the program with locals inlined."""
    uses: Counter[sp.Symbol] = Counter()
    for value in program.values:
        uses.update(_occurrences(value.expr))
    stored = set().union(*(s.expr.free_symbols for s in program.stores))
    users = {s: v for v in program.values for s in v.expr.free_symbols if uses[s] == 1}
    inlined: dict[sp.Symbol, sp.Expr] = {}
    exponent = max(1, _largest_exponent(program))
    results = {v.symbol for v in program.tensor if v.matrices}

    def rewrite(values: tuple[Value, ...]) -> tuple[Value, ...]:
        kept = []
        for value in values:
            mine = {s: inlined[s] for s in value.expr.free_symbols if s in inlined}
            if mine:
                value = replace(value, expr=algebra.sound(value.expr.xreplace(mine)))
            user = users.get(value.symbol)
            # An expression of matrix results can be computed in the matrix stage if nothing else is mixed in.
            once = user is not None and _may_move(value, user) and not value.expr.free_symbols & results
            small = value.kind.level <= Level.HOST and not value.rounds and algebra.cost(value.expr) <= SMALL
            flat = algebra.depth(value.expr) <= MAX_DEPTH
            tame = (
                flat and algebra.bits(value.expr) * exponent <= algebra.MAX_BITS
            )  # literals multiply, and so do their powers
            if value.symbol not in stored and tame and (once or small):
                inlined[value.symbol] = value.expr
            else:
                kept.append(value)
        return tuple(kept)

    host = rewrite(program.host)
    return replace(program, host=host, phases=tuple(rewrite(phase) for phase in program.phases))


def _largest_exponent(program: Program) -> sp.Expr:
    """Return the largest literal exponent in a program (at least 1), to which a number in a base may be raised."""
    powers = (e for v in program.values for e in v.expr.atoms(sp.Pow))
    return max((abs(e.exp) for e in powers if e.exp.is_Rational), default=sp.Integer(1))


def _occurrences(expr: sp.Expr) -> Counter[sp.Symbol]:
    """Return how often each symbol occurs in an expression."""
    counts: Counter[sp.Symbol] = Counter()
    for node in sp.preorder_traversal(expr):
        if node.is_Symbol:
            counts[node] += 1
    return counts


def _may_move(value: Value, user: Value) -> bool:
    if value.rounds or value.reduces or value.matrices or algebra.cost(value.expr) > MAX_COST:
        return False
    if user.matrices:  # it operates on values in memory
        return False
    if algebra.cost(user.expr) > MAX_COST:
        return False
    return value.kind == user.kind or value.kind.level <= Level.HOST
