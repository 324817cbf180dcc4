"""Forward: a store takes the input or literal that its value only renames, if no formula reads the new name.

Another name for a computed value stays: the two may be stored, and so rounded, in different types.
"""

from __future__ import annotations

from dataclasses import replace

import sympy as sp

from optlang.ir import algebra
from optlang.ir.program import Program


def run(program: Program) -> Program:
    """Return the program without values that are other names for an input or a literal and are only stored."""
    read = set().union(*(v.expr.free_symbols for v in program.values))
    computed = {v.symbol for v in program.tensor}
    names: dict[sp.Symbol, sp.Expr] = {
        v.symbol: v.expr
        for v in program.tensor
        if v.symbol not in read and v.expr not in computed and (v.expr.is_Symbol or algebra.is_literal(v.expr))
    }
    return replace(
        program,
        phases=tuple(tuple(v for v in phase if v.symbol not in names) for phase in program.phases),
        stores=tuple(replace(s, expr=s.expr.xreplace(names)) for s in program.stores),
    )
