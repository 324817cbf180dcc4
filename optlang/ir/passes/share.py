"""Share: compute repeated subexpressions once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import sympy as sp

from optlang.ir import algebra
from optlang.ir.program import Program, Value
from optlang.kinds import Kind, Level, join


def run(program: Program) -> Program:
    """Return the program with repeated subexpressions of its host block and its tensor formulas named."""
    kinds = program.kinds()
    host, same = _share(program.host, kinds)
    program = replace(program, host=host).substituted(same)
    phases = []
    for phase in program.phases:
        values, same = _share(phase, kinds)
        phases.append(values)
        program = program.substituted(same)
        phases = [tuple(replace(v, expr=v.expr.xreplace(same)) for v in done) for done in phases]
    return replace(program, phases=tuple(phases))


def _share(
    values: tuple[Value, ...], kinds: dict[sp.Symbol, Kind]
) -> tuple[tuple[Value, ...], dict[sp.Symbol, sp.Symbol]]:
    """Return the values with repeated subexpressions named before their first use, and a map of duplicate values."""
    counts: Counter[sp.Expr] = Counter()
    for value in values:
        if value.matrices:
            continue
        for top in value.expr.args if value.reduces else (value.expr,):
            counts.update(e for e in _always(top, value.kind) if _worth(e))
    repeated = {e for e, n in counts.items() if n > 1}
    names: dict[sp.Expr, sp.Symbol] = {}
    same: dict[sp.Symbol, sp.Symbol] = {}
    shared: list[Value] = []

    def walk(expr: sp.Expr, value: Value, top: bool = False) -> sp.Expr:
        """Return an expression with its repeated subexpressions named."""
        if expr.is_Atom:
            return same.get(expr, expr)
        if expr in names and not top:
            return names[expr]
        lazy = _is_lazy(expr, value.kind)
        rebuilt = expr.func(*(a if lazy and i else walk(a, value) for i, a in enumerate(expr.args)))
        if expr not in repeated or top or rebuilt.is_Atom:
            return rebuilt
        symbol = algebra.fresh("x", kinds)
        kinds[symbol] = join(kinds[s] for s in rebuilt.free_symbols)
        names[expr] = symbol
        condition = algebra.is_condition(rebuilt)
        shared.append(Value(symbol, rebuilt, kinds[symbol], condition, line=value.line))
        return symbol

    for value in values:
        if value.expr in names and not value.rounds:
            same[value.symbol] = names[value.expr]
            continue
        if value.matrices:
            shared.append(replace(value, expr=value.expr.xreplace(same)))
            continue
        shared.append(replace(value, expr=walk(value.expr, value, top=True)))
        if value.expr in repeated and not value.rounds:
            names[value.expr] = value.symbol  # the value is the subexpression: later uses refer to it
    return tuple(shared), same


def _is_lazy(expr: sp.Expr, kind: Kind) -> bool:
    """Return whether a select computes only the chosen side: on the host, where ``1/n`` may rely on ``n != 0``."""
    return kind.level <= Level.HOST and expr.is_Function and algebra.name_of(expr) == "select"


def _always(expr: sp.Expr, kind: Kind) -> Iterator[sp.Expr]:
    """Yield the subexpressions that are computed regardless of any select."""
    yield expr
    for argument in expr.args[:1] if _is_lazy(expr, kind) else expr.args:
        yield from _always(argument, kind)


def _worth(expr: sp.Expr) -> bool:
    """Return whether naming a subexpression saves anything."""
    if expr.is_Atom or not expr.free_symbols or (expr.is_Mul and expr.could_extract_minus_sign()):
        return False  # a sign is free at the use
    return algebra.cost(expr) > 0
